//! A shard's part in the queue: clients of this shard feed topics, and some topics live here.
//!
//! - `feeders.rs`: the events of this shard's clients, on their way to the homes of their topics.
//! - `homes.rs`: the topics that live on this shard.
//!
//! A home may be on the same shard as a feeder. An event goes to it directly, all other messages go
//! through the turn, as they do between shards.

mod feeders;
mod homes;

use std::sync::Arc;

use crate::address::{NodeId, ShardAddress, ShardId};
use crate::message::{BackendId, ConnectionKey, Event, Terms, TopicMessage};
use crate::metrics::{Durations, TopicReport};
use crate::protocol::api::{self, Fault, Reply};
use crate::queue::feeder::{Deferred, Ended};
use crate::shard::connection::{Connection, Connections};
use crate::shard::settings::Settings;
use crate::shard::turn::{ClientEvent, Turn};
use feeders::Feeders;
use homes::Homes;

/// The feeding ends of topics, and the topics that live on this shard.
#[derive(Debug)]
pub struct Topics {
    feeders: Feeders,
    homes: Homes,
}

impl Topics {
    /// Feeders of the topics that routes name, and homes of those that live on this shard.
    pub fn new(shard: ShardId, settings: &Settings) -> Self {
        Self { feeders: Feeders::new(settings), homes: Homes::new(shard, settings) }
    }

    /// Puts an event into its topic. Without room it waits, and the client that it is from is not read
    /// from meanwhile.
    pub fn feed(&mut self, turn: &mut Turn, connections: &mut Connections, fed: ClientEvent) {
        let ClientEvent { topic, event, from } = fed;
        if let Some(event) = self.feeders.feed(turn, connections, &topic, event, from) {
            self.push(turn, &topic, event);
        }
    }

    /// Puts the last event of a client into its topic. While too many events wait there, only what the
    /// event is made of is kept.
    pub fn feed_last(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        topic: &Arc<str>,
        ended: Ended,
    ) {
        if let Some(ended) = self.feeders.defer_last(topic, ended) {
            self.encode_last(turn, connections, topic, &ended);
        }
    }

    fn encode_last(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        topic: &Arc<str>,
        ended: &Ended,
    ) {
        let Ended { client, code, reason, context } = ended;
        let frame = turn.encode_event(topic, *client, |out| {
            api::put_close(out, *code, reason, context.as_deref());
        });
        match frame {
            Some(frame) => {
                // Where there is a mesh, a guardian stands in until the event has left the topic.
                let is_watched = turn.settings.has_mesh;
                let event = Event { client: *client, frame, is_watched };
                self.feed(
                    turn,
                    connections,
                    ClientEvent { topic: topic.clone(), event, from: None },
                );
            }
            None => turn.send_to_self(topic, TopicMessage::Left(*client)),
        }
    }

    /// Handles a message about a topic, to its feeder or to its home on this shard.
    pub fn handle(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        from: ShardAddress,
        topic: &Arc<str>,
        message: TopicMessage,
    ) {
        let is_near = from.node == turn.address.node;
        match message {
            // Only clients of this node feed its topics.
            TopicMessage::Credit(_)
            | TopicMessage::Refused
            | TopicMessage::Push(_)
            | TopicMessage::WantCredit(..)
                if !is_near => {}
            TopicMessage::Credit(credit) => {
                self.feeders.grant(topic, credit);
                self.push_waiting(turn, connections, topic);
            }
            TopicMessage::Refused => self.feeders.refuse(turn, connections, topic),
            message => self.homes.handle(turn, from.shard, topic, message),
        }
    }

    fn push(&mut self, turn: &mut Turn, topic: &Arc<str>, event: Event) {
        if let Some(event) = self.homes.push(turn, topic, event) {
            let node = turn.address.node;
            turn.send_to_home(node, topic, TopicMessage::Push(event));
        }
    }

    /// There is room: pushes events that waited for it, and lets their clients be read from.
    fn push_waiting(&mut self, turn: &mut Turn, connections: &mut Connections, topic: &Arc<str>) {
        while let Some(event) = self.feeders.poll_ready(turn, connections, topic) {
            self.push(turn, topic, event);
        }
        self.feeders.ask_for_room(turn, topic);
    }

    /// The shortage of memory in which topics take no events is over: pushes those that waited for that.
    pub fn feed_again(&mut self, turn: &mut Turn, connections: &mut Connections) {
        for topic in self.feeders.waited_for() {
            self.push_waiting(turn, connections, &topic);
        }
    }

    /// The topic that a connection waits for before its next message is decoded; see
    /// [`Feeders::defers`].
    #[inline]
    pub fn defers(
        &self,
        connection: &Connection,
        settings: &Settings,
        key: ConnectionKey,
        input: &[u8],
    ) -> Option<Arc<str>> {
        self.feeders.defers(connection, settings, key, input)
    }

    /// A turn of the shard begins. True if some were deferred: they have turns in it, by
    /// [`Self::poll_admitted`].
    #[inline]
    pub fn begin_round(&mut self) -> bool {
        let has_crowded = self.feeders.has_crowded();
        if has_crowded {
            self.feeders.begin_round();
        }
        has_crowded
    }

    /// Lets a connection wait before its next message is decoded.
    pub fn defer(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        topic: &Arc<str>,
    ) {
        self.feeders.defer(turn, connections, key, topic);
    }

    /// Gives those who were deferred their turn, as many as a turn of the shard allows: feeds the last
    /// events of clients that ended. Gives the next connection that is to be read from, which has its
    /// turn until the next call.
    pub fn poll_admitted(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
    ) -> Option<ConnectionKey> {
        while let Some((topic, deferred)) = self.feeders.poll_deferred(turn) {
            match deferred {
                Deferred::Connection(key) => {
                    if self.feeders.admit(connections, key) {
                        return Some(key);
                    }
                }
                Deferred::Ended(ended) => self.encode_last(turn, connections, &topic, &ended),
            }
        }
        None
    }

    /// Makes a back end a consumer of a topic that lives here.
    ///
    /// # Errors
    /// It consumes the topic already, or there are too many consumers or topics.
    pub fn join(
        &mut self,
        turn: &mut Turn,
        topic: &Arc<str>,
        backend: BackendId,
        terms: Terms,
    ) -> Result<Reply, Fault> {
        self.homes.join(turn, topic, backend, terms)
    }

    /// Ends the consumption of a topic that lives here.
    ///
    /// # Errors
    /// The back end does not consume it.
    pub fn leave(
        &mut self,
        turn: &mut Turn,
        topic: &Arc<str>,
        backend: BackendId,
    ) -> Result<Reply, Fault> {
        self.homes.leave(turn, topic, backend)
    }

    /// A back end that consumed is gone: what it did not write goes to others.
    pub fn handle_backend_gone(&mut self, turn: &mut Turn, backend: BackendId) {
        self.homes.handle_backend_gone(turn, backend);
    }

    /// A node is out of reach, and its consumers with it.
    pub fn handle_node_down(&mut self, turn: &mut Turn, node: NodeId) {
        self.homes.handle_node_down(turn, node);
    }

    /// Does some of what is left to do because consumers changed, in one topic.
    pub fn handle_turn(&mut self, turn: &mut Turn) {
        self.homes.handle_turn(turn);
    }

    /// Looks for consumers that take nothing, when it is time to.
    pub fn handle_timeout(&mut self, turn: &mut Turn) {
        self.homes.handle_timeout(turn);
    }

    /// When a turn has something to do for topics, in milliseconds of the shard's clock. A time that is
    /// past: at once.
    pub fn next_turn(&self) -> Option<u64> {
        if self.feeders.has_turns() { Some(0) } else { self.homes.next_turn() }
    }

    /// Whether a report about a client of another node may be put into a topic: not while anything waits
    /// for room there.
    pub fn takes_reports(&self, topic: &str) -> bool {
        self.feeders.takes_reports(topic)
    }

    /// Whether a new client may feed a topic, while clients that have ended left so many bytes to be
    /// read, whatever their topic.
    pub fn takes_clients(
        &self,
        settings: &Settings,
        topic: &str,
        pending_close_bytes: usize,
    ) -> bool {
        self.feeders.takes_clients(settings, topic, pending_close_bytes)
    }

    /// Bytes that wait here for room in topics: encoded events, and what is kept of clients that are
    /// gone. Costs a look at each topic.
    pub fn waiting_bytes(&self) -> usize {
        self.feeders.waiting_bytes()
    }

    /// The state of each topic that lives here.
    pub fn reports(&self, now_us: u64) -> Vec<TopicReport> {
        self.homes.reports(now_us)
    }

    /// How long events stayed in the topics that live here, or did.
    pub fn waits(&self) -> Durations {
        self.homes.waits()
    }

    /// Messages in the topics that live here, those not yet written included.
    pub fn messages(&self) -> usize {
        self.homes.messages()
    }

    /// Whether a topic that lives here has messages for a consumer.
    pub fn has_work(&self) -> bool {
        self.homes.has_work()
    }

    /// Checks that what the topics note in several places agrees.
    ///
    /// # Panics
    /// It does not.
    pub fn check(&self) {
        self.homes.check();
    }

    /// Makes a feeder for a topic that no route of this node may name.
    pub fn ensure_feeder(&mut self, settings: &Settings, topic: &Arc<str>) {
        self.feeders.ensure(settings, topic);
    }
}
