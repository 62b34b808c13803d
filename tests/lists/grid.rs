//! A grid of nodes whose shards are values. Messages arrive at once, and the time passes when a test says so.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use gridcast::address::{Incarnation, NodeId, ShardAddress, ShardId};
use gridcast::message::{
    ConnectionKey, FromMesh, FromShard, KnownNodes, LostNode, Requester, Ticket, ToMesh, ToShard,
    UserCommand,
};
use gridcast::protocol::api::{LinkState, MeshRow, NodeRow, Tally};
use gridcast::shard::node_state::NodeState;
use gridcast::shard::settings::{EdgeSettings, LimitSettings, Settings};
use gridcast::shard::{Listener, Now, Shard};
use serde_json::{Value, json};

use crate::shard_value::{self, bytes_of, call, poll_write, upgraded};

/// The most turns that one call may take.
const TURNS_MAX: usize = 100_000;

/// A shard in a grid: the index of its node, and its number.
pub type Place = (usize, usize);

/// Nodes with the ids 1, 2, …: the node at index 0 has id 1.
pub struct Grid {
    pub nodes: Vec<Vec<Shard>>,
    pub now: Now,
    /// Nodes that do nothing, by their indices.
    pub frozen: BTreeSet<usize>,
    /// Members of the grid without a session, as the mesh of each node tells.
    pub unreachable: Vec<NodeId>,
    /// Nodes that were lost.
    pub lost: Vec<LostNode>,
    /// Whether the meshes do not answer.
    pub is_mesh_silent: bool,
    settings: Vec<Settings>,
    mail: Vec<(Place, ToShard)>,
    // Commands for users whose tallies are gathered, by ticket: the asker, the shards that are awaited, the sum.
    gathered: HashMap<Ticket, (Place, usize, Tally)>,
    // Back ends that read nothing: what is written to them stays in flight.
    deaf: BTreeSet<(usize, ConnectionKey)>,
    // Bytes written to connections, by node.
    output: HashMap<(usize, ConnectionKey), Vec<u8>>,
}

pub fn node_id(index: usize) -> NodeId {
    NodeId::new(index as u16 + 1).expect("a small number")
}

impl Grid {
    /// Starts a node for each number of shards, all of which know each other.
    pub fn new(shards: &[usize]) -> Self {
        let settings: Vec<Settings> = shards
            .iter()
            .enumerate()
            .map(|(index, &shards)| Settings {
                node: node_id(index),
                shards,
                has_mesh: true,
                edges: vec![EdgeSettings {
                    proxy: None,
                    port: 6790,
                    routes: vec![Arc::new(shard_value::route())],
                }],
                ..shard_value::settings()
            })
            .collect();
        let now = Now { ms: 10, us: 10_000, unix_ms: 1_700_000_000_000 };
        let node = |settings: &Settings| {
            let state = Arc::new(NodeState::new(settings, Arc::default()));
            let shard = |index| Shard::new(ShardId(index as u8), settings, state.clone(), now);
            (0..settings.shards).map(shard).collect()
        };
        let nodes = settings.iter().map(node).collect();
        let mut grid = Self {
            nodes,
            now,
            frozen: BTreeSet::new(),
            unreachable: Vec::new(),
            lost: Vec::new(),
            is_mesh_silent: false,
            settings,
            mail: Vec::new(),
            gathered: HashMap::new(),
            deaf: BTreeSet::new(),
            output: HashMap::new(),
        };
        grid.introduce(shards);
        grid
    }

    fn introduce(&mut self, shards: &[usize]) {
        for place in self.places() {
            for (other, &shards) in shards.iter().enumerate().filter(|(other, _)| *other != place.0)
            {
                let incarnation = Incarnation(1);
                let (node, shards) = (node_id(other), shards as u16);
                let up = FromMesh::NodeUp { node, shards, incarnation };
                self.mail.push((place, ToShard::Mesh(up)));
            }
        }
        self.settle();
    }

    /// Every shard of every node.
    pub fn places(&self) -> Vec<Place> {
        let shards = |(node, shards): (usize, &Vec<Shard>)| {
            (0..shards.len()).map(move |shard| (node, shard)).collect::<Vec<_>>()
        };
        self.nodes.iter().enumerate().flat_map(shards).collect()
    }

    /// Changes the limits of every node. Connections that are open keep their timers.
    pub fn set_limits(&mut self, change: impl Fn(&mut LimitSettings)) {
        for (index, settings) in self.settings.iter_mut().enumerate() {
            change(&mut settings.limits);
            let state = Arc::new(NodeState::new(settings, Arc::default()));
            for shard in &mut self.nodes[index] {
                shard.handle_reload(self.now, settings, state.clone());
            }
        }
    }

    /// Delivers messages until there is none.
    pub fn settle(&mut self) {
        loop {
            for place in self.places() {
                while !self.frozen.contains(&place.0)
                    && let Some(message) = self.nodes[place.0][place.1].poll_message()
                {
                    self.route(place, message);
                }
            }
            if self.mail.is_empty() {
                return;
            }
            for ((node, shard), message) in std::mem::take(&mut self.mail) {
                if !self.frozen.contains(&node) {
                    self.nodes[node][shard].handle_message(self.now, message);
                }
            }
        }
    }

    fn route(&mut self, from: Place, message: FromShard) {
        let answer = match message {
            FromShard::Local(to, message) => {
                let message = ToShard::Local(ShardId(from.1 as u8), message);
                return self.mail.push(((from.0, to.index()), message));
            }
            FromShard::Mesh(ToMesh::Grid(to, message)) => {
                let at = ShardAddress { node: node_id(from.0), shard: ShardId(from.1 as u8) };
                let to = (usize::from(to.node.number()) - 1, to.shard.index());
                return self.mail.push((to, ToShard::Mesh(FromMesh::Grid(at, message))));
            }
            FromShard::Mesh(ToMesh::Nodes(_)) if self.is_mesh_silent => return,
            FromShard::Mesh(ToMesh::Nodes(ticket)) => {
                FromMesh::Nodes(ticket, Box::new(self.known_nodes()))
            }
            FromShard::Mesh(ToMesh::Publish(requester, _)) => {
                FromMesh::Published(requester.ticket, Tally::default())
            }
            FromShard::Mesh(ToMesh::ForUsers(requester, command)) => {
                return self.pass_to_others(from, requester, command);
            }
            FromShard::Mesh(ToMesh::Published(ticket, tally)) => return self.add(ticket, tally),
            FromShard::Mesh(ToMesh::Interest { change, .. }) => FromMesh::InterestKnown(change),
            FromShard::Mesh(_) => return,
        };
        self.mail.push((from, ToShard::Mesh(answer)));
    }

    /// Passes a command for users to every shard of the other nodes that work.
    fn pass_to_others(&mut self, from: Place, requester: Requester, command: Arc<UserCommand>) {
        let places: Vec<Place> = self.places();
        let is_asked = |place: &Place| place.0 != from.0 && !self.frozen.contains(&place.0);
        let others: Vec<Place> = places.into_iter().filter(is_asked).collect();
        self.gathered.insert(requester.ticket, (from, others.len() + 1, Tally::default()));
        for place in others {
            let message = FromMesh::ForUsers(requester, command.clone());
            self.mail.push((place, ToShard::Mesh(message)));
        }
        self.add(requester.ticket, Tally::default());
    }

    fn add(&mut self, ticket: Ticket, tally: Tally) {
        let Some((asker, awaited, sum)) = self.gathered.get_mut(&ticket) else { return };
        *sum += tally;
        *awaited -= 1;
        if *awaited == 0 {
            let message = FromMesh::Published(ticket, *sum);
            self.mail.push((*asker, ToShard::Mesh(message)));
        }
    }

    fn known_nodes(&self) -> KnownNodes {
        let rows = self.settings.iter().map(|settings| NodeRow {
            node: settings.node,
            api: settings.api.advertise.clone(),
            mesh: Some(MeshRow {
                address: ([127, 0, 0, 1], 6788).into(),
                state: LinkState::Up,
                version: "0.1.0".into(),
                clients: 0,
            }),
        });
        KnownNodes {
            rows: rows.collect(),
            unreachable: self.unreachable.clone(),
            lost: self.lost.clone(),
        }
    }

    /// Lets a millisecond pass on every node, and each shard have a turn.
    pub fn turn(&mut self) {
        self.now.ms += 1;
        self.now.us += 1000;
        self.now.unix_ms += 1;
        for (node, shard) in self.places() {
            if !self.frozen.contains(&node) {
                self.nodes[node][shard].handle_turn(self.now);
            }
        }
        self.settle();
    }

    /// Opens a connection of a back end on the first shard of a node.
    pub fn back_end(&mut self, node: usize) -> BackEnd {
        let key = upgraded(&mut self.nodes[node][0], self.now, Listener::Api, "/ws/v1");
        self.written(node, key);
        BackEnd { node, key }
    }

    /// Opens a connection of a client.
    pub fn client(&mut self, (node, shard): Place, path: &str) -> ConnectionKey {
        let key = upgraded(&mut self.nodes[node][shard], self.now, Listener::Edge(0), path);
        self.settle();
        key
    }

    /// Ends the connection of a client.
    pub fn gone(&mut self, (node, shard): Place, key: ConnectionKey) {
        let shard = &mut self.nodes[node][shard];
        shard.handle_end(self.now, key, true);
        shard.handle_turn(self.now);
        shard.handle_closed(key);
        self.settle();
    }

    /// Ends the connection of a back end.
    pub fn close(&mut self, back_end: &BackEnd) {
        self.gone((back_end.node, 0), back_end.key);
    }

    /// Makes a back end read nothing from now on.
    pub fn stop_reading(&mut self, back_end: &BackEnd) {
        self.deaf.insert((back_end.node, back_end.key));
    }

    /// Lets a millisecond pass, and writes to all connections of the first shards.
    pub fn turn_and_write(&mut self) {
        self.turn();
        for node in 0..self.nodes.len() {
            self.write_all(node);
        }
        self.settle();
    }

    /// Returns what was written to a connection of the first shard of a node since the last time.
    fn written(&mut self, node: usize, key: ConnectionKey) -> Vec<u8> {
        self.write_all(node);
        self.output.remove(&(node, key)).unwrap_or_default()
    }

    /// Writes what waits for the connections of the first shard of a node.
    fn write_all(&mut self, node: usize) {
        let shard = &mut self.nodes[node][0];
        while let Some((to, batch)) = poll_write(shard) {
            if self.deaf.contains(&(node, to)) {
                continue;
            }
            let bytes = bytes_of(&batch);
            shard.recycle(batch);
            shard.handle_written(self.now, to, bytes.len(), true);
            self.output.entry((node, to)).or_default().extend(bytes);
        }
    }

    /// Sends a call. Its answer is awaited with [`Self::answer`].
    pub fn send(&mut self, back_end: &BackEnd, method: &str, params: Value) {
        let mut frame = call(&json!({ "m": method, "p": params, "i": 1 }).to_string());
        self.nodes[back_end.node][0].handle_bytes(self.now, back_end.key, &mut frame);
        self.settle();
    }

    /// Returns the answer to a call, if it has come.
    pub fn poll_answer(&mut self, back_end: &BackEnd) -> Option<Value> {
        let written = self.written(back_end.node, back_end.key);
        let head = match written.get(1)? {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        Some(serde_json::from_slice(&written[head..]).expect("an answer is JSON"))
    }

    /// Waits for the answer to a call.
    pub fn answer(&mut self, back_end: &BackEnd) -> Value {
        for _ in 0..TURNS_MAX {
            if let Some(answer) = self.poll_answer(back_end) {
                return answer;
            }
            self.turn();
        }
        panic!("no answer");
    }

    /// Sends a call and waits for its result.
    #[track_caller]
    pub fn ask(&mut self, back_end: &BackEnd, method: &str, params: Value) -> Value {
        self.send(back_end, method, params);
        let mut answer = self.answer(back_end);
        assert!(answer["E"].is_null(), "{answer}");
        answer["r"].take()
    }
}

/// A back end that is connected to the first shard of a node.
pub struct BackEnd {
    node: usize,
    key: ConnectionKey,
}
