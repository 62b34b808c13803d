//! A connection of a back end, at as little cost as can be: one buffer for all that is to be sent,
//! one for all that has come, both kept, and the clock looked at once for what came together.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Room for what is read at once: the answers to many requests.
const READ_BYTES: usize = 16 * 1024;

/// Longest answer that is waited for, with its head; the API's are far shorter.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

const ENDED: &str = "the server ended an API connection";

/// One connection, with what it has still to send and what it has read ahead.
pub struct Connection {
    stream: TcpStream,
    outbound: Vec<u8>,
    /// 0 <= sent <= outbound.len(): of a flush that was given up.
    sent: usize,
    received: Vec<u8>,
    /// 0 <= taken <= received.len(): the answers before have been read.
    taken: usize,
    received_at: Instant,
}

impl Connection {
    /// One on which nothing that came is unread.
    pub fn of(stream: TcpStream) -> Self {
        let (outbound, received) = (Vec::new(), Vec::new());
        Self { stream, outbound, sent: 0, received, taken: 0, received_at: Instant::now() }
    }

    /// What the next flush sends, to be added to: as much as is to be under way at once.
    pub fn outbound(&mut self) -> &mut Vec<u8> {
        &mut self.outbound
    }

    /// Sends what was added. May be given up at any time: the next one goes on.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn flush(&mut self) -> Result<()> {
        while self.sent < self.outbound.len() {
            self.sent += self.stream.write(&self.outbound[self.sent..]).await.context(ENDED)?;
        }
        self.outbound.clear();
        self.sent = 0;
        Ok(())
    }

    /// What has come and was not taken.
    pub fn unread(&self) -> &[u8] {
        &self.received[self.taken..]
    }

    /// Takes the first `count` bytes that are unread; there are as many.
    pub fn take(&mut self, count: usize) {
        self.taken += count;
    }

    /// When the last of what is unread or taken came.
    pub fn received_at(&self) -> Instant {
        self.received_at
    }

    /// Waits until there is more to read. May be given up at any time: nothing is lost.
    ///
    /// # Errors
    /// The connection has ended, or 64 KiB are unread already.
    pub async fn receive(&mut self) -> Result<()> {
        ensure!(self.unread().len() < ANSWER_BYTES_MAX, "an answer of more than 64 KiB");
        self.received.drain(..self.taken);
        self.taken = 0;
        self.received.reserve(READ_BYTES);
        let count = self.stream.read_buf(&mut self.received).await.context(ENDED)?;
        ensure!(count > 0, ENDED);
        self.received_at = Instant::now();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::net::TcpListener;

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
        // More than the system takes while nobody reads.
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
    async fn an_answer_without_end_is_an_error() -> Result<()> {
        let (mut connection, mut other_end) = connected().await?;
        other_end.write_all(&vec![b'x'; 2 * ANSWER_BYTES_MAX]).await?;
        while connection.unread().len() < ANSWER_BYTES_MAX {
            connection.receive().await?;
        }
        let error = connection.receive().await.expect_err("it is too long");
        assert_eq!(error.to_string(), "an answer of more than 64 KiB");
        Ok(())
    }
}
