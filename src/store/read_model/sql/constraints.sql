-- Constraints. A foreign key to a table outside $1 is not a part of the copies. Among several indexes, a foreign key uses
-- the oldest one: so indexes are created in the order of their oids, with or without a constraint.
SELECT c.conrelid, CASE c.contype WHEN 'n' THEN 20 WHEN 'c' THEN 55 ELSE 40 END, c.conindid::int8,
       format('ALTER TABLE %s ADD CONSTRAINT %I %s', c.table_target, c.conname, pg_get_constraintdef(c.oid))
FROM own_constraint c WHERE c.contype IN ('n', 'p', 'u', 'x', 'c')

UNION ALL
SELECT c.conrelid, 50, 0, format('ALTER TABLE %s ADD CONSTRAINT %I %s%s%s', c.table_target, c.conname, said.before, r.target,
    substr(said.all, length(said.before || format('%I.%I', r.schema_name, r.relname)) + 1))
FROM own_constraint c
JOIN own_table r ON r.oid = c.confrelid
CROSS JOIN LATERAL (
    SELECT pg_get_constraintdef(c.oid), format('FOREIGN KEY (%s) REFERENCES ', string_agg(
        CASE WHEN k.number = cardinality(c.conkey) AND (to_jsonb(c) ->> 'conperiod')::bool THEN 'PERIOD ' ELSE '' END || quote_ident(a.attname),
        ', ' ORDER BY k.number))
    FROM unnest(c.conkey) WITH ORDINALITY AS k (attnum, number)
    JOIN own_column a ON a.attrelid = c.conrelid AND a.attnum = k.attnum) AS said ("all", before)
WHERE c.contype = 'f'
