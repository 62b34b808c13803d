//! Requests of the driver to the kernel, and the completions that answer them.
//!
//! The driver decides, an implementation of [`SocketIo`] performs: `ring.rs` with io_uring, `poller.rs`
//! with epoll. The driver is compiled once for each, so neither pays for the other.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

#[cfg(test)]
use super::faults::Faults;
use crate::message::ConnectionKey;
use crate::shard::{Batch, Chunk, freed_bytes};

/// The size of a receive buffer, in bytes.
pub(super) const BUFFER_BYTES: usize = if cfg!(test) { 64 } else { 8 * 1024 };

/// The most buffers of one gathered send (IOV_MAX of Linux). The rest goes out with the next send.
const RUNS_PER_SEND: usize = 1024;

/// The flags of every send: never wait, and never raise SIGPIPE.
pub(super) const SEND_FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// Performs the socket operations of one thread.
///
/// A connection has at most one receive, and at most one send or one wait for room, in progress. The
/// caller keeps a socket open until its operations have completed.
pub(super) trait SocketIo: Sized {
    /// Creates the operations of the calling thread. No other thread may use them.
    ///
    /// # Errors
    /// The kernel refuses; `runtime::check` explains its errors.
    fn new() -> io::Result<Self>;

    /// Starts to accept connections on a listener, with one completion for each.
    fn accept(&mut self, listener: usize, socket: BorrowedFd<'_>);

    /// Stops accepting on a listener.
    fn cancel_accept(&mut self, listener: usize);

    /// Starts to receive from a socket, with one completion for each buffer.
    fn receive(&mut self, key: ConnectionKey, socket: BorrowedFd<'_>);

    /// Receives once from a socket, at most `bytes` and one buffer, without waiting. The completion
    /// follows at once, with EAGAIN if nothing has arrived.
    fn receive_once(&mut self, key: ConnectionKey, socket: BorrowedFd<'_>, bytes: usize);

    /// Cancels a receive. Its last completion follows, or [`Completion::CancelMissed`].
    fn cancel_receive(&mut self, key: ConnectionKey);

    /// Sends the rest of `sending`, as much as fits into the socket at once.
    fn send(&mut self, key: ConnectionKey, socket: BorrowedFd<'_>, sending: Box<Sending>);

    /// Waits until the socket has room for bytes, or has failed.
    fn wait_writable(&mut self, key: ConnectionKey, socket: BorrowedFd<'_>);

    /// Waits until the eventfd is written. Completes once.
    fn wait_woken(&mut self, eventfd: BorrowedFd<'_>);

    /// Submits all operations, and waits up to `wait` for a completion.
    ///
    /// # Errors
    /// The kernel's interface has failed.
    fn submit(&mut self, wait: Duration) -> io::Result<()>;

    /// Whether there are completions.
    ///
    /// # Errors
    /// The kernel's interface has failed.
    fn has_completions(&mut self) -> io::Result<bool>;

    /// Takes in the completions that [`Self::next`] returns in this turn. Those that arrive later are
    /// for the next turn, so a turn ends whatever arrives.
    fn begin_turn(&mut self);

    /// Takes in the completions of operations that ended as they were started in this turn. Only epoll
    /// has them.
    fn take_ended(&mut self);

    /// Returns the next completion of this turn.
    fn next(&mut self) -> Option<Completion>;

    /// Returns the bytes of a buffer.
    fn buffer(&mut self, buffer: &Buffer) -> &mut [u8];

    /// Takes a buffer back.
    fn recycle(&mut self, buffer: Buffer);
}

/// The completion of an operation.
#[derive(Debug)]
pub(super) enum Completion {
    /// A listener accepted a connection or failed to. `listener` is its number; `is_over`: accepting
    /// has ended and must be started again to accept more.
    Accepted { listener: usize, result: io::Result<OwnedFd>, is_over: bool },
    /// Bytes arrived in a buffer ([`SocketIo::buffer`] returns them), or the connection has ended or
    /// failed.
    Received { key: ConnectionKey, result: io::Result<Option<Buffer>>, is_over: bool },
    /// A send has ended. The result is the number of bytes written.
    Sent { key: ConnectionKey, sending: Box<Sending>, result: io::Result<usize> },
    /// The socket has room for more bytes, or has failed.
    Writable { key: ConnectionKey },
    /// A cancellation found no receive. Either the receive has ended, or it was moving between two
    /// queues of the kernel and continues.
    CancelMissed { key: ConnectionKey },
    /// The eventfd was written.
    Woken,
}

/// A receive buffer that the kernel has filled. Return it with [`SocketIo::recycle`].
#[derive(Debug)]
pub(super) struct Buffer {
    id: u16,
    length: usize,
}

impl Buffer {
    pub(super) fn new(id: u16, length: usize) -> Self {
        Self { id, length }
    }

    pub(super) fn id(&self) -> u16 {
        self.id
    }

    /// The number of bytes that the kernel wrote.
    pub(super) fn length(&self) -> usize {
        self.length
    }
}

/// A batch that is being sent, with the iovec list that the kernel reads.
#[derive(Debug)]
pub(super) struct Sending {
    batch: Batch,
    // Written chunks, and written bytes of the next chunk. Chunks stay in the batch until all are
    // written, so that the batch is returned unchanged.
    written_chunks: usize,
    written: usize,
    runs: Vec<libc::iovec>,
    header: libc::msghdr,
}

impl Sending {
    /// Creates an empty sending.
    pub(super) fn new() -> Box<Self> {
        // SAFETY: msghdr is a C struct of integers and pointers, for which all zeroes is a value.
        let header = unsafe { std::mem::zeroed() };
        let batch = Batch::new();
        Box::new(Self { batch, written_chunks: 0, written: 0, runs: Vec::new(), header })
    }

    /// Takes a batch to send.
    pub(super) fn begin(&mut self, batch: Batch) {
        debug_assert!(self.batch.is_empty());
        (self.written_chunks, self.written) = (0, 0);
        self.batch = batch;
    }

    /// Notes that `bytes` were written. Returns whether the whole batch is written.
    pub(super) fn advance(&mut self, mut bytes: usize) -> bool {
        while let Some(next) = self.batch.get(self.written_chunks) {
            let left = next.bytes().len() - self.written;
            if bytes < left {
                self.written += bytes;
                return false;
            }
            bytes -= left;
            self.written = 0;
            self.written_chunks += 1;
        }
        true
    }

    /// Returns the memory that dropping the batch would free, in bytes.
    pub(super) fn freed_bytes(&self) -> usize {
        freed_bytes(&self.batch)
    }

    /// Takes the batch out, whether or not it is written completely.
    pub(super) fn give_back(&mut self) -> Batch {
        std::mem::take(&mut self.batch)
    }
    /// Returns the bytes of the next send. They stay in place for as long as the sending is neither
    /// changed nor dropped; it may be moved in its box.
    pub(super) fn outgoing(&mut self, #[cfg(test)] faults: &mut Faults) -> Outgoing<'_> {
        let next = self.written_chunks;
        if self.batch.len() - next == 1 {
            let bytes = &self.batch[next].bytes()[self.written..];
            #[cfg(test)]
            let bytes = &bytes[..faults.shortened(bytes.len())];
            return Outgoing::Run(bytes);
        }
        self.fill_runs();
        #[cfg(test)]
        faults.shorten_runs(&mut self.runs);
        self.header.msg_iov = self.runs.as_mut_ptr();
        self.header.msg_iovlen = self.runs.len();
        Outgoing::Runs(&self.header)
    }

    fn fill_runs(&mut self) {
        self.runs.clear();
        let mut skip = self.written;
        for chunk in self.batch.iter().skip(self.written_chunks).take(RUNS_PER_SEND) {
            let bytes = &Chunk::bytes(chunk)[skip..];
            skip = 0;
            let start = bytes.as_ptr().cast_mut().cast();
            self.runs.push(libc::iovec { iov_base: start, iov_len: bytes.len() });
        }
    }
}

/// The bytes of one send.
pub(super) enum Outgoing<'a> {
    /// One run of bytes.
    Run(&'a [u8]),
    /// Several runs, to which the header points.
    Runs(&'a libc::msghdr),
}

impl Outgoing<'_> {
    /// Sends as much as fits into the socket at once. Returns the number of bytes.
    pub(super) fn send(self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let fd = socket.as_raw_fd();
        // SAFETY: the bytes, and those that the header of `Sending` points to, are borrowed for as long
        // as the call takes, which reads them.
        let sent = unsafe {
            match self {
                Self::Run(bytes) => libc::send(fd, bytes.as_ptr().cast(), bytes.len(), SEND_FLAGS),
                Self::Runs(header) => libc::sendmsg(fd, header, SEND_FLAGS),
            }
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(chunks: &[&[u8]]) -> Batch {
        chunks.iter().map(|bytes| Chunk::Own(bytes.to_vec())).collect()
    }

    #[test]
    fn a_sending_goes_on_at_every_byte_that_it_stopped_at() {
        let whole = b"one two three";
        for stop in 0..=whole.len() {
            let mut sending = Sending::new();
            sending.begin(batch(&[b"one ", b"", b"two ", b"three"]));
            assert_eq!(sending.advance(stop), stop == whole.len());
            sending.fill_runs();
            let left: usize = sending.runs.iter().map(|run| run.iov_len).sum();
            assert_eq!(left, whole.len() - stop);
            assert!(sending.advance(left));
        }
    }
}
