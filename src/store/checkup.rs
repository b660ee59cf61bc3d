//! Checks everything that a worker needs of its database, for people who set one up. It continues
//! after an error. A worker that starts [verifies](super::preflight) the same, and stops at the
//! first error.

use postgres::types::Type;
use postgres::{Client, Transaction};
use serde::Serialize;

use super::folds::FoldTable;
use super::names::{Names, Own};
use super::preflight::{self, Warning};
use super::registration::Registration;
use super::session::{Session, Sessions};
use super::{checkpoints, event_tables, folds, migrations, privileges, sequence};
use crate::error::{Error, describe_any};

/// What was found out about one subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) level: Level,
    pub(crate) subject: &'static str,
    /// What was found. If it is not right, this includes the remedy.
    pub(crate) detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    Ok,
    /// A worker can run, but operators should know about this.
    Warning,
    /// No worker can run.
    Error,
}

/// What was found out so far.
#[derive(Debug, Default)]
pub(crate) struct Findings(Vec<Finding>);

impl Findings {
    pub(crate) fn add(&mut self, level: Level, subject: &'static str, detail: impl Into<String>) {
        self.0.push(Finding { level, subject, detail: detail.into() });
    }

    /// Adds the error, or what `right` says about the value. Returns the value.
    pub(crate) fn take<T>(
        &mut self,
        subject: &'static str,
        outcome: Result<T, Error>,
        right: impl FnOnce(&T) -> String,
    ) -> Option<T> {
        match outcome {
            Ok(found) => {
                self.add(Level::Ok, subject, right(&found));
                Some(found)
            }
            Err(error) => {
                self.error(subject, &error);
                None
            }
        }
    }

    pub(crate) fn error(&mut self, subject: &'static str, error: &Error) {
        self.add(Level::Error, subject, describe_any(error));
    }

    pub(crate) fn into_vec(self) -> Vec<Finding> {
        self.0
    }
}

/// Checks the server on a new connection. Returns whether the rest can be checked.
pub(crate) fn server(found: &mut Findings, client: &mut Client) -> bool {
    let version = match preflight::version(client) {
        Ok(version) => version,
        Err(error) => {
            found.error("server", &error);
            return false;
        }
    };
    let is_new_enough = found.take("server", version.is_supported(), |()| format!("PostgreSQL {}", version.text));
    let is_primary = found.take("primary", version.is_primary(), |()| "it accepts writes".to_owned());
    is_new_enough.and(is_primary).is_some()
}

/// Checks how connections get their sessions.
pub(crate) fn pooling(found: &mut Findings, one: &mut Client, other: &mut Client, sessions: Sessions) -> bool {
    let right = match sessions {
        Sessions::Own(_) => "each connection has a session of its own",
        Sessions::Shared => "sessions may be shared: killed workers are detected by their heartbeats alone",
    };
    found.take("sessions", preflight::pooler(one, other, sessions), |()| right.to_owned()).is_some()
}

/// Checks the tables, and what this user may do with them. `path` is the application's. Returns
/// whether they can be read.
pub(crate) fn schema(found: &mut Findings, session: &mut Session, names: &Names, path: &[String]) -> bool {
    let applied = check(session, |tx| migrations::required(tx, names));
    let is_there = found.take("schema", applied, |applied| format!("version {}", applied.version)).is_some();
    if !is_there {
        return false;
    }
    match check(session, |tx| privileges::missing(tx, names)) {
        Ok(missing) if missing.is_empty() => {
            found.add(Level::Ok, "privileges", "this user has every privilege that a worker needs");
        }
        Ok(missing) => {
            for lacking in missing {
                found.error("privileges", &lacking);
            }
            // Without these privileges, the other checks would fail.
            return false;
        }
        Err(error) => {
            found.error("privileges", &error);
            return false;
        }
    }
    let hidden = check(session, |tx| event_tables::visible(tx, &Own::ALL.map(|own| names.own(own).to_string())));
    found.take("row security", hidden, |()| "it hides no row of the library's tables".to_owned());
    let hash = check(session, |tx| preflight::hash_probe(tx, names));
    found.take("hash", hash, |()| "events have the keys that they had when the schema was created".to_owned());
    let events = check(session, |tx| event_tables::tables(tx, names));
    found.take("events", events, |()| format!("table {} is acceptable", names.events()));
    positions(found, session, names);
    search_path(found, session, names, path);
    true
}

/// Checks the tables of folds.
pub(crate) fn folds(found: &mut Findings, client: &mut Client, tables: &[FoldTable]) {
    const SUBJECT: &str = "folds";
    for table in tables {
        let verified = folds::verify(client, std::slice::from_ref(table));
        found.take(SUBJECT, verified, |()| format!("table {:?} is acceptable", table.name));
    }
}

/// Checks whether this worker may process its projections.
pub(crate) fn projections(found: &mut Findings, session: &mut Session, names: &Names, worker: &Registration) {
    const SUBJECT: &str = "projections";
    if let Err(error) = check(session, |tx| preflight::scopes(tx, names, &worker.projections)) {
        found.error(SUBJECT, &error);
    }
    match check(session, |tx| checkpoints::verify_claims(tx, names, worker)) {
        Err(error) => found.error(SUBJECT, &error),
        Ok(taken_over) if taken_over.is_empty() => {
            found.add(Level::Ok, SUBJECT, format!("none belongs to a replica set other than {}", worker.replica_set));
        }
        Ok(taken_over) => found.add(
            Level::Warning,
            SUBJECT,
            format!(
                "{} belong to another replica set, which has no living worker, and would be taken over: correct REPLICA_SET if that \
                 is not intended",
                taken_over.join(", ")
            ),
        ),
    }
}

fn positions(found: &mut Findings, session: &mut Session, names: &Names) {
    const SUBJECT: &str = "sequence";
    let accepted = check(session, |tx| {
        event_tables::sequence(tx, names)?;
        event_tables::positions(tx, names)?;
        let sequence = sequence::find(tx, names).map_err(Error::database("reading the sequence of the positions"))?;
        let warning =
            preflight::sequence_warning(tx, names).map_err(Error::database("reading the sequence of the positions"))?;
        Ok((sequence, warning))
    });
    match accepted {
        Err(error) => found.error(SUBJECT, &error),
        Ok((_, Some(warning))) => found.add(Level::Warning, SUBJECT, explained(&warning)),
        Ok((sequence, None)) => {
            let name = sequence.map_or_else(String::new, |sequence| sequence.name);
            found.add(Level::Ok, SUBJECT, format!("{name} hands out the positions in order"));
        }
    }
}

fn search_path(found: &mut Findings, session: &mut Session, names: &Names, path: &[String]) {
    const SUBJECT: &str = "search path";
    let writable = check(session, |tx| {
        preflight::writable_schemas(tx, names, path).map_err(Error::database("reading who may create what"))
    });
    match writable {
        Err(error) => found.error(SUBJECT, &error),
        Ok(warnings) if warnings.is_empty() => {
            found.add(Level::Ok, SUBJECT, "no other role may create functions in its schemas");
        }
        Ok(warnings) => warnings.iter().for_each(|warning| found.add(Level::Warning, SUBJECT, explained(warning))),
    }
}

/// A warning with its remedy.
fn explained(warning: &Warning) -> String {
    match warning {
        Warning::WritableSchema { schema, roles } => format!(
            "{roles} may create functions and operators in schema {schema}, and handlers would call them: \
             REVOKE CREATE ON SCHEMA {schema:?} FROM {roles}"
        ),
        Warning::UnreadableSequence { sequence, user } => format!(
            "user {user} cannot read {sequence}, so it is not detected if events are replaced: \
             GRANT SELECT ON SEQUENCE {sequence} TO {user:?}"
        ),
        Warning::NoSequence { table } => format!(
            "the positions of {table} come from no sequence: whatever hands them out must do so in order, after the \
             writer has locked the table"
        ),
    }
}

/// The connections that workers need, and how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Connections {
    /// What one worker with the settings of this program needs.
    pub(crate) own: i64,
    /// How many living workers the replica set has, and what they need.
    pub(crate) workers: i64,
    pub(crate) theirs: i64,
    /// Other sessions that are open now.
    pub(crate) others: i64,
    /// How many this user may have in this database.
    pub(crate) limit: i64,
}

/// Checks whether there are enough connections for `own`, those of one worker.
pub(crate) fn connections(found: &mut Findings, session: &mut Session, names: &Names, replica_set: &str, own: i64) {
    const SUBJECT: &str = "connections";
    match check(session, |tx| count_connections(tx, names, replica_set, own)) {
        Err(error) => found.error(SUBJECT, &error),
        Ok(connections) => {
            let (level, detail) = connections.judge();
            found.add(level, SUBJECT, detail);
        }
    }
}

impl Connections {
    fn judge(self) -> (Level, String) {
        let Self { own, workers, theirs, others, limit } = self;
        let counted = format!(
            "{limit} are allowed; a worker like this one needs {own}, living workers ({workers}) need {theirs}, others have {others}"
        );
        let remedy = "raise max_connections, or the CONNECTION LIMIT of role or database, or lower lanes";
        if own.max(theirs) > limit {
            (Level::Error, format!("{counted}: {remedy}"))
        } else if own + theirs + others > limit {
            (
                Level::Warning,
                format!("{counted}, so there is no room for another worker, as in a rolling update: {remedy}"),
            )
        } else {
            (Level::Ok, counted)
        }
    }
}

fn count_connections(
    tx: &mut Transaction<'_>,
    names: &Names,
    replica_set: &str,
    own: i64,
) -> Result<Connections, Error> {
    // Each worker has three connections besides the two of each lane. -1 means that there is no
    // limit.
    let sql = names.sql(
        "SELECT w.number, w.needed, greatest(0, (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') - 1 - w.needed),
                least(current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint
                      - coalesce(current_setting('reserved_connections', true)::bigint, 0),
                      (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user),
                      (SELECT nullif(datconnlimit, -1) FROM pg_database WHERE datname = current_database()))
         FROM (SELECT count(*) AS number, coalesce(sum(3 + 2 * (SELECT coalesce(sum(each), 0) FROM unnest(lanes) AS each)), 0)::bigint AS needed
               FROM {workers} WHERE replica_set = $1 AND state <> 'stopped') AS w",
    );
    let row =
        tx.query_typed_one(&sql, &[(&replica_set, Type::TEXT)]).map_err(Error::database("counting the connections"))?;
    Ok(Connections { own, workers: row.get(0), theirs: row.get(1), others: row.get(2), limit: row.get(3) })
}

/// Executes a check in a transaction of its own, so that the other checks can follow after it
/// fails.
fn check<T>(session: &mut Session, check: impl FnOnce(&mut Transaction<'_>) -> Result<T, Error>) -> Result<T, Error> {
    let mut tx = session.transaction().map_err(Error::database("beginning a check"))?;
    check(&mut tx)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_have_to_suffice_for_another_worker() {
        let judged = |own, theirs, others, limit| {
            let (level, detail) = Connections { own, workers: 2, theirs, others, limit }.judge();
            assert_eq!(level != Level::Ok, detail.contains("raise max_connections"), "{detail}");
            level
        };
        assert_eq!(judged(7, 14, 3, 97), Level::Ok);
        assert_eq!(judged(7, 14, 3, 24), Level::Ok);
        assert_eq!(judged(7, 14, 4, 24), Level::Warning);
        assert_eq!(judged(7, 14, 0, 13), Level::Error);
        assert_eq!(judged(25, 0, 0, 24), Level::Error);
    }
}
