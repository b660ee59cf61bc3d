-- The tables with their columns. Autovacuum is not a part of the definition: it is off while a copy is filled.
SELECT t.oid, 10, 0, format('CREATE %sTABLE %s (%s) USING %I%s%s',
    CASE t.relpersistence WHEN 'u' THEN 'UNLOGGED ' END, t.target, columns.list, m.amname,
    CASE WHEN options.list <> '' THEN format(' WITH (%s)', options.list) END,
    CASE WHEN s.oid IS NOT NULL THEN format(' TABLESPACE %I', s.spcname) END)
FROM own_table t
JOIN pg_am m ON m.oid = t.relam
LEFT JOIN pg_tablespace s ON s.oid = t.reltablespace
CROSS JOIN LATERAL (
    SELECT string_agg(format('%I %s%s%s%s', a.attname, format_type(a.atttypid, a.atttypmod),
        CASE WHEN a.attcollation <> a.typcollation THEN format(' COLLATE %I.%I', n.nspname, o.collname) END,
        CASE WHEN a.attgenerated <> '' THEN
            format(' GENERATED ALWAYS AS (%s) %s', pg_get_expr(v.adbin, v.adrelid), CASE a.attgenerated WHEN 's' THEN 'STORED' ELSE 'VIRTUAL' END)
        END,
        -- From PostgreSQL 18 on, it is a constraint with a name.
        CASE WHEN a.attnotnull AND current_setting('server_version_num')::int4 < 180000 THEN ' NOT NULL' END), ', ' ORDER BY a.attnum)
    FROM own_column a
    LEFT JOIN pg_collation o ON o.oid = a.attcollation
    LEFT JOIN pg_namespace n ON n.oid = o.collnamespace
    LEFT JOIN pg_attrdef v ON v.adrelid = a.attrelid AND v.adnum = a.attnum
    WHERE a.attrelid = t.oid) AS columns (list)
CROSS JOIN LATERAL (
    SELECT string_agg(format('%s%I=%L', o.prefix, split_part(o.text, '=', 1), substr(o.text, strpos(o.text, '=') + 1)), ', '
        ORDER BY o.prefix, o.text)
    FROM (SELECT '', unnest(t.reloptions)
          UNION ALL SELECT 'toast.', unnest(w.reloptions) FROM pg_class w WHERE w.oid = t.reltoastrelid) AS o (prefix, text)
    WHERE split_part(o.text, '=', 1) <> 'autovacuum_enabled') AS options (list)

UNION ALL
SELECT t.oid, 11, 0, format('ALTER TABLE %s OWNER TO %I', t.target, pg_get_userbyid(t.relowner)) FROM own_table t

UNION ALL
SELECT t.oid, 49, 0, format('ALTER TABLE %s REPLICA IDENTITY %s', t.target,
    CASE t.relreplident WHEN 'f' THEN 'FULL' WHEN 'n' THEN 'NOTHING'
        ELSE (SELECT format('USING INDEX %I', i.relname) FROM own_index i WHERE i.indrelid = t.oid AND i.indisreplident) END)
FROM own_table t
WHERE t.relreplident IN ('f', 'n')
   OR t.relreplident = 'i' AND EXISTS (SELECT FROM own_index i WHERE i.indrelid = t.oid AND i.indisreplident)
