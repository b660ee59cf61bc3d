//! The replacement of `tls` without the feature `tls`.

use postgres::NoTls;

use super::ssl::{Mode, Tls};
use crate::error::Error;

/// Returns no connector, because `prefer` allows connections without TLS. A mode that requires TLS
/// is refused.
pub(super) fn connector(tls: &Tls) -> Result<Option<NoTls>, Error> {
    match tls.mode {
        Mode::Disable | Mode::Prefer => Ok(None),
        Mode::Require | Mode::VerifyCa | Mode::VerifyFull => Err(Error::Tls {
            problem: format!(
                "sslmode={} requires it, but pupsourcing-orchestrator was built without TLS: enable its feature \
                 \"tls\", or pass the application's TLS connector to Database::with_connector",
                tls.mode.name()
            ),
            source: None,
        }),
    }
}
