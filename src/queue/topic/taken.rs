//! Messages that a back end has taken over HTTP.
//!
//! A take is a consumer until its answer is sent. Then the messages of the answer stay *taken*: by nobody who is
//! connected, until they are acknowledged, refused, or not acknowledged in time. Such a message is named by its
//! number and the take (`PopId`, unique in the grid), so that a late acknowledgement does not touch a message
//! that another back end has taken since.

use std::collections::BTreeSet;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use super::group::Group;
use super::held::Held;
use super::{ACK_S_DEFAULT, MOVED_PER_TURN, Topic};
use crate::message::{BackendId, MessageNumber, PopId};
use crate::queue::consumers::{Consumer, ConsumerKey, ConsumerState, InFlight};

/// The time to acknowledge a taken message where the policy sets none, in microseconds. Nobody who is connected
/// has the message, so nothing else would bring it back.
const LEASE_US_DEFAULT: u64 = ACK_S_DEFAULT * 1_000_000;

/// The taken messages of a group. They count against the bounds of their topic.
#[derive(Debug, Default)]
pub(super) struct Taken {
    messages: HashMap<MessageNumber, InFlight>,
    // The messages by the time at which they were taken, in microseconds.
    by_time: BTreeSet<(u64, MessageNumber)>,
    // When a message was last finished, or was taken while there was none, in microseconds.
    progress_us: u64,
    // A consumer that is handed nothing. It holds the lanes of the messages. Made with the first of them.
    holder: Option<ConsumerKey>,
}

impl Taken {
    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The number of messages.
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Since when no message was finished, in microseconds. `None`: there is none.
    pub(super) fn unfinished_since_us(&self) -> Option<u64> {
        (!self.is_empty()).then_some(self.progress_us)
    }

    /// Whether a message is taken.
    pub(super) fn contains(&self, number: MessageNumber) -> bool {
        self.messages.contains_key(&number)
    }

    /// The messages, and the consumer that holds their lanes.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ConsumerKey, &InFlight)> {
        self.messages.values().filter_map(|taken| Some((self.holder?, taken)))
    }

    /// Adds a message.
    fn insert(&mut self, now_us: u64, mut taken: InFlight) {
        if self.is_empty() {
            self.progress_us = now_us;
        }
        taken.handed_us = now_us;
        self.by_time.insert((now_us, taken.item.number));
        self.messages.insert(taken.item.number, taken);
    }

    /// Removes a message if it is taken by this take.
    fn remove(&mut self, pop: PopId, number: MessageNumber) -> Option<InFlight> {
        let Entry::Occupied(entry) = self.messages.entry(number) else { return None };
        if entry.get().pop != pop {
            return None;
        }
        let taken = entry.remove();
        self.by_time.remove(&(taken.handed_us, number));
        Some(taken)
    }

    /// Removes the message that was taken first, if that was `lease_us` ago.
    fn pop_lapsed(&mut self, now_us: u64, lease_us: u64) -> Option<InFlight> {
        let &(since_us, number) = self.by_time.first()?;
        if now_us.saturating_sub(since_us) < lease_us {
            return None;
        }
        self.by_time.pop_first();
        self.messages.remove(&number)
    }

    /// Asserts the invariants.
    pub(super) fn check(&self) {
        let times = self.messages.iter().map(|(&number, taken)| (taken.handed_us, number));
        assert_eq!(times.collect::<BTreeSet<_>>(), self.by_time, "each taken message has its time");
        assert!(self.is_empty() || self.holder.is_some(), "somebody holds the lanes");
    }
}

impl Group {
    /// Ends a take. Its messages with these numbers stay taken, the others wait again.
    fn end_take(&mut self, held: &mut Held, now_us: u64, id: BackendId, kept: &[MessageNumber]) {
        let Some(key) = self.consumers.find(id) else { return };
        let consumer = &mut self.consumers[key];
        consumer.state = ConsumerState::Leaving;
        // At most as many as the back end has asked for.
        let handed = std::mem::take(&mut consumer.handed);
        consumer.handed_bytes = 0;
        let kept: BTreeSet<MessageNumber> = kept.iter().copied().collect();
        let (kept, returned): (Vec<_>, Vec<_>) =
            handed.into_iter().partition(|handed| kept.contains(&handed.item.number));
        for InFlight { client, item, .. } in returned {
            self.put_back(client, item);
        }
        for taken in kept {
            let holder = self.holder_of_taken(id);
            self.lanes.pass_to(taken.client, holder);
            self.taken.insert(now_us, taken);
        }
        self.consumers.remove(key);
        self.share_again();
        held.grant_to_asking();
    }

    fn holder_of_taken(&mut self, id: BackendId) -> ConsumerKey {
        let consumers = &mut self.consumers;
        *self.taken.holder.get_or_insert_with(|| consumers.insert_holder(id))
    }

    /// Finishes a message that was taken. False if it is not taken by this take.
    fn settle_taken(
        &mut self,
        held: &mut Held,
        now_us: u64,
        pop: PopId,
        number: MessageNumber,
    ) -> bool {
        let Some(InFlight { client, item, .. }) = self.remove_taken(pop, number) else {
            return false;
        };
        self.progress_taken(now_us);
        held.waits.add(item.age_us(now_us));
        held.forget(self.place, client, &item);
        self.finish_lane(client);
        true
    }

    /// Takes back a message that was taken and is refused. It and later ones of its client wait until
    /// `until_us`. False if it is not taken by this take.
    fn refuse_taken(
        &mut self,
        held: &mut Held,
        now_us: u64,
        pop: PopId,
        number: MessageNumber,
        until_us: u64,
    ) -> bool {
        let Some(InFlight { client, item, .. }) = self.remove_taken(pop, number) else {
            return false;
        };
        self.progress_taken(now_us);
        let until_us = if until_us > now_us { until_us } else { 0 };
        self.retry(held, client, item, "nack", until_us);
        true
    }

    /// Notes that a back end has acknowledged or refused a message that it has taken.
    fn progress_taken(&mut self, now_us: u64) {
        self.taken.progress_us = now_us;
        self.lapsed_since_us = None;
    }

    /// Requeues a message that was taken and did not reach its back end.
    fn give_back_taken(&mut self, pop: PopId, number: MessageNumber) {
        if let Some(InFlight { client, item, .. }) = self.remove_taken(pop, number) {
            self.put_back(client, item);
        }
    }

    /// Removes a taken message. The acknowledgement may have overtaken the end of the take: then a consumer
    /// still has the message.
    fn remove_taken(&mut self, pop: PopId, number: MessageNumber) -> Option<InFlight> {
        self.taken.remove(pop, number).or_else(|| {
            let is_taker = |(_, consumer): &(ConsumerKey, &Consumer)| {
                consumer.pop == pop && consumer.acknowledges
            };
            let (key, consumer) = self.consumers.iter().find(is_taker)?;
            let at = consumer.place_of(number)?;
            self.consumers[key].remove(at)
        })
    }

    /// Takes back taken messages that were not acknowledged in time.
    pub(super) fn expire_taken(&mut self, held: &mut Held, now_us: u64) {
        let lease_us = match held.policy.ack_us {
            0 => LEASE_US_DEFAULT,
            lease_us => lease_us,
        };
        for _ in 0..MOVED_PER_TURN {
            let Some(lapsed) = self.taken.pop_lapsed(now_us, lease_us) else { return };
            self.lapsed_since_us.get_or_insert(lapsed.handed_us);
            self.retry(held, lapsed.client, lapsed.item, "not acknowledged", 0);
        }
    }
}

impl Topic {
    /// Ends a take of messages: see [`FromConsumer::EndTake`](crate::message::FromConsumer::EndTake).
    pub fn end_take(&mut self, now_us: u64, id: BackendId, kept: &[MessageNumber]) {
        self.each_group(|group, held| group.end_take(held, now_us, id, kept));
    }

    /// Finishes messages that were taken, or with `until_us` takes them back: they and later ones of their
    /// clients wait until then. Returns those that are not taken by their take.
    pub fn settle_taken(
        &mut self,
        now_us: u64,
        messages: &[(PopId, MessageNumber)],
        until_us: Option<u64>,
    ) -> Vec<(PopId, MessageNumber)> {
        let mut stale = Vec::new();
        for &(pop, number) in messages {
            let mut is_done = false;
            self.each_group(|group, held| {
                is_done |= match until_us {
                    None => group.settle_taken(held, now_us, pop, number),
                    Some(until_us) => group.refuse_taken(held, now_us, pop, number, until_us),
                };
            });
            if !is_done {
                stale.push((pop, number));
            }
        }
        self.held.grant_to_asking();
        stale
    }

    /// Requeues messages of a take whose answer was not written.
    pub fn give_back_taken(&mut self, pop: PopId, numbers: &[MessageNumber]) {
        self.each_group(|group, _| {
            numbers.iter().for_each(|&number| group.give_back_taken(pop, number));
        });
    }
}
