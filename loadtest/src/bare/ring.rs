//! One io_uring with a ring of receive buffers. The only unsafe code of the server.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};

/// Entries of the submission queue, enough for the sends of a fan-out to a thousand.
const SUBMISSIONS: u32 = 4096;

/// Entries of the completion queue. The kernel keeps more in an overflow list.
const COMPLETIONS: u32 = 32 * 1024;

/// Receive buffers, a power of two, and the bytes of each.
const BUFFERS: u16 = 512;
const BUFFER_BYTES: usize = 8192;

const PAGE: usize = 4096;
const BUFFER_GROUP: u16 = 0;

/// The kind of a request, in the upper half of its user data. The lower half is the connection's index.
const ACCEPT: u32 = 0;
const RECEIVE: u32 = 1;
const SEND: u32 = 2;

/// A completed request.
pub enum Completion {
    Accepted(OwnedFd),
    /// A connection has received bytes, at most [`BUFFER_BYTES`]. `is_over`: the receive has to be started again.
    Received {
        index: u32,
        buffer: Buffer,
        is_over: bool,
    },
    /// The kernel had no free buffer: the receive has to be started again.
    Starved(u32),
    /// A receive has ended, because the peer has closed the connection or it is broken.
    Ended(u32),
    /// A send has written this many bytes. `None`: the connection is broken.
    Sent(u32, Option<usize>),
}

/// A receive buffer that belongs to the process until [`Ring::give_back`].
pub struct Buffer {
    id: u16,
    length: usize,
}

/// A ring for one thread.
pub struct Ring {
    // Declared first, so that it is dropped before the memory that the kernel uses.
    uring: IoUring,
    // The data of each connection's send in progress.
    sends: Vec<Option<Arc<[u8]>>>,
    // Both are never freed, because a receive that is cancelled late may still write to them.
    entries: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    tail: u16,
}

impl Ring {
    pub fn new() -> io::Result<Self> {
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        let entries = zeroed(usize::from(BUFFERS) * size_of::<BufRingEntry>()).cast();
        let memory = zeroed(usize::from(BUFFERS) * BUFFER_BYTES);
        // SAFETY: the memory is page-aligned, has room for so many entries, and is never freed.
        unsafe {
            uring.submitter().register_buf_ring_with_flags(
                entries.as_ptr() as u64,
                BUFFERS,
                BUFFER_GROUP,
                0,
            )?;
        }
        let mut ring = Self { uring, sends: Vec::new(), entries, memory, tail: 0 };
        (0..BUFFERS).for_each(|id| ring.provide(id));
        Ok(ring)
    }

    pub fn accept(&mut self, listener: &TcpListener) -> io::Result<()> {
        let entry = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).build();
        self.push(ACCEPT, 0, entry)
    }

    /// Starts to receive. The socket stays open until [`Completion::Ended`].
    pub fn receive(&mut self, index: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        let entry = opcode::RecvMulti::new(Fd(socket.as_raw_fd()), BUFFER_GROUP).build();
        self.push(RECEIVE, index, entry)
    }

    /// Sends `data` from `start` on. The socket stays open until [`Completion::Sent`], and has no other send
    /// until then.
    pub fn send(
        &mut self,
        index: u32,
        socket: BorrowedFd<'_>,
        data: Arc<[u8]>,
        start: usize,
    ) -> io::Result<()> {
        let rest = &data[start..];
        let entry = opcode::Send::new(Fd(socket.as_raw_fd()), rest.as_ptr(), rest.len() as u32)
            .flags(nix::libc::MSG_NOSIGNAL)
            .build();
        let place = index as usize;
        if self.sends.len() <= place {
            self.sends.resize(place + 1, None);
        }
        assert!(self.sends[place].is_none(), "one send per connection");
        self.sends[place] = Some(data);
        self.push(SEND, index, entry)
    }

    /// Submits all requests and waits for a completion. Moves the completions to `completed`.
    pub fn turn(&mut self, completed: &mut Vec<Completion>) -> io::Result<()> {
        match self.uring.submit_and_wait(1) {
            Err(error) if !is_passing(&error) => return Err(error),
            _ => {}
        }
        let Self { uring, sends, .. } = self;
        for entry in uring.completion() {
            completed.extend(completion(&entry, sends));
        }
        Ok(())
    }

    pub fn bytes(&mut self, buffer: &Buffer) -> &mut [u8] {
        // SAFETY: the kernel has filled this buffer and handed it over. It is inside the allocation.
        unsafe {
            let start = self.memory.as_ptr().add(usize::from(buffer.id) * BUFFER_BYTES);
            std::slice::from_raw_parts_mut(start, buffer.length)
        }
    }

    pub fn give_back(&mut self, buffer: Buffer) {
        self.provide(buffer.id);
    }

    fn push(&mut self, kind: u32, index: u32, entry: squeue::Entry) -> io::Result<()> {
        let entry = entry.user_data(u64::from(kind) << 32 | u64::from(index));
        loop {
            // SAFETY: what the entry points to lives until its completion: the buffers for ever, the data of
            // a send in `sends`. Sockets stay open, see `receive` and `send`.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            match self.uring.submit() {
                Err(error) if !is_passing(&error) => return Err(error),
                _ => {}
            }
        }
    }

    fn provide(&mut self, id: u16) {
        let place = usize::from(self.tail & (BUFFERS - 1));
        // SAFETY: `place` and `id` are below BUFFERS, so both pointers are inside their allocations. The kernel
        // reads entries below the tail only, and reads the tail after them.
        unsafe {
            let entry = &mut *self.entries.as_ptr().add(place);
            entry.set_addr(self.memory.as_ptr().add(usize::from(id) * BUFFER_BYTES) as u64);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            let tail = BufRingEntry::tail(self.entries.as_ptr()).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }
}

fn completion(entry: &cqueue::Entry, sends: &mut [Option<Arc<[u8]>>]) -> Option<Completion> {
    let (kind, index) = ((entry.user_data() >> 32) as u32, entry.user_data() as u32);
    Some(match (kind, entry.result()) {
        (ACCEPT, fd @ 0..) => {
            // SAFETY: the kernel made this descriptor for us, and nobody else knows it.
            Completion::Accepted(unsafe { OwnedFd::from_raw_fd(fd) })
        }
        // The load test opens no more connections than there are descriptors.
        (ACCEPT, _) => return None,
        (RECEIVE, length @ 1..) => {
            let id = cqueue::buffer_select(entry.flags()).expect("a receive has a buffer");
            let buffer = Buffer { id, length: length as usize };
            Completion::Received { index, buffer, is_over: !cqueue::more(entry.flags()) }
        }
        (RECEIVE, error) if error == -nix::libc::ENOBUFS => Completion::Starved(index),
        (RECEIVE, _) => Completion::Ended(index),
        (_, result) => {
            sends[index as usize] = None;
            Completion::Sent(index, usize::try_from(result).ok())
        }
    })
}

fn is_passing(error: &io::Error) -> bool {
    let codes = [nix::libc::EINTR, nix::libc::EBUSY, nix::libc::EAGAIN];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

fn zeroed(bytes: usize) -> NonNull<u8> {
    let layout = Layout::from_size_align(bytes, PAGE).expect("a size far from the limits");
    // SAFETY: the size is not zero.
    let pointer = unsafe { alloc_zeroed(layout) };
    NonNull::new(pointer).unwrap_or_else(|| handle_alloc_error(layout))
}
