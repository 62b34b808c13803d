//! The feeding ends of topics: one for each topic that clients of this shard feed.
//!
//! An event is pushed against credit from the topic's home. Without credit it waits here, and so does the
//! client that it is from: the connection is not read from. Once [`Feeder::is_crowded`], clients are
//! *deferred*: stopped before their next message is decoded, or, of one that has ended, before its last
//! event is encoded.

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::message::{ConnectionKey, Credit, Event, TopicMessage};
use crate::protocol::close;
use crate::queue::feeder::{Deferred, Ended, Feeder, Waiting};
use crate::queue::room::Room;
use crate::shard::connection::{Connection, Connections, Pause, Stage};
use crate::shard::memory::Shortage;
use crate::shard::settings::Settings;
use crate::shard::turn::Turn;

/// Events that wait for room in one topic, those of clients that are gone included. Beyond it new clients
/// of its routes are refused with 503, so that a full topic and clients that come and go use no more.
const WAITING_MAX: usize = 1 << 16;

/// Bytes of events that wait for room in one topic (or three quarters of the topic's bytes, if that is
/// more), with the same consequence.
const WAITING_BYTES: usize = 16 << 20;

/// Deferred clients that have their turn in one turn of the shard, of all topics together. Each
/// crowded topic has one at least.
const ADMITTED_PER_TURN: usize = 256;

/// The feeding ends of topics.
#[derive(Debug)]
pub struct Feeders {
    feeders: HashMap<Arc<str>, Feeder>,
    // Topics for which somebody may be deferred.
    crowded: BTreeSet<Arc<str>>,
    // The connection that was deferred and has its turn, until it has sent a message.
    admitted: Option<ConnectionKey>,
    // Crowded topics that have still to have their turns in this turn of the shard.
    round: Vec<Round>,
}

/// The turns of one crowded topic within a turn of the shard.
#[derive(Debug)]
struct Round {
    topic: Arc<str>,
    left: usize,
    is_first: bool,
}

impl Feeders {
    /// Feeders of the topics that routes name.
    pub fn new(settings: &Settings) -> Self {
        let mut feeders = Self {
            feeders: HashMap::new(),
            crowded: BTreeSet::new(),
            admitted: None,
            round: Vec::new(),
        };
        let routes = settings.edges.iter().flat_map(|edge| &edge.routes);
        routes.filter_map(|route| route.topic.as_ref()).for_each(|topic| {
            feeders.ensure(settings, topic);
        });
        feeders
    }

    /// Makes a feeder for a topic, if there is none.
    pub fn ensure(&mut self, settings: &Settings, topic: &Arc<str>) {
        if !self.feeders.contains_key(topic) {
            let share = Room::share(settings.queue.bounds, settings.shards);
            self.feeders.insert(topic.clone(), Feeder::new(share));
        }
    }

    /// Gives an event back if it may be pushed now. If not it waits, and with it the connection that it
    /// is from.
    pub fn feed(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        topic: &Arc<str>,
        event: Event,
        from: Option<ConnectionKey>,
    ) -> Option<Event> {
        if from.is_some() {
            // Its turn, if it had one, is used up.
            self.admitted = None;
        }
        let feeder = self.feeders.get_mut(topic).expect("what feeds a topic has a feeder");
        let is_short = turn.is_short(Shortage::Holders);
        if !is_short && feeder.take(event.frame.bytes().len()) {
            return Some(event);
        }
        turn.counters.limits.topic += 1;
        feeder.wait(Waiting { from, event });
        if feeder.is_crowded() {
            self.crowded.insert(topic.clone());
        }
        if let Some(key) = from {
            connections.pause(key, Pause::Topic);
        }
        // Now, since the room may be there at once.
        if !is_short {
            self.ask_for_room(turn, topic);
        }
        None
    }

    /// Asks the topic's home for the credit that the first event that waits needs, unless it was asked.
    pub fn ask_for_room(&mut self, turn: &mut Turn, topic: &Arc<str>) {
        if let Some(bytes) = self.feeders.get_mut(topic).and_then(Feeder::poll_ask) {
            let node = turn.address.node;
            turn.send_to_home(node, topic, TopicMessage::WantCredit(bytes));
        }
    }

    /// Adds credit from the topic's home.
    pub fn grant(&mut self, topic: &Arc<str>, credit: Credit) {
        if let Some(feeder) = self.feeders.get_mut(topic) {
            feeder.granted(credit);
        }
    }

    /// The next event that waited and has credit now. Its client is read from again.
    pub fn poll_ready(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        topic: &Arc<str>,
    ) -> Option<Event> {
        let Waiting { from, event } = self.feeders.get_mut(topic)?.poll_ready()?;
        if let Some(from) = from {
            connections.unpause(turn, from, Pause::Topic);
        }
        Some(event)
    }

    /// There is no room and nobody is to wait for it: closes the clients whose events waited.
    pub fn refuse(&mut self, turn: &mut Turn, connections: &mut Connections, topic: &Arc<str>) {
        let Some(feeder) = self.feeders.get_mut(topic) else { return };
        for Waiting { from, event } in feeder.refused() {
            turn.counters.refused += 1;
            if let Some(from) = from {
                connections.unpause(turn, from, Pause::Topic);
                connections.close_client(turn, from, close::TOPIC_FULL);
            }
            if event.is_watched {
                turn.send_to_self(topic, TopicMessage::Left(event.client));
            }
        }
    }

    /// The topics for whose room events wait, in the order of their names.
    pub fn waited_for(&self) -> Vec<Arc<str>> {
        let waited = self.feeders.iter().filter(|(_, feeder)| feeder.waiting() > 0);
        let mut waited: Vec<_> = waited.map(|(name, _)| name.clone()).collect();
        waited.sort_unstable();
        waited
    }

    /// The topic that a connection waits for before its next message is decoded, if it is to wait.
    /// Control frames need not, if they do not come within a message.
    #[inline]
    pub fn defers(
        &self,
        connection: &Connection,
        settings: &Settings,
        key: ConnectionKey,
        input: &[u8],
    ) -> Option<Arc<str>> {
        if self.crowded.is_empty() || self.admitted == Some(key) {
            return None;
        }
        let route = connection.route(settings).filter(|_| !connection.is_inflating)?;
        let Stage::Client(client) = &connection.stage else { return None };
        let feeds = route.tells_message && !route.echo;
        let is_control = client.assembler.is_idle() && input.first().is_some_and(|b| b & 8 != 0);
        let topic = route.topic.as_ref().filter(|_| feeds && !is_control)?;
        self.is_crowded(topic).then(|| topic.clone())
    }

    fn is_crowded(&self, topic: &str) -> bool {
        self.feeders.get(topic).is_some_and(Feeder::is_crowded)
    }

    /// Lets a connection wait before its next message is decoded.
    pub fn defer(
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

    /// Keeps what the last event of a client is made of, if its topic is crowded; gives it back if not.
    pub fn defer_last(&mut self, topic: &Arc<str>, ended: Ended) -> Option<Ended> {
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

    /// Whether somebody may be deferred.
    #[inline]
    pub fn has_crowded(&self) -> bool {
        !self.crowded.is_empty()
    }

    /// A turn of the shard begins: each crowded topic has its share of turns in it.
    pub fn begin_round(&mut self) {
        let each = (ADMITTED_PER_TURN / self.crowded.len().max(1)).max(1);
        let round = |topic: &Arc<str>| Round { topic: topic.clone(), left: each, is_first: true };
        self.round = self.crowded.iter().rev().map(round).collect();
    }

    /// The next of those who were deferred and have their turn now, with the topic.
    pub fn poll_deferred(&mut self, turn: &Turn) -> Option<(Arc<str>, Deferred)> {
        self.admitted = None;
        while let Some(round) = self.round.last_mut() {
            let may = round.left > 0 && (round.is_first || turn.work.takes(usize::MAX));
            let feeder = self.feeders.get_mut(&round.topic).filter(|_| may);
            if let Some(deferred) = feeder.and_then(Feeder::poll_deferred) {
                (round.left, round.is_first) = (round.left - 1, false);
                return Some((round.topic.clone(), deferred));
            }
            if let Some(Round { topic, .. }) = self.round.pop()
                && !self.is_crowded(&topic)
            {
                self.crowded.remove(&topic);
            }
        }
        None
    }

    /// Ends the wait of a connection that was deferred; true if it may be read from: one message, if
    /// others wait for their turn.
    pub fn admit(&mut self, connections: &mut Connections, key: ConnectionKey) -> bool {
        let Some(connection) = connections.get(key) else { return false };
        // It may have been closed meanwhile.
        if !connection.is_paused_for(Pause::Topic) {
            return false;
        }
        connection.pauses.remove(Pause::Topic);
        let is_read = !connection.is_paused();
        self.admitted = is_read.then_some(key);
        is_read
    }

    /// Whether somebody who was deferred can have its turn.
    pub fn has_turns(&self) -> bool {
        self.crowded.iter().any(|topic| self.feeders.get(topic).is_some_and(Feeder::has_turn))
    }

    /// Whether nothing waits for room in a topic.
    pub fn takes_reports(&self, topic: &str) -> bool {
        self.feeders.get(topic).is_none_or(|feeder| feeder.waiting() == 0)
    }

    /// Whether a new client may feed a topic, while clients that have ended left so many bytes to be
    /// read, whatever their topic.
    pub fn takes_clients(
        &self,
        settings: &Settings,
        topic: &str,
        pending_close_bytes: usize,
    ) -> bool {
        self.feeders.get(topic).is_none_or(|feeder| {
            let bytes_max = WAITING_BYTES.max(settings.queue.event_bytes_max());
            let bytes = feeder.waiting_bytes() + pending_close_bytes;
            feeder.waiting() < WAITING_MAX && bytes <= bytes_max
        })
    }

    /// Bytes of encoded events that wait, and of what is kept of clients that are gone.
    pub fn waiting_bytes(&self) -> usize {
        self.feeders.values().map(Feeder::waiting_bytes).sum()
    }
}
