//! Events on their way to back ends that consume, and what their topics hear of it. A back end consumes
//! the topics of all nodes.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use super::Backends;
use crate::address::NodeId;
use crate::message::{ConnectionKey, Delivery, Message, Terms, TopicMessage};
use crate::shard::connection::{Connection, Connections, Stage, UnwrittenEvent};
use crate::shard::turn::Turn;

impl Backends {
    /// An event for one of this shard's back ends, from a topic of this or another node. If its
    /// connection is gone, the topic may have heard no more than that it does not consume any more.
    pub fn deliver(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        (home, topic): (NodeId, Arc<str>),
        delivery: Delivery,
    ) {
        let id = turn.backend_id(key);
        let connection = connections.get(key);
        let Some(Connection { stage: Stage::Backend(backend), outbound, .. }) = connection else {
            return turn.send_to_home(home, &topic, TopicMessage::Gone(id));
        };
        let Delivery { number, pop, is_acknowledged, .. } = delivery;
        if !backend.is_consuming || backend.pops != pop {
            return turn.send_to_home(home, &topic, TopicMessage::Returned(id, number, pop));
        }
        if is_acknowledged {
            return self.deliver_tagged(turn, connections, key, (home, topic), delivery);
        }
        outbound.push_shared(&mut turn.buffer_pool, Rc::new(delivery.frame));
        turn.counters.events += 1;
        let end = backend.written + outbound.buffered() as u64;
        backend.unwritten_events.push_back(UnwrittenEvent { end, home, topic });
        connections.queue_write(key);
    }

    /// Something was written to a back end: tells the homes of the events that went out whole.
    pub fn handle_written(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
    ) {
        let id = turn.backend_id(key);
        let Some(backend) = connections.get(key).and_then(Connection::backend) else { return };
        while let Some(UnwrittenEvent { end, home, topic }) =
            backend.unwritten_events.front().cloned()
            && end <= backend.written
        {
            let written = backend.written;
            let is_same = |event: &&UnwrittenEvent| {
                event.end <= written && event.home == home && event.topic == topic
            };
            let count = backend.unwritten_events.iter().take_while(is_same).count();
            backend.unwritten_events.drain(..count);
            turn.send_to_home(home, &topic, TopicMessage::Written(id, count as u32));
        }
    }

    /// A back end that consumed is gone: tells the homes of topics, which had to do with these.
    pub fn handle_gone(
        &mut self,
        turn: &mut Turn,
        key: ConnectionKey,
        topics: &BTreeSet<Arc<str>>,
    ) {
        self.consumers.remove(&key);
        let backend = turn.backend_id(key);
        for node in turn.roster.others() {
            for topic in topics {
                turn.send_to_home(node, topic, TopicMessage::Gone(backend));
            }
        }
        for shard in turn.other_shards() {
            let to = turn.local_party(shard);
            turn.send(to, Message::BackendGone(backend));
        }
        turn.send(turn.own_party(), Message::BackendGone(backend));
    }

    /// One of this shard's back ends consumes: homes on the other nodes are told, now and when a node
    /// comes.
    pub(super) fn consume_elsewhere(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
    ) {
        self.consumers.insert(key);
        for node in turn.roster.others() {
            consume_on(turn, connections, node, key);
        }
    }

    /// A back end does not consume any more, but what it has it writes.
    pub(super) fn unconsume_elsewhere(
        &self,
        turn: &mut Turn,
        key: ConnectionKey,
        topics: &[Arc<str>],
    ) {
        let backend = turn.backend_id(key);
        for node in turn.roster.others() {
            for topic in topics {
                turn.send_to_home(node, topic, TopicMessage::Unconsume(backend));
            }
        }
    }

    /// A node has come within reach: the homes of topics there are told who consumes.
    pub fn handle_node_up(&self, turn: &mut Turn, connections: &mut Connections, node: NodeId) {
        for &key in &self.consumers {
            consume_on(turn, connections, node, key);
        }
    }

    /// A node is out of reach: its topics hear no more of what was written, and give it to others.
    pub fn handle_node_down(&self, connections: &mut Connections, node: NodeId) {
        for &key in &self.consumers {
            let backend = connections.get(key).and_then(Connection::backend);
            let Some(backend) = backend else { continue };
            backend.unwritten_events.retain(|event| event.home != node);
            if let Some(unsettled) = &mut backend.unsettled {
                unsettled.forget_node(node);
            }
        }
    }
}

/// Makes a back end a consumer on another node. The other nodes that are there now get as large a window
/// together as this one.
fn consume_on(turn: &mut Turn, connections: &mut Connections, node: NodeId, key: ConnectionKey) {
    let nodes = turn.roster.others().len();
    let id = turn.backend_id(key);
    let backend = connections.get(key).and_then(Connection::backend);
    let Some(backend) = backend.filter(|backend| backend.is_consuming) else { return };
    let topics = &backend.topics;
    let window_bytes = turn.settings.limits.outbound_bytes / 2 / topics.len().max(1) / nodes;
    let unsettled_max = backend.unsettled.as_ref().map(|all| all.window().div_ceil(nodes));
    let terms = Terms { pop: backend.pops, window_bytes: window_bytes.max(1), unsettled_max };
    for topic in topics {
        turn.send_to_home(node, topic, TopicMessage::Consume(id, terms));
    }
}
