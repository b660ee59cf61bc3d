//! Rebuilds: a read model is filled anew in copies of its tables, beside the live one, and then
//! takes its place.
//!
//! A rebuild has a row of projections and checkpoints of its own, under a [name](Kind) of its own.
//! So it is dealt, fenced, parked and observed like any other projection. What only a rebuild has
//! is in the table of rebuilds.
//!
//! *Invariant (I11).* While a rebuild is *following*, no live checkpoint moves beyond a committed
//! position of the rebuild. So a snapshot that is taken after both have been level once never shows
//! fewer events in the copies than in the live tables. The switch waits until all older snapshots
//! have ended.

mod beginning;
mod deploying;
mod ending;
mod examining;
mod following;
mod holding;
mod reading;
mod record;
mod rows;
mod running;
pub(crate) mod snapshots;
mod switching;
mod tables;

pub(crate) use self::beginning::{asked, begin};
pub(crate) use self::deploying::{deploy, deployed};
pub(crate) use self::ending::{cancel, drop_old, revert};
pub(crate) use self::examining::{Basis, STARTS_AT_END, basis, hindrances};
pub(crate) use self::following::{Gap, catch_up, follow, gap, put_off, record_blocked};
pub(crate) use self::holding::hold;
pub(crate) use self::reading::{old_age_sql, old_sql, pending_sql, rebuild_sql};
pub(crate) use self::record::{Rebuild, current, is_due_sql, is_executed_by, kept};
pub(crate) use self::running::{Copies, ceiling, copies};
pub(crate) use self::switching::{Switched, switch};
pub(crate) use self::tables::{is_lock_busy, lock_copies, lock_gently, lock_live, vacuum};
