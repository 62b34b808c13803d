//! A table that reuses the slots of removed values, and whose keys tell the values of one slot apart.

/// Slots per block.
const BLOCK: usize = 1024;

/// Names one value of a [`SlotMap`]. Once the value is removed, the key names nothing until generations of its
/// slot repeat: see [`SlotMap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotKey<const GENERATION_BITS: u32 = 32> {
    /// The position of the slot in the table.
    pub index: u32,
    /// Distinguishes the values that have used the slot: at most [`Self::GENERATION_MAX`].
    pub generation: u32,
}

impl<const GENERATION_BITS: u32> SlotKey<GENERATION_BITS> {
    /// The number of bits of a generation.
    pub const GENERATION_BITS: u32 = GENERATION_BITS;

    /// The largest generation. The next one is 0.
    pub const GENERATION_MAX: u32 = u32::MAX >> (u32::BITS - GENERATION_BITS);

    /// The key as one number: the generation in the upper half, the index in the lower.
    pub fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The key whose [`Self::to_bits`] is this number.
    pub fn from_bits(bits: u64) -> Self {
        Self { index: bits as u32, generation: (bits >> 32) as u32 }
    }
}

/// Values by [`SlotKey`]. Inserting, removing and finding one take constant time.
///
/// A generation has `GENERATION_BITS` bits and wraps around. The key of a removed value names nothing for
/// the next 2^`GENERATION_BITS` - 1 values of its slot, and the one after them. The slot emptied last is
/// reused first, so at 100,000 values a second this takes 12 hours with 32 bits, and 3 minutes with 24.
/// Whoever keeps a key of a removed value must drop it sooner.
///
/// The table grows in blocks, so that a million values are not copied to take one more: only values of
/// the first block move, while that block fills, and none do in a table [`in_whole_blocks`].
///
/// [`in_whole_blocks`]: Self::in_whole_blocks
#[derive(Debug)]
pub struct SlotMap<T, const GENERATION_BITS: u32 = 32> {
    blocks: Vec<Vec<Slot<T>>>,
    // Indices of empty slots. The one emptied last is reused first.
    free: Vec<u32>,
    // The generation of a slot that was never used.
    first_generation: u32,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T, const GENERATION_BITS: u32> Default for SlotMap<T, GENERATION_BITS> {
    fn default() -> Self {
        Self::new(0)
    }
}

impl<T, const GENERATION_BITS: u32> SlotMap<T, GENERATION_BITS> {
    const GENERATION_MAX: u32 = SlotKey::<GENERATION_BITS>::GENERATION_MAX;

    /// An empty table whose slots start with this generation, cut to its bits. If runs of a process start
    /// with different generations, a key of an earlier run rarely names a value of a later one. It can: a
    /// slot that was reused often has reached the generations of the later run.
    pub fn new(first_generation: u32) -> Self {
        let first_generation = first_generation & Self::GENERATION_MAX;
        Self { blocks: Vec::new(), free: Vec::new(), first_generation }
    }

    /// An empty table that has the memory of its first block from the start, so that no value ever moves.
    pub fn in_whole_blocks() -> Self {
        Self { blocks: vec![Vec::with_capacity(BLOCK)], ..Self::new(0) }
    }

    /// The number of values.
    pub fn len(&self) -> usize {
        self.index_end() as usize - self.free.len()
    }

    /// Whether the table has no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All indices are below this one: the number of slots, empty ones included.
    pub fn index_end(&self) -> u32 {
        match &self.blocks[..] {
            [] => 0,
            [full @ .., last] => (full.len() * BLOCK + last.len()) as u32,
        }
    }

    /// Adds a value.
    pub fn insert(&mut self, value: T) -> SlotKey<GENERATION_BITS> {
        if let Some(index) = self.free.pop() {
            let slot = &mut self.blocks[index as usize / BLOCK][index as usize % BLOCK];
            slot.value = Some(value);
            return SlotKey { index, generation: slot.generation };
        }
        let index = self.index_end();
        let generation = self.first_generation;
        let slot = Slot { generation, value: Some(value) };
        match self.blocks.last_mut() {
            Some(block) if block.len() < BLOCK => block.push(slot),
            Some(_) => {
                let mut block = Vec::with_capacity(BLOCK);
                block.push(slot);
                self.blocks.push(block);
            }
            // A table that stays small takes little memory.
            None => self.blocks.push(vec![slot]),
        }
        SlotKey { index, generation }
    }

    /// Removes the value with this key; `None` if the key names nothing.
    pub fn remove(&mut self, key: SlotKey<GENERATION_BITS>) -> Option<T> {
        let slot = self.slot_mut(key)?;
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1) & Self::GENERATION_MAX;
        self.free.push(key.index);
        Some(value)
    }

    /// The value with this key; `None` if the key names nothing.
    pub fn get(&self, key: SlotKey<GENERATION_BITS>) -> Option<&T> {
        let index = key.index as usize;
        let slot = self.blocks.get(index / BLOCK)?.get(index % BLOCK)?;
        slot.value.as_ref().filter(|_| slot.generation == key.generation)
    }

    /// The value with this key; `None` if the key names nothing.
    pub fn get_mut(&mut self, key: SlotKey<GENERATION_BITS>) -> Option<&mut T> {
        self.slot_mut(key)?.value.as_mut()
    }

    fn slot_mut(&mut self, key: SlotKey<GENERATION_BITS>) -> Option<&mut Slot<T>> {
        let index = key.index as usize;
        let slot = self.blocks.get_mut(index / BLOCK)?.get_mut(index % BLOCK)?;
        (slot.generation == key.generation).then_some(slot)
    }

    /// The value at this index, with its key; `None` if the slot is empty.
    pub fn at(&self, index: u32) -> Option<(SlotKey<GENERATION_BITS>, &T)> {
        let slot = self.blocks.get(index as usize / BLOCK)?.get(index as usize % BLOCK)?;
        let key = SlotKey { index, generation: slot.generation };
        Some((key, slot.value.as_ref()?))
    }

    /// The value at this index, with its key; `None` if the slot is empty.
    pub fn at_mut(&mut self, index: u32) -> Option<(SlotKey<GENERATION_BITS>, &mut T)> {
        let slot = self.blocks.get_mut(index as usize / BLOCK)?.get_mut(index as usize % BLOCK)?;
        let key = SlotKey { index, generation: slot.generation };
        Some((key, slot.value.as_mut()?))
    }

    /// All values with their keys, by index.
    pub fn iter(&self) -> impl Iterator<Item = (SlotKey<GENERATION_BITS>, &T)> {
        self.iter_from(0)
    }

    /// All values from this index on with their keys, by index.
    pub fn iter_from(&self, index: u32) -> impl Iterator<Item = (SlotKey<GENERATION_BITS>, &T)> {
        let (block, within) = (index as usize / BLOCK, index as usize % BLOCK);
        let slots = self.blocks.iter().skip(block).flatten().skip(within);
        slots.zip(index..).filter_map(|(slot, index)| {
            Some((SlotKey { index, generation: slot.generation }, slot.value.as_ref()?))
        })
    }

    /// All values with their keys, by index.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (SlotKey<GENERATION_BITS>, &mut T)> {
        self.blocks.iter_mut().flatten().zip(0..).filter_map(|(slot, index)| {
            Some((SlotKey { index, generation: slot.generation }, slot.value.as_mut()?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_nothing_once_its_value_is_removed() {
        let mut slots: SlotMap<char> = SlotMap::new(7);
        let first = slots.insert('a');
        assert_eq!((slots.remove(first), slots.remove(first)), (Some('a'), None));
        let second = slots.insert('b');
        assert_eq!((second.index, second.generation), (first.index, first.generation + 1));
        assert!(slots.get(first).is_none() && slots.get_mut(first).is_none());
        assert_eq!((slots.get(second), slots.len()), (Some(&'b'), 1));
        assert_eq!(SlotKey::from_bits(second.to_bits()), second);
        let unused = SlotKey { index: 5000, generation: 7 };
        assert!(slots.get(unused).is_none() && slots.remove(unused).is_none());
    }

    #[test]
    fn a_generation_wraps_at_its_bits_and_an_old_key_names_nothing_until_then() {
        let mut slots: SlotMap<u32, 2> = SlotMap::new(u32::MAX);
        let first = slots.insert(0);
        slots.remove(first);
        let generations = [1, 2, 3, 4].map(|number| {
            let key = slots.insert(number);
            let named = slots.get(first).copied();
            slots.remove(key);
            (key.generation, named)
        });
        assert_eq!(first.generation, 3);
        assert_eq!(generations, [(0, None), (1, None), (2, None), (3, Some(4))]);
    }

    #[test]
    fn values_of_full_blocks_stay_where_they_are_and_all_are_met_in_order() {
        let mut slots: SlotMap<usize> = SlotMap::default();
        let mut keys: Vec<SlotKey> = (0..BLOCK).map(|number| slots.insert(number)).collect();
        let first: *const usize = slots.get(keys[0]).unwrap();
        keys.extend((BLOCK..2 * BLOCK + 500).map(|number| slots.insert(number)));
        assert!(std::ptr::eq(first, slots.get(keys[0]).unwrap()));
        let gone = keys.remove(1500);
        assert_eq!(slots.remove(gone), Some(1500));
        assert_eq!(slots.len(), keys.len());
        assert!(slots.iter().map(|(key, _)| key).eq(keys.iter().copied()));
        assert!(slots.iter_from(1400).map(|(key, _)| key).eq(keys[1400..].iter().copied()));
        assert!(slots.iter_from(1500).map(|(key, _)| key).eq(keys[1500..].iter().copied()));
        slots.iter_mut().for_each(|(_, number)| *number += 1);
        assert_eq!(slots.at_mut(3).map(|(key, number)| (key, *number)), Some((keys[3], 4)));
        assert!(slots.at_mut(1500).is_none() && slots.at_mut(9999).is_none());
    }
}
