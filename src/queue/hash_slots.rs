//! Which consumer the waiting messages of a client are for.
//!
//! Clients are spread over a fixed number of hash slots, and consumers own slots. When the set of consumers
//! changes, as few slots change their owner as keep the shares even. A slot moves with all lanes that wait
//! in it. So the cost of a change depends on the number of slots, not on that of lanes.

use std::collections::BTreeMap;

use hashbrown::HashMap;

use super::consumers::ConsumerKey;
use crate::address::ClientId;
use crate::message::MessageNumber;

/// Hash slots of a topic: four times as many as it may have consumers, so that their shares are even.
const SLOTS: usize = 4096;

/// The number of a slot, below [`SLOTS`].
type HashSlot = u16;

/// The hash slots of one topic, and the lanes that wait in them.
#[derive(Debug, Default)]
pub(super) struct HashSlots {
    // The owner of each slot; empty while there are no members.
    owners: Vec<ConsumerKey>,
    // The consumers among which the slots are shared.
    members: BTreeMap<ConsumerKey, Share>,
    // Slots with waiting lanes while there are no members, by the number of their first message.
    unowned: BTreeMap<MessageNumber, HashSlot>,
    // The waiting lanes of each slot, by the number of their first message. No slot is empty.
    lanes: HashMap<HashSlot, BTreeMap<MessageNumber, ClientId>>,
}

/// The slots of one member.
#[derive(Debug, Default)]
struct Share {
    slots: Vec<HashSlot>,
    // Slots with waiting lanes, by the number of their first message.
    waiting: BTreeMap<MessageNumber, HashSlot>,
}

impl HashSlots {
    /// The consumer that a client's messages are for; `None` while there are no members.
    pub(super) fn owner(&self, client: ClientId) -> Option<ConsumerKey> {
        self.owner_of(slot_of(client))
    }

    fn owner_of(&self, slot: HashSlot) -> Option<ConsumerKey> {
        self.owners.get(usize::from(slot)).copied()
    }

    /// Adds the lane of a client, whose first waiting message has this number.
    pub(super) fn list(&mut self, number: MessageNumber, client: ClientId) {
        let slot = slot_of(client);
        let lanes = self.lanes.entry(slot).or_default();
        let first = first_of(lanes);
        lanes.insert(number, client);
        if first.is_none_or(|first| number < first) {
            let waiting = self.waiting_of(slot);
            if let Some(first) = first {
                waiting.remove(&first);
            }
            waiting.insert(number, slot);
        }
    }

    /// Removes the lane that was added under this number.
    pub(super) fn unlist(&mut self, number: MessageNumber, client: ClientId) {
        let slot = slot_of(client);
        let lanes = self.lanes.get_mut(&slot).expect("a lane is listed in its slot");
        let first = first_of(lanes);
        let removed = lanes.remove(&number);
        debug_assert_eq!(removed, Some(client), "the lane was listed under this number");
        let next = first_of(lanes);
        if next.is_none() {
            self.lanes.remove(&slot);
        }
        if first == Some(number) {
            let waiting = self.waiting_of(slot);
            waiting.remove(&number);
            waiting.extend(next.map(|next| (next, slot)));
        }
    }

    /// Removes the lane that has waited longest for a member, and returns the lane's client.
    pub(super) fn pop(&mut self, key: ConsumerKey) -> Option<ClientId> {
        let waiting = &mut self.members.get_mut(&key)?.waiting;
        let (_, slot) = waiting.pop_first()?;
        let lanes = self.lanes.get_mut(&slot).expect("only slots with lanes wait");
        let (_, client) = lanes.pop_first().expect("no slot is empty");
        match first_of(lanes) {
            Some(next) => drop(waiting.insert(next, slot)),
            None => drop(self.lanes.remove(&slot)),
        }
        Some(client)
    }

    /// Whether no lane waits.
    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Whether a lane waits for a member.
    pub(super) fn has_waiting(&self, key: ConsumerKey) -> bool {
        self.members.get(&key).is_some_and(|share| !share.waiting.is_empty())
    }

    /// The client whose lane has waited longest, and the number of its first message. Costs a look at each
    /// member.
    pub(super) fn oldest(&self) -> Option<(MessageNumber, ClientId)> {
        let places = self.members.values().map(|share| &share.waiting).chain([&self.unowned]);
        let (&number, slot) = places.filter_map(BTreeMap::first_key_value).min()?;
        Some((number, self.lanes[slot][&number]))
    }

    /// Shares the slots among these consumers, which are sorted. Returns those that have gained waiting
    /// lanes. Costs a look at each member and at each slot that moves.
    pub(super) fn share_among(&mut self, members: &[ConsumerKey]) -> Vec<ConsumerKey> {
        if self.members.keys().eq(members) {
            return Vec::new();
        }
        let mut free = self.slots_of_leavers(members);
        if members.is_empty() {
            self.owners.clear();
            let lanes = &self.lanes;
            let waiting = |slot| Some((first_of(lanes.get(&slot)?)?, slot));
            self.unowned = free.into_iter().filter_map(waiting).collect();
            return Vec::new();
        }
        if self.owners.is_empty() {
            self.unowned.clear();
            self.owners = vec![members[0]; SLOTS];
            free = (0..SLOTS as HashSlot).collect();
        }
        for &key in members {
            self.members.entry(key).or_default();
        }
        let each = SLOTS / members.len();
        // Members that have one slot more than `each`.
        let mut more = SLOTS % members.len();
        self.take_surplus(each, &mut more, &mut free);
        self.hand_out(each, more, free)
    }

    fn slots_of_leavers(&mut self, members: &[ConsumerKey]) -> Vec<HashSlot> {
        let mut free = Vec::new();
        self.members.retain(|key, share| {
            let stays = members.binary_search(key).is_ok();
            if !stays {
                free.append(&mut share.slots);
            }
            stays
        });
        free
    }

    fn take_surplus(&mut self, each: usize, more: &mut usize, free: &mut Vec<HashSlot>) {
        for share in self.members.values_mut() {
            let has_one_more = *more > 0 && share.slots.len() > each;
            *more -= usize::from(has_one_more);
            let keeps = (each + usize::from(has_one_more)).min(share.slots.len());
            for slot in share.slots.drain(keeps..) {
                if let Some(first) = self.lanes.get(&slot).and_then(first_of) {
                    share.waiting.remove(&first);
                }
                free.push(slot);
            }
        }
    }

    fn hand_out(
        &mut self,
        each: usize,
        mut more: usize,
        mut free: Vec<HashSlot>,
    ) -> Vec<ConsumerKey> {
        let mut gained = Vec::new();
        for (&key, share) in &mut self.members {
            let has_one_more = more > 0 && share.slots.len() <= each;
            more -= usize::from(has_one_more);
            let lacks = (each + usize::from(has_one_more)).saturating_sub(share.slots.len());
            let before = share.waiting.len();
            for slot in free.drain(free.len() - lacks..) {
                self.owners[usize::from(slot)] = key;
                let first = self.lanes.get(&slot).and_then(first_of);
                share.waiting.extend(first.map(|first| (first, slot)));
                share.slots.push(slot);
            }
            if share.waiting.len() > before {
                gained.push(key);
            }
        }
        debug_assert!(free.is_empty(), "every slot has an owner");
        gained
    }

    /// Where a slot with waiting lanes is listed.
    fn waiting_of(&mut self, slot: HashSlot) -> &mut BTreeMap<MessageNumber, HashSlot> {
        match self.owners.get(usize::from(slot)) {
            Some(owner) => &mut self.members.get_mut(owner).expect("members own the slots").waiting,
            None => &mut self.unowned,
        }
    }

    /// Asserts the invariants and returns the number of waiting lanes. Costs a look at every lane.
    pub(super) fn check(&self) -> usize {
        let mut noted = 0;
        let nobody = self.owners.is_empty().then_some((None, &self.unowned));
        let shares = self.members.iter().map(|(&key, share)| (Some(key), &share.waiting));
        for (owner, waiting) in shares.chain(nobody) {
            for (&number, slot) in waiting {
                assert_eq!(self.owner_of(*slot), owner, "the owner of slot {slot}");
                assert_eq!(self.lanes.get(slot).and_then(first_of), Some(number));
                noted += 1;
            }
        }
        assert_eq!(noted, self.lanes.len(), "each slot in which lanes wait is noted once");
        for (slot, lanes) in &self.lanes {
            assert!(lanes.values().all(|&client| slot_of(client) == *slot), "a lane in its slot");
        }
        self.check_shares();
        self.lanes.values().map(BTreeMap::len).sum()
    }

    fn check_shares(&self) {
        let sizes: Vec<usize> = self.members.values().map(|share| share.slots.len()).collect();
        let (least, most) = (sizes.iter().min(), sizes.iter().max());
        assert!(most.zip(least).is_none_or(|(most, least)| most - least <= 1), "{sizes:?}");
        assert_eq!(sizes.iter().sum::<usize>(), self.owners.len(), "every slot has one owner");
        for (key, share) in &self.members {
            assert!(share.slots.iter().all(|&slot| self.owner_of(slot) == Some(*key)));
        }
    }
}

fn first_of(lanes: &BTreeMap<MessageNumber, ClientId>) -> Option<MessageNumber> {
    lanes.first_key_value().map(|(&number, _)| number)
}

/// The slot of a client. The id is mixed as in splitmix64, since ids of one shard differ in few bits.
fn slot_of(client: ClientId) -> HashSlot {
    let mixed = client.value().wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (mixed >> 32) as HashSlot % SLOTS as HashSlot
}
