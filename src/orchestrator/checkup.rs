//! What a worker that is not started can do for operators: check its database, and connect to it.

use super::hosted::Hosted;
use super::reach::once_reached;
use super::worker::Orchestrator;
use crate::error::Error;
use crate::store::Names;
use crate::store::checkup::{self, Finding, Findings};
use crate::store::folds::FoldTable;
use crate::store::preflight;
use crate::store::session::Session;

/// The connections of a worker besides those of its pool.
const BESIDE_THE_POOL: u32 = 3;

impl Orchestrator {
    pub(crate) fn names(&self) -> &Names {
        &self.config.names
    }

    pub(crate) fn replica_set(&self) -> &str {
        &self.config.replica_set
    }

    /// Opens a connection for the library's statements.
    pub(crate) fn session(&self) -> Result<Session, Error> {
        Session::open(&self.database, self.sessions())
    }

    /// The tables of this worker's folds.
    pub(crate) fn folds(&self) -> Vec<FoldTable> {
        Hosted::folds(&self.projections)
    }

    /// Opens a connection for an operator.
    pub(crate) fn client(&self) -> Result<postgres::Client, Error> {
        self.database.client()
    }

    /// The name of this host, as a worker would register it.
    pub(crate) fn host(&self) -> String {
        self.registration().host
    }

    /// Opens a connection for the application's statements. Waits for a server that is away, for up
    /// to `database_wait`.
    pub(crate) fn client_when_reached(&self) -> Result<postgres::Client, Error> {
        once_reached(self.config.database_wait, self.crew.stop(), || self.database.client())
    }

    /// Checks whether this worker could run.
    pub(crate) fn check(&self) -> Vec<Finding> {
        let mut found = Findings::default();
        self.check_all(&mut found);
        found.into_vec()
    }

    fn check_all(&self, found: &mut Findings) {
        let target = self.database.target().to_string();
        let Some(mut client) = found.take("connection", self.database.open(), |_| target) else { return };
        if !checkup::server(found, &mut client) {
            return;
        }
        let mut other = match self.database.open() {
            Ok(other) => other,
            Err(error) => return found.error("sessions", &error),
        };
        if !checkup::pooling(found, &mut client, &mut other, self.sessions()) {
            return;
        }
        drop(other);
        let path = preflight::path(&mut client);
        checkup::folds(found, &mut client, &self.folds());
        let session = Session::new(client, self.sessions()).map_err(Error::database("setting the session up"));
        match path.and_then(|path| Ok((path, session?))) {
            Ok((path, mut session)) => {
                let can_be_read = checkup::schema(found, &mut session, self.names(), &path);
                if can_be_read {
                    checkup::projections(found, &mut session, self.names(), &self.registration());
                }
                // Behind a pooler, the pooler's own limits apply.
                if can_be_read && self.sessions().member().is_some() {
                    let own = self.config.pool_size(self.projections.len()) + BESIDE_THE_POOL;
                    checkup::connections(found, &mut session, self.names(), self.replica_set(), own.into());
                }
            }
            Err(error) => found.error("session", &error),
        }
    }
}
