//! `channel.list`, `topic.list` and `backend.list`: asks every shard of every node for its first names, and merges them.
//!
//! A shard that has more names than it may return tells its first ones. Beyond the last of those the counts of
//! all shards are not known, so the page ends there at the latest.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::ask;
use crate::address::{NodeId, ShardAddress};
use crate::message::{ListQuestion, NamesPart, Ticket};
use crate::protocol::api::{NamedRow, Page};
use crate::shard::turn::Turn;

/// A list of names in progress.
#[derive(Debug)]
pub(super) struct NamesInProgress<R> {
    max: usize,
    // The number of shards that have not answered, by node.
    awaited: BTreeMap<NodeId, usize>,
    missing: BTreeSet<NodeId>,
    // The first names: at most `max`.
    rows: BTreeMap<Box<str>, R>,
    // The last name that the page may have. `None`: any.
    last: Option<Box<str>>,
}

impl<R: NamedRow> NamesInProgress<R> {
    /// Begins a page of at most `max` names.
    pub(super) fn new(max: usize) -> Self {
        let (awaited, missing) = (BTreeMap::new(), BTreeSet::new());
        Self { max, awaited, missing, rows: BTreeMap::new(), last: None }
    }

    /// Asks every shard of these nodes.
    pub(super) fn ask(
        &mut self,
        turn: &mut Turn,
        ticket: Ticket,
        nodes: &[(NodeId, bool)],
        question: &ListQuestion,
    ) {
        for &(node, is_reachable) in nodes {
            let shards = turn.roster.shard_count(node).filter(|_| is_reachable);
            let Some(shards) = shards else {
                self.missing.insert(node);
                continue;
            };
            self.await_node(node, shards);
            (0..shards).for_each(|shard| ask(turn, ticket, node, shard, question.clone()));
        }
    }

    /// Waits for this number of shards of a node.
    pub(super) fn await_node(&mut self, node: NodeId, shards: usize) {
        self.awaited.insert(node, shards);
    }

    /// Adds the part of a shard.
    pub(super) fn handle_part(&mut self, from: ShardAddress, part: NamesPart<R>) {
        let Some(awaited) = self.awaited.get_mut(&from.node).filter(|awaited| **awaited > 0) else {
            return;
        };
        *awaited -= 1;
        if let Some(last) = part.rows.last().filter(|_| part.is_cut) {
            self.end_at(last.name().into());
        }
        for row in part.rows {
            if self.last.as_deref().is_some_and(|last| last < row.name()) {
                break;
            }
            match self.rows.entry(row.name().into()) {
                Entry::Vacant(place) => _ = place.insert(row),
                Entry::Occupied(mut place) => place.get_mut().add(row),
            }
        }
        while self.rows.len() > self.max {
            self.rows.pop_last();
            let last = self.rows.last_key_value().map(|(name, _)| name.clone());
            self.last = last.or_else(|| self.last.take());
        }
    }

    /// Ends the page at a name, if it does not end before.
    fn end_at(&mut self, name: Box<str>) {
        if self.last.as_ref().is_some_and(|last| *last <= name) {
            return;
        }
        self.rows.retain(|known, _| *known <= name);
        self.last = Some(name);
    }

    /// Iterates over the rows that have come.
    pub(super) fn rows(&self) -> impl Iterator<Item = &R> {
        self.rows.values()
    }

    /// Stops waiting for a node.
    pub(super) fn give_up(&mut self, node: NodeId) {
        if self.awaited.get_mut(&node).is_some_and(|awaited| std::mem::take(awaited) > 0) {
            self.missing.insert(node);
        }
    }

    /// Stops waiting for anybody.
    pub(super) fn give_up_all(&mut self) {
        let nodes: Vec<NodeId> = self.awaited.keys().copied().collect();
        nodes.into_iter().for_each(|node| self.give_up(node));
    }

    /// Whether nobody's answer is awaited.
    pub(super) fn is_complete(&self) -> bool {
        self.awaited.values().all(|awaited| *awaited == 0)
    }

    /// Returns the page with what has come.
    pub(super) fn finish(self) -> Page<R, Box<str>> {
        let next = self.last;
        let rows = self.rows.into_values().collect();
        Page { rows, next, missing: self.missing.into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::ShardId;
    use crate::protocol::api::ChannelRow;

    fn node(number: u16) -> NodeId {
        NodeId::new(number).expect("a small number")
    }

    /// A page that awaits this number of shards of node 1.
    fn page(max: usize, shards: usize) -> NamesInProgress<ChannelRow> {
        let mut page = NamesInProgress::new(max);
        page.awaited.insert(node(1), shards);
        page
    }

    fn add(page: &mut NamesInProgress<ChannelRow>, names: &str, is_cut: bool) {
        let rows =
            names.chars().map(|name| ChannelRow { name: name.to_string().into(), clients: 1 });
        let from = ShardAddress { node: node(1), shard: ShardId(0) };
        page.handle_part(from, NamesPart { rows: rows.collect(), is_cut });
    }

    fn finished(page: NamesInProgress<ChannelRow>) -> (String, Option<Box<str>>) {
        assert!(page.is_complete());
        let page = page.finish();
        let shown = page.rows.iter().map(|row| format!("{}{}", row.name, row.clients));
        (shown.collect::<Vec<_>>().join(" "), page.next)
    }

    #[test]
    fn counts_are_summed_and_a_page_with_all_names_is_the_last() {
        let mut all = page(3, 2);
        add(&mut all, "ab", false);
        add(&mut all, "bc", false);
        assert_eq!(finished(all), ("a1 b2 c1".into(), None));
    }

    #[test]
    fn no_name_beyond_the_first_cut_is_told_in_any_order_of_answers() {
        // The second shard may have more subscribers of "d" and "e" than it could tell.
        let parts = [("abde", false), ("ac", true), ("d", false)];
        for order in [[0, 1, 2], [1, 0, 2], [2, 1, 0], [0, 2, 1]] {
            let mut cut = page(4, 3);
            for part in order {
                let (names, is_cut): (&str, bool) = parts[part];
                add(&mut cut, names, is_cut);
            }
            assert_eq!(finished(cut), ("a2 b1 c1".into(), Some("c".into())), "{order:?}");
        }
    }

    #[test]
    fn more_names_than_the_page_takes_are_left_to_the_next() {
        let mut many = page(2, 2);
        add(&mut many, "bd", false);
        add(&mut many, "ac", false);
        assert_eq!(many.rows.len(), 2);
        assert_eq!(finished(many), ("a1 b1".into(), Some("b".into())));
        let mut one = page(1, 1);
        add(&mut one, "a", true);
        assert_eq!(finished(one), ("a1".into(), Some("a".into())));
    }

    #[test]
    fn a_node_that_is_given_up_is_missing_and_its_later_answers_are_ignored() {
        let mut late = page(2, 2);
        add(&mut late, "a", false);
        late.give_up(node(1));
        add(&mut late, "a", false);
        late.give_up(node(1));
        let page = late.finish();
        assert_eq!((page.rows[0].clients, page.missing), (1, vec![node(1)]));
    }
}
