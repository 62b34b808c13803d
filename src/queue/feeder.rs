//! What one shard's clients push into one topic: against credit, else they wait.
//!
//! Up to [`EVENTS_BYTES`] of encoded events wait. Beyond that nothing more is encoded: a client that has
//! more to say is *deferred*. What it sent stays as it came, compressed if it was, and is bounded by
//! what is read ahead of a connection.

use std::collections::VecDeque;

use crate::address::ClientId;
use crate::message::{ConnectionKey, Credit, Event};

/// Bytes of encoded events that wait in one feeder, before the last.
const EVENTS_BYTES: usize = 1 << 20;

/// An event that waits for room, and the connection that waits with it: at most one event for each
/// connection.
#[derive(Debug)]
pub struct Waiting {
    /// The connection that is not read from meanwhile, if there is one.
    pub from: Option<ConnectionKey>,
    /// The event.
    pub event: Event,
}

/// Who feeds the topic once fewer events wait.
#[derive(Debug)]
pub enum Deferred {
    /// A connection, which is not read from meanwhile.
    Connection(ConnectionKey),
    /// A client that is gone.
    Ended(Box<Ended>),
}

/// How a client ended: what its last event is made of. No larger than what the client held while it
/// was connected.
#[derive(Debug)]
pub struct Ended {
    /// The client.
    pub client: ClientId,
    /// The code of its close.
    pub code: u16,
    /// The reason of its close.
    pub reason: Box<str>,
    /// Its context as JSON text, if it had one.
    pub context: Option<Box<str>>,
}

impl Ended {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.reason.len() + self.context.as_ref().map_or(0, |json| json.len())
    }
}

/// One shard's end of a topic that is fed by its clients.
#[derive(Debug)]
pub struct Feeder {
    credit: Credit,
    events: VecDeque<Waiting>,
    event_bytes: usize,
    // In the order in which they are to feed the topic.
    deferred: VecDeque<Deferred>,
    ended_bytes: usize,
    asked: bool,
}

impl Feeder {
    /// A feeder that starts with this much credit.
    pub fn new(credit: Credit) -> Self {
        Self {
            credit,
            events: VecDeque::new(),
            event_bytes: 0,
            deferred: VecDeque::new(),
            ended_bytes: 0,
            asked: false,
        }
    }

    /// Whether a message of so many bytes may be pushed now; if so its credit is used up. Behind
    /// messages that wait nothing may.
    pub fn take(&mut self, bytes: usize) -> bool {
        let may = self.events.is_empty() && self.covers(bytes);
        if may {
            self.spend(bytes);
        }
        may
    }

    /// Lets a message wait.
    pub fn wait(&mut self, waiting: Waiting) {
        self.event_bytes += waiting.event.frame.bytes().len();
        self.events.push_back(waiting);
    }

    /// Whether nothing more is to be encoded for the topic, but deferred.
    pub fn is_crowded(&self) -> bool {
        !self.deferred.is_empty() || self.event_bytes >= EVENTS_BYTES
    }

    /// Lets somebody feed the topic later, behind those who were deferred before.
    pub fn defer(&mut self, deferred: Deferred) {
        if let Deferred::Ended(ended) = &deferred {
            self.ended_bytes += ended.bytes();
        }
        self.deferred.push_back(deferred);
    }

    /// Whether [`Self::poll_deferred`] gives somebody.
    pub fn has_turn(&self) -> bool {
        !self.deferred.is_empty() && self.event_bytes < EVENTS_BYTES
    }

    /// The next of those who were deferred, if few enough events wait.
    pub fn poll_deferred(&mut self) -> Option<Deferred> {
        let next = if self.has_turn() { self.deferred.pop_front() } else { None };
        if let Some(Deferred::Ended(ended)) = &next {
            self.ended_bytes -= ended.bytes();
        }
        next
    }

    /// How many events wait, and how many clients are deferred.
    pub fn waiting(&self) -> usize {
        self.events.len() + self.deferred.len()
    }

    /// Bytes of the events that wait, and of what is kept of clients that are gone.
    pub fn waiting_bytes(&self) -> usize {
        self.event_bytes + self.ended_bytes
    }

    /// What to ask the topic for: the bytes of the first message that waits, once until there is
    /// credit for it or [`Self::refused`].
    pub fn poll_ask(&mut self) -> Option<usize> {
        let first = self.events.front().filter(|_| !self.asked)?;
        self.asked = true;
        Some(first.event.frame.bytes().len())
    }

    /// More credit. Messages that may go now come out of [`Self::poll_ready`]. Credit that is not
    /// enough was lent before the topic heard the question, which it still answers: asked twice, it
    /// would lend what nobody uses.
    pub fn granted(&mut self, credit: Credit) {
        self.credit.messages += credit.messages;
        self.credit.bytes += credit.bytes;
        let first = self.events.front().map(|waiting| waiting.event.frame.bytes().len());
        self.asked &= first.is_some_and(|bytes| !self.covers(bytes));
    }

    /// A message that waited and may be pushed now.
    pub fn poll_ready(&mut self) -> Option<Waiting> {
        let bytes = self.events.front()?.event.frame.bytes().len();
        if !self.covers(bytes) {
            return None;
        }
        self.spend(bytes);
        self.event_bytes -= bytes;
        self.events.pop_front()
    }

    /// There is no room and nobody is to wait for it: takes out all events. Who is deferred has its
    /// turn.
    pub fn refused(&mut self) -> VecDeque<Waiting> {
        self.asked = false;
        self.event_bytes = 0;
        std::mem::take(&mut self.events)
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
    use crate::protocol::frame::Frame;

    fn waiting(bytes: &[u8]) -> Waiting {
        let (client, frame) = (ClientId::from_value(1), Frame::from_encoded(bytes));
        Waiting { from: None, event: Event { client, frame, is_watched: false } }
    }

    #[test]
    fn credit_that_is_not_enough_does_not_make_it_ask_again() {
        let mut feeder = Feeder::new(Credit::default());
        feeder.wait(waiting(b"message"));
        assert_eq!(feeder.poll_ask(), Some(7));
        feeder.granted(Credit { messages: 0, bytes: 7 });
        assert!(feeder.poll_ready().is_none() && feeder.poll_ask().is_none());
        feeder.granted(Credit { messages: 1, bytes: 0 });
        assert!(feeder.poll_ready().is_some() && feeder.poll_ask().is_none());
    }

    #[test]
    fn who_is_deferred_has_its_turn_in_order_while_few_events_wait() {
        let mut feeder = Feeder::new(Credit::default());
        let large = vec![0; EVENTS_BYTES];
        feeder.wait(waiting(&large));
        let client = ClientId::from_value(1);
        let ended = Ended { client, code: 1000, reason: "bye".into(), context: Some("{}".into()) };
        let connection = ConnectionKey { index: 1, generation: 0 };
        feeder.defer(Deferred::Ended(Box::new(ended)));
        feeder.defer(Deferred::Connection(connection));
        assert!(feeder.waiting_bytes() > EVENTS_BYTES + 5 && feeder.waiting() == 3);
        assert!(feeder.is_crowded() && feeder.poll_deferred().is_none());
        feeder.granted(Credit { messages: 9, bytes: 2 * EVENTS_BYTES });
        assert!(feeder.poll_ready().is_some() && feeder.is_crowded(), "others are before");
        assert!(matches!(feeder.poll_deferred(), Some(Deferred::Ended(_))));
        assert!(matches!(feeder.poll_deferred(), Some(Deferred::Connection(_))));
        assert_eq!((feeder.is_crowded(), feeder.waiting_bytes(), feeder.waiting()), (false, 0, 0));
    }
}
