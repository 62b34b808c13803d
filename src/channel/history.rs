//! The latest messages of one channel, and the reigns in which they got their numbers.

use std::collections::VecDeque;

use super::ChannelPolicy;
use crate::message::{HistoryMessage, HistoryPart, REIGNS_MAX, Reign};
use crate::protocol::frame::{Frame, QUEUED_FRAME_BYTES};
use crate::protocol::position::{Position, Serial};

/// The bytes of messages in one part of a history. The last message may exceed them.
pub const PART_BYTES: usize = 64 * 1024;

/// A message in memory.
#[derive(Clone, Debug)]
pub struct KeptMessage {
    /// When the message was published, on the clock of the node.
    pub at_ms: u64,
    /// The idempotency key.
    pub key: Option<Box<str>>,
    /// The encoded message.
    pub frame: Frame,
}

impl KeptMessage {
    /// The memory of the message, in bytes.
    fn bytes(&self) -> usize {
        QUEUED_FRAME_BYTES + self.frame.bytes().len() + self.key.as_ref().map_or(0, |key| key.len())
    }

    /// The message as it travels.
    pub fn to_message(&self, now_ms: u64) -> HistoryMessage {
        let age_ms = now_ms.saturating_sub(self.at_ms);
        HistoryMessage { age_ms, key: self.key.clone(), frame: self.frame.clone() }
    }

    /// A message of another node.
    pub fn from_message(message: HistoryMessage, now_ms: u64) -> Self {
        let HistoryMessage { age_ms, key, frame } = message;
        Self { at_ms: now_ms.saturating_sub(age_ms), key, frame }
    }
}

/// The latest messages of a channel, numbered without gaps. Without reigns the history is unknown.
#[derive(Debug, Default)]
pub struct ChannelHistory {
    reigns: VecDeque<Reign>,
    messages: VecDeque<KeptMessage>,
    // The number of the last message, whether it is kept or not.
    last: Serial,
    bytes: usize,
}

impl ChannelHistory {
    /// The memory of all messages, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether no message is kept.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The number of messages that are kept.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// The latest reign; `None` if the history is unknown.
    pub fn reign(&self) -> Option<Reign> {
        self.reigns.back().copied()
    }

    /// The reigns, oldest first. Without any the history is unknown.
    pub fn reigns(&self) -> impl Iterator<Item = Reign> {
        self.reigns.iter().copied()
    }

    /// The place behind the last message; `None` if the history is unknown.
    pub fn place(&self) -> Option<Position> {
        self.position(self.last)
    }

    /// The number of the last message.
    pub fn last(&self) -> Serial {
        self.last
    }

    /// The number of the first message that is kept, or would be.
    pub fn first(&self) -> Serial {
        Serial(self.last.0 + 1 - self.messages.len() as u64)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Begins a reign with the next message, or, in an unknown history, with this number.
    pub fn begin(&mut self, reign: Reign) {
        if self.reigns.is_empty() {
            self.last = Serial(reign.first.0.saturating_sub(1));
        }
        debug_assert_eq!(reign.first, self.last.next(), "a reign begins with the next message");
        self.reigns.push_back(reign);
        if self.reigns.len() > REIGNS_MAX {
            self.reigns.pop_front();
        }
    }

    /// Appends a message, which gets the next number.
    pub fn push(&mut self, message: KeptMessage) -> Serial {
        self.bytes += message.bytes();
        self.messages.push_back(message);
        self.last = self.last.next();
        self.last
    }

    /// Drops the oldest message.
    pub fn drop_first(&mut self) {
        if let Some(message) = self.messages.pop_front() {
            self.bytes -= message.bytes();
        }
    }

    /// Drops messages that are too many, too large together, or too old.
    pub fn trim(&mut self, policy: &ChannelPolicy, now_ms: u64) {
        while let Some(first) = self.messages.front()
            && (self.messages.len() > policy.messages
                || self.bytes > policy.bytes
                || first.at_ms + policy.keep_ms <= now_ms)
        {
            self.drop_first();
        }
    }

    /// Takes back all messages behind this one. They were not delivered.
    pub fn truncate(&mut self, last: Serial) {
        while self.last > last
            && let Some(message) = self.messages.pop_back()
        {
            self.bytes -= message.bytes();
            self.last.0 -= 1;
        }
        self.last = self.last.min(last);
        while self.reigns.len() > 1
            && self.reigns.back().is_some_and(|reign| reign.first > self.last)
        {
            self.reigns.pop_back();
        }
    }

    /// The place behind the message with this number; `None` if the history is unknown.
    pub fn position(&self, serial: Serial) -> Option<Position> {
        let of_serial = self.reigns.iter().rev().find(|reign| reign.first <= serial);
        let reign = of_serial.or(self.reigns.front())?;
        Some(Position { epoch: reign.epoch, serial })
    }

    /// Whether a position is a place in this history, though messages behind it may have been dropped.
    pub fn covers(&self, position: Position) -> bool {
        let Some(at) = self.reigns.iter().position(|reign| reign.epoch == position.epoch) else {
            return false;
        };
        let end = self.reigns.get(at + 1).map_or(self.last.0, |next| next.first.0 - 1);
        let begin = self.reigns[at].first.0.saturating_sub(1);
        (begin..=end).contains(&position.serial.0)
    }

    /// Whether all messages behind a position are kept.
    pub fn reaches_back_to(&self, position: Position) -> bool {
        self.covers(position) && self.first() <= position.serial.next()
    }

    /// The messages behind a position, in order, each with the place behind it. `None`: some may be missing, or their
    /// frames have more than `bytes_max` bytes together.
    pub fn messages_behind(
        &self,
        position: Position,
        bytes_max: usize,
    ) -> Option<Vec<(Position, Frame)>> {
        if !self.reaches_back_to(position) {
            return None;
        }
        let skipped = (position.serial.next().0 - self.first().0) as usize;
        let numbered = (self.first().0..).zip(&self.messages).skip(skipped);
        let mut bytes_left = bytes_max;
        let mut found = Vec::with_capacity(self.messages.len() - skipped);
        for (serial, message) in numbered {
            bytes_left = bytes_left.checked_sub(message.frame.bytes().len())?;
            found.push((self.position(Serial(serial))?, message.frame.clone()));
        }
        Some(found)
    }

    /// The messages behind one with this number, up to another, in parts. There is at least one part.
    pub fn parts(&self, after: Serial, upto: Serial, now_ms: u64) -> Vec<HistoryPart> {
        let reigns: Vec<Reign> = self.reigns.iter().copied().collect();
        let skipped = (after.next().0.saturating_sub(self.first().0)) as usize;
        let first = self.first().max(after.next());
        let mut parts = vec![self.part(&reigns, first)];
        let mut bytes = 0;
        let messages = self.messages.iter().skip(skipped);
        for (serial, message) in (first.0..=upto.0).zip(messages) {
            if bytes >= PART_BYTES {
                parts.push(self.part(&reigns, Serial(serial)));
                bytes = 0;
            }
            bytes += message.bytes();
            let part = parts.last_mut().expect("there is one");
            part.messages.push(message.to_message(now_ms));
        }
        parts.last_mut().expect("there is one").is_last = true;
        parts
    }

    fn part(&self, reigns: &[Reign], first: Serial) -> HistoryPart {
        let reigns = reigns.to_vec();
        HistoryPart { reigns, first, replaces: false, messages: Vec::new(), is_last: false }
    }

    /// The whole history, or what follows a position that it reaches back to, in parts.
    pub fn parts_behind(&self, position: Option<Position>, now_ms: u64) -> Vec<HistoryPart> {
        match position.filter(|&position| self.reaches_back_to(position)) {
            Some(position) => self.parts(position.serial, self.last, now_ms),
            None => {
                let mut parts = self.parts(Serial(0), self.last, now_ms);
                parts[0].replaces = true;
                parts
            }
        }
    }

    /// Takes a part of a history of another node. Returns false, and forgets everything, if the part does not
    /// follow what is held.
    pub fn adopt(&mut self, part: HistoryPart, now_ms: u64) -> bool {
        if part.replaces {
            self.clear();
            self.last = Serial(part.first.0.saturating_sub(1));
        }
        if self.last.next() != part.first || part.reigns.len() > REIGNS_MAX {
            self.clear();
            return false;
        }
        self.reigns = part.reigns.into();
        for message in part.messages {
            self.push(KeptMessage::from_message(message, now_ms));
        }
        true
    }

    /// The idempotency keys of the messages, with the numbers and times of these.
    pub fn keys(&self) -> impl Iterator<Item = (&str, Serial, u64)> {
        (self.first().0..).zip(&self.messages).filter_map(|(serial, message)| {
            Some((message.key.as_deref()?, Serial(serial), message.at_ms))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::NodeId;
    use crate::message::Ballot;
    use crate::protocol::frame::Kind;
    use crate::protocol::position::Epoch;

    const POLICY: ChannelPolicy =
        ChannelPolicy { messages: 4, bytes: 1 << 20, keep_ms: 1000, copies: 2 };

    fn message(number: u64) -> KeptMessage {
        let frame = Frame::message(Kind::Text, number.to_string().as_bytes());
        KeptMessage { at_ms: number, key: Some(number.to_string().into()), frame }
    }

    fn reign(epoch: u64, first: u64) -> Reign {
        let ballot = Ballot { round: epoch, node: NodeId::new(1).unwrap() };
        Reign { epoch: Epoch(epoch), ballot, first: Serial(first) }
    }

    fn place(epoch: u64, serial: u64) -> Position {
        Position { epoch: Epoch(epoch), serial: Serial(serial) }
    }

    /// Messages 1 to 3 of reign 7, and 4 to 6 of reign 8.
    fn history() -> ChannelHistory {
        let mut history = ChannelHistory::default();
        history.begin(reign(7, 1));
        (1..=3).for_each(|number| _ = history.push(message(number)));
        history.begin(reign(8, 4));
        (4..=6).for_each(|number| _ = history.push(message(number)));
        history
    }

    #[test]
    fn a_position_counts_only_in_the_reign_that_gave_it() {
        let history = history();
        for known in [(7, 0), (7, 3), (8, 3), (8, 6)] {
            assert!(history.covers(place(known.0, known.1)), "{known:?}");
        }
        for unknown in [(7, 4), (8, 2), (8, 7), (9, 1)] {
            assert!(!history.covers(place(unknown.0, unknown.1)), "{unknown:?}");
        }
        let ends = [0, 3, 4, 6].map(|serial| history.position(Serial(serial)));
        assert_eq!(ends, [place(7, 0), place(7, 3), place(8, 4), place(8, 6)].map(Some));
        assert_eq!(ChannelHistory::default().position(Serial(0)), None);
    }

    #[test]
    fn messages_that_are_too_many_too_large_or_too_old_are_dropped_oldest_first() {
        let mut history = history();
        history.trim(&POLICY, 10);
        assert_eq!((history.len(), history.first()), (4, Serial(3)));
        assert!(history.reaches_back_to(place(7, 2)) && !history.reaches_back_to(place(7, 1)));
        assert!(history.covers(place(7, 1)), "a place stays known when its messages are gone");
        history.trim(&POLICY, 1004);
        assert_eq!(history.first(), Serial(5), "a message is kept less than a second");
        let bytes = history.bytes() / 2;
        history.trim(&ChannelPolicy { bytes, ..POLICY }, 10);
        assert_eq!((history.len(), history.bytes()), (1, bytes));
        history.trim(&POLICY, 5000);
        assert_eq!((history.len(), history.bytes(), history.last()), (0, 0, Serial(6)));
        assert!(history.reaches_back_to(place(8, 6)) && !history.reaches_back_to(place(8, 5)));
    }

    #[test]
    fn what_was_not_delivered_is_taken_back_with_its_reign() {
        let mut history = history();
        history.truncate(Serial(4));
        assert_eq!((history.last(), history.reign()), (Serial(4), Some(reign(8, 4))));
        history.truncate(Serial(3));
        assert_eq!((history.last(), history.reign()), (Serial(3), Some(reign(7, 1))));
        assert_eq!(history.keys().map(|(key, ..)| key).collect::<Vec<_>>(), ["1", "2", "3"]);
        history.begin(reign(9, 4));
        assert_eq!(history.push(message(4)), Serial(4));
    }

    #[test]
    fn a_holder_gets_what_it_lacks_and_everything_if_its_place_is_unknown() {
        let mut home = history();
        for number in 7..40 {
            let frame = Frame::message(Kind::Binary, &[0; 10_000]);
            home.push(KeptMessage { frame, ..message(number) });
        }
        for known in [None, Some(place(7, 2)), Some(place(8, 39)), Some(place(9, 2))] {
            let mut holder = ChannelHistory::default();
            holder.begin(reign(7, 1));
            (1..=2).for_each(|number| _ = holder.push(message(number)));
            if known == Some(place(8, 39)) {
                holder = history();
                (7..40).for_each(|number| _ = holder.push(message(number)));
            }
            let parts = home.parts_behind(known, 100);
            let lasts = parts.iter().map(|part| part.is_last);
            assert!(lasts.eq((1..=parts.len()).map(|at| at == parts.len())));
            for part in parts {
                let bytes: usize =
                    part.messages.iter().map(|message| message.frame.bytes().len()).sum();
                assert!(bytes < PART_BYTES + 10_100, "the last message may exceed the bytes");
                assert!(holder.adopt(part, 100), "{known:?}");
            }
            assert_eq!((holder.last(), holder.len()), (home.last(), home.len()));
            assert!(holder.covers(place(7, 1)) && holder.reign() == home.reign());
        }
    }

    #[test]
    fn a_part_that_does_not_follow_leaves_the_history_unknown() {
        let mut holder = history();
        let mut part = holder.parts(Serial(3), Serial(6), 10).remove(0);
        assert_eq!((part.first, part.messages.len()), (Serial(4), 3));
        part.first = Serial(8);
        assert!(!holder.adopt(part, 10));
        assert_eq!((holder.reign(), holder.len(), holder.bytes()), (None, 0, 0));
    }
}
