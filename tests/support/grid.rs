//! Nodes of one grid, each a process of its own. They share a seed: the node that was started first.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{CONFIG, DEADLINE, Server};

/// The part of the configuration that all nodes of a grid share.
pub const KEY: &str = "correct horse battery staple";

/// The pause between two checks of a condition that needs time on other nodes.
const LOOK: Duration = Duration::from_millis(20);

/// Running nodes with the ids 1, 2, …: the node at index 0 has id 1, and is the others' seed.
pub struct Grid {
    pub nodes: Vec<Server>,
    sections: &'static str,
}

impl Grid {
    /// Starts this number of nodes and waits until each knows all others.
    #[track_caller]
    pub fn new(count: usize) -> Self {
        Self::with(count, "")
    }

    /// Starts nodes with further sections in the configuration.
    #[track_caller]
    pub fn with(count: usize, sections: &'static str) -> Self {
        let mut grid = Self { nodes: Vec::new(), sections };
        (0..count).for_each(|_| grid.join());
        grid.wait_until_whole();
        grid
    }

    /// Starts one more node.
    #[track_caller]
    pub fn join(&mut self) {
        let config = self.config(self.nodes.len(), None);
        self.nodes.push(Server::start(&config));
    }

    /// Restarts a node that has ended, with its id and the port of its mesh.
    #[track_caller]
    pub fn restart(&mut self, index: usize) {
        let config = self.config(index, self.nodes[index].mesh);
        self.nodes[index] = Server::start(&config);
    }

    fn config(&self, index: usize, bind: Option<SocketAddr>) -> String {
        let seeds = self.nodes.first().and_then(|first| first.mesh);
        node_config(index + 1, bind, seeds.as_slice(), KEY) + self.sections
    }

    /// Waits until each node reaches all others.
    #[track_caller]
    pub fn wait_until_whole(&self) -> Duration {
        let ids = 1..=self.nodes.len() as u64;
        let all: Vec<_> = ids.map(|id| (id, "up".to_owned())).collect();
        let start = Instant::now();
        loop {
            let seen: Vec<_> = self.nodes.iter().map(states).collect();
            if seen.iter().all(|states| *states == all) {
                return start.elapsed();
            }
            assert!(start.elapsed() < DEADLINE, "the nodes do not see each other: {seen:?}");
            thread::sleep(LOOK);
        }
    }
}

/// The configuration of a node; without an address the system picks the port of its mesh.
pub fn node_config(id: usize, bind: Option<SocketAddr>, seeds: &[SocketAddr], key: &str) -> String {
    let bind = bind.map_or("127.0.0.1:0".to_owned(), |bind| bind.to_string());
    let seeds: Vec<_> = seeds.iter().map(|seed| format!("\"{seed}\"")).collect();
    let seeds = seeds.join(",");
    let mesh = format!("[mesh]\nbind = \"{bind}\"\nseeds = [{seeds}]\nkey = \"{key}\"\n");
    CONFIG.replacen("[node]", &format!("[node]\nid = {id}"), 1) + &mesh
}

/// Returns the nodes that a node knows of: their ids and their states.
#[track_caller]
pub fn states(node: &Server) -> Vec<(u64, String)> {
    let page = node.get("/v1/nodes").json();
    let rows = page["nodes"].as_array().expect("a list").iter();
    let text = |value: &Value| value.as_str().expect("a state").to_owned();
    rows.map(|row| (row["id"].as_u64().expect("an id"), text(&row["state"]))).collect()
}

/// Checks a condition repeatedly until it holds; returns how long that took.
#[track_caller]
pub fn until_within(limit: Duration, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "it did not come true within {limit:?}");
        thread::sleep(LOOK);
    }
    start.elapsed()
}
