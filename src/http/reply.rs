//! A response before it is formatted. Pure.

use serde_json::Value;

#[derive(Debug)]
pub(super) struct Page {
    pub(super) code: u16,
    pub(super) content_type: &'static str,
    pub(super) body: String,
    /// Headers that only this response has.
    pub(super) headers: &'static [(&'static str, &'static str)],
}

impl Page {
    pub(super) fn new(code: u16, content_type: &'static str, body: String) -> Self {
        Self { code, content_type, body, headers: &[] }
    }

    pub(super) fn text(code: u16, body: impl Into<String>) -> Self {
        Self::new(code, "text/plain; charset=utf-8", in_lines(body.into()))
    }

    pub(super) fn json(code: u16, body: &Value) -> Self {
        Self::new(code, "application/json", in_lines(body.to_string()))
    }

    pub(super) fn with(self, headers: &'static [(&'static str, &'static str)]) -> Self {
        Self { headers, ..self }
    }
}

fn in_lines(mut text: String) -> String {
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}
