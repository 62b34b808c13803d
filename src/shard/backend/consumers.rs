//! Delivery of events to back ends that consume. A back end consumes a topic on all nodes, and the
//! home shard of the topic on each node is told which events were written.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use super::{Backends, takes};
use crate::address::NodeId;
use crate::message::{ConnectionKey, Delivery, FromConsumer, LocalMessage, Terms};
use crate::shard::connection::{Connection, Connections, Stage, UnwrittenEvent};
use crate::shard::turn::Turn;

/// A topic on one node: the events of that topic that were put in there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TopicHome {
    /// The node.
    pub node: NodeId,
    /// The name of the topic.
    pub topic: Arc<str>,
}

impl Backends {
    /// Delivers an event to one of this shard's back ends. Reports to the topic's home if the back
    /// end is gone or does not consume any more.
    pub(crate) fn deliver(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        home: TopicHome,
        delivery: Delivery,
    ) {
        let id = turn.backend_id(key);
        let connection = connections.get(key);
        let Some(Connection { stage: Stage::Backend(backend), outbound, .. }) = connection else {
            if takes::is_take(key) {
                return self.deliver_to_take(turn, connections, key, home, delivery);
            }
            return turn.send_to_home(home.node, &home.topic, id, FromConsumer::Gone);
        };
        let Delivery { number, pop, is_acknowledged, .. } = delivery;
        if !backend.is_consuming || backend.latest_pop != pop {
            let message = FromConsumer::Returned { number, pop };
            return turn.send_to_home(home.node, &home.topic, id, message);
        }
        if is_acknowledged {
            return self.deliver_tagged(turn, connections, key, home, delivery);
        }
        outbound.push_shared(&mut turn.buffer_pool, Rc::new(delivery.frame));
        turn.counters.events += 1;
        let end = backend.written + outbound.buffered() as u64;
        let TopicHome { node: home, topic } = home;
        backend.unwritten_events.push_back(UnwrittenEvent { end, home, topic });
        connections.record_backend_output(key);
        connections.queue_write(key);
    }

    /// Reports events that were written completely to the homes of their topics.
    pub(crate) fn handle_written(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
    ) {
        let id = turn.backend_id(key);
        let Some(backend) = connections.get(key).and_then(Connection::backend) else {
            return self.handle_takes_written(connections, key);
        };
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
            turn.send_to_home(home, &topic, id, FromConsumer::Written(count as u32));
        }
    }

    /// Handles the end of a back end that consumed these topics: tells their homes on all nodes.
    pub(crate) fn handle_gone(
        &mut self,
        turn: &mut Turn,
        key: ConnectionKey,
        topics: &BTreeSet<Arc<str>>,
    ) {
        self.consumers.remove(&key);
        let backend = turn.backend_id(key);
        for node in turn.roster.others() {
            for topic in topics {
                turn.send_to_home(node, topic, backend, FromConsumer::Gone);
            }
        }
        for shard in turn.other_shards() {
            turn.send_local(shard, LocalMessage::BackendGone(backend));
        }
        turn.send_local(turn.address.shard, LocalMessage::BackendGone(backend));
    }

    /// Makes a back end a consumer on the other nodes: on those reachable now, and on each that
    /// becomes reachable later.
    pub(super) fn consume_on_other_nodes(
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

    /// Ends the consumption of topics on the other nodes. Events that are queued for the back end
    /// are still written.
    pub(super) fn stop_consuming_on_other_nodes(
        &self,
        turn: &mut Turn,
        key: ConnectionKey,
        topics: &[Arc<str>],
    ) {
        let backend = turn.backend_id(key);
        for node in turn.roster.others() {
            for topic in topics {
                turn.send_to_home(node, topic, backend, FromConsumer::StopConsuming);
            }
        }
    }

    /// Makes all consumers of this shard known to a node that has become reachable.
    pub(crate) fn handle_node_up(
        &self,
        turn: &mut Turn,
        connections: &mut Connections,
        node: NodeId,
    ) {
        for &key in &self.consumers {
            consume_on(turn, connections, node, key);
        }
        self.take_on_new_node(turn, node);
    }

    /// Forgets the events in flight from a node that has become unreachable: that node redelivers
    /// them.
    pub(crate) fn handle_node_down(&mut self, connections: &mut Connections, node: NodeId) {
        self.forget_taken_of_node(node);
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

/// Makes a back end a consumer on another node. The other nodes share a window that is as large as
/// the one of this node.
fn consume_on(turn: &mut Turn, connections: &mut Connections, node: NodeId, key: ConnectionKey) {
    let nodes = turn.roster.others().len();
    let id = turn.backend_id(key);
    let backend = connections.get(key).and_then(Connection::backend);
    let Some(backend) = backend.filter(|backend| backend.is_consuming) else { return };
    let topics = &backend.topics;
    let window_bytes = turn.settings.limits.outbound_bytes / 2 / topics.len().max(1) / nodes;
    let unsettled_max = backend.unsettled.as_ref().map(|all| all.window().div_ceil(nodes));
    let terms = Terms {
        pop: backend.latest_pop,
        group: backend.group.clone(),
        window_bytes: window_bytes.max(1),
        unsettled_max,
    };
    for topic in topics {
        let terms = Box::new(terms.clone());
        turn.send_to_home(node, topic, id, FromConsumer::Consume(terms));
    }
}
