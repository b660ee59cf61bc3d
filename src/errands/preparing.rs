//! Prepares a rebuild: finds what cannot be carried over, and creates the copies.

use super::failure::{DOING, Failure};
use super::{Code, End, Errands};
use crate::backoff::Mentions;
use crate::context::Context;
use crate::error::{Error, field};
use crate::plan::Errand;
use crate::projection::{NO_READ_MODEL, Work};
use crate::store::outcome::Outcome;
use crate::store::rebuilds::{self, Basis};
use crate::store::session::Session;
use crate::store::{notifications, read_model};

impl Errands {
    pub(super) fn prepare(&self, errand: &Errand) -> Result<End, Failure> {
        let Code { handler, known } = self.code_of(errand)?;
        if let Work::Reacts(_) = handler.work() {
            return self.refuse(errand, NO_READ_MODEL.to_owned());
        }
        let mut owner = self.session_of_owner().map_err(|error| Failure::of_library(&error))?;
        let names = &self.context.names;
        let basis = {
            let mut session = self.session().map_err(|error| Failure::of_library(&error))?;
            let mut tx = session.transaction().map_err(Failure::passing)?;
            rebuilds::basis(&mut tx, names, known).map_err(Failure::passing)?
        };
        let Basis { position, tables, role } = match basis {
            Ok(basis) => basis,
            Err(why) => return self.refuse(errand, why),
        };
        let mut tx = owner.transaction().map_err(Failure::passing)?;
        let Some(asked) = rebuilds::asked(&mut tx, names, errand.command).map_err(Failure::passing)? else {
            return Ok(End::Superseded);
        };
        let hindrances = rebuilds::hindrances(&mut tx, names, known, &tables, asked.copies_content);
        if let Some(why) = hindrances.map_err(Failure::passing)? {
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
        let (replica_set, version) = (self.context.replica_set(), known.version);
        log::info!(
            "rebuild begun: replica_set={replica_set} worker={worker} projection={projection} schema={} tables={} bytes={bytes} rate={} \
             version={version}",
            field(&schema),
            tables.len(),
            asked.rate.map_or_else(|| "unlimited".to_owned(), |rate| rate.to_string()),
            replica_set = field(&replica_set),
            projection = field(&errand.projection)
        );
        if self.build.is_none() {
            log::warn!(
                "rebuild without a build id: replica_set={replica_set} worker={worker} projection={projection} version={version}",
                replica_set = field(&replica_set),
                projection = field(&errand.projection)
            );
        }
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
