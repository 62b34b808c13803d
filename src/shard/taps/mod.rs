//! Taps: back ends watch devices live.
//!
//! A *tapper* is a back end with one tap or more. The shard of the tapper asks all shards of the grid to
//! watch; each of them marks the connections that match, and tells the tapper's shard what happens to them.
//!
//! - `mod.rs`: the tappers of this shard, and the marks. `watched.rs`: the taps that this shard watches for.
//!   `telling.rs`: what the other parts tell them.
//!
//! The cost of taps is bounded: the taps of the grid and of a back end, the events a second of a tap on
//! each shard and on the tapper's, the events in flight from a shard to a tapper, and the part of the
//! tapper's outbound queue. What exceeds a bound is dropped, and its number is told.

mod telling;
mod watched;

use std::collections::{BTreeMap, BTreeSet};

use super::connection::{Client, Connection, Connections, Phase, Stage};
use super::memory::Shortage;
use super::rate::{Bucket, Rate};
use super::turn::Turn;
use crate::address::{NodeId, ShardAddress, ShardId};
use crate::message::{
    BackendId, ConnectionKey, FromTapper, GridMessage, Requester, Ticket, ToTapper,
};
use crate::protocol::api::{self, Code, Fault, Tap, TapEvent};
use crate::protocol::frame::Frame;
use watched::{LOST_MS, Subject};

pub(super) use telling::ClientCall;
pub(super) use watched::{TAPS_MAX, TapSet, WatchedTaps};

/// The most taps of one back end.
const TAPS_PER_BACKEND_MAX: usize = 8;

/// The part of a tapper's outbound limit that tap events may take: one in this number. So they never close
/// the tapper, and never keep its calls from being read.
const OUTBOUND_PART: usize = 4;

/// Comparisons of a connection with a tap in one turn, by which marks are brought up to date. They take
/// about a millisecond. The last connection of a turn may exceed the bound.
const COMPARED_PER_TURN: usize = 4096;

/// The subscriptions of a client that are compared with a channel in the time of another comparison.
const SUBSCRIPTIONS_PER_COMPARISON: usize = 64;

/// The number of events after which a shard is told that they were taken.
const TAKEN_PER_MESSAGE: u32 = 32;

/// A ticket that no question has.
const UNAWAITED: Ticket = Ticket(u64::MAX);

/// The tappers of a shard, and the walk by which it marks connections.
#[derive(Debug, Default)]
pub(super) struct Taps {
    // At most `TAPS_MAX`.
    tappers: BTreeMap<ConnectionKey, Tapper>,
    // The place in the table of connections to go on at. None: no walk is in progress.
    next: Option<u32>,
}

/// A back end of this shard that taps.
#[derive(Debug, Default)]
struct Tapper {
    // At most `TAPS_PER_BACKEND_MAX`.
    taps: Vec<Tap>,
    // Whether the answer to a `tap.start` is queued, so that events may follow.
    is_answered: bool,
    // The bound on events of all shards together.
    rate: Option<Rate>,
    bucket: Bucket,
    // Events that were not told, and when their number is.
    lost: u64,
    lost_due_ms: Option<u64>,
    // Nodes that have become unreachable, which the tapper is not told yet.
    unreachable: BTreeSet<NodeId>,
    // Events taken from each shard since it was last told.
    taken: BTreeMap<ShardAddress, u32>,
}

impl Tapper {
    fn lose(&mut self, now_ms: u64, count: u64) {
        self.lost += count;
        self.lost_due_ms.get_or_insert(now_ms + LOST_MS);
    }
}

impl Taps {
    /// Checks whether a back end may begin one more tap.
    pub(super) fn check_room(&self, turn: &mut Turn, key: ConnectionKey) -> Result<(), Fault> {
        let own = self.tappers.get(&key).map_or(0, |tapper| tapper.taps.len());
        let why = match () {
            () if own >= TAPS_PER_BACKEND_MAX => format!(
                "this connection has {TAPS_PER_BACKEND_MAX} taps already; tap.stop ends them"
            ),
            () if !turn.taps.has_room() => format!("the grid has {TAPS_MAX} taps already"),
            () => return Ok(()),
        };
        turn.counters.limits.taps += 1;
        Err(Fault::new(Code::TooManyRequests, why))
    }

    /// Begins a tap of a back end, with its question to all shards of the grid.
    pub(super) fn start(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        requester: Requester,
        tap: Tap,
    ) {
        let key = requester.backend.connection;
        let Some(backend) = connections.get(key).and_then(Connection::backend) else { return };
        backend.is_tapping = true;
        for to in all_shards(turn) {
            let start = FromTapper::Start(requester.ticket, Box::new(tap.clone()));
            turn.send_grid(to, GridMessage::FromTapper(requester.backend, start));
        }
        let tapper = self.tappers.entry(key).or_default();
        tapper.taps.push(tap);
        tapper.rate = Rate::new(tapper.taps.iter().map(|tap| u32::from(tap.max_per_s)).sum());
    }

    /// Notes that the answer to a `tap.start` is queued: events follow from now on.
    pub(super) fn handle_answered(&mut self, key: ConnectionKey) {
        if let Some(tapper) = self.tappers.get_mut(&key) {
            tapper.is_answered = true;
        }
    }

    /// Ends all taps of a back end, which may be gone.
    pub(super) fn stop(&mut self, turn: &mut Turn, key: ConnectionKey) {
        if self.tappers.remove(&key).is_none() {
            return;
        }
        let backend = turn.backend_id(key);
        for to in all_shards(turn) {
            turn.send_grid(to, GridMessage::FromTapper(backend, FromTapper::Stop));
        }
    }

    /// Begins the taps of this shard on a node that has become reachable. What that node watched before is
    /// over, and so are its own taps, which it begins again.
    pub(super) fn handle_node_up(&mut self, turn: &mut Turn, node: NodeId) {
        self.forget_node(turn, node);
        for (&key, tapper) in &mut self.tappers {
            // What is told from now on shows that the node is back.
            tapper.unreachable.remove(&node);
            let backend = turn.backend_id(key);
            for to in shards_of(turn, node) {
                for tap in &tapper.taps {
                    let start = FromTapper::Start(UNAWAITED, Box::new(tap.clone()));
                    turn.send_grid(to, GridMessage::FromTapper(backend, start));
                }
            }
        }
    }

    /// Forgets the taps of a node that has become unreachable. Tappers are told that nothing is watched there.
    pub(super) fn handle_node_down(&mut self, turn: &mut Turn, node: NodeId) {
        self.forget_node(turn, node);
        for tapper in self.tappers.values_mut().filter(|tapper| tapper.is_answered) {
            tapper.unreachable.insert(node);
            tapper.lost_due_ms = Some(turn.now.ms);
        }
    }

    fn forget_node(&mut self, turn: &mut Turn, node: NodeId) {
        turn.taps.stop_of_node(node);
        for tapper in self.tappers.values_mut() {
            tapper.taken.retain(|shard, _| shard.node != node);
        }
    }

    /// Handles a message of a tapper's shard.
    pub(super) fn handle_from_tapper(
        &mut self,
        turn: &mut Turn,
        backend: BackendId,
        message: FromTapper,
    ) {
        match message {
            FromTapper::Start(ticket, tap) => {
                let requester = Requester { ticket, backend };
                if !turn.taps.start(requester, *tap) {
                    turn.counters.limits.taps += 1;
                    answer(turn, requester, false);
                }
            }
            FromTapper::Stop => turn.taps.stop(backend),
            FromTapper::Taken(count) => turn.taps.handle_taken(backend, count),
        }
    }

    /// Handles an event for a tapper of this shard, from a shard that watches.
    pub(super) fn handle_event(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        from: ShardAddress,
        key: ConnectionKey,
        event: &Frame,
    ) {
        let Some(tapper) = self.tappers.get_mut(&key) else { return };
        let taken = tapper.taken.entry(from).or_default();
        *taken += 1;
        if *taken >= TAKEN_PER_MESSAGE {
            let message = FromTapper::Taken(std::mem::take(taken));
            turn.send_grid(from, GridMessage::FromTapper(turn.backend_id(key), message));
        }
        if !tapper.is_answered {
            // The tap begins with the answer.
            return;
        }
        let now_ms = turn.now.ms;
        let may_send = tapper.rate.is_none_or(|rate| rate.take(&mut tapper.bucket, now_ms));
        if may_send && has_room(turn, connections, key, event.bytes().len()) {
            turn.counters.tap_events += 1;
            connections.write_with(turn, key, |out| out.extend_from_slice(event.bytes()));
            connections.record_backend_output(key);
        } else {
            turn.counters.tap_events_lost += 1;
            tapper.lose(now_ms, 1);
        }
    }

    /// Notes that a shard could not send this number of events to a tapper.
    pub(super) fn handle_lost(&mut self, turn: &mut Turn, key: ConnectionKey, count: u64) {
        let tapper = self.tappers.get_mut(&key).filter(|tapper| tapper.is_answered);
        if let Some(tapper) = tapper {
            turn.counters.tap_events_lost += count;
            tapper.lose(turn.now.ms, count);
        }
    }

    /// Marks a client that has connected, and tells the taps of it.
    #[cold]
    #[inline(never)]
    pub(super) fn handle_opened(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        is_in: impl Fn(&Client, &str) -> bool,
    ) {
        mark(turn, connections, key, is_in);
        let Some(connection) = connections.peek(key).filter(|c| c.is_tapped()) else { return };
        let Stage::Client(client) = &connection.stage else { return };
        let Some(route) = connection.route(&turn.settings).cloned() else { return };
        let user = client.context.user();
        let event = TapEvent::Connect {
            path: &route.path,
            remote: connection.remote,
            user: user.as_deref(),
            channels: client.subscriptions.len(),
        };
        turn.tap_client(connection, event);
    }

    /// Brings the marks of a client up to date, whose context or channels have changed.
    pub(super) fn handle_changed(
        &mut self,
        turn: &Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        is_in: impl Fn(&Client, &str) -> bool,
    ) {
        mark(turn, connections, key, is_in);
    }

    /// Whether a turn has something to do for taps.
    #[inline]
    pub(super) fn has_work(&self, turn: &Turn) -> bool {
        turn.taps.is_active() || !self.tappers.is_empty()
    }

    /// Marks some more connections, and tells tappers of lost events.
    pub(super) fn handle_turn(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        is_in: impl Fn(&Client, &str) -> bool,
    ) {
        self.mark_some(turn, connections, is_in);
        turn.taps.tell_lost(turn.now.ms);
        turn.send_to_tappers();
        for (&key, tapper) in &mut self.tappers {
            tell_lost(turn, connections, key, tapper);
        }
    }

    /// Returns when the next turn has something to do, in milliseconds on the shard's clock.
    pub(super) fn next_turn(&self, turn: &Turn) -> Option<u64> {
        if !self.has_work(turn) {
            return None;
        }
        if self.next.is_some() || turn.taps.is_walk_due() {
            return Some(0);
        }
        let due = self.tappers.values().filter_map(|tapper| tapper.lost_due_ms).min();
        due.into_iter().chain(turn.taps.next_lost_ms()).min()
    }

    fn mark_some(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        is_in: impl Fn(&Client, &str) -> bool,
    ) {
        if self.next.is_none() && turn.taps.is_walk_due() {
            turn.taps.begin_walk();
            self.next = Some(0);
        }
        let Some(from) = self.next else { return };
        let (taps, channels) = (turn.taps.count().max(1), turn.taps.channel_taps());
        let (keys, end) = connections.keys(from, COMPARED_PER_TURN / taps);
        let mut left = COMPARED_PER_TURN;
        let is_affordable = |key: &&ConnectionKey| {
            let is_affordable = left > 0;
            let subscriptions = subscriptions(connections, **key) * channels;
            left = left.saturating_sub(taps + subscriptions / SUBSCRIPTIONS_PER_COMPARISON);
            is_affordable
        };
        let affordable = keys.iter().take_while(is_affordable).count();
        for &key in &keys[..affordable] {
            mark(turn, connections, key, &is_in);
        }
        self.next = keys.get(affordable).map(|key| key.index).or(end);
        if self.next.is_none() {
            for requester in turn.taps.end_walk() {
                answer(turn, requester, true);
            }
        }
    }
}

/// Returns all shards of this node and of the reachable ones.
pub(super) fn all_shards(turn: &Turn) -> Vec<ShardAddress> {
    let nodes = std::iter::once(turn.address.node).chain(turn.roster.others());
    nodes.flat_map(|node| shards_of(turn, node)).collect()
}

fn shards_of(turn: &Turn, node: NodeId) -> Vec<ShardAddress> {
    let count = turn.roster.shard_count(node).unwrap_or_default();
    (0..count).map(|index| ShardAddress { node, shard: ShardId(index as u8) }).collect()
}

/// Answers a `FromTapper::Start`.
fn answer(turn: &mut Turn, requester: Requester, is_watching: bool) {
    let Requester { ticket, backend } = requester;
    let started = ToTapper::Started { ticket, is_watching };
    turn.send_grid(backend.at, GridMessage::ToTapper(backend, started));
}

/// Returns the number of channels that a connection's client is subscribed to.
fn subscriptions(connections: &Connections, key: ConnectionKey) -> usize {
    match connections.peek(key).map(|connection| &connection.stage) {
        Some(Stage::Client(client)) => client.subscriptions.len(),
        _ => 0,
    }
}

/// Brings the set of taps of a connection up to date.
fn mark(
    turn: &Turn,
    connections: &mut Connections,
    key: ConnectionKey,
    is_in: impl Fn(&Client, &str) -> bool,
) {
    let Some(connection) = connections.get(key) else { return };
    let topic = connection.route(&turn.settings).and_then(|route| route.topic.as_deref());
    let Stage::Client(client) = &connection.stage else { return };
    let user = client.context.user();
    let taps = turn.taps.matching(&Subject {
        client: Some(client.id),
        user: user.as_deref(),
        topic,
        address: connection.remote.ip(),
        is_in: &|channel| is_in(client, channel),
    });
    connection.set_taps(taps);
}

/// Whether a tap event of this many bytes may be written to a tapper.
fn has_room(turn: &Turn, connections: &Connections, key: ConnectionKey, bytes: usize) -> bool {
    let Some(connection) = connections.peek(key) else { return false };
    let charge = connection.outbound.charge();
    let is_shed = connection.outbound.is_in_flight() && turn.is_short(Shortage::Frames);
    let fits = charge == 0 || charge + bytes <= connection.outbound_max() / OUTBOUND_PART;
    connection.phase == Phase::Open && fits && !is_shed
}

/// Tells a tapper how many events were lost, and which nodes are unreachable, if that is due and there is room.
/// Otherwise tries again later.
fn tell_lost(
    turn: &mut Turn,
    connections: &mut Connections,
    key: ConnectionKey,
    tapper: &mut Tapper,
) {
    if tapper.lost_due_ms.take_if(|due_ms| *due_ms <= turn.now.ms).is_none() {
        return;
    }
    if !has_room(turn, connections, key, LOST_BYTES_MAX) {
        return tapper.lose(turn.now.ms, 0);
    }
    let (unix_ms, lost) = (turn.now.unix_ms, std::mem::take(&mut tapper.lost));
    if lost > 0 {
        connections.write_with(turn, key, |out| api::put_tap_lost(out, unix_ms, lost, None));
        connections.record_backend_output(key);
    }
    while let Some(node) = tapper.unreachable.pop_first() {
        if !has_room(turn, connections, key, LOST_BYTES_MAX) {
            tapper.unreachable.insert(node);
            return tapper.lose(turn.now.ms, 0);
        }
        connections.write_with(turn, key, |out| api::put_tap_lost(out, unix_ms, 0, Some(node)));
        connections.record_backend_output(key);
    }
}

/// The most bytes of the frame of a `lost` event.
const LOST_BYTES_MAX: usize = 128;

#[cfg(test)]
mod tests;
