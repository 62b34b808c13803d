//! Taps: a back end watches devices live. The shards of two nodes are values, and the test itself is the mesh.

#![forbid(unsafe_code)]

#[path = "support/shard.rs"]
#[allow(dead_code, reason = "a single shard is for other tests")]
mod shard_value;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gridcast::address::{Incarnation, NodeId, ShardAddress, ShardId};
use gridcast::message::{
    AdmissionRequest, AdmissionVerdict, ConnectionKey, FromBridge, FromMesh, FromNode, FromShard,
    ToBridge, ToMesh, ToShard,
};
use gridcast::protocol::admission::AdmissionHook;
use gridcast::protocol::api::Tally;
use gridcast::protocol::credentials::{Roles, Scheme, Secret, User};
use gridcast::protocol::service::HttpService;
use gridcast::protocol::token::{TokenAlgorithm, TokenRule, TokenSources};
use gridcast::shard::node_state::NodeState;
use gridcast::shard::settings::{EdgeSettings, RouteSettings, Settings};
use gridcast::shard::{Action, Batch, Listener, Now, Priority, Shard, ShardRequest};
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};
use shard_value::client_head;

const TOKEN_KEY: &str = "0123456789abcdef0123456789abcdef";

/// The secret that the devices of these tests present.
const SECRET: &str = "s3cret";

/// A connection of the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    node: u16,
    shard: u8,
    key: ConnectionKey,
}

/// Two nodes of two shards each.
struct Grid {
    now: Now,
    shards: BTreeMap<(u16, u8), Shard>,
    written: BTreeMap<Place, Vec<u8>>,
    // Connections whose peers do not read, with what is in flight to them.
    unread: BTreeMap<Place, Vec<Batch>>,
    // Nodes that do not run.
    frozen: BTreeSet<u16>,
    // Messages between shards, for each receiver.
    mail: Vec<((u16, u8), ToShard)>,
    // The number of calls so far.
    calls: u64,
}

impl Grid {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl Fn(&mut Settings)) -> Self {
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
    fn link(&mut self) {
        for (here, there) in [(1, 2), (2, 1)] {
            let up = || {
                let incarnation = Incarnation(there.into());
                FromMesh::NodeUp { node: node(there), shards: 2, incarnation }
            };
            self.mail.extend([0, 1].map(|shard| ((here, shard), ToShard::Mesh(up()))));
        }
        self.run();
    }

    /// Makes the nodes unreachable for each other. Messages in flight are lost.
    fn cut(&mut self) {
        self.mail.clear();
        for (here, there) in [(1, 2), (2, 1)] {
            let down = || ToShard::Mesh(FromMesh::NodeDown(node(there)));
            self.mail.extend([0, 1].map(|shard| ((here, shard), down())));
        }
        self.run();
    }

    /// Runs all shards until none has anything to do.
    fn run(&mut self) {
        for _ in 0..1000 {
            let is_busy = self.turn();
            if !is_busy {
                return;
            }
        }
        panic!("the shards do not come to rest");
    }

    /// Runs one turn of each shard. Returns whether any had something to do.
    fn turn(&mut self) -> bool {
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
        while let Some((key, batch)) =
            shard.poll_write(Priority::Urgent).or_else(|| shard.poll_write(Priority::Bulk))
        {
            is_busy = true;
            let place = Place { node: number, shard: index, key };
            if let Some(batches) = self.unread.get_mut(&place) {
                batches.push(batch);
                continue;
            }
            let bytes: Vec<u8> = batch.iter().flat_map(|chunk| chunk.bytes()).copied().collect();
            shard.handle_written(self.now, key, bytes.len(), true);
            self.written.entry(place).or_default().extend(bytes);
        }
        while let Some(action) = shard.poll_action() {
            if let Action::Close(key) = action {
                shard.handle_closed(key);
            }
        }
        let from = ShardAddress { node: node(number), shard: ShardId(index) };
        while let Some(message) = shard.poll_message() {
            is_busy = true;
            let own = (number, index);
            match message {
                FromShard::Local(to, message) => {
                    let message = ToShard::Local(ShardId(index), message);
                    self.mail.push(((number, to.0), message));
                }
                FromShard::Mesh(ToMesh::Grid(to, message)) => {
                    let message = ToShard::Mesh(FromMesh::Grid(from, message));
                    self.mail.push(((to.node.number(), to.shard.0), message));
                }
                FromShard::Mesh(ToMesh::Interest { change, .. }) => {
                    let known = FromMesh::InterestKnown(change);
                    self.mail.push((own, ToShard::Mesh(known)));
                }
                FromShard::Mesh(ToMesh::Publish(requester, publish)) => {
                    for to in [0, 1].map(|shard| (3 - number, shard)) {
                        let publish = FromMesh::Publish(requester, publish.clone());
                        self.mail.push((to, ToShard::Mesh(publish)));
                    }
                    let published = FromMesh::Published(requester.ticket, Tally::default());
                    self.mail.push((own, ToShard::Mesh(published)));
                }
                FromShard::Mesh(_) => {}
            }
        }
        is_busy
    }

    fn wait(&mut self, ms: u64) {
        self.now.ms += ms;
        self.now.us += ms * 1000;
        self.now.unix_ms += ms;
        self.run();
    }

    fn shard(&mut self, place: Place) -> &mut Shard {
        self.shards.get_mut(&(place.node, place.shard)).expect("a shard")
    }

    /// Opens a connection and sends the head of a request that asks for a WebSocket.
    fn request(&mut self, at: (u16, u8), listener: Listener, path: &str, headers: &str) -> Place {
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

    fn device(&mut self, at: (u16, u8), path: &str) -> Place {
        self.request(at, Listener::Edge(0), path, "")
    }

    fn backend(&mut self, at: (u16, u8)) -> Place {
        let place = self.request(at, Listener::Api, "/ws/v1", "");
        self.read(place);
        place
    }

    fn send(&mut self, place: Place, text: &str) {
        self.send_frame(place, 0x81, text.as_bytes());
    }

    fn send_frame(&mut self, place: Place, first: u8, payload: &[u8]) {
        let mut frame = [&client_head(first, payload.len())[..], payload].concat();
        let now = self.now;
        self.shard(place).handle_bytes(now, place.key, &mut frame);
        self.run();
    }

    /// Takes out the text messages that were written to a connection since the last time.
    fn read(&mut self, place: Place) -> Vec<String> {
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
    fn told(&mut self, backend: Place) -> Vec<Value> {
        let texts = self.read(backend);
        let events = texts.iter().map(|text| {
            let event: Value = serde_json::from_str(text).expect("JSON");
            assert_eq!(event["e"], "tap", "{text}");
            event["p"].clone()
        });
        events.collect()
    }

    /// Makes a call; returns its answer, which must be all that is written.
    fn call(&mut self, backend: Place, method: &str, params: &Value) -> Value {
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
    fn tap(&mut self, backend: Place, params: &Value) {
        let answer = self.call(backend, "tap.start", params);
        assert_eq!(answer["r"], json!({ "s": true, "missing": [] }), "{answer}");
    }

    /// Calls a function of a client, with the back end of another node.
    fn function(&mut self, backend: Place, client: &str, function: &str, arguments: Value) {
        let params = json!({ "c": client, "f": function, "a": arguments });
        let answer = self.call(backend, "conn.call", &params);
        assert_eq!(answer["E"], Value::Null, "{answer}");
    }

    /// Returns the id of the only client that has connected since: its `connect` event tells it.
    fn id_of(&mut self, backend: Place) -> String {
        let told = self.told(backend);
        let [event] = &told[..] else { panic!("{told:?}") };
        assert_eq!(event["what"], "connect");
        event["c"].as_str().expect("an id").to_owned()
    }

    /// Connects a device and returns its place and id, as a tap of its address tells it.
    fn known_device(&mut self, at: (u16, u8), path: &str) -> (Place, String) {
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
fn whats(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["what"].as_str().expect("a name")).collect()
}

#[test]
fn a_client_of_another_node_is_watched_from_its_first_message_to_its_end() {
    let mut grid = Grid::new();
    let (device, id) = grid.known_device((2, 1), "/ws");
    let (tapper, other) = (grid.backend((1, 0)), grid.backend((2, 0)));
    grid.tap(tapper, &json!({ "c": id }));
    let stranger = grid.device((2, 1), "/ws");
    grid.send(stranger, "not watched");
    assert_eq!(grid.told(tapper), Vec::<Value>::new());

    grid.send(device, "hello");
    let at = grid.now.unix_ms;
    let head = json!({ "at": at, "node": 2, "c": id });
    let with = |fields: Value| {
        let mut event = head.clone();
        event.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        event
    };
    let heard = json!({ "what": "in", "t": "text", "d": "hello", "bytes": 5 });
    assert_eq!(grid.told(tapper), [with(heard)]);
    grid.send_frame(device, 0x82, &[0, 1, 254]);
    let heard = json!({ "what": "in", "t": "binary", "d": "AAH+", "bytes": 3 });
    assert_eq!(grid.told(tapper), [with(heard)]);

    let sent = grid.call(other, "mesh.send", &json!({ "c": id, "d": "x".repeat(1000) }));
    assert_eq!(sent["r"], json!({ "s": true }));
    let out = json!({ "what": "out", "t": "text", "d": "x".repeat(256), "bytes": 1000 });
    let call =
        json!({ "what": "call", "m": "mesh.send", "arguments": "", "by": null, "error": null });
    assert_eq!(grid.told(tapper), [with(out), with(call)]);

    let arguments = json!(["key", SECRET]);
    grid.function(other, &id, "set_context_value", arguments);
    let told = grid.told(tapper);
    assert_eq!(whats(&told), ["call"]);
    assert_eq!(told[0]["arguments"], "set_context_value key", "no values");

    grid.send_frame(device, 0x88, &[0x0F, 0xA1, b'o', b'k']);
    let close = json!({ "what": "close", "code": 4001, "reason": "ok", "by": "peer" });
    assert_eq!(grid.told(tapper), [with(close)]);

    let call = grid.call(other, "mesh.send", &json!({ "c": id, "d": "late" }));
    assert_eq!(call["E"]["c"], 401);
    let told = grid.told(tapper);
    assert_eq!(whats(&told), ["call"]);
    assert_eq!(told[0]["error"], json!({ "c": 401, "m": "no such client" }));
}

#[test]
fn a_client_is_watched_while_its_context_names_the_user() {
    let mut grid = Grid::new();
    let (device, id) = grid.known_device((2, 0), "/ws");
    let (tapper, other) = (grid.backend((1, 0)), grid.backend((1, 1)));
    grid.tap(tapper, &json!({ "user": 10000 }));
    grid.send(device, "before");
    assert_eq!(grid.told(tapper), Vec::<Value>::new());
    grid.function(other, &id, "set_context", json!([{ "user_id": 10000 }]));
    grid.send(device, "as the user");
    assert_eq!(whats(&grid.told(tapper)), ["in"]);
    grid.function(other, &id, "set_context_value", json!(["user_id", "10000"]));
    grid.send(device, "still the user");
    assert_eq!(whats(&grid.told(tapper)), ["call", "in"]);
    grid.function(other, &id, "set_context_value", json!(["user_id", "20000"]));
    grid.send(device, "another user");
    assert_eq!(whats(&grid.told(tapper)), ["call"], "the call that ended it");
}

#[test]
fn the_subscribers_of_a_channel_are_watched_and_the_publishes_to_it() {
    let mut grid = Grid::new();
    let (one, id) = grid.known_device((2, 0), "/ws");
    let (tapper, other) = (grid.backend((1, 0)), grid.backend((1, 1)));
    grid.tap(tapper, &json!({ "channel": "news" }));
    grid.function(other, &id, "subscribe", json!(["sport", "news"]));
    let told = grid.told(tapper);
    assert_eq!(
        (whats(&told), &told[0]["arguments"]),
        (vec!["call"], &json!("subscribe sport,news"))
    );
    let _two = grid.device((1, 1), "/ws?channels=news");
    let told = grid.told(tapper);
    assert_eq!((whats(&told), &told[0]["channels"]), (vec!["connect"], &json!(1)));

    grid.call(other, "mesh.publish", &json!({ "c": "news", "d": "hello" }));
    let told = grid.told(tapper);
    let (mut calls, mut outs) = (Vec::new(), BTreeSet::new());
    for event in &told {
        match event["what"].as_str() {
            Some("call") => calls.push((event["m"].clone(), event["arguments"].clone())),
            Some("out") => _ = outs.insert(event["c"].to_string()),
            _ => panic!("{event}"),
        }
    }
    assert_eq!(calls, [(json!("mesh.publish"), json!("news"))]);
    assert_eq!((outs.len(), told.len()), (2, 3), "each subscriber once");
    grid.call(other, "mesh.publish", &json!({ "c": "other", "d": "hello" }));
    assert_eq!(grid.told(tapper), Vec::<Value>::new());

    grid.function(other, &id, "unsubscribe", json!(["news"]));
    assert_eq!(whats(&grid.told(tapper)), ["call"]);
    grid.send(one, "not subscribed any more");
    assert_eq!(grid.told(tapper), Vec::<Value>::new());
}

#[test]
fn the_clients_that_feed_a_topic_are_watched_and_its_consumers() {
    let mut grid = Grid::new();
    let echoed = grid.device((1, 0), "/echo");
    let fed = grid.device((1, 1), "/ws");
    let (tapper, other) = (grid.backend((1, 0)), grid.backend((2, 1)));
    grid.tap(tapper, &json!({ "topic": "messages" }));
    grid.send(echoed, "of no topic");
    grid.send(fed, "of the topic");
    assert_eq!(whats(&grid.told(tapper)), ["in"]);
    grid.call(other, "queue.pop", &json!({ "t": ["others"] }));
    let consumer = grid.backend((2, 1));
    grid.send(consumer, r#"{"m":"queue.pop","p":{"t":["messages"]},"i":1}"#);
    let told = grid.told(tapper);
    assert_eq!((whats(&told), &told[0]["m"]), (vec!["call"], &json!("queue.pop")));
}

#[test]
fn an_echo_is_told_in_both_directions() {
    let mut grid = Grid::new();
    let (device, id) = grid.known_device((1, 0), "/echo");
    let tapper = grid.backend((1, 0));
    grid.tap(tapper, &json!({ "c": id }));
    grid.send(device, "echo");
    assert_eq!(whats(&grid.told(tapper)), ["in", "out"]);
}

#[test]
fn connections_of_an_address_are_told_and_refusals_with_their_reason_and_no_secret() {
    let mut grid = Grid::new();
    let tapper = grid.backend((1, 0));
    grid.tap(tapper, &json!({ "address": "192.0.2.7" }));
    grid.tap(tapper, &json!({ "address": "10.0.0.0/8" }));
    let at = (2, 1);
    let secrets = format!("Cookie: session={SECRET}\r\nAuthorization: Bearer {SECRET}\r\n");
    grid.request(at, Listener::Edge(0), &format!("/member?token={SECRET}"), &secrets);
    grid.request(at, Listener::Edge(0), &format!("/nowhere?token={SECRET}"), &secrets);
    grid.request(at, Listener::Edge(0), &format!("/ws?token={SECRET}"), &secrets);
    let texts = grid.read(tapper);
    assert!(texts.iter().all(|text| !text.contains(SECRET)), "{texts:?}");
    let told: Vec<Value> = texts
        .iter()
        .map(|text| serde_json::from_str::<Value>(text).unwrap()["p"].clone())
        .collect();
    assert_eq!(whats(&told), ["refuse", "refuse", "connect"]);
    assert_eq!((&told[0]["status"], &told[0]["path"]), (&json!(401), &json!("/member")));
    assert!(told[0]["why"].as_str().is_some_and(|why| !why.is_empty()), "{}", told[0]);
    assert_eq!((&told[0]["c"], &told[0]["remote"]), (&Value::Null, &json!("192.0.2.7:5000")));
    assert_eq!((&told[1]["status"], &told[1]["why"]), (&json!(404), &json!("no such route")));
    assert_eq!((&told[2]["path"], &told[2]["u"]), (&json!("/ws"), &Value::Null));
}

#[test]
fn the_refusals_of_a_route_are_told_to_a_tap_of_its_topic() {
    let mut grid = Grid::with(|settings| {
        let route = Arc::make_mut(&mut settings.edges[0].routes[0]);
        route.origins = Some(vec!["https://app.example".into()]);
    });
    let tapper = grid.backend((1, 0));
    grid.tap(tapper, &json!({ "topic": "messages" }));
    grid.request((1, 1), Listener::Edge(0), "/ws", "Origin: https://other.example\r\n");
    let told = grid.told(tapper);
    assert_eq!((whats(&told), &told[0]["status"]), (vec!["refuse"], &json!(403)));
}

/// A token of the user `ann`.
fn token() -> String {
    let claims = json!({ "exp": 1_800_000_000, "sub": "ann" });
    let key = EncodingKey::from_secret(TOKEN_KEY.as_bytes());
    encode(&Header::default(), &claims, &key).expect("claims are JSON")
}

#[test]
fn refusals_of_a_user_are_told_once_a_token_has_named_the_user() {
    let hook = AdmissionHook {
        service: HttpService::new("https://example.org/", 3000).expect("a URL"),
        secret: None,
    };
    let hook = Arc::new(hook);
    let mut grid = Grid::with(|settings| {
        let routes = &mut settings.edges[0].routes;
        let admit = Some(hook.clone());
        let route =
            RouteSettings { path: "/asked".into(), admit, ..RouteSettings::clone(&routes[1]) };
        Arc::make_mut(&mut routes[1]).subscribe = vec![];
        routes.push(Arc::new(route));
    });
    let tapper = grid.backend((1, 0));
    grid.tap(tapper, &json!({ "user": "ann" }));
    let at = (2, 1);
    let path = |path: &str| format!("{path}&token={}", token());
    grid.device(at, "/member?channels=news");
    assert_eq!(grid.told(tapper), Vec::<Value>::new(), "nobody knows whose connection it is");
    grid.device(at, &path("/member?channels=news"));
    let told = grid.told(tapper);
    assert_eq!((whats(&told), &told[0]["status"]), (vec!["refuse"], &json!(403)));
    assert_eq!((&told[0]["u"], &told[0]["path"]), (&json!("ann"), &json!("/member")));

    let device = grid.device(at, &path("/asked?channels=news"));
    // Others come while the hook decides.
    grid.device(at, "/nowhere");
    let now = grid.now;
    let request = grid.shard(device).poll_request();
    let Some(ShardRequest::Bridge(ToBridge::Admit(request))) = request else {
        panic!("the hook is asked")
    };
    let AdmissionRequest { connection, ticket, .. } = request;
    let verdict = AdmissionVerdict::Refused(401);
    let verdict = Box::new(FromBridge::Admission { connection, ticket, verdict });
    grid.shard(device).handle_message(now, ToShard::Node(FromNode::Bridge(verdict)));
    grid.run();
    let told = grid.told(tapper);
    assert_eq!((whats(&told), &told[0]["status"]), (vec!["refuse"], &json!(401)));
    assert_eq!(told[0]["why"], "the back end does not admit this client");
    assert_eq!((&told[0]["u"], &told[0]["path"]), (&json!("ann"), &json!("/asked")));
    assert!(!told[0].to_string().contains(&token()), "{}", told[0]);
}

#[test]
fn a_tap_ends_when_it_is_stopped_and_when_its_back_end_is_gone() {
    let mut grid = Grid::new();
    let (device, id) = grid.known_device((2, 1), "/ws");
    let (stopped, closed) = (grid.backend((1, 0)), grid.backend((1, 1)));
    for tapper in [stopped, closed] {
        grid.tap(tapper, &json!({ "c": id }));
        grid.tap(tapper, &json!({ "topic": "messages" }));
    }
    grid.send(device, "one");
    assert_eq!(whats(&grid.told(stopped)), ["in"], "once, although two taps match");
    assert_eq!(whats(&grid.told(closed)), ["in"]);
    assert_eq!(grid.call(stopped, "tap.stop", &json!({}))["r"], json!({ "s": true }));
    let now = grid.now;
    grid.shard(closed).handle_end(now, closed.key, true);
    grid.run();
    grid.send(device, "two");
    assert_eq!((grid.told(stopped), grid.told(closed)), (vec![], vec![]));
    assert_eq!(grid.call(stopped, "tap.stop", &json!({}))["r"], json!({ "s": true }));
}

#[test]
fn ended_taps_make_room_for_others() {
    let mut grid = Grid::new();
    let (device, id) = grid.known_device((2, 1), "/ws");
    let tapper = grid.backend((1, 0));
    for _ in 0..100 {
        grid.tap(tapper, &json!({ "c": id }));
        grid.send(device, "hello");
        assert_eq!(whats(&grid.told(tapper)), ["in"]);
        grid.call(tapper, "tap.stop", &json!({}));
        // Its mark is gone before its number is used again.
        grid.tap(tapper, &json!({ "user": "nobody" }));
        grid.send(device, "hello");
        assert_eq!(grid.told(tapper), Vec::<Value>::new());
        grid.call(tapper, "tap.stop", &json!({}));
    }
}

#[test]
fn the_taps_of_a_back_end_and_of_the_grid_are_bounded() {
    let mut grid = Grid::new();
    let params = json!({ "c": "1" });
    let mut tappers = Vec::new();
    for number in 0..4 {
        let tapper = grid.backend((1 + number % 2, 0));
        (0..8).for_each(|_| grid.tap(tapper, &params));
        tappers.push(tapper);
    }
    let last = grid.backend((2, 1));
    for (backend, why) in [
        (tappers[0], "this connection has 8 taps already; tap.stop ends them"),
        (last, "the grid has 32 taps already"),
    ] {
        let answer = grid.call(backend, "tap.start", &params);
        assert_eq!(answer["E"], json!({ "c": 103, "m": why }));
    }
    grid.call(tappers[0], "tap.stop", &json!({}));
    grid.tap(last, &params);
}

#[test]
fn events_beyond_the_rate_are_lost_and_counted() {
    let mut grid = Grid::new();
    let (device, id) = grid.known_device((2, 1), "/ws");
    let tapper = grid.backend((1, 0));
    grid.tap(tapper, &json!({ "c": id, "max_per_s": 5 }));
    for number in 0..20 {
        grid.send(device, &number.to_string());
    }
    let told = grid.told(tapper);
    let shown: Vec<_> = told.iter().map(|event| event["d"].as_str().unwrap()).collect();
    assert_eq!(shown, ["0", "1", "2", "3", "4"]);
    grid.wait(1000);
    grid.wait(1000);
    let at = grid.now.unix_ms;
    assert_eq!(grid.told(tapper), [json!({ "at": at, "what": "lost", "n": 15 })]);
    grid.send(device, "again");
    assert_eq!(whats(&grid.told(tapper)), ["in"]);
    grid.wait(5000);
    assert_eq!(grid.told(tapper), Vec::<Value>::new(), "nothing more was lost");
}

#[test]
fn the_rate_of_a_tap_holds_for_all_shards_together() {
    let mut grid = Grid::new();
    let tapper = grid.backend((1, 0));
    grid.tap(tapper, &json!({ "topic": "messages", "max_per_s": 10 }));
    let places = [(1, 0), (1, 1), (2, 0), (2, 1)];
    let devices = places.map(|at| grid.device(at, "/ws"));
    assert_eq!(grid.told(tapper).len(), 4);
    for device in devices.into_iter().cycle().take(40) {
        grid.send(device, "hello");
    }
    assert_eq!(grid.told(tapper).len(), 6);
    grid.wait(1000);
    grid.wait(1000);
    let told = grid.told(tapper);
    assert_eq!(told.iter().map(|event| event["n"].as_u64().unwrap()).sum::<u64>(), 34);
}

#[test]
fn a_tapper_that_does_not_read_loses_events_and_nothing_else() {
    let mut grid = Grid::new();
    let (device, id) = grid.known_device((1, 1), "/echo");
    let tapper = grid.backend((1, 0));
    grid.tap(tapper, &json!({ "c": id, "max_per_s": 1000 }));
    grid.unread.insert(tapper, Vec::new());
    let text = "x".repeat(300);
    for _ in 0..10 {
        (0..500).for_each(|_| grid.send(device, &text));
        grid.wait(1000);
    }
    let held = grid.shard(tapper).inspect().held_bytes();
    assert!(held < (1 << 20) / 2, "{held} bytes wait for the tapper");
    assert_eq!(grid.read(device).len(), 5000, "the device got every echo");

    // The tapper reads again: its connection is open, and its calls are answered.
    let batches = grid.unread.remove(&tapper).expect("it does not read");
    let now = grid.now;
    for batch in batches {
        let bytes: Vec<u8> = batch.iter().flat_map(|chunk| chunk.bytes()).copied().collect();
        grid.shard(tapper).handle_written(now, tapper.key, bytes.len(), true);
        grid.written.entry(tapper).or_default().extend(bytes);
    }
    grid.run();
    grid.wait(1000);
    grid.wait(1000);
    let told = grid.told(tapper);
    let lost: u64 = told.iter().filter_map(|event| event["n"].as_u64()).sum();
    let events = told.iter().filter(|event| event["what"] != "lost").count() as u64;
    assert!(lost > 5000, "{lost}");
    assert_eq!(events + lost, 10_000, "each event was told or counted");
    grid.send(device, "again");
    assert_eq!(whats(&grid.told(tapper)), ["in", "out"]);
    assert_eq!(grid.call(tapper, "tap.stop", &json!({}))["r"], json!({ "s": true }));
}

#[test]
fn events_on_their_way_to_a_frozen_node_are_bounded() {
    let mut grid = Grid::new();
    let (device, id) = grid.known_device((2, 1), "/ws");
    let tapper = grid.backend((1, 0));
    grid.tap(tapper, &json!({ "c": id, "max_per_s": 1000 }));
    for _ in 0..3 {
        grid.frozen.insert(1);
        (0..300).for_each(|number| grid.send(device, &number.to_string()));
        assert_eq!(grid.mail.len(), 128, "messages wait for the frozen node");
        grid.frozen.remove(&1);
        grid.run();
        let told = grid.told(tapper);
        assert!((96..=128).contains(&told.len()), "{}", told.len());
        assert_eq!((&told[0]["d"], &told[95]["d"]), (&json!("0"), &json!("95")));
        grid.wait(1000);
        grid.wait(1000);
        let lost: u64 = grid.told(tapper).iter().filter_map(|event| event["n"].as_u64()).sum();
        assert_eq!(told.len() as u64 + lost, 300);
    }
}

#[test]
fn a_frozen_node_is_named_and_watches_as_soon_as_it_runs() {
    let mut grid = Grid::new();
    let (device, id) = grid.known_device((2, 1), "/ws");
    let tapper = grid.backend((1, 0));
    grid.frozen.insert(2);
    grid.send(tapper, &json!({ "m": "tap.start", "p": { "c": id }, "i": 1 }).to_string());
    assert_eq!(grid.read(tapper), Vec::<String>::new());
    grid.wait(1499);
    assert_eq!(grid.read(tapper), Vec::<String>::new());
    grid.wait(50);
    assert_eq!(grid.read(tapper), [r#"{"E":null,"r":{"s":true,"missing":[2]},"i":1}"#]);
    grid.frozen.remove(&2);
    grid.run();
    grid.send(device, "hello");
    assert_eq!(whats(&grid.told(tapper)), ["in"]);
}

#[test]
fn a_node_that_comes_back_watches_again_and_one_that_goes_is_watched_for_no_more() {
    let mut grid = Grid::new();
    let (device, id) = grid.known_device((2, 1), "/ws");
    let tapper = grid.backend((1, 0));
    grid.tap(tapper, &json!({ "c": id }));
    grid.cut();
    grid.send(device, "while the node is unreachable");
    assert_eq!(grid.told(tapper), Vec::<Value>::new());
    grid.link();
    grid.send(device, "hello");
    let told = grid.told(tapper);
    assert_eq!(told.iter().map(|event| event["d"].clone()).collect::<Vec<_>>(), ["hello"]);
    grid.cut();
    let late = grid.backend((1, 0));
    grid.tap(late, &json!({ "c": id }));
    grid.link();
    grid.send(device, "again");
    assert_eq!((grid.told(tapper).len(), grid.told(late).len()), (1, 1));
}

#[test]
fn connected_clients_are_marked_in_slices() {
    let mut grid = Grid::new();
    let now = grid.now;
    let count = 10_000;
    let shard = grid.shards.get_mut(&(1, 1)).expect("a shard");
    for _ in 0..count {
        shard_value::upgraded(shard, now, Listener::Edge(0), "/ws");
    }
    grid.run();
    let tapper = grid.backend((1, 0));
    // The more taps a connection is compared with, the fewer connections are visited in a turn.
    for taps in 1..=4 {
        let mut turns = 0;
        let start = json!({ "m": "tap.start", "p": { "topic": "messages" }, "i": 2 }).to_string();
        let mut frame = shard_value::call(&start);
        grid.shard(tapper).handle_bytes(now, tapper.key, &mut frame);
        while grid.read(tapper).is_empty() {
            grid.turn();
            turns += 1;
            assert!(turns < 20 * taps, "it is never answered");
        }
        assert!(turns > count * taps / 4096, "{turns} turns with {taps} taps");
        grid.run();
    }
}

#[test]
fn only_an_administrator_may_tap_and_the_caller_of_a_client_is_named() {
    let user = |name: &str, roles| User {
        name: name.into(),
        scheme: Scheme::Bearer,
        secret: Secret::Plain(name.into()),
        roles,
        from: Default::default(),
        requests_per_s: 0,
    };
    let mut grid = Grid::with(|settings| {
        let app = Roles { read: true, write: true, admin: false };
        settings.api.users = vec![user("app", app), user("root", Roles::ALL)].into();
    });
    let backend = |grid: &mut Grid, at, name: &str| {
        let header = format!("Authorization: Bearer {name}\r\n");
        let place = grid.request(at, Listener::Api, "/ws/v1", &header);
        grid.read(place);
        place
    };
    let (app, root) = (backend(&mut grid, (1, 1), "app"), backend(&mut grid, (1, 0), "root"));
    for (method, params) in [("tap.start", json!({ "c": "1" })), ("tap.stop", json!({}))] {
        assert_eq!(grid.call(app, method, &params)["E"]["c"], 102);
    }
    grid.tap(root, &json!({ "address": "192.0.2.7" }));
    grid.device((2, 1), "/ws");
    let id = grid.id_of(root);
    // From another node, another shard, and the client's own shard.
    for at in [(1, 1), (2, 0), (2, 1)] {
        let app = backend(&mut grid, at, "app");
        grid.call(app, "mesh.send", &json!({ "c": id, "d": "hello" }));
        grid.function(app, &id, "info", json!([]));
        let told = grid.told(root);
        assert_eq!(whats(&told), ["out", "call", "call"], "{at:?}");
        assert_eq!((&told[1]["by"], &told[2]["by"]), (&json!("app"), &json!("app")), "{at:?}");
    }
}
