//! What has become of a command, and its record.

use postgres::Transaction;
use postgres::types::{ToSql, Type};
use serde_json::Value;

use super::names::Names;

/// What has become of a command.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    /// It has taken effect.
    Done(Value),
    /// It cannot be executed, for this reason. It has changed nothing.
    Refused(String),
    /// It was tried. It has changed nothing.
    Failed(String),
}

impl Outcome {
    /// The outcome's name in the database, the metrics and the log.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Done(_) => "done",
            Self::Refused(_) => "refused",
            Self::Failed(_) => "failed",
        }
    }

    /// Why it was not executed.
    pub(crate) fn why_not(&self) -> Option<&str> {
        match self {
            Self::Done(_) => None,
            Self::Refused(why) | Self::Failed(why) => Some(why),
        }
    }
}

/// Records the outcome of a command. It may be executed under the settings of the application.
pub(crate) fn conclude(
    tx: &mut Transaction<'_>,
    names: &Names,
    id: i64,
    outcome: &Outcome,
) -> Result<(), postgres::Error> {
    let sql = names.sql(
        "UPDATE {commands} SET applied_at = pg_catalog.clock_timestamp(), outcome = $2, error = $3,
                result = CASE WHEN $4 IS NULL THEN result ELSE coalesce(result, '{}') OPERATOR(pg_catalog.||) $4 END
         WHERE id OPERATOR(pg_catalog.=) $1 AND applied_at IS NULL",
    );
    let result = match outcome {
        Outcome::Done(result) => Some(result),
        Outcome::Refused(_) | Outcome::Failed(_) => None,
    };
    let values: [(&(dyn ToSql + Sync), Type); 4] =
        [(&id, Type::INT8), (&outcome.as_str(), Type::TEXT), (&outcome.why_not(), Type::TEXT), (&result, Type::JSONB)];
    tx.execute_typed(&sql, &values)?;
    Ok(())
}
