//! Who is in a channel: what devices and back ends are told, on nodes that are values. The test carries their messages, and
//! says when nodes reach each other.

#![forbid(unsafe_code)]

#[path = "support/shard.rs"]
mod shard_value;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use gridcast::address::{Incarnation, NodeId, ShardAddress, ShardId};
use gridcast::message::{ConnectionKey, FromMesh, FromShard, ToMesh, ToShard};
use gridcast::protocol::token::{SigningKey, TokenAlgorithm, TokenRule, TokenSources};
use gridcast::queue::{Bounds, WhenFull};
use gridcast::shard::node_state::NodeState;
use gridcast::shard::settings::{
    ChannelRule, ChannelSettings, EdgeSettings, PresenceRule, QueueSettings, RouteSettings,
    Settings,
};
use gridcast::shard::{Action, Listener, Now, Shard};
use serde_json::{Value, json};
use shard_value::{bytes_of, call, client_head, poll_write, upgraded};

const KEY: &str = "0123456789abcdef0123456789abcdef";
const TOPIC: &str = "here";

/// A connection: its node, its shard, and its key there.
type End = (usize, usize, ConnectionKey);

struct Grid {
    now: Now,
    // Nodes that are not running have no shards.
    nodes: Vec<Vec<Shard>>,
    // Pairs of nodes that reach each other, the lower first.
    links: Vec<(usize, usize)>,
    messages: VecDeque<(usize, usize, ToShard)>,
    written: BTreeMap<(usize, usize, u32), Vec<u8>>,
}

fn settings(node: usize, shards: usize) -> Settings {
    let settings = shard_value::settings();
    let rule = TokenRule::with_key(
        TokenAlgorithm::Hs256,
        KEY,
        TokenSources { query: true, ..TokenSources::default() },
    );
    let plain = shard_value::route();
    let signed = RouteSettings { path: "/user".into(), token: rule.map(Arc::new), ..plain.clone() };
    let routes = vec![Arc::new(plain), Arc::new(signed)];
    let presence =
        |topic: Option<&str>| Some(PresenceRule { grace_ms: 3000, topic: topic.map(Arc::from) });
    let rule =
        |pattern: &str, presence| ChannelRule { pattern: pattern.into(), history: None, presence };
    let rules = [rule("room:*", presence(None)), rule("told:*", presence(Some(TOPIC)))];
    Settings {
        node: NodeId::new(node as u16 + 1).expect("a small number"),
        shards,
        edges: vec![EdgeSettings { proxy: None, port: 6790, routes }],
        channels: ChannelSettings {
            rules: Arc::new(rules),
            presence_bytes: 1 << 20,
            ..ChannelSettings::default()
        },
        queue: QueueSettings {
            bounds: Bounds { messages: 3, bytes: 1 << 20 },
            when_full: WhenFull::Hold,
            ..settings.queue
        },
        ..settings
    }
}

fn node_id(node: usize) -> NodeId {
    NodeId::new(node as u16 + 1).expect("a small number")
}

impl Grid {
    /// Nodes with so many shards each, which reach each other.
    fn new(shards: &[usize]) -> Self {
        let now = Now { ms: 1_000_000, us: 1_000_000_000, unix_ms: 1_790_000_000_000 };
        let has_mesh = shards.len() > 1;
        let node = |(node, &shards): (usize, &usize)| {
            let settings = Settings { has_mesh, ..settings(node, shards) };
            let state = Arc::new(NodeState::new(&settings, Arc::default()));
            let shard = |id| Shard::new(ShardId(id as u8), &settings, state.clone(), now);
            (0..shards).map(shard).collect()
        };
        let nodes: Vec<Vec<Shard>> = shards.iter().enumerate().map(node).collect();
        let mut grid = Self {
            now,
            nodes,
            links: Vec::new(),
            messages: VecDeque::new(),
            written: BTreeMap::new(),
        };
        for one in 0..shards.len() {
            (one + 1..shards.len()).for_each(|other| grid.link(one, other, 1));
        }
        // By then a node tells what it knows.
        grid.pass_ms(5000);
        grid
    }

    fn tell(&mut self, node: usize, message: impl Fn() -> FromMesh) {
        for shard in 0..self.nodes[node].len() {
            self.messages.push_back((node, shard, ToShard::Mesh(message())));
        }
    }

    fn link(&mut self, one: usize, other: usize, run: u64) {
        self.links.push((one, other));
        for (node, peer) in [(one, other), (other, one)] {
            let (peer, shards) = (node_id(peer), self.nodes[peer].len() as u16);
            let incarnation = Incarnation(run);
            self.tell(node, || FromMesh::NodeUp { node: peer, shards, incarnation });
        }
        self.settle();
    }

    fn kill(&mut self, node: usize) {
        self.nodes[node].clear();
        self.links.retain(|&(one, other)| one != node && other != node);
        self.messages.retain(|(to, ..)| *to != node);
        for other in (0..self.nodes.len()).filter(|&other| other != node) {
            self.tell(other, || FromMesh::NodeDown(node_id(node)));
        }
        self.settle();
    }

    fn pass_ms(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(50) {
            self.now.ms += 50;
            self.now.us += 50_000;
            self.now.unix_ms += 50;
            self.settle();
        }
    }

    /// Runs turns and carries messages until nobody has anything to do.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            let mut is_done = true;
            for node in 0..self.nodes.len() {
                for shard in 0..self.nodes[node].len() {
                    is_done &= self.turn(node, shard);
                }
            }
            while let Some((node, shard, message)) = self.messages.pop_front() {
                is_done = false;
                if let Some(shard) = self.nodes[node].get_mut(shard) {
                    shard.handle_message(self.now, message);
                }
                self.take_messages(node, shard);
            }
            if is_done {
                return;
            }
        }
        panic!("the grid is never done");
    }

    fn turn(&mut self, node: usize, at: usize) -> bool {
        let shard = &mut self.nodes[node][at];
        shard.handle_turn(self.now);
        while let Some((key, batch)) = poll_write(shard) {
            let bytes = bytes_of(&batch);
            shard.recycle(batch);
            shard.handle_written(self.now, key, bytes.len(), true);
            self.written.entry((node, at, key.index)).or_default().extend(bytes);
        }
        while let Some(action) = shard.poll_action() {
            match action {
                Action::Shutdown(key) => shard.handle_end(self.now, key, false),
                Action::Close(key) => shard.handle_closed(key),
                _ => {}
            }
        }
        shard.inspect().check_invariants();
        let is_due = shard.poll_timeout().is_some_and(|due_ms| due_ms <= self.now.ms);
        let is_done = !is_due && !shard.inspect().has_writes();
        self.take_messages(node, at);
        is_done && self.messages.is_empty()
    }

    fn take_messages(&mut self, node: usize, at: usize) {
        let Some(shard) = self.nodes[node].get_mut(at) else { return };
        while let Some(message) = shard.poll_message() {
            match message {
                FromShard::Local(to, message) => {
                    let message = ToShard::Local(ShardId(at as u8), message);
                    self.messages.push_back((node, to.index(), message));
                }
                FromShard::Mesh(ToMesh::Interest { change, .. }) => {
                    let known = ToShard::Mesh(FromMesh::InterestKnown(change));
                    self.messages.push_back((node, at, known));
                }
                FromShard::Mesh(ToMesh::Grid(to, message)) => {
                    let other = usize::from(to.node.number()) - 1;
                    if self.links.contains(&(node.min(other), node.max(other))) {
                        let from = ShardAddress { node: node_id(node), shard: ShardId(at as u8) };
                        let message = ToShard::Mesh(FromMesh::Grid(from, message));
                        self.messages.push_back((other, to.shard.index(), message));
                    }
                }
                FromShard::Mesh(_) => {}
            }
        }
    }

    /// Connects a device that is subscribed to a channel.
    fn connect(
        &mut self,
        at: (usize, usize),
        channel: &str,
        user: Option<&str>,
        is_plain: bool,
    ) -> End {
        let (node, shard) = at;
        let remote = ([127, 0, 0, 1], 50_000).into();
        let key = self.nodes[node][shard].handle_accepted(self.now, Listener::Edge(0), remote);
        let key = key.expect("the node is not going down");
        let path = match user {
            None => format!("/ws?channels={channel}"),
            Some(user) => {
                let key = SigningKey::new(None, TokenAlgorithm::Hs256, KEY).expect("a long key");
                let claims = json!({ "sub": user, "exp": self.now.unix_ms / 1000 + 3600 });
                let token = key.sign(&claims).expect("the key can sign");
                format!("/user?channels={channel}&token={token}")
            }
        };
        let protocol = if is_plain { "" } else { "Sec-WebSocket-Protocol: gridcast.v1\r\n" };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{protocol}\r\n"
        );
        let end = (node, shard, key);
        self.receive(end, request.into_bytes());
        self.written.remove(&(node, shard, key.index));
        end
    }

    /// Connects a device that speaks the device protocol.
    fn device(&mut self, at: (usize, usize), channel: &str, user: Option<&str>) -> End {
        self.connect(at, channel, user, false)
    }

    fn close(&mut self, end: End) {
        let close = [&client_head(0x88, 2)[..], &1000u16.to_be_bytes()].concat();
        self.receive(end, close);
    }

    fn backend(&mut self, node: usize) -> End {
        let key = upgraded(&mut self.nodes[node][0], self.now, Listener::Api, "/ws/v1");
        self.settle();
        self.written.remove(&(node, 0, key.index));
        (node, 0, key)
    }

    fn receive(&mut self, (node, shard, key): End, mut bytes: Vec<u8>) {
        self.nodes[node][shard].handle_bytes(self.now, key, &mut bytes);
        self.take_messages(node, shard);
        self.settle();
    }

    fn call(&mut self, end: End, method: &str, params: &Value) {
        self.receive(end, call(&json!({ "m": method, "p": params, "i": 1 }).to_string()));
    }

    /// Takes the messages that were written to a connection.
    fn taken(&mut self, (node, shard, key): End) -> Vec<Value> {
        let bytes = self.written.remove(&(node, shard, key.index)).unwrap_or_default();
        let (mut rest, mut messages) = (&bytes[..], Vec::new());
        while let [_, second, ..] = *rest {
            let (length, at) = match second {
                126 => (usize::from(u16::from_be_bytes([rest[2], rest[3]])), 4),
                length => (length.into(), 2),
            };
            messages.extend(serde_json::from_slice::<Value>(&rest[at..at + length]).ok());
            rest = &rest[at + length..];
        }
        messages
    }

    /// Takes what a device was told of users: `+ada` for a join, `-ada` for a leave.
    fn told(&mut self, end: End, channel: &str) -> Vec<String> {
        let news = self.taken(end).into_iter().map(|message| {
            assert_eq!(message["p"]["c"], channel, "{message}");
            let sign = match message["e"].as_str() {
                Some("join") => '+',
                Some("leave") => '-',
                _ => panic!("neither a join nor a leave: {message}"),
            };
            format!("{sign}{}", message["p"]["u"].as_str().expect("a user"))
        });
        let mut news: Vec<String> = news.collect();
        news.sort();
        news
    }

    /// Takes the events that a back end was handed.
    fn events(&mut self, end: End) -> Vec<String> {
        let events = self.taken(end).into_iter().filter(|message| message["e"] == "queue.pop");
        let events = events.map(|event| {
            let (p, d) = (&event["p"], &event["p"]["d"]);
            assert_eq!((&p["t"], &p["c"], &p["k"]), (&json!(TOPIC), &json!(""), &d["channel"]));
            let user = d["user"].as_str().map(|user| format!(" {user}")).unwrap_or_default();
            format!("{}{user}", d["event"].as_str().expect("a text"))
        });
        events.collect()
    }
}

const NOTHING: [&str; 0] = [];

#[test]
fn devices_are_told_of_users_at_their_first_connection_and_after_their_last_and_never_of_their_own()
{
    let (mut grid, room) = (Grid::new(&[3]), "room:1");
    let ada = grid.device((0, 0), room, Some("ada"));
    let nobody = grid.device((0, 1), room, None);
    let plain = grid.connect((0, 1), room, None, true);
    let other = grid.device((0, 2), "room:2", Some("eve"));
    assert_eq!((grid.told(ada, room), grid.told(nobody, room)), (vec![], vec![]));
    let first = grid.device((0, 1), room, Some("bob"));
    assert_eq!(grid.told(ada, room), ["+bob"]);
    assert_eq!(grid.told(nobody, room), ["+bob"]);
    assert_eq!(grid.told(first, room), NOTHING, "who comes knows nobody, and not itself");
    let second = grid.connect((0, 2), room, Some("bob"), true);
    let third = grid.device((0, 0), room, Some("bob"));
    grid.pass_ms(10_000);
    grid.close(first);
    grid.pass_ms(10_000);
    assert_eq!((grid.told(ada, room), grid.told(third, room)), (vec![], vec![]));
    grid.close(second);
    grid.close(third);
    grid.pass_ms(2900);
    assert_eq!(grid.told(ada, room), NOTHING, "the grace is not over");
    grid.pass_ms(200);
    assert_eq!(grid.told(ada, room), ["-bob"]);
    assert_eq!(grid.told(nobody, room), ["-bob"]);
    assert_eq!(grid.taken(plain), Vec::<Value>::new());
    assert_eq!(grid.told(other, "room:2"), NOTHING);
}

#[test]
fn a_user_who_comes_back_in_time_was_never_away() {
    let (mut grid, room) = (Grid::new(&[2]), "room:1");
    let ada = grid.device((0, 0), room, Some("ada"));
    let bob = grid.device((0, 0), room, Some("bob"));
    assert_eq!(grid.told(ada, room), ["+bob"]);
    grid.close(bob);
    grid.pass_ms(2000);
    let bob = grid.device((0, 1), room, Some("bob"));
    grid.pass_ms(10_000);
    assert_eq!((grid.told(ada, room), grid.told(bob, room)), (vec![], vec![]));
    grid.call(bob, "unsubscribe", &json!({ "c": [room] }));
    grid.pass_ms(2000);
    grid.call(bob, "subscribe", &json!({ "c": [room] }));
    grid.pass_ms(10_000);
    assert_eq!(grid.told(ada, room), NOTHING);
}

#[test]
fn a_client_that_becomes_another_user_leaves_as_one_and_joins_as_the_other() {
    let (mut grid, room) = (Grid::new(&[2]), "room:1");
    let ada = grid.device((0, 0), room, Some("ada"));
    let bob = grid.device((0, 1), room, Some("bob"));
    let backend = grid.backend(0);
    assert_eq!(grid.told(ada, room), ["+bob"]);
    let params = json!({ "u": "bob", "f": "set_context_value", "a": ["user_id", "eve"] });
    grid.call(backend, "user.call", &params);
    assert_eq!(grid.told(ada, room), ["+eve"]);
    grid.pass_ms(3100);
    assert_eq!(
        (grid.told(ada, room), grid.told(bob, room)),
        (vec!["-bob".into()], vec!["-bob".into()])
    );
}

#[test]
fn back_ends_are_told_of_users_and_of_channels_that_are_occupied_and_vacated() {
    let (mut grid, room) = (Grid::new(&[2]), "told:1");
    let backend = grid.backend(0);
    grid.call(backend, "queue.pop", &json!({ "t": [TOPIC] }));
    let nobody = grid.connect((0, 1), room, None, true);
    assert_eq!(grid.events(backend), ["occupied"]);
    let ada = grid.device((0, 0), room, Some("ada"));
    assert_eq!(grid.events(backend), ["join ada"]);
    grid.close(nobody);
    grid.pass_ms(5000);
    assert_eq!(grid.events(backend), NOTHING);
    grid.close(ada);
    grid.pass_ms(2900);
    assert_eq!(grid.events(backend), NOTHING);
    grid.pass_ms(200);
    assert_eq!(grid.events(backend), ["leave ada", "vacated"]);
}

#[test]
fn what_finds_a_full_topic_is_told_when_there_is_room_unless_it_is_over() {
    let (mut grid, room) = (Grid::new(&[1]), "told:1");
    let users = ["a", "b", "c", "d"];
    let devices = users.map(|user| grid.device((0, 0), room, Some(user)));
    grid.pass_ms(5000);
    // The topic holds three events: that the channel is occupied, and two users.
    grid.close(devices[3]);
    grid.pass_ms(5000);
    let backend = grid.backend(0);
    grid.call(backend, "queue.pop", &json!({ "t": [TOPIC] }));
    grid.pass_ms(5000);
    let mut events = grid.events(backend);
    events.sort();
    let joins: Vec<&String> = events.iter().filter(|event| event.starts_with("join")).collect();
    // A user whose join was told has left since, and one whose join was not told is not mentioned.
    assert_eq!(events.iter().filter(|event| *event == "occupied").count(), 1, "{events:?}");
    assert_eq!(joins.len(), 3 + usize::from(events.contains(&"leave d".into())), "{events:?}");
    for user in &users[..3] {
        assert!(events.contains(&format!("join {user}")), "{events:?}");
    }
}

#[test]
fn users_are_known_over_the_grid_and_leave_when_their_node_is_lost() {
    let (mut grid, room) = (Grid::new(&[2, 1, 2]), "told:1");
    let backends = [0, 2].map(|node| grid.backend(node));
    for backend in backends {
        grid.call(backend, "queue.pop", &json!({ "t": [TOPIC] }));
    }
    let ada = grid.device((0, 1), room, Some("ada"));
    let bob = grid.device((1, 0), room, Some("bob"));
    let eve = grid.device((2, 1), room, Some("eve"));
    let too = grid.device((2, 0), room, Some("ada"));
    grid.device((1, 0), room, Some("eve"));
    assert_eq!(grid.told(ada, room), ["+bob", "+eve"]);
    assert_eq!(grid.told(bob, room), ["+eve"]);
    assert_eq!((grid.told(eve, room), grid.told(too, room)), (vec![], vec![]));
    grid.pass_ms(10_000);
    let _before = backends.map(|backend| grid.events(backend));
    grid.kill(1);
    // 4 seconds have gone by when a loss is noticed.
    grid.pass_ms(950);
    for device in [ada, eve, too] {
        assert_eq!(grid.told(device, room), ["-bob"]);
    }
    let events: Vec<String> = backends.into_iter().flat_map(|end| grid.events(end)).collect();
    assert_eq!(events, ["leave bob"]);
    grid.pass_ms(20_000);
    for device in [ada, eve, too] {
        assert_eq!(grid.told(device, room), NOTHING);
    }
}

#[test]
fn whichever_node_is_lost_nobody_joins_again_and_those_on_it_leave() {
    for number in 0..12 {
        for lost in 0..3 {
            let (mut grid, room) = (Grid::new(&[1, 2, 1]), format!("told:{number}"));
            let devices =
                [0, 1, 2].map(|node| grid.device((node, 0), &room, Some(&format!("u{node}"))));
            let backends: Vec<End> =
                (0..3).filter(|&node| node != lost).map(|node| grid.backend(node)).collect();
            grid.pass_ms(5000);
            for &backend in &backends {
                grid.call(backend, "queue.pop", &json!({ "t": [TOPIC] }));
                grid.events(backend);
            }
            let _before = devices.map(|device| grid.told(device, &room));
            grid.kill(lost);
            grid.pass_ms(950);
            let gone = format!("-u{lost}");
            for node in (0..3).filter(|&node| node != lost) {
                let told = grid.told(devices[node], &room);
                assert_eq!(told, [&gone[..]], "{room}, node {lost} is lost");
            }
            let events: Vec<String> = backends.iter().flat_map(|&end| grid.events(end)).collect();
            assert_eq!(events, [format!("leave u{lost}")], "{room}, node {lost} is lost");
        }
    }
}

#[test]
fn a_channel_whose_clients_are_all_lost_is_vacated() {
    for number in 0..12 {
        let (mut grid, room) = (Grid::new(&[1, 1]), format!("told:{number}"));
        grid.device((0, 0), &room, Some("ada"));
        let backend = grid.backend(1);
        grid.pass_ms(5000);
        grid.call(backend, "queue.pop", &json!({ "t": [TOPIC] }));
        grid.events(backend);
        grid.kill(0);
        grid.pass_ms(950);
        assert_eq!(grid.events(backend), ["leave ada", "vacated"], "{room}");
    }
}
