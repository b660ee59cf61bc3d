//! The status page: one document that contains its style and its script, and shows the answer of
//! `/status`.
//!
//! The document itself contains no data, except whether commands are taken. The script inserts
//! names and errors as text, never as markup. The policy allows only this script to run, and allows
//! it to query only the origin of the page.

use std::sync::LazyLock;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use sha2::{Digest as _, Sha256};

macro_rules! style {
    () => {
        include_str!("page/style.css")
    };
}

/// The script, in parts by purpose. The last part starts the script.
macro_rules! script {
    () => {
        concat!(
            "\n",
            include_str!("page/data.js"),
            "\n",
            include_str!("page/words.js"),
            "\n",
            include_str!("page/elements.js"),
            "\n",
            include_str!("page/charts.js"),
            "\n",
            include_str!("page/tables.js"),
            "\n",
            include_str!("page/page.js"),
            "\n",
            include_str!("page/commands.js"),
            "\n",
            include_str!("page/refresh.js"),
        )
    };
}

const PAGE: &str = concat!(
    "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n",
    "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n",
    "<meta name=\"color-scheme\" content=\"light dark\">\n",
    "<link rel=\"icon\" href=\"data:,\">\n",
    "<title>Projections</title>\n<style>",
    style!(),
    "</style>\n</head>\n<body data-commands=\"off\">\n<main id=\"page\"><p class=\"quiet\">Loading the status …</p></main>\n",
    "<noscript><p>This page needs JavaScript. <a href=\"/status\">/status</a> has the same as JSON.</p></noscript>\n",
    "<footer><a href=\"/status\">/status</a> <a href=\"/metrics\">/metrics</a> <a href=\"/livez\">/livez</a> ",
    "<a href=\"/readyz\">/readyz</a></footer>\n<div id=\"desk\"></div>\n<script>",
    script!(),
    "</script>\n</body>\n</html>\n",
);

/// Returns the page. It shows buttons for commands only if they are taken.
pub(super) fn page(takes_commands: bool) -> String {
    if takes_commands { PAGE.replacen("data-commands=\"off\"", "data-commands=\"on\"", 1) } else { PAGE.to_owned() }
}

/// The policy for the browser. It names the style and the script by their hashes.
pub(super) static POLICY: LazyLock<String> = LazyLock::new(|| {
    let (style, script) = (hash(style!()), hash(script!()));
    format!(
        "default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
});

fn hash(text: &str) -> String {
    BASE64_STANDARD.encode(Sha256::digest(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hash of the empty text is well known.
    #[test]
    fn hashes_are_as_a_browser_computes_them() {
        assert_eq!(hash(""), "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
    }

    #[test]
    fn the_policy_allows_the_style_and_the_script_of_the_page() {
        for (directive, element) in [("style-src", "style"), ("script-src", "script")] {
            let (_, rest) = PAGE.split_once(&format!("<{element}>")).unwrap();
            let (text, _) = rest.split_once(&format!("</{element}>")).unwrap();
            let allowed = format!("{directive} 'sha256-{}';", hash(text));
            assert!(POLICY.contains(&allowed), "{allowed} belongs into the policy: {}", *POLICY);
        }
    }

    #[test]
    fn pages_differ_only_in_whether_commands_are_taken() {
        let (off, on) = (page(false), page(true));
        assert_eq!(off, PAGE);
        assert_eq!(on.matches("<body data-commands=\"on\">").count(), 1);
        assert_eq!(on.replace("<body data-commands=\"on\">", "<body data-commands=\"off\">"), off);
    }

    #[test]
    fn script_draws_the_key_space_that_the_library_has() {
        assert!(PAGE.contains(&format!("const KEY_SPACE = {};", crate::plan::KEY_SPACE)));
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
