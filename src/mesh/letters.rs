//! What shards of other nodes say: passed on, once it is sure that it is theirs to say.

use super::link::Lane;
use super::publish::Counter;
use super::session::Arrival;
use super::wire::{self, Letter, To};
use super::{Mesh, Publish, subscribed_by};
use crate::address::{NodeId, ShardAddress};
use crate::message::{Answer, BackendId, Command, Message, Party, TopicMessage, WardsMessage};

/// How long what has come may be without an acknowledgement: so one does for many batches.
const ACKNOWLEDGE_MS: u64 = 10;

impl Mesh {
    /// Passes on what came on a lane of a node.
    pub(super) fn handle_batch(
        &mut self,
        now_ms: u64,
        node: NodeId,
        lane: Lane,
        batch: &[u8],
    ) -> Result<(), String> {
        let number = wire::batch_number(batch).map_err(|error| error.to_string())?;
        let Some(peer) = self.peers.get_mut(&node) else { return Ok(()) };
        let arrival = peer.session.arrived(lane, number, batch.len());
        if peer.acknowledge_ms.is_none() {
            peer.acknowledge_ms = Some(now_ms + ACKNOWLEDGE_MS);
            self.care_ms = self.care_ms.min(now_ms + ACKNOWLEDGE_MS);
        }
        match arrival {
            Arrival::Repeated => return Ok(()),
            Arrival::Gap => return Err("a batch is missing".into()),
            Arrival::Next => {}
        }
        for letter in wire::letters(batch) {
            self.handle_letter(now_ms, node, lane, letter.map_err(|error| error.to_string())?)?;
        }
        Ok(())
    }

    fn handle_letter(
        &mut self,
        now_ms: u64,
        node: NodeId,
        lane: Lane,
        (to, message): Letter,
    ) -> Result<(), String> {
        if !self.is_plausible(node, &message) {
            return Err("a message in the name of another node".into());
        }
        match (to, lane, message) {
            (To::Shard(to), Lane::Shard(from), message) if to.index() < self.settings.shards => {
                for channel in subscribed_by(&message) {
                    let until_ms = now_ms + self.settings.answer_ms;
                    self.subscribed_here.note(until_ms, self.hash.of(channel), to);
                }
                let from = Party::Shard(ShardAddress { node, shard: from });
                self.outbox.push_back((to, from, message));
                Ok(())
            }
            (
                To::Mesh,
                Lane::Shard(_),
                Message::Ask { ticket, from: backend, command: Command::Publish(channel, frame) },
            ) => {
                self.publish_here(now_ms, node, ticket, Publish { backend, channel, frame });
                Ok(())
            }
            (To::Mesh, Lane::Mesh, Message::Answer(ticket, Answer::Published(tally))) => {
                self.count(ticket, Counter::Node(node), tally);
                Ok(())
            }
            _ => Err("a message for nobody".into()),
        }
    }

    /// Whether those that a message names are where it comes from, or here.
    fn is_plausible(&self, node: NodeId, message: &Message) -> bool {
        let is_theirs = |backend: &BackendId| backend.at.node == node;
        let is_ours = |backend: &BackendId| {
            backend.at.node == self.settings.node && backend.at.shard.index() < self.settings.shards
        };
        match message {
            Message::Ask { from, .. } => is_theirs(from),
            Message::Wards(_, WardsMessage::Claim(..)) => true,
            Message::Wards(shard, _) => shard.node == node,
            Message::Topic(_, message) => match message {
                TopicMessage::Deliver(to, _) | TopicMessage::Expel(to) => is_ours(to),
                TopicMessage::Written(from, _)
                | TopicMessage::Settled(from, _)
                | TopicMessage::Returned(from, ..)
                | TopicMessage::Consume(from, _)
                | TopicMessage::Unconsume(from)
                | TopicMessage::Gone(from) => is_theirs(from),
                TopicMessage::Push(..)
                | TopicMessage::WantCredit(_)
                | TopicMessage::Credit(_)
                | TopicMessage::Refused
                | TopicMessage::Left(_)
                | TopicMessage::Start(_) => false,
            },
            _ => true,
        }
    }
}
