//! Inspects whether the checkpoints of a projection can be used, and whether they are owned as the
//! last deal says. The server does this, because the coordinator's view needs only the answer, and
//! there may be thousands of rows.
//!
//! Workers change owners and keys only by a deal, which records a [digest](digest_sql) of them. So
//! a different digest means that the rows were changed by hand. Positions are not compared: the
//! fence does that.

use super::names::Names;

/// A digest of which workers own which keys of projection `p`. It stays the same when rows of one
/// lane are merged. NULL if there are no rows.
pub(super) fn digest_sql(names: &Names) -> String {
    names.sql(
        "(SELECT hashtextextended(string_agg(concat_ws(' ', owned.generation, owned.worker_id, owned.lane, owned.keys, owned.size),
                                             ',' ORDER BY owned.generation, owned.worker_id, owned.lane), 0)
          FROM (SELECT c.generation, c.worker_id, c.lane, range_agg(piece) AS keys, sum(upper(piece) - lower(piece)) AS size
                FROM {checkpoints} c, unnest(c.keys) AS piece WHERE c.projection = p.name
                GROUP BY c.generation, c.worker_id, c.lane) AS owned)",
    )
}

/// The name of what is found for projection `p`. The server computes the cover of the keys only if
/// the digest differs.
pub(super) fn found_sql(names: &Names) -> String {
    names.sql_with(
        "CASE WHEN {digest} = p.dealt_as THEN 'as dealt'
              ELSE (SELECT CASE WHEN count(*) = 0 THEN 'missing'
                                WHEN range_agg(piece) = {all_keys} AND sum(upper(piece) - lower(piece)) = {key_space} THEN 'whole'
                                ELSE 'torn' END
                    FROM {checkpoints} c, unnest(c.keys) AS piece WHERE c.projection = p.name) END",
        &[("digest", &digest_sql(names))],
    )
}
