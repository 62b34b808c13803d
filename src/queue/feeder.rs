//! One shard's end of a topic: pushes events of the shard's clients against credit, and keeps those without.
//!
//! Up to [`EVENTS_BYTES`] of encoded events wait. Beyond that no more are encoded, and clients with more
//! messages are *deferred*. A deferred client's messages stay as they were received, compressed or not,
//! bounded by what is read ahead of a connection.

use std::collections::VecDeque;

use crate::address::ClientId;
use crate::message::{ConnectionKey, Credit, Event};

/// Bytes of waiting events at which a feeder defers clients. The last event may exceed them.
const EVENTS_BYTES: usize = 1 << 20;

/// An event that waits for credit. Each connection has at most one.
#[derive(Debug)]
pub struct WaitingEvent {
    /// The connection that is not read from meanwhile, if it still exists.
    pub from: Option<ConnectionKey>,
    /// The event.
    pub event: Event,
}

/// A client that continues to feed the topic once fewer events wait.
#[derive(Debug)]
pub enum Deferred {
    /// A connection that is not read from meanwhile.
    Connection(ConnectionKey),
    /// A client that is gone, and whose last event is still to be encoded.
    Ended(Box<Ended>),
}

/// How a client ended: the content of its last event. No larger than what the client held while it was
/// connected.
#[derive(Debug)]
pub struct Ended {
    /// The client.
    pub client: ClientId,
    /// The close code.
    pub code: u16,
    /// The close reason.
    pub reason: Box<str>,
    /// The context as JSON text, if there was one.
    pub context: Option<Box<str>>,
}

impl Ended {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.reason.len() + self.context.as_ref().map_or(0, |json| json.len())
    }
}

/// One shard's end of a topic that its clients feed.
#[derive(Debug)]
pub struct Feeder {
    credit: Credit,
    events: VecDeque<WaitingEvent>,
    event_bytes: usize,
    // In the order in which they continue.
    deferred: VecDeque<Deferred>,
    ended_bytes: usize,
    // Whether the topic was asked for credit that has not come.
    asked: bool,
}

impl Feeder {
    /// A feeder with this much credit.
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

    /// Spends credit for an event of this many bytes, if it may be pushed now. It may not while earlier events
    /// wait.
    pub fn take(&mut self, bytes: usize) -> bool {
        let may = self.events.is_empty() && self.covers(bytes);
        if may {
            self.spend(bytes);
        }
        may
    }

    /// Lets an event wait for credit.
    pub fn wait(&mut self, waiting: WaitingEvent) {
        self.event_bytes += waiting.event.frame.bytes().len();
        self.events.push_back(waiting);
    }

    /// Whether clients with more messages are to be deferred.
    pub fn is_crowded(&self) -> bool {
        !self.deferred.is_empty() || self.event_bytes >= EVENTS_BYTES
    }

    /// Defers a client, behind those that were deferred before.
    pub fn defer(&mut self, deferred: Deferred) {
        if let Deferred::Ended(ended) = &deferred {
            self.ended_bytes += ended.bytes();
        }
        self.deferred.push_back(deferred);
    }

    /// Whether a deferred client may continue.
    pub fn has_turn(&self) -> bool {
        !self.deferred.is_empty() && self.event_bytes < EVENTS_BYTES
    }

    /// The next deferred client, if few enough events wait.
    pub fn poll_deferred(&mut self) -> Option<Deferred> {
        let next = if self.has_turn() { self.deferred.pop_front() } else { None };
        if let Some(Deferred::Ended(ended)) = &next {
            self.ended_bytes -= ended.bytes();
        }
        next
    }

    /// The number of waiting events and deferred clients.
    pub fn waiting(&self) -> usize {
        self.events.len() + self.deferred.len()
    }

    /// Bytes of waiting events, and of what is kept of clients that are gone.
    pub fn waiting_bytes(&self) -> usize {
        self.event_bytes + self.ended_bytes
    }

    /// The bytes of the first waiting event, if the topic is to be asked for credit. Once per event, until
    /// there is credit for it or [`Self::refused`].
    pub fn poll_ask(&mut self) -> Option<usize> {
        let first = self.events.front().filter(|_| !self.asked)?;
        self.asked = true;
        Some(first.event.frame.bytes().len())
    }

    /// Adds credit. Events that may be pushed now come out of [`Self::poll_ready`]. Insufficient credit was
    /// granted before the topic received the request, which it will still answer: a second request would
    /// be granted credit that nobody uses.
    pub fn granted(&mut self, credit: Credit) {
        self.credit.messages += credit.messages;
        self.credit.bytes += credit.bytes;
        let first = self.events.front().map(|waiting| waiting.event.frame.bytes().len());
        self.asked &= first.is_some_and(|bytes| !self.covers(bytes));
    }

    /// Takes the credit that exceeds `most`, to be returned to the topic. The topic may have answered the last
    /// request on the assumption that the feeder has this credit, so it is asked again.
    pub fn recalled(&mut self, most: Credit) -> Credit {
        let returned = Credit {
            messages: self.credit.messages.saturating_sub(most.messages),
            bytes: self.credit.bytes.saturating_sub(most.bytes),
        };
        self.credit.messages -= returned.messages;
        self.credit.bytes -= returned.bytes;
        self.asked &= returned == Credit::default();
        returned
    }

    /// The next waiting event that may be pushed now. Its credit is spent.
    pub fn poll_ready(&mut self) -> Option<WaitingEvent> {
        let bytes = self.events.front()?.event.frame.bytes().len();
        if !self.covers(bytes) {
            return None;
        }
        self.spend(bytes);
        self.event_bytes -= bytes;
        self.events.pop_front()
    }

    /// Takes all waiting events, since the topic has refused room for them. Deferred clients may continue.
    pub fn refused(&mut self) -> VecDeque<WaitingEvent> {
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

    fn waiting(bytes: &[u8]) -> WaitingEvent {
        let (client, frame) = (ClientId::from_value(1), Frame::from_encoded(bytes));
        WaitingEvent { from: None, event: Event::new(client, frame) }
    }

    #[test]
    fn insufficient_credit_is_not_asked_for_again() {
        let mut feeder = Feeder::new(Credit::default());
        feeder.wait(waiting(b"message"));
        assert_eq!(feeder.poll_ask(), Some(7));
        feeder.granted(Credit { messages: 0, bytes: 7 });
        assert!(feeder.poll_ready().is_none() && feeder.poll_ask().is_none());
        feeder.granted(Credit { messages: 1, bytes: 0 });
        assert!(feeder.poll_ready().is_some() && feeder.poll_ask().is_none());
    }

    #[test]
    fn deferred_clients_continue_in_order_while_few_events_wait() {
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
        assert!(feeder.poll_ready().is_some() && feeder.is_crowded(), "other clients are deferred");
        assert!(matches!(feeder.poll_deferred(), Some(Deferred::Ended(_))));
        assert!(matches!(feeder.poll_deferred(), Some(Deferred::Connection(_))));
        assert_eq!((feeder.is_crowded(), feeder.waiting_bytes(), feeder.waiting()), (false, 0, 0));
    }
}
