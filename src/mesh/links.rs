//! The links of this node, and what arrives on them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::Bytes;

use super::link::{Lane, LinkEffect, LinkId};
use super::numbers::SessionId;
use super::sessions::LOST_MS;
use super::wire::{self, Control, FrameReader};
use super::{Mesh, SHUTS_DOWN};
use crate::address::NodeId;

/// Time without a hello of the peer after which a link is closed, in milliseconds.
const HELLO_MS: u64 = 3000;

/// Bytes of messages that may arrive on a link before the peer's hello. A link with more is closed. Its peer
/// keeps the messages, and sends them again on the next link.
const EARLY_BYTES: usize = 64 << 20;

/// Bytes of messages that may arrive before the hello on all links together. Beyond it, the link on which more
/// arrives is closed.
const EARLY_BYTES_MAX: usize = 256 << 20;

/// One link.
#[derive(Debug)]
pub(super) struct Link {
    /// The peer's address on this connection.
    pub remote: SocketAddr,
    /// Whether this node dialled.
    pub is_dialled: bool,
    /// The hello that this node sent. `None`: not sent yet.
    pub said: Option<SaidHello>,
    /// The node at the other end, once its hello was accepted.
    pub peer: Option<NodeId>,
    opened_ms: u64,
    readers: BTreeMap<Lane, FrameReader>,
    // Bytes of messages that arrived before the hello, and the memory that their pieces take besides.
    early_bytes: usize,
}

/// The effect that sends a message on the control lane of a link.
pub(super) fn control_effect(link: LinkId, control: &Control) -> LinkEffect {
    let mut bytes = Vec::new();
    wire::put_control(&mut bytes, control);
    LinkEffect::Send(link, Lane::Control, bytes.into())
}

/// The sessions that this node's hello named.
#[derive(Clone, Copy, Debug)]
pub(super) struct SaidHello {
    /// The session to continue.
    pub held: Option<SessionId>,
    /// The session to begin otherwise.
    pub offered: SessionId,
}

impl Link {
    /// Whether the peer has sent no hello in time.
    fn is_late(&self, now_ms: u64) -> bool {
        self.peer.is_none() && self.opened_ms + HELLO_MS <= now_ms
    }

    /// Lanes with messages of the peer's shards and mesh.
    pub(super) fn message_lanes(&self) -> Vec<Lane> {
        self.readers.keys().copied().filter(|lane| *lane != Lane::Control).collect()
    }
}

impl Mesh {
    pub(super) fn handle_opened(
        &mut self,
        now_ms: u64,
        id: LinkId,
        remote: SocketAddr,
        is_dialled: bool,
    ) {
        let link = Link {
            remote,
            is_dialled,
            said: None,
            peer: None,
            opened_ms: now_ms,
            readers: BTreeMap::new(),
            early_bytes: 0,
        };
        self.links.insert(id, link);
        self.check_at(now_ms + HELLO_MS);
        if !is_dialled {
            // Whoever dials speaks first.
            return;
        }
        // A node that was dialled before is known by its own address, or by one at which it answered.
        let answered = self.dialler.answered_at(remote).and_then(|node| self.peers.get(&node));
        let known = self.peers.values().find(|peer| peer.hello.mesh == remote).or(answered);
        if known.is_some_and(|peer| peer.link.is_some()) {
            // A seed that is a name is dialled even while there is a link to the node.
            return self.close_link(now_ms, id, "there is another link between these nodes");
        }
        let known = known.map(|peer| peer.hello.node);
        self.send_hello(id, known);
    }

    pub(super) fn handle_received(&mut self, now_ms: u64, id: LinkId, lane: Lane, bytes: Bytes) {
        let Some(link) = self.links.get_mut(&id) else { return };
        // Lanes do not wait for each other, so messages may arrive before the hello.
        let is_early = lane != Lane::Control && link.peer.is_none();
        if is_early {
            link.early_bytes += bytes.len() + size_of::<Bytes>();
        }
        link.readers.entry(lane).or_default().push(bytes);
        if !is_early {
            self.read_lane(now_ms, id, lane);
        } else if link.early_bytes > EARLY_BYTES || self.early_bytes() > EARLY_BYTES_MAX {
            self.close_link(now_ms, id, "too many messages before the hello");
        }
    }

    /// Bytes of messages that wait for the hello of their peer. Costs a look at every link.
    fn early_bytes(&self) -> usize {
        let early = self.links.values().filter(|link| link.peer.is_none());
        early.map(|link| link.early_bytes).sum()
    }

    /// Handles the whole frames of a lane. Messages wait until the peer's hello was accepted.
    pub(super) fn read_lane(&mut self, now_ms: u64, id: LinkId, lane: Lane) {
        loop {
            let Some(link) = self.links.get_mut(&id) else { return };
            let peer = link.peer;
            if lane != Lane::Control && peer.is_none() {
                return;
            }
            let Some(reader) = link.readers.get_mut(&lane) else { return };
            let read = match reader.next_frame() {
                Ok(None) => return,
                Ok(Some(frame)) => match (lane, peer) {
                    (Lane::Control, _) => self.handle_control(now_ms, id, &frame),
                    (_, Some(node)) => self.handle_batch(now_ms, node, lane, &frame),
                    (_, None) => Ok(()),
                },
                Err(error) => Err(error.to_string()),
            };
            match (read, peer) {
                (Ok(()), _) => {}
                // Part of a batch that counts as received is lost, so the session cannot continue.
                (Err(why), Some(node)) if lane != Lane::Control => {
                    return self.lose(now_ms, node, &why);
                }
                (Err(why), _) => return self.close_link(now_ms, id, &why),
            }
        }
    }

    fn handle_control(&mut self, now_ms: u64, id: LinkId, frame: &[u8]) -> Result<(), String> {
        let control = wire::read_control(frame).map_err(|error| error.to_string())?;
        let peer = self.links.get(&id).and_then(|link| link.peer);
        match (control, peer) {
            (Control::Hello(hello), None) => self.handle_hello(now_ms, id, hello),
            (Control::Refused(why), peer) => {
                if let Some(node) = peer {
                    self.end_session(now_ms, node, &why);
                }
                self.handle_refused(now_ms, why);
                Ok(())
            }
            (_, None) => Err("the first message is not a hello".into()),
            (control, Some(node)) => self.handle_peer_control(now_ms, id, node, control),
        }
    }

    fn handle_peer_control(
        &mut self,
        now_ms: u64,
        id: LinkId,
        node: NodeId,
        control: Control,
    ) -> Result<(), String> {
        let Some(peer) = self.peers.get_mut(&node) else { return Ok(()) };
        match control {
            Control::Hello(_) | Control::Refused(_) => return Err("a second hello".into()),
            Control::Interest { number, is_whole, on, off } => {
                if is_whole {
                    self.all_trusted_until_ms = None;
                    peer.liveness.handle_incomplete_interest();
                    self.remote_interest.forget(node);
                }
                let on = on.into_iter().map(|channel| (channel, true));
                let off = off.into_iter().map(|channel| (channel, false));
                for (channel, is_on) in on.chain(off) {
                    if !self.remote_interest.set(channel, node, is_on) {
                        return Err("the node has too many channels".into());
                    }
                }
                if let Some(number) = number {
                    peer.liveness.handle_whole_interest();
                    self.send_control(id, &Control::InterestKnown(number));
                }
            }
            Control::InterestKnown(number) => peer.confirmed = peer.confirmed.max(Some(number)),
            Control::Ping { sent_ms } => {
                let clients = self.clients.iter().sum();
                self.send_control(id, &Control::Pong { sent_ms, clients });
            }
            Control::Pong { sent_ms, clients } => {
                peer.liveness.handle_pong(now_ms, sent_ms, self.resumed_ms);
                peer.round_trip_ms = now_ms.saturating_sub(sent_ms);
                peer.clients = clients;
                self.rejection = None;
            }
            Control::Received(receipt) => {
                peer.session.handle_acknowledgement(receipt);
                if peer.session.has_ready() {
                    peer.queue_for_flush(node, &mut self.to_flush);
                }
            }
        }
        Ok(())
    }

    pub(super) fn send_control(&mut self, link: LinkId, control: &Control) {
        self.effects.push_back(control_effect(link, control));
    }

    pub(super) fn close_link(&mut self, now_ms: u64, id: LinkId, why: &str) {
        self.effects.push_back(LinkEffect::Close(id, why.into()));
        self.handle_closed(now_ms, id, why);
    }

    /// Closes links whose peers have sent no hello in time.
    pub(super) fn close_late_links(&mut self, now_ms: u64) {
        let late = self.links.iter().filter(|(_, link)| link.is_late(now_ms));
        for id in late.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.close_link(now_ms, id, "the peer sends no hello");
        }
    }

    /// Forgets a link that is closed. Its session lives on for a while.
    pub(super) fn handle_closed(&mut self, now_ms: u64, id: LinkId, why: &str) {
        let Some(link) = self.links.remove(&id) else { return };
        tracing::debug!("mesh: link to {} closed: {why}", link.remote);
        let Some(peer) = link.peer.and_then(|node| self.peers.get_mut(&node)) else { return };
        if peer.link == Some(id) {
            (peer.link, peer.lost_ms) = (None, now_ms);
            peer.is_shut_down = why.ends_with(SHUTS_DOWN);
            peer.liveness.handle_incomplete_interest();
            self.all_trusted_until_ms = None;
            let (node, mesh, is_declared_dead) =
                (peer.hello.node, peer.hello.mesh, peer.is_declared_dead);
            self.check_at(now_ms + LOST_MS);
            self.dialler.want(now_ms, node, mesh, self.settings.node > node);
            if is_declared_dead {
                self.end_session(now_ms, node, why);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::ShardId;
    use crate::mesh::link::LinkEvent;
    use crate::mesh::tests::mesh;

    const LANE: Lane = Lane::Shard(ShardId(0));

    fn opened(mesh: &mut Mesh, number: u64) -> LinkId {
        let (link, remote) = (LinkId(number), ([127, 0, 0, 1], 7000).into());
        mesh.handle_event(0, LinkEvent::Opened { link, remote, is_dialled: false });
        link
    }

    fn closed(mesh: &mut Mesh) -> Vec<LinkId> {
        let effects = std::iter::from_fn(|| mesh.poll_effect());
        let closed = effects.filter_map(|effect| match effect {
            LinkEffect::Close(link, why) => {
                assert_eq!(why, "too many messages before the hello");
                Some(link)
            }
            _ => None,
        });
        closed.collect()
    }

    #[test]
    fn messages_before_the_hello_are_bounded_per_link_and_over_all_links() {
        let mut mesh = mesh(0, 1, 0);
        // All pieces share their memory, so the test takes little.
        let piece = Bytes::from(vec![0; EARLY_BYTES / 8]);
        let receive = |mesh: &mut Mesh, link, pieces| {
            for _ in 0..pieces {
                mesh.handle_event(0, LinkEvent::Received(link, LANE, piece.clone()));
            }
        };
        let first = opened(&mut mesh, 0);
        receive(&mut mesh, first, 7);
        assert_eq!(closed(&mut mesh), []);
        receive(&mut mesh, first, 1);
        assert_eq!(closed(&mut mesh), [first], "more than one link may have");
        // Of what all links may have, a little less is left than a whole number of pieces.
        let links: Vec<LinkId> = (1..=5).map(|number| opened(&mut mesh, number)).collect();
        links[..4].iter().for_each(|&link| receive(&mut mesh, link, 7));
        receive(&mut mesh, links[4], 3);
        assert_eq!(closed(&mut mesh), []);
        receive(&mut mesh, links[4], 1);
        assert_eq!(closed(&mut mesh), [links[4]], "more than all links may have");
        receive(&mut mesh, links[0], 1);
        assert_eq!(closed(&mut mesh), [links[0]]);
        assert_eq!(mesh.early_bytes(), 3 * 7 * (piece.len() + size_of::<Bytes>()));
    }

    #[test]
    fn many_tiny_pieces_before_the_hello_count_with_the_memory_that_they_take() {
        let mut mesh = mesh(0, 1, 0);
        let link = opened(&mut mesh, 0);
        let tiny = Bytes::from_static(b"x");
        let most = EARLY_BYTES / (1 + size_of::<Bytes>());
        for _ in 0..=most {
            mesh.handle_event(0, LinkEvent::Received(link, LANE, tiny.clone()));
        }
        assert_eq!(closed(&mut mesh), [link]);
    }
}
