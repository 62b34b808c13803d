//! Rules of the queue over a grid: messages that clients sent, and the consumers that got them.

use std::collections::{HashMap, HashSet};

use crate::ledger::{CLOSED, PeerNumber};
use crate::weather::Weather;

/// How long a consumer must have consumed until its node's clients are all its own: what others
/// have of them is written by then.
const SETTLED_MS: u64 = 3000;

/// One client as the rules see it.
struct Fed {
    node: usize,
    topic: &'static str,
    // When each of its messages was sent, the open event first.
    sent_ms: Vec<u64>,
    // The next number that has not come to any consumer.
    next: u64,
    is_closed: bool,
    // When that came to a consumer that does not acknowledge.
    settled_ms: Option<u64>,
    // When it was told that it is in, and when its node crashed.
    open_ms: Option<u64>,
    crashed_ms: Option<u64>,
    // Another node said that its node was lost, last.
    is_lost: bool,
}

impl Fed {
    /// Whether another node certainly knew of it when its node crashed.
    fn is_named(&self, weather: &Weather) -> bool {
        self.open_ms.zip(self.crashed_ms).is_some_and(|(open_ms, crashed_ms)| {
            open_ms + SETTLED_MS < crashed_ms && weather.is_calm(open_ms, crashed_ms - 1)
        })
    }
}

/// One connection that consumes or did.
struct Consumer {
    node: usize,
    topics: Vec<&'static str>,
    acknowledges: bool,
    // Since when it was told that it does; None: it does not, or may not.
    since_ms: Option<u64>,
    // It has sent a cancellation, which may overtake the answer to its `queue.pop`.
    has_cancelled: bool,
    // It gave something back, or may have: by its end, or by a cancellation.
    has_let_go: bool,
}

/// Events that consumers got.
#[derive(Default)]
pub struct Queue {
    clients: HashMap<PeerNumber, Fed>,
    consumers: HashMap<PeerNumber, Consumer>,
    receipts: HashMap<(PeerNumber, u64), Vec<(PeerNumber, u64)>>,
    last: HashMap<(PeerNumber, PeerNumber), u64>,
    got: HashSet<PeerNumber>,
    pub events: u64,
    pub remote: u64,
    pub doubled: u64,
    /// Ends that another node reported.
    pub lost: u64,
}

impl Queue {
    pub fn note_client(&mut self, client: PeerNumber, node: usize, topic: &'static str) {
        let sent_ms = vec![u64::MAX];
        let fed = Fed {
            node,
            topic,
            sent_ms,
            next: 0,
            is_closed: false,
            settled_ms: None,
            open_ms: None,
            crashed_ms: None,
            is_lost: false,
        };
        self.clients.insert(client, fed);
    }

    pub fn note_sent(&mut self, client: PeerNumber, number: u64, now_ms: u64) {
        let fed = self.clients.get_mut(&client).expect("it was told when it asked");
        fed.sent_ms.push(now_ms);
        assert_eq!(fed.sent_ms.len() as u64, number + 1);
    }

    pub fn note_open(&mut self, client: PeerNumber, now_ms: u64) {
        let fed = self.clients.get_mut(&client).expect("it was told when it asked");
        fed.open_ms = Some(now_ms);
    }

    pub fn note_crash(&mut self, client: PeerNumber, now_ms: u64) {
        if let Some(fed) = self.clients.get_mut(&client) {
            fed.crashed_ms.get_or_insert(now_ms);
        }
    }

    /// Of a client whose node crashed and that came in calm weather before, consumers hear that it is
    /// gone: from its node, or from another. To be asked if no other node crashed.
    pub fn check_lost(&self, weather: &Weather, client: PeerNumber) {
        if let Some(fed) = self.clients.get(&client) {
            let is_told = fed.is_lost || fed.is_closed;
            assert!(is_told || !fed.is_named(weather), "nobody was told that {client} is gone");
        }
    }

    pub fn note_pop(
        &mut self,
        consumer: PeerNumber,
        node: usize,
        topics: &[&'static str],
        acknowledges: bool,
    ) {
        let new = Consumer {
            node,
            topics: topics.to_vec(),
            acknowledges,
            since_ms: None,
            has_cancelled: false,
            has_let_go: false,
        };
        let had_let_go = self.consumers.get(&consumer).is_some_and(|before| before.has_let_go);
        self.consumers.insert(consumer, Consumer { has_let_go: had_let_go, ..new });
    }

    pub fn note_popped(&mut self, consumer: PeerNumber, now_ms: u64) {
        self.got.insert(consumer);
        if let Some(consumer) = self.consumers.get_mut(&consumer) {
            consumer.since_ms = Some(now_ms).filter(|_| !consumer.has_cancelled);
        }
    }

    pub fn note_unpop(&mut self, consumer: PeerNumber) {
        if let Some(consumer) = self.consumers.get_mut(&consumer) {
            (consumer.since_ms, consumer.has_cancelled) = (None, true);
            consumer.has_let_go |= consumer.acknowledges;
        }
    }

    pub fn note_consumer_end(&mut self, consumer: PeerNumber) {
        if let Some(consumer) = self.consumers.get_mut(&consumer) {
            (consumer.since_ms, consumer.has_let_go) = (None, true);
        }
    }

    /// A consumer got message `number` of a client.
    pub fn note_event(
        &mut self,
        weather: &Weather,
        now_ms: u64,
        consumer: PeerNumber,
        client: PeerNumber,
        number: u64,
    ) {
        self.events += 1;
        assert!(self.got.contains(&consumer), "{consumer} was told though it did not pop");
        let is_again = self.note_receipt(weather, now_ms, consumer, client, number);
        self.check_preference(weather, now_ms, consumer, client, number);
        let last = self.last.insert((consumer, client), number);
        assert!(
            is_again || last.is_none_or(|last| last < number),
            "consumer {consumer} got {number} of client {client} after {last:?}"
        );
        let fed = self.clients.get_mut(&client).expect("events are about clients");
        if number == CLOSED {
            fed.is_closed = true;
            let is_settled = !self.consumers[&consumer].acknowledges;
            fed.settled_ms = fed.settled_ms.or(is_settled.then_some(now_ms));
            return;
        }
        assert!(number < fed.sent_ms.len() as u64, "client {client} has not sent {number}");
        assert!(number <= fed.next, "{number} of client {client} came before {}", fed.next);
        assert!(number < fed.next || !fed.is_closed, "client {client} spoke after its end");
        fed.next = fed.next.max(number + 1);
    }

    /// Another node reports that the node of a client is lost.
    pub fn note_lost(&mut self, weather: &Weather, now_ms: u64, client: PeerNumber) {
        self.lost += 1;
        let since = now_ms.saturating_sub(SETTLED_MS);
        let fed = self.clients.get_mut(&client).expect("events are about clients");
        // What is true may have waited for a consumer.
        let is_true = fed.crashed_ms.is_some();
        assert!(is_true || !weather.is_calm(since, now_ms), "the node of client {client} is there");
        let is_settled =
            fed.settled_ms.zip(fed.crashed_ms).is_some_and(|(settled_ms, crashed_ms)| {
                settled_ms + SETTLED_MS < crashed_ms && fed.is_named(weather)
            });
        assert!(!is_settled, "client {client} had been reported as gone before");
        fed.is_lost = true;
    }

    /// Notes that the client's node reports it as connected.
    pub fn note_found(&mut self, client: PeerNumber) {
        let fed = self.clients.get_mut(&client).expect("events are about clients");
        fed.is_lost = false;
    }

    /// Whether it came before: then somebody who had it went, or a session with the client's node
    /// was lost.
    fn note_receipt(
        &mut self,
        weather: &Weather,
        now_ms: u64,
        consumer: PeerNumber,
        client: PeerNumber,
        number: u64,
    ) -> bool {
        let home = self.clients[&client].node;
        let receipts = self.receipts.entry((client, number)).or_default();
        receipts.push((consumer, now_ms));
        // The one that it was taken from may read it later than the one that it was given to.
        let is_for_good = |(consumer, got_ms): &&(PeerNumber, u64)| {
            let consumer = &self.consumers[consumer];
            let since_ms = got_ms.saturating_sub(12_000);
            !consumer.has_let_go && !weather.has_lost(home, consumer.node, since_ms)
        };
        let for_good = receipts.iter().filter(is_for_good).count();
        assert!(for_good <= 1, "{number} of client {client} came to {receipts:?}");
        self.doubled += u64::from(receipts.len() > 1);
        receipts.len() > 1
    }

    /// While one on the client's node consumes, those on others get nothing.
    fn check_preference(
        &mut self,
        weather: &Weather,
        now_ms: u64,
        consumer: PeerNumber,
        client: PeerNumber,
        number: u64,
    ) {
        let fed = &self.clients[&client];
        if self.consumers[&consumer].node == fed.node {
            return;
        }
        self.remote += 1;
        let Some(&sent_ms) = fed.sent_ms.get(number as usize) else { return };
        let is_settled = |other: &&Consumer| {
            other.node == fed.node
                && !other.acknowledges
                && other.topics.contains(&fed.topic)
                && other
                    .since_ms
                    .is_some_and(|since| sent_ms != u64::MAX && since + SETTLED_MS < sent_ms)
        };
        let preferred = self.consumers.values().find(is_settled);
        // Of a client that sends all the time something may always be with another.
        let was_idle = number == 0
            || fed
                .sent_ms
                .get(number as usize - 1)
                .is_some_and(|&last| last != u64::MAX && last + SETTLED_MS < sent_ms);
        assert!(
            preferred.is_none() || !was_idle || !weather.is_calm(sent_ms - SETTLED_MS, now_ms),
            "{number} of client {client} came to {consumer} of another node"
        );
    }

    /// All that a client sent is with consumers. To be asked when all is quiet.
    pub fn check_complete(&self, client: PeerNumber, has_ended: bool) {
        let fed = &self.clients[&client];
        if fed.crashed_ms.is_some() {
            return;
        }
        let sent = fed.sent_ms.len() as u64;
        assert_eq!(fed.next, sent, "events of client {client} that came, and were");
        assert_eq!(fed.is_closed, has_ended, "client {client} was told to be closed");
    }
}
