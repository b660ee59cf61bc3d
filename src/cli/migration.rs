//! `migrate`: creates the library's tables, and then the application's own.

use std::process::ExitCode;
use std::thread;

use crossbeam_channel::{Receiver, bounded, select};

use super::failure::Failure;
use super::output;
use super::signals::shutdown_signal;
use super::worker::{Program, Step};
use crate::error::{BoxError, Error};
use crate::orchestrator::Orchestrator;
use crate::store::migrations;

pub(super) fn migrate(program: Program) -> Result<ExitCode, Failure> {
    let Program { orchestrator, migrations } = program;
    let migrated = unless_stopped(&shutdown_signal()?, move || apply(&orchestrator, migrations))?;
    migrated.ok_or_else(|| Failure::Failed("stopped before the tables were up to date".into()))?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the SQL, so that another tool can execute it.
pub(super) fn print(program: &Program) -> ExitCode {
    output::write(program.orchestrator.names().schema_sql().trim_end());
    for table in program.orchestrator.folds() {
        output::write(&format!("\n-- The table of fold {:?}\n{}", table.fold, table.sql().trim_end()));
    }
    for step in &program.migrations {
        match step {
            // The semicolon has a line of its own, because the SQL may end with a comment.
            Step::Sql(sql) => output::write(&format!("\n-- The application's own\n{}\n;", sql.trim_end())),
            Step::Code(_) => {
                output::write("\n-- The application also migrates in code, which only `migrate` executes.")
            }
        };
    }
    ExitCode::SUCCESS
}

/// Creates the tables that do not exist yet, or brings them up to date.
pub(super) fn apply(orchestrator: &Orchestrator, steps: Vec<Step>) -> Result<(), BoxError> {
    orchestrator.migrate()?;
    if steps.is_empty() {
        return Ok(());
    }
    let (mut waiting, mut client) = (orchestrator.client_when_reached()?, orchestrator.client_when_reached()?);
    migrations::begin_turn_of_application(&mut waiting, orchestrator.names())?;
    for step in steps {
        match step {
            Step::Sql(sql) => {
                client.batch_execute(&sql).map_err(Error::database("executing the application's migration"))?;
            }
            Step::Code(migrate) => migrate(&mut client)?,
        }
    }
    waiting.batch_execute("COMMIT").map_err(Error::database("ending the application's migration"))?;
    Ok(())
}

/// Executes `work` on another thread, because it may take long. Returns `None` as soon as the
/// process is to stop: it need not wait for a slow server or for another process's migration.
pub(super) fn unless_stopped<T: Send + 'static>(
    shutdown: &Receiver<()>,
    work: impl FnOnce() -> Result<T, BoxError> + Send + 'static,
) -> Result<Option<T>, Failure> {
    let (sender, done) = bounded(1);
    thread::Builder::new().name("pup-begin".into()).spawn(move || sender.send(work()))?;
    select! {
        recv(done) -> outcome => match outcome {
            Ok(outcome) => Ok(Some(outcome?)),
            Err(_) => Err(Failure::Failed("the start panicked".into())),
        },
        recv(shutdown) -> _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Barrier};

    use postgres::Client;

    use super::super::worker::tests::Nothing;
    use super::*;
    use crate::database::Database;
    use crate::store::testing;

    /// Without turns, if two sessions create a table at the same time, one of them may fail in
    /// spite of `IF NOT EXISTS`.
    #[test]
    fn migrations_of_the_application_take_turns() {
        const PROCESSES: usize = 6;
        let url = testing::database();
        let orchestrator = || {
            let database = Database::from_url(&url).unwrap();
            Orchestrator::builder(database, "set").projection(Nothing).build().unwrap()
        };
        orchestrator().migrate().unwrap();
        let (inside, together) = (Arc::new(AtomicUsize::new(0)), Barrier::new(PROCESSES));
        let migrate = || {
            let inside = inside.clone();
            let look = move |client: &mut Client| -> Result<(), BoxError> {
                let others = inside.fetch_add(1, Ordering::SeqCst);
                for _ in 0..50 {
                    client.batch_execute("SELECT FROM t")?;
                }
                inside.fetch_sub(1, Ordering::SeqCst);
                if others == 0 { Ok(()) } else { Err(format!("at the same time as {others} others").into()) }
            };
            let table = Step::Sql("CREATE TABLE IF NOT EXISTS t (n int)".to_owned());
            let orchestrator = orchestrator();
            together.wait();
            apply(&orchestrator, vec![table, Step::Code(Box::new(look))]).map_err(|error| error.to_string())
        };
        let outcomes: Vec<_> = thread::scope(|scope| {
            let migrating: Vec<_> = (0..PROCESSES).map(|_| scope.spawn(migrate)).collect();
            migrating.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(outcomes, vec![Ok(()); PROCESSES]);
    }

    #[test]
    fn a_migration_that_fails_is_the_error() {
        let database = Database::from_url(&testing::database()).unwrap();
        let orchestrator = Orchestrator::builder(database, "set").projection(Nothing).build().unwrap();
        let error = apply(&orchestrator, vec![Step::Sql("CREATE TABLE".to_owned())]).unwrap_err();
        let error = Failure::from(error).to_string();
        assert!(error.starts_with("executing the application's migration failed: syntax error"), "{error}");
        let fails = |_: &mut Client| Err(BoxError::from("not today"));
        let error = apply(&orchestrator, vec![Step::Code(Box::new(fails))]).unwrap_err().to_string();
        assert_eq!(error, "not today");
    }
}
