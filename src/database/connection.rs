//! A connection that the application uses itself.

use std::fmt;
use std::ops::{Deref, DerefMut};

use postgres::{Client, GenericClient, Transaction};

use crate::blocking::drop_blocking;

/// A connection that the application uses itself: a [`postgres::Client`] that may be dropped on any
/// thread.
///
/// On a thread of a tokio runtime, the client's own methods panic: call them on a thread that may
/// block, such as one of `spawn_blocking`. The methods of [`EventStore`](crate::EventStore) may use
/// the connection on any thread.
pub struct Connection(Option<Client>);

impl Connection {
    pub(super) fn new(client: Client) -> Self {
        Self(Some(client))
    }

    /// Returns the client itself. Dropping the client on a thread of an asynchronous runtime
    /// panics.
    pub fn into_client(mut self) -> Client {
        self.0.take().unwrap_or_else(|| taken())
    }
}

impl Deref for Connection {
    type Target = Client;

    fn deref(&self) -> &Client {
        self.0.as_ref().unwrap_or_else(|| taken())
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut Client {
        self.0.as_mut().unwrap_or_else(|| taken())
    }
}

fn taken() -> ! {
    unreachable!("the client is taken only from a connection that is no longer used")
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            drop_blocking(client);
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// What an [`EventStore`](crate::EventStore) or an [`Operator`](crate::operator::Operator) executes
/// statements on: a [`Connection`], a
/// [`postgres::Client`] or a [`postgres::Transaction`].
pub trait AsClient: sealed::Sealed {
    /// The client or transaction.
    type Client: GenericClient + Send;

    /// Returns the client or transaction.
    fn as_client(&mut self) -> &mut Self::Client;
}

impl AsClient for Connection {
    type Client = Client;

    fn as_client(&mut self) -> &mut Client {
        self
    }
}

impl AsClient for Client {
    type Client = Self;

    fn as_client(&mut self) -> &mut Self {
        self
    }
}

impl<'a> AsClient for Transaction<'a> {
    type Client = Transaction<'a>;

    fn as_client(&mut self) -> &mut Transaction<'a> {
        self
    }
}

pub(crate) mod sealed {
    pub trait Sealed {}
}

impl sealed::Sealed for Connection {}
impl sealed::Sealed for Client {}
impl sealed::Sealed for Transaction<'_> {}
