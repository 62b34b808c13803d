//! The histories of all channels whose home is one shard, within one bound of bytes.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use super::ChannelPolicy;
use super::history::{ChannelHistory, KeptMessage};
use crate::address::NodeId;
use crate::address::placement::{hash, mix};
use crate::message::{Ballot, HistoryPart, Reign};
use crate::protocol::frame::Frame;
use crate::protocol::position::{Epoch, Position, Serial};
use crate::slot_map::{SlotKey, SlotMap};

/// The memory of a channel without messages, in bytes, besides its name: its slot, its entry in the table of names,
/// the room for its reign and for the first messages.
const CHANNEL_BYTES: usize = 512;

/// The part of all memory that channels without messages may take.
const EMPTY_PART: usize = 4;

/// The part of all memory that one channel may take.
const CHANNEL_PART: usize = 8;

/// The interval of sweeps, in milliseconds, and the channels that one sweep visits.
const SWEEP_MS: u64 = 1000;
const SWEPT_CHANNELS: usize = 1024;

/// The entries by which messages are dropped oldest first may be so many more than twice the messages.
const STALE_ENTRIES_MAX: usize = 1024;

/// The channels whose home one shard is.
///
/// A channel that was forgotten and comes back goes on behind the highest number of all that were forgotten. So no
/// number names two messages of one channel.
#[derive(Debug)]
pub struct Histories {
    own: NodeId,
    // What the epochs of all channels are made of.
    epoch: Epoch,
    // The highest number of any channel that was forgotten.
    floor: Serial,
    channels: SlotMap<HomeChannel>,
    by_name: HashMap<Arc<str>, SlotKey>,
    // All kept messages, oldest first, and some that are not kept any more.
    order: VecDeque<(SlotKey, Serial)>,
    // The number of all kept messages.
    messages: usize,
    // Memory of channels and their messages, and its bound.
    bytes: usize,
    bytes_max: usize,
    // Channels without messages.
    empty: usize,
    // Messages dropped because all together took too much memory.
    dropped: u64,
    // Where the next sweep begins, and when it is due.
    sweep_from: u32,
    sweep_ms: u64,
    // Whether channels without messages are remembered for their numbers.
    keeps_empty: bool,
}

#[derive(Debug)]
struct HomeChannel {
    name: Arc<str>,
    policy: ChannelPolicy,
    history: ChannelHistory,
    // When the channel was used last.
    used_ms: u64,
}

impl HomeChannel {
    fn fixed_bytes(&self) -> usize {
        CHANNEL_BYTES + self.name.len()
    }
}

/// What a subscriber gets that was away.
#[derive(Debug, PartialEq, Eq)]
pub struct RecoveredChannel {
    /// The place behind the last message of the channel.
    pub position: Position,
    /// The messages behind the place that the subscriber knew, in order. `None`: some may be missing, or they are
    /// too large together.
    pub missed: Option<Vec<(Position, Frame)>>,
}

impl Histories {
    /// Creates the home of no channel yet. The epoch is unique among all homes, also those of earlier runs. Messages
    /// may take `bytes_max` bytes of memory together, and one channel an eighth of it.
    pub fn new(own: NodeId, epoch: Epoch, bytes_max: usize) -> Self {
        Self {
            own,
            epoch,
            floor: Serial(0),
            channels: SlotMap::default(),
            by_name: HashMap::new(),
            order: VecDeque::new(),
            messages: 0,
            bytes: 0,
            bytes_max,
            empty: 0,
            dropped: 0,
            sweep_from: 0,
            sweep_ms: 0,
            keeps_empty: false,
        }
    }

    /// Creates the histories of a node in a grid. Nodes agree on the reigns and the numbers of a channel, so an unknown
    /// history stays so until it is told what to hold.
    pub fn in_grid(own: NodeId, epoch: Epoch, bytes_max: usize) -> Self {
        Self { keeps_empty: true, ..Self::new(own, epoch, bytes_max) }
    }

    /// The history of a channel, if any is held.
    pub fn of(&self, channel: &str) -> Option<&ChannelHistory> {
        let home = self.channels.get(*self.by_name.get(channel)?)?;
        home.history.reign().map(|_| &home.history)
    }

    /// Begins a reign over a channel with its next message, or with the first message of an unknown history.
    pub fn begin(&mut self, channel: &Arc<str>, policy: &ChannelPolicy, reign: Reign, now_ms: u64) {
        let key = self.open_unknown(channel, policy, now_ms);
        self.change(key, now_ms, |history| history.begin(reign));
    }

    /// Appends a message to a known history. Returns its number.
    pub fn push(
        &mut self,
        channel: &Arc<str>,
        policy: &ChannelPolicy,
        message: KeptMessage,
        now_ms: u64,
    ) -> Serial {
        let key = self.open_unknown(channel, policy, now_ms);
        let serial = self.change(key, now_ms, |history| history.push(message));
        self.order.push_back((key, serial));
        self.make_room();
        serial
    }

    /// Takes a part of the history of another node. Returns false, and forgets the channel, if the part does not follow
    /// what is held.
    pub fn adopt(
        &mut self,
        channel: &Arc<str>,
        policy: &ChannelPolicy,
        part: HistoryPart,
        now_ms: u64,
    ) -> bool {
        if part.replaces {
            self.clear(channel);
        }
        let key = self.open_unknown(channel, policy, now_ms);
        let (first, count) = (part.first, part.messages.len() as u64);
        if !self.change(key, now_ms, |history| history.adopt(part, now_ms)) {
            self.clear(channel);
            return false;
        }
        self.order.extend((first.0..first.0 + count).map(|serial| (key, Serial(serial))));
        self.make_room();
        true
    }

    /// Takes back the messages of a channel behind one. They were not delivered.
    pub fn truncate(&mut self, channel: &Arc<str>, last: Serial, now_ms: u64) {
        let Some(&key) = self.by_name.get(channel) else { return };
        self.change(key, now_ms, |history| history.truncate(last));
        // The numbers are given again. With another key, the entries of the old messages are not taken for the new ones.
        let Some(home) = self.channels.remove(key) else { return };
        let kept = home.history.first().0..=home.history.last().0;
        let key = self.channels.insert(home);
        self.by_name.insert(channel.clone(), key);
        self.order.extend(kept.map(|serial| (key, Serial(serial))));
        self.drop_stale_entries();
    }

    /// Forgets a channel with all its messages.
    pub fn clear(&mut self, channel: &str) {
        let Some(key) = self.by_name.remove(channel) else { return };
        let Some(home) = self.channels.remove(key) else { return };
        self.bytes -= home.fixed_bytes() + home.history.bytes();
        self.messages -= home.history.len();
        self.empty -= usize::from(home.history.is_empty());
        self.drop_stale_entries();
    }

    /// The number of channels that are remembered.
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// The number of messages that are kept.
    pub fn messages(&self) -> usize {
        self.messages
    }

    /// The memory of channels and their messages, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Messages dropped so far because all channels together took too much memory.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The number of messages that are kept of a channel.
    pub fn messages_of(&self, channel: &str) -> usize {
        self.by_name
            .get(channel)
            .and_then(|&key| self.channels.get(key))
            .map_or(0, |channel| channel.history.len())
    }

    /// Appends a message to the history of a channel. Returns the place behind it.
    pub fn append(
        &mut self,
        channel: &Arc<str>,
        policy: &ChannelPolicy,
        frame: Frame,
        now_ms: u64,
    ) -> Position {
        let key = self.open(channel, policy, now_ms);
        let serial = self.change(key, now_ms, |history| {
            history.push(KeptMessage { at_ms: now_ms, key: None, frame })
        });
        self.order.push_back((key, serial));
        self.make_room();
        Position { epoch: self.epoch_of(channel), serial }
    }

    /// Returns the place behind the last message of a channel, and what was published since another place.
    /// The frames of what was missed may have `bytes_max` bytes together.
    pub fn recover(
        &mut self,
        channel: &Arc<str>,
        policy: &ChannelPolicy,
        since: Option<Position>,
        bytes_max: usize,
        now_ms: u64,
    ) -> RecoveredChannel {
        if !self.by_name.contains_key(channel) && self.has_many_empty() {
            // Nothing was published since the floor was reached, if it still is the floor when the channel begins.
            let position = Position { epoch: self.epoch_of(channel), serial: self.floor };
            return RecoveredChannel { position, missed: (since == Some(position)).then(Vec::new) };
        }
        let key = self.open(channel, policy, now_ms);
        let recovered = self.change(key, now_ms, |history| {
            let missed = since.and_then(|since| history.messages_behind(since, bytes_max));
            (history.last(), missed)
        });
        let (serial, missed) = recovered;
        self.make_room();
        RecoveredChannel { position: Position { epoch: self.epoch_of(channel), serial }, missed }
    }

    /// Drops up to `count` messages, the oldest of all channels, because the node is short of memory. Returns the number
    /// of dropped messages.
    pub fn drop_oldest(&mut self, count: usize) -> usize {
        (0..count).take_while(|_| self.drop_one()).count()
    }

    /// Returns when [`Self::sweep`] is due. `None`: there is nothing to sweep.
    pub fn next_sweep(&self) -> Option<u64> {
        (!self.channels.is_empty()).then_some(self.sweep_ms)
    }

    /// Drops messages and keys that are too old, and forgets channels that nobody uses: some channels at a time.
    /// `is_followed` says whether a channel has subscribers.
    pub fn sweep(&mut self, now_ms: u64, is_followed: impl Fn(&str) -> bool) {
        if now_ms < self.sweep_ms || self.channels.is_empty() {
            return;
        }
        self.sweep_ms = now_ms + SWEEP_MS;
        let end = self.channels.index_end();
        for _ in 0..SWEPT_CHANNELS.min(end as usize) {
            let index = self.sweep_from.min(end - 1);
            self.sweep_from = if index + 1 < end { index + 1 } else { 0 };
            let Some((key, home)) = self.channels.at_mut(index) else { continue };
            if is_followed(&home.name) {
                home.used_ms = now_ms;
            }
            let is_unused = home.used_ms + home.policy.keep_ms <= now_ms;
            let is_empty = self.change(key, now_ms, |history| history.is_empty());
            if is_unused && is_empty {
                self.forget(key);
            }
        }
        self.drop_stale_entries();
    }

    /// Checks that the sums are right. Visits every channel.
    ///
    /// # Panics
    /// One is wrong.
    pub fn check(&self) {
        let all = || self.channels.iter().map(|(_, home)| home);
        let bytes: usize = all().map(|home| home.fixed_bytes() + home.history.bytes()).sum();
        assert_eq!(self.bytes, bytes, "bytes of histories");
        assert_eq!(self.messages, all().map(|home| home.history.len()).sum::<usize>(), "messages");
        let empty = all().filter(|home| home.history.is_empty()).count();
        assert_eq!(self.empty, empty, "channels without messages");
        assert_eq!(self.channels.len(), self.by_name.len(), "names");
        assert!(self.order.len() <= 2 * self.messages + STALE_ENTRIES_MAX + 1, "stale entries");
    }

    /// Returns the channel. If it is not known, its history is unknown.
    fn open_unknown(&mut self, channel: &Arc<str>, policy: &ChannelPolicy, now_ms: u64) -> SlotKey {
        let policy =
            ChannelPolicy { bytes: policy.bytes.min(self.bytes_max / CHANNEL_PART), ..*policy };
        if let Some(&key) = self.by_name.get(channel) {
            let home = self.channels.get_mut(key).expect("the name is that of a channel");
            (home.used_ms, home.policy) = (now_ms, policy);
            return key;
        }
        let history = ChannelHistory::default();
        let home = HomeChannel { name: channel.clone(), policy, history, used_ms: now_ms };
        self.bytes += home.fixed_bytes();
        self.empty += 1;
        let key = self.channels.insert(home);
        self.by_name.insert(channel.clone(), key);
        key
    }

    /// Returns the channel, which begins now if it is not known.
    fn open(&mut self, channel: &Arc<str>, policy: &ChannelPolicy, now_ms: u64) -> SlotKey {
        let key = self.open_unknown(channel, policy, now_ms);
        let home = self.channels.get_mut(key).expect("it was opened");
        if home.history.reign().is_none() {
            let ballot = Ballot { round: 0, node: self.own };
            let epoch = Epoch(self.epoch.0 ^ mix(hash(channel.as_bytes())));
            home.history.begin(Reign { epoch, ballot, first: self.floor.next() });
        }
        key
    }

    /// Changes the history of a channel, which keeps to its bounds before and after.
    fn change<T>(
        &mut self,
        key: SlotKey,
        now_ms: u64,
        change: impl FnOnce(&mut ChannelHistory) -> T,
    ) -> T {
        let home = self.channels.get_mut(key).expect("the key is that of a channel");
        let (bytes, messages) = (home.history.bytes(), home.history.len());
        home.history.trim(&home.policy, now_ms);
        let changed = change(&mut home.history);
        home.history.trim(&home.policy, now_ms);
        self.bytes = self.bytes + home.history.bytes() - bytes;
        self.messages = self.messages + home.history.len() - messages;
        self.empty = self.empty + usize::from(home.history.is_empty()) - usize::from(messages == 0);
        changed
    }

    fn has_many_empty(&self) -> bool {
        self.empty * CHANNEL_BYTES > self.bytes_max / EMPTY_PART
    }

    /// Drops the oldest messages of all channels until the rest fits.
    fn make_room(&mut self) {
        if self.bytes > self.bytes_max && self.has_many_empty() {
            self.forget_empty_channels();
        }
        while self.bytes > self.bytes_max && self.drop_one() {
            self.dropped += 1;
        }
        self.drop_stale_entries();
    }

    /// Drops the oldest message of all channels. Returns false if there is none.
    fn drop_one(&mut self) -> bool {
        while let Some((key, serial)) = self.order.pop_front() {
            let Some(home) = self.channels.get_mut(key) else { continue };
            if home.history.is_empty() || home.history.first() > serial {
                continue;
            }
            let bytes = home.history.bytes();
            home.history.drop_first();
            self.bytes = self.bytes + home.history.bytes() - bytes;
            self.messages -= 1;
            if home.history.is_empty() {
                self.empty += 1;
                if !self.keeps_empty {
                    self.forget(key);
                }
            }
            return true;
        }
        false
    }

    /// The epoch of a channel: unique among all homes, and almost surely among the channels of this one. So the position of
    /// another channel is unknown.
    fn epoch_of(&self, channel: &str) -> Epoch {
        Epoch(self.epoch.0 ^ mix(hash(channel.as_bytes())))
    }

    /// Forgets the channels that have no messages. Their positions become unknown.
    fn forget_empty_channels(&mut self) {
        let empty = self.channels.iter().filter(|(_, home)| home.history.is_empty());
        let empty: Vec<SlotKey> = empty.map(|(key, _)| key).collect();
        empty.into_iter().for_each(|key| self.forget(key));
    }

    /// Forgets a channel without messages.
    fn forget(&mut self, key: SlotKey) {
        let Some(home) = self.channels.remove(key) else { return };
        debug_assert!(home.history.is_empty());
        self.by_name.remove(&home.name);
        self.bytes -= home.fixed_bytes();
        self.empty -= 1;
        self.floor = self.floor.max(home.history.last());
    }

    fn drop_stale_entries(&mut self) {
        if self.order.len() <= 2 * self.messages + STALE_ENTRIES_MAX {
            return;
        }
        let channels = &self.channels;
        self.order.retain(|&(key, serial)| {
            let history = channels.get(key).map(|home| &home.history);
            history.is_some_and(|history| !history.is_empty() && history.first() <= serial)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::frame::Kind;

    const POLICY: ChannelPolicy =
        ChannelPolicy { messages: 4, bytes: usize::MAX, keep_ms: 1000, copies: 1 };

    fn histories(bytes_max: usize) -> Histories {
        Histories::new(NodeId::new(1).expect("1 is a node id"), Epoch(7), bytes_max)
    }

    fn frame(text: &str) -> Frame {
        Frame::message(Kind::Text, text.as_bytes())
    }

    fn texts(recovered: RecoveredChannel) -> Option<Vec<String>> {
        let text = |(_, frame): (Position, Frame)| {
            String::from_utf8(frame.payload().to_vec()).expect("it was text")
        };
        Some(recovered.missed?.into_iter().map(text).collect())
    }

    #[test]
    fn what_was_published_since_a_position_is_recovered_or_said_to_be_missing() {
        let (mut histories, a) = (histories(1 << 20), Arc::from("a"));
        let start = histories.recover(&a, &POLICY, None, 1000, 0).position;
        let positions: Vec<Position> =
            (1..=5).map(|n| histories.append(&a, &POLICY, frame(&n.to_string()), n)).collect();
        let mut since = |position, bytes_max, now_ms| {
            texts(histories.recover(&a, &POLICY, Some(position), bytes_max, now_ms))
        };
        assert_eq!(since(positions[4], 1000, 5), Some(vec![]));
        assert_eq!(since(positions[2], 1000, 5), Some(vec!["4".into(), "5".into()]));
        assert_eq!(since(positions[0], 1000, 5).map(|missed| missed.len()), Some(4));
        assert_eq!(since(start, 1000, 5), None, "four messages are kept");
        assert_eq!(since(positions[0], 11, 5), None, "four frames have 12 bytes");
        assert_eq!(since(positions[2], 1000, 1004), None, "the fourth message is too old");
        assert_eq!(since(positions[3], 1000, 1004), Some(vec!["5".into()]));
        let unknown = Position { epoch: Epoch(8), ..positions[4] };
        assert_eq!(since(unknown, 1000, 5), None);
        let other = histories.append(&Arc::from("b"), &POLICY, frame("x"), 5);
        let of_other = Position { epoch: other.epoch, ..positions[4] };
        assert_eq!(histories.recover(&a, &POLICY, Some(of_other), 1000, 5).missed, None);
        histories.check();
    }

    #[test]
    fn a_channel_is_forgotten_when_nobody_uses_it_and_never_takes_an_old_position_for_a_new_one() {
        let mut histories = histories(1 << 20);
        let (a, b) = (Arc::from("a"), Arc::from("b"));
        let position = histories.append(&a, &POLICY, frame("1"), 0);
        histories.append(&b, &POLICY, frame("1"), 0);
        let is_followed = |channel: &str| channel == "b";
        histories.sweep(0, is_followed);
        assert_eq!((histories.channels(), histories.messages()), (2, 2));
        histories.sweep(1000, is_followed);
        assert_eq!((histories.channels(), histories.messages()), (1, 0));
        assert_eq!(histories.append(&a, &POLICY, frame("2"), 1000).serial, Serial(2));
        let recovered = histories.recover(&a, &POLICY, Some(position), 1000, 1000);
        assert_eq!(texts(recovered), Some(vec!["2".into()]), "nothing else was published since");
        histories.append(&b, &POLICY, frame("2"), 1000);
        histories.append(&b, &POLICY, frame("3"), 1000);
        for now_ms in [3000, 4000] {
            histories.sweep(now_ms, |_| false);
        }
        assert_eq!((histories.channels(), histories.next_sweep()), (0, None));
        histories.append(&a, &POLICY, frame("3"), 4000);
        let recovered = histories.recover(&a, &POLICY, Some(position), 1000, 4000);
        assert_eq!(recovered.missed, None, "the second message of the channel is gone");
        histories.check();
    }

    #[test]
    fn the_oldest_messages_of_all_channels_make_room_for_new_ones() {
        let mut histories = histories(100_000);
        let policy = ChannelPolicy { messages: 1000, ..POLICY };
        let names: Vec<Arc<str>> = (0..10).map(|n: u32| n.to_string().into()).collect();
        for round in 0..100 {
            for name in &names {
                histories.append(name, &policy, frame(&"x".repeat(900)), round);
                histories.check();
            }
        }
        assert!((95_000..=100_000).contains(&histories.bytes()), "{}", histories.bytes());
        assert_eq!(histories.dropped() as usize + histories.messages(), 1000);
        let kept = names.iter().map(|name| histories.messages_of(name));
        assert!(kept.clone().max() <= kept.min().map(|least| least + 1), "dropped evenly");
        let messages = histories.messages();
        assert_eq!(histories.drop_oldest(7), 7);
        assert_eq!(
            (histories.messages(), histories.dropped()),
            (messages - 7, 1000 - messages as u64)
        );
        histories.check();
        for round in 100..200 {
            histories.append(&names[0], &policy, frame(&"x".repeat(900)), round);
        }
        assert!(histories.messages_of(&names[0]) <= 100_000 / CHANNEL_PART / 900);
        let left = histories.messages();
        assert_eq!(histories.drop_oldest(usize::MAX), left);
        assert_eq!((histories.messages(), histories.channels(), histories.bytes()), (0, 0, 0));
        histories.check();
    }

    #[test]
    fn channels_that_are_only_asked_about_take_a_part_of_the_memory() {
        let mut histories = histories(100_000);
        let ask = |histories: &mut Histories, n: u32, since| {
            histories.recover(&n.to_string().into(), &POLICY, since, 1000, 0)
        };
        for n in 0..10_000 {
            let position = ask(&mut histories, n, None).position;
            let again = ask(&mut histories, n, Some(position));
            assert_eq!((again.position, again.missed), (position, Some(vec![])));
        }
        assert!(histories.bytes() < 30_000);
        histories.check();
        for n in 0..10_000u32 {
            histories.append(&n.to_string().into(), &POLICY, frame("x"), 0);
        }
        assert!(histories.bytes() <= 100_000);
        histories.check();
    }

    #[test]
    fn a_busy_channel_leaves_no_trail_of_dropped_messages() {
        let (mut histories, a) = (histories(1 << 20), Arc::from("a"));
        histories.append(&Arc::from("quiet"), &POLICY, frame("x"), 0);
        for n in 0..10_000 {
            histories.append(&a, &POLICY, frame("x"), n / 100);
            histories.check();
        }
        assert_eq!((histories.messages(), histories.dropped()), (5, 0));
    }
}
