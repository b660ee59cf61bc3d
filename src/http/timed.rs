//! A stream with one deadline for everything that is read or written.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// How long the server reads from a client that may still send, so that the client reads its answer
/// before the connection is reset.
const DRAIN_TIME: Duration = Duration::from_secs(1);
/// How many bytes the server reads from such a client at most.
pub(super) const DRAIN_BYTES: usize = 1024 * 1024;

/// A stream with one deadline for everything that is read or written. A client that sends single
/// bytes does not extend the deadline.
pub(super) struct Timed<'a> {
    pub(super) stream: &'a TcpStream,
    pub(super) until: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }

    /// Reads and discards what the client still sends. If the server closed the connection
    /// with unread input, the connection would be reset, and the client might lose the answer.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)?;
        self.until = Instant::now() + DRAIN_TIME;
        let mut part = [0; 4096];
        let mut drained = 0;
        while drained < DRAIN_BYTES {
            match self.read(&mut part)? {
                0 => break,
                read => drained += read,
            }
        }
        Ok(())
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
