//! What one shard's clients push into one topic: against credit, else they wait.

use std::collections::VecDeque;

use crate::message::{ConnectionKey, Credit, Event};

/// An event that waits for room, and the connection that waits with it. There is at most one per
/// connection that is read from, plus the close events of those that are gone, and one report of a
/// client of another node.
#[derive(Debug)]
pub struct Waiting {
    /// The connection that is not read from meanwhile, if there is one.
    pub from: Option<ConnectionKey>,
    /// The event.
    pub event: Event,
}

/// One shard's end of a topic that is fed by its clients.
#[derive(Debug)]
pub struct Feeder {
    credit: Credit,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    asked: bool,
}

impl Feeder {
    /// A feeder that starts with this much credit.
    pub fn new(credit: Credit) -> Self {
        Self { credit, waiting: VecDeque::new(), waiting_bytes: 0, asked: false }
    }

    /// Whether a message of so many bytes may be pushed now; if so its credit is used up. Behind
    /// messages that wait nothing may.
    pub fn take(&mut self, bytes: usize) -> bool {
        let may = self.waiting.is_empty() && self.covers(bytes);
        if may {
            self.spend(bytes);
        }
        may
    }

    /// Lets a message wait.
    pub fn wait(&mut self, waiting: Waiting) {
        self.waiting_bytes += waiting.event.frame.bytes().len();
        self.waiting.push_back(waiting);
    }

    /// How many messages wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Their bytes.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// What to ask the topic for: the bytes of the first message that waits, once until there is
    /// credit for it or [`Self::refused`].
    pub fn poll_ask(&mut self) -> Option<usize> {
        let first = self.waiting.front().filter(|_| !self.asked)?;
        self.asked = true;
        Some(first.event.frame.bytes().len())
    }

    /// More credit. Messages that may go now come out of [`Self::poll_ready`]. Credit that is not
    /// enough was lent before the topic heard the question, which it still answers: asked twice, it
    /// would lend what nobody uses.
    pub fn granted(&mut self, credit: Credit) {
        self.credit.messages += credit.messages;
        self.credit.bytes += credit.bytes;
        let first = self.waiting.front().map(|waiting| waiting.event.frame.bytes().len());
        self.asked &= first.is_some_and(|bytes| !self.covers(bytes));
    }

    /// A message that waited and may be pushed now.
    pub fn poll_ready(&mut self) -> Option<Waiting> {
        let bytes = self.waiting.front()?.event.frame.bytes().len();
        if !self.covers(bytes) {
            return None;
        }
        self.spend(bytes);
        self.waiting_bytes -= bytes;
        self.waiting.pop_front()
    }

    /// There is no room and nobody is to wait for it: takes out all that waited.
    pub fn refused(&mut self) -> VecDeque<Waiting> {
        self.asked = false;
        self.waiting_bytes = 0;
        std::mem::take(&mut self.waiting)
    }

    fn covers(&self, bytes: usize) -> bool {
        self.credit.messages > 0 && self.credit.bytes >= bytes
    }

    fn spend(&mut self, bytes: usize) {
        self.credit.messages -= 1;
        self.credit.bytes -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::ClientId;
    use crate::protocol::frame::Frame;

    #[test]
    fn credit_that_is_not_enough_does_not_make_it_ask_again() {
        let mut feeder = Feeder::new(Credit::default());
        let (client, frame) = (ClientId::from_value(1), Frame::from_encoded(b"message"));
        let event = Event { client, frame, is_watched: false };
        feeder.wait(Waiting { from: None, event });
        assert_eq!(feeder.poll_ask(), Some(7));
        feeder.granted(Credit { messages: 0, bytes: 7 });
        assert!(feeder.poll_ready().is_none() && feeder.poll_ask().is_none());
        feeder.granted(Credit { messages: 1, bytes: 0 });
        assert!(feeder.poll_ready().is_some() && feeder.poll_ask().is_none());
    }
}
