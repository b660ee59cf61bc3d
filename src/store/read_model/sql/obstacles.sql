-- What belongs to the tables, as objects of the catalog. Everything else that depends on one of these is an obstacle.
own AS (
    SELECT t.oid AS table_oid, 'pg_class'::regclass::oid AS classid, t.oid AS objid FROM own_table t
    UNION ALL SELECT t.oid, 'pg_class'::regclass, t.reltoastrelid FROM own_table t WHERE t.reltoastrelid <> 0
    UNION ALL SELECT t.oid, 'pg_class'::regclass, i.indexrelid FROM own_table t JOIN pg_index i ON i.indrelid IN (t.oid, t.reltoastrelid)
    UNION ALL SELECT s.attrelid, 'pg_class'::regclass, s.oid FROM own_sequence s
    UNION ALL SELECT y.typrelid, 'pg_type'::regclass, y.oid FROM pg_type y WHERE y.typrelid = ANY ($1)
    UNION ALL SELECT y.typrelid, 'pg_type'::regclass, y.typarray FROM pg_type y WHERE y.typrelid = ANY ($1)
    UNION ALL SELECT c.conrelid, 'pg_constraint'::regclass, c.oid FROM own_constraint c
    UNION ALL SELECT v.adrelid, 'pg_attrdef'::regclass, v.oid FROM pg_attrdef v WHERE v.adrelid = ANY ($1)
),
-- A view depends on a table by its rule, and an entry of a publication stands for the publication.
dependent AS (
    SELECT DISTINCT o.table_oid,
           CASE WHEN w.ev_class IS NOT NULL THEN 'pg_class'::regclass ELSE d.classid END AS classid,
           coalesce(w.ev_class, d.objid) AS objid, CASE WHEN w.ev_class IS NOT NULL THEN 0 ELSE d.objsubid END AS objsubid
    FROM pg_depend d
    JOIN own o ON o.classid = d.refclassid AND o.objid = d.refobjid
    LEFT JOIN pg_rewrite w ON d.classid = 'pg_rewrite'::regclass AND w.oid = d.objid AND w.rulename = '_RETURN'
    WHERE NOT EXISTS (SELECT FROM own x WHERE x.classid = d.classid AND x.objid = d.objid)
      AND NOT (d.classid = 'pg_trigger'::regclass AND EXISTS (SELECT FROM pg_trigger g WHERE g.oid = d.objid AND g.tgisinternal))
),
found (table_oid, kind, object, hinders) AS (
    SELECT d.table_oid,
           CASE
               WHEN c.contype = 'f' THEN 'referring'
               WHEN g.tgrelid = d.table_oid THEN 'trigger'
               WHEN y.polrelid = d.table_oid THEN 'policy'
               WHEN w.ev_class = d.table_oid THEN 'rule'
               WHEN p.oid IS NOT NULL THEN 'publication'
               WHEN d.classid = 'pg_statistic_ext'::regclass THEN 'statistics'
               ELSE 'dependent'
           END,
           CASE WHEN p.oid IS NOT NULL THEN format('publication %I', p.pubname) ELSE o.type || ' ' || o.identity END,
           -- A rule would rewrite the statements that replace the content.
           CASE WHEN w.ev_class = d.table_oid THEN 'both' ELSE 'swap' END
    FROM dependent d
    CROSS JOIN pg_identify_object(d.classid, d.objid, d.objsubid) AS o
    LEFT JOIN pg_constraint c ON d.classid = 'pg_constraint'::regclass AND c.oid = d.objid
    LEFT JOIN pg_trigger g ON d.classid = 'pg_trigger'::regclass AND g.oid = d.objid
    LEFT JOIN pg_policy y ON d.classid = 'pg_policy'::regclass AND y.oid = d.objid
    LEFT JOIN pg_rewrite w ON d.classid = 'pg_rewrite'::regclass AND w.oid = d.objid
    LEFT JOIN pg_publication_rel r ON d.classid = 'pg_publication_rel'::regclass AND r.oid = d.objid
    LEFT JOIN pg_publication p ON p.oid = r.prpubid
    WHERE NOT (d.classid = 'pg_class'::regclass AND EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = d.objid AND h.inhparent = d.table_oid))

    -- The rows of a child are a part of the content.
    UNION ALL
    SELECT h.inhparent, 'child', format('table %s', h.inhrelid::regclass), 'both'
    FROM pg_inherits h WHERE h.inhparent = ANY ($1)

    UNION ALL
    SELECT c.conrelid, 'referred', format('foreign key %I', c.conname), 'swap'
    FROM own_constraint c WHERE c.contype = 'f' AND c.confrelid <> ALL ($1)

    UNION ALL
    SELECT DISTINCT g.tgrelid, 'disabled_check', format('constraint %I', c.conname), 'swap'
    FROM pg_trigger g JOIN pg_constraint c ON c.oid = g.tgconstraint WHERE g.tgrelid = ANY ($1) AND g.tgisinternal AND g.tgenabled <> 'O'

    UNION ALL
    SELECT t.oid, 'row_security', 'row-level security', 'swap' FROM own_table t WHERE t.relrowsecurity OR t.relforcerowsecurity

    UNION ALL
    SELECT t.oid, 'hidden_rows', 'row-level security', 'copy' FROM own_table t WHERE row_security_active(t.oid)

    -- It would publish the copies, which no subscriber knows.
    UNION ALL
    SELECT t.oid, 'publication_of_all', format('publication %I', p.pubname), 'both'
    FROM own_table t, pg_publication p WHERE p.puballtables AND t.relpersistence = 'p'

    UNION ALL
    SELECT r.srrelid, 'subscription', format('subscription %I', p.subname), 'both'
    FROM pg_subscription_rel r JOIN pg_subscription p ON p.oid = r.srsubid WHERE r.srrelid = ANY ($1)

    UNION ALL
    SELECT h.inhrelid, 'parent', format('table %s', h.inhparent::regclass), 'swap'
    FROM pg_inherits h WHERE h.inhrelid = ANY ($1)

    UNION ALL
    SELECT t.oid, 'typed', format('type %s', format_type(t.reloftype, NULL)), 'swap' FROM own_table t WHERE t.reloftype <> 0

    UNION ALL
    SELECT DISTINCT o.table_oid, 'label', format('security label of provider %s on %s %s', l.provider, i.type, i.identity), 'swap'
    FROM own o JOIN pg_seclabel l ON l.classoid = o.classid AND l.objoid = o.objid,
         pg_identify_object(l.classoid, l.objoid, l.objsubid) AS i

    UNION ALL
    SELECT DISTINCT o.table_oid, 'extension', format('extension %I', x.extname), 'swap'
    FROM own o
    JOIN pg_depend d ON d.classid = o.classid AND d.objid = o.objid AND d.refclassid = 'pg_extension'::regclass AND d.deptype IN ('e', 'x')
    JOIN pg_extension x ON x.oid = d.refobjid

    UNION ALL
    SELECT y.typrelid, 'of_type', CASE WHEN y.typacl IS NOT NULL THEN 'a privilege' ELSE 'a comment' END, 'swap'
    FROM pg_type y
    WHERE y.typrelid = ANY ($1)
      AND (y.typacl IS NOT NULL OR EXISTS (SELECT FROM pg_description d WHERE d.classoid = 'pg_type'::regclass AND d.objoid = y.oid))

    -- The definition of the table would refer to the type of the live table.
    UNION ALL
    SELECT DISTINCT u.table_oid, 'row_type', i.type || ' ' || i.identity, 'both'
    FROM own u
    JOIN pg_depend d ON d.classid = u.classid AND d.objid = u.objid AND d.refclassid = 'pg_type'::regclass
    JOIN own o ON o.classid = d.refclassid AND o.objid = d.refobjid,
         pg_identify_object(d.classid, d.objid, d.objsubid) AS i
    WHERE u.classid <> 'pg_type'::regclass

    UNION ALL
    SELECT t.oid, 'array_name', format('type %s', format_type(y.oid, NULL)), 'swap'
    FROM own_table t
    JOIN pg_type y ON y.typnamespace = t.relnamespace AND y.typname = ('_' || t.relname)::name
    WHERE NOT EXISTS (SELECT FROM own o WHERE o.classid = 'pg_type'::regclass AND o.objid = y.oid)

    UNION ALL
    SELECT i.indrelid, 'invalid_index', format('index %I.%I', i.schema_name, i.relname), 'swap'
    FROM own_index i WHERE NOT i.indisvalid

    UNION ALL
    SELECT t.oid, 'claimed', format('projection %s', quote_ident(c.projection)), 'both'
    FROM own_table t JOIN ROWS FROM (unnest($3), unnest($4)) AS c (projection, oid) ON c.oid = t.oid

    UNION ALL
    SELECT t.oid, 'unreplaceable', format('foreign key %I of table %s', c.conname, c.conrelid::regclass), 'copy'
    FROM own_table t JOIN pg_constraint c ON c.confrelid = t.oid AND c.contype = 'f' AND c.confdeltype <> 'a'
    LEFT JOIN own_constraint p ON p.conrelid = t.oid AND p.contype = 'p'
    WHERE p.oid IS NULL
       OR c.confupdtype <> 'a' AND NOT (c.confkey @> p.conkey AND c.confkey <@ p.conkey)
       OR EXISTS (SELECT FROM own_column a WHERE a.attrelid = t.oid AND a.attidentity = 'a' AND a.attnum <> ALL (p.conkey))

    UNION ALL
    SELECT t.oid, 'ownership', format('role %I', pg_get_userbyid(t.relowner)), 'both'
    FROM own_table t
    WHERE NOT pg_has_role(t.relowner, 'USAGE')
       OR NOT pg_has_role(t.relowner, CASE WHEN current_setting('server_version_num')::int4 < 160000 THEN 'MEMBER' ELSE 'SET' END)

    UNION ALL
    SELECT (SELECT min(t.oid) FROM own_table t), 'create_schema', format('database %I', current_database()), 'both'
    WHERE NOT has_database_privilege(current_database(), 'CREATE')

    UNION ALL
    SELECT t.oid, 'create_table', format('schema %I', t.schema_name), 'swap'
    FROM own_table t WHERE NOT has_schema_privilege(t.relnamespace, 'CREATE')

    UNION ALL
    SELECT DISTINCT u.table_oid, 'tablespace', format('tablespace %I', s.spcname), 'both'
    FROM (SELECT t.oid, t.reltablespace FROM own_table t UNION SELECT i.indrelid, i.reltablespace FROM own_index i) AS u (table_oid, space)
    JOIN pg_tablespace s ON s.oid = u.space
    WHERE NOT has_tablespace_privilege(s.oid, 'CREATE')

    -- SET ROLE asks about the role that has logged in.
    UNION ALL
    SELECT DISTINCT p.table_oid, 'grantor', format('role %I', pg_get_userbyid(p.grantor)), 'both'
    FROM privilege p
    WHERE p.grantor <> p.relowner
      AND NOT pg_has_role(session_user, p.grantor, CASE WHEN current_setting('server_version_num')::int4 < 160000 THEN 'MEMBER' ELSE 'SET' END)

    UNION ALL
    SELECT t.oid, 'write', format('%s on table %I.%I', p.privilege, t.schema_name, t.relname), 'copy'
    FROM own_table t, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p (privilege)
    WHERE NOT has_table_privilege(t.oid, p.privilege)

    UNION ALL
    SELECT s.attrelid, 'write', format('%s on sequence %I.%I', p.privilege, s.schema_name, s.relname), 'copy'
    FROM own_sequence s, unnest(ARRAY['SELECT', 'UPDATE']) AS p (privilege)
    WHERE NOT has_sequence_privilege(s.oid, p.privilege)

    UNION ALL
    SELECT t.oid, 'write', format('USAGE on schema %I', t.schema_name), 'copy'
    FROM own_table t WHERE NOT has_schema_privilege(t.relnamespace, 'USAGE')
)
