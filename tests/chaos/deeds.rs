//! What the neighbour can do to the database: SQL, and how to undo it.

use std::ops::Range;

/// A deed. Each of the SQL texts may be executed again after it was interrupted at any point.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Deed {
    /// Reorganises or changes a table or sequence, in a session with this default isolation level.
    Maintain { sql: &'static str, undo: Option<&'static str>, isolation: &'static str },
    /// Changes a setting for new sessions of a role or database, and ends some of the current
    /// sessions.
    Set { whose: &'static str, name: &'static str, value: &'static str },
    /// Hides the rows of a table by row-level security. Superusers still see them, and the appender
    /// has a policy.
    Hide { table: &'static str },
}

const ISOLATION: [&str; 3] = ["read committed", "repeatable read", "serializable"];

/// The SQL of each maintenance, and the SQL that undoes it.
///
/// The default of an added column is volatile, so the server rewrites the table.
const MAINTENANCE: [(&str, Option<&str>); 14] = [
    (
        "ALTER TABLE events DROP COLUMN IF EXISTS neighbours, ADD COLUMN neighbours uuid NOT NULL DEFAULT gen_random_uuid()",
        Some("ALTER TABLE events DROP COLUMN IF EXISTS neighbours"),
    ),
    (
        "ALTER TABLE orchestrator_checkpoints DROP COLUMN IF EXISTS neighbours, ADD COLUMN neighbours uuid NOT NULL DEFAULT gen_random_uuid()",
        Some("ALTER TABLE orchestrator_checkpoints DROP COLUMN IF EXISTS neighbours"),
    ),
    (
        "ALTER TABLE events ALTER COLUMN event_type TYPE varchar",
        Some("ALTER TABLE events ALTER COLUMN event_type TYPE text"),
    ),
    (
        "CREATE INDEX CONCURRENTLY neighbours_index ON events (event_type, global_position)",
        Some("DROP INDEX IF EXISTS neighbours_index"),
    ),
    ("VACUUM FULL events", None),
    ("VACUUM FULL orchestrator_checkpoints", None),
    ("CLUSTER events USING events_pkey", None),
    ("REINDEX TABLE events", None),
    ("REINDEX TABLE CONCURRENTLY events", None),
    ("ANALYZE events", None),
    ("VACUUM (FREEZE, ANALYZE) events", None),
    ("ALTER SEQUENCE events_global_position_seq CACHE 1", None),
    ("BEGIN; ALTER SEQUENCE events_global_position_seq MINVALUE 1; SELECT pg_sleep(1); COMMIT", None),
    ("BEGIN; ALTER SEQUENCE events_global_position_seq INCREMENT 1; SELECT pg_sleep(1); ROLLBACK", None),
];

/// Settings that a role or database may have, and that handlers can tolerate.
///
/// A statement cancelled by `statement_timeout` is its handler's failure, and a batch whose
/// attempts are used up halts its projection. So the handlers of the chaos worker set their own
/// `statement_timeout`. Failures that `lock_timeout`, `idle_in_transaction_session_timeout` or
/// `default_transaction_isolation` cause in a handler are retried without counting.
const SETTINGS: [(&str, &str); 15] = [
    ("default_transaction_isolation", "'repeatable read'"),
    ("default_transaction_isolation", "'serializable'"),
    ("default_transaction_read_only", "on"),
    ("default_transaction_deferrable", "on"),
    ("statement_timeout", "'50ms'"),
    ("lock_timeout", "'200ms'"),
    ("idle_in_transaction_session_timeout", "'500ms'"),
    ("row_security", "off"),
    ("search_path", "pg_temp, \"$user\", public, pg_catalog"),
    ("DateStyle", "'German, DMY'"),
    ("IntervalStyle", "'sql_standard'"),
    ("extra_float_digits", "-15"),
    ("bytea_output", "'escape'"),
    ("plan_cache_mode", "force_generic_plan"),
    ("jit", "on"),
];

const SCOPES: [&str; 2] = ["DATABASE chaos", "ROLE shop_worker"];

const HIDDEN: [&str; 2] = ["events", "orchestrator_checkpoints"];

/// Ends random sessions of both roles.
const END_SOME: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                        WHERE usename IN ('shop_worker', 'shop_appender') AND random() < 0.4";
/// Ends the appender's sessions, so that writers do not keep a setting under which they cannot
/// write. Workers must cope with such sessions.
const END_APPENDERS: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'shop_appender'";

/// Each deed once, in the first of its variants.
pub(crate) fn all() -> Vec<Deed> {
    let maintenance = MAINTENANCE.map(|(sql, undo)| Deed::Maintain { sql, undo, isolation: ISOLATION[0] });
    let settings = SETTINGS.map(|(name, value)| Deed::Set { whose: SCOPES[0], name, value });
    let hiding = HIDDEN.map(|table| Deed::Hide { table });
    maintenance.into_iter().chain(settings).chain(hiding).collect()
}

impl Deed {
    /// All variants of the deed.
    pub(crate) fn variants(self) -> Vec<Self> {
        match self {
            Self::Maintain { sql, undo, .. } => {
                ISOLATION.map(|isolation| Self::Maintain { sql, undo, isolation }).to_vec()
            }
            Self::Set { name, value, .. } => SCOPES.map(|whose| Self::Set { whose, name, value }).to_vec(),
            Self::Hide { .. } => vec![self],
        }
    }

    /// How often the deed occurs while others occur once.
    ///
    /// A past defect needed two deeds at once: a statement waited while a table was rewritten, in a
    /// session whose default isolation level was stricter than the library's. So both deeds occur
    /// more often.
    pub(crate) fn weight(self) -> usize {
        match self {
            Self::Set { name: "default_transaction_isolation", .. } => 4,
            _ if self.is_rewrite_of_events() => 4,
            _ => 1,
        }
    }

    /// Whether it rewrites the table of events. Such a deed occurs several times: what matters is
    /// between which two statements of a worker it gets its lock.
    fn is_rewrite_of_events(self) -> bool {
        matches!(self, Self::Maintain { sql, .. } if sql == MAINTENANCE[0].0)
    }

    /// For how many milliseconds the deed stands until it is undone. A setting affects only
    /// sessions that begin meanwhile, so it stands longer.
    pub(crate) fn stands_for(self) -> Range<u64> {
        match self {
            Self::Set { .. } => 1_000..8_000,
            Self::Maintain { .. } | Self::Hide { .. } => 200..3_000,
        }
    }

    /// The name by which the deed is counted: the statement, the setting or the table.
    pub(crate) fn kind(self) -> String {
        match self {
            Self::Maintain { sql, .. } => sql.to_owned(),
            Self::Set { name, .. } => format!("SET {name}"),
            Self::Hide { table } => format!("hide {table}"),
        }
    }

    pub(crate) fn isolation(self) -> &'static str {
        match self {
            Self::Maintain { isolation, .. } => isolation,
            Self::Set { .. } | Self::Hide { .. } => ISOLATION[0],
        }
    }

    /// The statements to execute, each as a query of its own.
    pub(crate) fn statements(self) -> Vec<String> {
        match self {
            Self::Maintain { sql, .. } => vec![sql.to_owned()],
            Self::Set { whose, name, value } => {
                vec![format!("ALTER {whose} SET {name} = {value}"), END_SOME.to_owned()]
            }
            Self::Hide { table } => vec![format!("ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")],
        }
    }

    /// The statements that undo the deed; none if there is nothing to undo.
    pub(crate) fn undoing(self) -> Vec<String> {
        match self {
            Self::Maintain { undo, .. } => undo.map(str::to_owned).into_iter().collect(),
            Self::Set { whose, name, .. } => vec![format!("ALTER {whose} RESET {name}"), END_APPENDERS.to_owned()],
            Self::Hide { table } => vec![format!("ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")],
        }
    }
}

/// The statements to execute before the first deed.
///
/// The harness, which is the superuser, keeps its settings. The appender can read and append events
/// even while they are hidden.
pub(crate) fn preparation() -> Vec<String> {
    let keep = |(name, _)| format!("ALTER ROLE postgres IN DATABASE chaos SET {name} FROM CURRENT");
    let mut statements: Vec<String> = SETTINGS.map(keep).into();
    statements.push("CREATE POLICY appender ON events TO shop_appender USING (true) WITH CHECK (true)".to_owned());
    statements
}
