//! The receive buffers of one ring, and the provided-buffer ring through which the kernel gets them.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

/// The number of receive buffers of a shard, shared by all its connections. When all are in use,
/// receiving waits until one is returned. Tests use few, so that they run out.
pub(super) const BUFFERS: u16 = if cfg!(test) { 4 } else { 512 };

/// The size of a receive buffer, in bytes: 4 MiB for all buffers of a shard.
pub const BUFFER_BYTES: usize = if cfg!(test) { 64 } else { 8 * 1024 };

/// The number of the buffer group. A ring has one.
pub(super) const BUFFER_GROUP: u16 = 0;

/// A receive buffer that the kernel has filled. Return it with `Ring::recycle`.
#[derive(Debug)]
pub struct Buffer {
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

    /// Whether the peer's bytes take all of it: more may wait in the socket.
    pub fn is_full(&self) -> bool {
        self.length == BUFFER_BYTES
    }

    /// The peer's bytes in it.
    pub fn length(&self) -> usize {
        self.length
    }
}

/// The receive buffers that the kernel picks from. Their memory is never freed, because a request that
/// is cancelled late may still write to it. A process has one set per shard for its whole life.
pub(super) struct Buffers {
    ring: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    tail: u16,
}

impl Buffers {
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
        let mut buffers = Self { ring, memory, tail: 0 };
        for id in 0..BUFFERS {
            buffers.provide(id);
        }
        Ok(buffers)
    }

    pub(super) fn provide(&mut self, id: u16) {
        debug_assert!(id < BUFFERS);
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

    pub(super) fn bytes(&mut self, buffer: &Buffer) -> &mut [u8] {
        debug_assert!(buffer.id < BUFFERS && buffer.length <= BUFFER_BYTES);
        // SAFETY: the kernel filled this buffer and gave it to us: it is ours until it is provided
        // again, which takes the `Buffer` by value. It lies inside the allocation.
        unsafe {
            let start = self.memory.as_ptr().add(usize::from(buffer.id) * BUFFER_BYTES);
            std::slice::from_raw_parts_mut(start, buffer.length)
        }
    }
}

fn zeroed(bytes: usize, align: usize) -> NonNull<u8> {
    let layout = Layout::from_size_align(bytes, align).expect("a size far from the limits");
    // SAFETY: the size is not zero.
    let pointer = unsafe { alloc_zeroed(layout) };
    NonNull::new(pointer).unwrap_or_else(|| handle_alloc_error(layout))
}
