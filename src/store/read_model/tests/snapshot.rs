//! What the catalog says of a schema's tables, read in another way than by the code under test.

use std::fmt::Write as _;

use postgres::{Client, GenericClient};

const SNAPSHOT: &str = r#"
    WITH r AS (SELECT c.*, c.oid::regclass::text AS shown FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1),
    acl AS (
        SELECT x.oid, x.attnum, string_agg(format('%s>%s:%s%s', p.grantor::regrole, p.grantee::regrole, p.privilege_type, CASE WHEN p.is_grantable THEN '*' END), ' '
            ORDER BY p.grantor::regrole::text, p.grantee::regrole::text, p.privilege_type) AS acl
        FROM (SELECT r.oid, 0, coalesce(r.relacl, acldefault(CASE r.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", r.relowner)) FROM r WHERE r.relkind IN ('r', 'S')
              UNION ALL SELECT a.attrelid, a.attnum, a.attacl FROM r JOIN pg_attribute a ON a.attrelid = r.oid) AS x (oid, attnum, acl),
            aclexplode(x.acl) AS p
        GROUP BY 1, 2)
    SELECT concat_ws(' | ', 'relation', shown, relkind, relpersistence, relreplident, relowner::regrole, m.amname, t.spcname,
        (SELECT string_agg(o, ',' ORDER BY o) FROM unnest(reloptions) o),
        (SELECT string_agg(o, ',' ORDER BY o) FROM pg_class w, unnest(w.reloptions) o WHERE w.oid = r.reltoastrelid),
        'acl ' || acl.acl, obj_description(r.oid, 'pg_class'))
    FROM r LEFT JOIN pg_am m ON m.oid = r.relam LEFT JOIN pg_tablespace t ON t.oid = r.reltablespace LEFT JOIN acl ON acl.oid = r.oid AND acl.attnum = 0
    WHERE relkind IN ('r', 'i', 'S')
    UNION ALL
    SELECT concat_ws(' | ', 'column', shown, row_number() OVER (PARTITION BY r.oid ORDER BY a.attnum), attname, format_type(atttypid, atttypmod), attnotnull, attidentity,
        attgenerated, attstorage, attcompression, coalesce(attstattarget, -1), attoptions, attcollation::regcollation, pg_get_expr(adbin, adrelid), 'acl ' || acl.acl,
        col_description(r.oid, a.attnum))
    FROM r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped LEFT JOIN pg_attrdef d ON d.adrelid = r.oid AND d.adnum = a.attnum
    LEFT JOIN acl ON acl.oid = r.oid AND acl.attnum = a.attnum
    WHERE relkind IN ('r', 'i')
    UNION ALL
    SELECT concat_ws(' | ', 'constraint', shown, conname, contype, pg_get_constraintdef(c.oid), condeferrable, condeferred, convalidated, connoinherit, conindid::regclass,
        obj_description(c.oid, 'pg_constraint'))
    FROM r JOIN pg_constraint c ON c.conrelid = r.oid
    UNION ALL
    SELECT concat_ws(' | ', 'index', pg_get_indexdef(r.oid), indisunique, indisprimary, indisexclusion, indimmediate, indisclustered, indisvalid, indisreplident)
    FROM r JOIN pg_index i ON i.indexrelid = r.oid
    UNION ALL
    SELECT concat_ws(' | ', 'sequence', shown, seqtypid::regtype, seqstart, seqincrement, seqmax, seqmin, seqcache, seqcycle, d.deptype, d.refobjid::regclass, a.attname)
    FROM r JOIN pg_sequence s ON s.seqrelid = r.oid JOIN pg_depend d ON d.objid = r.oid AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
    JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
    ORDER BY 1"#;

/// The lines that describe a schema, sorted. They do not contain its name.
pub(super) fn snapshot(client: &mut impl GenericClient, schema: &str) -> Vec<String> {
    client.execute("SELECT set_config('search_path', quote_ident($1), false)", &[&schema]).unwrap();
    let rows = client.query(SNAPSHOT, &[&schema]).unwrap_or_else(|error| panic!("{}", crate::error::describe(&error)));
    client.batch_execute("RESET search_path").unwrap();
    let mut lines: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    lines.sort_unstable();
    lines
}

/// The lines that are in only one of the lists.
pub(super) fn differences(before: &[String], after: &[String]) -> String {
    let mut text = String::new();
    for (sign, these, others) in [("-", before, after), ("+", after, before)] {
        for line in these.iter().filter(|line| !others.contains(line)) {
            _ = writeln!(text, "{sign} {line}");
        }
    }
    text
}

/// The major version of the server.
pub(super) fn version(client: &mut Client) -> i32 {
    super::value::<i32>(client, "SELECT current_setting('server_version_num')::int4") / 10_000
}
