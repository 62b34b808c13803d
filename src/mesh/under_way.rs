//! Subscribes that are under way. Who asks for one may publish behind it without waiting for the
//! answer, and what a connection asks for takes effect in order: so the node that a subscribe goes to,
//! and there the shard, are taken to want its channels for as long as it may be unanswered.

use std::collections::VecDeque;

use hashbrown::HashMap;

/// Subscribes that are remembered at a time. Beyond it the oldest is forgotten: what is published
/// behind it may miss the client that it subscribes, unless who publishes waits for the answer.
const REMEMBERED_MAX: usize = 1 << 16;

/// Who is being subscribed to what.
#[derive(Debug)]
pub struct UnderWay<T> {
    // By channel: who, and how many of those in `noted` say so.
    channels: HashMap<u64, Vec<(T, u32)>>,
    // In the order they were noted, and when they are forgotten.
    noted: VecDeque<(u64, u64, T)>,
}

impl<T> Default for UnderWay<T> {
    fn default() -> Self {
        Self { channels: HashMap::new(), noted: VecDeque::new() }
    }
}

impl<T: Copy + PartialEq> UnderWay<T> {
    /// A subscribe goes there; it is remembered until this time, which is never before the last's.
    pub fn note(&mut self, until_ms: u64, channel: u64, who: T) {
        if self.noted.len() == REMEMBERED_MAX {
            self.forget_oldest();
        }
        self.noted.push_back((until_ms, channel, who));
        let of_channel = self.channels.entry(channel).or_default();
        match of_channel.iter_mut().find(|(known, _)| *known == who) {
            Some((_, count)) => *count += 1,
            None => of_channel.push((who, 1)),
        }
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.noted.is_empty()
    }

    /// Those that a subscribe to this channel went to of late.
    pub fn who(&self, channel: u64) -> impl Iterator<Item = T> {
        self.channels.get(&channel).into_iter().flatten().map(|(who, _)| *who)
    }

    /// Forgets those whose time is over.
    pub fn expire(&mut self, now_ms: u64) {
        while self.noted.front().is_some_and(|(until_ms, ..)| *until_ms <= now_ms) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((_, channel, who)) = self.noted.pop_front() else { return };
        let Some(of_channel) = self.channels.get_mut(&channel) else { return };
        if let Some((_, count)) = of_channel.iter_mut().find(|(known, _)| *known == who) {
            *count -= 1;
        }
        of_channel.retain(|(_, count)| *count > 0);
        if of_channel.is_empty() {
            self.channels.remove(&channel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_remembered_until_the_last_that_was_noted_is_over() {
        let mut under_way = UnderWay::default();
        under_way.note(10, 7, 'a');
        under_way.note(11, 7, 'b');
        under_way.note(12, 7, 'a');
        under_way.expire(11);
        assert_eq!(under_way.who(7).collect::<Vec<_>>(), ['a']);
        under_way.expire(12);
        assert!(under_way.who(7).next().is_none() && under_way.channels.is_empty());
    }
}
