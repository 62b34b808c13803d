//! How much memory the process has allocated: counted where it is allocated, so that nothing which
//! peers make the node hold is missing, and none of it costs a connection a field.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, Ordering};

/// The system's allocator, and a count of the bytes that are allocated. The program installs it; where
/// it is not installed, as in most tests, the count stays at 0 and no budget is ever short.
#[derive(Clone, Copy, Debug)]
pub struct CountingAllocator;

/// Bytes that a thread allocates or frees before all threads see it: an atomic operation for each
/// 64 KiB, and none for each message. Times the number of threads, this is how far off the count may be.
const UNSEEN_BYTES: usize = 64 * 1024;

/// Of all threads, but for what each has not told yet.
static ALLOCATED: AtomicIsize = AtomicIsize::new(0);

thread_local! {
    // Without a destructor, so it may be used by whatever a thread frees when it ends.
    static UNSEEN: Cell<isize> = const { Cell::new(0) };
}

/// Bytes that are allocated, with what the allocator adds to each block.
pub fn allocated_bytes() -> u64 {
    // A thread may free what another has not told of yet.
    ALLOCATED.load(Ordering::Relaxed).max(0) as u64
}

fn count(bytes: isize) {
    UNSEEN.with(|unseen| {
        let sum = unseen.get() + bytes;
        let is_seen = sum.unsigned_abs() >= UNSEEN_BYTES;
        unseen.set(if is_seen { 0 } else { sum });
        if is_seen {
            ALLOCATED.fetch_add(sum, Ordering::Relaxed);
        }
    });
}

/// What glibc takes for a block: a word more, in steps of 16 bytes.
fn block_bytes(bytes: usize) -> isize {
    ((bytes + 8 + 15) & !15).max(32) as isize
}

// SAFETY: each call is passed on to the system's allocator as it came. Counting allocates nothing.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let block = unsafe { System.alloc(layout) };
        if !block.is_null() {
            count(block_bytes(layout.size()));
        }
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let block = unsafe { System.alloc_zeroed(layout) };
        if !block.is_null() {
            count(block_bytes(layout.size()));
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) };
        count(-block_bytes(layout.size()));
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        let moved = unsafe { System.realloc(block, layout, bytes) };
        if !moved.is_null() {
            count(block_bytes(bytes) - block_bytes(layout.size()));
        }
        moved
    }
}
