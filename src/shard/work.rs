//! The budget for input: how much of a turn one connection, and all connections together, may take.
//!
//! Work is counted in units of about one microsecond, estimated from frames, requests, bytes and
//! inflated bytes. No clock is read, so that runs are reproducible.
//!
//! - A connection is read until its slice is spent. The rest of its input stays in the read-ahead,
//!   and the connection queues behind others. A refusal ends the slice: a peer that is refused
//!   repeatedly must not delay the others.
//! - A connection that spent its slice is *heavy* until a read processes all its input within one
//!   slice. Heavy connections share [`HEAVY_PER_TURN`]. All others are *light*, and are read first.
//! - Light connections share [`LIGHT_PER_TURN`]. When that budget is spent, they wait for the next
//!   turn, in order of arrival. Short input ([`SHORT`]) has an extra [`SHORT_PER_TURN`].
//!
//! A crowd that sends without pause, or sends expensive input, therefore delays only itself.

use std::collections::VecDeque;

use crate::message::ConnectionKey;

/// The slice of a light connection, in units. A receive buffer full of ordinary messages takes
/// less.
const LIGHT_SLICE: u32 = 128;

/// The slice of a heavy connection, in units.
const HEAVY_SLICE: u32 = 256;

/// Units for all heavy connections in a turn: about 2 ms. The last one may exceed the budget by its
/// slice, or by one message.
const HEAVY_PER_TURN: u32 = 2048;

/// Units for all light connections in a turn: about 8 ms. The last one may exceed the budget by its
/// slice, or by one message.
const LIGHT_PER_TURN: u32 = 8192;

/// Bytes of input, enough for a call or a handshake, that may be read after the budget of the light
/// connections is spent.
const SHORT: usize = 1024;

/// Units for such short input in a turn: about 2 ms.
const SHORT_PER_TURN: u32 = 2048;

/// Units for an HTTP request, in addition to its bytes.
pub(super) const REQUEST: u32 = 3;

/// Units for a refusal, in addition to its request: headers and a body are written.
pub(super) const REFUSAL: u32 = 2;

/// Units for checking the signature of a token with the slowest algorithm.
pub(super) const TOKEN: u32 = 200;

/// Returns the units for copying, unmasking or checking this many bytes of a message.
pub(super) fn of_bytes(bytes: usize) -> u32 {
    (bytes / 1024) as u32
}

/// Returns the units for compressing this many bytes: 9 µs per KiB, see `protocol::deflate`.
pub(super) fn of_deflating(bytes: usize) -> u32 {
    of_bytes(bytes).saturating_mul(9)
}

/// Returns the units for looking up this many missed messages.
pub(super) fn of_missed(messages: usize) -> u32 {
    (messages / 16) as u32
}

/// Returns the units for subscribing to this many channels, or unsubscribing.
pub(super) fn of_channels(channels: usize) -> u32 {
    (channels / 8) as u32
}

/// The budget for input in a turn, and the connections that wait to be read.
#[derive(Debug)]
pub struct Work {
    // Units left of the slice of the connection being read.
    slice_left: u32,
    // Units left in this turn for short input, after `shared_left` is spent.
    short_left: u32,
    // Units left in this turn for the light connections. While heavy connections are read, the
    // units left for those.
    shared_left: u32,
    // Light and heavy connections to be read in the next turn. Each connection is in at most one
    // queue, once, and is marked `Connection::is_queued_to_read`; the number of connections bounds
    // both.
    light: VecDeque<ConnectionKey>,
    heavy: VecDeque<ConnectionKey>,
    // Light connections still to be read in this turn, and, while heavy ones are read, the units
    // that the light ones left.
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
    /// Counts work for the connection being read.
    pub fn spend(&mut self, units: u32) {
        self.slice_left = self.slice_left.saturating_sub(units);
        match self.shared_left {
            0 => self.short_left = self.short_left.saturating_sub(units),
            left => self.shared_left = left.saturating_sub(units),
        }
    }

    /// Ends the slice of the connection being read.
    pub fn end_slice(&mut self) {
        self.slice_left = 0;
    }

    /// Whether the slice of the connection being read is spent.
    pub fn is_slice_spent(&self) -> bool {
        self.slice_left == 0
    }

    /// Whether this many bytes of another light connection may be read in this turn.
    pub fn takes(&self, bytes: usize) -> bool {
        self.takes_long_input() || bytes <= SHORT && self.short_left > 0
    }

    /// Whether input of another light connection may be read in this turn, however long it is.
    pub fn takes_long_input(&self) -> bool {
        self.shared_left > 0
    }

    /// Whether a connection waits to be read, so that the next turn begins at once.
    pub fn is_waiting(&self) -> bool {
        !self.light.is_empty() || !self.heavy.is_empty()
    }

    /// Queues a connection to be read in a later turn. Heavy ones with a partly inflated message go
    /// first, so that such messages do not accumulate.
    pub fn wait(&mut self, key: ConnectionKey, is_heavy: bool, is_inflating: bool) {
        match is_heavy {
            true if is_inflating => self.heavy.push_front(key),
            true => self.heavy.push_back(key),
            false => self.light.push_back(key),
        }
    }

    /// Renews the budgets for a turn, in which [`Self::poll_waiting`] returns the waiting
    /// connections.
    pub fn begin_round(&mut self) {
        (self.shared_left, self.short_left) = (LIGHT_PER_TURN, SHORT_PER_TURN);
        // Each connection is read once per turn. Connections queued meanwhile wait for the next
        // turn.
        self.light_round = self.light.len();
    }

    /// Returns the next connection to read within the turn's budgets: light ones first, then heavy
    /// ones.
    pub fn poll_waiting(&mut self) -> Option<ConnectionKey> {
        if self.light_round > 0 && self.shared_left > 0 {
            self.light_round -= 1;
            return self.light.pop_front();
        }
        self.light_round = 0;
        // The units that light connections did not use are for input that arrives before the next
        // turn.
        if self.light_left.is_none() {
            self.light_left = Some(std::mem::replace(&mut self.shared_left, HEAVY_PER_TURN));
        }
        // Each read spends units or removes its connection from the queue, so the loop ends.
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
