//! The status page: one document with its style and its script inside, which shows what `/status` answers.
//!
//! The document itself holds no data. The script puts names and errors in as text, never as markup; the policy lets nothing run but
//! this very script, and nothing be fetched but from where the page came from.

macro_rules! style {
    () => {
        include_str!("page/style.css")
    };
}

macro_rules! script {
    () => {
        include_str!("page/script.js")
    };
}

pub(super) const PAGE: &str = concat!(
    "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n",
    "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n",
    "<meta name=\"color-scheme\" content=\"light dark\">\n",
    "<link rel=\"icon\" href=\"data:,\">\n",
    "<title>Projections</title>\n<style>",
    style!(),
    "</style>\n</head>\n<body>\n<main id=\"page\"><p class=\"quiet\">Asking for the status …</p></main>\n",
    "<noscript><p>This page needs JavaScript. <a href=\"/status\">/status</a> has the same as JSON.</p></noscript>\n",
    "<footer><a href=\"/status\">/status</a> <a href=\"/metrics\">/metrics</a> <a href=\"/livez\">/livez</a> ",
    "<a href=\"/readyz\">/readyz</a></footer>\n<script>",
    script!(),
    "</script>\n</body>\n</html>\n",
);

/// What a browser may do with an answer. The hashes are those of the style and the script; a test computes them.
pub(super) const POLICY: &str = "default-src 'none'; style-src 'sha256-r54aKEKh4Ta4d5t6Mpcs8xYrz34inw3Gdyf0mAgcVsg='; script-src 'sha256-6P0LhxGHKGbTzdioiVFWOTg6+s/NKpxAYq3cuxTtjeA='; img-src data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

#[cfg(test)]
mod tests {
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    use sha2::{Digest as _, Sha256};

    use super::*;

    #[test]
    fn the_policy_allows_this_style_and_this_script() {
        for (directive, text) in [("style-src", style!()), ("script-src", script!())] {
            let allowed = format!("{directive} 'sha256-{}';", BASE64_STANDARD.encode(Sha256::digest(text)));
            assert!(POLICY.contains(&allowed), "{allowed} belongs into the policy: {POLICY}");
        }
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere_and_writes_no_markup() {
        for word in
            ["http://", "https://", "//cdn", "@import", "url(", "innerHTML", "outerHTML", "insertAdjacent", "eval("]
        {
            let allowed = if word == "http://" { PAGE.matches("http://www.w3.org/2000/svg").count() } else { 0 };
            assert_eq!(PAGE.matches(word).count(), allowed, "{word}");
        }
    }
}
