//! Publishes, and commands for users, whose tallies are incomplete: this node's at other nodes, and other nodes' at its shards.

use std::collections::VecDeque;

use super::numbers::ChannelHash;
use crate::address::{Incarnation, NodeId, ShardId};
use crate::message::Ticket;
use crate::protocol::api::Tally;
use crate::slot_map::{SlotKey, SlotMap};

/// The receiver of a sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PublishAsker {
    /// A shard of this node, under its own ticket.
    Shard(ShardId, Ticket),
    /// The mesh of another node, under its own ticket.
    Node(NodeId, Ticket),
}

/// A part of the grid that counts subscribers of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counter {
    /// A shard of this node.
    Shard(ShardId),
    /// Another node.
    Node(NodeId),
}

/// A publish that begins to wait for tallies.
#[derive(Debug)]
pub(super) struct NewPublish {
    /// Receives the sum.
    pub asker: PublishAsker,
    /// The channel. `None`: a command for users, of which no numbers are kept.
    pub channel: Option<ChannelHash>,
    /// Whether all subscribers are to get the message.
    pub is_for_all: bool,
    /// The counters whose tallies complete the sum.
    pub awaited: Vec<Counter>,
    /// Counters that have subscribers and are not waited for.
    pub silent: Vec<Counter>,
    /// When waiting ends, in milliseconds: never before the deadline of an earlier publish.
    pub deadline_ms: u64,
}

/// A tally that was added to a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AddedTally {
    /// The channel. `None`: a command for users, of which no numbers are kept.
    pub channel: Option<ChannelHash>,
    /// Whether the tally counts all subscribers of its counter.
    pub is_of_all: bool,
}

/// A publish whose tallies are complete, or whose deadline has passed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Counted {
    /// Receives the sum.
    pub asker: PublishAsker,
    /// The channel. `None`: a command for users, of which no numbers are kept.
    pub channel: Option<ChannelHash>,
    /// The sum of the tallies.
    pub tally: Tally,
    /// The counters that gave no tally.
    pub silent: Vec<Counter>,
}

/// Pending publishes at a time. If there are so many, a further publish of this node is not sent to other
/// nodes, and one of another node is not answered. Either way the nodes that are not asked count with their
/// last known subscribers.
const PENDING_MAX: usize = 1 << 16;

/// All publishes that wait for tallies.
#[derive(Debug, Default)]
pub(super) struct PendingPublishes {
    waiting: SlotMap<OpenPublish>,
    // In the order in which the publishes were opened, which is also that of the deadlines. The deadline of
    // a complete publish is dropped when it reaches the front.
    deadlines: VecDeque<(u64, Ticket)>,
}

#[derive(Debug)]
struct OpenPublish {
    asker: PublishAsker,
    channel: Option<ChannelHash>,
    is_for_all: bool,
    tally: Tally,
    awaited: Vec<Counter>,
    silent: Vec<Counter>,
}

impl OpenPublish {
    /// Takes a counter off those that are awaited; false if it is not.
    fn take_awaited(&mut self, counter: Counter) -> bool {
        let place = self.awaited.iter().position(|awaited| *awaited == counter);
        place.map(|place| self.awaited.swap_remove(place)).is_some()
    }
}

impl PendingPublishes {
    /// No publishes. The first tickets follow from the incarnation, so that a ticket of an earlier run of
    /// the node rarely names a publish of this one. No node answers such a ticket, either: see
    /// [`Self::forget_asker`].
    pub(super) fn new(incarnation: Incarnation) -> Self {
        Self { waiting: SlotMap::new(incarnation.0 as u32), deadlines: VecDeque::new() }
    }

    /// Whether there is room for another publish.
    pub(super) fn has_room(&self) -> bool {
        self.len() < PENDING_MAX
    }

    /// The number of pending publishes.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Opens a publish.
    pub(super) fn open(&mut self, new: NewPublish) -> Ticket {
        let NewPublish { asker, channel, is_for_all, awaited, silent, deadline_ms } = new;
        let tally = Tally::default();
        let open = OpenPublish { asker, channel, is_for_all, tally, awaited, silent };
        let ticket = ticket_of(self.waiting.insert(open));
        self.drop_past_deadlines();
        self.deadlines.push_back((deadline_ms, ticket));
        ticket
    }

    /// Adds a tally. `None`: the tally comes too late, or from a counter that is
    /// not awaited.
    pub(super) fn count(
        &mut self,
        ticket: Ticket,
        from: Counter,
        tally: Tally,
    ) -> Option<AddedTally> {
        let waiting = self.waiting.get_mut(key_of(ticket))?;
        if !waiting.take_awaited(from) {
            return None;
        }
        waiting.tally += tally;
        Some(AddedTally { channel: waiting.channel, is_of_all: waiting.is_for_all })
    }

    /// Counts a counter as silent. Returns the sum if that completes it.
    pub(super) fn pass_over(&mut self, ticket: Ticket, counter: Counter) -> Option<Counted> {
        let waiting = self.waiting.get_mut(key_of(ticket))?;
        if !waiting.take_awaited(counter) {
            return None;
        }
        waiting.silent.push(counter);
        self.poll_counted(ticket)
    }

    /// The sum of a publish, if it is complete.
    pub(super) fn poll_counted(&mut self, ticket: Ticket) -> Option<Counted> {
        let is_complete = self.waiting.get(key_of(ticket))?.awaited.is_empty();
        if is_complete { self.close(ticket) } else { None }
    }

    /// Counts a counter as silent in all publishes. Returns those that are complete now. Costs a look at
    /// every pending publish.
    pub(super) fn stop_waiting_for(&mut self, counter: Counter) -> Vec<Counted> {
        let mut complete = Vec::new();
        for (key, waiting) in self.waiting.iter_mut() {
            if waiting.take_awaited(counter) {
                waiting.silent.push(counter);
                complete.extend(waiting.awaited.is_empty().then_some(ticket_of(key)));
            }
        }
        complete.into_iter().filter_map(|ticket| self.close(ticket)).collect()
    }

    /// Forgets the publishes of a node whose session has ended. The sums would arrive in its next session,
    /// where their tickets may name other publishes. Costs a look at every pending publish.
    pub(super) fn forget_asker(&mut self, node: NodeId) {
        let is_theirs = |waiting: &OpenPublish| matches!(waiting.asker, PublishAsker::Node(of, _) if of == node);
        let theirs = self.waiting.iter().filter(|(_, waiting)| is_theirs(waiting));
        for key in theirs.map(|(key, _)| key).collect::<Vec<_>>() {
            self.waiting.remove(key);
        }
    }

    /// The next publish whose deadline has passed.
    pub(super) fn poll_expired(&mut self, now_ms: u64) -> Option<Counted> {
        while self.deadlines.front().is_some_and(|(due_ms, _)| *due_ms <= now_ms)
            && let Some((_, ticket)) = self.deadlines.pop_front()
        {
            if let Some(counted) = self.close(ticket) {
                return Some(counted);
            }
        }
        None
    }

    /// When [`Self::poll_expired`] may return something, in milliseconds.
    pub(super) fn poll_timeout(&self) -> Option<u64> {
        self.deadlines.front().map(|(due_ms, _)| *due_ms)
    }

    /// Drops deadlines of complete publishes from the front. So no more are kept than publishes were
    /// opened since the oldest pending one.
    fn drop_past_deadlines(&mut self) {
        while let Some(&(_, ticket)) = self.deadlines.front()
            && self.waiting.get(key_of(ticket)).is_none()
        {
            self.deadlines.pop_front();
        }
    }

    fn close(&mut self, ticket: Ticket) -> Option<Counted> {
        let OpenPublish { asker, channel, tally, awaited, mut silent, .. } =
            self.waiting.remove(key_of(ticket))?;
        silent.extend(awaited);
        Some(Counted { asker, channel, tally, silent })
    }

    /// Asserts the invariants. Costs a look at every pending publish.
    pub(super) fn check(&self) {
        assert!(self.deadlines.iter().is_sorted_by_key(|(due_ms, _)| *due_ms));
        let with_deadline =
            self.deadlines.iter().filter(|(_, ticket)| self.waiting.get(key_of(*ticket)).is_some());
        assert_eq!(with_deadline.count(), self.len(), "each pending publish has a deadline");
        let is_awaited = |(_, waiting): (_, &OpenPublish)| !waiting.awaited.is_empty();
        assert!(self.waiting.iter().all(is_awaited), "what is complete is closed");
    }
}

fn ticket_of(key: SlotKey) -> Ticket {
    Ticket(key.to_bits())
}

fn key_of(ticket: Ticket) -> SlotKey {
    SlotKey::from_bits(ticket.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKER: PublishAsker = PublishAsker::Shard(ShardId(1), Ticket(9));

    fn tally(delivered: u64) -> Tally {
        Tally { delivered, failed: 0 }
    }

    fn publish(channel: u64, awaited: Vec<Counter>, silent: Vec<Counter>) -> NewPublish {
        let channel = Some(ChannelHash(channel));
        NewPublish { asker: ASKER, channel, is_for_all: true, awaited, silent, deadline_ms: 100 }
    }

    #[test]
    fn tallies_add_up_and_nobody_counts_twice() {
        let mut pending = PendingPublishes::default();
        let [one, two] = [1, 2].map(|shard| Counter::Shard(ShardId(shard)));
        let ticket = pending.open(publish(7, vec![one, two], vec![]));
        let added = AddedTally { channel: Some(ChannelHash(7)), is_of_all: true };
        pending.check();
        assert_eq!(pending.count(ticket, one, tally(3)), Some(added));
        assert_eq!(pending.count(ticket, one, tally(3)), None);
        assert_eq!(pending.poll_counted(ticket), None);
        pending.count(ticket, two, tally(4));
        let counted = pending.poll_counted(ticket).unwrap();
        assert_eq!((counted.asker, counted.tally, counted.silent), (ASKER, tally(7), vec![]));
        assert_eq!(pending.poll_expired(1000), None);
    }

    #[test]
    fn silent_counters_are_named_when_the_deadline_passes() {
        let mut pending = PendingPublishes::default();
        let [one, two] = [1, 2].map(|shard| Counter::Shard(ShardId(shard)));
        let ticket = pending.open(publish(7, vec![one, two], vec![]));
        pending.count(ticket, two, tally(4));
        assert_eq!(pending.poll_expired(99), None);
        let counted = pending.poll_expired(100).unwrap();
        assert_eq!((counted.tally, counted.silent), (tally(4), vec![one]));
        assert_eq!(pending.count(ticket, one, tally(1)), None);
        pending.check();
    }

    #[test]
    fn the_publishes_of_a_node_without_a_session_are_forgotten() {
        let mut pending = PendingPublishes::default();
        let shard = Counter::Shard(ShardId(1));
        let [lost, other] = [1, 2].map(|number| NodeId::new(number).unwrap());
        let askers =
            [ASKER, PublishAsker::Node(lost, Ticket(1)), PublishAsker::Node(other, Ticket(1))];
        let tickets = askers
            .map(|asker| pending.open(NewPublish { asker, ..publish(7, vec![shard], vec![]) }));
        pending.forget_asker(lost);
        pending.check();
        let counted = tickets.map(|ticket| pending.count(ticket, shard, tally(1)).is_some());
        assert_eq!(counted, [true, false, true]);
    }

    #[test]
    fn a_counter_that_is_no_longer_awaited_completes_what_waits_for_it_alone() {
        let mut pending = PendingPublishes::default();
        let [one, two, three] = [1, 2, 3].map(|shard| Counter::Shard(ShardId(shard)));
        pending.open(publish(7, vec![one], vec![three]));
        let both = pending.open(publish(8, vec![one, two], vec![]));
        let complete = pending.stop_waiting_for(one);
        let complete: Vec<_> =
            complete.iter().map(|counted| (counted.channel, &counted.silent[..])).collect();
        assert_eq!(complete, [(Some(ChannelHash(7)), &[three, one][..])]);
        assert_eq!(pending.count(both, one, tally(1)), None);
        pending.count(both, two, tally(2));
        let counted = pending.poll_counted(both).unwrap();
        assert_eq!((counted.tally, counted.silent), (tally(2), vec![one]));
        assert_eq!(pending.poll_expired(100), None);
    }
}
