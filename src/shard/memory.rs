//! What a shard does when the node is short of memory.
//!
//! The runtime measures what the node holds and tells each shard once a turn. Near the budget
//! (`limits.memory_bytes`) things give way in an order, each step beside those before it, by the share
//! of the budget that is in use:
//!
//! | from | until below | |
//! |---|---|---|
//! | 80 % | 75 % | the largest outbound queues are given up, their connections closed with 1013 |
//! | 85 % | 80 % | clients and back ends that want to come in get 503; TLS at the edge is not begun |
//! | 90 % | 85 % | frames for a client that has not read what it was sent before count as failed, and whoever does not read is not read from |
//! | 95 % | 80 % | whoever holds most, of whatever kind, is closed; topics take no events, edges accept nobody |
//!
//! Health checks, `/metrics` and calls over HTTP are answered at all times, and clients that read are
//! sent to. The last fifth of the budget is the slack that a turn needs between two looks.

use super::Shard;
use super::connection::{Connection, Phase, Stage};
use super::trail::{self, By, Entry};
use crate::message::ConnectionKey;
use crate::protocol::close;

/// How short the node is of memory: a step, and those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shortage {
    /// There is enough.
    #[default]
    None,
    /// The largest outbound queues are given up.
    Readers,
    /// Nobody new comes in.
    Arrivals,
    /// Only those who read get frames.
    Frames,
    /// Whoever holds most is closed.
    Holders,
}

impl Shortage {
    /// All steps, each at its place as a number.
    pub const ALL: [Self; 5] =
        [Self::None, Self::Readers, Self::Arrivals, Self::Frames, Self::Holders];

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

/// Shedding goes on until so much of the budget is in use: then no step holds any more.
const TARGET_PERCENT: u64 = 75;

/// Connections that one turn looks at.
const LOOKS_PER_TURN: usize = 4096;

/// Connections that one turn closes.
const CLOSED_PER_TURN: usize = 256;

/// What a connection holds at least to be worth closing, of a budget over 1 MiB: below it are those whose
/// messages have only just come.
const WORTH_BYTES: u64 = 16 * 1024;

/// How long a shard waits before it looks again, in milliseconds: after it has closed somebody, so that
/// the next measurement knows of it; and after it has found nobody.
const AFTER_CLOSING_MS: u64 = 5;
const AFTER_NOTHING_MS: u64 = 100;

/// Sizes of connections: powers of two.
const CLASSES: usize = usize::BITS as usize;

/// A shard's part in shedding: a walk through its connections that adds up what those of each size hold,
/// then one that closes the largest, until its share of the excess is free.
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
    // Those of this class and above, until so many bytes are free.
    Closing(usize, u64),
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

    /// Whether nobody new is to come in.
    pub fn refuses_arrivals(&self) -> bool {
        self.is_short(Shortage::Arrivals)
    }

    /// What this shard is to free of it: its share of the excess, and one percent of the budget at
    /// least, since the others may hold nothing.
    fn share(&self, shards: usize) -> u64 {
        let Usage { bytes, limit_bytes, .. } = self.usage;
        let excess = bytes.saturating_sub(limit_bytes / 100 * TARGET_PERCENT);
        (excess / shards as u64).max(limit_bytes / 100).min(excess)
    }

    /// What a connection holds at least to be worth closing.
    fn worth_bytes(&self) -> usize {
        WORTH_BYTES.min(self.usage.limit_bytes / 64) as usize
    }

    /// When to go on.
    pub fn next_turn(&self) -> Option<u64> {
        let is_short = self.is_short(Shortage::Readers);
        is_short.then_some(match self.stage {
            Step::Resting => self.rests_until_ms,
            Step::Weighing(_) | Step::Closing(..) => 0,
        })
    }

    fn rest(&mut self, until_ms: u64) {
        (self.stage, self.next, self.rests_until_ms) = (Step::Resting, 0, until_ms);
    }
}

fn class_of(bytes: usize) -> usize {
    bytes.max(1).ilog2() as usize
}

/// The class such that those of it and above hold so many bytes, or the lowest with anybody in it.
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

impl Shard {
    /// What the node holds now. To be told before [`Self::handle_turn`]; a shard that never is has no
    /// budget.
    pub fn handle_memory(&mut self, usage: Usage) {
        let was_holding = self.shedding.is_short(Shortage::Holders);
        self.shedding.usage = usage;
        if was_holding && !self.shedding.is_short(Shortage::Holders) {
            self.feed_again();
        }
    }

    /// Memory that its connections hold, as shedding weighs them. Costs a look at each.
    pub fn held_bytes(&mut self) -> usize {
        let (keys, _) = self.connections.keys(0, usize::MAX);
        let held = keys.into_iter().filter_map(|key| Some(self.connections.get(key)?.held_bytes()));
        held.sum()
    }

    /// Whether a socket that an edge accepted is to be closed at once: over TLS, a handshake costs more
    /// than an answer without one.
    pub fn closes_arrivals(&self, is_tls: bool) -> bool {
        self.shedding.is_short(if is_tls { Shortage::Arrivals } else { Shortage::Holders })
    }

    /// Whether nobody new is to come in.
    pub(super) fn refuses_arrivals(&self) -> bool {
        self.shedding.refuses_arrivals()
    }

    /// Gives up what is too much, if the node is short: a slice of it per turn.
    pub(super) fn shed(&mut self) {
        if !self.shedding.is_short(Shortage::Readers) {
            if !matches!(self.shedding.stage, Step::Resting) {
                self.shedding.rest(0);
            }
            return;
        }
        match std::mem::take(&mut self.shedding.stage) {
            Step::Resting if self.now.ms < self.shedding.rests_until_ms => {}
            Step::Resting => self.weigh(Box::new([0; CLASSES])),
            Step::Weighing(by_class) => self.weigh(by_class),
            Step::Closing(class, left_bytes) => self.close_largest(class, left_bytes),
        }
    }

    fn weigh(&mut self, mut by_class: Box<[u64; CLASSES]>) {
        let (keys, next) = self.connections.keys(self.shedding.next, LOOKS_PER_TURN);
        for key in keys {
            let bytes = self.sheddable(key);
            if bytes >= self.shedding.worth_bytes() {
                by_class[class_of(bytes)] += bytes as u64;
            }
        }
        if let Some(next) = next {
            (self.shedding.stage, self.shedding.next) = (Step::Weighing(by_class), next);
            return;
        }
        let share = self.shedding.share(self.settings.shards);
        match least_class(&by_class, share) {
            Some(class) => {
                self.shedding.next = 0;
                self.close_largest(class, share);
            }
            None => self.shedding.rest(self.now.ms + AFTER_NOTHING_MS),
        }
    }

    fn close_largest(&mut self, class: usize, mut left_bytes: u64) {
        let (keys, mut next) = self.connections.keys(self.shedding.next, LOOKS_PER_TURN);
        let mut closed = 0;
        for key in keys {
            if left_bytes == 0 {
                next = None;
                break;
            }
            if closed == CLOSED_PER_TURN {
                next = Some(key.index);
                break;
            }
            let bytes = self.sheddable(key);
            if bytes >= self.shedding.worth_bytes() && class_of(bytes) >= class {
                self.give_up(key);
                left_bytes = left_bytes.saturating_sub(bytes as u64);
                closed += 1;
            }
        }
        match next {
            Some(next) => {
                (self.shedding.stage, self.shedding.next) =
                    (Step::Closing(class, left_bytes), next);
            }
            None => self.shedding.rest(self.now.ms + AFTER_CLOSING_MS),
        }
    }

    /// What closing a connection would free, of what is to be freed at this step.
    fn sheddable(&mut self, key: ConnectionKey) -> usize {
        let is_all = self.shedding.is_short(Shortage::Holders);
        match self.connections.get(key) {
            Some(connection) if connection.is_parting && is_all => connection.held_bytes(),
            // One that ends frees what it holds, but for what its peer does not take.
            Some(connection) if connection.phase != Phase::Open => {
                let is_stuck =
                    connection.phase != Phase::Closed && connection.outbound.is_in_flight();
                if is_stuck { connection.outbound.charge() } else { 0 }
            }
            Some(connection) if is_all => connection.held_bytes(),
            Some(connection) => connection.outbound.charge(),
            None => 0,
        }
    }

    /// Closes a connection for want of memory. What is on its way to a peer that does not read would be
    /// kept for as long as it likes: then the close frame has no way to it either.
    fn give_up(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.get(key) else { return };
        self.counters.limits.memory_bytes += 1;
        match connection.outbound.charge() >= connection.held_bytes() / 2 {
            true => self.counters.shed_readers += 1,
            false => self.counters.shed_holders += 1,
        }
        connection.outbound.clear();
        match connection.stage {
            Stage::Http(_) => {
                self.refuse_for_good(key, 503, SHORT);
                // With it goes the request that is half read.
                self.depart(key, close::MEMORY.code, close::MEMORY.text, By::Node);
                self.finish(key);
            }
            Stage::Client(_) | Stage::Backend(_) => self.close_with(key, close::MEMORY),
            Stage::Leaving(_) | Stage::Ending => {}
        }
        let Some(connection) = self.connections.get(key) else { return };
        if connection.outbound.is_in_flight() {
            let remote = connection.remote;
            trail::note(self.trail(key), Entry::Dropped(remote, close::MEMORY.text));
            self.close(key);
        }
    }
}

/// What whoever is refused for want of memory is told.
pub const SHORT: &str = "the node is short of memory; try again later";

impl Connection {
    /// Memory that it holds beside itself and what it speaks: an estimate, and rather too much.
    pub fn held_bytes(&self) -> usize {
        let of_stage = match &self.stage {
            Stage::Http(http) => {
                let kept = http.parked.as_ref().and_then(|parked| parked.request.as_ref());
                let parked = kept.map_or(0, |request| request.held_bytes());
                http.reader.held_bytes() + http.replies.held_bytes() + parked
            }
            Stage::Client(client) | Stage::Leaving(client) => {
                let subscriptions = client.subscriptions.capacity() * SUBSCRIPTION_BYTES;
                client.assembler.held_bytes() + client.context.held_bytes() + subscriptions
            }
            Stage::Backend(backend) => {
                let unsettled = backend.unsettled.as_ref().map_or(0, |all| all.held_bytes());
                let deliveries = backend.deliveries.capacity() * DELIVERY_BYTES;
                backend.assembler.held_bytes()
                    + backend.replies.held_bytes()
                    + deliveries
                    + unsettled
            }
            Stage::Ending => 0,
        };
        self.outbound.charge() + self.held.held_bytes() + of_stage
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
    fn a_shard_frees_its_share_and_never_more_than_the_excess() {
        let shedding = |bytes| Shedding {
            usage: Usage { bytes, limit_bytes: 1000, shortage: Shortage::Readers },
            ..Shedding::default()
        };
        assert_eq!(shedding(850).share(4), 25);
        assert_eq!(shedding(780).share(4), 10);
        assert_eq!(shedding(755).share(4), 5);
        assert_eq!(shedding(740).share(4), 0);
    }
}
