//! Messages of this node's shards to other nodes.

use super::Mesh;
use super::link::{Lane, LinkEffect};
use super::wire::AddressedMessage;
use crate::address::{NodeId, ShardAddress, ShardId};
use crate::message::{ClientCommand, FromMesh, GridMessage};
use crate::protocol::api::{Code, Fault, Function};

impl Mesh {
    /// Forwards a shard's message to a shard of another node. A call that cannot be forwarded is answered
    /// with an error at once.
    pub(super) fn forward(
        &mut self,
        now_ms: u64,
        from: ShardId,
        to: ShardAddress,
        message: GridMessage,
    ) {
        let Some(peer) = self.peers.get(&to.node) else {
            return self.refuse(from, to, &message, "the client's node is unreachable");
        };
        if self.unseen_node_ups.contains_key(&(to.node, from)) {
            // The shard sent this message in the previous session. In the current one it would be a late
            // message to a node that may have restarted.
            return self.refuse(from, to, &message, "the client's node was unreachable");
        }
        if matches!(message, GridMessage::Ask { .. }) && peer.liveness.is_silent() {
            return self.refuse(from, to, &message, "the client's node does not answer");
        }
        if matches!(message, GridMessage::Ask { .. }) && !peer.session.takes_calls() {
            return self.refuse(from, to, &message, "the client's node does not keep up");
        }
        for channel in channels_to_subscribe(&message) {
            let until_ms = now_ms + self.settings.answer_ms;
            self.subscribing_there.note(until_ms, self.hasher.hash(channel), to.node);
        }
        let message = AddressedMessage::Shard(to.shard, message);
        self.send(to.node, Lane::Shard(from), &message);
    }

    /// Answers a call with an error. Other messages are dropped.
    fn refuse(
        &mut self,
        asker: ShardId,
        to: ShardAddress,
        message: &GridMessage,
        why: &'static str,
    ) {
        let GridMessage::Ask { ticket, command, .. } = message else { return };
        let code = match command {
            ClientCommand::Send(..) => Code::SendFailed,
            ClientCommand::Call(..) => Code::ExecutionFailed,
        };
        let answer = GridMessage::Answer(*ticket, Err(Fault::new(code, why)));
        self.tell_shard(asker, FromMesh::Grid(to, answer));
    }

    /// Adds a message to the session with a node, if there is one. [`Self::flush`] sends it.
    pub(super) fn send(&mut self, node: NodeId, lane: Lane, message: &AddressedMessage) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.session.push(lane, message);
        peer.queue_for_flush(node, &mut self.to_flush);
    }

    /// Sends the messages gathered in this turn, as one batch per lane.
    pub(super) fn flush(&mut self) {
        for node in std::mem::take(&mut self.to_flush) {
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            peer.is_queued = false;
            peer.session.flush();
            if let Some(link) = peer.link {
                while let Some((lane, batch)) = peer.session.poll_batch() {
                    self.effects.push_back(LinkEffect::Send(link, lane, batch));
                }
            }
        }
    }
}

/// The channels to which a message asks to subscribe a client.
pub(super) fn channels_to_subscribe(message: &GridMessage) -> &[Box<str>] {
    match message {
        GridMessage::Ask {
            command: ClientCommand::Call(_, Function::Subscribe(channels)), ..
        } => channels,
        _ => &[],
    }
}
