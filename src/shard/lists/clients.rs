//! `client.list`: asks one node after the other, all shards of a node at once, until the page is full.
//!
//! The order of clients is that of nodes, and of *places* within a node. The place of a client follows from its
//! shard and its slot in the shard's table of connections, so it does not change while the client is connected.
//! The shards of a node look at the same slots at about the same time: their answers fit together, and little is
//! asked for in vain.

use std::collections::{BTreeSet, VecDeque};

use super::ask;
use crate::address::{ClientId, NodeId, ShardAddress};
use crate::message::{ClientsPart, ClientsQuestion, ListQuestion, Ticket};
use crate::protocol::api::{ClientCursor, ClientFilter, ClientRow, ClientsCall, Page};
use crate::shard::turn::Turn;

/// The least number of clients that a shard is asked for, as far as the page allows.
const ASKED_MIN: usize = 64;

/// A `client.list` in progress.
#[derive(Debug)]
pub(super) struct ClientsInProgress {
    call: Box<ClientsCall>,
    // When shards answer with what they have found, on this shard's clock.
    walk_until_ms: u64,
    // The nodes that are left, with the answer to whether they can be reached, in the order of their ids.
    nodes: VecDeque<(NodeId, bool)>,
    rows: Vec<ClientRow>,
    missing: BTreeSet<NodeId>,
    // The shards that are asked now.
    round: Option<Round>,
    next: Option<ClientCursor>,
}

/// One question to shards of a node.
#[derive(Debug)]
struct Round {
    node: NodeId,
    shards: usize,
    // The number of shards that have not answered.
    awaited: usize,
    found: Vec<(u64, ClientRow)>,
    // The first place that some shard has not looked at. `None`: all were looked at.
    covered: Option<u64>,
}

impl ClientsInProgress {
    /// Begins a page.
    pub(super) fn new(call: Box<ClientsCall>, walk_until_ms: u64) -> Self {
        let (nodes, rows, missing) = (VecDeque::new(), Vec::new(), BTreeSet::new());
        Self { call, walk_until_ms, nodes, rows, missing, round: None, next: None }
    }

    /// Asks the first of these nodes that may have clients of the page.
    pub(super) fn ask(&mut self, turn: &mut Turn, ticket: Ticket, nodes: &[(NodeId, bool)]) {
        let call = &self.call;
        let ids = call.filter.clients.as_ref();
        let owners: Option<BTreeSet<NodeId>> =
            ids.map(|ids| ids.iter().map(|id| id.node()).collect());
        let is_asked = |node: NodeId| {
            call.after.is_none_or(|after| after.node <= node)
                && call.node.is_none_or(|only| only == node)
                && owners.as_ref().is_none_or(|owners| owners.contains(&node))
        };
        self.nodes = nodes.iter().copied().filter(|(node, _)| is_asked(*node)).collect();
        if let Some(node) = call.node
            && !nodes.iter().any(|(known, _)| *known == node)
        {
            self.missing.insert(node);
        }
        let from = call.after;
        self.ask_next_node(turn, ticket, from);
    }

    /// Asks the next node, from a place on if that is given for it.
    fn ask_next_node(&mut self, turn: &mut Turn, ticket: Ticket, from: Option<ClientCursor>) {
        while let Some((node, is_reachable)) = self.nodes.pop_front() {
            let shards = turn.roster.shard_count(node).filter(|_| is_reachable);
            let Some(shards) = shards else {
                self.missing.insert(node);
                continue;
            };
            let from = from.filter(|from| from.node == node).map_or(0, |from| from.place);
            self.ask_round(turn, ticket, (node, shards), from);
            if self.round.is_some() {
                return;
            }
        }
    }

    /// Asks the shards of a node that may have clients at this place or behind it.
    fn ask_round(
        &mut self,
        turn: &mut Turn,
        ticket: Ticket,
        (node, shards): (NodeId, usize),
        from: u64,
    ) {
        let left = self.call.max - self.rows.len();
        let max = left.div_ceil(shards).max(ASKED_MIN).min(self.call.max) as u32;
        let within_ms = self.walk_until_ms.saturating_sub(turn.now.ms) as u32;
        let mut awaited = 0;
        for shard in 0..shards {
            let Some(slot) = slot_of(from, shard, shards) else { continue };
            let ids = self.call.filter.clients.as_ref();
            let ids = ids.map(|ids| ids_of(turn, ids, node, shard));
            if ids.as_ref().is_some_and(Vec::is_empty) {
                continue;
            }
            let filter = ClientFilter { clients: ids, ..self.call.filter.clone() };
            let question = ClientsQuestion { filter, from: slot, max, within_ms };
            ask(turn, ticket, node, shard, ListQuestion::Client(Box::new(question)));
            awaited += 1;
        }
        let round = Round { node, shards, awaited, found: Vec::new(), covered: None };
        self.round = (awaited > 0).then_some(round);
    }

    /// Adds the part of a shard. With the last one of the node the page goes on or is complete.
    pub(super) fn handle_part(
        &mut self,
        turn: &mut Turn,
        ticket: Ticket,
        from: ShardAddress,
        part: ClientsPart,
    ) {
        let Some(round) = self.round.as_mut().filter(|round| round.node == from.node) else {
            return;
        };
        round.add(from, part);
        if round.awaited > 0 {
            return;
        }
        let Some(round) = self.round.take() else { return };
        let (node, shards) = (round.node, round.shards);
        let rest = self.take_in(round);
        let is_over = self.rows.len() >= self.call.max || turn.now.ms >= self.walk_until_ms;
        match rest {
            Some(place) if is_over => self.next = Some(ClientCursor { node, place }),
            Some(place) => {
                self.ask_round(turn, ticket, (node, shards), place);
                if self.round.is_none() {
                    self.ask_next_node(turn, ticket, None);
                }
            }
            None if is_over => self.end_before_next_node(),
            None => self.ask_next_node(turn, ticket, None),
        }
    }

    /// Adds the clients of a round to the page. Returns the place to go on from, if the node may have more.
    fn take_in(&mut self, mut round: Round) -> Option<u64> {
        round.found.sort_unstable_by_key(|(place, _)| *place);
        for (place, row) in round.found {
            if round.covered.is_some_and(|covered| covered <= place) {
                break;
            }
            if self.rows.len() == self.call.max {
                return Some(place);
            }
            self.rows.push(row);
        }
        round.covered
    }

    /// Ends the page at the end of a node.
    fn end_before_next_node(&mut self) {
        let next = self.nodes.front();
        self.next = next.map(|&(node, _)| ClientCursor { node, place: 0 });
    }

    /// Stops waiting for a node, and asks the next one.
    pub(super) fn give_up(&mut self, turn: &mut Turn, ticket: Ticket, node: NodeId) {
        if self.round.take_if(|round| round.node == node).is_some() {
            self.missing.insert(node);
            match turn.now.ms < self.walk_until_ms {
                true => self.ask_next_node(turn, ticket, None),
                false => self.end_before_next_node(),
            }
        }
    }

    /// Stops waiting, and ends the page.
    pub(super) fn give_up_all(&mut self) {
        if let Some(round) = self.round.take() {
            self.missing.insert(round.node);
            self.end_before_next_node();
        }
    }

    /// Whether nobody's answer is awaited.
    pub(super) fn is_complete(&self) -> bool {
        self.round.is_none()
    }

    /// Returns the page with what has come.
    pub(super) fn finish(self) -> Page<ClientRow, ClientCursor> {
        let Self { rows, next, missing, .. } = self;
        Page { rows, next, missing: missing.into_iter().collect() }
    }
}

impl Round {
    fn add(&mut self, from: ShardAddress, part: ClientsPart) {
        self.awaited -= 1;
        let place = |slot: u32| place_of(slot, from.shard.index(), self.shards);
        self.found.extend(part.rows.into_iter().map(|row| (place(row.slot), row.row)));
        if let Some(next) = part.next.map(place) {
            self.covered = Some(self.covered.map_or(next, |covered| covered.min(next)));
        }
    }
}

/// Returns the place of a slot of a shard among all slots of a node of `shards` shards.
fn place_of(slot: u32, shard: usize, shards: usize) -> u64 {
    u64::from(slot) * shards as u64 + shard as u64
}

/// Returns the first slot of a shard that is at a place or behind it. `None`: there is no such slot.
fn slot_of(place: u64, shard: usize, shards: usize) -> Option<u32> {
    let (slot, behind) = (place / shards as u64, place % shards as u64);
    u32::try_from(slot).ok()?.checked_add((behind > shard as u64).into())
}

/// Returns those of the clients whose ids say that they are on this shard.
fn ids_of(turn: &Turn, ids: &[ClientId], node: NodeId, shard: usize) -> Vec<ClientId> {
    let is_there = |id: &ClientId| {
        let at = turn.roster.address_of(*id);
        at.is_some_and(|at| at.node == node && at.shard.index() == shard)
    };
    ids.iter().copied().filter(is_there).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_behind_a_place_is_the_first_one() {
        for shards in [1, 2, 3, 64] {
            for place in 0..500 {
                for shard in 0..shards {
                    let slot = slot_of(place, shard, shards).expect("there are slots");
                    assert!(place_of(slot, shard, shards) >= place);
                    assert!(slot == 0 || place_of(slot - 1, shard, shards) < place);
                }
            }
        }
        assert_eq!(slot_of(u64::MAX, 0, 2), None);
    }
}
