//! The queries for the safe head: the visible positions, and the transactions that are writing.

use std::time::Duration;

use postgres::types::Type;
use postgres::{Client, Row};
use uuid::Uuid;

use super::fence::EventMark;
use super::locks::{self, Census};
use super::names::Names;
use super::prepared::Prepared;
use super::sequence::{self, PositionSequence};
use crate::status::HeadBlocker;

/// What a probe found above a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Probe {
    /// The highest visible position.
    pub(crate) newest: i64,
    /// The last position of the unbroken run that begins right above the probed position; the
    /// probed position itself if the next one is missing.
    pub(crate) contiguous: i64,
    /// The last position that the sequence has handed out; `None` if it is not known.
    pub(crate) last: Option<i64>,
    /// The event at the probed position, if there is one.
    pub(crate) here: Option<EventMark>,
    /// The event that is now at the position of a known event, if there is one.
    pub(crate) there: Option<EventMark>,
}

/// How many positions a probe examines: enough for what is appended between two looks.
const PROBE_REACH: i64 = 2_000;

/// The probes, prepared on a connection.
pub(crate) struct Probes {
    plain: Prepared<Sight>,
    with_census: Prepared<(i64, i64, Option<i64>, String)>,
    /// Used while the sequence is locked.
    without_sequence: Prepared<Sight>,
}

/// The parameters of a probe: it examines the positions above the first and at or below the second,
/// and the event at the third.
type Sight = (i64, i64, Option<i64>);

impl Probes {
    pub(crate) fn prepare(
        client: &mut Client,
        names: &Names,
        sequence: Option<&PositionSequence>,
    ) -> Result<Self, postgres::Error> {
        let last = sequence::last_sql(sequence);
        let columns = "newest, contiguous, last, here, there";
        let (probe, census) = (probe_sql(names, &last), locks::census_sql(names, "$4"));
        let without_sequence = probe_sql(names, "0::bigint");
        Ok(Self {
            plain: Prepared::on(client, &format!("SELECT {columns} FROM {probe}"))?,
            with_census: Prepared::on(client, &format!("SELECT {columns}, members, missing FROM {probe}, {census}"))?,
            without_sequence: Prepared::on(client, &format!("SELECT {columns} FROM {without_sequence}"))?,
        })
    }

    /// Examines the positions above a position, and the position of a known event, in one snapshot.
    /// It waits only for locks on the events and on the sequence.
    pub(crate) fn look(
        &self,
        client: &mut Client,
        after: i64,
        known: Option<EventMark>,
    ) -> Result<Probe, postgres::Error> {
        Ok(probe(&self.plain.query_one(client, sight(after, known))?, after, known))
    }

    /// Does the same, and counts the workers of the replica set. So one statement serves everything
    /// that a worker polls often.
    pub(crate) fn look_with_census(
        &self,
        client: &mut Client,
        after: i64,
        known: Option<EventMark>,
        replica_set: &str,
    ) -> Result<(Probe, Census), postgres::Error> {
        let (from, upto, known_at) = sight(after, known);
        let row = self.with_census.query_one(client, (from, upto, known_at, replica_set))?;
        Ok((probe(&row, after, known), Census { members: row.get(5), missing: row.get(6) }))
    }

    /// Does the same without the sequence, for the time while another session has locked it. The
    /// head passes no hole meanwhile.
    pub(crate) fn look_without_sequence(
        &self,
        client: &mut Client,
        after: i64,
        known: Option<EventMark>,
    ) -> Result<Probe, postgres::Error> {
        Ok(probe(&self.without_sequence.query_one(client, sight(after, known))?, after, known))
    }
}

fn sight(after: i64, known: Option<EventMark>) -> Sight {
    (after, after.saturating_add(PROBE_REACH), known.map(|known| known.position))
}

fn probe(row: &Row, after: i64, known: Option<EventMark>) -> Probe {
    let mark = |position, id: Option<Uuid>| id.map(|id| EventMark { position, id });
    Probe {
        newest: row.get(0),
        contiguous: row.get(1),
        last: row.get(2),
        here: mark(after, row.get(3)),
        there: known.and_then(|known| mark(known.position, row.get(4))),
    }
}

/// The visible positions above `$1` and at or below `$2`. With both bounds the planner uses the
/// index, however small the table was when the statement was planned.
fn probe_sql(names: &Names, last: &str) -> String {
    names.sql_with(
        "(SELECT coalesce((SELECT max(global_position) FROM {events}), 0) AS newest,
                 coalesce(max(global_position) FILTER (WHERE global_position = $1 + k), $1) AS contiguous,
                 {last} AS last, (SELECT event_id FROM {events} WHERE global_position = $1) AS here,
                 (SELECT event_id FROM {events} WHERE global_position = $3) AS there
          FROM (SELECT global_position, row_number() OVER (ORDER BY global_position) AS k
                FROM {events} WHERE global_position > $1 AND global_position <= $2) AS above) AS probe",
        &[("last", &last)],
    )
}

/// A transaction that holds the lock that every writer of events holds. The two fields identify it
/// among the transactions that are open at the same time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Holder {
    /// Its virtual transaction id, which it keeps when it is prepared. After a restart of the
    /// server, a prepared transaction has `-1/` and its transaction id.
    pub(crate) transaction: String,
    /// `None` for a prepared transaction.
    pub(crate) pid: Option<i32>,
}

/// Lists the holders, on the connection on which it was prepared.
pub(crate) struct Holders(Prepared<(String,)>);

impl Holders {
    pub(crate) fn prepare(client: &mut Client) -> Result<Self, postgres::Error> {
        // Stronger locks do not matter: a transaction that inserts holds this mode as well. A lock
        // is visible at once, not through a snapshot.
        let sql = "SELECT DISTINCT l.virtualtransaction, l.pid FROM pg_locks l
                   WHERE l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.granted
                   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                   AND l.relation IN (SELECT $1::text::regclass
                                      UNION ALL SELECT relid FROM pg_partition_tree($1::text::regclass))";
        Prepared::on(client, sql).map(Self)
    }

    /// Lists the transactions that may currently have events in flight.
    pub(crate) fn list(&self, client: &mut Client, names: &Names) -> Result<Vec<Holder>, postgres::Error> {
        let rows = self.0.query(client, (&names.events().to_string(),))?;
        Ok(rows.iter().map(|row| Holder { transaction: row.get(0), pid: row.get(1) }).collect())
    }
}

/// Reads what is known about some holders, for the operator.
pub(crate) fn describe_holders(client: &mut Client, holders: &[Holder]) -> Result<Vec<HeadBlocker>, postgres::Error> {
    // The server may hide the state of another role's backend, and when its transaction began.
    let sql =
        "SELECT a.pid, a.application_name, coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8
               FROM pg_stat_activity a WHERE a.pid = ANY ($1) AND (a.xact_start IS NOT NULL OR a.state IS NULL)
               UNION ALL
               SELECT NULL, p.gid, extract(epoch FROM clock_timestamp() - p.prepared)::float8
               FROM pg_prepared_xacts p JOIN pg_locks l
               ON l.locktype = 'transactionid' AND l.transactionid = p.transaction AND l.mode = 'ExclusiveLock'
               WHERE l.virtualtransaction = ANY ($2)
               ORDER BY 3 DESC";
    let pids: Vec<i32> = holders.iter().filter_map(|holder| holder.pid).collect();
    let prepared: Vec<&str> =
        holders.iter().filter(|holder| holder.pid.is_none()).map(|holder| holder.transaction.as_str()).collect();
    let rows = client.query_typed(sql, &[(&pids, Type::INT4_ARRAY), (&prepared, Type::TEXT_ARRAY)])?;
    Ok(rows
        .iter()
        .map(|row| HeadBlocker {
            pid: row.get(0),
            name: row.get::<_, Option<String>>(1).unwrap_or_default(),
            age: Duration::try_from_secs_f64(row.get(2)).unwrap_or_default(),
        })
        .collect())
}
