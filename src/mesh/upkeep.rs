//! Regular checks of peers: pings, acknowledgements, lost links, ended leases.

use super::Mesh;
use super::liveness::PING_MS;
use super::pending::Counter;
use super::sessions::LOST_MS;
use super::wire::Control;
use crate::address::NodeId;

impl Mesh {
    /// Brings the next check of the peers forward to `due_ms`, if it is due later.
    pub(super) fn check_at(&mut self, due_ms: u64) {
        self.check_ms = self.check_ms.min(due_ms);
    }

    /// Handles a gap in which this node did not run. `now_ms` does not include the gap, so deadlines of
    /// peers move by as much. Meanwhile other nodes may have gained subscribers that this node does not know
    /// of, so no interest is trusted until the peer answers a ping that is sent after the gap.
    pub fn handle_gap(&mut self, now_ms: u64) {
        self.resumed_ms = Some(now_ms);
        self.all_trusted_until_ms = None;
        for peer in self.peers.values_mut() {
            peer.liveness.handle_gap(now_ms);
        }
        self.check_at(now_ms + 1);
    }

    /// Does what is due for each peer, and sets the time of the next check.
    pub(super) fn check_peers(&mut self, now_ms: u64) {
        self.check_ms = now_ms + PING_MS;
        let trusted = self.peers.values().map(|peer| peer.liveness.trusted_until_ms());
        self.all_trusted_until_ms = trusted.min().flatten();
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        for node in nodes {
            self.check_peer(now_ms, node);
        }
        self.close_late_links(now_ms);
        self.fail_if_rejected(now_ms);
    }

    fn check_peer(&mut self, now_ms: u64, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let lease_end_ms = peer.liveness.lease_end_ms(now_ms);
        if peer.liveness.poll_silence(now_ms) {
            self.stop_waiting_for(node);
        }
        if let Some(lease_end_ms) = lease_end_ms {
            self.check_at(lease_end_ms);
        }
        let Some(peer) = self.peers.get(&node) else { return };
        let Some(link) = peer.link else {
            let due_ms = peer.lost_ms + LOST_MS;
            if due_ms <= now_ms {
                return self.lose(now_ms, node, "its link was lost");
            }
            return self.check_at(due_ms);
        };
        if peer.liveness.is_unanswering(now_ms) {
            return self.close_link(now_ms, link, "the node answers no pings");
        }
        if peer.session.is_over_full() {
            return self.lose(now_ms, node, "it has too much to acknowledge");
        }
        for control in self.due_controls(now_ms, node) {
            self.send_control(link, &control);
        }
    }

    /// The ping and the acknowledgements that are due for a node.
    fn due_controls(&mut self, now_ms: u64, node: NodeId) -> Vec<Control> {
        let mut controls = Vec::new();
        let Some(peer) = self.peers.get_mut(&node) else { return controls };
        if peer.liveness.poll_ping(now_ms) {
            controls.push(Control::Ping { sent_ms: now_ms });
            if !self.membership.has(node) {
                self.membership.meet(now_ms, peer.member());
            }
        }
        if peer.acknowledge_ms.is_some_and(|due_ms| due_ms <= now_ms) {
            peer.acknowledge_ms = None;
            while let Some(receipt) = peer.session.poll_acknowledgement() {
                controls.push(Control::Received(receipt));
            }
        }
        let (ping_due_ms, acknowledge_ms) = (peer.liveness.ping_due_ms(), peer.acknowledge_ms);
        self.check_at(acknowledge_ms.map_or(ping_due_ms, |due_ms| due_ms.min(ping_due_ms)));
        controls
    }

    /// Completes all publishes without the tally of a node.
    pub(super) fn stop_waiting_for(&mut self, node: NodeId) {
        for counted in self.pending.stop_waiting_for(Counter::Node(node)) {
            self.tell_counted(counted);
        }
    }
}
