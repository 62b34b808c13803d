//! The hello with which a link begins: who the nodes are, and which session the link carries.

use std::net::SocketAddr;

use super::Mesh;
use super::link::{LinkEffect, LinkId, PeerRefusal};
use super::links::SaidHello;
use super::numbers::SessionId;
use super::wire::{Control, Hello};
use crate::address::{Incarnation, NodeId};

/// Time between the first refusal of a node by others and the one after which it ends and says why, in
/// milliseconds.
const REJECTED_MS: u64 = 10_000;

/// Time without a further refusal after which earlier ones no longer count, in milliseconds. It is longer than
/// the interval at which nodes dial each other.
const REJECTION_OVER_MS: u64 = 15_000;

/// The beginning of a refusal for want of a common version. Nodes of mesh protocol 1 and 2 send nothing else to
/// the node that has dialled them, so the text must not change.
const OTHER_VERSIONS: &str = "it speaks versions ";

/// The last hello of a node with which a link began.
#[derive(Clone, Copy, Debug)]
pub(super) struct AcceptedHello {
    incarnation: Incarnation,
    offered: SessionId,
}

/// Repeated refusals of this node by others. An answered ping ends them.
#[derive(Debug)]
pub(super) struct Rejection {
    since_ms: u64,
    last_ms: u64,
    // The reason of the last refusal.
    why: String,
}

impl Rejection {
    fn is_over(&self, now_ms: u64) -> bool {
        self.last_ms + REJECTION_OVER_MS <= now_ms
    }
}

impl Mesh {
    /// Sends this node's hello to the node that is probably at the other end.
    pub(super) fn send_hello(&mut self, id: LinkId, to: Option<NodeId>) {
        self.sessions_offered += 1;
        let offered = SessionId::offered(self.settings.incarnation, self.sessions_offered);
        let peer = to.and_then(|node| self.peers.get(&node));
        let held = peer.map(|peer| peer.session_id);
        let hello = Hello {
            versions: self.versions,
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
            link.said = Some(SaidHello { held, offered });
        }
        self.send_control(id, &Control::Hello(hello));
    }

    /// Handles the hello of a peer: refuses the peer, or begins or continues a session with it.
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
            return Err("it is this node itself".into());
        }
        if hello.node == self.settings.node && hello.incarnation < self.settings.incarnation {
            // The other node was started earlier, and refuses this one for the same reason.
            self.count_refusal(PeerRefusal::Id);
            let why = in_use(hello.node, hello.mesh);
            self.note_rejection(now_ms, why.clone());
            return Err(why);
        }
        if let Some((refusal, why)) = self.refusal(&hello) {
            self.count_refusal(refusal);
            tracing::warn!("mesh: the node at {} is refused: {why}", hello.mesh);
            if refusal == PeerRefusal::Version && !is_dialled {
                // So that the peer finds the reason itself: other refusals end a node.
                self.send_hello(id, None);
            }
            self.send_control(id, &Control::Refused(why.clone()));
            return Err(why);
        }
        if self.is_overtaken(&hello) {
            return Err("another link between these nodes was faster".into());
        }
        if !self.is_preferred(&hello, is_dialled) {
            return Err("there is another link between these nodes".into());
        }
        if !is_dialled {
            self.send_hello(id, Some(hello.node));
        }
        let Some(said) = self.links.get(&id).and_then(|link| link.said) else { return Ok(()) };
        let current = self.peers.get(&hello.node).map(|peer| peer.session_id);
        if said.held.is_some() && said.held != current {
            // The peer may continue a session that has ended here, whose numbers mean nothing now.
            return Err("the session that the link was to continue has ended meanwhile".into());
        }
        let offered = if is_dialled { said.offered } else { hello.offered };
        let session = said.held.filter(|held| hello.held == Some(*held)).unwrap_or(offered);
        self.begin(now_ms, id, hello, session);
        Ok(())
    }

    /// Why this node refuses the sender of a hello; `None`: the hello gives no reason to.
    pub(super) fn refusal(&self, hello: &Hello) -> Option<(PeerRefusal, String)> {
        let Hello { node, versions, .. } = hello;
        let own = self.versions;
        if versions.first > own.last || versions.last < own.first {
            let why = format!(
                "{OTHER_VERSIONS}{} to {} of the mesh protocol, the node at {} versions {} to {}",
                versions.first, versions.last, self.settings.advertise, own.first, own.last
            );
            return Some((PeerRefusal::Version, why));
        }
        if *node == self.settings.node {
            // Of two nodes with one id, the one that was started later has to end.
            let is_later = hello.incarnation > self.settings.incarnation;
            return is_later.then(|| (PeerRefusal::Id, in_use(*node, self.settings.advertise)));
        }
        let known = self.peers.get(node)?;
        // A node at the same address is the known one after a restart.
        let is_other = known.hello.mesh != hello.mesh
            && known.hello.incarnation != hello.incarnation
            && known.link.is_some();
        is_other.then(|| (PeerRefusal::Id, in_use(*node, known.hello.mesh)))
    }

    /// Whether this link is to replace the current one. Of two links between two nodes, both nodes keep the
    /// one that the node with the lower id dialled. If the same node dialled both, they keep the later one.
    fn is_preferred(&self, hello: &Hello, is_dialled: bool) -> bool {
        let Some(peer) = self.peers.get(&hello.node) else { return true };
        let Some(old) = peer.link.and_then(|link| self.links.get(&link)) else { return true };
        let is_lower = self.settings.node < hello.node;
        peer.hello.incarnation != hello.incarnation
            || old.is_dialled == is_dialled
            || is_dialled == is_lower
    }

    /// Whether the node sent this hello, on a slower link, before another one that was accepted already.
    /// Accepting it would end the newer session, and messages that were sent earlier would arrive behind
    /// later ones.
    fn is_overtaken(&self, hello: &Hello) -> bool {
        self.accepted_hellos.get(&hello.node).is_some_and(|accepted| {
            hello.incarnation == accepted.incarnation && hello.offered < accepted.offered
        })
    }

    /// Remembers the hello of a peer, which was accepted.
    pub(super) fn note_accepted(&mut self, hello: &Hello) {
        let accepted = AcceptedHello { incarnation: hello.incarnation, offered: hello.offered };
        self.accepted_hellos.insert(hello.node, accepted);
    }

    /// Handles the message of a node that refuses this one. A node whose versions others do not speak goes on,
    /// because it may be the first of a grid to be upgraded; its clients and topics are served.
    pub(super) fn handle_refused(&mut self, now_ms: u64, why: String) {
        tracing::warn!("mesh: a node refuses this one: {why}");
        match why.starts_with(OTHER_VERSIONS) {
            true => self.count_refusal(PeerRefusal::Version),
            false => self.note_rejection(now_ms, why),
        }
    }

    /// Notes that a node refuses this one.
    pub(super) fn note_rejection(&mut self, now_ms: u64, why: String) {
        let earlier = self.rejection.take().filter(|rejection| !rejection.is_over(now_ms));
        let since_ms = earlier.map_or(now_ms, |rejection| rejection.since_ms);
        self.rejection = Some(Rejection { since_ms, last_ms: now_ms, why });
    }

    /// Ends the node if all others have refused it again and again for too long.
    pub(super) fn fail_if_rejected(&mut self, now_ms: u64) {
        if let Some(rejection) = &self.rejection
            && self.peers.is_empty()
            && !rejection.is_over(now_ms)
            && rejection.since_ms + REJECTED_MS <= rejection.last_ms
        {
            self.effects.push_back(LinkEffect::Fail(rejection.why.clone()));
        }
    }

    pub(super) fn count_refusal(&mut self, refusal: PeerRefusal) {
        match refusal {
            PeerRefusal::Key => self.refusals.key += 1,
            PeerRefusal::Version => self.refusals.version += 1,
            PeerRefusal::Id => self.refusals.id += 1,
        }
    }
}

/// Why a node is refused whose id another node has.
fn in_use(node: NodeId, at: SocketAddr) -> String {
    format!("node id {} is in use by the node at {at}", node.number())
}
