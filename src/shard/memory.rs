//! Sheds load when the node is short of memory.
//!
//! The runtime measures the memory in use and tells each shard once a turn. As memory in use
//! approaches the budget (`limits.memory_bytes`), the node takes these steps, each in addition to
//! the ones above it:
//!
//! | begins at | ends below | effect |
//! |---|---|---|
//! | 80 % | 75 % | slow readers are closed, those with the most unread data first; remembered heads of requests are freed |
//! | 85 % | 80 % | new clients get 503; no TLS handshake begins at the edge; the oldest messages of channels with history are dropped |
//! | 90 % | 85 % | frames for a client with unread data fail; peers that do not read are not read from |
//! | 95 % | 80 % | the largest connections of any kind are closed; topics take no events, edges accept nobody |
//!
//! A slow reader is a connection whose socket is full, and whose batch has been in flight for
//! `connection::outbound::SLOW_MS`. A connection that keeps up is not closed below 95 %, however
//! much was just queued for it. The size of a connection is the memory that closing it would free.
//! A frame that is queued for several connections counts for each of them by its share.
//!
//! Shedding stops at 75 %. All shards of the node add what they shed to one total, [`ShedRound`],
//! so that together they free about the excess. Health checks, `/metrics` and calls over HTTP are
//! always answered. The last fifth of the budget is for what arrives between two measurements.
//!
//! Back ends are never refused for lack of memory. The budget may be filled by topics, and by
//! clients that wait for room in them. Only consumers free that memory, so a node that refused back
//! ends would stay full. `limits.api_connections` limits the number of back ends, and what each of
//! them holds is bounded.

use super::connection::{Connection, Connections, Phase, Stage};
use super::shed_round::ShedRound;
use super::trail::{self, By, Entry};
use super::turn::Turn;
use crate::message::ConnectionKey;
use crate::protocol::close;

/// How short the node is of memory. Each step includes the ones before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shortage {
    /// There is enough memory.
    #[default]
    None,
    /// Slow readers are closed.
    Readers,
    /// New clients are refused.
    Arrivals,
    /// Frames for clients with unread data count as failed.
    Frames,
    /// The connections that hold the most memory are closed.
    Holders,
}

impl Shortage {
    /// All steps, in ascending order.
    pub const ALL: [Self; 5] =
        [Self::None, Self::Readers, Self::Arrivals, Self::Frames, Self::Holders];

    /// Whether a socket that an edge has accepted is closed without a response. With TLS earlier
    /// than without, since a handshake costs more memory than a response.
    pub fn closes_arrivals(self, is_tls: bool) -> bool {
        self >= if is_tls { Self::Arrivals } else { Self::Holders }
    }

    /// Returns where the step begins and ends.
    fn thresholds(self) -> Thresholds {
        let (begin, end) = match self {
            Self::None => (0, 0),
            Self::Readers => (80, 75),
            Self::Arrivals => (85, 80),
            Self::Frames => (90, 85),
            Self::Holders => (95, 80),
        };
        Thresholds { begin_percent: begin, end_percent: end }
    }

    /// Returns the step that follows on this one when `used_bytes` of the budget are in use. A
    /// budget of 0 bytes means that there is no limit.
    pub fn after(self, used_bytes: u64, limit_bytes: u64) -> Self {
        if limit_bytes == 0 {
            return Self::None;
        }
        let percent = (u128::from(used_bytes) * 100 / u128::from(limit_bytes)) as u64;
        let reached = |step: Self| {
            let Thresholds { begin_percent, end_percent } = step.thresholds();
            percent >= begin_percent || step <= self && percent >= end_percent
        };
        // A step may last longer than one below it, so the highest one that holds is looked for.
        Self::ALL.into_iter().rev().find(|&step| reached(step)).unwrap_or_default()
    }
}

/// The shares of the budget at which a step begins and ends.
struct Thresholds {
    begin_percent: u64,
    // Lower than `begin_percent`, so that the step does not begin again at once.
    end_percent: u64,
}

/// The node's memory in use, as the runtime has measured it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Memory in use, in bytes.
    pub bytes: u64,
    /// The budget, in bytes; 0 if there is none.
    pub limit_bytes: u64,
    /// How short of memory that makes the node.
    pub shortage: Shortage,
}

impl Usage {
    /// Returns the bytes in use beyond [`TARGET_PERCENT`] of the budget.
    fn excess_bytes(&self) -> u64 {
        self.bytes.saturating_sub(self.limit_bytes / 100 * TARGET_PERCENT)
    }
}

/// The share of the budget down to which connections are shed. Shedding as a whole ends there.
const TARGET_PERCENT: u64 = 75;

/// The number of connections that one turn visits.
const LOOKS_PER_TURN: usize = 4096;

/// The number of connections whose size one turn computes.
const WEIGHED_PER_TURN: usize = 1024;

/// The number of connections that one turn closes.
const CLOSED_PER_TURN: usize = 256;

/// The size from which on a connection is worth closing, if the budget is at least 1 MiB.
const WORTH_BYTES: u64 = 16 * 1024;

/// The pause before the next walk in milliseconds, after all connections of a size were closed or
/// the excess was shed. Within it the excess may grow beyond what the round has shed.
const AFTER_CLOSING_MS: u64 = 5;

/// The pause after a walk that found no connection to close, in milliseconds.
const AFTER_NOTHING_MS: u64 = 100;

/// The number of size classes. Class `n` holds the connections of 2^n to 2^(n+1) - 1 bytes.
const CLASSES: usize = usize::BITS as usize;

/// A shard's part in shedding. A first walk through the connections adds up their sizes by size
/// class. A second walk closes the largest ones, until the node's round has shed the excess.
#[derive(Debug, Default)]
pub(super) struct Shedding {
    usage: Usage,
    stage: ShedStage,
    // The place in the table of connections to go on from.
    next: u32,
    // No walk begins before this time.
    idle_until_ms: u64,
}

#[derive(Debug, Default)]
enum ShedStage {
    #[default]
    Idle,
    // The first walk. Holds the total of sizes of each class so far, in bytes.
    Weighing(Box<[u64; CLASSES]>),
    // The second walk. Closes connections of this class and above.
    Closing(usize),
}

/// The state outside the shard that shedding depends on.
pub(super) struct ShedContext<'a> {
    /// The total that all shards of the node shed.
    pub round: &'a ShedRound,
    /// Returns the bytes that closing a connection would free of its batch in flight; `None` if the
    /// socket of the connection is not full.
    pub blocked_bytes: &'a dyn Fn(ConnectionKey) -> Option<usize>,
}

impl Shedding {
    /// Returns the node's memory in use, as the shard was told last.
    pub(super) fn usage(&self) -> Usage {
        self.usage
    }

    /// Whether the node is at this step of shortage or a higher one.
    fn is_short(&self, of: Shortage) -> bool {
        self.usage.shortage >= of
    }

    /// Returns how many bytes the classes to close must hold together: this shard's share of what
    /// the round has left, but at least one percent of the budget, since other shards may hold
    /// nothing. Selects only the classes; the round decides how many connections are closed.
    fn wanted_bytes(&self, left_bytes: u64, shards: usize) -> u64 {
        (left_bytes / shards as u64).max(self.usage.limit_bytes / 100).min(left_bytes)
    }

    /// Returns the size from which on a connection is worth closing.
    fn worth_bytes(&self) -> usize {
        WORTH_BYTES.min(self.usage.limit_bytes / 64) as usize
    }

    /// Returns when the next turn has something to do, in milliseconds of the shard's clock.
    pub(super) fn next_turn(&self) -> Option<u64> {
        let is_short = self.is_short(Shortage::Readers);
        is_short.then_some(match self.stage {
            ShedStage::Idle => self.idle_until_ms,
            ShedStage::Weighing(_) | ShedStage::Closing(_) => 0,
        })
    }

    /// Ends a walk; the next one begins at `until_ms` at the earliest.
    fn pause(&mut self, until_ms: u64) {
        (self.stage, self.next, self.idle_until_ms) = (ShedStage::Idle, 0, until_ms);
    }
}

fn class_of(bytes: usize) -> usize {
    bytes.max(1).ilog2() as usize
}

/// Returns the highest class that holds `wanted_bytes` together with the classes above it. If all
/// classes hold less, returns the lowest one that is not empty.
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
    /// Handles the memory now in use: begins to shed, goes on with it, or stops.
    pub(super) fn handle_usage(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        usage: Usage,
        context: &ShedContext<'_>,
    ) {
        let has_risen = usage.shortage > self.usage.shortage;
        self.usage = usage;
        if has_risen && !matches!(self.stage, ShedStage::Closing(_)) {
            // A walk at a lower step left out connections that this step closes.
            self.pause(0);
        }
        if turn.is_short(Shortage::Readers) {
            context.round.renew(turn.now.ms);
            self.shed(turn, connections, context);
        } else if !matches!(self.stage, ShedStage::Idle) {
            self.pause(0);
        }
    }

    fn shed(&mut self, turn: &mut Turn, connections: &mut Connections, context: &ShedContext<'_>) {
        match std::mem::take(&mut self.stage) {
            ShedStage::Idle if turn.now.ms < self.idle_until_ms => {}
            ShedStage::Idle if self.left_bytes(context) == 0 => {
                self.pause(turn.now.ms + AFTER_CLOSING_MS);
            }
            ShedStage::Idle => self.weigh(turn, connections, context, Box::new([0; CLASSES])),
            ShedStage::Weighing(by_class) => self.weigh(turn, connections, context, by_class),
            ShedStage::Closing(class) => self.close_largest(turn, connections, context, class),
        }
    }

    /// Returns the bytes that the node has still to shed in this round.
    fn left_bytes(&self, context: &ShedContext<'_>) -> u64 {
        context.round.left_bytes(self.usage.excess_bytes())
    }

    /// Visits a slice of the connections, frees what they remember of requests, and adds up their
    /// sizes. Begins to close after the last slice.
    fn weigh(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        context: &ShedContext<'_>,
        mut by_class: Box<[u64; CLASSES]>,
    ) {
        let (keys, mut next) = connections.keys(self.next, LOOKS_PER_TURN);
        let mut weighed = 0;
        for key in keys {
            if weighed == WEIGHED_PER_TURN {
                next = Some(key.index);
                break;
            }
            let Some(connection) = connections.get(key) else { continue };
            if let Stage::Http(http) = &mut connection.stage {
                http.reader.forget_head();
            }
            let Some(bytes) = self.freed_bytes(turn, connection, key, context) else { continue };
            weighed += 1;
            if bytes >= self.worth_bytes() {
                by_class[class_of(bytes)] += bytes as u64;
            }
        }
        if let Some(next) = next {
            (self.stage, self.next) = (ShedStage::Weighing(by_class), next);
            return;
        }
        let wanted = self.wanted_bytes(self.left_bytes(context), turn.settings.shards);
        match least_class(&by_class, wanted) {
            Some(class) => {
                self.next = 0;
                self.close_largest(turn, connections, context, class);
            }
            None => self.pause(turn.now.ms + AFTER_NOTHING_MS),
        }
    }

    /// Visits a slice of the connections and closes those of a class and above, until the round is
    /// complete.
    fn close_largest(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        context: &ShedContext<'_>,
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
                .and_then(|connection| self.freed_bytes(turn, connection, key, context))
            else {
                continue;
            };
            weighed += 1;
            if bytes < self.worth_bytes() || class_of(bytes) < class {
                continue;
            }
            if !context.round.take(bytes as u64, excess) {
                return self.pause(turn.now.ms + AFTER_CLOSING_MS);
            }
            close_for_memory(turn, connections, key);
            closed += 1;
        }
        match next {
            Some(next) => {
                (self.stage, self.next) = (ShedStage::Closing(class), next);
            }
            None => self.pause(turn.now.ms + AFTER_CLOSING_MS),
        }
    }

    /// Returns the size of a connection; `None` if the current step of shortage does not close it.
    fn freed_bytes(
        &self,
        turn: &Turn,
        connection: &Connection,
        key: ConnectionKey,
        context: &ShedContext<'_>,
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
            let blocked_bytes = (context.blocked_bytes)(key).unwrap_or(0);
            return Some(beside_outbound + connection.outbound.freed_bytes() + blocked_bytes);
        }
        // An ending connection frees its memory by itself, unless its peer does not read the rest.
        let is_closed = connection.phase == Phase::Closed;
        let is_small = connection.outbound.charge() < worth_bytes;
        if is_closed || is_small || !connection.outbound.is_slow(now_ms) {
            return None;
        }
        Some(connection.outbound.freed_bytes() + (context.blocked_bytes)(key)?)
    }
}

/// Closes a connection to free its memory. If a batch is in flight, the socket is closed at once
/// and without a close frame, since the peer could otherwise keep the memory in use. Events in a
/// back end's batch go to other consumers.
fn close_for_memory(turn: &mut Turn, connections: &mut Connections, key: ConnectionKey) {
    let Some(connection) = connections.get(key) else { return };
    turn.counters.limits.memory_bytes += 1;
    match connection.outbound.charge() >= connection.held_bytes() / 2 {
        true => turn.counters.shed_readers += 1,
        false => turn.counters.shed_holders += 1,
    }
    connection.outbound.clear();
    match connection.stage {
        Stage::Http(_) => {
            connections.refuse_and_close(turn, key, 503, SHORT_OF_MEMORY);
            // Frees the unfinished request.
            connections.detach(turn, key, close::MEMORY.code, close::MEMORY.text, By::Node);
            connections.finish(turn, key);
        }
        Stage::Client(_) | Stage::Backend(_) => connections.close_with(turn, key, close::MEMORY),
        // The end was reported already. Only the unwritten rest is left.
        Stage::Unsubscribing(_) | Stage::Ending => {}
    }
    let Some(connection) = connections.get(key) else { return };
    if connection.outbound.is_in_flight() {
        let remote = connection.remote;
        trail::note(turn.trail(key), Entry::Dropped(remote, close::MEMORY.text));
        connections.close(turn, key);
    }
}

/// The error message of a request that is refused because the node is short of memory.
pub(super) const SHORT_OF_MEMORY: &str = "the node is short of memory; try again later";

impl Connection {
    /// Estimates the memory that the connection holds in queues, buffers and subscriptions. Errs on
    /// the high side.
    pub fn held_bytes(&self) -> usize {
        let of_stage = match &self.stage {
            Stage::Http(http) => {
                let kept = http.parked.as_ref().and_then(|parked| parked.request.as_ref());
                let parked = kept.map_or(0, |request| request.held_bytes());
                let arriving = http.arriving.as_ref().map_or(0, |held| held.request.held_bytes());
                http.reader.held_bytes() + http.replies.held_bytes() + parked + arriving
            }
            Stage::Client(client) | Stage::Unsubscribing(client) => {
                let subscriptions = client.subscriptions.capacity() * SUBSCRIPTION_BYTES;
                let device = client.device.as_ref().map_or(0, |device| device.held_bytes());
                client.assembler.held_bytes() + client.context.held_bytes() + subscriptions + device
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

/// The memory of a subscription: its entries in the client and in the channel, and the channel
/// itself if it has no other subscriber.
const SUBSCRIPTION_BYTES: usize = 256;

/// The memory of a delivery in flight, without its frame.
const DELIVERY_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::http::RequestLimits;
    use crate::shard::connection::Listener;
    use crate::shard::fixture;

    #[test]
    fn steps_begin_and_end_at_their_thresholds() {
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
    fn the_largest_classes_are_chosen_first_and_no_more_than_needed() {
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
    fn a_shard_looks_for_its_share_and_never_for_more_than_the_excess() {
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

    #[test]
    fn when_memory_is_short_remembered_heads_are_freed() {
        let mut turn = fixture::turn(fixture::settings());
        let mut connections = Connections::default();
        let key = fixture::accepted(&mut turn, &mut connections, Listener::Api);
        let held_bytes = |connections: &mut Connections| {
            connections.get(key).map_or(0, |connection| connection.held_bytes())
        };
        let before = held_bytes(&mut connections);
        let Stage::Http(http) = &mut connections.get(key).unwrap().stage else { panic!("HTTP") };
        let limits = RequestLimits { head_bytes: 1024, headers: 8, body_bytes: 1024 };
        for _ in 0..2 {
            let request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx";
            let read = http.reader.read(&mut &mut request.to_vec()[..], &limits).map(drop);
            assert_eq!(read, Ok(()));
        }
        assert!(held_bytes(&mut connections) > before, "the head is remembered");
        let (round, mut shedding) = (ShedRound::default(), Shedding::default());
        let context = ShedContext { round: &round, blocked_bytes: &|_| None };
        let usage = Usage { bytes: 81 << 20, limit_bytes: 100 << 20, shortage: Shortage::Readers };
        turn.shortage = usage.shortage;
        shedding.handle_usage(&mut turn, &mut connections, usage, &context);
        assert_eq!(held_bytes(&mut connections), before);
        assert!(connections.get(key).is_some_and(|connection| connection.phase == Phase::Open));
    }

    #[test]
    fn when_memory_is_very_short_the_largest_connection_is_closed_and_no_small_one() {
        let mut turn = fixture::turn(fixture::settings());
        let mut connections = Connections::default();
        let keys = [0; 3].map(|_| fixture::accepted(&mut turn, &mut connections, Listener::Api));
        for (key, bytes) in keys.into_iter().zip([100, 200_000, 40_000]) {
            connections.reply_bytes(&mut turn, key, |out| out.resize(bytes, b'x'));
        }
        let (round, mut shedding) = (ShedRound::default(), Shedding::default());
        let context = ShedContext { round: &round, blocked_bytes: &|_| None };
        let usage = Usage { bytes: 97 << 20, limit_bytes: 100 << 20, shortage: Shortage::Holders };
        turn.shortage = usage.shortage;
        // The round of the node has 100 kB left, the rest was shed by other shards.
        round.renew(turn.now.ms);
        assert!(round.take(usage.excess_bytes() - 100_000, usage.excess_bytes()));
        shedding.handle_usage(&mut turn, &mut connections, usage, &context);
        let is_open = keys.map(|key| connections.get(key).is_some_and(|c| c.phase == Phase::Open));
        assert_eq!(is_open, [true, false, true]);
        assert_eq!(turn.counters.limits.memory_bytes, 1);
        assert_eq!(context.round.left_bytes(usage.excess_bytes()), 0);
        assert_eq!(shedding.next_turn(), Some(turn.now.ms + AFTER_CLOSING_MS));
    }
}
