-- Comments.
SELECT said.oid, 60, 0, format('COMMENT ON %s IS %L', said.what, d.description)
FROM (
    SELECT t.oid, 'pg_class'::regclass, t.oid, 0, format('TABLE %s', t.target) FROM own_table t
    UNION ALL SELECT a.attrelid, 'pg_class'::regclass, a.attrelid, a.attnum, format('COLUMN %s.%I', a.target, a.attname) FROM own_column a
    UNION ALL SELECT s.attrelid, 'pg_class'::regclass, s.oid, 0, format('SEQUENCE %s', s.target) FROM own_sequence s
    UNION ALL SELECT i.indrelid, 'pg_class'::regclass, i.oid, 0, format('INDEX %s', i.target) FROM own_index i WHERE i.indisvalid
    UNION ALL SELECT c.conrelid, 'pg_constraint'::regclass, c.oid, 0, format('CONSTRAINT %I ON %s', c.conname, c.table_target)
              FROM own_constraint c WHERE c.contype <> 'f' OR c.confrelid = ANY ($1)
) AS said (oid, classoid, objoid, objsubid, what)
JOIN pg_description d USING (classoid, objoid, objsubid)
