//! Lists of administration: gathers the parts of a list from shards of all nodes, and tells the shard's own.
//!
//! - `mod.rs`: the lists in progress. `nodes.rs`: `node.list`. `throughput.rs`: messages per second.

mod nodes;
mod throughput;

use crate::address::{NodeId, ShardAddress};
use crate::message::{KnownNodes, ListAnswer, Ticket};
use crate::metrics::Counters;
use crate::protocol::api::{ListCall, Listing};
use crate::shard::turn::{Step, Turn};
use nodes::NodesInProgress;
use throughput::Throughput;

pub(super) use throughput::Rates;

/// The number of lists that one shard gathers at a time. Beyond it a call fails with 103.
const LISTS_MAX: usize = 16;

/// The part of `limits.answer_ms` that a list may take: one less this part of it. The rest is for the answer.
const SPARE_PART: u64 = 8;

/// The lists that back ends of this shard have asked for, and what the shard tells of itself.
#[derive(Debug)]
pub(super) struct Lists {
    // At most `LISTS_MAX`.
    gathered: Vec<Gathered>,
    throughput: Throughput,
    // When the shard was created, on its clock.
    started_ms: u64,
}

/// A list in progress.
#[derive(Debug)]
struct Gathered {
    ticket: Ticket,
    // When the list is answered with what has come, on the shard's clock.
    deadline_ms: u64,
    nodes: NodesInProgress,
}

impl Lists {
    /// Creates the part of a shard that is created now.
    pub(super) fn new(now_ms: u64) -> Self {
        let throughput = Throughput::new(now_ms);
        Self { gathered: Vec::new(), throughput, started_ms: now_ms }
    }

    /// Returns how long the shard has been running, in milliseconds.
    pub(super) fn uptime_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.started_ms)
    }

    /// Returns how many messages the shard receives and delivers per second.
    pub(super) fn rates(&self, now_ms: u64, counters: &Counters) -> Rates {
        self.throughput.rates(now_ms, counters)
    }

    /// Whether one more list may be gathered.
    pub(super) fn has_room(&self) -> bool {
        self.gathered.len() < LISTS_MAX
    }

    /// Begins to gather a list. A [`Step::Listed`] with the ticket follows.
    pub(super) fn begin(&mut self, turn: &mut Turn, ticket: Ticket, call: &ListCall) {
        let answer_ms = turn.settings.limits.answer_ms;
        let deadline_ms = turn.now.ms + answer_ms - answer_ms / SPARE_PART;
        let nodes = match call {
            ListCall::Nodes => NodesInProgress::begin(turn, ticket),
        };
        self.gathered.push(Gathered { ticket, deadline_ms, nodes });
    }

    /// Handles the nodes that the mesh knows of. Returns them if no list has asked for them.
    pub(super) fn handle_nodes(
        &mut self,
        turn: &mut Turn,
        ticket: Ticket,
        nodes: Box<KnownNodes>,
    ) -> Option<Box<KnownNodes>> {
        let Some(at) = self.find(ticket) else { return Some(nodes) };
        self.gathered[at].nodes.handle_nodes(turn, ticket, *nodes);
        self.settle(turn, at);
        None
    }

    /// Handles the answer of a shard. One to a list that is settled is ignored.
    pub(super) fn handle_answer(
        &mut self,
        turn: &mut Turn,
        from: ShardAddress,
        ticket: Ticket,
        answer: ListAnswer,
    ) {
        let Some(at) = self.find(ticket) else { return };
        match answer {
            ListAnswer::Figures(figures) => self.gathered[at].nodes.handle_figures(from, *figures),
        }
        self.settle(turn, at);
    }

    /// Notes that a shard could not be asked.
    pub(super) fn handle_not_asked(&mut self, turn: &mut Turn, ticket: Ticket, to: ShardAddress) {
        if let Some(at) = self.find(ticket) {
            self.gathered[at].nodes.give_up(to.node);
            self.settle(turn, at);
        }
    }

    /// Stops waiting for a node that has become unreachable.
    pub(super) fn handle_node_down(&mut self, turn: &mut Turn, node: NodeId) {
        for at in (0..self.gathered.len()).rev() {
            self.gathered[at].nodes.give_up(node);
            self.settle(turn, at);
        }
    }

    /// Settles the lists whose time is over with what has come. To be called once per turn.
    pub(super) fn handle_turn(&mut self, turn: &mut Turn) {
        self.throughput.handle_turn(turn.now.ms, &turn.counters);
        for at in (0..self.gathered.len()).rev() {
            if self.gathered[at].deadline_ms <= turn.now.ms {
                self.gathered[at].nodes.give_up_all();
                self.settle(turn, at);
            }
        }
    }

    /// Returns when the next turn has something to do, on the shard's clock.
    pub(super) fn next_turn(&self) -> Option<u64> {
        self.gathered.iter().map(|list| list.deadline_ms).min()
    }

    fn find(&self, ticket: Ticket) -> Option<usize> {
        self.gathered.iter().position(|list| list.ticket == ticket)
    }

    /// Answers the list at this place if all its parts have come.
    fn settle(&mut self, turn: &mut Turn, at: usize) {
        if self.gathered[at].nodes.is_complete() {
            let Gathered { ticket, nodes, .. } = self.gathered.swap_remove(at);
            let listing = Box::new(Listing::Nodes(nodes.finish()));
            turn.push_step(Step::Listed(ticket, listing));
        }
    }
}
