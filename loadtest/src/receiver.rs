//! A client that only reads text messages, at as little cost as can be: thousands of them are not
//! to take more CPU than the server that feeds them.
//!
//! A connection owns no buffer: each thread has one into which all of its connections read, and
//! what is left of a message that has not come whole is kept until the rest is there.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use anyhow::{Result, ensure};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use crate::client::Socket;
use crate::raw::{self, Frame};

/// Longest message that can be read, with its head.
const SCRATCH_BYTES: usize = 2 * 1024 * 1024;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH_BYTES]);
}

/// The reading end of a WebSocket.
pub struct Receiver {
    stream: TcpStream,
    /// The beginning of a frame that has not come whole.
    tail: Vec<u8>,
}

impl Receiver {
    /// Goes on reading where `socket` stands, which has no message unread.
    pub fn of(socket: Socket) -> Self {
        Self { stream: socket.into_inner().into_inner(), tail: Vec::new() }
    }

    /// Waits until something comes and shows `take` each message that is whole; false once the
    /// connection has ended.
    ///
    /// # Errors
    /// A message is not text, or those of `take`.
    pub async fn read(&mut self, mut take: impl FnMut(&str) -> Result<()>) -> Result<bool> {
        poll_fn(|context| self.poll_read(context, &mut take)).await
    }

    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        take: &mut impl FnMut(&str) -> Result<()>,
    ) -> Poll<Result<bool>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let kept = self.tail.len();
            let mut buffer = ReadBuf::new(&mut scratch[kept..]);
            let read = ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer));
            let count = buffer.filled().len();
            if read.is_err() || count == 0 {
                return Poll::Ready(Ok(false));
            }
            scratch[..kept].copy_from_slice(&self.tail);
            Poll::Ready(self.take_frames(&scratch[..kept + count], take))
        })
    }

    fn take_frames(
        &mut self,
        mut bytes: &[u8],
        take: &mut impl FnMut(&str) -> Result<()>,
    ) -> Result<bool> {
        while let Some((Frame { first, payload }, rest)) = raw::take_frame(bytes) {
            match first {
                raw::TEXT => take(str::from_utf8(payload)?)?,
                // If there is no room for it, the server hears of us by the next one.
                raw::PING => drop(self.stream.try_write(&raw::frame(raw::PONG, payload))),
                raw::CLOSE => return Ok(false),
                _ => ensure!(first == raw::PONG, "a frame that begins with {first:#x}"),
            }
            bytes = rest;
        }
        ensure!(bytes.len() < SCRATCH_BYTES, "a message of more than 2 MiB");
        self.tail.clear();
        self.tail.extend_from_slice(bytes);
        Ok(true)
    }
}
