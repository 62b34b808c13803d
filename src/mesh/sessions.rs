//! Peers: nodes with which there is a session, and how sessions begin, continue and end.

use std::collections::btree_map::Entry;

use super::Mesh;
use super::link::{LinkEffect, LinkId};
use super::liveness::Liveness;
use super::membership::Member;
use super::numbers::{AnnouncementNumber, SessionId};
use super::session::Session;
use super::wire::Hello;
use crate::address::{NodeId, ShardId};
use crate::message::FromMesh;

/// Time without a link after which a session ends, in milliseconds. A dead link is noticed within 2.5 s
/// (the transport's idle timeout), so a dead node leaves the counts within the 5 s of docs/promises.md.
pub(super) const LOST_MS: u64 = 1500;

/// A node with which there is a session.
#[derive(Debug)]
pub(super) struct Peer {
    /// The hello of the current or last link.
    pub hello: Hello,
    /// The session.
    pub session_id: SessionId,
    /// This node's end of the session.
    pub session: Session,
    /// The current link; `None`: the last one was lost.
    pub link: Option<LinkId>,
    /// When the last link was lost, or the session began, in milliseconds.
    pub lost_ms: u64,
    /// Pings, lease and trust on the current link.
    pub liveness: Liveness,
    /// Whether gossip reported the node dead or leaving while there was a link.
    pub is_declared_dead: bool,
    /// Whether the node closed its last link because it shuts down.
    pub is_shut_down: bool,
    /// The last of this node's announcements that the peer has confirmed.
    pub confirmed: Option<AnnouncementNumber>,
    /// When acknowledgements are due, in milliseconds; `None`: there are none.
    pub acknowledge_ms: Option<u64>,
    /// Whether the peer is listed in [`Mesh::flush`]'s queue.
    pub is_queued: bool,
    /// The peer's number of clients, as of its last answer to a ping.
    pub clients: u64,
    /// The round trip of the last answered ping, in milliseconds.
    pub round_trip_ms: u64,
}

impl Peer {
    fn new(now_ms: u64, hello: Hello, session_id: SessionId) -> Self {
        Self {
            hello,
            session_id,
            session: Session::default(),
            link: None,
            lost_ms: now_ms,
            liveness: Liveness::new(now_ms),
            is_declared_dead: false,
            is_shut_down: false,
            confirmed: None,
            acknowledge_ms: None,
            is_queued: false,
            clients: 0,
            round_trip_ms: 0,
        }
    }

    /// Has [`Mesh::flush`] send what is ready for the peer, which is `node`.
    pub(super) fn queue_for_flush(&mut self, node: NodeId, to_flush: &mut Vec<NodeId>) {
        if !self.is_queued {
            self.is_queued = true;
            to_flush.push(node);
        }
    }

    /// The node as a member of the grid.
    pub(super) fn member(&self) -> Member {
        Member::new(self.hello.node, self.hello.incarnation, self.hello.mesh)
    }
}

impl Mesh {
    /// Uses a link to a node from now on. Continues the session if it is the current one, and begins it
    /// otherwise.
    pub(super) fn begin(&mut self, now_ms: u64, id: LinkId, hello: Hello, session_id: SessionId) {
        let node = hello.node;
        self.drop_old_link(now_ms, node);
        let is_resumed = self.peers.get(&node).is_some_and(|peer| peer.session_id == session_id);
        if !is_resumed {
            self.end_session(now_ms, node, "the node begins a new session");
        }
        self.lost_nodes.forget(node);
        self.note_accepted(&hello);
        let peer = match self.peers.entry(node) {
            Entry::Vacant(place) => place.insert(Peer::new(now_ms, hello, session_id)),
            Entry::Occupied(place) => {
                let peer = place.into_mut();
                peer.session.resume(&hello.received);
                (peer.hello, peer.liveness) = (hello, Liveness::new(now_ms));
                peer
            }
        };
        (peer.link, peer.is_declared_dead, peer.is_shut_down) = (Some(id), false, false);
        peer.queue_for_flush(node, &mut self.to_flush);
        let member = peer.member();
        if !is_resumed {
            self.tell_node_is_up(node);
        }
        self.all_trusted_until_ms = None;
        if let Some(link) = self.links.get_mut(&id) {
            link.peer = Some(node);
        }
        self.announce_whole_interest(id);
        let dialled = self.links.get(&id).filter(|link| link.is_dialled).map(|link| link.remote);
        self.dialler.reached(node, dialled);
        self.membership.meet(now_ms, member);
        self.check_at(now_ms);
        let lanes = self.links.get(&id).map(|link| link.message_lanes()).unwrap_or_default();
        for lane in lanes {
            self.read_lane(now_ms, id, lane);
        }
    }

    fn drop_old_link(&mut self, now_ms: u64, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        // The node is alive, since it has sent a hello: the end of its old link must not end the session.
        peer.is_declared_dead = false;
        if let Some(old) = peer.link {
            self.close_link(now_ms, old, "another link replaces this one");
        }
    }

    fn tell_node_is_up(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get(&node) else { return };
        let (shards, incarnation) = (peer.hello.shards, peer.hello.incarnation);
        tracing::info!("mesh: node {} is reachable", node.number());
        for shard in 0..self.settings.shards {
            *self.unseen_node_ups.entry((node, ShardId(shard as u8))).or_default() += 1;
        }
        self.tell_shards(|| FromMesh::NodeUp { node, shards, incarnation });
    }

    /// Ends the session with a node. Messages in flight in both directions are lost.
    pub(super) fn end_session(&mut self, now_ms: u64, node: NodeId, why: &str) {
        let Some(peer) = self.peers.remove(&node) else { return };
        tracing::warn!("mesh: node {} is unreachable: {why}", node.number());
        self.stop_waiting_for(node);
        self.pending.forget_asker(node);
        self.sessions_ended += 1;
        self.remote_interest.forget(node);
        self.tell_shards(|| FromMesh::NodeDown(node));
        let incarnation = peer.hello.incarnation;
        if !peer.is_shut_down {
            self.lost_nodes.add(now_ms, node, peer.hello.software);
        }
        if !self.membership.has_incarnation(node, incarnation) {
            self.tell_dead(node, incarnation);
        }
        if let Some(link) = peer.link {
            self.links.remove(&link);
            self.effects.push_back(LinkEffect::Close(link, why.into()));
        }
    }

    /// Ends the session with a node and dials the node.
    pub(super) fn lose(&mut self, now_ms: u64, node: NodeId, why: &str) {
        let Some(peer) = self.peers.get(&node) else { return };
        let mesh = peer.hello.mesh;
        self.end_session(now_ms, node, why);
        self.dialler.want(now_ms, node, mesh, self.settings.node > node);
    }

    /// Notes that a shard has received [`FromMesh::NodeUp`].
    pub(super) fn handle_seen(&mut self, node: NodeId, shard: ShardId) {
        if let Some(count) = self.unseen_node_ups.get_mut(&(node, shard)) {
            *count -= 1;
            if *count == 0 {
                self.unseen_node_ups.remove(&(node, shard));
            }
        }
    }
}
