//! Other nodes. Pure but for `quic.rs`: events of links and messages of shards go in (`handle_*`), and
//! what is to be sent and told comes out (`poll_*`).
//!
//! - `link.rs`: what the transport is told, and tells. `wire/`: messages ⇄ bytes.
//! - `peers.rs`: who is at the other end of a link, and what the meshes tell each other. `letters.rs`:
//!   what shards do.
//! - `session.rs`: what is said between two nodes, once and in order, over however many links.
//! - `membership.rs`: which nodes there are. `dial.rs`: who is dialled, and when.
//! - `interest.rs`: who wants to hear of which channel, `told.rs`: who knows that, `under_way.rs`: who is
//!   about to. `publish.rs`: tallies of publishes.
//! - `quic.rs`: the transport, and the thread on which all of this runs. `identity.rs`: who belongs to
//!   the grid. `standing.rs`: how a mesh stands.
//!
//! # Subscribe, then publish
//!
//! A shard tells the mesh of the first subscriber of a channel, the mesh tells every node, each says
//! that it knows, and only then is the subscribe answered: a publish through any node afterwards
//! finds it. What if a node is silent? It may be frozen, and publish again before it hears of
//! anything. So a node trusts what it knows of another's interest for [`peers::LEASE_MS`] after it
//! asked for the last sign of life that was answered, and without that trust sends it every publish.
//! Who tells, waits as long at most: then the silent one has either heard of it or lost its trust.
//! Time in which a node itself did not run (see `handle_gap`) counts for these leases, and for no other
//! deadline: a node that wakes up neither trusts what it knew nor throws anybody out.
//! This costs the first subscriber of a channel on a node one round trip to the farthest node, and
//! with a silent node, until that is given up, those [`peers::LEASE_MS`].

mod dial;
pub mod identity;
mod interest;
mod letters;
pub mod link;
mod membership;
mod peers;
mod publish;
pub mod quic;
mod session;
mod standing;
mod told;
mod under_way;
pub mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::address::{NodeId, ShardAddress, ShardId};
use crate::message::{Answer, BackendId, Command, Message, Party, Ticket};
use crate::metrics::{MeshReport, NodeReport, Refused};
use crate::protocol::api::{self, Code, Fault, Function, MeshRow, NodeRow, Reply, Tally};
use crate::protocol::frame::Frame;
use dial::Dialler;
use interest::{ChannelHash, NodesInterest, OwnInterest};
use link::{Effect, Event, Lane, LinkId, Refusal};
use membership::{Identity, Membership};
use peers::{Link, Peer};
use publish::{Asker, Counted, Counter, Publishes};
use told::Told;
use under_way::UnderWay;
use wire::To;

/// What a node's mesh is told when it is made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node.
    pub node: NodeId,
    /// When it started, in Unix milliseconds.
    pub incarnation: u64,
    /// How many shards it has.
    pub shards: usize,
    /// Where other nodes dial it.
    pub advertise: SocketAddr,
    /// Where back ends reach it.
    pub api: SocketAddr,
    /// Targets that are dialled until the grid is joined, `HOST:PORT`.
    pub seeds: Vec<String>,
    /// How long a call waits for shards and nodes, in milliseconds.
    pub answer_ms: u64,
    /// Nodes of the grid that are expected, this one included.
    pub expected: usize,
    /// For the hashes of channels: the same on every node.
    pub channel_key: [u8; 16],
    /// For choices that should differ between nodes and starts.
    pub random_seed: u64,
}

/// One node's end of the mesh.
pub struct Mesh {
    settings: Settings,
    hash: ChannelHash,
    links: BTreeMap<LinkId, Link>,
    // Those there is a session with.
    peers: BTreeMap<NodeId, Peer>,
    // Of each node the last Hello by which a link began: when it was started, and what it offered. At
    // most one per id.
    taken: BTreeMap<NodeId, (u64, u64)>,
    membership: Membership,
    dialler: Dialler,
    own: OwnInterest,
    told: Told,
    nodes: NodesInterest,
    // How often a shard was told that a node is within reach and has not said that it heard it.
    unseen: BTreeMap<(NodeId, ShardId), u32>,
    subscribed_there: UnderWay<NodeId>,
    subscribed_here: UnderWay<ShardId>,
    publishes: Publishes,
    sessions_begun: u64,
    sessions_ended: u64,
    // Clients of each of our shards.
    clients: Vec<u64>,
    // Publishes that a node did not count in time.
    uncounted: u64,
    // Nodes with something to send.
    touched: Vec<NodeId>,
    // Until when every peer is trusted at least.
    all_trusted_until_ms: u64,
    // When it last went on after a gap in which it did not run.
    woken_ms: Option<u64>,
    // When peers are next to be looked after.
    care_ms: u64,
    // Peers that were not let in.
    refusals: Refused,
    // Since when nobody takes this node in, and why.
    refused: Option<(u64, String)>,
    effects: VecDeque<Effect>,
    outbox: VecDeque<(ShardId, Party, Message)>,
}

impl Mesh {
    /// A mesh that knows nobody yet.
    pub fn new(settings: Settings, now_ms: u64) -> Self {
        let own = Identity::new(settings.node, settings.incarnation, settings.advertise);
        Self {
            hash: ChannelHash::new(&settings.channel_key),
            links: BTreeMap::new(),
            peers: BTreeMap::new(),
            taken: BTreeMap::new(),
            membership: Membership::new(own, settings.random_seed),
            dialler: Dialler::new(&settings, now_ms),
            own: OwnInterest::default(),
            told: Told::default(),
            nodes: NodesInterest::default(),
            unseen: BTreeMap::new(),
            subscribed_there: UnderWay::default(),
            subscribed_here: UnderWay::default(),
            publishes: Publishes::new(settings.incarnation),
            sessions_begun: 0,
            sessions_ended: 0,
            clients: vec![0; settings.shards],
            uncounted: 0,
            touched: Vec::new(),
            all_trusted_until_ms: 0,
            woken_ms: None,
            care_ms: now_ms,
            refusals: Refused::default(),
            refused: None,
            effects: VecDeque::new(),
            outbox: VecDeque::new(),
            settings,
        }
    }

    /// The transport tells something.
    pub fn handle_event(&mut self, now_ms: u64, event: Event) {
        match event {
            Event::Opened { link, remote, is_dialled } => {
                self.handle_opened(now_ms, link, remote, is_dialled);
            }
            Event::Received(link, lane, bytes) => self.handle_received(now_ms, link, lane, bytes),
            Event::Datagram(link, packet) => {
                if self.links.get(&link).is_some_and(|link| link.peer.is_some()) {
                    self.membership.handle_datagram(now_ms, &packet);
                }
            }
            Event::Closed(link, why) => self.handle_closed(now_ms, link, &why),
            Event::Unreachable(target, why) => {
                if self.dialler.is_news(now_ms, &target, &why) {
                    tracing::warn!("mesh: {target} cannot be reached: {why}");
                }
            }
            Event::Refused(refusal) => self.count_refusal(refusal),
        }
    }

    /// A shard of this node says something to the mesh or to a shard of another node.
    pub fn handle_message(&mut self, now_ms: u64, from: ShardId, to: Party, message: Message) {
        match (to, message) {
            (Party::Shard(to), message) => self.pass_on(now_ms, from, to, message),
            (Party::Mesh, Message::Interest(number, channel, is_on)) => {
                self.own.set(self.hash.of(&channel), from, is_on);
                self.told.wait(self.own.has_changes(), from, number);
            }
            (Party::Mesh, Message::NodeSeen(node)) => self.handle_seen(node, from),
            (Party::Mesh, Message::Clients(clients)) => self.clients[from.index()] = clients,
            (Party::Mesh, Message::Ask { ticket, from: backend, command }) => match command {
                Command::Publish(channel, frame) => {
                    let publish = Publish { backend, channel, frame };
                    self.publish(now_ms, from, ticket, publish);
                }
                Command::Nodes => {
                    let answer = Message::Answer(ticket, Answer::Done(Ok(self.nodes_page())));
                    self.outbox.push_back((from, Party::Mesh, answer));
                }
                Command::Report => {
                    let answer = Message::Answer(ticket, Answer::Mesh(Box::new(self.report())));
                    self.outbox.push_back((from, Party::Mesh, answer));
                }
                _ => debug_assert!(false, "shards ask the mesh for nothing else"),
            },
            (Party::Mesh, Message::Answer(ticket, Answer::Published(tally))) => {
                self.count(ticket, Counter::Shard(from), tally);
            }
            (Party::Mesh, Message::Answer(ticket, Answer::Done(Err(_)))) => {
                // Too much waits there behind another publish of that back end.
                if let Some(counted) = self.publishes.pass_over(ticket, Counter::Shard(from)) {
                    self.tell_counted(counted);
                }
            }
            (Party::Mesh, _) => debug_assert!(false, "shards say nothing else to the mesh"),
        }
    }

    /// Does what is due, and sends what has gathered. To be called once a turn, after what it has
    /// been given.
    pub fn handle_turn(&mut self, now_ms: u64) {
        self.subscribed_there.expire(now_ms);
        self.subscribed_here.expire(now_ms);
        self.membership.handle_timeout(now_ms);
        self.take_in_membership(now_ms);
        while let Some(counted) = self.publishes.poll_expired(now_ms) {
            self.tell_counted(counted);
        }
        self.tell_interest(now_ms);
        if self.care_ms <= now_ms {
            self.care_for_peers(now_ms);
        }
        self.dial(now_ms);
        self.tell_what_is_known(now_ms);
        self.flush();
    }

    /// The node goes down: the others are told that it leaves.
    pub fn handle_leave(&mut self, now_ms: u64) {
        self.membership.leave(now_ms);
        self.take_in_membership(now_ms);
        for &link in self.links.keys() {
            self.effects.push_back(Effect::Close(link, "the node goes down".into()));
        }
    }

    /// When [`Self::handle_turn`] is to be called at the latest.
    pub fn poll_timeout(&self) -> Option<u64> {
        let times = [
            self.membership.poll_timeout(),
            self.publishes.poll_timeout(),
            Some(self.care_ms),
            Some(self.dialler.poll_timeout()),
            self.told.poll_timeout(),
        ];
        times.into_iter().flatten().min()
    }

    /// The next thing that the transport is to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// The next message for a shard of this node, and whom it is from.
    pub fn poll_message(&mut self) -> Option<(ShardId, Party, Message)> {
        self.outbox.pop_front()
    }

    /// A shard's message to one of another node. What cannot be passed on and awaits an answer gets
    /// one at once.
    fn pass_on(&mut self, now_ms: u64, from: ShardId, to: ShardAddress, message: Message) {
        let Some(peer) = self.peers.get(&to.node) else {
            return self.refuse(from, to, &message, "the client's node is out of reach");
        };
        if self.unseen.contains_key(&(to.node, from)) {
            // It is about the session before: in this one it would be taken for something else.
            return self.refuse(from, to, &message, "the client's node was out of reach");
        }
        if matches!(message, Message::Ask { .. }) && peer.is_silent {
            return self.refuse(from, to, &message, "the client's node does not answer");
        }
        if matches!(message, Message::Ask { .. }) && !peer.session.takes_calls() {
            return self.refuse(from, to, &message, "the client's node does not keep up");
        }
        for channel in subscribed_by(&message) {
            let until_ms = now_ms + self.settings.answer_ms;
            self.subscribed_there.note(until_ms, self.hash.of(channel), to.node);
        }
        self.send(to.node, Lane::Shard(from), To::Shard(to.shard), &message);
    }

    /// A shard has heard once that a node is within reach.
    fn handle_seen(&mut self, node: NodeId, shard: ShardId) {
        if let Some(times) = self.unseen.get_mut(&(node, shard)) {
            *times -= 1;
            if *times == 0 {
                self.unseen.remove(&(node, shard));
            }
        }
    }

    fn refuse(&mut self, asker: ShardId, to: ShardAddress, message: &Message, why: &'static str) {
        let Message::Ask { ticket, command, .. } = message else { return };
        let code = match command {
            Command::Send(..) => Code::SendFailed,
            _ => Code::ExecutionFailed,
        };
        let answer = Answer::Done(Err(Fault::new(code, why)));
        self.outbox.push_back((asker, Party::Shard(to), Message::Answer(*ticket, answer)));
    }

    /// One of our shards publishes: so do the nodes that have subscribers, or may have.
    fn publish(
        &mut self,
        now_ms: u64,
        from: ShardId,
        ticket: Ticket,
        Publish { backend, channel, frame }: Publish,
    ) {
        let hash = self.hash.of(&channel);
        let (mut asked, mut awaited, mut silent) = (Vec::new(), Vec::new(), Vec::new());
        for node in self.who_may_want(now_ms, hash) {
            let Some(peer) = self.peers.get(&node) else { continue };
            let is_asked = peer.session.takes_calls() && self.publishes.has_room();
            asked.extend(is_asked.then_some(node));
            // It is sent to one that is silent, which may yet hear it, but nobody waits for that.
            let is_awaited = is_asked && !peer.is_silent;
            if is_awaited { &mut awaited } else { &mut silent }.push(Counter::Node(node));
        }
        let asker = Asker::Shard(from, ticket);
        if asked.is_empty() {
            let tally = Tally::default();
            return self.tell_counted(Counted { asker, channel: hash, tally, silent });
        }
        // Who asked waits for `answer_ms`: the sum must be there a little before.
        let deadline_ms = now_ms + self.settings.answer_ms * 9 / 10;
        let ticket = self.publishes.open(asker, hash, (awaited, silent), deadline_ms);
        let command = Command::Publish(channel, frame);
        let message = Message::Ask { ticket, from: backend, command };
        for node in asked {
            self.send(node, Lane::Shard(from), To::Mesh, &message);
        }
        if let Some(counted) = self.publishes.poll_counted(ticket) {
            self.tell_counted(counted);
        }
    }

    /// The nodes that have subscribers of a channel, and those that may have without our knowing.
    fn who_may_want(&self, now_ms: u64, channel: u64) -> Vec<NodeId> {
        if now_ms <= self.all_trusted_until_ms && self.subscribed_there.is_empty() {
            return self.nodes.nodes(channel).collect();
        }
        let may_want = |(node, peer): &(&NodeId, &Peer)| {
            let mut wanting = self.nodes.nodes(channel).chain(self.subscribed_there.who(channel));
            !peer.is_trusted(now_ms) || wanting.any(|wanting| wanting == **node)
        };
        self.peers.iter().filter(may_want).map(|(&node, _)| node).collect()
    }

    fn send(&mut self, node: NodeId, lane: Lane, to: To, message: &Message) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.session.push(lane, to, message);
        }
        self.touch(node);
    }

    /// There is something to send to a node.
    fn touch(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node).filter(|peer| !peer.is_touched) {
            peer.is_touched = true;
            self.touched.push(node);
        }
    }

    /// Another node publishes: so do our shards that have subscribers.
    fn publish_here(
        &mut self,
        now_ms: u64,
        from: NodeId,
        ticket: Ticket,
        Publish { backend, channel, frame }: Publish,
    ) {
        let hash = self.hash.of(&channel);
        let asker = Asker::Node(from, ticket);
        let mut shards = self.own.shards(hash);
        self.subscribed_here.who(hash).for_each(|shard| shards.set(shard, true));
        if !shards.is_empty() && !self.publishes.has_room() {
            // Then this node counts as one that does not answer.
            return;
        }
        if shards.is_empty() {
            let tally = Tally::default();
            return self.tell_counted(Counted { asker, channel: hash, tally, silent: Vec::new() });
        }
        let awaited = shards.iter().map(Counter::Shard).collect();
        let deadline_ms = now_ms + self.settings.answer_ms * 9 / 10;
        let ticket = self.publishes.open(asker, hash, (awaited, Vec::new()), deadline_ms);
        for shard in shards.iter() {
            let command = Command::Publish(channel.clone(), frame.clone());
            let message = Message::Ask { ticket, from: backend, command };
            self.outbox.push_back((shard, Party::Mesh, message));
        }
    }

    fn count(&mut self, ticket: Ticket, from: Counter, tally: Tally) {
        let Some(channel) = self.publishes.count(ticket, from, tally) else { return };
        if let Counter::Node(node) = from {
            self.nodes.note(channel, node, tally.delivered.saturating_add(tally.failed));
        }
        if let Some(counted) = self.publishes.poll_counted(ticket) {
            self.tell_counted(counted);
        }
    }

    /// Tells who asked what was counted; of nodes that did not answer, what they last said.
    fn tell_counted(&mut self, counted: Counted) {
        let Counted { asker, channel, mut tally, silent } = counted;
        let mut has_silent_shards = false;
        for counter in silent {
            match counter {
                Counter::Node(node) => {
                    let last_known = self.nodes.last_known(channel, node);
                    tally.failed = tally.failed.saturating_add(last_known);
                    self.uncounted += 1;
                }
                Counter::Shard(_) => has_silent_shards = true,
            }
        }
        let answer = |ticket| Message::Answer(ticket, Answer::Published(tally));
        match asker {
            Asker::Shard(shard, ticket) => {
                self.outbox.push_back((shard, Party::Mesh, answer(ticket)));
            }
            // Then the node counts as one that did not answer: what it last said is nearer the truth.
            Asker::Node(..) if has_silent_shards => {}
            Asker::Node(node, ticket) => {
                self.send(node, Lane::Mesh, To::Mesh, &answer(ticket));
            }
        }
    }

    /// Sends what has gathered, each lane's in one batch.
    fn flush(&mut self) {
        for node in std::mem::take(&mut self.touched) {
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            peer.is_touched = false;
            peer.session.flush();
            if let Some(link) = peer.link {
                while let Some((lane, batch)) = peer.session.poll_batch() {
                    self.effects.push_back(Effect::Send(link, lane, batch));
                }
            }
        }
    }

    /// This node and those within reach, as `GET /v1/nodes` tells them.
    fn nodes_page(&self) -> Reply {
        let Settings { node, api, advertise, .. } = self.settings;
        let own = MeshRow {
            address: advertise,
            state: "up",
            version: env!("CARGO_PKG_VERSION").to_owned(),
            clients: self.clients.iter().sum(),
        };
        let mut nodes = vec![NodeRow { node, api, mesh: Some(own) }];
        nodes.extend(self.peers.values().map(|peer| {
            let suspected = |(member, is_suspected): (&Identity, bool)| {
                is_suspected && member.node() == Some(peer.hello.node)
            };
            let state = match peer.link {
                None => "lost",
                Some(_) if self.membership.members().any(suspected) => "suspected",
                Some(_) => "up",
            };
            NodeRow {
                node: peer.hello.node,
                api: peer.hello.api,
                mesh: Some(MeshRow {
                    address: peer.hello.mesh,
                    state,
                    version: peer.hello.software.clone(),
                    clients: peer.clients,
                }),
            }
        }));
        nodes.sort_by_key(|row| row.node);
        let mut page = Vec::new();
        api::put_nodes(&mut page, nodes.into_iter());
        Reply::Page("application/json", String::from_utf8_lossy(&page).into_owned())
    }

    /// How things stand with the other nodes.
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
        }
    }

    pub(super) fn count_refusal(&mut self, refusal: Refusal) {
        match refusal {
            Refusal::Key => self.refusals.key += 1,
            Refusal::Version => self.refusals.version += 1,
            Refusal::Id => self.refusals.id += 1,
        }
    }

    fn tell_shards(&mut self, message: impl Fn() -> Message) {
        for shard in 0..self.settings.shards {
            self.outbox.push_back((ShardId(shard as u8), Party::Mesh, message()));
        }
    }
}

/// The channels that a message asks to subscribe a client to.
fn subscribed_by(message: &Message) -> &[Box<str>] {
    match message {
        Message::Ask { command: Command::Call(_, Function::Subscribe(channels)), .. } => channels,
        _ => &[],
    }
}

/// What is published, and on whose behalf.
struct Publish {
    backend: BackendId,
    channel: Arc<str>,
    frame: Frame,
}

#[cfg(test)]
mod tests;
