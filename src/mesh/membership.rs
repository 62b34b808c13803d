//! Which nodes there are: SWIM, by the library foca. Its packets travel as datagrams of links; it
//! tells of nodes that no link leads to yet, and when the nodes agree that one is dead.

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

use crate::address::NodeId;

/// Largest packet: fits a datagram of any path that QUIC works on (RFC 9000 asks for 1,200 bytes).
const PACKET_BYTES: NonZeroUsize = NonZeroUsize::new(1000).expect("it is not 0");

/// A member: its id, and which of those that had it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    node: u16,
    /// When it started, in Unix milliseconds.
    pub incarnation: u64,
    // How often it was declared dead and came back.
    returns: u32,
    /// Where it is dialled.
    pub mesh: SocketAddr,
}

impl Identity {
    /// A member that has just started.
    pub fn new(node: NodeId, incarnation: u64, mesh: SocketAddr) -> Self {
        Self { node: node.number(), incarnation, returns: 0, mesh }
    }

    /// Its id; `None` if it has none that can be: its packet is not to be listened to.
    pub fn node(&self) -> Option<NodeId> {
        NodeId::new(self.node)
    }
}

impl foca::Identity for Identity {
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

/// What membership has learned.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// There is a member.
    Up(Identity),
    /// A member is dead, or has left.
    Down(Identity),
    /// The others had declared this node dead: it is back.
    Returned,
}

/// One node's view of the members.
pub struct Membership {
    foca: Foca<Identity, PostcardCodec, SmallRng, NoCustomBroadcast>,
    runtime: AccumulatingRuntime<Identity>,
    // By when they are due, in milliseconds, and the order they came in.
    timers: BTreeMap<(u64, u64), Timer<Identity>>,
    timers_set: u64,
    // By id: those that are members now.
    up: BTreeSet<u16>,
    changes: VecDeque<Change>,
    datagrams: VecDeque<(NodeId, Bytes)>,
}

fn every(ms: u64, members: usize) -> Option<PeriodicParams> {
    let num_members = NonZeroUsize::new(members)?;
    Some(PeriodicParams { frequency: Duration::from_millis(ms), num_members })
}

/// A dead node is found within 0.6 s (each member probes another in that time) and 2 s of suspicion:
/// SPEC wants it out of the counts within 5.
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
    /// A view that knows of this node alone.
    pub fn new(own: Identity, random_seed: u64) -> Self {
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

    /// Whether such a node is a member.
    pub fn has(&self, node: NodeId) -> bool {
        self.up.contains(&node.number())
    }

    /// There is a link to this member: asks it to take us in, and whom it knows. To be called again
    /// until it is a member: what is asked and what is answered may get lost.
    pub fn meet(&mut self, now_ms: u64, member: Identity) {
        // It fails only if what is announced does not fit a packet, and it does.
        let _ = self.foca.announce(member, &mut self.runtime);
        self.take_in(now_ms);
    }

    /// A packet of another member. What cannot be read is passed over: a later one says the same.
    pub fn handle_datagram(&mut self, now_ms: u64, packet: &[u8]) {
        let _ = self.foca.handle_data(packet, &mut self.runtime);
        self.take_in(now_ms);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now_ms: u64) {
        while let Some(entry) = self.timers.first_entry()
            && entry.key().0 <= now_ms
        {
            // It complains of a probe that was late, which a core that was busy makes: the next one
            // will do.
            let _ = self.foca.handle_timer(entry.remove(), &mut self.runtime);
            self.take_in(now_ms);
        }
    }

    /// This node leaves: the others hear of it.
    pub fn leave(&mut self, now_ms: u64) {
        let _ = self.foca.leave_cluster(&mut self.runtime);
        self.take_in(now_ms);
    }

    /// When [`Self::handle_timeout`] is to be called.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.timers.first_key_value().map(|((due_ms, _), _)| *due_ms)
    }

    /// What was learned.
    pub fn poll_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    /// A packet for another member. Without a link to it, it may be dropped.
    pub fn poll_datagram(&mut self) -> Option<(NodeId, Bytes)> {
        self.datagrams.pop_front()
    }

    /// All members but this one, and whether they are suspected.
    pub fn members(&self) -> impl Iterator<Item = (&Identity, bool)> {
        self.foca.iter_members().map(|member| (member.id(), member.state() == State::Suspect))
    }

    fn take_in(&mut self, now_ms: u64) {
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.timers_set += 1;
            self.timers.insert((now_ms + after.as_millis() as u64, self.timers_set), timer);
        }
        while let Some((to, packet)) = self.runtime.to_send() {
            self.datagrams.extend(to.node().map(|node| (node, packet)));
        }
        while let Some(notification) = self.runtime.to_notify() {
            match notification {
                OwnedNotification::MemberUp(member) => {
                    self.up.insert(member.node);
                    self.changes.push_back(Change::Up(member));
                }
                OwnedNotification::MemberDown(member) => {
                    self.up.remove(&member.node);
                    self.changes.push_back(Change::Down(member));
                }
                OwnedNotification::Rejoin(_) => self.changes.push_back(Change::Returned),
                OwnedNotification::Rename(..)
                | OwnedNotification::Active
                | OwnedNotification::Idle
                | OwnedNotification::Defunct => {}
            }
        }
    }
}
