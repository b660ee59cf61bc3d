//! Flags that several commands have.

use clap::{Arg, ArgAction};

/// A flag without a value.
pub(super) fn switch(name: &'static str, about: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(about)
}

pub(super) fn json() -> Arg {
    switch("json", "Write JSON, for scripts")
}
