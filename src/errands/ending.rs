//! Ends a rebuild without a switch, brings the former tables back, or drops them.

use super::failure::Failure;
use super::{End, Errands};
use crate::error::field;
use crate::plan::Errand;
use crate::store::read_model;
use crate::store::rebuilds::{self, Rebuild};
use crate::store::session::Session;

impl Errands {
    pub(super) fn cancel(&self, errand: &Errand) -> Result<End, Failure> {
        let names = &self.context.names;
        let mut owner = self.session_of_owner().map_err(|error| Failure::of_library(&error))?;
        let mut tx = owner.transaction().map_err(Failure::passing)?;
        let Some(rebuild) = rebuilds::current(&mut tx, names, &errand.projection).map_err(Failure::passing)? else {
            drop(tx);
            return self.refuse(errand, "it is not being rebuilt any more".to_owned());
        };
        // This waits for batches in flight, which have locked the copies. What they have handled is
        // refused by the fence.
        rebuilds::lock_copies(&mut tx, &rebuild).map_err(Failure::changing)?;
        read_model::remove(&mut tx, &rebuild.schema, &rebuild.copy_oids()).map_err(Failure::changing)?;
        let outcome = rebuilds::cancel(&mut tx, names, errand, self.context.worker(), &rebuild)
            .map_err(|error| Failure::of_change(&error))?;
        let Some(outcome) = outcome else { return Ok(End::Superseded) };
        tx.commit().map_err(Failure::changing)?;
        log::info!(
            "rebuild cancelled: replica_set={} worker={} projection={} schema={}",
            field(&self.context.replica_set()),
            self.context.worker(),
            field(&errand.projection),
            field(&rebuild.schema)
        );
        self.notify(&mut owner);
        Ok(End::Concluded(outcome))
    }

    pub(super) fn revert(&self, errand: &Errand) -> Result<End, Failure> {
        let names = &self.context.names;
        let mut owner = self.session_of_owner().map_err(|error| Failure::of_library(&error))?;
        let Some(rebuild) = self.kept(&mut owner, errand)? else {
            return self.refuse(errand, "no former tables are kept any more".to_owned());
        };
        let schema = names.schema_of_old(errand.command);
        let mut tx = owner.transaction().map_err(Failure::passing)?;
        rebuilds::lock_gently(&mut tx, &rebuild).map_err(Failure::locking)?;
        read_model::verify(&mut tx, &rebuild.copies).map_err(Failure::of_refusal)?;
        rebuilds::lock_copies(&mut tx, &rebuild).map_err(Failure::locking)?;
        rebuilds::lock_live(&mut tx, &rebuild).map_err(Failure::locking)?;
        read_model::swap(&mut tx, &rebuild.copies, &schema).map_err(Failure::of_refusal)?;
        let outcome = rebuilds::revert(&mut tx, names, errand, self.context.worker(), &rebuild, &schema)
            .map_err(|error| Failure::of_change(&error))?;
        let Some(outcome) = outcome else { return Ok(End::Superseded) };
        tx.commit().map_err(Failure::changing)?;
        log::info!(
            "rebuild reverted: replica_set={} worker={} projection={} schema={}",
            field(&self.context.replica_set()),
            self.context.worker(),
            field(&errand.projection),
            field(&schema)
        );
        self.notify(&mut owner);
        Ok(End::Concluded(outcome))
    }

    pub(super) fn drop_old(&self, errand: &Errand) -> Result<End, Failure> {
        let names = &self.context.names;
        let mut owner = self.session_of_owner().map_err(|error| Failure::of_library(&error))?;
        let Some(rebuild) = self.kept(&mut owner, errand)? else {
            return self.refuse(errand, "no former tables are kept any more".to_owned());
        };
        let mut tx = owner.transaction().map_err(Failure::passing)?;
        read_model::remove(&mut tx, &rebuild.schema, &rebuild.copy_oids()).map_err(Failure::changing)?;
        let outcome = rebuilds::drop_old(&mut tx, names, errand, self.context.worker(), &rebuild)
            .map_err(|error| Failure::of_change(&error))?;
        let Some(outcome) = outcome else { return Ok(End::Superseded) };
        tx.commit().map_err(Failure::changing)?;
        log::info!(
            "former tables dropped: replica_set={} worker={} projection={} schema={}",
            field(&self.context.replica_set()),
            self.context.worker(),
            field(&errand.projection),
            field(&rebuild.schema)
        );
        self.notify(&mut owner);
        Ok(End::Concluded(outcome))
    }

    fn kept(&self, session: &mut Session, errand: &Errand) -> Result<Option<Rebuild>, Failure> {
        session.run(|client| rebuilds::kept(client, &self.context.names, &errand.projection)).map_err(Failure::passing)
    }
}
