//! Which nodes are in the grid: SWIM, by the library foca.
//!
//! Packets of the gossip travel as datagrams of links. The gossip finds nodes to which there is no link yet, and
//! has all nodes agree on which one is dead.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use bytes::Bytes;
use foca::{
    AccumulatingRuntime, Config, Foca, NoCustomBroadcast, OwnedNotification, PeriodicParams,
    PostcardCodec, State, Timer,
};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde::{Deserialize, Serialize};

use super::Mesh;
use super::link::LinkEffect;
use crate::address::{Incarnation, NodeId};
use crate::message::FromMesh;

/// Largest packet. Fits a datagram on any path that QUIC works on (RFC 9000 requires 1,200 bytes).
const PACKET_BYTES: NonZeroUsize = NonZeroUsize::new(1000).expect("it is not 0");

/// A node of the grid, as gossip describes it. The fields are those of the packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Member {
    node: u16,
    incarnation: u64,
    // How often the member was declared dead and returned.
    returns: u32,
    /// The address at which the member is dialled.
    pub mesh: SocketAddr,
}

impl Member {
    /// A member that has never been declared dead.
    pub(super) fn new(node: NodeId, incarnation: Incarnation, mesh: SocketAddr) -> Self {
        Self { node: node.number(), incarnation: incarnation.0, returns: 0, mesh }
    }

    /// The member's id; `None` if its number is out of range, which makes the packet invalid.
    pub(super) fn node(&self) -> Option<NodeId> {
        NodeId::new(self.node)
    }

    /// When the member was started.
    pub(super) fn incarnation(&self) -> Incarnation {
        Incarnation(self.incarnation)
    }
}

impl foca::Identity for Member {
    type Addr = u16;

    fn renew(&self) -> Option<Self> {
        Some(Self { returns: self.returns.wrapping_add(1), ..self.clone() })
    }

    fn addr(&self) -> u16 {
        self.node
    }

    fn win_addr_conflict(&self, other: &Self) -> bool {
        (self.incarnation, self.returns) > (other.incarnation, other.returns)
    }
}

/// A change of the membership.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum MemberChange {
    /// A member was found.
    Up(Member),
    /// A member is dead, or has left.
    Down(Member),
    /// The others had declared this node dead, and it has returned.
    Returned,
}

/// One node's view of the members.
pub(super) struct Membership {
    foca: Foca<Member, PostcardCodec, SmallRng, NoCustomBroadcast>,
    runtime: AccumulatingRuntime<Member>,
    timers: BTreeMap<TimerKey, Timer<Member>>,
    timers_set: u64,
    // Numbers of the current members.
    up: BTreeSet<u16>,
    changes: VecDeque<MemberChange>,
    datagrams: VecDeque<(NodeId, Bytes)>,
}

/// Orders timers by when they are due, then by when they were set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct TimerKey {
    due_ms: u64,
    number: u64,
}

fn every(ms: u64, members: usize) -> Option<PeriodicParams> {
    let num_members = NonZeroUsize::new(members)?;
    Some(PeriodicParams { frequency: Duration::from_millis(ms), num_members })
}

/// The parameters of SWIM. A dead node is suspected within about 0.6 s, the interval of probes, and
/// declared dead 2 s later. docs/promises.md wants it out of the counts within 5 s.
fn config() -> Config {
    Config {
        probe_period: Duration::from_millis(600),
        probe_rtt: Duration::from_millis(300),
        num_indirect_probes: NonZeroUsize::new(3).expect("it is not 0"),
        max_transmissions: NonZeroU8::new(10).expect("it is not 0"),
        suspect_to_down_after: Duration::from_millis(2000),
        remove_down_after: Some(Duration::from_secs(3600)),
        max_packet_size: PACKET_BYTES,
        notify_down_members: true,
        periodic_announce: every(10_000, 1),
        periodic_announce_to_down_members: every(2000, 2),
        periodic_gossip: every(200, 3),
    }
}

impl Membership {
    /// A view that includes only this node.
    pub(super) fn new(own: Member, random_seed: u64) -> Self {
        let random = SmallRng::seed_from_u64(random_seed);
        Self {
            foca: Foca::new(own, config(), random, PostcardCodec),
            runtime: AccumulatingRuntime::new(),
            timers: BTreeMap::new(),
            timers_set: 0,
            up: BTreeSet::new(),
            changes: VecDeque::new(),
            datagrams: VecDeque::new(),
        }
    }

    /// Whether a node is a member.
    pub(super) fn has(&self, node: NodeId) -> bool {
        self.up.contains(&node.number())
    }

    /// Whether a node is a member in this incarnation.
    pub(super) fn has_incarnation(&self, node: NodeId, incarnation: Incarnation) -> bool {
        self.members()
            .any(|(member, _)| member.node() == Some(node) && member.incarnation() == incarnation)
    }

    /// Announces this node to a node that a link leads to, and asks for the members that it knows. To be
    /// repeated until the node is a member, since packets may be lost.
    pub(super) fn meet(&mut self, now_ms: u64, member: Member) {
        // Fails only if an announcement does not fit a packet.
        let _ = self.foca.announce(member, &mut self.runtime);
        self.take_in(now_ms);
    }

    /// Handles a packet of another member. An invalid packet is ignored: a later one has the same content.
    pub(super) fn handle_datagram(&mut self, now_ms: u64, packet: &[u8]) {
        let _ = self.foca.handle_data(packet, &mut self.runtime);
        self.take_in(now_ms);
    }

    /// Handles the timers that are due.
    pub(super) fn handle_timeout(&mut self, now_ms: u64) {
        while let Some(entry) = self.timers.first_entry()
            && entry.key().due_ms <= now_ms
        {
            // A probe that was late because the core was busy is an error here. The next one will do.
            let _ = self.foca.handle_timer(entry.remove(), &mut self.runtime);
            self.take_in(now_ms);
        }
    }

    /// Tells the other members that this node leaves.
    pub(super) fn leave(&mut self, now_ms: u64) {
        let _ = self.foca.leave_cluster(&mut self.runtime);
        self.take_in(now_ms);
    }

    /// When [`Self::handle_timeout`] is due, in milliseconds.
    pub(super) fn poll_timeout(&self) -> Option<u64> {
        self.timers.first_key_value().map(|(key, _)| key.due_ms)
    }

    /// The next change of the membership.
    pub(super) fn poll_change(&mut self) -> Option<MemberChange> {
        self.changes.pop_front()
    }

    /// The next packet to send. A packet to a member without a link may be dropped.
    pub(super) fn poll_datagram(&mut self) -> Option<(NodeId, Bytes)> {
        self.datagrams.pop_front()
    }

    /// All other members, and whether they are suspected to be dead.
    pub(super) fn members(&self) -> impl Iterator<Item = (&Member, bool)> {
        self.foca.iter_members().map(|member| (member.id(), member.state() == State::Suspect))
    }

    /// Whether a node is suspected to be dead.
    pub(super) fn is_suspected(&self, node: NodeId) -> bool {
        self.members().any(|(member, is_suspected)| is_suspected && member.node() == Some(node))
    }

    fn take_in(&mut self, now_ms: u64) {
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.timers_set += 1;
            let due_ms = now_ms + after.as_millis() as u64;
            self.timers.insert(TimerKey { due_ms, number: self.timers_set }, timer);
        }
        while let Some((to, packet)) = self.runtime.to_send() {
            self.datagrams.extend(to.node().map(|node| (node, packet)));
        }
        while let Some(notification) = self.runtime.to_notify() {
            match notification {
                OwnedNotification::MemberUp(member) => {
                    self.up.insert(member.node);
                    self.changes.push_back(MemberChange::Up(member));
                }
                OwnedNotification::MemberDown(member) => {
                    self.up.remove(&member.node);
                    self.changes.push_back(MemberChange::Down(member));
                }
                OwnedNotification::Rejoin(_) => self.changes.push_back(MemberChange::Returned),
                OwnedNotification::Rename(..)
                | OwnedNotification::Active
                | OwnedNotification::Idle
                | OwnedNotification::Defunct => {}
            }
        }
    }
}

impl Mesh {
    /// Acts on changes of the membership, and sends packets of the gossip.
    pub(super) fn follow_membership(&mut self, now_ms: u64) {
        while let Some(change) = self.membership.poll_change() {
            match change {
                MemberChange::Up(member) => self.handle_member_up(now_ms, &member),
                MemberChange::Down(member) => self.handle_member_down(now_ms, &member),
                MemberChange::Returned => {
                    tracing::warn!("mesh: the other nodes had declared this one dead; it is back");
                    self.tell_shards(|| FromMesh::Readmitted);
                }
            }
        }
        while let Some((node, packet)) = self.membership.poll_datagram() {
            if let Some(link) = self.peers.get(&node).and_then(|peer| peer.link) {
                self.effects.push_back(LinkEffect::Datagram(link, packet));
            }
        }
    }

    fn handle_member_up(&mut self, now_ms: u64, member: &Member) {
        let Some(node) = member.node().filter(|node| *node != self.settings.node) else { return };
        match self.peers.get_mut(&node) {
            Some(peer) if peer.link.is_some() => peer.is_declared_dead = false,
            _ => self.dialler.want(now_ms, node, member.mesh, self.settings.node > node),
        }
    }

    /// Ends the session with a member that is dead or has left: at once without a link, otherwise when the
    /// link is lost.
    fn handle_member_down(&mut self, now_ms: u64, member: &Member) {
        let Some(node) = member.node() else { return };
        let incarnation = member.incarnation();
        let peer = self.peers.get_mut(&node).filter(|peer| peer.hello.incarnation == incarnation);
        match peer {
            Some(peer) if peer.link.is_some() => peer.is_declared_dead = true,
            Some(_) => {
                self.end_session(now_ms, node, "all nodes agree that it is dead or has left");
            }
            None => self.tell_dead(node, incarnation),
        }
    }
}
