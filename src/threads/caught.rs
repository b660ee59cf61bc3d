//! Catches panics of the library and of the code that it calls.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::panic_message;

/// Executes code that may panic. Returns the panic's message if it does.
pub(crate) fn caught<T>(code: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(code)).map_err(|payload| {
        let message = panic_message(&*payload);
        // The payload's destructor is foreign code, which may panic as well.
        std::mem::forget(payload);
        message
    })
}

/// Logs where a panic of the application's logger would do harm: in a destructor, or before
/// something that must be done.
pub(crate) fn safely(log: impl FnOnce()) {
    // The panic of a logger cannot be logged.
    _ = caught(log);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_that_panics_when_dropped_is_caught_as_well() {
        struct Explosive;
        impl Drop for Explosive {
            fn drop(&mut self) {
                panic!("again");
            }
        }
        let outcome = caught(|| std::panic::panic_any(Explosive));
        assert_eq!(outcome.unwrap_err(), "a panic without a message");
        assert_eq!(caught(|| 1), Ok(1));
    }
}
