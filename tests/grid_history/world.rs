//! The nodes, the network between them and the devices, with one clock.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::AddAssign;
use std::sync::Arc;

use gridcast::address::NodeId;
use gridcast::channel::ChannelPolicy;
use gridcast::channel::grid::{DeliveryReceipt, GridChannels, GridLimits};
use gridcast::message::{HomePublish, Publish, Ticket};
use gridcast::protocol::api::Tally;
use gridcast::protocol::frame::{Frame, Kind};
use gridcast::protocol::position::Epoch;

use crate::devices::Device;
use crate::faults::{Life, Weather};
use crate::network::Session;
use crate::order::Order;
use crate::random::Random;

pub const DEVICES: usize = 6;
const NODES_MAX: usize = 4;
const STEPS: usize = 1200;

/// How long a publish waits for a home, in milliseconds, as `limits.answer_ms` would have it.
const ANSWER_MS: u64 = 5000;

/// When each publish is answered, in milliseconds: it waits for a home, and then for a node that is found to be lost, while
/// further nodes may be lost one after the other.
const ANSWERED_MS: u64 = 25_000;

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Messages that devices got.
    pub got: usize,
    /// Gaps that devices were told of.
    pub notices: usize,
    /// Publishes whose place was told.
    pub answered: usize,
    /// Publishes that were answered with an error.
    pub failed: usize,
    /// Publishes and subscribes that found no room.
    pub refused: usize,
    /// The longest time until the answer to a publish, in milliseconds.
    pub longest_ms: u64,
}

impl AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        self.got += other.got;
        self.notices += other.notices;
        self.answered += other.answered;
        self.failed += other.failed;
        self.refused += other.refused;
        self.longest_ms = self.longest_ms.max(other.longest_ms);
    }
}

pub struct Node {
    pub life: Life,
    pub channels: GridChannels,
    pub incarnation: u64,
    /// The devices that wait for an answer.
    pub questions: HashMap<Ticket, usize>,
    /// The publishes without an answer, and when they were made.
    pub publishes: HashMap<Ticket, (String, u64)>,
    /// Messages whose deliveries are not counted yet.
    pub receipts: VecDeque<(Arc<str>, DeliveryReceipt)>,
}

pub struct World {
    pub weather: Weather,
    pub random: Random,
    pub now_ms: u64,
    pub nodes: Vec<Node>,
    pub sessions: BTreeMap<(usize, usize), Session>,
    /// The pairs of nodes that cannot reach each other, and until when.
    pub cuts: BTreeMap<(usize, usize), u64>,
    pub devices: Vec<Device>,
    pub policy: ChannelPolicy,
    pub limits: GridLimits,
    pub next_fault_ms: u64,
    /// The channels and the texts of messages that were published with a key: their text.
    pub keyed: Vec<(usize, String)>,
    pub order: Order,
    pub summary: Summary,
    channels: usize,
    published: usize,
    is_verbose: bool,
}

pub fn name(channel: usize) -> Arc<str> {
    format!("h:{channel}").into()
}

pub fn node_id(index: usize) -> NodeId {
    NodeId::new(index as u16 + 1).expect("a small number")
}

pub fn start(index: usize, incarnation: u64, limits: GridLimits, now_ms: u64) -> Node {
    let epoch = Epoch(incarnation << 20 | index as u64);
    Node {
        life: Life::Up,
        channels: GridChannels::with_limits(node_id(index), epoch, limits, ANSWER_MS, now_ms),
        incarnation,
        questions: HashMap::new(),
        publishes: HashMap::new(),
        receipts: VecDeque::new(),
    }
}

/// Bounds that a run reaches.
fn cramped(random: &mut Random) -> GridLimits {
    GridLimits {
        history_bytes: 4000 + random.below(20_000),
        channels: 3 + random.below(4),
        claims: 1,
        publishes: 3 + random.below(10),
        publish_bytes: 1000 + random.below(2000),
        questions: 1 + random.below(3),
        deliveries: 2 + random.below(6),
        delivery_bytes: 500 + random.below(1000),
        repeated: 1,
        missed_bytes: random.below(200),
    }
}

impl World {
    /// A grid in which all devices are subscribed.
    pub fn new(seed: u64, weather: Weather, is_verbose: bool) -> Self {
        let mut random = Random::new(seed);
        let count = 2 + random.below(NODES_MAX - 1);
        let copies = match weather {
            Weather::Calm => 2,
            _ => 1 + random.below(3),
        };
        let messages = if weather == Weather::Calm { 100_000 } else { 4 + random.below(40) };
        let policy = ChannelPolicy { messages, bytes: usize::MAX, keep_ms: 100_000_000, copies };
        let (limits, channels) = match weather {
            Weather::Cramped => (cramped(&mut random), 5),
            _ => (GridLimits::for_history_bytes(64 << 20), 2),
        };
        let now_ms = 1_000_000;
        let mut world = Self {
            weather,
            now_ms,
            nodes: (0..count).map(|index| start(index, 1, limits, now_ms)).collect(),
            sessions: BTreeMap::new(),
            cuts: BTreeMap::new(),
            devices: (0..DEVICES).map(|number| Device::new(number % channels)).collect(),
            policy,
            limits,
            next_fault_ms: now_ms + 10_000,
            keyed: Vec::new(),
            order: Order::new(weather != Weather::Calm, weather == Weather::Split),
            summary: Summary::default(),
            channels,
            published: 0,
            is_verbose,
            random,
        };
        // Nothing is published before all devices are subscribed, so they have to get everything.
        for _ in 0..3000 {
            world.pass(10);
            for number in 0..DEVICES {
                if world.devices[number].node.is_none() {
                    world.connect_anywhere(number);
                }
            }
            let is_subscribed = |device: &Device| !device.is_recovering && device.node.is_some();
            if weather == Weather::Cramped || world.devices.iter().all(is_subscribed) {
                return world;
            }
        }
        panic!("the devices are never subscribed");
    }

    /// Says what happens, if that is wanted.
    pub fn tell(&self, what: impl FnOnce() -> String) {
        if self.is_verbose {
            println!("{} {}", self.now_ms, what());
        }
    }

    pub fn run(mut self) -> Summary {
        for _ in 0..STEPS {
            self.step();
        }
        self.heal();
        self.settle();
        if self.weather == Weather::Cramped {
            // There may be no room for all of them at last.
            return self.finish();
        }
        for channel in 0..self.channels {
            let node = self.random.below(self.nodes.len());
            self.publish(node, channel, format!("{channel}.last"), None);
        }
        self.settle();
        self.check();
        self.finish()
    }

    fn finish(mut self) -> Summary {
        self.summary.got = self.devices.iter().map(|device| device.got).sum();
        self.summary.notices = self.devices.iter().map(|device| device.notices).sum();
        self.summary
    }

    fn step(&mut self) {
        match self.random.below(40) {
            0 => (0..25).for_each(|_| self.pass(40)),
            1..=10 => {
                let ms = self.random.below(20) as u64;
                self.pass(ms);
            }
            _ => {
                let ms = self.random.below(3) as u64;
                self.pass(ms);
            }
        }
        if self.random.one_in(3) {
            self.publish_anything();
        }
        if self.random.one_in(8) {
            let number = self.random.below(DEVICES);
            match self.devices[number].node {
                Some(_) => self.disconnect(number),
                None => self.connect_anywhere(number),
            }
        }
        if self.next_fault_ms <= self.now_ms {
            self.fault();
        }
    }

    fn publish_anything(&mut self) {
        let node = self.random.below(self.nodes.len());
        let channel = self.random.below(self.channels);
        if self.nodes[node].life != Life::Up {
            return;
        }
        self.published += 1;
        let data = format!("{channel}.{}", self.published);
        match self.random.below(8) {
            0 if !self.keyed.is_empty() => {
                let (channel, data) = self.random.pick(&self.keyed).clone();
                self.publish(node, channel, data.clone(), Some(&data));
            }
            1 => {
                self.keyed.push((channel, data.clone()));
                self.publish(node, channel, data.clone(), Some(&data));
            }
            _ => self.publish(node, channel, data, None),
        }
    }

    fn publish(&mut self, node: usize, channel: usize, data: String, key: Option<&str>) {
        self.tell(|| format!("{data} is published at {node}, key {key:?}"));
        let frame = Frame::message(Kind::Text, data.as_bytes());
        let publish = Publish { channel: name(channel), frame, excluded: None };
        let publish = HomePublish { publish, key: key.map(Into::into) };
        let channels = &mut self.nodes[node].channels;
        match channels.publish(self.now_ms, &self.policy, publish) {
            Ok(ticket) => _ = self.nodes[node].publishes.insert(ticket, (data, self.now_ms)),
            Err(_) => self.summary.refused += 1,
        }
        self.take_outputs(node);
    }

    /// Lets time pass, and something happen at every node.
    pub fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        let now_ms = self.now_ms;
        self.cuts.retain(|_, until_ms| *until_ms > now_ms);
        self.revive();
        self.change_sessions();
        for _ in 0..4 {
            self.deliver_some();
        }
        for node in 0..self.nodes.len() {
            if self.nodes[node].life.runs() {
                self.turn(node);
            }
        }
    }

    fn turn(&mut self, node: usize) {
        let now_ms = self.now_ms;
        let due_ms = self.nodes[node].channels.next_turn();
        if due_ms.is_some_and(|due_ms| due_ms <= now_ms) {
            self.nodes[node].channels.handle_turn(now_ms);
        }
        if self.random.one_in(2)
            && let Some((name, receipt)) = self.nodes[node].receipts.pop_front()
        {
            let tally = Tally { delivered: 1, failed: 0 };
            self.nodes[node].channels.handle_delivered(now_ms, &name, receipt, tally);
        }
        self.take_outputs(node);
        self.nodes[node].channels.check();
        for (data, asked_ms) in self.nodes[node].publishes.values() {
            assert!(now_ms < asked_ms + ANSWERED_MS, "{data} is not answered at {node}");
        }
    }

    /// Waits until nothing happens any more.
    fn settle(&mut self) {
        for _ in 0..4000 {
            self.pass(10);
            for number in 0..DEVICES {
                if self.devices[number].node.is_none() {
                    self.connect_anywhere(number);
                }
            }
        }
        let count = self.nodes.len();
        assert_eq!(self.sessions.len(), count * (count - 1) / 2, "sessions");
        for node in &self.nodes {
            assert!(node.publishes.is_empty(), "publishes are unanswered");
        }
    }

    /// Checks that all devices have got what they had to get.
    fn check(&self) {
        for (number, device) in self.devices.iter().enumerate() {
            let is_there = device.node.is_some() && !device.is_recovering;
            assert!(is_there, "device {number} waits");
            let last = format!("{}.last", device.channel);
            assert!(device.seen.contains(&last), "device {number} has not the last");
            let mut others = self.devices.iter().filter(|other| other.channel == device.channel);
            assert!(others.all(|other| other.known == device.known), "device {number}'s place");
            if self.weather == Weather::Calm {
                assert_eq!(device.notices, 0, "device {number} could not recover");
                let beginning = format!("{}.", device.channel);
                for data in self.order.answered.iter().filter(|data| data.starts_with(&beginning)) {
                    assert!(device.seen.contains(data), "device {number} has missed {data}");
                }
            }
        }
    }
}
