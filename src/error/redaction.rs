//! Keeps passwords out of errors: a user may give a connection string where something else belongs.

const HIDDEN: &str = "***";

/// Returns the text without the passwords of URLs and of `password=…`. It may hide too much,
/// because a password that is not encoded may contain any character.
pub(crate) fn redacted(text: &str) -> String {
    let (text, tail) = match password_setting(text) {
        Some(end) => (&text[..end], HIDDEN),
        None => (text, ""),
    };
    let mut shown = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        shown = format!("{shown}{before}://");
        rest = after;
        let next = after.find("://").unwrap_or(after.len());
        if let Some(host) = after[..next].rfind('@')
            && let Some(user) = after[..host].find(':')
        {
            shown = format!("{shown}{}:{HIDDEN}", &after[..user]);
            rest = &after[host..];
        }
    }
    format!("{shown}{rest}{tail}")
}

/// Whether the text contains anything that [`redacted`] hides.
pub(crate) fn has_password(text: &str) -> bool {
    redacted(text) != text
}

/// Returns where the value of the first `password=` begins. Also finds `PGPASSWORD=` and
/// `password = `.
fn password_setting(text: &str) -> Option<usize> {
    const NAME: &str = "password";
    let lower = text.to_ascii_lowercase();
    lower.match_indices(NAME).find_map(|(at, _)| {
        let after = &text[at + NAME.len()..];
        let value = after.trim_start().strip_prefix('=')?;
        Some(text.len() - value.len())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_hidden_and_the_rest_is_shown() {
        for (text, shown) in [
            ("main-projections", "main-projections"),
            ("10s", "10s"),
            ("postgres://h:5432/d", "postgres://h:5432/d"),
            ("postgres://user@h/d", "postgres://user@h/d"),
            ("postgres://u:secret@h/d", "postgres://u:***@h/d"),
            ("\"mysql://u:sec/r:e@t@h/d\"", "\"mysql://u:***@h/d\""),
            ("a://u:secret@h b://v:secret@i", "a://u:***@h b://v:***@i"),
            ("http://h b://v:secret@i", "http://h b://v:***@i"),
            ("host=h password=secret user=u", "host=h password=***"),
            ("PassWord = 'a secret' host=h", "PassWord =***"),
            ("postgres://h/d?user=u&password=secret", "postgres://h/d?user=u&password=***"),
            ("postgres://u:secret@h/d?password=secret", "postgres://u:***@h/d?password=***"),
            ("PGPASSWORD=secret", "PGPASSWORD=***"),
            ("the password reset", "the password reset"),
            ("İ password=secret", "İ password=***"),
        ] {
            let found = redacted(text);
            assert!(!found.contains("secret") && !found.contains("sec/"), "{text}: {found}");
            assert_eq!(found, shown, "{text}");
            assert_eq!(has_password(text), text != found, "{text}");
        }
    }
}
