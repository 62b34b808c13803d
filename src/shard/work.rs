//! How much of a turn the input of one connection, and of all of them, may take.
//!
//! Work is counted in units of about a microsecond on one core, by what is known to cost: frames,
//! requests, bytes, inflated bytes. Clocks are not asked, so a run repeats exactly.
//!
//! - A connection is read until its slice is spent. What is left of its input is held, and the
//!   connection queues up behind the others that spent theirs. A refusal ends a slice: whoever
//!   behaves is not refused again and again.
//! - A connection that spent its slice is *heavy* until it is read to the end for less. Heavy
//!   connections share [`HEAVY_PER_TURN`]; all others, the *light* ones, are read before them.
//! - Light connections share [`LIGHT_PER_TURN`]. Beyond it they are read in the next turn, in the
//!   order in which they came, but for short input ([`SHORT`]), which has [`SHORT_PER_TURN`] more.
//!
//! So a crowd that sends without pause, or sends what is dear, delays itself and not those who send
//! a little.

use std::collections::VecDeque;

use crate::message::ConnectionKey;

/// Units that a light connection may spend before it counts as heavy. A receive buffer of usual
/// messages takes less.
const LIGHT_SLICE: u32 = 128;

/// Units that a heavy connection spends before the next one has its turn.
const HEAVY_SLICE: u32 = 256;

/// Units that heavy connections spend in a turn, all together: about 2 ms. The last one may exceed
/// it by its slice, or by one message.
const HEAVY_PER_TURN: u32 = 2048;

/// Units that light connections spend in a turn, all together: about 8 ms. The last one may exceed
/// it by its slice, or by one message.
const LIGHT_PER_TURN: u32 = 8192;

/// Bytes of input that may be read though the light connections have spent their share: a call or a
/// handshake.
const SHORT: usize = 1024;

/// Units that such input spends in a turn, all together: about 2 ms.
const SHORT_PER_TURN: u32 = 2048;

/// Units of an HTTP request beside its bytes.
pub const REQUEST: u32 = 3;

/// Units of a refusal beside its request: a body and headers are written.
pub const REFUSAL: u32 = 2;

/// Units of checking the signature of a token, with the slowest algorithm.
pub const TOKEN: u32 = 200;

/// Units of so many bytes of a message copied, masked or checked.
pub fn of_bytes(bytes: usize) -> u32 {
    (bytes / 1024) as u32
}

/// Units of compressing so many bytes (9 µs for each KiB, see `protocol::deflate`).
pub fn of_deflating(bytes: usize) -> u32 {
    of_bytes(bytes).saturating_mul(9)
}

/// Units of subscribing to so many channels, or leaving them.
pub fn of_channels(channels: usize) -> u32 {
    (channels / 8) as u32
}

/// The work that the input of connections may still cause, and those that wait to be read.
#[derive(Debug)]
pub struct Work {
    // Units that the connection that is being read may still spend.
    slice_left: u32,
    // Units that short input may still spend in this turn once `shared_left` is spent.
    short_left: u32,
    // Units that the light connections of this turn may still spend together; while heavy ones are
    // read, what those may.
    shared_left: u32,
    // Light connections to be read in the next turn, and heavy ones: each at most once, with
    // `Connection::is_queued_to_read`.
    light: VecDeque<ConnectionKey>,
    heavy: VecDeque<ConnectionKey>,
    // Light ones that have still to have their turns in this turn, and, while heavy ones have theirs,
    // what the light ones left of their share.
    light_round: usize,
    light_left: Option<u32>,
}

impl Default for Work {
    fn default() -> Self {
        Self {
            slice_left: LIGHT_SLICE,
            short_left: SHORT_PER_TURN,
            shared_left: LIGHT_PER_TURN,
            light: VecDeque::new(),
            heavy: VecDeque::new(),
            light_round: 0,
            light_left: None,
        }
    }
}

impl Work {
    /// Counts work for the connection that is being read.
    pub fn spend(&mut self, units: u32) {
        self.slice_left = self.slice_left.saturating_sub(units);
        match self.shared_left {
            0 => self.short_left = self.short_left.saturating_sub(units),
            left => self.shared_left = left.saturating_sub(units),
        }
    }

    /// Ends the slice of the connection that is being read, whatever it has spent.
    pub fn end_slice(&mut self) {
        self.slice_left = 0;
    }

    /// Whether the connection that is being read has to let others go first.
    pub fn is_slice_spent(&self) -> bool {
        self.slice_left == 0
    }

    /// Whether so many bytes of one more light connection may be read in this turn.
    pub fn takes(&self, bytes: usize) -> bool {
        self.shared_left > 0 || bytes <= SHORT && self.short_left > 0
    }

    /// Whether a connection waits to be read: the next turn is to begin at once.
    pub fn is_waiting(&self) -> bool {
        !self.light.is_empty() || !self.heavy.is_empty()
    }

    /// Lets a connection wait for a turn in which it is read. One whose message is half inflated goes
    /// first: half inflated messages are not to pile up.
    pub fn wait(&mut self, key: ConnectionKey, is_heavy: bool, is_inflating: bool) {
        match is_heavy {
            true if is_inflating => self.heavy.push_front(key),
            true => self.heavy.push_back(key),
            false => self.light.push_back(key),
        }
    }

    /// A turn begins: budgets are new, and those that wait have their turns, by [`Self::poll_waiting`].
    pub fn begin_round(&mut self) {
        (self.shared_left, self.short_left) = (LIGHT_PER_TURN, SHORT_PER_TURN);
        // Each connection once: what wakes another one goes on in the next turn.
        self.light_round = self.light.len();
    }

    /// The next connection that waits to be read: light ones, then heavy ones, as far as the budgets of
    /// the turn allow.
    pub fn poll_waiting(&mut self) -> Option<ConnectionKey> {
        if self.light_round > 0 && self.shared_left > 0 {
            self.light_round -= 1;
            return self.light.pop_front();
        }
        self.light_round = 0;
        // What is left of the light ones' share is for the input that arrives until the next turn.
        if self.light_left.is_none() {
            self.light_left = Some(std::mem::replace(&mut self.shared_left, HEAVY_PER_TURN));
        }
        // Each slice is spent, or its connection leaves the queue.
        if self.shared_left > 0
            && let Some(key) = self.heavy.pop_front()
        {
            self.spend(1);
            return Some(key);
        }
        self.shared_left = self.light_left.take().unwrap_or_default();
        None
    }

    /// Begins the slice of a connection.
    pub fn begin_slice(&mut self, is_heavy: bool) {
        self.slice_left = if is_heavy { HEAVY_SLICE } else { LIGHT_SLICE };
    }
}
