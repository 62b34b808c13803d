//! A safe interface to one io_uring.
//!
//! Receives use buffers that the kernel picks from a provided-buffer ring. A send borrows the memory of
//! a [`Sending`] until its completion. The ring owns both while the kernel may access them.
#![allow(unsafe_code)]

mod buffers;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use crate::message::ConnectionKey;
use crate::shard::{Batch, Chunk, freed_bytes};
pub use buffers::{BUFFER_BYTES, Buffer};
use buffers::{BUFFER_GROUP, Buffers};
#[cfg(test)]
pub use faults::{Faults, Random};

/// The size of the submission queue. More requests are submitted in parts.
const SUBMISSIONS: u32 = if cfg!(test) { 8 } else { 1024 };

/// The size of the completion queue. The kernel keeps further completions in an overflow list.
const COMPLETIONS: u32 = if cfg!(test) { 16 } else { 16 * 1024 };

/// The size of the submission queue of [`Ring::probe`].
const PROBE_SUBMISSIONS: u32 = 1;

/// The size of the completion queue of [`Ring::probe`].
const PROBE_COMPLETIONS: u32 = 2;

/// Memory of a shard's ring that the kernel counts as locked, in pages: 64 bytes for each submission; 16
/// bytes for each completion, plus the submission indices and headers; 16 bytes for each buffer. Counted
/// with Linux 6.18; older kernels count less.
pub(super) const LOCKED_PAGES: u64 = 16 + 66 + 2;

/// Memory of the ring of [`Ring::probe`] that the kernel counts as locked, in pages.
pub(super) const PROBE_LOCKED_PAGES: u64 = 1 + 1 + 2;

/// The most buffers of one gathered send (IOV_MAX of Linux). The rest goes out with the next send.
const RUNS_PER_SEND: usize = 1024;

/// The completion of a request.
#[derive(Debug)]
pub enum Completion {
    /// A listener accepted a connection or failed to. `listener` is its number; `is_over`: the request
    /// has ended and must be repeated to accept more.
    Accepted { listener: usize, result: io::Result<OwnedFd>, is_over: bool },
    /// Bytes arrived in a buffer ([`Ring::buffer`] returns them), or the connection has ended or failed.
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

/// A batch that is being sent, with the iovec list that the kernel reads.
#[derive(Debug)]
pub struct Sending {
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
    pub fn new() -> Box<Self> {
        // SAFETY: msghdr is a C struct of integers and pointers, for which all zeroes is a value.
        let header = unsafe { std::mem::zeroed() };
        let batch = Batch::new();
        Box::new(Self { batch, written_chunks: 0, written: 0, runs: Vec::new(), header })
    }

    /// Takes a batch to send.
    pub fn begin(&mut self, batch: Batch) {
        debug_assert!(self.batch.is_empty());
        (self.written_chunks, self.written) = (0, 0);
        self.batch = batch;
    }

    /// Notes that `bytes` were written. Returns whether the whole batch is written.
    pub fn advance(&mut self, mut bytes: usize) -> bool {
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
    pub fn freed_bytes(&self) -> usize {
        freed_bytes(&self.batch)
    }

    /// Takes the batch out, whether or not it is written completely.
    pub fn give_back(&mut self) -> Batch {
        std::mem::take(&mut self.batch)
    }
}

/// The kind of a request. Stored in the highest byte of its user data, before the connection's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Request {
    Accept,
    Receive,
    Send,
    Writable,
    Cancel,
    Wake,
}

fn build(submissions: u32, completions: u32) -> io::Result<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_cqsize(completions)
        .build(submissions)
}

/// A ring for one thread.
pub struct Ring {
    // Declared first, so that it is dropped before the memory that the kernel uses.
    uring: IoUring,
    buffers: Buffers,
    // Sends in progress, indexed like their connections.
    sends: Vec<Option<Box<Sending>>>,
    wake_counter: Box<u64>,
    backlog: VecDeque<squeue::Entry>,
    #[cfg(test)]
    pub faults: Faults,
}

impl Ring {
    /// Creates a ring for the calling thread. No other thread may use it.
    ///
    /// # Errors
    /// The kernel refuses the ring; `runtime::check` explains its errors.
    pub fn new() -> io::Result<Self> {
        let mut uring = build(SUBMISSIONS, COMPLETIONS)?;
        let mut buffers = Buffers::register(&uring)?;
        buffers.probe_failures(&mut uring)?;
        Ok(Self {
            uring,
            buffers,
            sends: Vec::new(),
            wake_counter: Box::new(0),
            backlog: VecDeque::new(),
            #[cfg(test)]
            faults: Faults::default(),
        })
    }

    /// Creates and drops a ring of the smallest size with the same features as [`Self::new`]. The kernel
    /// releases the locked memory of a ring only some time after it is closed, so a probe of a shard's
    /// size could leave too little for the shards.
    ///
    /// # Errors
    /// The errors of [`Self::new`].
    pub fn probe() -> io::Result<()> {
        let uring = build(PROBE_SUBMISSIONS, PROBE_COMPLETIONS)?;
        Buffers::register(&uring).map(drop)
    }

    /// Starts to accept connections on a listener, with one completion for each.
    pub fn accept(&mut self, listener: usize, socket: BorrowedFd<'_>) {
        let key = ConnectionKey { index: listener as u32, generation: 0 };
        let entry =
            opcode::AcceptMulti::new(Fd(socket.as_raw_fd())).flags(libc::SOCK_CLOEXEC).build();
        self.push(Request::Accept, key, entry);
    }

    /// Stops accepting on a listener.
    pub fn cancel_accept(&mut self, listener: usize) {
        let key = ConnectionKey { index: listener as u32, generation: 0 };
        self.cancel(Request::Accept, key);
    }

    /// Starts to receive from a socket, with one completion for each buffer.
    pub fn receive(&mut self, key: ConnectionKey, socket: BorrowedFd<'_>) {
        let entry = opcode::RecvMulti::new(Fd(socket.as_raw_fd()), BUFFER_GROUP).build();
        self.push(Request::Receive, key, entry);
    }

    /// Receives once from a socket, at most `bytes` and one buffer, without waiting. The completion
    /// follows at once, with EAGAIN if nothing has arrived.
    pub fn receive_once(&mut self, key: ConnectionKey, socket: BorrowedFd<'_>, bytes: usize) {
        let entry = buffers::receive_once(socket.as_raw_fd(), bytes);
        self.push(Request::Receive, key, entry);
    }

    /// Cancels a receive. Its last completion follows, or [`Completion::CancelMissed`].
    pub fn cancel_receive(&mut self, key: ConnectionKey) {
        self.cancel(Request::Receive, key);
    }

    fn cancel(&mut self, request: Request, key: ConnectionKey) {
        let entry = opcode::AsyncCancel::new(user_data(request, key)).build();
        self.push(Request::Cancel, key, entry);
    }

    /// Sends the rest of `sending`, as much as fits into the socket at once. A connection may have only
    /// one send in progress.
    pub fn send(&mut self, key: ConnectionKey, socket: BorrowedFd<'_>, mut sending: Box<Sending>) {
        let fd = Fd(socket.as_raw_fd());
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let next = sending.written_chunks;
        let entry = match sending.batch.len() - next {
            1 => {
                let bytes = &sending.batch[next].bytes()[sending.written..];
                #[cfg(test)]
                let bytes = &bytes[..self.faults.shortened(bytes.len())];
                let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                opcode::Send::new(fd, bytes.as_ptr(), length).flags(flags).build()
            }
            _ => {
                sending.fill_runs();
                #[cfg(test)]
                self.faults.shorten_runs(&mut sending.runs);
                sending.header.msg_iov = sending.runs.as_mut_ptr();
                sending.header.msg_iovlen = sending.runs.len();
                opcode::SendMsg::new(fd, &raw const sending.header).flags(flags as u32).build()
            }
        };
        let place = key.index as usize;
        if self.sends.len() <= place {
            self.sends.resize_with(place + 1, || None);
        }
        debug_assert!(self.sends[place].is_none(), "one send per connection");
        // The boxed value does not move, and stays here until its completion: see `completions`.
        self.sends[place] = Some(sending);
        self.push(Request::Send, key, entry);
    }

    /// Waits until the socket has room for bytes, or has failed.
    pub fn wait_writable(&mut self, key: ConnectionKey, socket: BorrowedFd<'_>) {
        let entry = opcode::PollAdd::new(Fd(socket.as_raw_fd()), libc::POLLOUT as u32).build();
        self.push(Request::Writable, key, entry);
    }

    /// Waits until the eventfd is written. Completes once.
    pub fn wait_woken(&mut self, eventfd: BorrowedFd<'_>) {
        let counter = (&raw mut *self.wake_counter).cast();
        let entry = opcode::Read::new(Fd(eventfd.as_raw_fd()), counter, 8).build();
        self.push(Request::Wake, ConnectionKey { index: 0, generation: 0 }, entry);
    }

    fn push(&mut self, request: Request, key: ConnectionKey, entry: squeue::Entry) {
        #[cfg(test)]
        let entry = self.faults.replaced(request, key, entry);
        let entry = entry.user_data(user_data(request, key));
        // SAFETY: what an entry points to is owned by this ring until its completion: `buffers` and
        // `wake_counter` for as long as the ring lives, a `Sending` in `sends`. Descriptors are
        // borrowed from sockets that the driver keeps until all their requests are complete.
        if self.backlog.is_empty() && unsafe { self.uring.submission().push(&entry) }.is_ok() {
            return;
        }
        self.backlog.push_back(entry);
    }

    /// Submits requests that did not fit into the submission queue. Each round empties the queue, unless
    /// the kernel is out of memory; then the next turn continues.
    fn submit_backlog(&mut self) -> io::Result<()> {
        for _ in 0..self.backlog.len().div_ceil(SUBMISSIONS as usize) {
            self.submit_queued()?;
            let mut queue = self.uring.submission();
            while let Some(entry) = self.backlog.pop_front() {
                // SAFETY: as in `push`.
                if unsafe { queue.push(&entry) }.is_err() {
                    self.backlog.push_front(entry);
                    break;
                }
            }
        }
        Ok(())
    }

    fn submit_queued(&mut self) -> io::Result<()> {
        match self.uring.submit() {
            Ok(_) => Ok(()),
            // Completions must be handled first, or the call was interrupted. The next call continues.
            Err(error) if is_passing(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Submits all requests, and waits up to `wait` for a completion.
    ///
    /// # Errors
    /// The ring has failed.
    pub fn submit(&mut self, wait: Duration) -> io::Result<()> {
        self.submit_backlog()?;
        #[cfg(test)]
        let wait = self.faults.wait(wait);
        if wait.is_zero() {
            return self.submit_queued();
        }
        let time = Timespec::from(wait);
        let arguments = SubmitArgs::new().timespec(&time);
        match self.uring.submitter().submit_with_args(1, &arguments) {
            Ok(_) => Ok(()),
            Err(error) if is_passing(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether there are completions. Enters the kernel only if it has pending work.
    ///
    /// # Errors
    /// The ring has failed.
    pub fn has_completions(&mut self) -> io::Result<bool> {
        if self.uring.submission().taskrun() {
            self.submit_queued()?;
        }
        Ok(!self.uring.completion().is_empty())
    }

    /// Appends all completions to `out`.
    pub fn completions(&mut self, out: &mut Vec<Completion>) {
        let Self { uring, sends, buffers, .. } = self;
        let completed = uring.completion().map(|entry| Completed {
            user_data: entry.user_data(),
            result: entry.result(),
            flags: entry.flags(),
        });
        #[cfg(test)]
        let completed = self.faults.delayed(completed);
        out.extend(completed.filter_map(|completed| {
            if let Some(id) = cqueue::buffer_select(completed.flags) {
                match completed.result {
                    ..0 => buffers.handle_failure(id),
                    _ => buffers.take(id),
                }
            }
            completion(completed, sends)
        }));
    }

    /// Returns the bytes of a buffer.
    pub fn buffer(&mut self, buffer: &Buffer) -> &mut [u8] {
        self.buffers.bytes(buffer)
    }

    /// Whether no buffer is handed out and no injected fault is left.
    #[cfg(test)]
    pub fn is_settled(&self) -> bool {
        self.buffers.are_returned() && self.faults.are_settled()
    }

    /// Returns a buffer to the kernel.
    pub fn recycle(&mut self, buffer: Buffer) {
        self.buffers.provide(buffer.id());
    }
}

fn is_passing(error: &io::Error) -> bool {
    let codes = [libc::ETIME, libc::EINTR, libc::EBUSY, libc::EAGAIN];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// The place of the [`Request`] in an entry's user data, above a [`ConnectionKey`].
const REQUEST_SHIFT: u32 = 32 + ConnectionKey::GENERATION_BITS;

// A request has 8 bits.
const _: () = assert!(REQUEST_SHIFT + u8::BITS == u64::BITS);

fn user_data(request: Request, key: ConnectionKey) -> u64 {
    (request as u64) << REQUEST_SHIFT | u64::from(key.generation) << 32 | u64::from(key.index)
}

/// An entry of the completion queue.
#[derive(Debug)]
struct Completed {
    user_data: u64,
    result: i32,
    flags: u32,
}

/// Converts an entry to a completion. Returns `None` for entries that need no handling.
fn completion(entry: Completed, sends: &mut [Option<Box<Sending>>]) -> Option<Completion> {
    const ACCEPT: u8 = Request::Accept as u8;
    const RECEIVE: u8 = Request::Receive as u8;
    const SEND: u8 = Request::Send as u8;
    const WRITABLE: u8 = Request::Writable as u8;
    const CANCEL: u8 = Request::Cancel as u8;
    const WAKE: u8 = Request::Wake as u8;
    let data = entry.user_data;
    let generation = (data >> 32) as u32 & ConnectionKey::GENERATION_MAX;
    let key = ConnectionKey { index: data as u32, generation };
    let result = match entry.result {
        code @ ..0 => Err(io::Error::from_raw_os_error(-code)),
        count => Ok(count),
    };
    let is_over = !cqueue::more(entry.flags);
    Some(match (data >> REQUEST_SHIFT) as u8 {
        ACCEPT => {
            // SAFETY: the kernel made this descriptor for us, and nobody else knows it.
            let result = result.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
            Completion::Accepted { listener: key.index as usize, result, is_over }
        }
        RECEIVE => {
            let buffer = cqueue::buffer_select(entry.flags);
            let result = result.map(|length| buffer.map(|id| Buffer::new(id, length as usize)));
            Completion::Received { key, result, is_over }
        }
        SEND => {
            let sending = sends.get_mut(key.index as usize)?.take()?;
            Completion::Sent { key, sending, result: result.map(|count| count as usize) }
        }
        WRITABLE => Completion::Writable { key },
        CANCEL if result.is_err() => Completion::CancelMissed { key },
        WAKE => Completion::Woken,
        _ => return None,
    })
}

impl Sending {
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
