//! A safe interface to one io_uring.
//!
//! Receives use buffers that the kernel picks from a provided-buffer ring. A send borrows the memory of
//! a [`Sending`] until its completion. The ring owns both while the kernel may access them.
#![allow(unsafe_code)]

mod buffers;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

#[cfg(test)]
use super::faults::Faults;
use super::socket_io::{Buffer, Completion, Outgoing, SEND_FLAGS, Sending, SocketIo};
use crate::message::ConnectionKey;
use buffers::{BUFFER_GROUP, Buffers};

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

/// The kind of a request. Stored in the highest byte of its user data, before the connection's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum RingRequest {
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
pub(super) struct Ring {
    // Declared first, so that it is dropped before the memory that the kernel uses.
    uring: IoUring,
    buffers: Buffers,
    // Sends in progress, indexed like their connections.
    sends: Vec<Option<Box<Sending>>>,
    wake_counter: Box<u64>,
    backlog: VecDeque<squeue::Entry>,
    // Completions of this turn that are not handled yet.
    completions: VecDeque<Completion>,
    #[cfg(test)]
    pub faults: Faults,
}

impl SocketIo for Ring {
    fn new() -> io::Result<Self> {
        let uring = build(SUBMISSIONS, COMPLETIONS)?;
        let buffers = Buffers::register(&uring)?;
        Ok(Self {
            uring,
            buffers,
            sends: Vec::new(),
            wake_counter: Box::new(0),
            backlog: VecDeque::new(),
            completions: VecDeque::new(),
            #[cfg(test)]
            faults: Faults::default(),
        })
    }

    fn accept(&mut self, listener: usize, socket: BorrowedFd<'_>) {
        let key = ConnectionKey { index: listener as u32, generation: 0 };
        let entry =
            opcode::AcceptMulti::new(Fd(socket.as_raw_fd())).flags(libc::SOCK_CLOEXEC).build();
        self.push(RingRequest::Accept, key, entry);
    }

    fn cancel_accept(&mut self, listener: usize) {
        let key = ConnectionKey { index: listener as u32, generation: 0 };
        self.cancel(RingRequest::Accept, key);
    }

    fn receive(&mut self, key: ConnectionKey, socket: BorrowedFd<'_>) {
        let entry = opcode::RecvMulti::new(Fd(socket.as_raw_fd()), BUFFER_GROUP).build();
        self.push(RingRequest::Receive, key, entry);
    }

    fn receive_once(&mut self, key: ConnectionKey, socket: BorrowedFd<'_>, bytes: usize) {
        let entry = buffers::receive_once(socket.as_raw_fd(), bytes);
        self.push(RingRequest::Receive, key, entry);
    }

    fn cancel_receive(&mut self, key: ConnectionKey) {
        self.cancel(RingRequest::Receive, key);
    }

    fn send(&mut self, key: ConnectionKey, socket: BorrowedFd<'_>, mut sending: Box<Sending>) {
        let fd = Fd(socket.as_raw_fd());
        let outgoing = sending.outgoing(
            #[cfg(test)]
            &mut self.faults,
        );
        let entry = match outgoing {
            Outgoing::Run(bytes) => {
                let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                opcode::Send::new(fd, bytes.as_ptr(), length).flags(SEND_FLAGS).build()
            }
            Outgoing::Runs(header) => {
                opcode::SendMsg::new(fd, header).flags(SEND_FLAGS as u32).build()
            }
        };
        let place = key.index as usize;
        if self.sends.len() <= place {
            self.sends.resize_with(place + 1, || None);
        }
        debug_assert!(self.sends[place].is_none(), "one send per connection");
        // The boxed value does not move, and stays here until its completion: see `completion`.
        self.sends[place] = Some(sending);
        self.push(RingRequest::Send, key, entry);
    }

    fn wait_writable(&mut self, key: ConnectionKey, socket: BorrowedFd<'_>) {
        let entry = opcode::PollAdd::new(Fd(socket.as_raw_fd()), libc::POLLOUT as u32).build();
        self.push(RingRequest::Writable, key, entry);
    }

    fn wait_woken(&mut self, eventfd: BorrowedFd<'_>) {
        let counter = (&raw mut *self.wake_counter).cast();
        let entry = opcode::Read::new(Fd(eventfd.as_raw_fd()), counter, 8).build();
        self.push(RingRequest::Wake, ConnectionKey { index: 0, generation: 0 }, entry);
    }

    fn submit(&mut self, wait: Duration) -> io::Result<()> {
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

    fn has_completions(&mut self) -> io::Result<bool> {
        if self.uring.submission().taskrun() {
            self.submit_queued()?;
        }
        Ok(!self.uring.completion().is_empty())
    }

    fn begin_turn(&mut self) {
        let Self { uring, sends, buffers, completions, .. } = self;
        let completed = uring.completion().map(|entry| Completed {
            user_data: entry.user_data(),
            result: entry.result(),
            flags: entry.flags(),
        });
        #[cfg(test)]
        let completed = self.faults.delayed(completed);
        completions.extend(completed.filter_map(|completed| {
            if let Some(id) = cqueue::buffer_select(completed.flags) {
                match completed.result {
                    ..0 => buffers.handle_failure(id),
                    _ => buffers.take(id),
                }
            }
            completion(completed, sends)
        }));
    }

    fn take_ended(&mut self) {}

    fn next(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }

    fn buffer(&mut self, buffer: &Buffer) -> &mut [u8] {
        self.buffers.bytes(buffer)
    }

    fn recycle(&mut self, buffer: Buffer) {
        self.buffers.provide(buffer.id());
    }
}

impl Ring {
    /// Creates and drops a ring of the smallest size with the same features as the ring of a shard, and finds
    /// out how this kernel treats the buffers of failed receives. Run before the first shard. The kernel
    /// releases the locked memory of a ring only some time after it is closed, so a probe of a shard's
    /// size could leave too little for the shards.
    ///
    /// # Errors
    /// The errors of [`SocketIo::new`].
    pub(super) fn probe() -> io::Result<()> {
        let mut uring = build(PROBE_SUBMISSIONS, PROBE_COMPLETIONS)?;
        Buffers::register(&uring)?.probe_failures(&mut uring)
    }

    fn cancel(&mut self, request: RingRequest, key: ConnectionKey) {
        let entry = opcode::AsyncCancel::new(user_data(request, key)).build();
        self.push(RingRequest::Cancel, key, entry);
    }

    fn push(&mut self, request: RingRequest, key: ConnectionKey, entry: squeue::Entry) {
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

    /// Whether no buffer is handed out and no injected fault is left.
    #[cfg(test)]
    pub fn is_settled(&self) -> bool {
        self.buffers.are_returned() && self.faults.are_settled()
    }
}

fn is_passing(error: &io::Error) -> bool {
    let codes = [libc::ETIME, libc::EINTR, libc::EBUSY, libc::EAGAIN];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// The place of the [`RingRequest`] in an entry's user data, above a [`ConnectionKey`].
const REQUEST_SHIFT: u32 = 32 + ConnectionKey::GENERATION_BITS;

// A request has 8 bits.
const _: () = assert!(REQUEST_SHIFT + u8::BITS == u64::BITS);

pub(super) fn user_data(request: RingRequest, key: ConnectionKey) -> u64 {
    (request as u64) << REQUEST_SHIFT | u64::from(key.generation) << 32 | u64::from(key.index)
}

/// An entry of the completion queue.
#[derive(Debug)]
pub(super) struct Completed {
    pub(super) user_data: u64,
    pub(super) result: i32,
    pub(super) flags: u32,
}

/// Converts an entry to a completion. Returns `None` for entries that need no handling.
fn completion(entry: Completed, sends: &mut [Option<Box<Sending>>]) -> Option<Completion> {
    const ACCEPT: u8 = RingRequest::Accept as u8;
    const RECEIVE: u8 = RingRequest::Receive as u8;
    const SEND: u8 = RingRequest::Send as u8;
    const WRITABLE: u8 = RingRequest::Writable as u8;
    const CANCEL: u8 = RingRequest::Cancel as u8;
    const WAKE: u8 = RingRequest::Wake as u8;
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
