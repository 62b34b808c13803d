//! Last wills: the clients of a lost node are reported as closed, by one of the other nodes. Also redelivery of events
//! whose consumer is on another node. The shards of several nodes are values, and the test itself is the mesh.

#![forbid(unsafe_code)]

#[path = "support/shard.rs"]
mod shard_value;

use std::collections::BTreeMap;
use std::sync::Arc;

use gridcast::address::{Incarnation, NodeId, ShardAddress, ShardId};
use gridcast::message::{
    ConnectionKey, FromMesh, FromShard, GridMessage, LastWillsMessage, ToMesh, ToShard,
};
use gridcast::queue::{Bounds, WhenFull};
use gridcast::shard::node_state::NodeState;
use gridcast::shard::settings::{EdgeSettings, QueueSettings, RouteSettings, Settings};
use gridcast::shard::{Listener, Now, Priority, Shard};
use shard_value::upgraded;

const POP: &str = r#"{"m":"queue.pop","p":{"t":["doors"]},"i":1}"#;

/// A `queue.pop` whose events must be acknowledged.
const POP_TAGGED: &str = r#"{"m":"queue.pop","p":{"t":["doors"],"a":true,"w":100},"i":1}"#;

/// The number of clients of the lost node: more than one turn registers or reports.
const CLIENTS: usize = 1500;

/// Three nodes of one shard each.
struct Grid {
    now: Now,
    when_full: WhenFull,
    shards: BTreeMap<u16, Shard>,
    // All text that was written to the back ends and clients of each node.
    written: BTreeMap<u16, String>,
    // The node of the watcher of each node.
    watchers: BTreeMap<u16, u16>,
}

impl Grid {
    fn new() -> Self {
        Self::whose_full_topics(WhenFull::Hold)
    }

    fn whose_full_topics(when_full: WhenFull) -> Self {
        let now = Now { ms: 0, us: 0, unix_ms: 1_700_000_000_000 };
        let (written, watchers) = Default::default();
        let mut grid = Self { now, when_full, shards: BTreeMap::new(), written, watchers };
        for number in 1..=3 {
            grid.start(number);
        }
        for (here, there) in [(1, 2), (1, 3), (2, 3)] {
            grid.link(here, there, 1);
        }
        grid.run();
        grid
    }

    fn start(&mut self, number: u16) {
        let settings = settings(node(number), self.when_full);
        self.shards.insert(number, shard_value::shard(&settings, self.now));
    }

    /// Makes two nodes reachable for each other. `incarnation` is when the second one was started.
    fn link(&mut self, here: u16, there: u16, incarnation: u64) {
        let up = |number, incarnation| {
            let incarnation = Incarnation(incarnation);
            FromMesh::NodeUp { node: node(number), shards: 1, incarnation }
        };
        self.tell(here, up(there, incarnation));
        self.tell(there, up(here, 1));
    }

    /// Makes two nodes unreachable for each other.
    fn cut(&mut self, here: u16, there: u16) {
        self.tell(here, FromMesh::NodeDown(node(there)));
        self.tell(there, FromMesh::NodeDown(node(here)));
    }

    /// Removes a node, and has the others declare it dead.
    fn kill(&mut self, number: u16) {
        self.shards.remove(&number);
        for other in self.others(number) {
            self.tell(other, FromMesh::NodeDown(node(number)));
        }
        self.declare_dead(number);
        self.run();
    }

    /// Has the other nodes declare a node dead.
    fn declare_dead(&mut self, number: u16) {
        for other in self.others(number) {
            self.tell(
                other,
                FromMesh::NodeDead { node: node(number), incarnation: Incarnation(1) },
            );
        }
    }

    fn others(&self, number: u16) -> Vec<u16> {
        self.shards.keys().copied().filter(|&other| other != number).collect()
    }

    fn tell(&mut self, number: u16, message: FromMesh) {
        if let Some(shard) = self.shards.get_mut(&number) {
            shard.handle_message(self.now, ToShard::Mesh(message));
        }
    }

    /// Runs all shards until none has anything to do.
    fn run(&mut self) {
        for _ in 0..200 {
            for number in self.shards.keys().copied().collect::<Vec<_>>() {
                self.turn(number);
            }
        }
    }

    fn turn(&mut self, number: u16) {
        let shard = self.shards.get_mut(&number).unwrap();
        shard.handle_turn(self.now);
        while let Some((key, batch)) = shard.poll_write(Priority::Urgent) {
            let bytes: Vec<u8> = batch.iter().flat_map(|chunk| chunk.bytes()).copied().collect();
            shard.recycle(batch);
            shard.handle_written(self.now, key, bytes.len(), true);
            *self.written.entry(number).or_default() += &String::from_utf8_lossy(&bytes);
        }
        while let Some(message) = self.shards.get_mut(&number).unwrap().poll_message() {
            let FromShard::Mesh(ToMesh::Grid(to, message)) = message else { continue };
            if let GridMessage::LastWills(_, LastWillsMessage::Begin(_)) = message {
                self.watchers.insert(number, to.node.number());
            }
            if let Some(shard) = self.shards.get_mut(&to.node.number()) {
                let from = ShardAddress { node: node(number), shard: ShardId(0) };
                shard.handle_message(self.now, ToShard::Mesh(FromMesh::Grid(from, message)));
            }
        }
    }

    fn wait(&mut self, ms: u64) {
        self.now.ms += ms;
        self.now.us += ms * 1000;
        self.run();
    }

    fn connect(&mut self, number: u16, listener: Listener, path: &str) -> ConnectionKey {
        upgraded(self.shards.get_mut(&number).unwrap(), self.now, listener, path)
    }

    fn connect_clients(&mut self, number: u16, count: usize) -> Vec<ConnectionKey> {
        (0..count).map(|_| self.connect(number, Listener::Edge(0), "/ws")).collect()
    }

    /// Opens and closes clients of node 3.
    fn pass_clients(&mut self, count: usize) {
        for key in self.connect_clients(3, count) {
            self.end(3, key);
        }
        self.run();
    }

    /// Breaks a connection.
    fn end(&mut self, number: u16, key: ConnectionKey) {
        self.shards.get_mut(&number).unwrap().handle_end(self.now, key, true);
    }

    /// Connects a back end to a node, which consumes the topic.
    fn consume(&mut self, number: u16) -> ConnectionKey {
        self.consume_with(number, POP)
    }

    fn consume_with(&mut self, number: u16, pop: &str) -> ConnectionKey {
        let key = self.connect(number, Listener::Api, "/ws/v1");
        self.call(number, key, pop);
        self.run();
        key
    }

    fn call(&mut self, number: u16, key: ConnectionKey, call: &str) {
        let mut frame = shard_value::call(call);
        self.shards.get_mut(&number).unwrap().handle_bytes(self.now, key, &mut frame);
    }

    /// Returns how often a text was written to back ends, on all nodes.
    fn count(&self, text: &str) -> usize {
        self.written.values().map(|written| written.matches(text).count()).sum()
    }

    /// Returns how many close events were written, by any node.
    fn count_closed(&self) -> usize {
        self.count(r#""d":{"event":"close","#)
    }

    fn count_lost(&self) -> usize {
        self.count(r#""d":{"event":"close","code":1006,"reason":"node_lost"}"#)
    }
}

#[test]
fn the_clients_of_a_dead_node_are_reported_once() {
    let mut grid = Grid::new();
    grid.connect_clients(3, CLIENTS);
    let gone = grid.connect(3, Listener::Edge(0), "/ws");
    grid.run();
    grid.end(3, gone);
    grid.run();
    grid.consume(1);
    grid.kill(3);
    grid.wait(1000);
    assert_eq!(grid.count_lost(), CLIENTS);
    let of_node_3 = r#"{"e":"queue.pop","p":{"n":3,"#;
    assert!(grid.count(of_node_3) >= CLIENTS, "they are reported as that node's");
    grid.declare_dead(3);
    grid.wait(60_000);
    assert_eq!(grid.count_lost(), CLIENTS);
}

#[test]
fn of_two_watchers_the_later_one_reports() {
    let mut grid = Grid::new();
    grid.connect_clients(3, 10);
    grid.run();
    let first = grid.watchers[&3];
    grid.cut(3, first);
    grid.run();
    assert_ne!(grid.watchers[&3], first, "another node is the watcher");
    grid.connect_clients(3, 10);
    grid.run();
    grid.consume(1);
    grid.kill(3);
    grid.wait(1000);
    assert_eq!(grid.count_lost(), 20);
}

#[test]
fn a_node_that_was_declared_dead_and_is_back_reports_its_clients_as_open() {
    let mut grid = Grid::new();
    grid.connect_clients(3, CLIENTS);
    grid.run();
    for other in [1, 2] {
        grid.cut(3, other);
    }
    grid.declare_dead(3);
    grid.wait(500);
    for other in [1, 2] {
        grid.link(other, 3, 1);
    }
    grid.tell(3, FromMesh::Readmitted);
    grid.wait(60_000);
    grid.consume(3);
    grid.consume(1);
    assert_eq!(grid.count_lost(), 0, "it was back before they were reported");
    let found = r#""d":{"event":"open","reason":"node_found","remote":"127.0.0.1:50000"}"#;
    assert_eq!(grid.count(found), CLIENTS);

    grid.kill(3);
    grid.wait(1000);
    assert_eq!(grid.count_lost(), CLIENTS, "and the node has a watcher again");
}

#[test]
fn a_client_that_is_reported_as_found_is_reported_with_its_context() {
    let mut grid = Grid::new();
    let back_end = grid.consume(3);
    grid.connect_clients(3, 1);
    grid.run();
    let opened = &grid.written[&3];
    let (_, rest) = opened.split_once(r#""p":{"n":3,"c":""#).expect("the open event");
    let client = rest.split('"').next().expect("its id").to_owned();
    let call = format!(
        r#"{{"m":"conn.call","p":{{"c":"{client}","f":"set_context_value","a":["user_id",7]}}}}"#
    );
    grid.call(3, back_end, &call);
    for other in [1, 2] {
        grid.cut(3, other);
    }
    grid.declare_dead(3);
    for other in [1, 2] {
        grid.link(other, 3, 1);
    }
    grid.tell(3, FromMesh::Readmitted);
    grid.run();
    let found = r#""reason":"node_found","remote":"127.0.0.1:50000","context":{"user_id":7}}"#;
    assert_eq!(grid.count(found), 1);
}

#[test]
fn the_clients_of_a_restarted_node_are_reported_as_lost() {
    let mut grid = Grid::new();
    grid.connect_clients(3, 10);
    grid.run();
    grid.consume(1);
    grid.start(3);
    for other in [1, 2] {
        grid.tell(other, FromMesh::NodeDown(node(3)));
        grid.link(other, 3, 2);
    }
    grid.run();
    grid.connect_clients(3, 5);
    grid.wait(1000);
    assert_eq!(grid.count_lost(), 10);
}

#[test]
fn reports_wait_for_room_in_their_topic() {
    let mut grid = Grid::new();
    grid.connect_clients(3, CLIENTS);
    grid.run();
    grid.kill(3);
    grid.wait(1000);
    for shard in grid.shards.values() {
        assert_ne!(shard.poll_timeout(), Some(0), "nobody is restless meanwhile");
        assert!(shard.inspect().queued_messages() <= TOPIC_MESSAGES);
    }
    grid.consume(2);
    assert_eq!(grid.count_lost(), CLIENTS);
}

#[test]
fn an_event_in_flight_to_a_consumer_that_has_ended_goes_to_another() {
    let mut grid = Grid::new();
    let leaving = grid.consume(2);
    grid.call(2, leaving, r#"{"m":"queue.unpop","p":{},"i":2}"#);
    grid.end(2, leaving);
    // The topic's home does not know of the end yet.
    grid.connect_clients(3, 10);
    grid.run();
    grid.consume(1);
    assert_eq!(grid.count(r#""d":{"event":"open""#), 10);
}

#[test]
fn clients_whose_close_event_was_lost_with_their_node_are_reported_once() {
    let mut grid = Grid::new();
    // More than their topic has room for.
    grid.pass_clients(CLIENTS);
    grid.kill(3);
    grid.consume(1);
    grid.wait(1000);
    assert_eq!((grid.count_lost(), grid.count_closed()), (CLIENTS, CLIENTS));
    grid.declare_dead(3);
    grid.wait(60_000);
    assert_eq!(grid.count_closed(), CLIENTS);
}

#[test]
fn clients_whose_close_event_was_consumed_are_not_reported_again() {
    for consumer in [1, 3] {
        let mut grid = Grid::new();
        grid.pass_clients(CLIENTS);
        grid.consume(consumer);
        grid.kill(3);
        grid.consume(2);
        grid.wait(60_000);
        assert_eq!((grid.count_lost(), grid.count_closed()), (0, CLIENTS));
    }
}

#[test]
fn a_new_watcher_is_told_of_clients_whose_close_event_is_still_in_the_topic() {
    for is_taken in [false, true] {
        let mut grid = Grid::new();
        grid.connect_clients(3, 10);
        grid.pass_clients(CLIENTS);
        let first = grid.watchers[&3];
        grid.cut(3, first);
        grid.run();
        let second = grid.watchers[&3];
        assert_ne!(second, first, "another node is the watcher");
        if is_taken {
            grid.consume(second);
        }
        grid.kill(3);
        grid.consume(first);
        grid.wait(1000);
        let lost = if is_taken { 10 } else { 10 + CLIENTS };
        assert_eq!((grid.count_lost(), grid.count_closed()), (lost, 10 + CLIENTS));
    }
}

#[test]
fn a_first_watcher_is_told_of_clients_whose_close_event_is_still_in_the_topic() {
    let mut grid = Grid::new();
    for other in [1, 2] {
        grid.cut(3, other);
    }
    grid.pass_clients(CLIENTS);
    for other in [1, 2] {
        grid.link(other, 3, 1);
    }
    grid.run();
    grid.kill(3);
    grid.consume(1);
    grid.wait(1000);
    assert_eq!((grid.count_lost(), grid.count_closed()), (CLIENTS, CLIENTS));
}

#[test]
fn a_close_event_that_was_dropped_as_the_oldest_is_not_reported() {
    let mut grid = Grid::whose_full_topics(WhenFull::DropOldest);
    grid.pass_clients(CLIENTS);
    // The topic holds the events of the clients that ended last.
    let kept = grid.shards[&3].inspect().queued_messages();
    assert!(0 < kept && kept <= TOPIC_MESSAGES);
    grid.kill(3);
    grid.consume(1);
    grid.wait(1000);
    assert_eq!((grid.count_lost(), grid.count_closed()), (kept, kept));
}

#[test]
fn a_close_event_that_a_full_topic_refused_is_not_reported() {
    let mut grid = Grid::whose_full_topics(WhenFull::Close);
    grid.connect_clients(3, CLIENTS);
    grid.run();
    let there = grid.shards[&3].inspect().report().clients as usize;
    assert!(
        0 < there && there <= TOPIC_MESSAGES,
        "the others were closed, and their close refused"
    );
    grid.kill(3);
    grid.consume(1);
    grid.wait(1000);
    assert_eq!((grid.count_lost(), grid.count_closed()), (there, there));
}

#[test]
fn a_close_event_that_was_not_acknowledged_may_be_reported_twice_but_is_never_missing() {
    let mut grid = Grid::new();
    let consumer = grid.consume_with(1, POP_TAGGED);
    grid.pass_clients(10);
    assert_eq!((grid.count_lost(), grid.count_closed()), (0, 10), "all is with the consumer");
    grid.end(1, consumer);
    grid.run();
    grid.kill(3);
    grid.consume(2);
    grid.wait(1000);
    assert_eq!((grid.count_lost(), grid.count_closed()), (10, 20));
}

#[test]
fn an_acknowledged_close_event_is_not_reported_again() {
    let mut grid = Grid::new();
    let consumer = grid.consume_with(1, POP_TAGGED);
    grid.pass_clients(10);
    // Ten were opened, ten closed.
    grid.call(1, consumer, r#"{"m":"queue.ack","p":{"g":19,"u":true},"i":2}"#);
    grid.run();
    grid.kill(3);
    grid.consume(2);
    grid.wait(1000);
    assert_eq!((grid.count_lost(), grid.count_closed()), (1, 11), "all but the last were");
}

#[test]
fn a_home_shard_tells_the_shard_of_a_client_that_its_close_event_has_left() {
    let now = Now { ms: 0, us: 0, unix_ms: 1_700_000_000_000 };
    let of_two = Settings { shards: 2, ..settings(node(3), WhenFull::Hold) };
    let state = Arc::new(NodeState::new(&of_two, Arc::default()));
    let mut shards = [0, 1].map(|number| Shard::new(ShardId(number), &of_two, state.clone(), now));
    // One of the two shards is the home of the topic.
    for shard in &mut shards {
        let up = FromMesh::NodeUp { node: node(1), shards: 1, incarnation: Incarnation(1) };
        shard.handle_message(now, ToShard::Mesh(up));
        let client = upgraded(shard, now, Listener::Edge(0), "/ws");
        shard.handle_end(now, client, true);
    }
    assert_eq!(removed(&mut shards, now), 0, "nobody has taken it");
    let consumer = upgraded(&mut shards[0], now, Listener::Api, "/ws/v1");
    shards[0].handle_bytes(now, consumer, &mut shard_value::call(POP));
    assert_eq!(removed(&mut shards, now), 2);
}

/// Runs the two shards of node 3; returns how many clients they unregistered with their watcher.
fn removed(shards: &mut [Shard; 2], now: Now) -> usize {
    let mut count = 0;
    for turn in 0..100 {
        let (at, other) = (turn % 2, 1 - turn % 2);
        shards[at].handle_turn(now);
        while let Some((key, batch)) = shards[at].poll_write(Priority::Urgent) {
            let bytes = batch.iter().map(|chunk| chunk.bytes().len()).sum();
            shards[at].recycle(batch);
            shards[at].handle_written(now, key, bytes, true);
        }
        while let Some(message) = shards[at].poll_message() {
            match message {
                FromShard::Local(_, message) => {
                    let message = ToShard::Local(ShardId(at as u8), message);
                    shards[other].handle_message(now, message);
                }
                FromShard::Mesh(ToMesh::Grid(
                    _,
                    GridMessage::LastWills(_, LastWillsMessage::Unregister(..)),
                )) => count += 1,
                FromShard::Mesh(_) => {}
            }
        }
    }
    count
}

fn node(number: u16) -> NodeId {
    NodeId::new(number).unwrap()
}

const TOPIC_MESSAGES: usize = 100;

fn settings(node: NodeId, when_full: WhenFull) -> Settings {
    let route = RouteSettings {
        topic: Some("doors".into()),
        tells_open: true,
        tells_close: true,
        ..shard_value::route()
    };
    let base = shard_value::settings();
    Settings {
        node,
        has_mesh: true,
        // Only node 3 has the route. The other nodes know the topic from the messages of node 3.
        edges: match node.number() {
            3 => vec![EdgeSettings { proxy: None, port: 6790, routes: vec![Arc::new(route)] }],
            _ => Vec::new(),
        },
        queue: QueueSettings {
            bounds: Bounds { messages: TOPIC_MESSAGES, bytes: 1 << 16 },
            when_full,
            topics: 2,
            rules: Arc::default(),
            sinks: Arc::default(),
        },
        ..base
    }
}
