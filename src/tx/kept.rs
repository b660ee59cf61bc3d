//! The statements that are kept prepared on a connection, by their text. Pure.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// The most statements that are kept on a connection. Each takes memory of the server, a longer one
/// takes more.
const MOST: usize = 128;
/// The most bytes of a text that is kept.
const LONGEST: usize = 8 * 1024;

/// The statements of one connection.
///
/// A statement becomes outdated when another session alters a table that it reads. It then fails
/// for a reason that has nothing to do with the events. After each failure of a handler, all
/// statements are dropped, so that the next attempt begins without kept statements.
#[derive(Debug)]
pub(crate) struct Kept<S> {
    statements: HashMap<Box<str>, Entry<S>>,
    /// Hashes of the texts that became outdated within the transaction that prepared them.
    unkept: Vec<u64>,
    /// The number of the current transaction.
    transaction: u64,
    /// Numbers the uses of statements, to find the one that was not used for longest.
    clock: u64,
    was_outdated: bool,
    /// Distinguishes the texts from those that a pooler still has prepared.
    mark: Option<u64>,
}

#[derive(Debug)]
struct Entry<S> {
    statement: S,
    prepared_in: u64,
    used: u64,
}

impl<S> Default for Kept<S> {
    fn default() -> Self {
        Self {
            statements: HashMap::new(),
            unkept: Vec::new(),
            transaction: 0,
            clock: 0,
            was_outdated: false,
            mark: None,
        }
    }
}

impl<S: Clone> Kept<S> {
    /// Records that a transaction begins.
    pub(crate) fn begin(&mut self) {
        self.transaction += 1;
        self.was_outdated = false;
    }

    /// Returns the statement that is kept for this text.
    pub(super) fn get(&mut self, text: &str) -> Option<S> {
        self.clock += 1;
        let entry = self.statements.get_mut(text)?;
        entry.used = self.clock;
        Some(entry.statement.clone())
    }

    /// Returns the form in which to prepare a text. A pooler in transaction mode keeps one
    /// statement for each text, so without the mark it would use an outdated statement again.
    pub(super) fn marked<'t>(&self, text: &'t str) -> Cow<'t, str> {
        self.mark.map_or(Cow::Borrowed(text), |mark| Cow::Owned(format!("{text}\n/* {mark:x} */")))
    }

    /// Keeps a statement. If there are too many, it replaces the one that was not used for longest.
    pub(super) fn put(&mut self, text: &str, statement: S) {
        if text.len() > LONGEST || self.unkept.contains(&hash(text)) {
            return;
        }
        if self.statements.len() >= MOST {
            let oldest = self.statements.iter().min_by_key(|(_, entry)| entry.used).map(|(text, _)| text.clone());
            oldest.map(|text| self.statements.remove(&text));
        }
        self.clock += 1;
        let entry = Entry { statement, prepared_in: self.transaction, used: self.clock };
        self.statements.insert(text.into(), entry);
    }

    /// Records that a statement was outdated: the one kept for this text, or one that the handler
    /// holds itself.
    ///
    /// If this transaction has prepared the text and made it outdated itself, each further attempt
    /// would fail as well, so the text is no longer kept.
    pub(super) fn found_outdated(&mut self, text: Option<&str>) {
        let is_own = |entry: &Entry<S>| entry.prepared_in == self.transaction;
        let was_kept = match text {
            Some(text) => {
                let entry = self.statements.get(text);
                if entry.is_some_and(is_own) {
                    if self.unkept.len() >= MOST {
                        self.unkept.remove(0);
                    }
                    self.unkept.push(hash(text));
                }
                entry.is_some()
            }
            None => self.statements.values().any(|entry| !is_own(entry)),
        };
        self.was_outdated |= was_kept;
        self.statements.clear();
    }

    /// Whether a statement was outdated in the current transaction. Such a transaction must not be
    /// committed, even if the handler ignored the error.
    pub(crate) fn was_outdated(&self) -> bool {
        self.was_outdated
    }

    /// Records that the transaction failed.
    pub(crate) fn failed(&mut self) {
        self.statements.clear();
        if self.was_outdated {
            self.mark = Some(fastrand::u64(..));
        }
    }
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statement_that_was_not_used_for_longest_makes_room() {
        let mut kept = Kept::default();
        for number in 0..MOST {
            kept.put(&number.to_string(), number);
        }
        assert_eq!(kept.get("0"), Some(0));
        kept.put("more", MOST);
        assert_eq!(kept.statements.len(), MOST);
        assert_eq!((kept.get("0"), kept.get("1"), kept.get("more")), (Some(0), None, Some(MOST)));
    }

    #[test]
    fn long_texts_are_not_kept() {
        let mut kept = Kept::default();
        for (bytes, statement) in [(LONGEST, Some(1)), (LONGEST + 1, None)] {
            let text = "x".repeat(bytes);
            kept.put(&text, 1);
            assert_eq!(kept.get(&text), statement);
        }
    }

    #[test]
    fn an_outdated_statement_is_prepared_anew_in_another_form() {
        let mut kept = Kept::default();
        kept.begin();
        kept.put("a", 1);
        kept.put("b", 2);
        assert!(!kept.was_outdated());
        assert_eq!(kept.marked("a"), "a");
        for text in [Some("a"), None] {
            kept.begin();
            kept.found_outdated(text);
            assert!(kept.was_outdated());
            kept.failed();
            assert_eq!((kept.get("a"), kept.get("b")), (None, None));
            let marked = kept.marked("a").into_owned();
            assert!(marked.starts_with("a\n/* "), "{marked}");
            kept.begin();
            assert!(!kept.was_outdated());
            kept.put("a", 3);
            assert_eq!(kept.get("a"), Some(3));
        }
    }

    #[test]
    fn a_text_that_its_own_transaction_outdates_is_not_kept() {
        let mut kept = Kept::default();
        kept.begin();
        kept.put("a", 1);
        kept.found_outdated(Some("a"));
        assert!(kept.was_outdated());
        kept.failed();
        kept.begin();
        kept.put("a", 2);
        assert_eq!(kept.get("a"), None);
        // The statement was prepared for this use only, like one that the handler prepares itself.
        kept.found_outdated(Some("a"));
        kept.found_outdated(None);
        assert!(!kept.was_outdated());
    }

    #[test]
    fn each_failure_empties_it() {
        let mut kept = Kept::default();
        kept.begin();
        kept.put("a", 1);
        kept.failed();
        assert_eq!((kept.get("a"), kept.marked("a")), (None, "a".into()));
    }
}
