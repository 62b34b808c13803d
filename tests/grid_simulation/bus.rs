//! The ways between the shards of a node and its mesh: in order, and not at once.

use std::collections::VecDeque;

use gridcast::message::{Message, Party};

use crate::random::Random;

/// What is on its way within a node. Shards have their number, the mesh the next.
pub struct Bus {
    // By sender and receiver: when it comes; to a shard: whom it is from, to the mesh: whom it is
    // for.
    ways: Vec<Vec<VecDeque<(u64, Party, Message)>>>,
    delay_ms_max: usize,
}

impl Bus {
    pub fn new(shards: usize, delay_ms_max: usize) -> Self {
        let way = || (0..=shards).map(|_| VecDeque::new()).collect();
        Self { ways: (0..=shards).map(|_| way()).collect(), delay_ms_max }
    }

    pub fn send(
        &mut self,
        random: &mut Random,
        now_ms: u64,
        (from, to): (usize, usize),
        party: Party,
        message: Message,
    ) {
        let delay = random.between(0, self.delay_ms_max) as u64;
        let way = &mut self.ways[from][to];
        // What was sent later does not come sooner.
        let soonest = way.back().map_or(0, |letter| letter.0);
        way.push_back((soonest.max(now_ms + delay), party, message));
    }

    /// The next that has come to a party: from whom it is.
    pub fn poll(&mut self, now_ms: u64, to: usize) -> Option<(usize, Party, Message)> {
        for from in 0..self.ways.len() {
            let way = &mut self.ways[from][to];
            if way.front().is_some_and(|letter| letter.0 <= now_ms) {
                let (_, party, message) = way.pop_front()?;
                return Some((from, party, message));
            }
        }
        None
    }

    pub fn next_due(&self) -> Option<u64> {
        self.ways.iter().flatten().filter_map(VecDeque::front).map(|letter| letter.0).min()
    }
}
