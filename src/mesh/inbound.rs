//! Messages of other nodes, which are checked and passed to this node's shards.

use super::Mesh;
use super::link::Lane;
use super::outbound::channels_to_subscribe;
use super::pending::Counter;
use super::session::Arrival;
use super::wire::{self, AddressedMessage, MeshMessage};
use crate::address::{NodeId, ShardAddress};
use crate::message::{BackendId, FromMesh, GridMessage, LastWillsMessage};

/// Longest time between a received batch and its acknowledgement, in milliseconds. One acknowledgement then
/// covers many batches.
const ACKNOWLEDGE_MS: u64 = 10;

impl Mesh {
    /// Handles a batch that arrived on a lane of a node.
    ///
    /// # Errors
    /// The node breaks the protocol: how.
    pub(super) fn handle_batch(
        &mut self,
        now_ms: u64,
        node: NodeId,
        lane: Lane,
        batch: &[u8],
    ) -> Result<(), String> {
        let number = wire::batch_number(batch).map_err(|error| error.to_string())?;
        let Some(peer) = self.peers.get_mut(&node) else { return Ok(()) };
        let arrival = peer.session.handle_batch(lane, number, batch.len());
        if peer.acknowledge_ms.is_none() {
            peer.acknowledge_ms = Some(now_ms + ACKNOWLEDGE_MS);
            self.check_at(now_ms + ACKNOWLEDGE_MS);
        }
        match arrival {
            Arrival::Repeated => return Ok(()),
            Arrival::Gap => return Err("a batch is missing".into()),
            Arrival::Next => {}
        }
        for message in wire::messages(batch) {
            let message = message.map_err(|error| error.to_string())?;
            self.handle_remote_message(now_ms, node, lane, message)?;
        }
        Ok(())
    }

    fn handle_remote_message(
        &mut self,
        now_ms: u64,
        node: NodeId,
        lane: Lane,
        message: AddressedMessage,
    ) -> Result<(), String> {
        if !self.is_plausible(node, &message) {
            return Err("a message in the name of another node".into());
        }
        match (lane, message) {
            (Lane::Shard(from), AddressedMessage::Shard(to, message))
                if to.index() < self.settings.shards =>
            {
                for channel in channels_to_subscribe(&message) {
                    let until_ms = now_ms + self.settings.answer_ms;
                    self.subscribing_here.note(until_ms, self.hasher.hash(channel), to);
                }
                let from = ShardAddress { node, shard: from };
                self.tell_shard(to, FromMesh::Grid(from, message));
                Ok(())
            }
            (Lane::Shard(_), AddressedMessage::Mesh(MeshMessage::Publish(requester, publish))) => {
                self.publish_here(now_ms, node, requester, publish);
                Ok(())
            }
            (Lane::Shard(_), AddressedMessage::Mesh(MeshMessage::ForUsers(requester, command))) => {
                self.carry_out_for_users_here(now_ms, node, requester, command);
                Ok(())
            }
            (Lane::Mesh, AddressedMessage::Mesh(MeshMessage::Published(ticket, tally))) => {
                self.count(ticket, Counter::Node(node), tally);
                Ok(())
            }
            _ => Err("a message that has no receiver here".into()),
        }
    }

    /// Whether the back ends and shards that a message names are on the sending node, or on this one if
    /// the message is about those.
    fn is_plausible(&self, node: NodeId, message: &AddressedMessage) -> bool {
        let is_theirs = |backend: &BackendId| backend.at.node == node;
        let is_ours = |backend: &BackendId| {
            backend.at.node == self.settings.node && backend.at.shard.index() < self.settings.shards
        };
        let message = match message {
            AddressedMessage::Shard(_, message) => message,
            AddressedMessage::Mesh(
                MeshMessage::Publish(requester, _) | MeshMessage::ForUsers(requester, _),
            ) => {
                return is_theirs(&requester.backend);
            }
            AddressedMessage::Mesh(MeshMessage::Published(..)) => return true,
        };
        match message {
            GridMessage::Ask { backend, .. } => is_theirs(backend),
            GridMessage::Answer(..)
            | GridMessage::Settle(..)
            | GridMessage::Settled(..)
            | GridMessage::Presence(_)
            | GridMessage::List(..)
            | GridMessage::LastWills(_, LastWillsMessage::Claim { .. }) => true,
            GridMessage::LastWills(shard, _) => shard.node == node,
            GridMessage::FromConsumer { consumer, .. } => is_theirs(consumer),
            GridMessage::ToConsumer { consumer, .. } => is_ours(consumer),
            GridMessage::Caller(requester, _) => is_theirs(&requester.backend),
            GridMessage::FromTapper(tapper, _) => is_theirs(tapper),
            GridMessage::ToTapper(tapper, _) => is_ours(tapper),
        }
    }
}
