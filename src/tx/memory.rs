//! What a handler keeps in memory from one transaction to the next.

use std::any::Any;
use std::fmt;

/// What a handler keeps in memory, as long as its worker owns the same checkpoints. It is cleared
/// when a transaction fails, and when the checkpoints are loaded again. So it never contains
/// anything that is not committed, unless it belongs to the current transaction.
#[derive(Default)]
pub(crate) struct Memory(Option<Box<dyn Any + Send>>);

impl Memory {
    /// What is kept, if it is of this type; otherwise, the type's default is kept from now on.
    pub(crate) fn get<T: Any + Send + Default>(&mut self) -> &mut T {
        if !self.0.as_ref().is_some_and(|kept| kept.is::<T>()) {
            self.0 = None;
        }
        let kept = self.0.get_or_insert_with(|| Box::new(T::default()));
        kept.downcast_mut().unwrap_or_else(|| unreachable!("it is of this type"))
    }

    pub(crate) fn clear(&mut self) {
        self.0 = None;
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Memory").field(&self.0.is_some()).finish()
    }
}
