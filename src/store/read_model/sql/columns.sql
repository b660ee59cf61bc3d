-- What is said of a column after its table exists.
SELECT a.attrelid, 25, 0, format('ALTER TABLE %s ALTER COLUMN %I SET STORAGE %s', a.target, a.attname,
    CASE a.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED' END)
FROM own_column a WHERE a.attstorage <> a.typstorage

UNION ALL
SELECT a.attrelid, 25, 0, format('ALTER TABLE %s ALTER COLUMN %I SET COMPRESSION %s', a.target, a.attname,
    CASE a.attcompression WHEN 'p' THEN 'pglz' ELSE 'lz4' END)
FROM own_column a WHERE a.attcompression <> ''

UNION ALL
SELECT a.attrelid, 25, 0, format('ALTER TABLE %s ALTER COLUMN %I SET STATISTICS %s', a.target, a.attname, a.attstattarget)
FROM own_column a WHERE a.attstattarget >= 0

UNION ALL
SELECT a.attrelid, 25, 0, format('ALTER TABLE %s ALTER COLUMN %I SET (%s)', a.target, a.attname, array_to_string(a.attoptions, ', '))
FROM own_column a WHERE a.attoptions IS NOT NULL

-- After the indexes, to which an expression may refer.
UNION ALL
SELECT a.attrelid, 55, 0, format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT %s', a.target, a.attname, pg_get_expr(v.adbin, v.adrelid))
FROM own_column a JOIN pg_attrdef v ON v.adrelid = a.attrelid AND v.adnum = a.attnum
WHERE a.attgenerated = ''
