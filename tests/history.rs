//! Channels with history on one node of several shards, as values, from seeds: messages between shards take their time,
//! devices come, stall and go, and back ends pipeline their calls. Every device has to see one order, without a gap that
//! it was not told of, and nothing twice.
//!
//!     GRIDCAST_SEEDS=1000 cargo test --test history
//!     GRIDCAST_SEED=7 cargo test --test history

#![forbid(unsafe_code)]

#[path = "support/shard.rs"]
mod shard_value;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use gridcast::address::ShardId;
use gridcast::channel::ChannelPolicy;
use gridcast::message::{ConnectionKey, FromShard, LocalMessage, ToShard};
use gridcast::shard::node_state::NodeState;
use gridcast::shard::settings::{
    ChannelRule, ChannelSettings, EdgeSettings, LimitSettings, RouteSettings, Settings,
};
use gridcast::shard::{Action, Batch, Listener, Now, Shard};
use serde_json::{Value, json};
use shard_value::{bytes_of, call, poll_write, upgraded};

const CHANNELS: [&str; 3] = ["h:a", "h:b", "h:c"];
const DEVICES: usize = 5;
const BACKENDS: usize = 3;
const STEPS: usize = 3000;

/// xorshift64*, which is enough to choose what happens next.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % end
    }

    fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

/// A connection of a device or a back end, and what was written to it.
#[derive(Default)]
struct Peer {
    shard: usize,
    key: Option<ConnectionKey>,
    bytes: Vec<u8>,
    // Whether the peer does not read, and the batch that waits for it.
    is_stalled: bool,
    in_flight: Option<Batch>,
}

#[derive(Default)]
struct Device {
    peer: Peer,
    // By channel: the position of the last message, or what a subscribe has answered since.
    known: BTreeMap<String, String>,
    // Whether the subscribe of the connection is not answered yet.
    is_subscribing: bool,
    // By channel: what the device was told, over all its connections.
    told: BTreeMap<String, Vec<Told>>,
}

/// What a device is told of a channel.
enum Told {
    /// It is subscribed from a position, which does not follow what it knows.
    Begins(String, IsGap),
    /// So many messages were missed, and follow, up to a position.
    Recovered(usize, String),
    /// A message, with its position.
    Message(String, String),
}

/// Whether a subscribe has given a position.
type IsGap = bool;

struct World {
    seed: u64,
    random: Random,
    now: Now,
    shards: Vec<Shard>,
    // By sender and receiver.
    mailboxes: BTreeMap<(usize, usize), VecDeque<LocalMessage>>,
    devices: Vec<Device>,
    backends: Vec<Backend>,
    // By back end: the greatest numbers of its calls that the first device has seen so far, of publishes through homes and
    // of others.
    seen: [[usize; 2]; BACKENDS],
    // The id of the first device.
    witness: String,
}

#[derive(Default)]
struct Backend {
    peer: Peer,
    // Calls without an answer: the channel and the data of publishes that answer a position.
    calls: VecDeque<Option<(String, String)>>,
    made: usize,
    // Publishes with a key, which begins their data.
    keyed: Vec<(String, String)>,
    // Data of publishes to a channel with history and one without.
    mixed: Vec<String>,
    // Positions that were answered: channel, data, position.
    positions: Vec<(String, String, String)>,
}

fn settings(shards: usize, random: &mut Random) -> Settings {
    let settings = shard_value::settings();
    let route = RouteSettings { outbound_bytes: 6000, ..shard_value::route() };
    let policy = ChannelPolicy { messages: 12, bytes: usize::MAX, keep_ms: 2000, copies: 1 };
    let rule = ChannelRule { pattern: "h:*".into(), history: Some(policy), presence: None };
    Settings {
        shards,
        edges: vec![EdgeSettings { proxy: None, port: 6790, routes: vec![Arc::new(route)] }],
        channels: ChannelSettings {
            rules: Arc::new([rule]),
            history_bytes: 1 << 20,
            ..ChannelSettings::default()
        },
        limits: LimitSettings {
            close_slow_clients: random.one_in(2),
            // The clock jumps, and every call is to be answered.
            answer_ms: 1_000_000,
            ..settings.limits
        },
        ..settings
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let count = 1 + random.below(3);
        let settings = settings(count, &mut random);
        let now = Now { ms: 1_000_000, us: 1_000_000_000, unix_ms: 1_790_000_000_000 };
        let state = Arc::new(NodeState::new(&settings, Arc::default()));
        let shard = |id| Shard::new(ShardId(id as u8), &settings, state.clone(), now);
        let mut world = Self {
            seed,
            now,
            shards: (0..count).map(shard).collect(),
            mailboxes: BTreeMap::new(),
            devices: (0..DEVICES).map(|_| Device::default()).collect(),
            backends: (0..BACKENDS).map(|_| Backend::default()).collect(),
            seen: Default::default(),
            witness: String::new(),
            random,
        };
        for number in 0..BACKENDS {
            let shard = world.random.below(count);
            let key = upgraded(&mut world.shards[shard], now, Listener::Api, "/ws/v1");
            world.backends[number].peer = Peer { shard, key: Some(key), ..Peer::default() };
        }
        world.connect(0);
        world.settle();
        let Peer { shard, key, .. } = world.backends[0].peer;
        world.receive(shard, key.expect("it is connected"), call(r#"{"m":"client.list"}"#));
        world.settle();
        assert!(!world.witness.is_empty(), "the list names the only client");
        world
    }

    /// Returns how often a device recovered a channel, and how often it could not.
    fn run(mut self) -> [usize; 2] {
        for _ in 0..STEPS {
            self.step();
        }
        for device in 1..DEVICES {
            self.devices[device].peer.is_stalled = false;
            self.settle();
            if self.devices[device].peer.key.is_none() {
                self.connect(device);
            }
        }
        self.settle();
        self.check()
    }

    fn step(&mut self) {
        let ms = if self.random.one_in(200) { 1500 } else { self.random.below(4) as u64 };
        self.now.ms += ms;
        self.now.us += ms * 1000;
        self.now.unix_ms += ms;
        match self.random.below(20) {
            0..=4 => self.deliver_one(),
            5..=10 => {
                let shard = self.random.below(self.shards.len());
                self.turn(shard);
            }
            11..=15 => self.call_something(),
            16 | 17 => {
                let device = 1 + self.random.below(DEVICES - 1);
                match self.devices[device].peer.key {
                    None => self.connect(device),
                    Some(_) if self.random.one_in(2) => self.disconnect(device),
                    Some(_) => {
                        let is_stalled = self.random.one_in(2);
                        self.devices[device].peer.is_stalled = is_stalled;
                    }
                }
            }
            _ => {
                for shard in 0..self.shards.len() {
                    self.turn(shard);
                    self.deliver_one();
                }
            }
        }
        for shard in &self.shards {
            shard.inspect().check_invariants();
        }
    }

    fn deliver_one(&mut self) {
        let full: Vec<_> = self.mailboxes.iter().filter(|(_, all)| !all.is_empty()).collect();
        if full.is_empty() {
            return;
        }
        let (from, to) = *full[self.random.below(full.len())].0;
        let message = self.mailboxes.get_mut(&(from, to)).and_then(VecDeque::pop_front);
        let message = ToShard::Local(ShardId(from as u8), message.expect("it is not empty"));
        self.shards[to].handle_message(self.now, message);
        self.take_messages(to);
    }

    fn turn(&mut self, shard: usize) {
        self.shards[shard].handle_turn(self.now);
        self.write(shard);
        self.take_messages(shard);
        while let Some(action) = self.shards[shard].poll_action() {
            match action {
                Action::Shutdown(key) => self.shards[shard].handle_end(self.now, key, false),
                Action::Close(key) => {
                    self.shards[shard].handle_closed(key);
                    self.forget(shard, key);
                }
                _ => {}
            }
        }
    }

    fn write(&mut self, shard: usize) {
        for device in 0..DEVICES {
            let peer = &mut self.devices[device].peer;
            if peer.shard == shard
                && !peer.is_stalled
                && let Some(batch) = peer.in_flight.take()
            {
                let key = peer.key.expect("it is connected");
                self.written(shard, key, batch);
            }
        }
        while let Some((key, batch)) = poll_write(&mut self.shards[shard]) {
            let is_of = |device: &&mut Device| device.peer.is(shard, key);
            match self.devices.iter_mut().find(is_of) {
                Some(device) if device.peer.is_stalled => device.peer.in_flight = Some(batch),
                _ => self.written(shard, key, batch),
            }
        }
    }

    fn written(&mut self, shard: usize, key: ConnectionKey, batch: Batch) {
        let bytes = bytes_of(&batch);
        self.shards[shard].recycle(batch);
        self.shards[shard].handle_written(self.now, key, bytes.len(), true);
        if let Some(number) = self.devices.iter().position(|device| device.peer.is(shard, key)) {
            self.devices[number].peer.bytes.extend(bytes);
            for text in self.devices[number].peer.texts() {
                self.device_got(number, &text);
            }
        } else if let Some(number) = self.backends.iter().position(|end| end.peer.is(shard, key)) {
            self.backends[number].peer.bytes.extend(bytes);
            for text in self.backends[number].peer.texts() {
                self.backend_got(number, &text);
            }
        }
    }

    fn take_messages(&mut self, from: usize) {
        while let Some(message) = self.shards[from].poll_message() {
            let FromShard::Local(ShardId(to), message) = message else { continue };
            self.mailboxes.entry((from, to.into())).or_default().push_back(message);
        }
    }

    fn forget(&mut self, shard: usize, key: ConnectionKey) {
        for device in &mut self.devices {
            if device.peer.is(shard, key) {
                device.peer = Peer::default();
                device.is_subscribing = false;
            }
        }
    }

    fn settle(&mut self) {
        for _ in 0..100_000 {
            (0..self.shards.len()).for_each(|shard| self.turn(shard));
            if self.mailboxes.values().all(VecDeque::is_empty) {
                let is_due = |shard: &Shard| {
                    let is_due = shard.poll_timeout().is_some_and(|due_ms| due_ms <= self.now.ms);
                    is_due || shard.inspect().has_writes() || shard.inspect().has_messages()
                };
                if !self.shards.iter().any(is_due) {
                    return;
                }
            }
            self.deliver_one();
        }
        panic!("seed {}: the node is never done", self.seed);
    }

    fn receive(&mut self, shard: usize, key: ConnectionKey, mut bytes: Vec<u8>) {
        self.shards[shard].handle_bytes(self.now, key, &mut bytes);
        self.take_messages(shard);
    }

    /// Connects a device, and subscribes it to some channels, from the positions that it knows.
    fn connect(&mut self, number: usize) {
        let shard = self.random.below(self.shards.len());
        let remote = ([127, 0, 0, 1], 50_000).into();
        let accepted = self.shards[shard].handle_accepted(self.now, Listener::Edge(0), remote);
        let key = accepted.expect("the node is not going down");
        let request = "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                       Sec-WebSocket-Protocol: gridcast.v1\r\n\r\n";
        self.devices[number].peer = Peer { shard, key: Some(key), ..Peer::default() };
        self.receive(shard, key, request.as_bytes().to_vec());
        let random = &mut self.random;
        let mut channels: Vec<&str> =
            CHANNELS.iter().copied().filter(|_| number == 0 || !random.one_in(4)).collect();
        channels.extend(["plain", "h:a"]);
        let device = &mut self.devices[number];
        device.known.retain(|name, _| channels.contains(&&name[..]));
        let params = json!({ "c": channels, "o": device.known });
        let text = json!({ "m": "subscribe", "p": params, "i": 1 }).to_string();
        device.is_subscribing = true;
        self.receive(shard, key, call(&text));
    }

    fn disconnect(&mut self, number: usize) {
        let Peer { shard, key, .. } = std::mem::take(&mut self.devices[number].peer);
        self.devices[number].is_subscribing = false;
        let key = key.expect("it is connected");
        self.shards[shard].handle_end(self.now, key, true);
        self.take_messages(shard);
    }

    /// A back end publishes, with a key or without, or sends to the first device.
    fn call_something(&mut self) {
        let number = self.random.below(BACKENDS);
        let channel = CHANNELS[self.random.below(CHANNELS.len())].to_owned();
        let padding = "x".repeat(self.random.below(200));
        let (chosen, repeated) = (self.random.below(12), self.random.below(1000));
        let backend = &mut self.backends[number];
        backend.made += 1;
        let data = format!("{number}.{} {padding}", backend.made);
        let keyed = |(channel, data): &(String, String)| {
            let key = data.split(' ').next();
            let params = json!({ "c": channel, "d": data, "k": key });
            ("mesh.publish", params, Some((channel.clone(), data.clone())))
        };
        let (method, params, publish) = match chosen {
            0 => ("mesh.publish", json!({ "c": "plain", "d": data }), None),
            1 => {
                backend.mixed.push(data.clone());
                ("mesh.publish", json!({ "c": [channel, "plain"], "d": data }), None)
            }
            2 => {
                backend.keyed.push((channel, data));
                keyed(&backend.keyed[backend.keyed.len() - 1])
            }
            3 if !backend.keyed.is_empty() => keyed(&backend.keyed[repeated % backend.keyed.len()]),
            4 | 5 => ("mesh.send", json!({ "c": self.witness, "d": data }), None),
            _ => ("mesh.publish", json!({ "c": channel, "d": data }), Some((channel, data))),
        };
        backend.calls.push_back(publish);
        let (shard, key) = (backend.peer.shard, backend.peer.key.expect("it is connected"));
        let text = json!({ "m": method, "p": params, "i": backend.made }).to_string();
        self.receive(shard, key, call(&text));
    }

    fn backend_got(&mut self, number: usize, text: &str) {
        let answer: Value = serde_json::from_str(text).expect("JSON");
        if let Some(client) = answer["r"]["clients"][0]["c"].as_str() {
            self.witness = client.into();
            return;
        }
        let call = self.backends[number].calls.pop_front().expect("a call is unanswered");
        let Some((channel, data)) = call else { return };
        let position = answer["r"]["o"].as_str();
        let position = position.unwrap_or_else(|| panic!("seed {}: {text}", self.seed));
        self.backends[number].positions.push((channel, data, position.into()));
    }

    fn device_got(&mut self, number: usize, text: &str) {
        if text.starts_with("close") {
            return;
        }
        let (seed, message) = (self.seed, serde_json::from_str::<Value>(text).expect("JSON"));
        let device = &mut self.devices[number];
        match message["e"].as_str() {
            Some("closing") => {}
            Some(_) => {
                assert!(!device.is_subscribing, "seed {seed}: before the answer: {text}");
                self.device_got_message(number, &message["p"]);
            }
            None => {
                assert!(message["E"].is_null(), "seed {seed}: {text}");
                device.is_subscribing = false;
                for (channel, answer) in message["r"]["channels"].as_object().expect("channels") {
                    device.subscribed(channel, answer);
                }
            }
        }
    }

    fn device_got_message(&mut self, number: usize, message: &Value) {
        let data = message["d"].as_str().expect("text");
        let channel = message["c"].as_str();
        if number == 0 {
            self.witnessed(channel, data);
        }
        let Some(channel) = channel.filter(|&channel| channel != "plain") else {
            assert!(message["o"].is_null(), "seed {}: {message}", self.seed);
            return;
        };
        let position = message["o"].as_str().expect("a position");
        let device = &mut self.devices[number];
        device.known.insert(channel.into(), position.into());
        let told = device.told.entry(channel.into()).or_default();
        told.push(Told::Message(data.into(), position.into()));
    }

    /// Checks that calls of a back end which go through a home, and those that do not, take effect in their order.
    fn witnessed(&mut self, channel: Option<&str>, data: &str) {
        let name = data.split(' ').next().and_then(|name| name.split_once('.'));
        let (backend, call) = name.expect("a back end and a number");
        let backend: usize = backend.parse().expect("a number");
        let call: usize = call.parse().expect("a number");
        let is_direct = channel.is_none_or(|channel| channel == "plain");
        if is_direct && self.backends[backend].mixed.iter().any(|mixed| mixed == data) {
            return;
        }
        let [placed, direct] = &mut self.seen[backend];
        let (own, other) = if is_direct { (direct, placed) } else { (placed, direct) };
        assert!(*other < call, "seed {}: call {call} of {backend} after {other}", self.seed);
        *own = call.max(*own);
    }

    /// Compares what every device was told with what the first one got.
    fn check(self) -> [usize; 2] {
        let (seed, mut answers) = (self.seed, [0; 2]);
        for channel in CHANNELS {
            let told = &self.devices[0].told[channel];
            let messages = told.iter().filter_map(|told| match told {
                Told::Message(data, position) => Some((data, position)),
                _ => None,
            });
            let order: Vec<_> = messages.collect();
            // Behind how many messages a position is. There is no other but the one before the first message.
            let behind = |position: &String| {
                order.iter().position(|(_, known)| *known == position).map_or(0, |at| at + 1)
            };
            for (number, device) in self.devices.iter().enumerate() {
                let mut at = None;
                for told in device.told.get(channel).into_iter().flatten() {
                    at = Some(match (told, at) {
                        (Told::Begins(position, is_gap), _) => {
                            answers[1] += usize::from(*is_gap);
                            behind(position)
                        }
                        (Told::Recovered(missed, position), Some(at)) => {
                            answers[0] += 1;
                            assert_eq!(
                                at + missed,
                                behind(position),
                                "seed {seed}: device {number}"
                            );
                            at
                        }
                        (Told::Message(data, position), Some(at)) => {
                            let next = order.get(at);
                            assert_eq!(
                                next,
                                Some(&(data, position)),
                                "seed {seed}: device {number}"
                            );
                            at + 1
                        }
                        (_, None) => {
                            panic!("seed {seed}: device {number} was told before it asked")
                        }
                    });
                }
                if device.known.contains_key(channel) {
                    assert_eq!(at, Some(order.len()), "seed {seed}: device {number} at the end");
                }
            }
            for backend in &self.backends {
                assert!(backend.calls.is_empty(), "seed {seed}: calls without an answer");
                for (_, data, position) in backend.positions.iter().filter(|(of, ..)| of == channel)
                {
                    let found = order.iter().filter(|(known, _)| *known == data);
                    let found: Vec<_> = found.map(|(_, position)| *position).collect();
                    assert_eq!(
                        found,
                        [position],
                        "seed {seed}: {data} once, where it was answered"
                    );
                }
            }
        }
        answers
    }
}

impl Device {
    fn subscribed(&mut self, channel: &str, answer: &Value) {
        if channel == "plain" {
            return assert_eq!(answer, &json!({}));
        }
        let position = answer["o"].as_str().expect("a position").to_owned();
        let is_known = self.known.contains_key(channel);
        let told = match answer["recovered"].as_bool() {
            Some(true) => {
                let missed = answer["missed"].as_u64().expect("a number") as usize;
                assert!(is_known && missed <= 12, "{answer}");
                Told::Recovered(missed, position)
            }
            recovered => {
                assert_eq!(recovered, is_known.then_some(false), "{answer}");
                self.known.insert(channel.into(), position.clone());
                Told::Begins(position, is_known)
            }
        };
        self.told.entry(channel.into()).or_default().push(told);
    }
}

impl Peer {
    fn is(&self, shard: usize, key: ConnectionKey) -> bool {
        (self.shard, self.key) == (shard, Some(key))
    }

    /// Takes out the messages that are complete: texts, and `close CODE`.
    fn texts(&mut self) -> Vec<String> {
        if self.bytes.starts_with(b"HTTP/1.1 101") {
            let end = self.bytes.windows(4).position(|end| end == b"\r\n\r\n").expect("a response");
            self.bytes.drain(..end + 4);
        }
        let mut texts = Vec::new();
        while let [first, second, ..] = self.bytes[..] {
            let (length, at) = match second {
                126 => (usize::from(u16::from_be_bytes([self.bytes[2], self.bytes[3]])), 4),
                length => (length.into(), 2),
            };
            let payload = &self.bytes[at..at + length];
            texts.push(match first {
                0x88 => format!("close {}", u16::from_be_bytes([payload[0], payload[1]])),
                _ => String::from_utf8_lossy(payload).into_owned(),
            });
            self.bytes.drain(..at + length);
        }
        texts
    }
}

#[test]
fn every_device_sees_one_order_without_a_silent_gap_and_nothing_twice() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("GRIDCAST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("GRIDCAST_SEEDS").unwrap_or(30),
    };
    let is_one = seeds.clone().count() == 1;
    let mut sum = [0; 2];
    for seed in seeds {
        let answers = World::new(seed).run();
        sum = [sum[0] + answers[0], sum[1] + answers[1]];
    }
    assert!(is_one || sum.iter().all(|&count| count > 20), "recovered, and not: {sum:?}");
}
