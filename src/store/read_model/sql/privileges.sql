-- Privileges, each as granted by its own grantor. `depth` is 0 for what the owner has granted, 1 for what those roles
-- have granted with a grant option, and so on; it is NULL for a privilege whose grantor has no grant option any more.
privilege AS (
    SELECT t.oid AS table_oid, 'TABLE' AS kind, t.target, NULL::name AS attname, t.relowner, p.*
    FROM own_table t, aclexplode(coalesce(t.relacl, acldefault('r', t.relowner))) AS p
    UNION ALL
    SELECT a.attrelid, 'TABLE', a.target, a.attname, a.relowner, p.*
    FROM own_column a, aclexplode(a.attacl) AS p
    UNION ALL
    SELECT s.attrelid, 'SEQUENCE', s.target, NULL, s.relowner, p.*
    FROM own_sequence s, aclexplode(coalesce(s.relacl, acldefault('s', s.relowner))) AS p
),
granted AS (
    SELECT p.*, 0 AS depth FROM privilege p WHERE p.grantor = p.relowner
    UNION
    SELECT p.*, g.depth + 1
    FROM privilege p
    JOIN granted g ON g.target = p.target AND g.privilege_type = p.privilege_type AND g.grantee = p.grantor AND g.is_grantable
        AND (g.attname IS NULL OR g.attname = p.attname)
    WHERE p.grantor <> p.relowner AND g.depth < 100
)
