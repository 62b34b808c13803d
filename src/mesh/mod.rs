//! This node's connections to the other nodes of the grid. Pure except for `quic.rs`: events of links and
//! messages of shards go in (`handle_*`), effects on links and messages for shards come out (`poll_*`).
//!
//! | files | subject |
//! |---|---|
//! | `link.rs`, `links.rs` | what the transport is asked and reports; links and what arrives on them |
//! | `handshake.rs`, `sessions.rs`, `session.rs` | the hello; peers; what a session has sent and received |
//! | `liveness.rs`, `upkeep.rs` | pings and leases; what is due for each peer |
//! | `membership.rs`, `dial.rs` | which nodes there are (gossip); whom this node dials |
//! | `interest.rs`, `announce.rs`, `subscribing.rs` | who wants which channel; announcing it; subscribes in progress |
//! | `outbound.rs`, `inbound.rs` | messages of shards to other nodes and from them |
//! | `publish.rs`, `pending.rs` | publishes over nodes; those whose tallies are incomplete |
//! | `lost.rs` | the nodes that were lost recently |
//! | `numbers.rs`, `wire/` | typed numbers; messages ⇄ bytes |
//! | `quic.rs`, `identity.rs` | the transport and the thread of the mesh; which nodes belong to the grid |
//! | `report.rs` | figures, the list of nodes, and invariants |
//!
//! # Subscribe, then publish
//!
//! A shard tells its mesh of the first subscriber of a channel. The mesh announces it to every node, each
//! confirms, and only then is the subscribe answered. So a publish afterwards, through any node, finds the
//! subscriber.
//!
//! A silent node cannot confirm. It may be frozen, and publish before it receives the announcement once
//! it runs again. So each node trusts another's announced interest for [`liveness::LEASE_MS`] after it
//! sent the last ping that was answered. Without trust, it sends that node every publish. And the
//! announcing node waits for a silent one no longer than the lease: then the silent node has either
//! received the announcement or lost its trust.
//!
//! Time in which a node itself did not run ([`Mesh::handle_gap`]) counts for these leases, and for no other
//! deadline: a node that resumes neither trusts what it knew nor gives up any peer.
//!
//! So the first subscriber of a channel on a node costs one round trip to the farthest node, or
//! [`liveness::LEASE_MS`] while a node is silent.

mod announce;
mod dial;
mod handshake;
pub mod identity;
mod inbound;
mod interest;
pub mod link;
mod links;
mod liveness;
mod lost;
mod membership;
pub mod numbers;
mod outbound;
mod pending;
mod publish;
pub mod quic;
mod report;
mod session;
mod sessions;
mod subscribing;
mod upkeep;
pub mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use crate::address::{Incarnation, NodeId, ShardId};
use crate::message::{FromMesh, ToMesh};
use crate::metrics::Refused;
use announce::Announcements;
use dial::Dialler;
use handshake::{AcceptedHello, Rejection};
use interest::{ChannelHasher, LocalInterest, RemoteInterest};
use link::{LinkEffect, LinkEvent, LinkId};
use links::Link;
use lost::LostNodes;
use membership::{Member, Membership};
use pending::{Counter, PendingPublishes};
use sessions::Peer;
use subscribing::Subscribing;

/// Why a node that shuts down closes its links. Other nodes tell from this text that the node is not lost, so it must
/// not change.
const SHUTS_DOWN: &str = "the node shuts down";

/// The configuration of a node's mesh.
#[derive(Clone, Debug)]
pub struct MeshSettings {
    /// This node.
    pub node: NodeId,
    /// When this node was started.
    pub incarnation: Incarnation,
    /// The number of this node's shards.
    pub shards: usize,
    /// The address at which other nodes dial this one.
    pub advertise: SocketAddr,
    /// The address at which back ends reach this node.
    pub api: SocketAddr,
    /// Targets that are dialled until this node has joined the grid, `HOST:PORT`.
    pub seeds: Vec<String>,
    /// How long a call waits for shards and nodes, in milliseconds.
    pub answer_ms: u64,
    /// Expected nodes of the grid, including this one.
    pub expected: usize,
    /// The key of channel hashes, the same on every node.
    pub channel_key: [u8; 16],
    /// Seeds choices that should differ between nodes and starts.
    pub random_seed: u64,
}

/// A message for a shard of this node.
#[derive(Debug)]
pub struct ShardMessage {
    /// The receiver.
    pub to: ShardId,
    /// The message.
    pub message: FromMesh,
}

/// One node's end of the mesh.
pub struct Mesh {
    settings: MeshSettings,

    // Links and sessions
    links: BTreeMap<LinkId, Link>,
    // Nodes with a session.
    peers: BTreeMap<NodeId, Peer>,
    lost_nodes: LostNodes,
    accepted_hellos: BTreeMap<NodeId, AcceptedHello>,
    // `NodeUp` messages that a shard has not confirmed with `NodeSeen`.
    unseen_node_ups: BTreeMap<(NodeId, ShardId), u32>,
    sessions_offered: u64,
    sessions_ended: u64,
    // Peers that were refused, or refused this node.
    refusals: Refused,
    // The versions of the protocol that this node speaks.
    versions: wire::Versions,
    // Set while other nodes refuse this one.
    rejection: Option<Rejection>,
    // Nodes with batches to send.
    to_flush: Vec<NodeId>,

    // Time
    // When peers are checked next.
    check_ms: u64,
    // When this node last resumed after a gap in which it did not run.
    resumed_ms: Option<u64>,
    // Until when every peer's interest is trusted at least; `None`: not all are.
    all_trusted_until_ms: Option<u64>,

    // Finding nodes
    membership: Membership,
    dialler: Dialler,

    // Interest
    hasher: ChannelHasher,
    local_interest: LocalInterest,
    remote_interest: RemoteInterest,
    announcements: Announcements,
    subscribing_here: Subscribing<ShardId>,
    subscribing_there: Subscribing<NodeId>,

    // Publishes
    pending: PendingPublishes,
    // Tallies that nodes did not give in time.
    uncounted: u64,
    // Clients of each shard of this node.
    clients: Vec<u64>,

    // Output
    effects: VecDeque<LinkEffect>,
    outbox: VecDeque<ShardMessage>,
}

impl Mesh {
    /// A mesh without links.
    pub fn new(settings: MeshSettings, now_ms: u64) -> Self {
        let own = Member::new(settings.node, settings.incarnation, settings.advertise);
        Self {
            links: BTreeMap::new(),
            peers: BTreeMap::new(),
            lost_nodes: LostNodes::default(),
            accepted_hellos: BTreeMap::new(),
            unseen_node_ups: BTreeMap::new(),
            sessions_offered: 0,
            sessions_ended: 0,
            refusals: Refused::default(),
            versions: wire::VERSIONS,
            rejection: None,
            to_flush: Vec::new(),
            check_ms: now_ms,
            resumed_ms: None,
            all_trusted_until_ms: None,
            membership: Membership::new(own, settings.random_seed),
            dialler: Dialler::new(&settings, now_ms),
            hasher: ChannelHasher::new(&settings.channel_key),
            local_interest: LocalInterest::default(),
            remote_interest: RemoteInterest::default(),
            announcements: Announcements::default(),
            subscribing_here: Subscribing::default(),
            subscribing_there: Subscribing::default(),
            pending: PendingPublishes::new(settings.incarnation),
            uncounted: 0,
            clients: vec![0; settings.shards],
            effects: VecDeque::new(),
            outbox: VecDeque::new(),
            settings,
        }
    }

    /// Handles an event of the transport.
    pub fn handle_event(&mut self, now_ms: u64, event: LinkEvent) {
        match event {
            LinkEvent::Opened { link, remote, is_dialled } => {
                self.handle_opened(now_ms, link, remote, is_dialled);
            }
            LinkEvent::Received(link, lane, bytes) => {
                self.handle_received(now_ms, link, lane, bytes);
            }
            LinkEvent::Datagram(link, packet) => {
                if self.links.get(&link).is_some_and(|link| link.peer.is_some()) {
                    self.membership.handle_datagram(now_ms, &packet);
                }
            }
            LinkEvent::Closed(link, why) => self.handle_closed(now_ms, link, &why),
            LinkEvent::Unreachable(target, why) => {
                if self.dialler.is_news(now_ms, &target, &why) {
                    tracing::warn!("mesh: {target} cannot be reached: {why}");
                }
            }
            LinkEvent::Refused(refusal) => self.count_refusal(refusal),
        }
    }

    /// Handles a message of a shard of this node.
    pub fn handle_message(&mut self, now_ms: u64, from: ShardId, message: ToMesh) {
        match message {
            ToMesh::Grid(to, message) => self.forward(now_ms, from, to, message),
            ToMesh::Publish(requester, publish) => self.publish(now_ms, from, requester, publish),
            ToMesh::ForUsers(requester, command) => {
                self.carry_out_for_users(now_ms, from, requester, command);
            }
            ToMesh::Published(ticket, tally) => self.count(ticket, Counter::Shard(from), tally),
            ToMesh::NotPublished(ticket) => {
                // The shard has too much waiting behind another publish of the same back end.
                if let Some(counted) = self.pending.pass_over(ticket, Counter::Shard(from)) {
                    self.tell_counted(counted);
                }
            }
            ToMesh::Report(ticket) => {
                let report = Box::new(self.report());
                self.tell_shard(from, FromMesh::Report(ticket, report));
            }
            ToMesh::Nodes(ticket) => {
                let nodes = Box::new(self.known_nodes(now_ms));
                self.tell_shard(from, FromMesh::Nodes(ticket, nodes));
            }
            ToMesh::Interest { change, channel, is_on } => {
                self.local_interest.set(self.hasher.hash(&channel), from, is_on);
                self.announcements.wait(self.local_interest.has_changes(), from, change);
            }
            ToMesh::Clients(clients) => self.clients[from.index()] = clients,
            ToMesh::NodeSeen(node) => self.handle_seen(node, from),
        }
    }

    /// Does what is due, and sends what was gathered. To be called once per turn, after the turn's events
    /// and messages.
    pub fn handle_turn(&mut self, now_ms: u64) {
        self.subscribing_there.expire(now_ms);
        self.subscribing_here.expire(now_ms);
        self.membership.handle_timeout(now_ms);
        self.follow_membership(now_ms);
        while let Some(counted) = self.pending.poll_expired(now_ms) {
            self.tell_counted(counted);
        }
        self.announce_changes(now_ms);
        if self.check_ms <= now_ms {
            self.check_peers(now_ms);
        }
        self.dial(now_ms);
        self.tell_what_is_known(now_ms);
        self.flush();
    }

    /// Tells the other nodes that this one leaves, and closes the links.
    pub fn handle_leave(&mut self, now_ms: u64) {
        self.membership.leave(now_ms);
        self.follow_membership(now_ms);
        for &link in self.links.keys() {
            self.effects.push_back(LinkEffect::Close(link, SHUTS_DOWN.into()));
        }
    }

    /// When [`Self::handle_turn`] is due at the latest, in milliseconds.
    pub fn poll_timeout(&self) -> Option<u64> {
        let times = [
            self.membership.poll_timeout(),
            self.pending.poll_timeout(),
            Some(self.check_ms),
            Some(self.dialler.poll_timeout()),
            self.announcements.poll_timeout(),
        ];
        times.into_iter().flatten().min()
    }

    /// The next effect for the transport.
    pub fn poll_effect(&mut self) -> Option<LinkEffect> {
        self.effects.pop_front()
    }

    /// The next message for a shard of this node.
    pub fn poll_message(&mut self) -> Option<ShardMessage> {
        self.outbox.pop_front()
    }

    /// Sends a message of the mesh to a shard.
    fn tell_shard(&mut self, to: ShardId, message: FromMesh) {
        self.outbox.push_back(ShardMessage { to, message });
    }

    /// Sends a message of the mesh to every shard.
    fn tell_shards(&mut self, message: impl Fn() -> FromMesh) {
        for shard in 0..self.settings.shards {
            self.tell_shard(ShardId(shard as u8), message());
        }
    }

    /// Tells every shard that the grid has declared a node dead.
    fn tell_dead(&mut self, node: NodeId, incarnation: Incarnation) {
        self.tell_shards(|| FromMesh::NodeDead { node, incarnation });
    }
}

#[cfg(test)]
mod tests;
