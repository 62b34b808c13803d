//! Two nodes whose shards are values. The grid itself is the mesh, and time passes when a test says so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gridcast::address::{Incarnation, NodeId, ShardAddress, ShardId};
use gridcast::message::{ConnectionKey, FromMesh, FromShard, ToMesh, ToShard};
use gridcast::protocol::api::Tally;
use gridcast::protocol::token::{TokenAlgorithm, TokenRule, TokenSources};
use gridcast::shard::node_state::NodeState;
use gridcast::shard::settings::{EdgeSettings, RouteSettings, Settings};
use gridcast::shard::{Action, Batch, Listener, Now, Shard};
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};

use crate::shard_value::{self, bytes_of, client_head, poll_write};

const TOKEN_KEY: &str = "0123456789abcdef0123456789abcdef";

/// The secret that the devices of these tests present.
pub const SECRET: &str = "s3cret";

/// A connection of the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    node: u16,
    shard: u8,
    pub key: ConnectionKey,
}

/// Two nodes of two shards each.
pub struct Grid {
    pub now: Now,
    pub shards: BTreeMap<(u16, u8), Shard>,
    pub written: BTreeMap<Place, Vec<u8>>,
    /// Connections whose peers do not read, with what is in flight to them.
    pub unread: BTreeMap<Place, Vec<Batch>>,
    /// Nodes that do not run.
    pub frozen: BTreeSet<u16>,
    /// Messages between shards, for each receiver.
    pub mail: Vec<((u16, u8), ToShard)>,
    // The number of calls so far.
    calls: u64,
}

impl Grid {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl Fn(&mut Settings)) -> Self {
        let now = Now { ms: 5000, us: 5_000_000, unix_ms: 1_700_000_000_000 };
        let mut shards = BTreeMap::new();
        for number in [1, 2] {
            let mut settings = settings(number);
            change(&mut settings);
            let state = Arc::new(NodeState::new(&settings, Arc::default()));
            for shard in [0, 1] {
                let value = Shard::new(ShardId(shard), &settings, state.clone(), now);
                shards.insert((number, shard), value);
            }
        }
        let (written, unread, frozen, mail, calls) = Default::default();
        let mut grid = Self { now, shards, written, unread, frozen, mail, calls };
        grid.link();
        grid.run();
        grid
    }

    /// Makes the nodes reachable for each other.
    pub fn link(&mut self) {
        for (here, there) in [(1, 2), (2, 1)] {
            let up = || {
                let incarnation = Incarnation(there.into());
                FromMesh::NodeUp { node: node(there), shards: 2, incarnation }
            };
            self.mail.extend([0, 1].map(|shard| ((here, shard), ToShard::Mesh(up()))));
        }
        self.run();
    }

    /// Lets a back end that is in `unread` read what was written to it, and all that follows.
    pub fn read_again(&mut self, place: Place) {
        let batches = self.unread.remove(&place).expect("it does not read");
        let now = self.now;
        for batch in batches {
            let bytes = bytes_of(&batch);
            self.shard(place).handle_written(now, place.key, bytes.len(), true);
            self.written.entry(place).or_default().extend(bytes);
        }
        self.run();
    }

    /// Makes the nodes unreachable for each other. Messages in flight are lost.
    pub fn cut(&mut self) {
        self.mail.clear();
        for (here, there) in [(1, 2), (2, 1)] {
            let down = || ToShard::Mesh(FromMesh::NodeDown(node(there)));
            self.mail.extend([0, 1].map(|shard| ((here, shard), down())));
        }
        self.run();
    }

    /// Runs all shards until none has anything to do.
    pub fn run(&mut self) {
        for _ in 0..1000 {
            let is_busy = self.turn();
            if !is_busy {
                return;
            }
        }
        panic!("the shards do not come to rest");
    }

    /// Runs one turn of each shard. Returns whether any had something to do.
    pub fn turn(&mut self) -> bool {
        let mut is_busy = false;
        for (to, message) in std::mem::take(&mut self.mail) {
            if self.frozen.contains(&to.0) {
                self.mail.push((to, message));
                continue;
            }
            is_busy = true;
            self.shards.get_mut(&to).expect("a shard").handle_message(self.now, message);
        }
        for at in self.shards.keys().copied().collect::<Vec<_>>() {
            if !self.frozen.contains(&at.0) {
                self.shards.get_mut(&at).expect("a shard").handle_turn(self.now);
                is_busy |= self.collect(at);
            }
        }
        is_busy
    }

    /// Takes out what a shard writes and sends. Returns whether there was anything, or is more.
    fn collect(&mut self, (number, index): (u16, u8)) -> bool {
        let shard = self.shards.get_mut(&(number, index)).expect("a shard");
        let mut is_busy = shard.poll_timeout() == Some(0);
        while let Some((key, batch)) = poll_write(shard) {
            is_busy = true;
            let place = Place { node: number, shard: index, key };
            if let Some(batches) = self.unread.get_mut(&place) {
                batches.push(batch);
                continue;
            }
            let bytes = bytes_of(&batch);
            shard.handle_written(self.now, key, bytes.len(), true);
            self.written.entry(place).or_default().extend(bytes);
        }
        while let Some(action) = shard.poll_action() {
            if let Action::Close(key) = action {
                shard.handle_closed(key);
            }
        }
        let messages: Vec<_> = std::iter::from_fn(|| shard.poll_message()).collect();
        for message in messages {
            is_busy = true;
            self.route((number, index), message);
        }
        is_busy
    }

    /// Passes a message on, as the mailboxes and the mesh would.
    fn route(&mut self, from: (u16, u8), message: FromShard) {
        let (number, shard) = (from.0, ShardId(from.1));
        match message {
            FromShard::Local(to, message) => {
                self.mail.push(((number, to.0), ToShard::Local(shard, message)));
            }
            FromShard::Mesh(ToMesh::Grid(to, message)) => {
                let at = ShardAddress { node: node(number), shard };
                let message = ToShard::Mesh(FromMesh::Grid(at, message));
                self.mail.push(((to.node.number(), to.shard.0), message));
            }
            FromShard::Mesh(ToMesh::Interest { change, .. }) => {
                self.mail.push((from, ToShard::Mesh(FromMesh::InterestKnown(change))));
            }
            FromShard::Mesh(ToMesh::Publish(requester, publish)) => {
                for to in [0, 1].map(|shard| (3 - number, shard)) {
                    let publish = FromMesh::Publish(requester, publish.clone());
                    self.mail.push((to, ToShard::Mesh(publish)));
                }
                let published = FromMesh::Published(requester.ticket, Tally::default());
                self.mail.push((from, ToShard::Mesh(published)));
            }
            FromShard::Mesh(_) => {}
        }
    }

    pub fn wait(&mut self, ms: u64) {
        self.now.ms += ms;
        self.now.us += ms * 1000;
        self.now.unix_ms += ms;
        self.run();
    }

    pub fn shard(&mut self, place: Place) -> &mut Shard {
        self.shards.get_mut(&(place.node, place.shard)).expect("a shard")
    }

    /// Opens a connection and sends the head of a request that asks for a WebSocket.
    pub fn request(
        &mut self,
        at: (u16, u8),
        listener: Listener,
        path: &str,
        headers: &str,
    ) -> Place {
        let shard = self.shards.get_mut(&at).expect("a shard");
        let remote = ([192, 0, 2, 7], 5000).into();
        let key = shard.handle_accepted(self.now, listener, remote).expect("the node is up");
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
        );
        shard.handle_bytes(self.now, key, &mut request.into_bytes());
        self.run();
        Place { node: at.0, shard: at.1, key }
    }

    pub fn device(&mut self, at: (u16, u8), path: &str) -> Place {
        self.request(at, Listener::Edge(0), path, "")
    }

    pub fn backend(&mut self, at: (u16, u8)) -> Place {
        let place = self.request(at, Listener::Api, "/ws/v1", "");
        self.read(place);
        place
    }

    pub fn send(&mut self, place: Place, text: &str) {
        self.send_frame(place, 0x81, text.as_bytes());
    }

    pub fn send_frame(&mut self, place: Place, first: u8, payload: &[u8]) {
        let mut frame = [&client_head(first, payload.len())[..], payload].concat();
        let now = self.now;
        self.shard(place).handle_bytes(now, place.key, &mut frame);
        self.run();
    }

    /// Takes out the text messages that were written to a connection since the last time.
    pub fn read(&mut self, place: Place) -> Vec<String> {
        let bytes = std::mem::take(self.written.entry(place).or_default());
        let mut rest = match bytes.windows(4).position(|end| end == b"\r\n\r\n") {
            Some(at) if bytes.starts_with(b"HTTP") => &bytes[at + 4..],
            _ => &bytes[..],
        };
        let mut texts = Vec::new();
        while let [first, length, tail @ ..] = rest {
            let (length, tail) = match length {
                126 => (usize::from(u16::from_be_bytes([tail[0], tail[1]])), &tail[2..]),
                length => (usize::from(*length), tail),
            };
            if first & 0x0F == 1 {
                texts.push(String::from_utf8_lossy(&tail[..length]).into_owned());
            }
            rest = &tail[length..];
        }
        texts
    }

    /// Takes out the events of taps that were written to a back end.
    pub fn told(&mut self, backend: Place) -> Vec<Value> {
        let texts = self.read(backend);
        let events = texts.iter().map(|text| {
            let event: Value = serde_json::from_str(text).expect("JSON");
            assert_eq!(event["e"], "tap", "{text}");
            event["p"].clone()
        });
        events.collect()
    }

    /// Makes a call; returns its answer, which must be all that is written.
    pub fn call(&mut self, backend: Place, method: &str, params: &Value) -> Value {
        self.calls += 1;
        let id = self.calls;
        self.send(backend, &json!({ "m": method, "p": params, "i": id }).to_string());
        let texts = self.read(backend);
        let answers = texts.iter().map(|text| serde_json::from_str::<Value>(text).expect("JSON"));
        let mut answers: Vec<_> = answers.filter(|answer| answer["i"] == id).collect();
        assert_eq!(answers.len(), 1, "{texts:?}");
        answers.remove(0)
    }

    #[track_caller]
    pub fn tap(&mut self, backend: Place, params: &Value) {
        let answer = self.call(backend, "tap.start", params);
        assert_eq!(answer["r"], json!({ "s": true, "missing": [] }), "{answer}");
    }

    /// Calls a function of a client, with the back end of another node.
    pub fn function(&mut self, backend: Place, client: &str, function: &str, arguments: Value) {
        let params = json!({ "c": client, "f": function, "a": arguments });
        let answer = self.call(backend, "conn.call", &params);
        assert_eq!(answer["E"], Value::Null, "{answer}");
    }

    /// Returns the id of the only client that has connected since: its `connect` event tells it.
    pub fn id_of(&mut self, backend: Place) -> String {
        let told = self.told(backend);
        let [event] = &told[..] else { panic!("{told:?}") };
        assert_eq!(event["what"], "connect");
        event["c"].as_str().expect("an id").to_owned()
    }

    /// Connects a device and returns its place and id, as a tap of its address tells it.
    pub fn known_device(&mut self, at: (u16, u8), path: &str) -> (Place, String) {
        let backend = self.backend(at);
        self.tap(backend, &json!({ "address": "192.0.2.0/24" }));
        let device = self.device(at, path);
        let id = self.id_of(backend);
        let now = self.now;
        self.shard(backend).handle_end(now, backend.key, true);
        self.run();
        (device, id)
    }
}

fn node(number: u16) -> NodeId {
    NodeId::new(number).expect("a node id")
}

fn settings(number: u16) -> Settings {
    let open = RouteSettings {
        topic: Some("messages".into()),
        tells_message: true,
        ..shard_value::route()
    };
    let places = TokenSources { header: true, protocol: true, query: true };
    let rule = TokenRule::with_key(TokenAlgorithm::Hs256, TOKEN_KEY, places).expect("a long key");
    let token = Some(Arc::new(rule));
    let member = RouteSettings { path: "/member".into(), token, ..shard_value::route() };
    let echo = RouteSettings { path: "/echo".into(), echo: true, ..shard_value::route() };
    let routes = [open, member, echo].map(Arc::new).into();
    let edges = vec![EdgeSettings { proxy: None, port: 6790, routes }];
    Settings { node: node(number), shards: 2, has_mesh: true, edges, ..shard_value::settings() }
}

/// The fields `what` of events.
pub fn whats(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["what"].as_str().expect("a name")).collect()
}

/// A token of the user `ann`.
pub fn token() -> String {
    let claims = json!({ "exp": 1_800_000_000, "sub": "ann" });
    let key = EncodingKey::from_secret(TOKEN_KEY.as_bytes());
    encode(&Header::default(), &claims, &key).expect("claims are JSON")
}
