//! The outbound queue of one connection: bounded, and made of whole frames.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::protocol::frame::{Frame, QUEUED_FRAME_BYTES};

/// Size in bytes at which a chunk of small answers is full, so that the next answer begins a new
/// chunk.
const CHUNK_BYTES: usize = 16 * 1024;

/// A run of bytes to be written to a socket.
#[derive(Clone, Debug)]
pub enum Chunk {
    /// One or more frames shared with other connections of the shard. The reference count of the
    /// `Rc` belongs to this core. The reference count of the frame's bytes is shared between cores,
    /// and was raised once for all connections of this shard.
    Shared(Rc<Frame>),
    /// Bytes for this connection only.
    Own(Vec<u8>),
}

impl Chunk {
    /// Returns the bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Shared(frame) => frame.bytes(),
            Self::Own(bytes) => bytes,
        }
    }

    /// Returns the memory that the chunk takes in a queue in addition to its bytes. Every receiver
    /// is charged in full for a shared frame, because any of them may be the last to keep it.
    fn overhead(&self) -> usize {
        match self {
            Self::Shared(_) => QUEUED_FRAME_BYTES,
            Self::Own(bytes) => QUEUED_FRAME_BYTES + bytes.capacity() - bytes.len(),
        }
    }
}

/// Chunks written together.
pub type Batch = VecDeque<Chunk>;

/// Memory of a chunk's slot in a batch. A batch has at most twice the capacity that it needs.
const PLACE_BYTES: usize = 2 * size_of::<Chunk>();

/// Number of chunks sampled by [`freed_bytes`]. A batch may have thousands of chunks.
const SAMPLED_CHUNKS: usize = 16;

/// Estimates the memory in bytes that dropping a batch would free, from a sample of its chunks. A
/// shared frame is divided among the batches with it, because dropping all of them frees it once.
pub fn freed_bytes(batch: &Batch) -> usize {
    let step = batch.len().div_ceil(SAMPLED_CHUNKS).max(1);
    let sample = batch.iter().step_by(step);
    let (count, bytes) = sample.fold((0, 0), |(count, bytes), chunk| {
        let of_chunk = match chunk {
            Chunk::Own(bytes) => QUEUED_FRAME_BYTES + bytes.capacity(),
            Chunk::Shared(frame) => {
                let references = Rc::strong_count(frame) * frame.references();
                let frame_bytes = frame.bytes().len() + QUEUED_FRAME_BYTES - PLACE_BYTES;
                PLACE_BYTES + frame_bytes / references
            }
        };
        (count + 1, bytes + of_chunk)
    });
    bytes * batch.len() / count.max(1)
}

/// Time in flight after which a batch marks its connection as slow, in milliseconds.
pub(super) const SLOW_MS: u64 = 250;

/// Resolution of the time in flight, in milliseconds.
const TICK_MS: u64 = 16;

/// Empty batches and buffers for reuse, so that sending allocates nothing. TLS is the exception: it
/// copies what it encrypts. Idle connections hold no buffer.
#[derive(Debug, Default)]
pub struct BufferPool {
    batches: Vec<Batch>,
    buffers: Vec<Vec<u8>>,
}

/// Bounds of the pool: 6 MiB of batches and 1 MiB of buffers. The allocator gets back larger
/// buffers, and all buffers beyond these bounds.
const BATCHES_MAX: usize = 4096;
const BATCH_CHUNKS_MAX: usize = 64;
const BUFFERS_MAX: usize = 256;
const BUFFER_BYTES_MAX: usize = 4096;

impl BufferPool {
    /// Returns the buffers of a batch, and the batch itself, to the pool.
    pub fn keep(&mut self, mut batch: Batch) {
        while let Some(chunk) = batch.pop_front() {
            if let Chunk::Own(mut bytes) = chunk
                && self.buffers.len() < BUFFERS_MAX
                && bytes.capacity() <= BUFFER_BYTES_MAX
            {
                bytes.clear();
                self.buffers.push(bytes);
            }
        }
        let is_worth_keeping = (1..=BATCH_CHUNKS_MAX).contains(&batch.capacity());
        if self.batches.len() < BATCHES_MAX && is_worth_keeping {
            self.batches.push(batch);
        }
    }
}

/// The outbound queue of one connection. `Connection::outbound_max` bounds the queue, and a frame
/// that does not fit counts as failed.
#[derive(Debug, Default)]
pub struct Outbound {
    chunks: Batch,
    // Bytes in `chunks`.
    queued_bytes: usize,
    // Bytes handed to the driver and not yet written.
    in_flight_bytes: usize,
    // Overhead of the queued chunks, and of the chunks in flight, in bytes.
    overhead_bytes: u32,
    in_flight_overhead_bytes: u32,
    // Bytes at the front of `chunks`, in `Chunk::Own`, that [`Self::clear`] keeps.
    protected_bytes: u32,
    // The tick at which the batch in flight was handed out. Ticks repeat after 17 minutes; a slow
    // connection then counts as a fast one for 250 ms.
    taken_tick: u16,
    // Whether nothing may be handed out for now.
    is_withheld: bool,
    /// Who wants to know of the client's messages. Kept here, where a byte is free.
    pub(super) observers: Observers,
}

/// Who wants to know of a client's messages: a set of bits, so that a message of a client without
/// observers costs one test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Observers(u8);

impl Observers {
    /// Taps.
    pub(super) const TAPS: Self = Self(1);
    /// The access log.
    pub(super) const ACCESS_LOG: Self = Self(2);

    /// Whether there are none.
    #[inline]
    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether these are among them.
    #[inline]
    pub(super) fn contains(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Adds or removes some.
    pub(super) fn set(&mut self, other: Self, is_present: bool) {
        match is_present {
            true => self.0 |= other.0,
            false => self.0 &= !other.0,
        }
    }
}

impl Outbound {
    /// Returns the bytes queued and in flight.
    pub fn buffered(&self) -> usize {
        self.queued_bytes + self.in_flight_bytes
    }

    /// Returns the memory charged to the connection: the bytes queued and in flight, and the
    /// overhead of their chunks. The outbound limit applies to this sum.
    pub fn charge(&self) -> usize {
        self.buffered() + self.overhead_bytes as usize + self.in_flight_overhead_bytes as usize
    }

    /// Whether the driver has bytes that it has not written yet.
    pub fn is_in_flight(&self) -> bool {
        self.in_flight_bytes > 0
    }

    /// Returns for how long the current batch has been in flight, in milliseconds. `None`: nothing
    /// is in flight. Wraps around to 0 after 17 minutes.
    pub fn in_flight_ms(&self, now_ms: u64) -> Option<u64> {
        let ticks = tick(now_ms).wrapping_sub(self.taken_tick);
        self.is_in_flight().then_some(u64::from(ticks) * TICK_MS)
    }

    /// Whether a batch has been in flight for [`SLOW_MS`] or longer.
    pub fn is_slow(&self, now_ms: u64) -> bool {
        self.in_flight_ms(now_ms).is_some_and(|ms| ms >= SLOW_MS)
    }

    /// Estimates the memory in bytes that dropping the queue would free; see [`freed_bytes`]. Bytes
    /// in flight are left out.
    pub fn freed_bytes(&self) -> usize {
        freed_bytes(&self.chunks)
    }

    /// Whether a batch can be handed out. There is at most one batch in flight.
    pub fn is_ready(&self) -> bool {
        !self.chunks.is_empty() && self.in_flight_bytes == 0 && !self.is_withheld
    }

    /// Withholds the queued bytes from the driver, or releases them again.
    pub fn withhold(&mut self, is_withheld: bool) {
        self.is_withheld = is_withheld;
    }

    /// Whether everything was written.
    pub fn is_flushed(&self) -> bool {
        self.chunks.is_empty() && self.in_flight_bytes == 0
    }

    /// Appends a frame shared with other connections.
    pub fn push_shared(&mut self, buffer_pool: &mut BufferPool, frame: Rc<Frame>) {
        self.queued_bytes += frame.bytes().len();
        self.overhead_bytes += QUEUED_FRAME_BYTES as u32;
        self.push(buffer_pool, Chunk::Shared(frame));
    }

    /// Replaces `last_frame` at the end of the queue with `coalesced`, which has `more_bytes` more.
    /// Returns false if another chunk is last. Successive frames to many subscribers then share one
    /// run of bytes.
    #[inline]
    pub fn coalesce(
        &mut self,
        last_frame: &Rc<Frame>,
        coalesced: &Rc<Frame>,
        more_bytes: usize,
    ) -> bool {
        match self.chunks.back_mut() {
            Some(Chunk::Shared(last)) if Rc::ptr_eq(last, last_frame) => {
                debug_assert_eq!(coalesced.bytes().len(), last_frame.bytes().len() + more_bytes);
                self.queued_bytes += more_bytes;
                *last = coalesced.clone();
                true
            }
            _ => false,
        }
    }

    /// Appends bytes for this connection only, written by `put`.
    pub fn push_with(&mut self, buffer_pool: &mut BufferPool, put: impl FnOnce(&mut Vec<u8>)) {
        match self.chunks.back_mut() {
            Some(Chunk::Own(bytes)) if bytes.len() < CHUNK_BYTES => {
                let (length, unused) = (bytes.len(), bytes.capacity() - bytes.len());
                put(bytes);
                self.queued_bytes += bytes.len() - length;
                self.overhead_bytes -= unused as u32;
                self.overhead_bytes += (bytes.capacity() - bytes.len()) as u32;
            }
            _ => {
                let mut bytes = buffer_pool.buffers.pop().unwrap_or_default();
                put(&mut bytes);
                self.queued_bytes += bytes.len();
                let chunk = Chunk::Own(bytes);
                self.overhead_bytes += chunk.overhead() as u32;
                self.push(buffer_pool, chunk);
            }
        }
    }

    /// Reserves the place of an answer behind the queued bytes, for [`Self::fill_answer`]. Nothing may be handed out
    /// before that: see [`Self::withhold`].
    pub fn reserve_answer(&mut self, buffer_pool: &mut BufferPool) -> usize {
        let chunk = Chunk::Own(Vec::new());
        self.overhead_bytes += chunk.overhead() as u32;
        self.push(buffer_pool, chunk);
        self.chunks.len() - 1
    }

    /// Writes an answer to its reserved place, ahead of what was queued since.
    pub fn fill_answer(&mut self, place: usize, answer: &[u8]) {
        debug_assert!(self.is_withheld, "the place would be gone");
        let Some(chunk) = self.chunks.get_mut(place) else { return };
        let before = chunk.overhead();
        if let Chunk::Own(bytes) = chunk {
            bytes.splice(0..0, answer.iter().copied());
        }
        self.overhead_bytes = self.overhead_bytes + chunk.overhead() as u32 - before as u32;
        self.queued_bytes += answer.len();
    }

    /// Drops what was queued since the place of an answer was reserved.
    pub fn drop_answer(&mut self, place: usize) {
        debug_assert!(self.is_withheld, "the place would be gone");
        self.chunks.truncate(place);
        self.count_again();
    }

    /// Appends a chunk whose bytes and overhead are counted already.
    fn push(&mut self, buffer_pool: &mut BufferPool, chunk: Chunk) {
        if self.chunks.capacity() == 0
            && let Some(batch) = buffer_pool.batches.pop()
        {
            self.chunks = batch;
        }
        self.chunks.push_back(chunk);
    }

    /// Hands out everything queued as a batch.
    pub fn take(&mut self, now_ms: u64) -> Batch {
        debug_assert!(self.in_flight_bytes == 0);
        self.taken_tick = tick(now_ms);
        self.in_flight_bytes = std::mem::take(&mut self.queued_bytes);
        self.in_flight_overhead_bytes = std::mem::take(&mut self.overhead_bytes);
        self.protected_bytes = 0;
        std::mem::take(&mut self.chunks)
    }

    /// Notes that bytes of the batch in flight were written.
    pub fn written(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.in_flight_bytes);
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(bytes);
        if self.in_flight_bytes == 0 {
            self.in_flight_overhead_bytes = 0;
        }
    }

    /// Drops queued shared frames. In a back end's queue the shared frames are events.
    pub fn drop_shared(&mut self) {
        self.chunks.retain(|chunk| matches!(chunk, Chunk::Own(_)));
        self.count_again();
    }

    /// Protects the bytes queued so far from [`Self::clear`]. The protected bytes must not be
    /// shared frames. The answer to a handshake is protected, because the client could not
    /// understand a close frame without it.
    pub fn protect_queued(&mut self) {
        self.protected_bytes = self.queued_bytes.try_into().unwrap_or(u32::MAX);
    }

    /// Drops the queue to make room for a close frame. Protected bytes and bytes in flight stay.
    pub fn clear(&mut self) {
        let mut left = self.protected_bytes as usize;
        self.chunks.retain_mut(|chunk| match chunk {
            Chunk::Own(bytes) if left > 0 => {
                bytes.truncate(left);
                left -= bytes.len();
                true
            }
            _ => false,
        });
        self.count_again();
        if self.chunks.is_empty() {
            // Releases the memory of a long batch.
            self.chunks = Batch::new();
        }
    }

    fn count_again(&mut self) {
        self.queued_bytes = self.chunks.iter().map(|chunk| chunk.bytes().len()).sum();
        self.overhead_bytes = self.chunks.iter().map(Chunk::overhead).sum::<usize>() as u32;
    }
}

fn tick(now_ms: u64) -> u16 {
    (now_ms / TICK_MS) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clear_keeps_only_protected_bytes() {
        let (mut outbound, mut buffer_pool) = (Outbound::default(), BufferPool::default());
        outbound.push_with(&mut buffer_pool, |out| out.extend_from_slice(b"101"));
        outbound.protect_queued();
        outbound.push_with(&mut buffer_pool, |out| out.extend_from_slice(b"frame"));
        outbound.push_shared(&mut buffer_pool, Rc::new(Frame::from_encoded(b"shared")));
        outbound.clear();
        assert_eq!(outbound.buffered(), 3);
        let batch = outbound.take(0);
        assert_eq!(batch.iter().map(Chunk::bytes).collect::<Vec<_>>(), [b"101"]);
        outbound.written(3);
        outbound.push_with(&mut buffer_pool, |out| out.extend_from_slice(b"frame"));
        outbound.clear();
        assert!(outbound.is_flushed());
    }

    #[test]
    fn an_answer_comes_before_what_was_queued_since_its_place_was_reserved() {
        let (mut outbound, mut buffer_pool) = (Outbound::default(), BufferPool::default());
        outbound.push_with(&mut buffer_pool, |out| out.extend_from_slice(b"1"));
        outbound.withhold(true);
        let place = outbound.reserve_answer(&mut buffer_pool);
        outbound.push_with(&mut buffer_pool, |out| out.extend_from_slice(b"3"));
        outbound.push_shared(&mut buffer_pool, Rc::new(Frame::from_encoded(b"4")));
        outbound.fill_answer(place, b"2");
        outbound.withhold(false);
        assert_eq!(outbound.buffered(), 4);
        let batch = outbound.take(0);
        assert_eq!(batch.iter().flat_map(Chunk::bytes).copied().collect::<Vec<_>>(), b"1234");
        outbound.written(4);
        assert_eq!(outbound.charge(), 0);
    }

    #[test]
    fn what_was_queued_since_the_place_of_an_answer_was_reserved_is_dropped_with_it() {
        let (mut outbound, mut buffer_pool) = (Outbound::default(), BufferPool::default());
        outbound.push_with(&mut buffer_pool, |out| out.extend_from_slice(b"1"));
        outbound.withhold(true);
        let place = outbound.reserve_answer(&mut buffer_pool);
        outbound.push_shared(&mut buffer_pool, Rc::new(Frame::from_encoded(b"3")));
        outbound.drop_answer(place);
        outbound.push_with(&mut buffer_pool, |out| out.extend_from_slice(b"4"));
        outbound.withhold(false);
        assert_eq!(outbound.buffered(), 2);
        let batch = outbound.take(0);
        assert_eq!(batch.iter().flat_map(Chunk::bytes).copied().collect::<Vec<_>>(), b"14");
        outbound.written(2);
        assert_eq!(outbound.charge(), 0);
    }

    #[test]
    fn the_charge_covers_the_memory_of_a_queue_and_ends_with_it() {
        let (mut outbound, mut buffer_pool) = (Outbound::default(), BufferPool::default());
        for number in 0..1000 {
            outbound.push_shared(&mut buffer_pool, Rc::new(Frame::from_encoded(b"12")));
            outbound.push_with(&mut buffer_pool, |out| out.resize(out.len() + number, 0));
        }
        // An Rc and an Arc have two counts each. An allocation begins with a word and is a multiple
        // of 16 bytes. A deque has at most twice the capacity that it needs.
        let own: usize = outbound
            .chunks
            .iter()
            .map(|chunk| match chunk {
                Chunk::Shared(_) => (16 + 16 + 8 + 8) + (16 + 2 + 8 + 6),
                Chunk::Own(bytes) => bytes.capacity() + 8 + 15,
            })
            .sum();
        let held = own + outbound.chunks.capacity() * size_of::<Chunk>();
        let charge = outbound.charge();
        assert!((held..held * 3 / 2).contains(&charge), "{charge} for {held}");
        assert_eq!(outbound.buffered(), 1000 * 2 + (0..1000).sum::<usize>());
        let bytes = outbound.buffered();
        let batch = outbound.take(0);
        assert_eq!((outbound.charge(), outbound.buffered()), (charge, bytes), "it is in flight");
        outbound.written(bytes - 1);
        assert!(outbound.charge() > outbound.buffered(), "a batch is kept until all is written");
        outbound.written(1);
        assert_eq!(outbound.charge(), 0);
        drop(batch);
        outbound.push_shared(&mut buffer_pool, Rc::new(Frame::from_encoded(b"12")));
        outbound.push_with(&mut buffer_pool, |out| out.push(0));
        outbound.drop_shared();
        assert!((1..=1 + QUEUED_FRAME_BYTES + 16).contains(&outbound.charge()));
        outbound.clear();
        assert_eq!(outbound.charge(), 0);
    }

    #[test]
    fn a_shared_frame_is_freed_once_by_all_its_receivers() {
        let (mut outbound, mut buffer_pool) = (Outbound::default(), BufferPool::default());
        let frame = Rc::new(Frame::from_encoded(&[0; 20_000]));
        let others: Vec<_> = (0..99).map(|_| frame.clone()).collect();
        outbound.push_shared(&mut buffer_pool, frame);
        assert!((200..400).contains(&outbound.freed_bytes()), "{}", outbound.freed_bytes());
        drop(others);
        assert!(outbound.freed_bytes() >= 20_000, "nobody else holds it");
        let other_core = match outbound.chunks.front() {
            Some(Chunk::Shared(frame)) => Frame::clone(frame),
            _ => panic!("a frame was pushed"),
        };
        assert!((10_000..11_000).contains(&outbound.freed_bytes()));
        drop(other_core);
        let bytes = outbound.freed_bytes();
        assert_eq!(freed_bytes(&outbound.take(0)), bytes, "the driver weighs it as the queue does");
    }

    #[test]
    fn the_memory_of_a_long_batch_is_estimated_from_a_sample() {
        let (mut outbound, mut buffer_pool) = (Outbound::default(), BufferPool::default());
        for _ in 0..1001 {
            outbound.push_shared(&mut buffer_pool, Rc::new(Frame::from_encoded(&[0; 100])));
        }
        let charge = outbound.charge();
        assert_eq!(outbound.freed_bytes(), charge);
        assert_eq!(Outbound::default().freed_bytes(), 0);
    }

    #[test]
    fn a_connection_is_slow_when_a_batch_is_in_flight_for_too_long() {
        let (mut outbound, mut buffer_pool) = (Outbound::default(), BufferPool::default());
        outbound.push_with(&mut buffer_pool, |out| out.push(0));
        assert!(!outbound.is_slow(1 << 20), "what waits for us is not slow");
        let taken_ms = 16 * 65_530;
        outbound.take(taken_ms);
        outbound.push_with(&mut buffer_pool, |out| out.push(0));
        assert!(!outbound.is_slow(taken_ms + SLOW_MS - 16));
        assert!(outbound.is_slow(taken_ms + SLOW_MS + 16));
        outbound.written(1);
        assert!(!outbound.is_slow(taken_ms + SLOW_MS + 16), "all that was taken is written");
    }
}
