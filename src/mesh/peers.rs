//! Who is at the other end of a link, sessions that begin and end, and what two meshes tell each
//! other: acknowledgements, signs of life.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::Bytes;

use super::link::{Effect, Lane, LinkId, Refusal};
use super::membership::{Change, Identity};
use super::session::Session;
use super::wire::{self, Control, FrameReader, Hello, VERSIONS};
use super::{Counter, Mesh};
use crate::address::{NodeId, ShardId};
use crate::message::Message;

/// How long what a node said of its interest is trusted to be whole, after the question that it
/// answered last was asked, in milliseconds. A subscribe waits for a silent node so long at most,
/// which is to be less than `limits.answer_ms`.
pub const LEASE_MS: u64 = 1000;

/// Between two questions for a sign of life.
const PING_MS: u64 = 300;

/// A link on which no sign of life was answered for so long after the lease ended is closed. The
/// transport sees that nothing comes any more; this sees that nothing arrives.
const UNANSWERED_MS: u64 = 1500;

/// A session without a link lives so long. With the 2.5 s after which a link counts as dead this is
/// within the 5 s in which a dead node is to be out of the counts.
const LOST_MS: u64 = 1500;

/// A link on which nobody has said who they are after so long is closed.
const HELLO_MS: u64 = 3000;

/// A node that nobody takes in for so long ends, and says why.
const REFUSED_MS: u64 = 10_000;

/// Bytes of messages that may come on a link before it is known whose they are.
const EARLY_BYTES: usize = 64 << 20;

/// One connection.
#[derive(Debug)]
pub struct Link {
    remote: SocketAddr,
    is_dialled: bool,
    since_ms: u64,
    // What we said in our Hello: the session that we hold, and the one that we offer.
    said: Option<(u64, u64)>,
    /// Who is at its other end.
    pub peer: Option<NodeId>,
    readers: BTreeMap<Lane, FrameReader>,
    early_bytes: usize,
}

/// A node that there is a session with.
#[derive(Debug)]
pub struct Peer {
    /// What it said of itself.
    pub hello: Hello,
    /// Which session.
    pub session_id: u64,
    /// What is said between us.
    pub session: Session,
    /// How many clients it said it has.
    pub clients: u64,
    /// How long its last sign of life took to come after it was asked for.
    pub round_trip_ms: u64,
    /// The connection; None: for now there is none.
    pub link: Option<LinkId>,
    /// It is among those with something to send.
    pub is_touched: bool,
    lost_ms: u64,
    /// It has let its lease end: calls for its clients fail at once, and publishes do not wait for it.
    /// So a back end whose calls follow each other closely does not wait for the deadline of each.
    pub is_silent: bool,
    // The members' gossip has it that it is dead, or it has said itself that it leaves.
    is_missed: bool,
    // What it knows of our interest.
    pub(super) known: u64,
    // What we know of its interest is whole, and until when that is trusted; 0 until it has answered
    // on this link.
    has_whole: bool,
    trusted_until_ms: u64,
    // Until when it counts as one that answers, time that this node slept left out; 0 until it has
    // answered on this link.
    answered_until_ms: u64,
    ping_ms: u64,
    pub(super) acknowledge_ms: Option<u64>,
}

impl Peer {
    /// Whether what we know of its interest is all that it has told anybody.
    pub fn is_trusted(&self, now_ms: u64) -> bool {
        now_ms <= self.trusted_until()
    }

    fn trusted_until(&self) -> u64 {
        if self.has_whole { self.trusted_until_ms } else { 0 }
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
            since_ms: now_ms,
            said: None,
            peer: None,
            readers: BTreeMap::new(),
            early_bytes: 0,
        };
        self.links.insert(id, link);
        self.care_ms = self.care_ms.min(now_ms + HELLO_MS);
        if is_dialled {
            // Who was dialled before is known by its address, or by one at which it answered.
            let answered = self.dialler.answered_at(remote).and_then(|node| self.peers.get(&node));
            let known = self.peers.values().find(|peer| peer.hello.mesh == remote).or(answered);
            if known.is_some_and(|peer| peer.link.is_some()) {
                // A seed that is a name is dialled whoever is linked.
                return self.close_link(now_ms, id, "there is another link between these nodes");
            }
            let known = known.map(|peer| peer.hello.node);
            self.say_hello(id, known);
        }
    }

    /// Says who we are, to whom we think to be speaking to.
    fn say_hello(&mut self, id: LinkId, to: Option<NodeId>) {
        self.sessions_begun += 1;
        // Never the same for two sessions of the grid, as far as that matters: which of two nodes
        // offers it, when that was started, and which one it is. It counts up: what was said later
        // offers more.
        let offered = (self.settings.incarnation << 20) + self.sessions_begun;
        let peer = to.and_then(|node| self.peers.get(&node));
        let held = peer.map_or(0, |peer| peer.session_id);
        let hello = Hello {
            versions: VERSIONS,
            node: self.settings.node,
            incarnation: self.settings.incarnation,
            shards: self.settings.shards as u16,
            mesh: self.settings.advertise,
            api: self.settings.api,
            software: env!("CARGO_PKG_VERSION").into(),
            held,
            offered,
            received: peer.map(|peer| peer.session.received()).unwrap_or_default(),
        };
        if let Some(link) = self.links.get_mut(&id) {
            link.said = Some((held, offered));
        }
        self.say(id, &Control::Hello(hello));
    }

    pub(super) fn say(&mut self, link: LinkId, control: &Control) {
        let mut bytes = Vec::new();
        wire::put_control(&mut bytes, control);
        self.effects.push_back(Effect::Send(link, Lane::Control, bytes.into()));
    }

    pub(super) fn handle_received(&mut self, now_ms: u64, id: LinkId, lane: Lane, bytes: Bytes) {
        let Some(link) = self.links.get_mut(&id) else { return };
        if lane != Lane::Control && link.peer.is_none() {
            // Lanes do not wait for each other: it may come before the words that say whose it is.
            link.early_bytes += bytes.len();
            if link.early_bytes > EARLY_BYTES {
                return self.close_link(now_ms, id, "messages before it is known whose");
            }
        }
        link.readers.entry(lane).or_default().push(bytes);
        self.read_lane(now_ms, id, lane);
    }

    fn read_lane(&mut self, now_ms: u64, id: LinkId, lane: Lane) {
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
                // A batch that was counted as come is lost in part.
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
                tracing::warn!("not taken in: {why}");
                if let Some(node) = peer {
                    self.end_session(node, &why);
                }
                self.note_refused(now_ms, why);
                Ok(())
            }
            (_, None) => Err("speaks before it said who it is".into()),
            (control, Some(node)) => self.handle_peer(now_ms, id, node, control),
        }
    }

    fn handle_peer(
        &mut self,
        now_ms: u64,
        id: LinkId,
        node: NodeId,
        control: Control,
    ) -> Result<(), String> {
        let Some(peer) = self.peers.get_mut(&node) else { return Ok(()) };
        match control {
            Control::Hello(_) | Control::Refused(_) => Err("said before who it is".into()),
            Control::Interest { number, is_whole, on, off } => {
                if is_whole {
                    self.all_trusted_until_ms = 0;
                    peer.has_whole = false;
                    self.nodes.forget(node);
                }
                let on = on.into_iter().map(|channel| (channel, true));
                let off = off.into_iter().map(|channel| (channel, false));
                for (channel, is_on) in on.chain(off) {
                    if !self.nodes.set(channel, node, is_on) {
                        return Err("has too many channels".into());
                    }
                }
                if number > 0 {
                    peer.has_whole = true;
                    self.say(id, &Control::InterestKnown(number));
                }
                Ok(())
            }
            Control::InterestKnown(number) => {
                peer.known = peer.known.max(number);
                Ok(())
            }
            Control::Ping(number) => {
                let clients = self.clients.iter().sum();
                self.say(id, &Control::Pong(number, clients));
                Ok(())
            }
            Control::Pong(asked_ms, clients) => {
                peer.answered_until_ms = asked_ms.min(now_ms) + LEASE_MS;
                if self.woken_ms.is_none_or(|woken_ms| woken_ms < asked_ms) {
                    peer.trusted_until_ms = peer.answered_until_ms;
                }
                peer.is_silent = false;
                peer.round_trip_ms = now_ms.saturating_sub(asked_ms);
                peer.clients = clients;
                self.refused = None;
                Ok(())
            }
            Control::Received(lane, number) => {
                peer.session.acknowledged(lane, number);
                Ok(())
            }
        }
    }

    /// Somebody says who they are.
    pub(super) fn handle_hello(
        &mut self,
        now_ms: u64,
        id: LinkId,
        hello: Hello,
    ) -> Result<(), String> {
        let Some(link) = self.links.get(&id) else { return Ok(()) };
        let (is_dialled, remote) = (link.is_dialled, link.remote);
        if hello.node == self.settings.node && hello.incarnation == self.settings.incarnation {
            self.dialler.is_own(remote);
            return Err("is this node itself".into());
        }
        if hello.node == self.settings.node && hello.incarnation < self.settings.incarnation {
            // It was there before, and says the same.
            self.count_refusal(Refusal::Id);
            let why = in_use(hello.node, hello.mesh);
            self.note_refused(now_ms, why.clone());
            return Err(why);
        }
        if let Some((refusal, why)) = self.refusal(&hello) {
            self.count_refusal(refusal);
            tracing::warn!("the node at {} is not taken in: {why}", hello.mesh);
            self.say(id, &Control::Refused(why.clone()));
            return Err(why);
        }
        if self.is_overtaken(&hello) {
            return Err("another link between these nodes was faster".into());
        }
        if !self.is_preferred(&hello, is_dialled) {
            return Err("there is another link between these nodes".into());
        }
        if !is_dialled {
            self.say_hello(id, Some(hello.node));
        }
        let said = self.links.get(&id).and_then(|link| link.said);
        let Some((held, offered)) = said else { return Ok(()) };
        let current = self.peers.get(&hello.node).map_or(0, |peer| peer.session_id);
        if held != 0 && held != current {
            // The other may go on with a session that is over here: its numbers would tell nothing.
            return Err("the session that it was to go on with has ended meanwhile".into());
        }
        let offered = if is_dialled { offered } else { hello.offered };
        let is_resumed = held != 0 && held == hello.held;
        self.begin(now_ms, id, hello, if is_resumed { held } else { offered });
        Ok(())
    }

    /// Somebody does not take this node in, nor is it taken in since.
    fn note_refused(&mut self, now_ms: u64, why: String) {
        let since_ms = self.refused.take().map_or(now_ms, |(since_ms, _)| since_ms);
        self.refused = Some((since_ms, why));
    }

    /// Why this node cannot be part of the grid.
    pub(super) fn refusal(&self, hello: &Hello) -> Option<(Refusal, String)> {
        let Hello { node, versions, .. } = hello;
        if versions.0 > VERSIONS.1 || versions.1 < VERSIONS.0 {
            let why = format!(
                "it speaks versions {} to {} of the mesh protocol, the node at {} versions {} to {}",
                versions.0, versions.1, self.settings.advertise, VERSIONS.0, VERSIONS.1
            );
            return Some((Refusal::Version, why));
        }
        if *node == self.settings.node {
            // The one that came later has to go.
            let is_later = hello.incarnation > self.settings.incarnation;
            return is_later.then(|| (Refusal::Id, in_use(*node, self.settings.advertise)));
        }
        let known = self.peers.get(node)?;
        // At the same address it is the one that was there, started anew.
        let is_other = known.hello.mesh != hello.mesh
            && known.hello.incarnation != hello.incarnation
            && known.link.is_some();
        is_other.then(|| (Refusal::Id, in_use(*node, known.hello.mesh)))
    }

    /// Of two links between the same two nodes, both keep the one that the lower id dialled; of two
    /// that the same one dialled, the later.
    fn is_preferred(&self, hello: &Hello, is_dialled: bool) -> bool {
        let Some(peer) = self.peers.get(&hello.node) else { return true };
        let Some(old) = peer.link.and_then(|link| self.links.get(&link)) else { return true };
        let is_lower = self.settings.node < hello.node;
        peer.hello.incarnation != hello.incarnation
            || old.is_dialled == is_dialled
            || is_dialled == is_lower
    }

    /// Whether it was said before words of the same node that were taken, on a link that was slower.
    /// Who said it has a newer session, or had one: to begin one more would end that, and what is on
    /// its way on the old link would come behind what was said later.
    fn is_overtaken(&self, hello: &Hello) -> bool {
        self.taken.get(&hello.node).is_some_and(|&(incarnation, offered)| {
            hello.incarnation == incarnation && hello.offered < offered
        })
    }

    /// There is a link to a node: goes on with the session, or begins one.
    fn begin(&mut self, now_ms: u64, id: LinkId, hello: Hello, session_id: u64) {
        let node = hello.node;
        let old = self.peers.get_mut(&node).and_then(|peer| {
            // It speaks to us: the end of its old link is not its own.
            peer.is_missed = false;
            peer.link
        });
        if let Some(old) = old {
            self.close_link(now_ms, old, "another link takes its place");
        }
        let is_resumed = self.peers.get(&node).is_some_and(|peer| peer.session_id == session_id);
        if !is_resumed {
            self.end_session(node, "it begins anew");
        }
        self.taken.insert(node, (hello.incarnation, hello.offered));
        let number = hello.node.number();
        let member = Identity::new(node, hello.incarnation, hello.mesh);
        let (shards, incarnation) = (hello.shards, hello.incarnation);
        let received = hello.received.clone();
        let peer = self.peers.entry(node).or_insert_with(|| Peer {
            hello: hello.clone(),
            session_id,
            session: Session::default(),
            clients: 0,
            round_trip_ms: 0,
            link: None,
            is_touched: false,
            lost_ms: now_ms,
            is_silent: false,
            is_missed: false,
            known: 0,
            has_whole: false,
            trusted_until_ms: 0,
            answered_until_ms: 0,
            ping_ms: now_ms,
            acknowledge_ms: None,
        });
        peer.link = Some(id);
        (peer.is_missed, peer.is_silent) = (false, false);
        (peer.trusted_until_ms, peer.answered_until_ms) = (0, 0);
        (peer.has_whole, peer.ping_ms, peer.hello) = (false, now_ms, hello);
        if is_resumed {
            peer.session.resume(&received);
        } else {
            tracing::info!("node {number} is there");
            for shard in 0..self.settings.shards {
                *self.unseen.entry((node, ShardId(shard as u8))).or_default() += 1;
            }
            self.tell_shards(|| Message::NodeUp { node, shards, incarnation });
        }
        self.touch(node);
        self.all_trusted_until_ms = 0;
        if let Some(link) = self.links.get_mut(&id) {
            link.peer = Some(node);
        }
        self.tell_whole_interest(id);
        let dialled = self.links.get(&id).filter(|link| link.is_dialled).map(|link| link.remote);
        self.dialler.reached(node, dialled);
        self.membership.meet(now_ms, member);
        self.care_ms = now_ms;
        let lanes =
            self.links.get(&id).map(|link| link.readers.keys().copied().collect::<Vec<_>>());
        for lane in lanes.unwrap_or_default().into_iter().filter(|lane| *lane != Lane::Control) {
            self.read_lane(now_ms, id, lane);
        }
    }

    /// What was on its way between us and a node is given up.
    pub(super) fn end_session(&mut self, node: NodeId, why: &str) {
        let Some(peer) = self.peers.remove(&node) else { return };
        tracing::warn!("node {} is out of reach: {why}", node.number());
        self.give_up(node);
        self.sessions_ended += 1;
        self.nodes.forget(node);
        self.tell_shards(|| Message::NodeDown(node));
        let incarnation = peer.hello.incarnation;
        let is_it = |(member, _): (&Identity, bool)| {
            member.node() == Some(node) && member.incarnation == incarnation
        };
        if !self.membership.members().any(is_it) {
            self.tell_shards(|| Message::NodeDead(node, incarnation));
        }
        if let Some(link) = peer.link {
            self.links.remove(&link);
            self.effects.push_back(Effect::Close(link, why.into()));
        }
    }

    fn close_link(&mut self, now_ms: u64, id: LinkId, why: &str) {
        self.effects.push_back(Effect::Close(id, why.into()));
        self.forget_link(now_ms, id, why);
    }

    pub(super) fn handle_closed(&mut self, now_ms: u64, id: LinkId, why: &str) {
        self.forget_link(now_ms, id, why);
    }

    fn forget_link(&mut self, now_ms: u64, id: LinkId, why: &str) {
        let Some(link) = self.links.remove(&id) else { return };
        tracing::debug!("link to {} closed: {why}", link.remote);
        let Some(peer) = link.peer.and_then(|node| self.peers.get_mut(&node)) else { return };
        if peer.link == Some(id) {
            (peer.link, peer.lost_ms, peer.has_whole) = (None, now_ms, false);
            self.all_trusted_until_ms = 0;
            let (node, mesh, is_missed) = (peer.hello.node, peer.hello.mesh, peer.is_missed);
            self.care_ms = self.care_ms.min(now_ms + LOST_MS);
            self.dialler.want(now_ms, node, mesh, self.settings.node > node);
            if is_missed {
                self.end_session(node, why);
            }
        }
    }

    /// This node did not run for a while, which `now_ms` leaves out: no deadline of a peer is nearer for
    /// it. But the others went on, and may have told of subscribers that this node has not heard of yet.
    /// So no peer's interest is trusted until it answers a question that is asked from now on.
    pub fn handle_gap(&mut self, now_ms: u64) {
        self.woken_ms = Some(now_ms);
        self.all_trusted_until_ms = 0;
        for peer in self.peers.values_mut() {
            peer.trusted_until_ms = 0;
            // A question of this very millisecond would count as one from before.
            peer.ping_ms = peer.ping_ms.min(now_ms + 1);
        }
        self.care_ms = self.care_ms.min(now_ms + 1);
    }

    /// What is due: signs of life, acknowledgements, ends.
    pub(super) fn care_for_peers(&mut self, now_ms: u64) {
        self.care_ms = now_ms + PING_MS;
        let trusted = self.peers.values().map(Peer::trusted_until);
        self.all_trusted_until_ms = trusted.min().unwrap_or(u64::MAX);
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        for node in nodes {
            self.care_for(now_ms, node);
        }
        let is_late = |link: &Link| link.peer.is_none() && link.since_ms + HELLO_MS <= now_ms;
        let late: Vec<LinkId> =
            self.links.iter().filter(|(_, link)| is_late(link)).map(|(&id, _)| id).collect();
        for id in late {
            self.close_link(now_ms, id, "it does not say who it is");
        }
        if let Some((since_ms, why)) = &self.refused
            && self.peers.is_empty()
            && since_ms + REFUSED_MS <= now_ms
        {
            self.effects.push_back(Effect::Fail(why.clone()));
        }
    }

    fn care_for(&mut self, now_ms: u64, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let has_answered = peer.answered_until_ms > 0;
        if has_answered && peer.answered_until_ms > now_ms {
            self.care_ms = self.care_ms.min(peer.answered_until_ms);
        } else if has_answered && !peer.is_silent {
            peer.is_silent = true;
            self.give_up(node);
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(link) = peer.link else {
            let due_ms = peer.lost_ms + LOST_MS;
            if due_ms <= now_ms {
                return self.lose(now_ms, node, "its link broke");
            }
            self.care_ms = self.care_ms.min(due_ms);
            return;
        };
        if has_answered && peer.answered_until_ms + UNANSWERED_MS <= now_ms {
            return self.close_link(now_ms, link, "it does not answer");
        }
        if peer.session.is_over_full() {
            return self.lose(now_ms, node, "it does not keep up");
        }
        let mut says = Vec::new();
        if peer.ping_ms <= now_ms {
            peer.ping_ms = now_ms + PING_MS;
            says.push(Control::Ping(now_ms));
            if !self.membership.has(node) {
                let Hello { incarnation, mesh, .. } = peer.hello;
                self.membership.meet(now_ms, Identity::new(node, incarnation, mesh));
            }
        }
        if peer.acknowledge_ms.is_some_and(|due_ms| due_ms <= now_ms) {
            peer.acknowledge_ms = None;
            while let Some((lane, number)) = peer.session.poll_acknowledgement() {
                says.push(Control::Received(lane, number));
            }
        }
        self.care_ms = self.care_ms.min(peer.ping_ms).min(peer.acknowledge_ms.unwrap_or(u64::MAX));
        for control in says {
            self.say(link, &control);
        }
    }

    /// Publishes that wait for a node wait no longer.
    fn give_up(&mut self, node: NodeId) {
        for counted in self.publishes.give_up(Counter::Node(node)) {
            self.tell_counted(counted);
        }
    }

    /// The session ends, and the node is looked for.
    fn lose(&mut self, now_ms: u64, node: NodeId, why: &str) {
        let Some(peer) = self.peers.get(&node) else { return };
        let mesh = peer.hello.mesh;
        self.end_session(node, why);
        self.dialler.want(now_ms, node, mesh, self.settings.node > node);
    }

    /// What the members' gossip has brought.
    pub(super) fn take_in_membership(&mut self, now_ms: u64) {
        while let Some(change) = self.membership.poll_change() {
            match change {
                Change::Up(member) => self.find_member(now_ms, &member),
                Change::Down(member) => self.miss_member(&member),
                Change::Returned => {
                    tracing::warn!("the others had given this node up; it is back");
                    self.tell_shards(|| Message::GivenUp);
                }
            }
        }
        while let Some((node, packet)) = self.membership.poll_datagram() {
            if let Some(link) = self.peers.get(&node).and_then(|peer| peer.link) {
                self.effects.push_back(Effect::Datagram(link, packet));
            }
        }
    }

    fn find_member(&mut self, now_ms: u64, member: &Identity) {
        let Some(node) = member.node().filter(|node| *node != self.settings.node) else { return };
        match self.peers.get_mut(&node) {
            Some(peer) if peer.link.is_some() => peer.is_missed = false,
            _ => self.dialler.want(now_ms, node, member.mesh, self.settings.node > node),
        }
    }

    /// A member has left, or all agree that it is dead: so it is, once it does not speak to us.
    fn miss_member(&mut self, member: &Identity) {
        let Some(node) = member.node() else { return };
        let is_it = |peer: &&mut Peer| peer.hello.incarnation == member.incarnation;
        match self.peers.get_mut(&node).filter(is_it) {
            Some(Peer { link: None, .. }) => self.end_session(node, "all nodes miss it"),
            Some(peer) => peer.is_missed = true,
            None => self.tell_shards(|| Message::NodeDead(node, member.incarnation)),
        }
    }
}

/// Why a node is refused that has the id of another one.
fn in_use(node: NodeId, at: SocketAddr) -> String {
    format!("node id {} is in use by the node at {at}", node.number())
}
