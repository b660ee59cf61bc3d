-- The sequences that the columns own: those of identity columns, and all others.
SELECT s.attrelid, 15, 0, format('CREATE %sSEQUENCE %s AS %s %s',
    CASE s.relpersistence WHEN 'u' THEN 'UNLOGGED ' END, s.target, format_type(s.seqtypid, NULL), s.options)
FROM own_sequence s WHERE NOT s.is_identity

UNION ALL
SELECT s.attrelid, 16, 0, format('ALTER SEQUENCE %s OWNER TO %I', s.target, pg_get_userbyid(s.relowner))
FROM own_sequence s WHERE NOT s.is_identity

UNION ALL
SELECT s.attrelid, 17, 0, format('ALTER SEQUENCE %s OWNED BY %s.%I', s.target, s.table_target, s.attname)
FROM own_sequence s WHERE NOT s.is_identity

UNION ALL
SELECT s.attrelid, 30, 0, format('ALTER TABLE %s ALTER COLUMN %I ADD GENERATED %s AS IDENTITY (SEQUENCE NAME %s%s)',
    s.table_target, s.attname, CASE s.attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END, s.target,
    CASE WHEN s.seqtypid = s.atttypid THEN ' ' || s.options END)
FROM own_sequence s WHERE s.is_identity

-- The sequence of an identity column begins with the column's type and the table's persistence.
UNION ALL
SELECT s.attrelid, 31, 0, format('ALTER SEQUENCE %s AS %s %s RESTART', s.target, format_type(s.seqtypid, NULL), s.options)
FROM own_sequence s WHERE s.is_identity AND s.seqtypid <> s.atttypid

UNION ALL
SELECT s.attrelid, 32, 0, format('ALTER SEQUENCE %s SET %s', s.target, CASE s.relpersistence WHEN 'u' THEN 'UNLOGGED' ELSE 'LOGGED' END)
FROM own_sequence s JOIN own_table t ON t.oid = s.attrelid
WHERE s.is_identity AND s.relpersistence <> t.relpersistence AND current_setting('server_version_num')::int4 >= 150000
