//! Refuses to start a worker that would begin a rebuild that is impossible. So a rolling deployment
//! stops at its first worker, while the others keep the live read model up to date.

use std::time::Duration;

use crate::context::Context;
use crate::database::{Database, Pool};
use crate::error::Error;
use crate::plan::{Deployed, Deployment};
use crate::store::session::Session;
use crate::store::{Known, Registration, rebuilds};

const DOING: &str = "examining the tables of a projection";

/// How long to wait for a connection of the pool.
const POOL_PATIENCE: Duration = Duration::from_secs(5);

/// Refuses the projections whose code has a higher version than the live read model, if they cannot
/// be rebuilt. This is one statement if there are none.
pub(super) fn verify(
    session: &mut Session,
    context: &Context,
    registration: &Registration,
    pool: &Pool,
    owner: Option<&Database>,
) -> Result<(), Error> {
    let found = session
        .run(|client| rebuilds::deployed(client, &context.names, registration))
        .map_err(Error::database("comparing the versions of the projections"))?;
    for deployed in found {
        let asks = matches!(deployed.decide(registration.build.as_deref()), Deployment::Rebuild { .. });
        let known = registration.projections.iter().find(|known| known.name == deployed.projection);
        if let Some(known) = known.filter(|_| asks)
            && let Some(problem) = problem(context, known, pool, owner)?
        {
            let Deployed { projection, version, live, .. } = deployed;
            return Err(Error::CannotRebuild { projection, version, live, problem });
        }
    }
    Ok(())
}

/// What is in the way of a rebuild.
fn problem(context: &Context, known: &Known, pool: &Pool, owner: Option<&Database>) -> Result<Option<String>, Error> {
    let database = || Error::database(DOING);
    let names = &context.names;
    let basis = {
        let mut session = Session::for_handlers(pool.get(POOL_PATIENCE)?, context.sessions);
        let mut tx = session.transaction().map_err(database())?;
        rebuilds::basis(&mut tx, names, known).map_err(database())?
    };
    let tables = match basis {
        Ok(basis) => basis.tables,
        Err(problem) => return Ok(Some(problem)),
    };
    let mut session = owner.map_or_else(|| context.open(), |owner| Session::open(owner, context.sessions))?;
    let mut tx = session.transaction().map_err(database())?;
    // Workers ask for the switch, and not for the copying of the content.
    rebuilds::hindrances(&mut tx, names, known, &tables, false).map_err(database())
}
