//! The feeders of topics: one for each topic that clients of this shard feed.
//!
//! An event is pushed if the topic's home shard has granted credit for it. Otherwise the event
//! waits here, and its client is not read from. When a feeder becomes crowded
//! ([`Feeder::is_crowded`]), clients are *deferred*: a client is paused before its next message is
//! decoded, and the last event of a client that has ended is not encoded yet.

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::message::{ConnectionKey, Credit, Event, EventNotice, FromFeeder};
use crate::protocol::api::{Code, Fault};
use crate::protocol::close;
use crate::queue::feeder::{Deferred, Ended, Feeder, WaitingEvent};
use crate::queue::room::Room;
use crate::shard::connection::{Connection, Connections, Pause, Stage};
use crate::shard::memory::Shortage;
use crate::shard::settings::Settings;
use crate::shard::turn::Turn;

/// The number of events that may wait for room in one topic, including those of clients that have
/// ended. Beyond it new clients of the topic's routes are refused with 503. So clients that
/// reconnect while a topic is full cannot use more memory.
const WAITING_MAX: usize = 1 << 16;

/// The bytes of events that may wait for room in one topic (or three quarters of the topic's bytes,
/// if that is more). Beyond it new clients of the topic's routes are refused with 503.
const WAITING_BYTES: usize = 16 << 20;

/// The number of deferred clients that are admitted in one turn of the shard, over all topics. Each
/// crowded topic admits at least one.
const ADMITTED_PER_TURN: usize = 256;

/// The feeders of one shard.
#[derive(Debug)]
pub(in crate::shard) struct Feeders {
    feeders: HashMap<Arc<str>, Feeder>,
    // Topics that may have deferred clients.
    crowded: BTreeSet<Arc<str>>,
    // The deferred connection that may send one message now.
    admitted: Option<ConnectionKey>,
    // Crowded topics that still admit clients in this turn of the shard.
    round: Vec<AdmissionRound>,
}

/// The clients that one crowded topic may still admit in a turn of the shard.
#[derive(Debug)]
struct AdmissionRound {
    topic: Arc<str>,
    left: usize,
    // No client was admitted yet. The first one does not need to fit the turn's budget of work.
    is_first: bool,
}

impl Feeders {
    /// Creates the feeders of the topics of all routes.
    pub(super) fn new(settings: &Settings) -> Self {
        let mut feeders = Self {
            feeders: HashMap::new(),
            crowded: BTreeSet::new(),
            admitted: None,
            round: Vec::new(),
        };
        feeders.handle_settings(settings);
        feeders
    }

    /// Creates the feeders of the topics of routes and of presence that have none. The feeders of other topics stay: they cost
    /// little, and events may wait in them.
    pub(super) fn handle_settings(&mut self, settings: &Settings) {
        settings.topics().for_each(|topic| self.ensure(settings, topic));
    }

    /// Creates the feeder of a topic if there is none. Reports of a lost node may be for a topic
    /// without a route.
    pub(in crate::shard) fn ensure(&mut self, settings: &Settings, topic: &Arc<str>) {
        if !self.feeders.contains_key(topic) {
            let share = Room::share(settings.first_bounds(), settings.shards);
            self.feeders.insert(topic.clone(), Feeder::new(share));
        }
    }

    /// Returns an event if it may be pushed now. Otherwise the event waits, and its connection is
    /// paused.
    pub(super) fn feed(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        topic: &Arc<str>,
        event: Event,
        from: Option<ConnectionKey>,
    ) -> Option<Event> {
        if from.is_some() {
            // An admitted connection may send one message only.
            self.admitted = None;
        }
        let feeder = self.feeders.get_mut(topic).expect("each topic with clients has a feeder");
        let is_short = turn.is_short(Shortage::Holders);
        if !is_short && feeder.take(event.frame.bytes().len()) {
            return Some(event);
        }
        turn.counters.limits.topic += 1;
        feeder.wait(WaitingEvent { from, event });
        if feeder.is_crowded() {
            self.crowded.insert(topic.clone());
        }
        if let Some(key) = from {
            connections.pause(key, Pause::Topic);
        }
        // Asks at once, since the home shard may have room.
        if !is_short {
            self.ask_for_room(turn, topic);
        }
        None
    }

    /// Asks the topic's home shard for the credit that the first waiting event needs, unless that
    /// was done.
    pub(super) fn ask_for_room(&mut self, turn: &mut Turn, topic: &Arc<str>) {
        if let Some(bytes) = self.feeders.get_mut(topic).and_then(Feeder::poll_ask) {
            turn.send_to_own_home(topic, FromFeeder::WantCredit(bytes));
        }
    }

    /// Adds credit that the topic's home shard has granted.
    pub(super) fn grant(&mut self, topic: &Arc<str>, credit: Credit) {
        if let Some(feeder) = self.feeders.get_mut(topic) {
            feeder.granted(credit);
        }
    }

    /// Returns credit that the topic's home shard has recalled, and asks for what the first waiting event needs. A
    /// feeder that does not exist yet would begin with that credit.
    pub(in crate::shard) fn recall(&mut self, turn: &mut Turn, topic: &Arc<str>, most: Credit) {
        self.ensure(&turn.settings, topic);
        let Some(feeder) = self.feeders.get_mut(topic) else { return };
        let returned = feeder.recalled(most);
        if returned != Credit::default() {
            turn.send_to_own_home(topic, FromFeeder::Returned(returned));
            self.ask_for_room(turn, topic);
        }
    }

    /// Returns the next waiting event that there is credit for, and resumes its connection.
    pub(super) fn poll_ready(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        topic: &Arc<str>,
    ) -> Option<Event> {
        let WaitingEvent { from, event } = self.feeders.get_mut(topic)?.poll_ready()?;
        if let Some(from) = from {
            connections.unpause(turn, from, Pause::Topic);
        }
        Some(event)
    }

    /// Drops the waiting events and closes their clients: the topic is full, and `when_full` says
    /// not to wait.
    pub(in crate::shard) fn refuse(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        topic: &Arc<str>,
    ) {
        let Some(feeder) = self.feeders.get_mut(topic) else { return };
        for WaitingEvent { from, event } in feeder.refused() {
            turn.counters.refused += 1;
            if let Some(from) = from {
                connections.unpause(turn, from, Pause::Topic);
                if let EventNotice::Stored(receipt) = event.notice {
                    let full = Fault::new(Code::ConsumptionFailed, "the topic is full");
                    connections.answer_later(turn, from, receipt, &Err(full));
                }
                connections.close_client(turn, from, close::TOPIC_FULL);
            }
            if event.notice.is_left() {
                turn.send_left(topic, event.client);
            }
        }
    }

    /// Returns the topics that events wait for, in the order of their names.
    pub(super) fn waited_for(&self) -> Vec<Arc<str>> {
        let waited = self.feeders.iter().filter(|(_, feeder)| feeder.waiting() > 0);
        let mut waited: Vec<_> = waited.map(|(name, _)| name.clone()).collect();
        waited.sort_unstable();
        waited
    }

    /// Returns the topic that a connection must wait for before its next message is decoded.
    /// `None`: the connection need not wait, or waits for another reason first. Control frames
    /// between messages do not wait.
    #[inline]
    pub(in crate::shard) fn defers(
        &self,
        turn: &Turn,
        connection: &Connection,
        key: ConnectionKey,
        input: &[u8],
    ) -> Option<Arc<str>> {
        if self.crowded.is_empty() || self.admitted == Some(key) {
            return None;
        }
        let route = connection.route(&turn.settings).filter(|_| !connection.is_inflating)?;
        let Stage::Client(client) = &connection.stage else { return None };
        if client.frame_pause(route, turn.now.ms).is_some() {
            return None;
        }
        let feeds = route.tells_message && !route.echo;
        let is_control = client.assembler.is_idle() && input.first().is_some_and(|b| b & 8 != 0);
        let topic = route.topic.as_ref().filter(|_| feeds && !is_control)?;
        self.is_crowded(topic).then(|| topic.clone())
    }

    fn is_crowded(&self, topic: &str) -> bool {
        self.feeders.get(topic).is_some_and(Feeder::is_crowded)
    }

    /// Pauses a connection before its next message is decoded.
    pub(in crate::shard) fn defer(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        topic: &Arc<str>,
    ) {
        turn.counters.limits.topic += 1;
        if let Some(feeder) = self.feeders.get_mut(topic) {
            feeder.defer(Deferred::Connection(key));
            connections.pause(key, Pause::Topic);
        }
    }

    /// Keeps what the last event of a client is made of, if its topic is crowded. Otherwise returns
    /// it.
    pub(super) fn defer_last(&mut self, topic: &Arc<str>, ended: Ended) -> Option<Ended> {
        if self.crowded.is_empty() {
            return Some(ended);
        }
        match self.feeders.get_mut(topic).filter(|feeder| feeder.is_crowded()) {
            Some(feeder) => {
                feeder.defer(Deferred::Ended(Box::new(ended)));
                None
            }
            None => Some(ended),
        }
    }

    /// Whether a topic may have deferred clients.
    #[inline]
    pub(super) fn has_crowded(&self) -> bool {
        !self.crowded.is_empty()
    }

    /// Begins a turn of the shard: divides the clients to admit among the crowded topics.
    pub(super) fn begin_round(&mut self) {
        let each = (ADMITTED_PER_TURN / self.crowded.len().max(1)).max(1);
        let round =
            |topic: &Arc<str>| AdmissionRound { topic: topic.clone(), left: each, is_first: true };
        self.round = self.crowded.iter().rev().map(round).collect();
    }

    /// Returns the next deferred client to admit in this turn, with its topic.
    pub(super) fn poll_deferred(&mut self, turn: &Turn) -> Option<(Arc<str>, Deferred)> {
        self.admitted = None;
        while let Some(round) = self.round.last_mut() {
            let may = round.left > 0 && (round.is_first || turn.work.takes_long_input());
            let feeder = self.feeders.get_mut(&round.topic).filter(|_| may);
            if let Some(deferred) = feeder.and_then(Feeder::poll_deferred) {
                (round.left, round.is_first) = (round.left - 1, false);
                return Some((round.topic.clone(), deferred));
            }
            if let Some(AdmissionRound { topic, .. }) = self.round.pop()
                && !self.is_crowded(&topic)
            {
                self.crowded.remove(&topic);
            }
        }
        None
    }

    /// Resumes a deferred connection. Returns true if it may be read from. While the topic is
    /// crowded, it may send one message.
    pub(super) fn admit(&mut self, connections: &mut Connections, key: ConnectionKey) -> bool {
        let Some(connection) = connections.get(key) else { return false };
        // The connection may have been closed in the meantime.
        if !connection.is_paused_for(Pause::Topic) {
            return false;
        }
        connection.pauses.remove(Pause::Topic);
        let is_read = !connection.is_paused();
        self.admitted = is_read.then_some(key);
        is_read
    }

    /// Whether a deferred client can be admitted now.
    pub(super) fn can_admit(&self) -> bool {
        self.crowded.iter().any(|topic| self.feeders.get(topic).is_some_and(Feeder::has_turn))
    }

    /// Whether no event waits for room in a topic.
    pub(in crate::shard) fn takes_reports(&self, topic: &str) -> bool {
        self.feeders.get(topic).is_none_or(|feeder| feeder.waiting() == 0)
    }

    /// Whether a new client may feed a topic. `pending_close_bytes` are unread bytes of clients
    /// that have ended; they count against every topic.
    pub(in crate::shard) fn takes_clients(
        &self,
        settings: &Settings,
        topic: &str,
        pending_close_bytes: usize,
    ) -> bool {
        self.feeders.get(topic).is_none_or(|feeder| {
            let bytes_max = WAITING_BYTES.max(settings.queue.event_bytes_max(topic));
            let bytes = feeder.waiting_bytes() + pending_close_bytes;
            feeder.waiting() < WAITING_MAX && bytes <= bytes_max
        })
    }

    /// Returns the bytes of waiting events, and of what is kept of clients that have ended.
    pub(in crate::shard) fn waiting_bytes(&self) -> usize {
        self.feeders.values().map(Feeder::waiting_bytes).sum()
    }
}
