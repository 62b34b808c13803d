//! What a shard does when the node is short of memory.
//!
//! The runtime measures what the node holds and tells each shard once a turn. As memory in use comes near
//! the budget (`limits.memory_bytes`), the node takes these steps. Each adds to those before it:
//!
//! | from | until below | |
//! |---|---|---|
//! | 80 % | 75 % | slow readers are closed, those with the most unread data first |
//! | 85 % | 80 % | new clients get 503; no TLS handshake begins at the edge |
//! | 90 % | 85 % | frames for a client with unread data count as failed; peers that do not read are not read from |
//! | 95 % | 80 % | the connections that hold the most memory of any kind are closed; topics take no events, edges accept nobody |
//!
//! A slow reader is a connection whose socket is full, and whose batch has been in flight for
//! `connection::outbound::SLOW_MS`. A connection that keeps up is never closed before 95 %, however
//! much was just queued for it. A connection counts for what closing it would free: a frame that others
//! wait for too counts by its share.
//!
//! Shedding stops at 75 %. All shards of the node shed against one total, [`ShedRound`], so that together
//! they free about the excess. Health checks, `/metrics` and calls over HTTP are answered at all times. The
//! last fifth of the budget leaves room for what arrives between two measurements.
//!
//! Back ends are let in at all times. Topics, and clients that wait for room in them, may be what fills the
//! budget: only consumers free that memory, so a node that refused them would stay full for good. How many
//! back ends there are is bounded (`limits.api_connections`), and so is what each holds.

use super::connection::{Connection, Connections, Phase, Stage};
use super::shed_round::{ROUND_MS, ShedRound};
use super::trail::{self, By, Entry};
use super::turn::Turn;
use crate::message::ConnectionKey;
use crate::protocol::close;

/// How short the node is of memory: a step, and those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shortage {
    /// There is enough.
    #[default]
    None,
    /// Slow readers are closed.
    Readers,
    /// New clients and back ends are refused.
    Arrivals,
    /// Frames for clients with unread data fail.
    Frames,
    /// The connections that hold the most memory are closed.
    Holders,
}

impl Shortage {
    /// All steps, each at its place as a number.
    pub const ALL: [Self; 5] =
        [Self::None, Self::Readers, Self::Arrivals, Self::Frames, Self::Holders];

    /// Whether a socket that an edge accepted is to be closed at once: over TLS, a handshake costs more
    /// than an answer without one.
    pub fn closes_arrivals(self, is_tls: bool) -> bool {
        self >= if is_tls { Self::Arrivals } else { Self::Holders }
    }

    /// From which percent of the budget it is so, and below which it is not so any more.
    fn percents(self) -> (u64, u64) {
        match self {
            Self::None => (0, 0),
            Self::Readers => (80, 75),
            Self::Arrivals => (85, 80),
            Self::Frames => (90, 85),
            Self::Holders => (95, 80),
        }
    }

    /// How short it is with so many bytes in use of a budget (0: there is none), after it was as short as this.
    pub fn after(self, used_bytes: u64, limit_bytes: u64) -> Self {
        if limit_bytes == 0 {
            return Self::None;
        }
        let percent = (u128::from(used_bytes) * 100 / u128::from(limit_bytes)) as u64;
        let reached = |step: Self| {
            let (from, until) = step.percents();
            percent >= from || step <= self && percent >= until
        };
        // Of the steps that lie below the present one some may be over while it is not.
        Self::ALL.into_iter().rev().find(|&step| reached(step)).unwrap_or_default()
    }
}

/// What the node holds, as the runtime measured it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in use.
    pub bytes: u64,
    /// The budget; 0: there is none.
    pub limit_bytes: u64,
    /// How short that is.
    pub shortage: Shortage,
}

impl Usage {
    /// Bytes that are in use beyond [`TARGET_PERCENT`] of the budget.
    fn excess_bytes(&self) -> u64 {
        self.bytes.saturating_sub(self.limit_bytes / 100 * TARGET_PERCENT)
    }
}

/// Shedding goes on until this share of the budget is in use. Then no step holds any more.
const TARGET_PERCENT: u64 = 75;

/// Connections that one turn looks at.
const LOOKS_PER_TURN: usize = 4096;

/// Connections whose batches one turn weighs.
const WEIGHED_PER_TURN: usize = 1024;

/// Connections that one turn closes.
const CLOSED_PER_TURN: usize = 256;

/// Closing a connection has to free so much, with a budget over 1 MiB. Smaller ones are not worth it.
const WORTH_BYTES: u64 = 16 * 1024;

/// How long a shard waits before it weighs its connections again, in milliseconds, when it has closed
/// those of a size.
const AFTER_CLOSING_MS: u64 = 5;

/// How long a shard waits when it has found nobody to close, in milliseconds.
const AFTER_NOTHING_MS: u64 = 100;

/// Sizes of connections: powers of two.
const CLASSES: usize = usize::BITS as usize;

/// A shard's part in shedding. A first walk through the connections adds up what those of each size would
/// free. A second one closes the largest, until the node's round has shed the excess.
#[derive(Debug, Default)]
pub struct Shedding {
    usage: Usage,
    stage: Step,
    // The place of the connection to look at next.
    next: u32,
    rests_until_ms: u64,
}

#[derive(Debug, Default)]
enum Step {
    #[default]
    Resting,
    Weighing(Box<[u64; CLASSES]>),
    // Closes connections of this class and above.
    Closing(usize),
}

/// What the shard cannot tell about the node by itself.
pub struct Node<'a> {
    /// What all shards of the node shed together.
    pub round: &'a ShedRound,
    /// What closing a connection would free of the batch that the driver has of it; `None`: its socket is
    /// not full.
    pub blocked_bytes: &'a dyn Fn(ConnectionKey) -> Option<usize>,
}

impl Shedding {
    /// What the node holds, when it was last told.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Whether it is as short as this.
    pub fn is_short(&self, of: Shortage) -> bool {
        self.usage.shortage >= of
    }

    /// What this shard looks for in its first walk: its share of what the round has left, and one percent
    /// of the budget at least, since other shards may hold nothing. Sets the sizes to close, not how much:
    /// the round does that.
    fn wanted_bytes(&self, left_bytes: u64, shards: usize) -> u64 {
        (left_bytes / shards as u64).max(self.usage.limit_bytes / 100).min(left_bytes)
    }

    /// What closing a connection has to free to be worth it.
    fn worth_bytes(&self) -> usize {
        WORTH_BYTES.min(self.usage.limit_bytes / 64) as usize
    }

    /// When to go on.
    pub fn next_turn(&self) -> Option<u64> {
        let is_short = self.is_short(Shortage::Readers);
        is_short.then_some(match self.stage {
            Step::Resting => self.rests_until_ms,
            Step::Weighing(_) | Step::Closing(_) => 0,
        })
    }

    fn rest(&mut self, until_ms: u64) {
        (self.stage, self.next, self.rests_until_ms) = (Step::Resting, 0, until_ms);
    }
}

fn class_of(bytes: usize) -> usize {
    bytes.max(1).ilog2() as usize
}

/// The highest class that holds so many bytes together with those above it, or the lowest that holds any.
fn least_class(by_class: &[u64; CLASSES], wanted_bytes: u64) -> Option<usize> {
    let mut sum = 0;
    let mut least = None;
    for class in (0..CLASSES).rev().filter(|&class| by_class[class] > 0) {
        (sum, least) = (sum + by_class[class], Some(class));
        if sum >= wanted_bytes {
            break;
        }
    }
    least
}

impl Shedding {
    /// What the node holds now: begins to shed, goes on with it, or stops.
    pub fn handle_usage(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        usage: Usage,
        node: &Node<'_>,
    ) {
        self.usage = usage;
        if turn.is_short(Shortage::Readers) {
            node.round.renew(turn.now.ms);
            self.shed(turn, connections, node);
        } else if !matches!(self.stage, Step::Resting) {
            self.rest(0);
        }
    }

    fn shed(&mut self, turn: &mut Turn, connections: &mut Connections, node: &Node<'_>) {
        match std::mem::take(&mut self.stage) {
            Step::Resting if turn.now.ms < self.rests_until_ms => {}
            Step::Resting if self.left_bytes(node) == 0 => {
                self.rest(turn.now.ms + ROUND_MS);
            }
            Step::Resting => self.weigh(turn, connections, node, Box::new([0; CLASSES])),
            Step::Weighing(by_class) => self.weigh(turn, connections, node, by_class),
            Step::Closing(class) => self.close_largest(turn, connections, node, class),
        }
    }

    /// Bytes that the node is still to shed in this round.
    fn left_bytes(&self, node: &Node<'_>) -> u64 {
        node.round.left(self.usage.excess_bytes())
    }

    fn weigh(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        node: &Node<'_>,
        mut by_class: Box<[u64; CLASSES]>,
    ) {
        let (keys, mut next) = connections.keys(self.next, LOOKS_PER_TURN);
        let mut weighed = 0;
        for key in keys {
            if weighed == WEIGHED_PER_TURN {
                next = Some(key.index);
                break;
            }
            let Some(bytes) = connections
                .get(key)
                .and_then(|connection| self.freed_bytes(turn, connection, key, node))
            else {
                continue;
            };
            weighed += 1;
            if bytes >= self.worth_bytes() {
                by_class[class_of(bytes)] += bytes as u64;
            }
        }
        if let Some(next) = next {
            (self.stage, self.next) = (Step::Weighing(by_class), next);
            return;
        }
        let wanted = self.wanted_bytes(self.left_bytes(node), turn.settings.shards);
        match least_class(&by_class, wanted) {
            Some(class) => {
                self.next = 0;
                self.close_largest(turn, connections, node, class);
            }
            None => self.rest(turn.now.ms + AFTER_NOTHING_MS),
        }
    }

    fn close_largest(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        node: &Node<'_>,
        class: usize,
    ) {
        let excess = self.usage.excess_bytes();
        let (keys, mut next) = connections.keys(self.next, LOOKS_PER_TURN);
        let (mut weighed, mut closed) = (0, 0);
        for key in keys {
            if closed == CLOSED_PER_TURN || weighed == WEIGHED_PER_TURN {
                next = Some(key.index);
                break;
            }
            let Some(bytes) = connections
                .get(key)
                .and_then(|connection| self.freed_bytes(turn, connection, key, node))
            else {
                continue;
            };
            weighed += 1;
            if bytes < self.worth_bytes() || class_of(bytes) < class {
                continue;
            }
            if !node.round.take(bytes as u64, excess) {
                return self.rest(turn.now.ms + ROUND_MS);
            }
            give_up(turn, connections, key);
            closed += 1;
        }
        match next {
            Some(next) => {
                (self.stage, self.next) = (Step::Closing(class), next);
            }
            None => self.rest(turn.now.ms + AFTER_CLOSING_MS),
        }
    }

    /// What closing a connection would free, if it is one that this step closes.
    fn freed_bytes(
        &self,
        turn: &Turn,
        connection: &Connection,
        key: ConnectionKey,
        node: &Node<'_>,
    ) -> Option<usize> {
        let (now_ms, worth_bytes) = (turn.now.ms, self.worth_bytes());
        let is_holders = turn.is_short(Shortage::Holders);
        let is_open = connection.phase == Phase::Open || connection.has_pending_close;
        if is_holders && is_open {
            let held_bytes = connection.held_bytes();
            if held_bytes < worth_bytes {
                return None;
            }
            let beside_outbound = held_bytes - connection.outbound.charge();
            let blocked_bytes = (node.blocked_bytes)(key).unwrap_or(0);
            return Some(beside_outbound + connection.outbound.freed_bytes() + blocked_bytes);
        }
        // A connection that is ending frees what it holds, unless its peer does not take the last of it.
        let is_closed = connection.phase == Phase::Closed;
        let is_small = connection.outbound.charge() < worth_bytes;
        if is_closed || is_small || !connection.outbound.is_slow(now_ms) {
            return None;
        }
        Some(connection.outbound.freed_bytes() + (node.blocked_bytes)(key)?)
    }
}

/// Closes a connection for want of memory. If a batch is in flight, at once and without a close frame:
/// the peer would decide how long the memory is kept. A back end's batch may hold events that go to
/// other consumers now.
fn give_up(turn: &mut Turn, connections: &mut Connections, key: ConnectionKey) {
    let Some(connection) = connections.get(key) else { return };
    turn.counters.limits.memory_bytes += 1;
    match connection.outbound.charge() >= connection.held_bytes() / 2 {
        true => turn.counters.shed_readers += 1,
        false => turn.counters.shed_holders += 1,
    }
    connection.outbound.clear();
    match connection.stage {
        Stage::Http(_) => {
            connections.refuse_and_close(turn, key, 503, SHORT);
            // Frees the unfinished request.
            connections.detach(turn, key, close::MEMORY.code, close::MEMORY.text, By::Node);
            connections.finish(turn, key);
        }
        Stage::Client(_) | Stage::Backend(_) => connections.close_with(turn, key, close::MEMORY),
        // Has departed already: all that is left is what its socket does not take.
        Stage::Unsubscribing(_) | Stage::Ending => {}
    }
    let Some(connection) = connections.get(key) else { return };
    if connection.outbound.is_in_flight() {
        let remote = connection.remote;
        trail::note(turn.trail(key), Entry::Dropped(remote, close::MEMORY.text));
        connections.close(turn, key);
    }
}

/// The error message of a request that is refused for want of memory.
pub const SHORT: &str = "the node is short of memory; try again later";

impl Connection {
    /// Memory that the connection holds in queues, buffers and subscriptions. An estimate, rather too high.
    pub fn held_bytes(&self) -> usize {
        let of_stage = match &self.stage {
            Stage::Http(http) => {
                let kept = http.parked.as_ref().and_then(|parked| parked.request.as_ref());
                let parked = kept.map_or(0, |request| request.held_bytes());
                http.reader.held_bytes() + http.replies.held_bytes() + parked
            }
            Stage::Client(client) | Stage::Unsubscribing(client) => {
                let subscriptions = client.subscriptions.capacity() * SUBSCRIPTION_BYTES;
                client.assembler.held_bytes() + client.context.held_bytes() + subscriptions
            }
            Stage::Backend(backend) => {
                let unsettled = backend.unsettled.as_ref().map_or(0, |all| all.held_bytes());
                let unwritten = backend.unwritten_events.capacity() * DELIVERY_BYTES;
                backend.assembler.held_bytes()
                    + backend.replies.held_bytes()
                    + unwritten
                    + unsettled
            }
            Stage::Ending => 0,
        };
        self.outbound.charge() + self.read_ahead.held_bytes() + of_stage
    }
}

/// What a subscription takes: its place with the client and in its channel, and the channel if it is the
/// only one in it.
const SUBSCRIPTION_BYTES: usize = 256;

/// What is remembered of an event on its way.
const DELIVERY_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_begin_and_end_where_they_are_said_to() {
        let mut shortage = Shortage::None;
        let mut seen = Vec::new();
        for percent in (0..=100).chain((0..100).rev()) {
            let next = shortage.after(percent * 10, 1000);
            if next != shortage {
                seen.push((percent, next));
            }
            shortage = next;
        }
        use Shortage::*;
        let expected =
            [(80, Readers), (85, Arrivals), (90, Frames), (95, Holders), (79, Readers), (74, None)];
        assert_eq!(seen, expected);
        assert_eq!(Frames.after(895, 1000), Frames);
        assert_eq!(Frames.after(849, 1000), Arrivals);
    }

    #[test]
    fn the_largest_are_chosen_first_and_no_more_than_needed() {
        let mut by_class = [0; CLASSES];
        by_class[20] = 5 << 20;
        by_class[16] = 100 << 16;
        assert_eq!(least_class(&by_class, 1), Some(20));
        assert_eq!(least_class(&by_class, 5 << 20), Some(20));
        assert_eq!(least_class(&by_class, 6 << 20), Some(16));
        assert_eq!(least_class(&by_class, u64::MAX), Some(16));
        assert_eq!(least_class(&[0; CLASSES], 1), None);
    }

    #[test]
    fn a_shard_looks_for_its_share_and_never_for_more_than_is_left() {
        let shedding = |bytes| Shedding {
            usage: Usage { bytes, limit_bytes: 1000, shortage: Shortage::Readers },
            ..Shedding::default()
        };
        let wanted = |bytes| {
            let shedding = shedding(bytes);
            shedding.wanted_bytes(shedding.usage.excess_bytes(), 4)
        };
        assert_eq!(wanted(850), 25);
        assert_eq!(wanted(780), 10);
        assert_eq!(wanted(755), 5);
        assert_eq!(wanted(740), 0);
    }
}
