//! Messages of this node's shards to other nodes.

use super::Mesh;
use super::link::{Lane, LinkEffect};
use super::wire::AddressedMessage;
use crate::address::{NodeId, ShardAddress, ShardId};
use crate::message::{
    ClientCommand, ClientReply, FromMesh, FromTapper, GridMessage, ListMessage, SettleTaken,
    StaleTaken, ToTapper,
};
use crate::protocol::api::{Code, Fault, Function};

/// Bytes of the channels in one answer to another node. An answer with more becomes an error: a client may
/// have a million channels, whose names would exceed a frame.
const CHANNELS_BYTES_MAX: usize = 64 << 20;

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
        let is_question = is_question(&message);
        if is_question && peer.liveness.is_silent() {
            return self.refuse(from, to, &message, "the client's node does not answer");
        }
        if is_question && !peer.session.takes_calls() {
            return self.refuse(from, to, &message, "the client's node does not keep up");
        }
        for channel in channels_to_subscribe(&message) {
            let until_ms = now_ms + self.settings.answer_ms;
            self.subscribing_there.note(until_ms, self.hasher.hash(channel), to.node);
        }
        let message = AddressedMessage::Shard(to.shard, with_bounded_channels(message));
        self.send(to.node, Lane::Shard(from), &message);
    }

    /// Answers a question with an error. Other messages are dropped.
    fn refuse(
        &mut self,
        asker: ShardId,
        to: ShardAddress,
        message: &GridMessage,
        why: &'static str,
    ) {
        let (ticket, code) = match message {
            GridMessage::Ask { ticket, command: ClientCommand::Send(..), .. } => {
                (*ticket, Code::SendFailed)
            }
            GridMessage::Ask { ticket, command: ClientCommand::Call(..), .. } => {
                (*ticket, Code::ExecutionFailed)
            }
            GridMessage::List(ticket, ListMessage::Ask(_)) => {
                return self.tell_shard(asker, FromMesh::NotAsked(*ticket, to));
            }
            GridMessage::Settle(ticket, settle) => {
                let SettleTaken { topic, events, .. } = (**settle).clone();
                let stale = GridMessage::Settled(*ticket, Box::new(StaleTaken { topic, events }));
                return self.tell_shard(asker, FromMesh::Grid(to, stale));
            }
            GridMessage::FromTapper(tapper, FromTapper::Start(ticket, _)) => {
                let started = ToTapper::Started { ticket: *ticket, is_watching: false };
                let answer = GridMessage::ToTapper(*tapper, started);
                return self.tell_shard(asker, FromMesh::Grid(to, answer));
            }
            _ => return,
        };
        let answer = GridMessage::Answer(ticket, Err(Fault::new(code, why)));
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

/// Whether a message asks for an answer.
fn is_question(message: &GridMessage) -> bool {
    matches!(
        message,
        GridMessage::Ask { .. }
            | GridMessage::List(_, ListMessage::Ask(_))
            | GridMessage::Settle(..)
    )
}

/// Turns an answer with more than [`CHANNELS_BYTES_MAX`] of channels into an error.
fn with_bounded_channels(message: GridMessage) -> GridMessage {
    let GridMessage::Answer(ticket, Ok(ClientReply::Info(info))) = &message else {
        return message;
    };
    let bytes: usize = info.channels.iter().map(|channel| channel.len()).sum();
    if bytes <= CHANNELS_BYTES_MAX {
        return message;
    }
    let fault = Fault::new(Code::ExecutionFailed, "the client has too many channels to list");
    GridMessage::Answer(*ticket, Err(fault))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Ticket;
    use crate::protocol::api::Info;

    fn answer(channels: usize) -> GridMessage {
        let info = Info {
            node: NodeId::new(1).unwrap(),
            remote: ([127, 0, 0, 1], 7000).into(),
            since_ms: 0,
            channels: (0..channels).map(|number| format!("{number:0255}").into()).collect(),
            buffered: 0,
        };
        GridMessage::Answer(Ticket(7), Ok(ClientReply::Info(Box::new(info))))
    }

    #[test]
    fn an_answer_whose_channels_may_exceed_a_frame_is_an_error() {
        let most = CHANNELS_BYTES_MAX / 255;
        let is_ok = |message| match with_bounded_channels(message) {
            GridMessage::Answer(Ticket(7), Ok(ClientReply::Info(_))) => true,
            GridMessage::Answer(Ticket(7), Err(fault)) => {
                assert_eq!(fault.code, Code::ExecutionFailed);
                false
            }
            other => panic!("unexpected {other:?}"),
        };
        assert!(is_ok(answer(most)) && !is_ok(answer(most + 1)));
    }
}
