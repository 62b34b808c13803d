//! The taps that a shard watches for, of back ends of all nodes. Part of the turn, so that every part can
//! tell the taps what happens to its clients.
//!
//! Each tap has a number, which is a bit in the [`TapSet`] of every connection that the tap matches. So a
//! connection that no tap matches costs the test of a word that is loaded anyway.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use crate::address::{ClientId, NodeId};
use crate::message::{BackendId, ConnectionKey, Requester, ToTapper};
use crate::protocol::api::{Tap, TapTarget};
use crate::protocol::frame::Frame;
use crate::shard::rate::{Bucket, Rate};

/// The taps of the whole grid: every shard watches for all of them.
pub(in crate::shard) const TAPS_MAX: usize = u32::BITS as usize;

/// The events in flight from one shard to one tapper. Further ones are lost.
const IN_FLIGHT_MAX: u32 = 128;

/// How often a tapper is told of lost events, in milliseconds.
pub(super) const LOST_MS: u64 = 1000;

/// The callers that are remembered until their calls arrive. Of more, the oldest are forgotten: their
/// calls are told without a user.
const CALLERS_MAX: usize = 64;

/// A set of taps: those that match a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TapSet(u32);

impl TapSet {
    /// Whether no tap is in the set.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns the taps that are in both sets.
    fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Returns the taps that are in either set.
    pub fn joined(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn insert(&mut self, number: usize) {
        self.0 |= 1 << number;
    }

    fn remove(&mut self, number: usize) {
        self.0 &= !(1 << number);
    }

    /// Iterates over the numbers of the taps, lowest first.
    fn numbers(self) -> impl Iterator<Item = usize> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let number = left.trailing_zeros();
            left &= left.wrapping_sub(1);
            (number < u32::BITS).then_some(number as usize)
        })
    }
}

/// A client, or a refused connection, that is compared with a tap's target.
pub struct Subject<'a> {
    /// The client. `None`: the connection was refused.
    pub client: Option<ClientId>,
    /// The user of the client.
    pub user: Option<&'a str>,
    /// The topic of the route.
    pub topic: Option<&'a str>,
    /// The address of the peer.
    pub address: IpAddr,
    /// Whether the client is subscribed to a channel.
    pub is_in: &'a dyn Fn(&str) -> bool,
}

impl Subject<'_> {
    fn is_matched_by(&self, target: &TapTarget) -> bool {
        match target {
            TapTarget::Client(client) => self.client == Some(*client),
            TapTarget::User(user) => self.user == Some(user),
            TapTarget::Channel(channel) => (self.is_in)(channel),
            TapTarget::Topic(topic) => self.topic == Some(topic),
            TapTarget::Address(network) => network.contains(&self.address.to_canonical()),
        }
    }
}

/// The taps that a shard watches for. Empty on most nodes at most times: all else is behind a pointer.
#[derive(Debug, Default)]
pub struct WatchedTaps(Option<Box<TapTable>>);

/// The taps by number, and their back ends.
#[derive(Debug, Default)]
struct TapTable {
    slots: [Option<TapSlot>; TAPS_MAX],
    // The taps that have not ended.
    active: TapSet,
    // Whether a tap has begun or ended since the last walk over all connections began.
    is_walk_due: bool,
    tappers: BTreeMap<BackendId, TapperAccount>,
    // Messages to tappers, in order. Emptied with each event. `IN_FLIGHT_MAX` bounds the events.
    outgoing: VecDeque<(BackendId, ToTapper)>,
    // The last request on an edge, for a refusal that follows.
    request: Option<EdgeRequest>,
    // Users of calls that other shards have announced: at most `CALLERS_MAX`.
    callers: VecDeque<(Requester, Box<str>)>,
}

/// The part of a device's request that a refusal reports.
#[derive(Debug)]
struct EdgeRequest {
    key: ConnectionKey,
    path: Option<Box<str>>,
    user: Option<Box<str>>,
}

/// A tap, or the number of one that has ended and is still in the sets of connections.
#[derive(Debug)]
struct TapSlot {
    target: TapTarget,
    rate: Option<Rate>,
    bucket: Bucket,
    walk: WalkState,
    // Who waits until all connections are marked.
    starting: Option<Requester>,
    has_ended: bool,
}

/// Whether the walk over all connections, by which their sets are brought up to date, has met the tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WalkState {
    Due,
    InProgress,
    Done,
}

/// A back end with taps.
#[derive(Debug)]
struct TapperAccount {
    taps: TapSet,
    // The number of events that may still be sent.
    credit: u32,
    // Events that were not sent, and when the tapper is told.
    lost: u64,
    lost_due_ms: Option<u64>,
}

impl WatchedTaps {
    /// Whether there is a tap. If not, nothing has to be looked up for taps.
    #[inline]
    pub fn is_active(&self) -> bool {
        self.0.is_some()
    }

    /// Returns the number of taps that have not ended: at most [`TAPS_MAX`].
    pub(super) fn count(&self) -> usize {
        self.0.as_ref().map_or(0, |table| table.active.0.count_ones() as usize)
    }

    /// Whether one more tap may begin.
    pub fn has_room(&self) -> bool {
        self.0.as_ref().is_none_or(|table| table.slots.iter().any(Option::is_none))
    }

    /// Returns the taps whose target meets a condition.
    pub fn of_target(&self, is_match: impl Fn(&TapTarget) -> bool) -> TapSet {
        let Some(table) = &self.0 else { return TapSet::default() };
        let mut set = table.active;
        for number in table.active.numbers() {
            if !table.slots[number].as_ref().is_some_and(|slot| is_match(&slot.target)) {
                set.remove(number);
            }
        }
        set
    }

    /// Returns the taps of channels whose name meets a condition.
    pub(super) fn of_channel(&self, is_match: impl Fn(&str) -> bool) -> TapSet {
        self.of_target(|target| matches!(target, TapTarget::Channel(name) if is_match(name)))
    }

    /// Returns the taps of topics whose name meets a condition.
    pub(super) fn of_topic(&self, is_match: impl Fn(&str) -> bool) -> TapSet {
        self.of_target(|target| matches!(target, TapTarget::Topic(name) if is_match(name)))
    }

    /// Returns the taps that match a subject.
    pub fn matching(&self, subject: &Subject<'_>) -> TapSet {
        self.of_target(|target| subject.is_matched_by(target))
    }

    /// Returns the number of taps of channels, for each of which a client's subscriptions are compared.
    pub(super) fn channel_taps(&self) -> usize {
        self.of_target(|target| matches!(target, TapTarget::Channel(_))).numbers().count()
    }

    /// Begins a tap. The requester is told once all connections are marked. Returns false if there are too
    /// many taps.
    pub(super) fn start(&mut self, requester: Requester, tap: Tap) -> bool {
        let table = self.0.get_or_insert_default();
        let Some(number) = table.slots.iter().position(Option::is_none) else { return false };
        table.slots[number] = Some(TapSlot {
            target: tap.target,
            rate: Rate::new(tap.max_per_s.into()),
            bucket: Bucket::default(),
            walk: WalkState::Due,
            starting: Some(requester),
            has_ended: false,
        });
        table.active.insert(number);
        table.is_walk_due = true;
        let taps = TapSet::default();
        let tapper = TapperAccount { taps, credit: IN_FLIGHT_MAX, lost: 0, lost_due_ms: None };
        table.tappers.entry(requester.backend).or_insert(tapper).taps.insert(number);
        true
    }

    /// Ends all taps of a back end.
    pub(super) fn stop(&mut self, backend: BackendId) {
        let Some(table) = &mut self.0 else { return };
        let Some(tapper) = table.tappers.remove(&backend) else { return };
        table.is_walk_due = true;
        for number in tapper.taps.numbers() {
            table.active.remove(number);
            if let Some(slot) = &mut table.slots[number] {
                (slot.has_ended, slot.walk, slot.starting) = (true, WalkState::Due, None);
            }
        }
    }

    /// Ends all taps of the back ends of a node.
    pub(super) fn stop_of_node(&mut self, node: NodeId) {
        let Some(table) = &self.0 else { return };
        let gone = table.tappers.keys().filter(|backend| backend.at.node == node).copied();
        for backend in gone.collect::<Vec<_>>() {
            self.stop(backend);
        }
    }

    /// Allows a tapper's shard to be sent as many events more as it has taken.
    pub(super) fn handle_taken(&mut self, backend: BackendId, count: u32) {
        let tapper = self.0.as_mut().and_then(|table| table.tappers.get_mut(&backend));
        if let Some(tapper) = tapper {
            tapper.credit = tapper.credit.saturating_add(count).min(IN_FLIGHT_MAX);
        }
    }

    /// Whether a walk over all connections is due: a tap has begun or ended since the last one began.
    pub(super) fn is_walk_due(&self) -> bool {
        self.0.as_ref().is_some_and(|table| table.is_walk_due)
    }

    /// Notes that a walk over all connections begins.
    pub(super) fn begin_walk(&mut self) {
        let Some(table) = &mut self.0 else { return };
        table.is_walk_due = false;
        for slot in table.slots.iter_mut().flatten().filter(|slot| slot.walk == WalkState::Due) {
            slot.walk = WalkState::InProgress;
        }
    }

    /// Notes that all connections were visited since [`Self::begin_walk`]. Numbers of taps that had ended by
    /// then are free again. Returns who waits for taps that had begun.
    pub(super) fn end_walk(&mut self) -> Vec<Requester> {
        let Some(table) = &mut self.0 else { return Vec::new() };
        let mut started = Vec::new();
        for slot in &mut table.slots {
            let Some(tap) = slot.as_mut().filter(|tap| tap.walk == WalkState::InProgress) else {
                continue;
            };
            tap.walk = WalkState::Done;
            started.extend(tap.starting.take());
            if tap.has_ended {
                *slot = None;
            }
        }
        if table.slots.iter().all(Option::is_none) {
            self.0 = None;
        }
        started
    }

    /// Tells taps of an event: each tapper once, through the first of its taps in the set that may still
    /// send in this second. `encode` is called only if there is one.
    pub(super) fn tell(&mut self, now_ms: u64, taps: TapSet, encode: impl Fn() -> Frame) {
        let Some(TapTable { slots, tappers, outgoing, .. }) = self.0.as_deref_mut() else { return };
        let mut encoded: Option<Frame> = None;
        for (&backend, tapper) in tappers {
            let taps = taps.common(tapper.taps);
            if taps.is_empty() {
                continue;
            }
            let mut may_send =
                |number: usize| slots[number].as_mut().is_some_and(|slot| slot.take(now_ms));
            if tapper.credit > 0 && taps.numbers().any(&mut may_send) {
                tapper.credit -= 1;
                let frame = encoded.get_or_insert_with(&encode).clone();
                outgoing.push_back((backend, ToTapper::Event(frame)));
            } else {
                tapper.lost += 1;
                tapper.lost_due_ms.get_or_insert(now_ms + LOST_MS);
            }
        }
    }

    /// Makes the messages that tell tappers of lost events, as far as they are due.
    pub(super) fn tell_lost(&mut self, now_ms: u64) {
        let Some(TapTable { tappers, outgoing, .. }) = self.0.as_deref_mut() else { return };
        for (&backend, tapper) in tappers {
            if tapper.lost_due_ms.take_if(|due_ms| *due_ms <= now_ms).is_some() {
                let lost = ToTapper::Lost(std::mem::take(&mut tapper.lost));
                outgoing.push_back((backend, lost));
            }
        }
    }

    /// Returns when [`Self::tell_lost`] has something to tell, in milliseconds on the shard's clock.
    pub(super) fn next_lost_ms(&self) -> Option<u64> {
        let tappers = self.0.as_ref()?.tappers.values();
        tappers.filter_map(|tapper| tapper.lost_due_ms).min()
    }

    /// Returns the next message to a tapper.
    pub(super) fn poll_message(&mut self) -> Option<(BackendId, ToTapper)> {
        self.0.as_mut()?.outgoing.pop_front()
    }

    /// Remembers the path of a new request on an edge, for the refusal that may follow.
    pub fn note_request(&mut self, key: ConnectionKey, path: &str) {
        if let Some(table) = &mut self.0 {
            table.request = Some(EdgeRequest { key, path: Some(path.into()), user: None });
        }
    }

    /// Remembers the path of a request that goes on after a pause.
    pub fn note_resumed(&mut self, key: ConnectionKey, path: &str) {
        if let Some(request) = self.request_of(key) {
            request.path = Some(path.into());
        }
    }

    /// Remembers the user of a request, once that is known.
    pub fn note_user(&mut self, key: ConnectionKey, user: Option<&str>) {
        if let Some(request) = self.request_of(key) {
            request.user = user.map(Box::from);
        }
    }

    /// Returns what is remembered of the last request, which becomes that of this connection.
    fn request_of(&mut self, key: ConnectionKey) -> Option<&mut EdgeRequest> {
        let request = &mut self.0.as_mut()?.request;
        request.take_if(|request| request.key != key);
        Some(request.get_or_insert(EdgeRequest { key, path: None, user: None }))
    }

    /// Takes out the path and the user of the last request of a connection, as far as they are known.
    pub(super) fn take_request(
        &mut self,
        key: ConnectionKey,
    ) -> (Option<Box<str>>, Option<Box<str>>) {
        let request = self.0.as_mut().and_then(|table| table.request.take());
        let request = request.filter(|request| request.key == key);
        request.map_or((None, None), |EdgeRequest { path, user, .. }| (path, user))
    }

    /// Remembers the user that makes a call, which arrives next from the same shard.
    pub fn note_caller(&mut self, requester: Requester, user: Box<str>) {
        let Some(table) = &mut self.0 else { return };
        if table.callers.len() == CALLERS_MAX {
            table.callers.pop_front();
        }
        table.callers.push_back((requester, user));
    }

    /// Takes out the user that makes a call.
    pub(super) fn take_caller(&mut self, requester: Requester) -> Option<Box<str>> {
        let callers = &mut self.0.as_mut()?.callers;
        let at = callers.iter().position(|(of, _)| *of == requester)?;
        callers.remove(at).map(|(_, user)| user)
    }
}

impl TapSlot {
    /// Takes one event out of this second's.
    fn take(&mut self, now_ms: u64) -> bool {
        self.rate.is_none_or(|rate| rate.take(&mut self.bucket, now_ms))
    }
}
