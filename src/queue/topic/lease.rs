//! Messages that a consumer refuses, or does not acknowledge in time.
//!
//! Both wait again, ahead of later messages of their client. A message that was handed out too often goes to
//! the dead topic instead (`held.rs`).

use super::Effect;
use super::group::Group;
use super::held::Held;
use crate::address::ClientId;
use crate::message::{BackendId, MessageNumber};
use crate::queue::consumers::{ConsumerKey, ConsumerState, InFlight, Item};

/// Messages that a check takes back because they were not acknowledged in time. The next check takes back the
/// others.
const EXPIRED_PER_CHECK: usize = 4096;

impl Group {
    /// Takes back messages that a consumer has refused. They and later messages of their clients wait until
    /// `until_us`.
    pub(super) fn refused(
        &mut self,
        held: &mut Held,
        now_us: u64,
        id: BackendId,
        numbers: &[MessageNumber],
        until_us: u64,
    ) {
        let Some(key) = self.consumers.find(id) else { return };
        for &number in numbers {
            let consumer = &mut self.consumers[key];
            let Some(at) = consumer.place_of(number) else { continue };
            let InFlight { client, item, .. } = consumer.remove(at).expect("the place was found");
            let until_us = if until_us > now_us { until_us } else { 0 };
            self.retry(held, client, item, "nack", until_us);
        }
        self.progress(held, now_us, key);
    }

    /// Takes back messages that were not acknowledged in time. Returns their consumers, which compete again
    /// after the others.
    pub(super) fn expire_leases(&mut self, held: &mut Held, now_us: u64) -> Vec<ConsumerKey> {
        let lease_us = held.policy.ack_us;
        if lease_us == 0 {
            return Vec::new();
        }
        let lapses = |handed: &InFlight| now_us.saturating_sub(handed.handed_us) >= lease_us;
        let consumers = self.consumers.iter();
        let lapsed: Vec<ConsumerKey> = consumers
            .filter(|(_, consumer)| consumer.acknowledges && consumer.state != ConsumerState::Gone)
            .filter(|(_, consumer)| consumer.handed.front().is_some_and(lapses))
            .map(|(key, _)| key)
            .collect();
        let mut left = EXPIRED_PER_CHECK;
        for &key in &lapsed {
            let mut numbers = Vec::new();
            while left > 0 && self.consumers[key].handed.front().is_some_and(lapses) {
                let InFlight { client, item, handed_us, .. } =
                    self.consumers[key].remove(0).expect("the first was looked at");
                self.lapsed_since_us.get_or_insert(handed_us);
                numbers.push(item.number);
                self.retry(held, client, item, "not acknowledged", 0);
                left -= 1;
            }
            if numbers.is_empty() {
                break;
            }
            let consumer = &mut self.consumers[key];
            if consumer.state == ConsumerState::Active {
                consumer.state = ConsumerState::Stalled;
            }
            held.effects.push_back(Effect::Expired(consumer.id, numbers));
        }
        lapsed
    }

    /// Lets a message that was handed out in vain wait again: it and later messages of its client until `until_us`, or 0.
    /// A message that was handed out too often goes to the dead topic.
    pub(super) fn retry(
        &mut self,
        held: &mut Held,
        client: ClientId,
        mut item: Item,
        why: &'static str,
        until_us: u64,
    ) {
        item.tries = item.tries.saturating_add(1);
        item.is_redelivered = true;
        let tries_max = held.policy.tries;
        if tries_max > 0 && item.tries >= tries_max {
            self.dead += 1;
            held.bury(self.place, client, item, why);
            self.finish_lane(client);
            return;
        }
        self.redelivered += 1;
        held.redelivered += 1;
        // Without a bound nobody asks how often.
        if (tries_max > 0 || until_us > 0)
            && let Some(disk) = &mut held.disk
        {
            disk.note_retry(self.place, &item, until_us);
        }
        self.put_back(client, item);
        if until_us > 0 {
            self.lanes.delay(client, until_us);
        }
    }
}
