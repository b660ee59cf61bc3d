//! Flags that several commands have.

use clap::{Arg, ArgAction};

use crate::event::StreamId;

/// A flag without a value.
pub(super) fn switch(name: &'static str, about: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(about)
}

pub(super) fn json() -> Arg {
    switch("json", "Write JSON, for scripts")
}

/// A flag with a value.
pub(super) fn needed(name: &'static str, value: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value)
}

/// A flag with a value that has a default.
pub(super) fn value(name: &'static str, value: &'static str, default: &'static str) -> Arg {
    needed(name, value).default_value(default)
}

/// Reads an aggregate. Only its id may contain a slash.
pub(super) fn aggregate(text: &str) -> Result<StreamId, &'static str> {
    let mut parts = text.splitn(3, '/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(context), Some(kind), Some(id)) if ![context, kind, id].contains(&"") => {
            Ok(StreamId::new(context, kind, id))
        }
        _ => Err("it must be the context, the type and the id of an aggregate, such as shop/Order/order-7"),
    }
}
