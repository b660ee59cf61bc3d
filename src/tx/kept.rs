//! Statements that are kept prepared on a connection, by their text. Pure.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// The greatest number of statements kept on a connection. Each takes some ten kilobytes of the
/// server's memory.
const MOST: usize = 128;

/// The statements of one connection. One that fails because it is outdated is forgotten.
#[derive(Debug)]
pub(crate) struct Kept<S> {
    statements: HashMap<Box<str>, Entry<S>>,
    /// Hashes of the texts that became outdated within the transaction that prepared them.
    unkept: Vec<u64>,
    /// The number of the current transaction.
    transaction: u64,
    /// Orders the uses.
    clock: u64,
    was_outdated: bool,
}

/// What a session has lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// The plan of one statement.
    OfOne,
    /// A statement, and probably the others as well.
    OfAll,
}

#[derive(Debug)]
struct Entry<S> {
    statement: S,
    prepared_in: u64,
    used: u64,
}

impl<S> Default for Kept<S> {
    fn default() -> Self {
        Self { statements: HashMap::new(), unkept: Vec::new(), transaction: 0, clock: 0, was_outdated: false }
    }
}

impl<S: Clone> Kept<S> {
    /// Takes note that a transaction begins.
    pub(crate) fn begin(&mut self) {
        self.transaction += 1;
        self.was_outdated = false;
    }

    /// Returns the statement of a text.
    pub(super) fn get(&mut self, text: &str) -> Option<S> {
        self.clock += 1;
        let entry = self.statements.get_mut(text)?;
        entry.used = self.clock;
        Some(entry.statement.clone())
    }

    /// Keeps a statement, in place of the one that was not used for longest if there are too many.
    pub(super) fn put(&mut self, text: &str, statement: S) {
        if self.unkept.contains(&hash(text)) {
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

    /// Forgets a statement that is outdated: another session, or an earlier transaction, has changed
    /// what it depends on, so that the transaction has failed for nothing that its events did.
    ///
    /// If this transaction has done so itself, each further attempt would fail as well, so the text
    /// is not kept any more.
    pub(super) fn forget(&mut self, text: &str, loss: Loss) {
        let Some(entry) = self.statements.remove(text) else { return };
        if loss == Loss::OfAll {
            self.statements.clear();
        }
        if entry.prepared_in == self.transaction && !self.unkept.contains(&hash(text)) {
            if self.unkept.len() >= MOST {
                self.unkept.remove(0);
            }
            self.unkept.push(hash(text));
        }
        self.was_outdated = true;
    }

    /// Whether the current transaction has failed because a statement was outdated.
    pub(crate) fn was_outdated(&self) -> bool {
        self.was_outdated
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
    fn an_outdated_statement_is_forgotten_and_prepared_anew() {
        let mut kept = Kept::default();
        kept.begin();
        kept.put("a", 1);
        assert!(!kept.was_outdated());
        kept.begin();
        kept.forget("a", Loss::OfOne);
        assert!(kept.was_outdated());
        assert_eq!(kept.get("a"), None);
        kept.begin();
        assert!(!kept.was_outdated());
        kept.put("a", 2);
        kept.put("b", 3);
        assert_eq!(kept.get("a"), Some(2));
        kept.begin();
        kept.forget("b", Loss::OfAll);
        assert_eq!(kept.get("a"), None);
    }

    #[test]
    fn a_text_that_its_own_transaction_outdates_is_not_kept() {
        let mut kept = Kept::default();
        kept.begin();
        kept.put("a", 1);
        kept.forget("a", Loss::OfOne);
        assert!(kept.was_outdated());
        kept.begin();
        kept.put("a", 2);
        assert_eq!(kept.get("a"), None);
        // It is not outdated: it was prepared for this use.
        kept.forget("a", Loss::OfOne);
        assert!(!kept.was_outdated());
    }
}
