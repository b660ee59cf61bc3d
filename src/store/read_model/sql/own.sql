-- What belongs to the tables $1. Their copies go to the schema $2.
WITH RECURSIVE own_table AS (
    SELECT c.*, n.nspname AS schema_name, format('%I.%I', $2, c.relname) AS target
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = ANY ($1)
),
own_column AS (
    SELECT t.target, t.relowner, a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attnotnull, a.attcollation,
           a.attidentity, a.attgenerated, a.attstorage, a.attcompression, a.attstattarget, a.attoptions, a.attacl,
           y.typstorage, y.typcollation
    FROM own_table t
    JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_type y ON y.oid = a.atttypid
),
own_sequence AS (
    SELECT q.oid, q.relname, q.relacl, q.relpersistence, d.deptype = 'i' AS is_identity, a.attrelid, a.attname, a.attidentity,
           a.atttypid, a.target AS table_target, a.relowner, n.nspname AS schema_name, format('%I.%I', $2, q.relname) AS target, s.*,
           format('START WITH %s INCREMENT BY %s MINVALUE %s MAXVALUE %s CACHE %s %s', s.seqstart, s.seqincrement, s.seqmin, s.seqmax,
                  s.seqcache, CASE WHEN s.seqcycle THEN 'CYCLE' ELSE 'NO CYCLE' END) AS options
    FROM own_column a
    JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = a.attrelid
        AND d.refobjsubid = a.attnum AND d.deptype IN ('a', 'i')
    JOIN pg_class q ON q.oid = d.objid AND q.relkind = 'S'
    JOIN pg_namespace n ON n.oid = q.relnamespace
    JOIN pg_sequence s ON s.seqrelid = q.oid
),
own_index AS (
    SELECT t.target AS table_target, t.relname AS table_name, t.schema_name, format('%I.%I', $2, x.relname) AS target, x.oid,
           x.relname, x.relam, x.reloptions, x.reltablespace, i.*
    FROM own_table t
    JOIN pg_index i ON i.indrelid = t.oid
    JOIN pg_class x ON x.oid = i.indexrelid
),
own_constraint AS (
    SELECT t.target AS table_target, c.*
    FROM own_table t JOIN pg_constraint c ON c.conrelid = t.oid
)
