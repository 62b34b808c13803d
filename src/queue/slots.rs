//! Which consumer the waiting messages of a client are for.
//!
//! Clients are spread over a fixed number of slots, and consumers own slots. When the set of consumers
//! changes, as few slots change hands as keep the shares even. A slot takes the lanes that wait in it
//! along, however many they are: so what a change costs depends on the number of slots alone.

use std::collections::BTreeMap;

use hashbrown::HashMap;

use super::consumers::Place;
use crate::address::ClientId;

/// Slots of a topic. Four times as many as it may have consumers, so that their shares are even.
const SLOTS: usize = 4096;

/// The number of a slot, below [`SLOTS`].
type Slot = u16;

/// The slots of one topic, and the lanes that wait in them.
#[derive(Debug, Default)]
pub struct Slots {
    // The owner of each slot; empty while there are no members.
    owners: Vec<Place>,
    // The consumers among which the slots are shared.
    members: BTreeMap<Place, Share>,
    // Slots with waiting lanes while there are no members, by the number of their first message.
    unowned: BTreeMap<u64, Slot>,
    // The lanes that wait in each slot, by the number of their first message. No slot is empty.
    lanes: HashMap<Slot, BTreeMap<u64, ClientId>>,
}

/// What one member owns.
#[derive(Debug, Default)]
struct Share {
    slots: Vec<Slot>,
    // Those with waiting lanes, by the number of their first message.
    waiting: BTreeMap<u64, Slot>,
}

impl Slots {
    /// The consumer that a client's messages are for; `None` while there are no members.
    pub fn owner(&self, client: ClientId) -> Option<Place> {
        self.owner_of(slot_of(client))
    }

    fn owner_of(&self, slot: Slot) -> Option<Place> {
        self.owners.get(usize::from(slot)).copied()
    }

    /// Adds the lane of a client, whose first waiting message has this number.
    pub fn list(&mut self, number: u64, client: ClientId) {
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

    /// Removes a lane.
    pub fn unlist(&mut self, number: u64, client: ClientId) {
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

    /// Removes the lane that has waited longest for a member: gives its client.
    pub fn pop(&mut self, place: Place) -> Option<ClientId> {
        let waiting = &mut self.members.get_mut(&place)?.waiting;
        let (_, slot) = waiting.pop_first()?;
        let lanes = self.lanes.get_mut(&slot).expect("only slots with lanes wait");
        let (_, client) = lanes.pop_first().expect("no slot is empty");
        match first_of(lanes) {
            Some(next) => drop(waiting.insert(next, slot)),
            None => drop(self.lanes.remove(&slot)),
        }
        Some(client)
    }

    /// Whether something waits for a member.
    pub fn has_waiting(&self, place: Place) -> bool {
        self.members.get(&place).is_some_and(|share| !share.waiting.is_empty())
    }

    /// The lane that has waited longest of all, and the number of its first message. Costs a look at
    /// each member.
    pub fn oldest(&self) -> Option<(u64, ClientId)> {
        let places = self.members.values().map(|share| &share.waiting).chain([&self.unowned]);
        let (&number, slot) = places.filter_map(BTreeMap::first_key_value).min()?;
        Some((number, self.lanes[slot][&number]))
    }

    /// Shares the slots among these consumers, which are in order: gives those for whom something
    /// waits that did not before. Costs a look at each member and at each slot that moves.
    pub fn share_among(&mut self, members: &[Place]) -> Vec<Place> {
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
            free = (0..SLOTS as Slot).collect();
        }
        for &place in members {
            self.members.entry(place).or_default();
        }
        let each = SLOTS / members.len();
        // So many members have one more.
        let mut more = SLOTS % members.len();
        self.take_surplus(each, &mut more, &mut free);
        self.hand_out(each, more, free)
    }

    fn slots_of_leavers(&mut self, members: &[Place]) -> Vec<Slot> {
        let mut free = Vec::new();
        self.members.retain(|place, share| {
            let stays = members.binary_search(place).is_ok();
            if !stays {
                free.append(&mut share.slots);
            }
            stays
        });
        free
    }

    fn take_surplus(&mut self, each: usize, more: &mut usize, free: &mut Vec<Slot>) {
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

    fn hand_out(&mut self, each: usize, mut more: usize, mut free: Vec<Slot>) -> Vec<Place> {
        let mut gained = Vec::new();
        for (&place, share) in &mut self.members {
            let has_one_more = more > 0 && share.slots.len() <= each;
            more -= usize::from(has_one_more);
            let lacks = (each + usize::from(has_one_more)).saturating_sub(share.slots.len());
            let before = share.waiting.len();
            for slot in free.drain(free.len() - lacks..) {
                self.owners[usize::from(slot)] = place;
                let first = self.lanes.get(&slot).and_then(first_of);
                share.waiting.extend(first.map(|first| (first, slot)));
                share.slots.push(slot);
            }
            if share.waiting.len() > before {
                gained.push(place);
            }
        }
        debug_assert!(free.is_empty(), "every slot has an owner");
        gained
    }

    /// Where a slot is noted while lanes wait in it.
    fn waiting_of(&mut self, slot: Slot) -> &mut BTreeMap<u64, Slot> {
        match self.owners.get(usize::from(slot)) {
            Some(owner) => &mut self.members.get_mut(owner).expect("members own the slots").waiting,
            None => &mut self.unowned,
        }
    }

    /// Panics if what is noted in several places does not agree. Gives how many lanes are listed.
    pub fn check(&self) -> usize {
        let mut noted = 0;
        let nobody = self.owners.is_empty().then_some((None, &self.unowned));
        let shares = self.members.iter().map(|(&place, share)| (Some(place), &share.waiting));
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
        for (place, share) in &self.members {
            assert!(share.slots.iter().all(|&slot| self.owner_of(slot) == Some(*place)));
        }
    }
}

fn first_of(lanes: &BTreeMap<u64, ClientId>) -> Option<u64> {
    lanes.first_key_value().map(|(&number, _)| number)
}

/// The slot of a client. Mixed as in splitmix64: ids of one shard differ in few bits.
fn slot_of(client: ClientId) -> Slot {
    let mixed = client.value().wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (mixed >> 32) as Slot % SLOTS as Slot
}
