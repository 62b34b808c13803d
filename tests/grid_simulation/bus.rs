//! The ways between the shards of a node and its mesh: in order, and not at once.

use std::collections::VecDeque;

use gridcast::address::ShardId;
use gridcast::message::{FromMesh, FromShard, ToMesh, ToShard};

use crate::random::Random;

/// The messages in flight within a node.
pub struct Bus {
    // By sender: to each shard. The last sender is the mesh.
    to_shards: Vec<Vec<Way<ToShard>>>,
    // By sender.
    to_mesh: Vec<Way<ToMesh>>,
    delay_ms_max: usize,
}

/// The messages of one sender to one receiver, and when each arrives.
type Way<T> = VecDeque<(u64, T)>;

impl Bus {
    pub fn new(shards: usize, delay_ms_max: usize) -> Self {
        Self {
            to_shards: (0..=shards).map(|_| ways(shards)).collect(),
            to_mesh: ways(shards),
            delay_ms_max,
        }
    }

    /// Sends a message of a shard.
    pub fn send(&mut self, random: &mut Random, now_ms: u64, from: ShardId, message: FromShard) {
        let due_ms = now_ms + random.between(0, self.delay_ms_max) as u64;
        match message {
            FromShard::Local(to, message) => {
                assert_ne!(from, to, "a shard does not write to itself");
                let way = &mut self.to_shards[from.index()][to.index()];
                push(way, due_ms, ToShard::Local(from, message));
            }
            FromShard::Mesh(message) => push(&mut self.to_mesh[from.index()], due_ms, message),
        }
    }

    /// Sends a message of the mesh.
    pub fn send_from_mesh(
        &mut self,
        random: &mut Random,
        now_ms: u64,
        to: ShardId,
        message: FromMesh,
    ) {
        let due_ms = now_ms + random.between(0, self.delay_ms_max) as u64;
        let of_mesh = self.to_shards.last_mut().expect("the mesh is a sender");
        push(&mut of_mesh[to.index()], due_ms, ToShard::Mesh(message));
    }

    /// The next message that has arrived at a shard.
    pub fn poll(&mut self, now_ms: u64, to: ShardId) -> Option<ToShard> {
        self.to_shards.iter_mut().find_map(|ways| pop(&mut ways[to.index()], now_ms))
    }

    /// The next message that has arrived at the mesh, and its sender.
    pub fn poll_for_mesh(&mut self, now_ms: u64) -> Option<(ShardId, ToMesh)> {
        let mut ways = self.to_mesh.iter_mut().zip(0..);
        ways.find_map(|(way, from)| Some((ShardId(from), pop(way, now_ms)?)))
    }

    /// When the next message arrives.
    pub fn next_due(&self) -> Option<u64> {
        let to_shards = self.to_shards.iter().flatten().filter_map(first_due);
        to_shards.chain(self.to_mesh.iter().filter_map(first_due)).min()
    }
}

fn ways<T>(count: usize) -> Vec<Way<T>> {
    (0..count).map(|_| Way::new()).collect()
}

/// Adds a message, which does not arrive before those that were sent earlier.
fn push<T>(way: &mut Way<T>, due_ms: u64, message: T) {
    let soonest_ms = way.back().map_or(0, |(due_ms, _)| *due_ms);
    way.push_back((soonest_ms.max(due_ms), message));
}

fn pop<T>(way: &mut Way<T>, now_ms: u64) -> Option<T> {
    let is_due = first_due(way).is_some_and(|due_ms| due_ms <= now_ms);
    if is_due { way.pop_front().map(|(_, message)| message) } else { None }
}

fn first_due<T>(way: &Way<T>) -> Option<u64> {
    way.front().map(|(due_ms, _)| *due_ms)
}
