//! What goes wrong, and when.

use std::collections::VecDeque;

use crate::network::End;
use crate::world::{DEVICES, World, start};

/// How long a calm run waits after a fault before the next one, in milliseconds.
const CALM_MS: u64 = 9_000;

/// How long a node that leaves is still reachable, in milliseconds.
const LEAVING_MS: u64 = 500;

/// The faults of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// One node at a time crashes, freezes or leaves, and the others have time to notice.
    Calm,
    /// Nodes crash, freeze and leave at any time.
    Stormy,
    /// Nodes are cut off from each other too.
    Split,
    /// As in a storm, and there is little room for anything.
    Cramped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Up,
    /// Shuts down: until when it is reachable, and until when it is away then.
    Leaving(u64, u64),
    /// Since when and until when.
    Frozen(u64, u64),
    /// Until when.
    Dead(u64),
}

impl Life {
    pub fn runs(self) -> bool {
        matches!(self, Self::Up | Self::Leaving(..))
    }
}

impl World {
    /// Has something go wrong.
    pub fn fault(&mut self) {
        let is_calm = self.weather == Weather::Calm;
        let pause_ms = if is_calm { CALM_MS } else { self.random.below(6000) as u64 };
        let node = self.random.below(self.nodes.len());
        let until_ms = self.now_ms + self.random.below(9000) as u64;
        self.next_fault_ms = (if is_calm { until_ms } else { self.now_ms }) + pause_ms;
        match self.random.below(if self.weather == Weather::Split { 5 } else { 3 }) {
            _ if self.nodes[node].life != Life::Up => {}
            0 => self.crash(node, until_ms),
            1 => self.freeze(node, until_ms),
            2 => self.leave(node, until_ms),
            _ => {
                let other = self.random.below(self.nodes.len());
                let is_alone = self.random.one_in(2);
                for index in 0..self.nodes.len() {
                    // One link, or all links of a node.
                    if index != node && (is_alone || index == other) {
                        let pair = (node.min(index), node.max(index));
                        self.tell(|| format!("cut {} and {} until {until_ms}", pair.0, pair.1));
                        self.cuts.insert(pair, until_ms);
                        self.break_session(pair, 4000);
                    }
                }
            }
        }
    }

    fn crash(&mut self, node: usize, until_ms: u64) {
        self.tell(|| format!("crash of {node} until {until_ms}"));
        self.end(node, until_ms, 4000);
    }

    fn freeze(&mut self, node: usize, until_ms: u64) {
        self.tell(|| format!("freeze of {node} until {until_ms}"));
        self.nodes[node].life = Life::Frozen(self.now_ms, until_ms);
    }

    fn leave(&mut self, node: usize, until_ms: u64) {
        self.tell(|| format!("leave of {node} until {until_ms}"));
        self.nodes[node].life = Life::Leaving(self.now_ms + LEAVING_MS, until_ms);
        self.nodes[node].channels.handle_leave();
        for number in 0..DEVICES {
            if self.devices[number].node == Some(node) {
                self.disconnect(number);
            }
        }
    }

    /// Ends a node. The others hear of it within some time.
    fn end(&mut self, node: usize, until_ms: u64, within_ms: usize) {
        self.nodes[node].life = Life::Dead(until_ms);
        self.nodes[node].publishes.clear();
        self.nodes[node].questions.clear();
        self.nodes[node].receipts.clear();
        for number in 0..DEVICES {
            if self.devices[number].node == Some(node) {
                self.devices[number].node = None;
            }
        }
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            let pair = (node.min(other), node.max(other));
            self.break_session(pair, within_ms);
            if let Some(session) = self.sessions.get_mut(&pair) {
                session.ends[usize::from(node > other)] = End::Gone;
                session.in_flight[usize::from(other > node)] = VecDeque::new();
            }
        }
    }

    /// Starts and thaws nodes whose time has come.
    pub fn revive(&mut self) {
        let now_ms = self.now_ms;
        for node in 0..self.nodes.len() {
            match self.nodes[node].life {
                Life::Dead(until_ms) if until_ms <= now_ms => {
                    let incarnation = self.nodes[node].incarnation + 1;
                    self.tell(|| format!("start of {node}"));
                    self.nodes[node] = start(node, incarnation, self.limits, now_ms);
                    self.hasten_ends(node);
                }
                Life::Leaving(reachable_ms, until_ms) if reachable_ms <= now_ms => {
                    self.end(node, until_ms.max(now_ms), 50);
                }
                Life::Frozen(since_ms, until_ms) if until_ms <= now_ms => {
                    self.tell(|| format!("thaw of {node}"));
                    let thawed = &mut self.nodes[node];
                    thawed.life = Life::Up;
                    for (_, asked_ms) in thawed.publishes.values_mut() {
                        *asked_ms += now_ms - since_ms;
                    }
                    if now_ms - since_ms >= 1000 {
                        thawed.channels.handle_gap(now_ms);
                    }
                }
                Life::Frozen(since_ms, _) if since_ms + 2500 <= now_ms => {
                    // The others notice.
                    for other in (0..self.nodes.len()).filter(|other| *other != node) {
                        if self.random.one_in(20) || since_ms + 4000 <= now_ms {
                            self.break_session((node.min(other), node.max(other)), 100);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// Ends all faults.
    pub fn heal(&mut self) {
        self.tell(|| "heal".to_owned());
        self.cuts.clear();
        self.next_fault_ms = u64::MAX;
        let now_ms = self.now_ms;
        for node in &mut self.nodes {
            match &mut node.life {
                Life::Up => {}
                Life::Leaving(_, until_ms) | Life::Frozen(_, until_ms) | Life::Dead(until_ms) => {
                    *until_ms = now_ms;
                }
            }
        }
    }
}
