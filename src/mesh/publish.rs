//! Publishes that wait for tallies: ours of other nodes, and those of other nodes of our shards.

use std::collections::VecDeque;

use crate::address::{NodeId, ShardId};
use crate::message::Ticket;
use crate::protocol::api::Tally;

/// Who is told the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// One of our shards, under its ticket.
    Shard(ShardId, Ticket),
    /// Another node's mesh, under its ticket.
    Node(NodeId, Ticket),
}

/// One of those whose tally is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// One of our shards.
    Shard(ShardId),
    /// Another node.
    Node(NodeId),
}

/// A publish whose tallies are all here, or whose time is up.
#[derive(Debug, PartialEq, Eq)]
pub struct Counted {
    /// Who is told.
    pub asker: Asker,
    /// The channel.
    pub channel: u64,
    /// What was counted.
    pub tally: Tally,
    /// Those who did not answer in time, or were not waited for.
    pub silent: Vec<Counter>,
}

/// Publishes that may wait at the same time. Beyond it one is not passed on, and counts as not
/// answered.
const WAITING_MAX: usize = 1 << 16;

/// Publishes under way.
#[derive(Debug, Default)]
pub struct Publishes {
    slots: Vec<Slot>,
    free: Vec<u32>,
    // In the order they were opened, which is that of their deadlines.
    deadlines: VecDeque<(u64, Ticket)>,
    // Of new slots: another in each life of the node, so that no answer of an earlier one fits.
    generation: u32,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    waiting: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    asker: Asker,
    channel: u64,
    tally: Tally,
    awaited: Vec<Counter>,
    silent: Vec<Counter>,
}

impl Publishes {
    /// None yet, of a node that was started then.
    pub fn new(incarnation: u64) -> Self {
        Self { generation: incarnation as u32, ..Self::default() }
    }

    /// Whether one more may wait.
    pub fn has_room(&self) -> bool {
        self.waiting() < WAITING_MAX
    }

    /// Those that wait.
    pub fn waiting(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// A publish that waits for some until the deadline, which is never before that of the last, and
    /// not for those who are silent anyway.
    pub fn open(
        &mut self,
        asker: Asker,
        channel: u64,
        (awaited, silent): (Vec<Counter>, Vec<Counter>),
        deadline_ms: u64,
    ) -> Ticket {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: self.generation, waiting: None });
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[index as usize];
        slot.waiting = Some(Waiting { asker, channel, tally: Tally::default(), awaited, silent });
        let ticket = Ticket(u64::from(slot.generation) << 32 | u64::from(index));
        self.forget_answered();
        self.deadlines.push_back((deadline_ms, ticket));
        ticket
    }

    /// One has counted; gives the whole if it was the last. What comes too late, or from one who was
    /// not asked, is passed over. Also gives the channel, for who keeps what was counted last.
    pub fn count(&mut self, ticket: Ticket, from: Counter, tally: Tally) -> Option<u64> {
        let waiting = self.find(ticket)?.waiting.as_mut()?;
        let place = waiting.awaited.iter().position(|counter| *counter == from)?;
        waiting.awaited.swap_remove(place);
        waiting.tally += tally;
        Some(waiting.channel)
    }

    /// One does not count; gives the rest if it was the last.
    pub fn pass_over(&mut self, ticket: Ticket, counter: Counter) -> Option<Counted> {
        let waiting = self.find(ticket)?.waiting.as_mut()?;
        let place = waiting.awaited.iter().position(|awaited| *awaited == counter)?;
        waiting.awaited.swap_remove(place);
        waiting.silent.push(counter);
        self.poll_counted(ticket)
    }

    /// The sum, if all have counted.
    pub fn poll_counted(&mut self, ticket: Ticket) -> Option<Counted> {
        let is_over = self.find(ticket)?.waiting.as_ref()?.awaited.is_empty();
        if is_over { self.close(ticket) } else { None }
    }

    /// Nobody waits for this one any more. Gives what waited for it alone. Costs a look at all that
    /// waits.
    pub fn give_up(&mut self, counter: Counter) -> Vec<Counted> {
        let mut over = Vec::new();
        for (slot, index) in self.slots.iter_mut().zip(0..) {
            let Some(waiting) = &mut slot.waiting else { continue };
            let Some(place) = waiting.awaited.iter().position(|awaited| *awaited == counter) else {
                continue;
            };
            waiting.awaited.swap_remove(place);
            waiting.silent.push(counter);
            if waiting.awaited.is_empty() {
                over.push(Ticket(u64::from(slot.generation) << 32 | index));
            }
        }
        over.into_iter().filter_map(|ticket| self.close(ticket)).collect()
    }

    /// The next publish whose time is up.
    pub fn poll_expired(&mut self, now_ms: u64) -> Option<Counted> {
        while self.deadlines.front().is_some_and(|(due_ms, _)| *due_ms <= now_ms)
            && let Some((_, ticket)) = self.deadlines.pop_front()
        {
            if let Some(counted) = self.close(ticket) {
                return Some(counted);
            }
        }
        None
    }

    /// When [`Self::poll_expired`] may have something.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.deadlines.front().map(|(due_ms, _)| *due_ms)
    }

    /// Deadlines of what was answered go in their turn: those that are kept are no more than what
    /// was opened since the oldest that still waits.
    fn forget_answered(&mut self) {
        while let Some(&(_, ticket)) = self.deadlines.front()
            && self.find(ticket).is_none_or(|slot| slot.waiting.is_none())
        {
            self.deadlines.pop_front();
        }
    }

    fn find(&mut self, ticket: Ticket) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(ticket.0 as u32 as usize)?;
        (u64::from(slot.generation) == ticket.0 >> 32).then_some(slot)
    }

    fn close(&mut self, ticket: Ticket) -> Option<Counted> {
        let slot = self.find(ticket)?;
        let Waiting { asker, channel, tally, awaited, mut silent } = slot.waiting.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(ticket.0 as u32);
        silent.extend(awaited);
        Some(Counted { asker, channel, tally, silent })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKER: Asker = Asker::Shard(ShardId(1), Ticket(9));

    fn tally(delivered: u64) -> Tally {
        Tally { delivered, failed: 0 }
    }

    #[test]
    fn tallies_add_up_and_nobody_counts_twice() {
        let mut publishes = Publishes::default();
        let [one, two] = [1, 2].map(|shard| Counter::Shard(ShardId(shard)));
        let ticket = publishes.open(ASKER, 7, (vec![one, two], vec![]), 100);
        assert_eq!(publishes.count(ticket, one, tally(3)), Some(7));
        assert_eq!(publishes.count(ticket, one, tally(3)), None);
        assert_eq!(publishes.poll_counted(ticket), None);
        publishes.count(ticket, two, tally(4));
        let counted = publishes.poll_counted(ticket).unwrap();
        assert_eq!((counted.asker, counted.tally, counted.silent), (ASKER, tally(7), vec![]));
        assert_eq!(publishes.poll_expired(1000), None);
    }

    #[test]
    fn those_who_are_silent_are_named_when_the_time_is_up() {
        let mut publishes = Publishes::default();
        let [one, two] = [1, 2].map(|shard| Counter::Shard(ShardId(shard)));
        let ticket = publishes.open(ASKER, 7, (vec![one, two], vec![]), 100);
        publishes.count(ticket, two, tally(4));
        assert_eq!(publishes.poll_expired(99), None);
        let counted = publishes.poll_expired(100).unwrap();
        assert_eq!((counted.tally, counted.silent), (tally(4), vec![one]));
        assert_eq!(publishes.count(ticket, one, tally(1)), None);
    }

    #[test]
    fn who_is_given_up_holds_up_nothing_that_waits_for_it_alone() {
        let mut publishes = Publishes::default();
        let [one, two, three] = [1, 2, 3].map(|shard| Counter::Shard(ShardId(shard)));
        publishes.open(ASKER, 7, (vec![one], vec![three]), 100);
        let both = publishes.open(ASKER, 8, (vec![one, two], vec![]), 100);
        let over = publishes.give_up(one);
        let over: Vec<_> = over.iter().map(|over| (over.channel, &over.silent[..])).collect();
        assert_eq!(over, [(7, &[three, one][..])]);
        assert_eq!(publishes.count(both, one, tally(1)), None);
        publishes.count(both, two, tally(2));
        let counted = publishes.poll_counted(both).unwrap();
        assert_eq!((counted.tally, counted.silent), (tally(2), vec![one]));
        assert_eq!(publishes.poll_expired(100), None);
    }
}
