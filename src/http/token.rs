//! The token that an operator proves to have. Pure.
//!
//! Only its digest is kept, and digests are compared in constant time. So neither a dump of the
//! memory nor the time of an answer tells anything about the token.

use std::fmt;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::error::Error;

/// The fewest bytes of a token.
const SHORTEST: usize = 16;
/// The most bytes of a token: it has to fit into the head of a request.
const LONGEST: usize = 4096;

pub(super) struct Token([u8; 32]);

impl Token {
    /// Refuses a token that can be guessed, or that no client could send. The error does not
    /// contain the token.
    pub(super) fn new(token: &str) -> Result<Self, Error> {
        let refused = |is: String, problem: &str| Err(Error::config("operator token", is, problem));
        match token.len() {
            0 => refused(
                "empty".to_owned(),
                "give one of at least 16 bytes, such as the output of `openssl rand -hex 32`, or none to take no commands",
            ),
            bytes if bytes < SHORTEST => refused(
                format!("{bytes} bytes long"),
                "a short one can be guessed: give at least 16 bytes, such as the output of `openssl rand -hex 32`",
            ),
            bytes if bytes > LONGEST => {
                refused(format!("{bytes} bytes long"), "at most 4096 bytes fit into the head of a request")
            }
            _ if !token.bytes().all(|byte| byte.is_ascii_graphic()) => refused(
                "not printable".to_owned(),
                "a header can hold only printable ASCII characters without spaces: give the output of `openssl rand -hex 32`",
            ),
            _ => Ok(Self(digest(token))),
        }
    }

    /// Whether an `Authorization` header has the token.
    pub(super) fn is_in(&self, authorization: Option<&str>) -> bool {
        let given = authorization.and_then(bearer).unwrap_or_default();
        bool::from(digest(given).ct_eq(&self.0))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").finish_non_exhaustive()
    }
}

/// The token of `Bearer TOKEN`. The scheme may be in any case.
fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start())
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    #[test]
    fn only_the_token_itself_is_accepted() {
        let token = Token::new(TOKEN).unwrap();
        for header in [format!("Bearer {TOKEN}"), format!("bEARER   {TOKEN}")] {
            assert!(token.is_in(Some(&header)), "{header}");
        }
        assert!(!token.is_in(None));
        for header in [
            "",
            "Bearer",
            "Bearer ",
            TOKEN,
            "Basic 0123456789abcdef",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Bearer 0123456789ABCDEF",
            "Bearer 0123456789abcdef x",
            "Bearer0123456789abcdef",
        ] {
            assert!(!token.is_in(Some(header)), "{header}");
        }
    }

    #[test]
    fn weak_token_is_refused_and_not_shown() {
        for (token, is) in [
            ("", "empty"),
            ("hunter2", "7 bytes long"),
            ("0123456789abcde", "15 bytes long"),
            ("hunter2 hunter2 hunter2", "not printable"),
            ("hünter2-hünter2-hünter2", "not printable"),
            (&"hunter2".repeat(1000), "7000 bytes long"),
        ] {
            let error = Token::new(token).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.starts_with(&format!("operator token is {is}: ")), "{shown}");
            assert!(!shown.contains("hunter2") && !shown.contains("0123"), "{shown}");
        }
        assert_eq!(format!("{:?}", Token::new(TOKEN).unwrap()), "Token { .. }");
    }
}
