//! `user.info` and `channel.info`: asks every shard of every node for what the call names, and merges the parts.

use super::names::NamesInProgress;
use crate::address::{NodeId, ShardAddress};
use crate::message::{ListQuestion, NamesPart, Ticket};
use crate::protocol::api::{NamedRow, NamedRows};
use crate::shard::turn::Turn;

/// The parts of an answer that has a row for each name.
#[derive(Debug)]
pub(super) struct InfoInProgress<R> {
    // The names, in ascending order and each once.
    asked: Vec<Box<str>>,
    pub(super) parts: NamesInProgress<R>,
}

impl<R: NamedRow> InfoInProgress<R> {
    /// Begins an answer with a row for each of these names, which are in ascending order.
    pub(super) fn new(asked: Vec<Box<str>>) -> Self {
        let parts = NamesInProgress::new(asked.len());
        Self { asked, parts }
    }

    /// Asks every shard of these nodes.
    pub(super) fn ask(
        &mut self,
        turn: &mut Turn,
        ticket: Ticket,
        nodes: &[(NodeId, bool)],
        question: impl FnOnce(Vec<Box<str>>) -> ListQuestion,
    ) {
        self.parts.ask(turn, ticket, nodes, &question(self.asked.clone()));
    }

    /// Adds the part of a shard. Rows of other names are dropped.
    pub(super) fn handle_part(&mut self, from: ShardAddress, mut part: NamesPart<R>) {
        part.rows
            .retain(|row| self.asked.binary_search_by(|name| (**name).cmp(row.name())).is_ok());
        self.parts.handle_part(from, part);
    }

    /// Returns the rows of all names. `none` makes the row of a name that no shard knows.
    pub(super) fn finish(self, none: impl Fn(Box<str>) -> R) -> NamedRows<R> {
        let page = self.parts.finish();
        let mut found = page.rows.into_iter().peekable();
        let row = |name: Box<str>| {
            let known = found.next_if(|row| row.name() == &*name);
            known.unwrap_or_else(|| none(name))
        };
        NamedRows { rows: self.asked.into_iter().map(row).collect(), missing: page.missing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::ShardId;
    use crate::protocol::api::ChannelRow;

    #[test]
    fn each_name_has_a_row_that_sums_the_parts_and_others_have_none() {
        let names = ["a", "b", "c"].map(Box::from).to_vec();
        let mut info = InfoInProgress::new(names);
        let node = NodeId::new(1).expect("a small number");
        info.parts.await_node(node, 2);
        let part = |rows: &[(&str, u64)]| {
            let row = |&(name, clients): &(&str, u64)| ChannelRow { name: name.into(), clients };
            NamesPart { rows: rows.iter().map(row).collect(), is_cut: false }
        };
        let from = ShardAddress { node, shard: ShardId(0) };
        info.handle_part(from, part(&[("a", 1), ("c", 2)]));
        info.handle_part(from, part(&[("0", 9), ("bb", 9), ("c", 3)]));
        let rows = info.finish(ChannelRow::empty).rows;
        let rows: Vec<_> = rows.iter().map(|row| (&*row.name, row.clients)).collect();
        assert_eq!(rows, [("a", 1), ("b", 0), ("c", 5)]);
    }
}
