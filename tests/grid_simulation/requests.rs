//! The requests of one back end that wait for answers, and whether each was read and answered in time.

use std::collections::VecDeque;
use std::ops::Range;

use gridcast::shard::ReadProgress;

use crate::ledger::PeerNumber;
use crate::peer::{Shared, time_of};
use crate::pushes::Moment;

/// How long a request may stay unread, in milliseconds, unless its back end is held back because too
/// many others wait for answers.
const READ_MS: u64 = 100;

/// How long the answer may take from then on: `limits.answer_ms`, a tick of the timers, and the way of
/// the answer.
const ANSWER_MS: u64 = 1600;

/// A request that was asked.
pub struct Request<W> {
    pub place: u64,
    pub what: W,
    pub asked: Moment,
    // Bytes of its frame, and where that ends in the stream of its back end, once it is sent.
    length: u64,
    end: Option<u64>,
    // How long its back end had been held back when it asked.
    held_back_ms: u64,
    // When it was read, and how long its back end had been held back by then.
    read: Option<(u64, u64)>,
}

/// All that wait, in their order.
pub struct Requests<W> {
    waiting: VecDeque<Request<W>>,
    // Bytes sent, and where control frames lie in them: a node takes those out of what it has not read.
    sent: u64,
    control: Vec<Range<u64>>,
    // Since when the back end is held back, and how long it was before. Time in which its node is frozen
    // does not count.
    held_back_since_ms: Option<u64>,
    held_back_ms: u64,
}

impl<W> Default for Requests<W> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            sent: 0,
            control: Vec::new(),
            held_back_since_ms: None,
            held_back_ms: 0,
        }
    }
}

impl<W> Requests<W> {
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A request is asked, in a frame of so many bytes.
    pub fn push(
        &mut self,
        (number, shared): (PeerNumber, &Shared),
        (place, what): (u64, W),
        asked: Moment,
        length: usize,
    ) {
        let held_back_ms = self.held_back_ms(number, shared);
        let length = length as u64;
        self.waiting.push_back(Request {
            place,
            what,
            asked,
            length,
            end: None,
            held_back_ms,
            read: None,
        });
    }

    /// Bytes are sent: those of a handshake, or frames, the requests that were asked since last.
    pub fn note_sent(&mut self, bytes: &[u8], is_handshake: bool) {
        if !is_handshake {
            self.control.extend(control_frames(bytes, self.sent));
        }
        self.sent += bytes.len() as u64;
        let mut end = self.sent;
        for request in self.waiting.iter_mut().rev().take_while(|request| request.end.is_none()) {
            request.end = Some(end);
            end -= request.length;
        }
    }

    /// The back end's shard has had a turn. So many of the bytes sent have not come to it.
    pub fn note_read(
        &mut self,
        number: PeerNumber,
        shared: &Shared,
        on_their_way: usize,
        reading: ReadProgress,
    ) {
        self.note_held_back(number, shared, reading.is_paused);
        let read = (shared.now_ms, self.held_back_ms(number, shared));
        let received = self.sent - on_their_way as u64;
        // Control frames among what is unread may be taken out, so data alone is counted.
        let data = |to: u64| match reading.unread_bytes {
            0 => to,
            _ => to - control_bytes(&self.control, to),
        };
        let data_read = data(received) - reading.unread_bytes as u64;
        for request in self.waiting.iter_mut().rev().take_while(|request| request.read.is_none()) {
            if request.end.is_some_and(|end| end <= received && data(end) <= data_read) {
                request.read = Some(read);
            }
        }
    }

    fn note_held_back(&mut self, number: PeerNumber, shared: &Shared, is_held_back: bool) {
        if is_held_back {
            self.held_back_since_ms.get_or_insert(shared.now_ms);
        } else {
            self.held_back_ms = self.held_back_ms(number, shared);
            self.held_back_since_ms = None;
        }
    }

    /// The next is answered.
    pub fn pop(&mut self, number: PeerNumber, shared: &Shared) -> Option<Request<W>> {
        let request = self.waiting.pop_front()?;
        let Request { place, asked, held_back_ms, read, .. } = request;
        // While a back end is read in slices, how far that is may be known a turn late.
        let now = (shared.now_ms, self.held_back_ms(number, shared));
        let (read_ms, held_back_until_ms) = read.unwrap_or(now);
        let asked_ms = time_of(asked);
        let unread_ms = up_ms(number, shared, asked_ms, read_ms);
        let unread_ms = unread_ms - (held_back_until_ms - held_back_ms);
        assert!(unread_ms <= READ_MS, "back end {number}: {place} was unread for {unread_ms} ms");
        let answer_ms = up_ms(number, shared, read_ms, shared.now_ms);
        assert!(
            answer_ms <= ANSWER_MS,
            "back end {number}: {place} was answered in {answer_ms} ms"
        );
        Some(request)
    }

    fn held_back_ms(&self, number: PeerNumber, shared: &Shared) -> u64 {
        let since = self.held_back_since_ms;
        self.held_back_ms + since.map_or(0, |since| up_ms(number, shared, since, shared.now_ms))
    }
}

/// How long the node of a peer had turns in this time.
fn up_ms(number: PeerNumber, shared: &Shared, from: u64, to: u64) -> u64 {
    to - from - shared.weather.frozen_ms(shared.nodes[number], from, to)
}

/// Where control frames lie in these frames, the first of which begins at `from`.
fn control_frames(frames: &[u8], from: u64) -> Vec<Range<u64>> {
    let (mut at, mut found) = (0, Vec::new());
    while let [first, second, rest @ ..] = &frames[at..] {
        // The head is followed by a mask.
        let length = match (second & 0x7F, rest) {
            (126, [high, low, ..]) => 8 + usize::from(u16::from_be_bytes([*high, *low])),
            (length, _) => 6 + usize::from(length),
        };
        if first & 0x08 != 0 {
            found.push(from + at as u64..from + (at + length) as u64);
        }
        at += length;
    }
    found
}

/// How many bytes of control frames lie before a place.
fn control_bytes(control: &[Range<u64>], to: u64) -> u64 {
    control.iter().map(|frame| frame.end.min(to).saturating_sub(frame.start)).sum()
}
