//! A connection at minimal cost: data that is sent together is written into one buffer, received data is
//! read in place, and the clock is read once for all data that arrived together.
//!
//! There may be thousands of connections. One without unread data owns no buffer, but borrows its thread's
//! when data arrives, so that most reads use the same few cache lines.

use std::cell::Cell;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Instant;
use std::{fmt, future, io, mem};

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::stream::Stream;

/// Bytes read at once: a burst of messages, or the answers to many requests.
const READ_BYTES: usize = 64 * 1024;

/// The longest message, including its head: an echo of 16 MiB.
const MESSAGE_BYTES_MAX: usize = 17 * 1024 * 1024;

thread_local! {
    /// The input buffer while no connection has it.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The end of a connection by the server, and its reason if the server gave one.
#[derive(Debug)]
pub struct Ended(pub String);

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server ended a connection{}", self.0)
    }
}

impl std::error::Error for Ended {}

/// Runs `work` until it is done or a connection has ended.
///
/// # Errors
/// `work` fails for another reason.
pub async fn until_ended(work: impl Future<Output = Result<()>>) -> Result<()> {
    work.await.or_else(|error| if error.is::<Ended>() { Ok(()) } else { Err(error) })
}

/// One connection, with its unsent and unread data.
pub struct Connection {
    stream: Stream,
    outbound: Vec<u8>,
    /// Bytes of `outbound` that a cancelled flush has sent: 0 <= sent <= outbound.len().
    sent: usize,
    /// Received data. Owns no memory while all of it is taken.
    received: Vec<u8>,
    /// Bytes of `received` that were read: 0 <= taken <= received.len().
    taken: usize,
    received_at: Instant,
}

impl Connection {
    /// A connection without unread data.
    pub fn of(stream: impl Into<Stream>) -> Self {
        let (outbound, received) = (Vec::new(), Vec::new());
        Self {
            stream: stream.into(),
            outbound,
            sent: 0,
            received,
            taken: 0,
            received_at: Instant::now(),
        }
    }

    /// The data that the next flush sends, to be appended to.
    pub fn outbound(&mut self) -> &mut Vec<u8> {
        &mut self.outbound
    }

    /// Sends the appended data. Safe to cancel: the next flush continues.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn flush(&mut self) -> Result<()> {
        while self.sent < self.outbound.len() {
            self.sent += self.stream.write(&self.outbound[self.sent..]).await.map_err(ended)?;
        }
        self.stream.flush().await.map_err(ended)?;
        self.outbound.clear();
        self.sent = 0;
        Ok(())
    }

    /// The unread data.
    pub fn unread(&self) -> &[u8] {
        &self.received[self.taken..]
    }

    /// Takes the first `count` unread bytes, of which there must be as many.
    pub fn take(&mut self, count: usize) {
        self.taken += count;
        if self.taken == self.received.len() {
            self.taken = 0;
            self.received.clear();
            SPARE.set(mem::take(&mut self.received));
        }
    }

    /// When data was last read from the socket.
    pub fn received_at(&self) -> Instant {
        self.received_at
    }

    /// Waits for more data. Safe to cancel.
    ///
    /// # Errors
    /// The connection has ended, or 17 MiB are unread already.
    pub async fn receive(&mut self) -> Result<()> {
        ensure!(self.unread().len() < MESSAGE_BYTES_MAX, "a message of more than 17 MiB");
        self.received.drain(..self.taken);
        self.taken = 0;
        let count = future::poll_fn(|context| self.poll_read(context)).await.map_err(ended)?;
        ensure!(count > 0, Ended(String::new()));
        self.received_at = Instant::now();
        Ok(())
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.received.is_empty() {
            self.received = SPARE.take();
        }
        self.received.reserve(READ_BYTES);
        let polled = pin!(self.stream.read_buf(&mut self.received)).poll(context);
        if self.received.is_empty() {
            SPARE.set(mem::take(&mut self.received));
        }
        polled
    }
}

fn ended(error: io::Error) -> anyhow::Error {
    anyhow::Error::new(error).context(Ended(String::new()))
}

#[cfg(test)]
mod tests {
    use anyhow::bail;
    use futures_util::FutureExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// A connection and its other end.
    async fn connected() -> Result<(Connection, TcpStream)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let connect = TcpStream::connect(listener.local_addr()?);
        let (stream, (other_end, _)) = tokio::try_join!(connect, listener.accept())?;
        Ok((Connection::of(stream), other_end))
    }

    #[tokio::test]
    async fn a_flush_that_was_given_up_is_gone_on_with() -> Result<()> {
        let (mut connection, mut other_end) = connected().await?;
        // More than the system buffers while nobody reads.
        let bytes: Vec<u8> = (0..=250).collect::<Vec<_>>().repeat(128 * 1024);
        connection.outbound().extend_from_slice(&bytes);
        assert!(connection.flush().now_or_never().is_none());
        connection.outbound().extend_from_slice(b"more");
        let mut read = vec![0; bytes.len() + 4];
        tokio::try_join!(connection.flush(), async { Ok(other_end.read_exact(&mut read).await?) })?;
        assert!(read == [&bytes[..], b"more"].concat());
        Ok(())
    }

    #[tokio::test]
    async fn what_was_not_taken_is_there_when_more_has_come() -> Result<()> {
        let (mut connection, mut other_end) = connected().await?;
        other_end.write_all(b"abc").await?;
        while connection.unread() != b"abc" {
            connection.receive().await?;
        }
        connection.take(2);
        assert!(connection.receive().now_or_never().is_none());
        other_end.write_all(b"d").await?;
        connection.receive().await?;
        assert_eq!(connection.unread(), b"cd");
        Ok(())
    }

    #[tokio::test]
    async fn nothing_of_one_connection_is_read_on_another() -> Result<()> {
        let (mut one, mut end_of_one) = connected().await?;
        let (mut other, mut end_of_other) = connected().await?;
        end_of_one.write_all(b"one").await?;
        one.receive().await?;
        assert!(other.receive().now_or_never().is_none());
        end_of_other.write_all(b"other").await?;
        other.receive().await?;
        assert_eq!((one.unread(), other.unread()), (&b"one"[..], &b"other"[..]));
        one.take(3);
        end_of_other.write_all(b"!").await?;
        other.receive().await?;
        assert_eq!((one.unread(), other.unread()), (&b""[..], &b"other!"[..]));
        Ok(())
    }

    #[tokio::test]
    async fn one_with_nothing_unread_owns_no_buffer() -> Result<()> {
        let (mut connection, mut other_end) = connected().await?;
        other_end.write_all(b"abc").await?;
        connection.receive().await?;
        connection.take(3);
        assert_eq!(connection.received.capacity(), 0);
        assert!(connection.receive().now_or_never().is_none());
        assert_eq!(connection.received.capacity(), 0);
        Ok(())
    }

    #[tokio::test]
    async fn a_message_without_end_is_an_error() -> Result<()> {
        let (mut connection, mut other_end) = connected().await?;
        let bytes = vec![b'x'; 2 * MESSAGE_BYTES_MAX];
        let failing = async {
            loop {
                if let Err(error) = connection.receive().await {
                    return error;
                }
            }
        };
        let error = tokio::select! {
            error = failing => error,
            written = other_end.write_all(&bytes) => bail!("all was read: {written:?}"),
        };
        assert_eq!(error.to_string(), "a message of more than 17 MiB");
        Ok(())
    }

    #[tokio::test]
    async fn work_is_done_when_its_connection_has_ended() -> Result<()> {
        let (mut connection, other_end) = connected().await?;
        drop(other_end);
        until_ended(connection.receive()).await?;
        assert!(until_ended(async { bail!("something else") }).await.is_err());
        Ok(())
    }
}
