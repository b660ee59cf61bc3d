-- Indexes that belong to no constraint, and what is said of each index after it exists.
SELECT i.indrelid, 40, i.oid::int8, said.before || i.table_target || ' USING '
    || substr(said.all, length(said.before || format('%I.%I USING ', i.schema_name, i.table_name)) + 1)
FROM own_index i
CROSS JOIN LATERAL (
    SELECT pg_get_indexdef(i.oid), format('CREATE %sINDEX %I ON ', CASE WHEN i.indisunique THEN 'UNIQUE ' END, i.relname)) AS said ("all", before)
WHERE i.indisvalid AND NOT EXISTS (SELECT FROM own_constraint c WHERE c.conindid = i.oid AND c.contype IN ('p', 'u', 'x'))

UNION ALL
SELECT i.indrelid, 46, 0, format('ALTER INDEX %s SET (%s)', i.target, options.list)
FROM own_index i
JOIN own_constraint c ON c.conindid = i.oid AND c.contype IN ('p', 'u')
CROSS JOIN LATERAL (
    SELECT string_agg(format('%I=%L', split_part(o, '=', 1), substr(o, strpos(o, '=') + 1)), ', ' ORDER BY o)
    FROM unnest(i.reloptions) AS o) AS options (list)
WHERE i.reloptions IS NOT NULL

UNION ALL
SELECT i.indrelid, 46, 0, format('ALTER INDEX %s SET TABLESPACE %I', i.target, s.spcname)
FROM own_index i JOIN pg_tablespace s ON s.oid = i.reltablespace

UNION ALL
SELECT i.indrelid, 46, 0, format('ALTER INDEX %s ALTER COLUMN %s SET STATISTICS %s', i.target, a.attnum, a.attstattarget)
FROM own_index i JOIN pg_attribute a ON a.attrelid = i.oid AND a.attstattarget >= 0

UNION ALL
SELECT i.indrelid, 48, 0, format('ALTER TABLE %s CLUSTER ON %I', i.table_target, i.relname)
FROM own_index i WHERE i.indisclustered
