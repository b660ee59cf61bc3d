-- The grants, in an order in which each grantor has the grant option already. A grant of another
-- role than the owner is executed as that role.
SELECT g.table_oid, 70 + max(g.depth), 0, format('%sGRANT %s%s ON %s %s TO %s%s',
    CASE WHEN g.grantor <> g.relowner THEN format('SET LOCAL ROLE %I; ', pg_get_userbyid(g.grantor)) END,
    g.privilege_type, CASE WHEN g.attname IS NOT NULL THEN format(' (%I)', g.attname) END, g.kind, g.target,
    CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END,
    CASE WHEN g.is_grantable THEN ' WITH GRANT OPTION' END)
FROM granted g
GROUP BY g.table_oid, g.grantor, g.relowner, g.privilege_type, g.attname, g.kind, g.target, g.grantee, g.is_grantable
