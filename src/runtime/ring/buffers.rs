//! The receive buffers of one ring, and the provided-buffer ring through which the kernel gets them.
//!
//! A buffer belongs either to the kernel (it is in the provided-buffer ring) or to the process. A buffer
//! that was in the ring twice would hold bytes of two connections. So [`Buffers`] tracks the owner of each
//! one, and panics when it would have two.
//!
//! A receive that fails may still name a buffer in its completion. Kernels differ in what that means:
//!
//! - up to 6.11: the request has consumed the buffer, as a successful one does;
//! - 6.12 to 6.17: the buffer is still in the ring (`io_kbuf_commit` ignores a negative length);
//! - 6.18: the completion names no buffer.
//!
//! Distributions move such patches to other versions, so [`Buffers::probe_failures`] tries it out, once for
//! the process.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::io::{self, Write};
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};

use crate::runtime::socket_io::{BUFFER_BYTES, Buffer};

/// The number of receive buffers of a shard, shared by all its connections. When all are in use,
/// receiving waits until one is returned. They take 4 MiB. Tests use few, so that they run out.
pub(super) const BUFFERS: u16 = if cfg!(test) { 4 } else { 512 };

/// The number of the buffer group. A ring has one.
pub(super) const BUFFER_GROUP: u16 = 0;

/// The receive buffers that the kernel picks from. Their memory is never freed, because a request that
/// is cancelled late may still write to it. A process has one set per shard for its whole life.
pub(super) struct Buffers {
    ring: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    tail: u16,
    // Indexed by the buffer's id.
    owners: [Owner; BUFFERS as usize],
    pub(super) failures: Failures,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Kernel,
    Process,
}

/// How failed receives of this kernel treat their buffer. Until that is known, [`Failures::Keep`] is assumed: a buffer may
/// be lost, but never shared.
static FAILURES: OnceLock<Failures> = OnceLock::new();

/// Whether a receive that fails consumes the buffer that its completion names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failures {
    Consume,
    Keep,
}

impl Buffers {
    /// Allocates the buffers and gives them to the kernel.
    pub(super) fn register(uring: &IoUring) -> io::Result<Self> {
        let page = 4096;
        let ring = zeroed(usize::from(BUFFERS) * size_of::<BufRingEntry>(), page).cast();
        let memory = zeroed(usize::from(BUFFERS) * BUFFER_BYTES, page);
        // SAFETY: the ring's memory is page-aligned, has room for so many entries and is never
        // freed.
        unsafe {
            uring.submitter().register_buf_ring_with_flags(
                ring.as_ptr() as u64,
                BUFFERS,
                BUFFER_GROUP,
                0,
            )?;
        }
        let owners = [Owner::Process; BUFFERS as usize];
        let failures = FAILURES.get().copied().unwrap_or(Failures::Keep);
        let mut buffers = Self { ring, memory, tail: 0, owners, failures };
        for id in 0..BUFFERS {
            buffers.provide(id);
        }
        Ok(buffers)
    }

    /// Finds out what failed receives of this kernel do with their buffer, for all buffers that are
    /// registered later. The ring must be idle.
    pub(super) fn probe_failures(&self, uring: &mut IoUring) -> io::Result<()> {
        let (mut peer, socket) = UnixStream::pair()?;
        let named = receive_now(uring, socket.as_raw_fd())?;
        peer.write_all(b"x")?;
        let received = receive_now(uring, socket.as_raw_fd())?;
        // The next receive takes the same buffer if it is still in the ring.
        let is_kept = named.is_some() && named == received;
        let _ = FAILURES.set(if is_kept { Failures::Keep } else { Failures::Consume });
        Ok(())
    }

    /// Notes that a completion has handed over a buffer.
    ///
    /// # Panics
    /// The buffer belongs to the process: it was in the ring twice.
    pub(super) fn take(&mut self, id: u16) {
        let owner = mem::replace(&mut self.owners[usize::from(id)], Owner::Process);
        assert!(owner == Owner::Kernel, "the kernel handed over buffer {id} twice");
    }

    /// Handles the buffer that the completion of a failed receive names.
    pub(super) fn handle_failure(&mut self, id: u16) {
        if self.failures == Failures::Consume {
            self.take(id);
            self.provide(id);
        }
    }

    /// Returns a buffer to the kernel.
    ///
    /// # Panics
    /// The buffer belongs to the kernel.
    pub(super) fn provide(&mut self, id: u16) {
        let owner = mem::replace(&mut self.owners[usize::from(id)], Owner::Kernel);
        assert!(owner == Owner::Process, "buffer {id} went back twice");
        let place = usize::from(self.tail & (BUFFERS - 1));
        // SAFETY: place < BUFFERS and id < BUFFERS, so both pointers are inside their allocations.
        // The kernel reads entries below the tail only, so this one is ours to write. Only our
        // thread writes the tail; the kernel reads it after the entry, hence the release.
        unsafe {
            let start = self.memory.as_ptr().add(usize::from(id) * BUFFER_BYTES);
            let entry = &mut *self.ring.as_ptr().add(place);
            entry.set_addr(start as u64);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            let tail = BufRingEntry::tail(self.ring.as_ptr()).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }

    /// Whether the kernel owns all buffers.
    #[cfg(test)]
    pub(super) fn are_returned(&self) -> bool {
        self.owners.iter().all(|&owner| owner == Owner::Kernel)
    }

    /// Returns the peer's bytes in a buffer.
    pub(super) fn bytes(&mut self, buffer: &Buffer) -> &mut [u8] {
        debug_assert!(buffer.id() < BUFFERS && buffer.length() <= BUFFER_BYTES);
        // SAFETY: the kernel filled this buffer and gave it to us: it is ours until it is provided
        // again, which takes the `Buffer` by value. It lies inside the allocation.
        unsafe {
            let start = self.memory.as_ptr().add(usize::from(buffer.id()) * BUFFER_BYTES);
            std::slice::from_raw_parts_mut(start, buffer.length())
        }
    }
}

/// Receives from a socket without waiting. Returns the buffer that the completion names, if any.
fn receive_now(uring: &mut IoUring, socket: RawFd) -> io::Result<Option<u16>> {
    let entry = receive_once(socket, BUFFER_BYTES);
    // SAFETY: the request uses a registered buffer, whose memory is never freed. It ends before this
    // function returns, so the socket outlives it.
    unsafe { uring.submission().push(&entry) }.map_err(io::Error::other)?;
    loop {
        match uring.submit_and_wait(1) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => {
                result?;
                let completion = uring.completion().next();
                return Ok(completion.and_then(|entry| cqueue::buffer_select(entry.flags())));
            }
        }
    }
}

/// Builds a receive of at most `bytes` and one buffer, which does not wait.
pub(super) fn receive_once(socket: RawFd, bytes: usize) -> squeue::Entry {
    opcode::Recv::new(Fd(socket), std::ptr::null_mut(), bytes as u32)
        .buf_group(BUFFER_GROUP)
        .flags(libc::MSG_DONTWAIT)
        .build()
        .flags(squeue::Flags::BUFFER_SELECT)
}

fn zeroed(bytes: usize, align: usize) -> NonNull<u8> {
    let layout = Layout::from_size_align(bytes, align).expect("a size far from the limits");
    // SAFETY: the size is not zero.
    let pointer = unsafe { alloc_zeroed(layout) };
    NonNull::new(pointer).unwrap_or_else(|| handle_alloc_error(layout))
}
