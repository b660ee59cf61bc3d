//! Whether a projection can be rebuilt. A rebuild is refused for the same reasons as the start of a
//! worker that would ask for one.

use postgres::Transaction;
use postgres::types::Type;

use super::beginning::shared_tables;
use crate::scope::StartAt;
use crate::store::Known;
use crate::store::names::Names;
use crate::store::read_model::{self, Obstacle, Refusal, Table};

const NO_TABLES: &str = "it names no tables: implement Projection::tables(), so that they can be copied, and deploy that; or give the changed \
                         code a second name and tables of its own, and let your readers change to them";

pub(crate) const STARTS_AT_END: &str = "it starts at the end of the events, so nothing says which events a rebuild should begin with: let start_at() \
                             return a position";

/// With what a rebuild begins.
#[derive(Debug)]
pub(crate) struct Basis {
    /// The position before its first event.
    pub(crate) position: i64,
    /// The tables that it copies.
    pub(crate) tables: Vec<Table>,
    /// The role that executes the handlers.
    pub(crate) role: String,
}

/// Returns with what a rebuild of the projection begins, or why it cannot, for operators. The
/// transaction is on a session of a handler: the tables are found through its search path.
pub(crate) fn basis(
    tx: &mut Transaction<'_>,
    names: &Names,
    known: &Known,
) -> Result<Result<Basis, String>, postgres::Error> {
    let position = match known.start_at {
        StartAt::Beginning => 0,
        StartAt::Position(position) => position,
        StartAt::End => return Ok(Err(STARTS_AT_END.to_owned())),
    };
    if known.tables.is_empty() {
        return Ok(Err(NO_TABLES.to_owned()));
    }
    let wanted: Vec<&str> = known.tables.iter().map(String::as_str).collect();
    let role = tx.query_typed_one("SELECT current_user::text", &[])?.get(0);
    match read_model::find(tx, names, &wanted) {
        Ok(tables) => Ok(Ok(Basis { position, tables, role })),
        Err(Refusal::Database(error)) => Err(error),
        Err(refusal) => Ok(Err(refusal.to_string())),
    }
}

/// Returns everything that keeps these tables from being rebuilt, for operators. The transaction is
/// of the role that owns them.
pub(crate) fn hindrances(
    tx: &mut Transaction<'_>,
    names: &Names,
    known: &Known,
    tables: &[Table],
    copies_content: bool,
) -> Result<Option<String>, postgres::Error> {
    let kept = names.sql("SELECT EXISTS (SELECT FROM {projections} WHERE base = $1 AND kind = 'old')");
    if tx.query_typed_one(&kept, &[(&known.name, Type::TEXT)])?.get(0) {
        return Ok(Some("its former tables are kept: drop them first".to_owned()));
    }
    // Tables of other projections are compared by name, because their sessions may find others.
    if let Some(shared) = shared_tables(tx, names, &known.name, &known.tables)? {
        return Ok(Some(shared));
    }
    let hinders = |obstacle: &&Obstacle| {
        if copies_content { obstacle.hinders_copy() } else { obstacle.hinders_swap() }
    };
    let obstacles = read_model::obstacles(tx, tables, &[])?;
    let listed: Vec<String> = obstacles.iter().filter(hinders).map(ToString::to_string).collect();
    Ok((!listed.is_empty()).then(|| listed.join("; ")))
}
