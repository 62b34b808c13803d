//! The network between the nodes: links like QUIC's, with delay, loss and partitions.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use gridcast::mesh::link::{Lane, LinkEffect, LinkEvent, LinkId};

use crate::plan::{EVERYBODY, Plan, mesh_address};
use crate::random::Random;

/// A link whose other end is silent for so long is dead: the idle timeout.
const IDLE_MS: u64 = 2500;

/// Dialling takes so long at most.
const DIAL_MS: u64 = 4000;

/// All links of the grid.
pub struct Network {
    wires: Vec<Wire>,
    dials: Vec<Dial>,
    events: Vec<VecDeque<LinkEvent>>,
    nodes: Vec<NodeState>,
    // By sender and receiver.
    blocked: Vec<Vec<bool>>,
    slow_ms: Vec<Vec<u64>>,
    ids: u64,
    delay_ms_max: usize,
    lost_in: usize,
}

/// Whether a node's kernel and process answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NodeState {
    Up,
    Frozen,
    Dead,
}

/// One link; the first end dialled.
struct Wire {
    ends: [End; 2],
    // Nothing comes through any more, and both ends will hear of it.
    is_broken: bool,
}

struct End {
    node: usize,
    id: LinkId,
    opens_ms: u64,
    is_open: bool,
    heard_ms: u64,
    closes: Option<(u64, &'static str)>,
    is_gone: bool,
    // On their way to this end.
    lanes: BTreeMap<Lane, Way>,
    datagrams: Vec<(u64, Bytes)>,
}

#[derive(Default)]
struct Way {
    last_due_ms: u64,
    parcels: VecDeque<(u64, Bytes)>,
}

struct Dial {
    from: usize,
    to: usize,
    target: String,
    due_ms: u64,
    deadline_ms: u64,
}

impl Network {
    pub fn new(plan: &Plan) -> Self {
        let nodes = plan.shards.len();
        Self {
            wires: Vec::new(),
            dials: Vec::new(),
            events: (0..nodes).map(|_| VecDeque::new()).collect(),
            nodes: vec![NodeState::Up; nodes],
            blocked: vec![vec![false; nodes]; nodes],
            slow_ms: vec![vec![0; nodes]; nodes],
            ids: 0,
            delay_ms_max: plan.network_ms_max,
            lost_in: plan.lost_in,
        }
    }

    pub fn block(&mut self, from: usize, to: usize, is_blocked: bool) {
        self.blocked[from][to] = is_blocked;
    }

    pub fn slow(&mut self, from: usize, to: usize, more_ms: u64) {
        self.slow_ms[from][to] = more_ms;
    }

    /// Whether a way between nodes is cut, or slow.
    pub fn is_troubled(&self) -> bool {
        let is_slow = self.slow_ms.iter().flatten().any(|&ms| ms > 0);
        is_slow || self.blocked.iter().flatten().any(|&is_blocked| is_blocked)
    }

    pub fn freeze(&mut self, node: usize) {
        self.nodes[node] = NodeState::Frozen;
    }

    /// A node goes on. Links whose time is up meanwhile it may find dead at once.
    pub fn thaw(&mut self, random: &mut Random, now_ms: u64, node: usize) {
        self.nodes[node] = NodeState::Up;
        for end in self.wires.iter_mut().flat_map(|wire| &mut wire.ends) {
            if end.node == node && end.heard_ms + IDLE_MS <= now_ms && end.closes.is_none() {
                let later = if random.one_in(2) { 0 } else { random.between(0, 2500) };
                end.closes = Some((now_ms + later as u64, "timed out while it was frozen"));
            }
        }
    }

    /// A node's process ends, and all of its sockets.
    pub fn end(&mut self, random: &mut Random, now_ms: u64, node: usize) {
        self.nodes[node] = NodeState::Dead;
        self.events[node].clear();
        self.dials.retain(|dial| dial.from != node);
        for wire in &mut self.wires {
            for at in 0..2 {
                if wire.ends[at].node == node && !wire.ends[at].is_gone {
                    wire.ends[at].is_gone = true;
                    let other = wire.ends[1 - at].node;
                    reset(random, now_ms, &mut wire.ends[1 - at], self.blocked[node][other]);
                }
            }
        }
    }

    pub fn start(&mut self, node: usize) {
        self.nodes[node] = NodeState::Up;
    }

    /// The links between two nodes break; what is on its way is lost from somewhere on.
    pub fn break_links(&mut self, random: &mut Random, now_ms: u64, one: usize, two: usize) {
        for wire in &mut self.wires {
            let nodes = [wire.ends[0].node, wire.ends[1].node];
            if nodes != [one, two] && nodes != [two, one] {
                continue;
            }
            wire.is_broken = true;
            for end in &mut wire.ends {
                for way in end.lanes.values_mut() {
                    way.parcels.truncate(random.between(0, way.parcels.len()));
                }
                let due_ms = now_ms + random.between(0, 600) as u64;
                end.closes.get_or_insert((due_ms, "broken"));
            }
        }
    }

    /// Does what a node's mesh wants done.
    pub fn carry_out(&mut self, random: &mut Random, now_ms: u64, node: usize, effect: LinkEffect) {
        match effect {
            LinkEffect::Dial(target) => self.dial(random, now_ms, node, &target),
            LinkEffect::Send(link, lane, bytes) => self.send(random, now_ms, link, lane, bytes),
            LinkEffect::Datagram(link, packet) => self.send_datagram(random, now_ms, link, &packet),
            LinkEffect::Close(link, _) => self.close(random, now_ms, link),
            LinkEffect::Fail(why) => panic!("node {node} ends: {why}"),
        }
    }

    fn dial(&mut self, random: &mut Random, now_ms: u64, from: usize, target: &str) {
        for to in 0..self.nodes.len() {
            if target != EVERYBODY && target != mesh_address(to).to_string() {
                continue;
            }
            let takes_ms = random.between(1, 3 * self.delay_ms_max) as u64;
            let (due_ms, deadline_ms) = (now_ms + takes_ms, now_ms + DIAL_MS);
            self.dials.push(Dial { from, to, target: target.into(), due_ms, deadline_ms });
        }
    }

    fn end_of(&self, link: LinkId) -> Option<(usize, usize)> {
        self.wires.iter().enumerate().find_map(|(index, wire)| {
            let at = wire.ends.iter().position(|end| end.id == link && !end.is_gone)?;
            Some((index, at))
        })
    }

    fn delay(&self, random: &mut Random, from: usize, to: usize) -> u64 {
        random.between(1, self.delay_ms_max) as u64 + self.slow_ms[from][to]
    }

    fn send(&mut self, random: &mut Random, now_ms: u64, link: LinkId, lane: Lane, bytes: Bytes) {
        let Some((index, at)) = self.end_of(link) else { return };
        let [from, to] = [at, 1 - at].map(|at| self.wires[index].ends[at].node);
        let due_ms = now_ms + self.delay(random, from, to);
        let wire = &mut self.wires[index];
        let end = &mut wire.ends[1 - at];
        if !wire.is_broken && !end.is_gone {
            let way = end.lanes.entry(lane).or_default();
            way.last_due_ms = way.last_due_ms.max(due_ms);
            way.parcels.push_back((way.last_due_ms, bytes));
        }
    }

    fn send_datagram(&mut self, random: &mut Random, now_ms: u64, link: LinkId, packet: &Bytes) {
        let Some((index, at)) = self.end_of(link) else { return };
        let [from, to] = [at, 1 - at].map(|at| self.wires[index].ends[at].node);
        let copies = match random.below(self.lost_in) {
            0 => 0,
            1 => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let due_ms = now_ms + self.delay(random, from, to);
            let wire = &mut self.wires[index];
            if !wire.is_broken && !self.blocked[from][to] && !wire.ends[1 - at].is_gone {
                wire.ends[1 - at].datagrams.push((due_ms, packet.clone()));
            }
        }
    }

    /// The other end hears of it behind what was said on the control lane, if it hears anything.
    fn close(&mut self, random: &mut Random, now_ms: u64, link: LinkId) {
        let Some((index, at)) = self.end_of(link) else { return };
        let [from, to] = [at, 1 - at].map(|at| self.wires[index].ends[at].node);
        let due_ms = now_ms + self.delay(random, from, to);
        let wire = &mut self.wires[index];
        wire.ends[at].is_gone = true;
        if !wire.is_broken && !self.blocked[from][to] {
            let end = &mut wire.ends[1 - at];
            let said_ms = end.lanes.get(&Lane::Control).map_or(0, |way| way.last_due_ms);
            end.closes.get_or_insert((due_ms.max(said_ms), "closed by the other end"));
        }
    }

    /// Links that were silent for too long end, dials succeed or fail.
    pub fn step(&mut self, random: &mut Random, now_ms: u64) {
        for wire in &mut self.wires {
            for at in 0..2 {
                let [to, from] = [at, 1 - at].map(|at| wire.ends[at].node);
                let is_silent = wire.is_broken
                    || wire.ends[1 - at].is_gone
                    || self.nodes[from] != NodeState::Up
                    || self.blocked[from][to];
                let end = &mut wire.ends[at];
                if end.is_gone || self.nodes[to] != NodeState::Up {
                    continue;
                }
                if !is_silent {
                    end.heard_ms = now_ms;
                } else if end.heard_ms + IDLE_MS <= now_ms && end.closes.is_none() {
                    end.closes = Some((now_ms, "timed out"));
                    let is_blocked = self.blocked[to][from];
                    reset(random, now_ms, &mut wire.ends[1 - at], is_blocked);
                }
            }
        }
        self.wires.retain(|wire| wire.ends.iter().any(|end| !end.is_gone));
        for dial in std::mem::take(&mut self.dials) {
            self.go_on_dialling(random, now_ms, dial);
        }
    }

    fn go_on_dialling(&mut self, random: &mut Random, now_ms: u64, mut dial: Dial) {
        let Dial { from, to, due_ms, deadline_ms, .. } = dial;
        if now_ms < due_ms {
            return self.dials.push(dial);
        }
        let is_cut = self.blocked[from][to] || self.blocked[to][from];
        let is_up = self.nodes[from] == NodeState::Up && self.nodes[to] == NodeState::Up;
        if deadline_ms <= now_ms || random.one_in(40) {
            let why = "no answer".to_owned();
            return self.events[from].push_back(LinkEvent::Unreachable(dial.target, why));
        }
        if is_cut || !is_up {
            dial.due_ms = now_ms + 100;
            return self.dials.push(dial);
        }
        let ends = [from, to].map(|node| {
            self.ids += 1;
            End {
                node,
                id: LinkId(self.ids),
                opens_ms: now_ms + random.between(0, self.delay_ms_max) as u64,
                is_open: false,
                heard_ms: now_ms,
                closes: None,
                is_gone: false,
                lanes: BTreeMap::new(),
                datagrams: Vec::new(),
            }
        });
        self.wires.push(Wire { ends, is_broken: false });
    }

    /// The next thing that a node hears.
    pub fn poll(&mut self, random: &mut Random, now_ms: u64, node: usize) -> Option<LinkEvent> {
        if let Some(event) = self.events[node].pop_front() {
            return Some(event);
        }
        for wire in &mut self.wires {
            for at in 0..2 {
                let other = wire.ends[1 - at].node;
                let end = &mut wire.ends[at];
                if end.node != node || end.is_gone {
                    continue;
                }
                let is_blocked = self.blocked[other][node];
                if let Some(event) = end.poll(random, now_ms, other, at == 0, is_blocked) {
                    return Some(event);
                }
            }
        }
        None
    }

    /// When something may happen next.
    pub fn next_due(&self, now_ms: u64) -> Option<u64> {
        let mut due = self.dials.iter().map(|dial| dial.due_ms).min();
        let mut note = |at: u64| due = Some(due.map_or(at, |due| due.min(at)));
        for wire in &self.wires {
            for at in 0..2 {
                let (end, other) = (&wire.ends[at], wire.ends[1 - at].node);
                if end.is_gone || self.nodes[end.node] != NodeState::Up {
                    continue;
                }
                if !end.is_open {
                    note(end.opens_ms);
                    continue;
                }
                end.closes.iter().for_each(|closes| note(closes.0));
                if !self.blocked[other][end.node] {
                    let fronts = end.lanes.values().filter_map(|way| way.parcels.front());
                    fronts.chain(&end.datagrams).for_each(|parcel| note(parcel.0));
                }
                if end.heard_ms < now_ms {
                    note(end.heard_ms + IDLE_MS);
                }
            }
        }
        due
    }
}

/// Tells a node that sends on a link whose other end is gone, in half of the cases.
fn reset(random: &mut Random, now_ms: u64, end: &mut End, is_blocked: bool) {
    if !is_blocked && random.one_in(2) {
        end.closes.get_or_insert((now_ms + random.between(1, 400) as u64, "reset"));
    }
}

impl End {
    fn poll(
        &mut self,
        random: &mut Random,
        now_ms: u64,
        other: usize,
        is_dialled: bool,
        is_blocked: bool,
    ) -> Option<LinkEvent> {
        if !self.is_open {
            self.is_open = self.opens_ms <= now_ms;
            let remote = mesh_address(other);
            let opened = LinkEvent::Opened { link: self.id, remote, is_dialled };
            return self.is_open.then_some(opened);
        }
        let until_ms = self.closes.as_ref().map_or(now_ms, |closes| closes.0.min(now_ms));
        if !is_blocked && let Some(event) = self.receive(random, until_ms) {
            return Some(event);
        }
        let (due_ms, why) = self.closes?;
        self.is_gone = due_ms <= now_ms;
        self.is_gone.then(|| LinkEvent::Closed(self.id, why.into()))
    }

    fn receive(&mut self, random: &mut Random, until_ms: u64) -> Option<LinkEvent> {
        if let Some(place) = self.datagrams.iter().position(|packet| packet.0 <= until_ms) {
            return Some(LinkEvent::Datagram(self.id, self.datagrams.swap_remove(place).1));
        }
        let is_ready = |way: &Way| way.parcels.front().is_some_and(|front| front.0 <= until_ms);
        let ready = self.lanes.iter().filter(|(_, way)| is_ready(way)).map(|(&lane, _)| lane);
        let ready: Vec<Lane> = ready.collect();
        if ready.is_empty() {
            return None;
        }
        let lane = *random.pick(&ready);
        let parcels = &mut self.lanes.get_mut(&lane)?.parcels;
        let (due_ms, bytes) = parcels.front_mut()?;
        if bytes.len() > 1 && random.one_in(6) {
            let head = bytes.split_to(random.between(1, bytes.len() - 1));
            *due_ms = until_ms + random.between(0, 5) as u64;
            return Some(LinkEvent::Received(self.id, lane, head));
        }
        let (_, bytes) = parcels.pop_front()?;
        Some(LinkEvent::Received(self.id, lane, bytes))
    }
}
