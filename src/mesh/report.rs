//! The state of the mesh, for `/metrics`, for `GET /v1/nodes` and for tests.

use super::Mesh;
use super::sessions::Peer;
use crate::address::NodeId;
use crate::message::KnownNodes;
use crate::metrics::{MeshReport, NodeReport};
use crate::protocol::api::{LinkState, MeshRow, NodeRow};

impl Mesh {
    /// The figures of the mesh for `/metrics`, without those of its threads.
    pub fn report(&self) -> MeshReport {
        let nodes = self.peers.iter().map(|(node, peer)| {
            let traffic = peer.session.traffic();
            NodeReport {
                node: node.number(),
                is_linked: peer.link.is_some(),
                round_trip_ms: peer.round_trip_ms,
                waiting_bytes: peer.session.kept_bytes() as u64,
                sent_batches: traffic.sent_batches,
                sent_bytes: traffic.sent_bytes,
                received_batches: traffic.received_batches,
                received_bytes: traffic.received_bytes,
            }
        });
        MeshReport {
            nodes: nodes.collect(),
            sessions_ended: self.sessions_ended,
            uncounted: self.uncounted,
            expected: self.settings.expected as u64,
            refused: self.refusals,
            // The transport knows them.
            threads: Vec::new(),
        }
    }

    /// The nodes of the grid, for `GET /v1/nodes` and for lists of administration.
    pub(super) fn known_nodes(&self, now_ms: u64) -> KnownNodes {
        let settings = &self.settings;
        let own = MeshRow {
            address: settings.advertise,
            state: LinkState::Up,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            clients: self.clients.iter().sum(),
        };
        let mut rows =
            vec![NodeRow { node: settings.node, api: settings.api.into(), mesh: Some(own) }];
        rows.extend(self.peers.values().map(|peer| self.node_row(peer)));
        rows.sort_by_key(|row| row.node);
        let members = self.membership.members().filter_map(|(member, _)| member.node());
        let unreachable: Vec<NodeId> = members
            .filter(|node| *node != settings.node && !self.peers.contains_key(node))
            .collect();
        let lost = self.lost_nodes.recent(now_ms);
        let lost = lost.filter(|lost| !unreachable.contains(&lost.node)).collect();
        KnownNodes { rows, unreachable, lost }
    }

    fn node_row(&self, peer: &Peer) -> NodeRow {
        let node = peer.hello.node;
        let state = match peer.link {
            None => LinkState::Lost,
            Some(_) if self.membership.is_suspected(node) => LinkState::Suspected,
            Some(_) => LinkState::Up,
        };
        let mesh = MeshRow {
            address: peer.hello.mesh,
            state,
            version: peer.hello.software.clone(),
            clients: peer.clients,
        };
        NodeRow { node, api: peer.hello.api.into(), mesh: Some(mesh) }
    }

    /// Whether a node is known to have subscribers of a channel.
    pub fn is_wanted_by(&self, node: NodeId, channel: &str) -> bool {
        self.remote_interest.nodes(self.hasher.hash(channel)).any(|interested| interested == node)
    }

    /// The number of pending publishes, and of changes of interest that shards wait for.
    pub fn waiting(&self) -> usize {
        self.pending.len() + self.announcements.waiting()
    }

    /// Asserts the invariants of the mesh between two turns. Costs a look at everything in it.
    pub fn check(&self) {
        for (id, link) in &self.links {
            let peer = link.peer.map(|node| self.peers.get(&node).and_then(|peer| peer.link));
            assert!(peer.is_none_or(|link| link == Some(*id)), "a link whose node has another");
        }
        for (node, peer) in &self.peers {
            let link = peer.link.map(|link| self.links.get(&link).and_then(|link| link.peer));
            assert!(link.is_none_or(|peer| peer == Some(*node)), "a peer without its link");
            assert!(!peer.is_queued || self.to_flush.contains(node), "messages that nobody sends");
            assert_eq!(*node, peer.hello.node);
            peer.session.check();
            peer.liveness.check();
            // Publishes skip the check of each peer until then: see "Subscribe, then publish" in `mod.rs`.
            assert!(
                self.all_trusted_until_ms.is_none()
                    || peer.liveness.trusted_until_ms() >= self.all_trusted_until_ms,
                "all are trusted longer than node {}",
                node.number()
            );
        }
        assert!(!self.peers.contains_key(&self.settings.node), "a node is no peer of itself");
        assert!(self.unseen_node_ups.values().all(|count| *count > 0));
        for node in self.remote_interest.known_nodes() {
            assert!(self.peers.contains_key(&node), "interest of a node without a session");
        }
        self.remote_interest.check();
        self.announcements.check();
        self.subscribing_here.check();
        self.subscribing_there.check();
        self.pending.check();
    }
}
