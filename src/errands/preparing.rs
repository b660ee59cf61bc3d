//! Prepares a rebuild: finds what cannot be carried over, and creates the copies.

use postgres::Transaction;

use super::failure::Failure;
use super::{Code, DOING, End, Errands};
use crate::backoff::Mentions;
use crate::context::Context;
use crate::error::{Error, field};
use crate::plan::Errand;
use crate::scope::StartAt;
use crate::store::commands::Outcome;
use crate::store::read_model::{self, Obstacle, Refusal, Table};
use crate::store::session::Session;
use crate::store::{notifications, rebuilds};

const NO_TABLES: &str = "it names no tables: implement Projection::tables(), so that they can be copied, and deploy that; or give the changed \
                         code a second name and tables of its own, and let your readers change to them";

pub(super) const STARTS_AT_END: &str = "it starts at the end of the events, so nothing says which events a rebuild should begin with: let start_at() \
                             return a position";

impl Errands {
    pub(super) fn prepare(&self, errand: &Errand) -> Result<End, Failure> {
        let Code { known, .. } = self.code_of(errand)?;
        let mut owner = self.session_of_owner().map_err(|error| Failure::of_library(&error))?;
        let position = match known.start_at {
            StartAt::Beginning => 0,
            StartAt::Position(position) => position,
            StartAt::End => return self.refuse(errand, STARTS_AT_END.to_owned()),
        };
        if known.tables.is_empty() {
            return self.refuse(errand, NO_TABLES.to_owned());
        }
        let names = &self.context.names;
        let wanted: Vec<&str> = known.tables.iter().map(String::as_str).collect();
        // The tables are found as a handler finds them: through the search path of its session.
        let (found, role) = {
            let mut session = self.session().map_err(|error| Failure::of_library(&error))?;
            let mut tx = session.transaction().map_err(Failure::passing)?;
            let role: String = tx.query_typed_one("SELECT current_user::text", &[]).map_err(Failure::passing)?.get(0);
            (read_model::find(&mut tx, names, &wanted), role)
        };
        let tables: Vec<Table> = match found {
            Ok(tables) => tables,
            Err(Refusal::Database(error)) => return Err(Failure::passing(error)),
            Err(refusal) => return self.refuse(errand, refusal.to_string()),
        };
        let mut tx = owner.transaction().map_err(Failure::passing)?;
        let Some(asked) = rebuilds::asked(&mut tx, names, errand.command).map_err(Failure::passing)? else {
            return Ok(End::Superseded);
        };
        if let Some(why) = rebuilds::shared_tables(&mut tx, names, &errand.projection, &known.tables)
            .and_then(|shared| match shared {
                None => obstacles(&mut tx, &tables, asked.copies_content),
                shared => Ok(shared),
            })
            .map_err(Failure::passing)?
        {
            drop(tx);
            return self.refuse(errand, why);
        }
        let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
        let bytes = read_model::size(&mut tx, &oids).map_err(Failure::passing)?;
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let schema = names.schema_of_copies(errand.command);
        let copies = read_model::create(&mut tx, &schema, &tables, &[&role]).map_err(Failure::of_refusal)?;
        let worker = self.context.worker();
        let begun = rebuilds::begin(
            &mut tx,
            names,
            errand,
            worker,
            known,
            self.build.as_deref(),
            asked,
            &copies,
            (&schema, bytes, position),
        )
        .map_err(|error| Failure::of_change(&error))?;
        if !begun {
            return Ok(End::Superseded);
        }
        tx.commit().map_err(Failure::changing)?;
        log::info!(
            "rebuild begun: replica_set={} worker={worker} projection={} schema={} tables={} bytes={bytes} rate={}",
            field(&self.context.replica_set()),
            field(&errand.projection),
            field(&schema),
            tables.len(),
            asked.rate.map_or_else(|| "unlimited".to_owned(), |rate| rate.to_string())
        );
        self.notify(&mut owner);
        Ok(End::Executed)
    }

    pub(super) fn refuse(&self, errand: &Errand, why: String) -> Result<End, Failure> {
        self.session()
            .and_then(|mut session| self.conclude(&mut session, errand, Outcome::Refused(why)))
            .map_err(|error| Failure::of_library(&error))
    }

    /// Tells the other workers that something has changed.
    pub(super) fn notify(&self, session: &mut Session) {
        let Context { names, .. } = &self.context;
        notifications::notify_coordination(session, names, self.context.replica_set(), &mut Mentions::default());
    }

    pub(super) fn library_error(error: postgres::Error) -> Error {
        Error::database(DOING)(error)
    }
}

/// What keeps the tables from being rebuilt, for operators.
fn obstacles(
    tx: &mut Transaction<'_>,
    tables: &[Table],
    copies_content: bool,
) -> Result<Option<String>, postgres::Error> {
    // Those of other projections are compared by name, because their sessions may find others.
    let obstacles = read_model::obstacles(tx, tables, &[])?;
    let hinders = |obstacle: &&Obstacle| {
        if copies_content { obstacle.hinders_copy() } else { obstacle.hinders_swap() }
    };
    let listed: Vec<String> = obstacles.iter().filter(hinders).map(ToString::to_string).collect();
    Ok((!listed.is_empty()).then(|| listed.join("; ")))
}
