//! What other nodes are to know of this shard: its consumers, its channels, and how many clients it has.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::Shard;
use super::commands::Asked;
use super::connection::Connection;
use crate::address::NodeId;
use crate::message::{Answer, ConnectionKey, Message, Party, Terms, TopicMessage};
use crate::protocol::api::Reply;

/// The grid as one shard sees it.
#[derive(Debug, Default)]
pub struct Nodes {
    // Our back ends that consume, of which homes on every node are to know, and those that did.
    consumers: BTreeSet<ConnectionKey>,
    // Up to which of our changes of interest all nodes know.
    known: u64,
    // How many clients we have, as we told the mesh, and when.
    clients: u64,
    clients_ms: u64,
    // What waits for that, in the order of the changes. One entry per question or handshake at
    // most, which have bounds of their own.
    waiting: VecDeque<(u64, Waiting)>,
}

/// Between two times that the mesh is told how many clients there are, in milliseconds.
const CLIENTS_MS: u64 = 500;

/// What is done once a change of interest is known.
#[derive(Debug)]
enum Waiting {
    /// A subscribe is answered.
    Answer(Asked),
    /// A client's handshake is answered.
    Handshake(ConnectionKey),
}

impl Shard {
    pub(super) fn handle_node_up(&mut self, node: NodeId, shards: u16, incarnation: u64) {
        self.turn.roster.add(node, shards, incarnation);
        for key in self.nodes.consumers.clone() {
            self.consume_on(node, key);
        }
    }

    /// What was on its way to and from a node is lost: its consumers are gone for our topics, and
    /// what its topics gave to our consumers they give to others.
    pub(super) fn handle_node_down(&mut self, node: NodeId) {
        self.turn.roster.remove(node);
        for key in self.nodes.consumers.clone() {
            self.forget_deliveries_of(node, key);
        }
        self.forget_consumers_of(node);
    }

    /// One of our back ends consumes: homes on the other nodes are told, now and when a node comes.
    pub(super) fn consume_everywhere(&mut self, key: ConnectionKey) {
        self.nodes.consumers.insert(key);
        for node in self.turn.roster.others() {
            self.consume_on(node, key);
        }
    }

    /// It does not any more, but what it has it writes.
    pub(super) fn unconsume_everywhere(&mut self, key: ConnectionKey, topics: &[Arc<str>]) {
        let backend = self.turn.backend_id(key);
        for node in self.turn.roster.others() {
            for topic in topics {
                self.turn.tell_home(node, topic, TopicMessage::Unconsume(backend));
            }
        }
    }

    /// Its connection is gone; it had to do with these topics.
    pub(super) fn gone_everywhere(&mut self, key: ConnectionKey, topics: &BTreeSet<Arc<str>>) {
        self.nodes.consumers.remove(&key);
        let backend = self.turn.backend_id(key);
        for node in self.turn.roster.others() {
            for topic in topics {
                self.turn.tell_home(node, topic, TopicMessage::Gone(backend));
            }
        }
    }

    fn consume_on(&mut self, node: NodeId, key: ConnectionKey) {
        let nodes = self.turn.roster.others().len();
        let backend = self.connections.get(key).and_then(Connection::backend);
        let Some(backend) = backend.filter(|backend| backend.is_consuming) else { return };
        let (pop, topics) = (backend.pops, backend.topics.clone());
        let unsettled_max = backend.unsettled.as_ref().map(|unsettled| unsettled.window());
        // The other nodes that are there now get as large a window together as our own.
        let window_bytes =
            self.turn.settings.limits.outbound_bytes / 2 / topics.len().max(1) / nodes;
        let window_bytes = window_bytes.max(1);
        let unsettled_max = unsettled_max.map(|window| window.div_ceil(nodes));
        let backend = self.turn.backend_id(key);
        let terms = Terms { pop, window_bytes, unsettled_max };
        for topic in topics {
            self.turn.tell_home(node, &topic, TopicMessage::Consume(backend, terms));
        }
    }

    /// Tells the mesh which channels have got their first subscriber here, or lost their last.
    pub(super) fn tell_interest(&mut self) {
        while let Some((number, channel, is_on)) = self.channels.poll_change() {
            self.turn.tell(Party::Mesh, Message::Interest(number, channel, is_on));
        }
    }

    /// Tells the mesh how many clients there are, if it is time to.
    pub(super) fn tell_clients(&mut self) {
        if self.next_telling().is_some_and(|due_ms| due_ms <= self.turn.now.ms) {
            let clients = self.clients.len() as u64;
            (self.nodes.clients, self.nodes.clients_ms) = (clients, self.turn.now.ms);
            self.turn.tell(Party::Mesh, Message::Clients(clients));
        }
    }

    /// When the mesh is to be told.
    pub(super) fn next_telling(&self) -> Option<u64> {
        let is_news = self.nodes.clients != self.clients.len() as u64;
        (self.turn.settings.has_mesh && is_news).then_some(self.nodes.clients_ms + CLIENTS_MS)
    }

    /// Answers a subscribe when every node knows of these channels: only then does a publish through
    /// any of them reach the client. False if they do already.
    pub(super) fn answer_when_known<T: AsRef<str>>(&mut self, asked: Asked, of: &[T]) -> bool {
        let change = self.change_of(of);
        if change > self.nodes.known {
            self.nodes.waiting.push_back((change, Waiting::Answer(asked)));
        }
        change > self.nodes.known
    }

    /// Likewise with the answer to a handshake that subscribed a client.
    pub(super) fn withhold_until_known<T: AsRef<str>>(&mut self, key: ConnectionKey, of: &[T]) {
        let change = self.change_of(of);
        if change > self.nodes.known
            && let Some(connection) = self.connections.get(key)
        {
            connection.outbound.withhold(true);
            self.nodes.waiting.push_back((change, Waiting::Handshake(key)));
        }
    }

    /// The last change of interest that one of these channels came with, or one after it: so that
    /// what waits is in order.
    fn change_of<T: AsRef<str>>(&self, channels: &[T]) -> u64 {
        let of = |channel: &T| self.channels.change_of(channel.as_ref());
        let change = channels.iter().map(of).max().unwrap_or(0);
        if change <= self.nodes.known {
            return change;
        }
        self.nodes.waiting.back().map_or(change, |(last, _)| change.max(*last))
    }

    pub(super) fn handle_interest_known(&mut self, change: u64) {
        self.nodes.known = change;
        while self.nodes.waiting.front().is_some_and(|(number, _)| *number <= change) {
            match self.nodes.waiting.pop_front() {
                Some((_, Waiting::Answer(asked))) => {
                    self.answer(asked, Answer::Done(Ok(Reply::Done)));
                }
                Some((_, Waiting::Handshake(key))) => {
                    if let Some(connection) = self.connections.get(key) {
                        connection.outbound.withhold(false);
                    }
                    self.connections.queue_write(key);
                }
                None => {}
            }
        }
    }
}
