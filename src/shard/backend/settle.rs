//! Acknowledgements of events that were taken over HTTP. Any node understands their tags, and asks the homes.

use std::collections::{BTreeMap, BTreeSet};

use super::Backends;
use super::acknowledge::Verdict;
use super::calls::Caller;
use super::consumers::TopicHome;
use super::pending::QuestionKind;
use crate::address::{Incarnation, NodeId};
use crate::message::{GridMessage, MessageNumber, PopId, SettleTaken, StaleTaken};
use crate::protocol::api::{Reply, TakenTag};
use crate::shard::connection::Connections;
use crate::shard::turn::Turn;

impl Backends {
    /// Carries out `queue.ack` and `queue.nack` of taken events. A tag is stale if its event is not taken by its
    /// take any more, or if the node that holds the event has restarted or cannot be reached.
    pub(crate) fn call_settle(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        caller: Caller,
        tags: Vec<TakenTag>,
        verdict: Verdict,
    ) {
        let mut by_home: BTreeMap<TopicHome, Vec<(PopId, MessageNumber)>> = BTreeMap::new();
        let mut stale = Vec::new();
        // Repeated tags count once.
        for tag in BTreeSet::from_iter(tags) {
            if turn.incarnation_of(tag.node) != Some(tag.incarnation) {
                stale.push(tag);
                continue;
            }
            let home = TopicHome { node: tag.node, topic: (&*tag.topic).into() };
            by_home.entry(home).or_default().push((PopId(tag.take), MessageNumber(tag.number)));
        }
        if by_home.is_empty() {
            let answer = Ok(Reply::Settled(stale));
            return connections.reply(turn, caller.key, &caller.shape, &answer);
        }
        let homes = by_home.len();
        let requester = self.open_question(turn, connections, caller, QuestionKind::Settle, homes);
        let Some(requester) = requester else { return };
        self.pending.note_stale(requester.ticket, stale);
        let after_ms = match verdict {
            Verdict::Settled => None,
            Verdict::Refused { after_ms } => Some(after_ms),
        };
        for (TopicHome { node, topic }, events) in by_home {
            let home = turn.roster.home_on(node, &topic).expect("a node with a start is reachable");
            let settle = Box::new(SettleTaken { topic, events, after_ms });
            turn.send_grid(home, GridMessage::Settle(requester.ticket, settle));
        }
    }
}

/// The tags of events that a node has named as stale.
pub(in crate::shard) fn stale_tags(turn: &Turn, node: NodeId, stale: StaleTaken) -> Vec<TakenTag> {
    let incarnation = turn.incarnation_of(node).unwrap_or(Incarnation(0));
    let tag = |(take, number): (PopId, MessageNumber)| TakenTag {
        node,
        incarnation,
        take: take.0,
        number: number.0,
        topic: (&*stale.topic).into(),
    };
    stale.events.iter().copied().map(tag).collect()
}
