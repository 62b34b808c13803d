//! Counts the memory that the process has allocated. The count is taken in the allocator, so it includes
//! everything that peers make the node hold, and no connection needs a field for it.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, Ordering};

/// The system's allocator with a count of the allocated bytes. The program installs it as its global
/// allocator. Where it is not installed, as in most tests, the count stays 0 and memory is never short.
#[derive(Clone, Copy, Debug)]
pub struct CountingAllocator;

/// The bytes that a thread may allocate or free before it updates the shared count. This avoids an
/// atomic operation per message. The count may be off by this much for each thread.
const UNSEEN_BYTES: usize = 64 * 1024;

/// The shared count, without the pending bytes of each thread.
static ALLOCATED: AtomicIsize = AtomicIsize::new(0);

thread_local! {
    // Has no destructor, so it can still be used by deallocations at the end of a thread.
    static UNSEEN: Cell<isize> = const { Cell::new(0) };
}

/// Returns the allocated bytes, including the allocator's overhead per block.
pub fn allocated_bytes() -> u64 {
    // The count can be negative: a thread may free memory whose allocation is still pending in another.
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

/// Returns the size of a block in glibc: 8 bytes of header, rounded up to 16 bytes, at least 32.
fn block_bytes(bytes: usize) -> isize {
    ((bytes + 8 + 15) & !15).max(32) as isize
}

// SAFETY: each call is forwarded unchanged to the system's allocator. Counting allocates nothing.
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
