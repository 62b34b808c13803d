//! What clients sent and what became of it: the rules of the queue.

use std::collections::HashMap;

use gridcast::queue::WhenFull;

/// A peer's place in the world.
pub type PeerNumber = usize;

/// Stands for a client's close event, behind all of its messages. Its open event is 0.
pub const CLOSED: u64 = u64::MAX;

/// One client as the rules see it.
#[derive(Default)]
pub struct Fed {
    /// Messages sent.
    pub sent: u64,
    /// A back end has asked for the key that lets its later messages through.
    pub is_key_asked: bool,
    /// That was answered: it is held no more.
    pub is_key_set: bool,
    pub is_held: bool,
    // The next number that has not come to any consumer.
    next: u64,
    is_closed: bool,
}

impl Fed {
    pub fn new(is_held: bool) -> Self {
        Self { is_held, ..Self::default() }
    }
}

/// What consumers got.
pub struct Ledger {
    when_full: WhenFull,
    pub clients: HashMap<PeerNumber, Fed>,
    // By client and number: who got it, and where it ended in the bytes written to them.
    receipts: HashMap<(PeerNumber, u64), Vec<(PeerNumber, u64)>>,
    last_at_consumer: HashMap<(PeerNumber, PeerNumber), u64>,
    // Consumers that have ended: how much the shard knew at that time to be written to them.
    ended: HashMap<PeerNumber, u64>,
    pub events: u64,
    pub doubled: u64,
}

impl Ledger {
    pub fn new(when_full: WhenFull) -> Self {
        Self {
            when_full,
            clients: HashMap::new(),
            receipts: HashMap::new(),
            last_at_consumer: HashMap::new(),
            ended: HashMap::new(),
            events: 0,
            doubled: 0,
        }
    }

    pub fn note_end(&mut self, consumer: PeerNumber, reported: u64) {
        self.ended.entry(consumer).or_insert(reported);
    }

    /// A consumer got message `number` of a client, which ended at `end` in what it read.
    pub fn note_event(&mut self, consumer: PeerNumber, client: PeerNumber, number: u64, end: u64) {
        self.events += 1;
        let last = self.last_at_consumer.insert((consumer, client), number);
        assert!(
            last.is_none_or(|last| last < number),
            "consumer {consumer} got {number} of client {client} after {last:?}"
        );
        let receipts = self.receipts.entry((client, number)).or_default();
        receipts.push((consumer, end));
        self.doubled += u64::from(receipts.len() > 1);
        let was_in_flight = |(consumer, end): &&(PeerNumber, u64)| {
            self.ended.get(consumer).is_some_and(|reported| end > reported)
        };
        let for_good = receipts.iter().filter(|receipt| !was_in_flight(receipt)).count();
        assert!(for_good <= 1, "{number} of client {client} came to {receipts:?}");
        self.check_order(client, number);
    }

    fn check_order(&mut self, client: PeerNumber, number: u64) {
        let fed = self.clients.get_mut(&client).expect("events are about clients");
        if number == CLOSED {
            fed.is_closed = true;
            return;
        }
        assert!(number <= fed.sent, "client {client} has not sent {number}");
        assert!(
            number < 2 || !fed.is_held || fed.is_key_asked,
            "{number} of client {client} came though the client is held"
        );
        let has_gap = number > fed.next && self.when_full != WhenFull::DropOldest;
        assert!(!has_gap, "{number} of client {client} came before {}", fed.next);
        // A close event has overtaken it only if it is a copy of what came before: of one that was
        // dropped since, too, when its consumer was gone and still read it.
        let is_copy = number < fed.next || self.when_full == WhenFull::DropOldest;
        assert!(is_copy || !fed.is_closed, "client {client} spoke after its end");
        fed.next = fed.next.max(number + 1);
    }

    /// All that a client sent is with consumers. To be asked when all is quiet.
    pub fn check_complete(&self, client: PeerNumber, has_ended: bool) {
        let fed = &self.clients[&client];
        // A full topic may drop what it has, or refuse what a client sent that has left meanwhile.
        if self.when_full != WhenFull::Hold {
            return;
        }
        let is_all = fed.next == fed.sent + 1;
        let is_first_only = fed.next == fed.sent.min(1) + 1;
        let is_right = match (fed.is_held, fed.is_key_asked, fed.is_key_set) {
            (true, false, _) => is_first_only,
            // Whoever asked for the key may have gone before that was read.
            (true, true, false) => is_all || is_first_only,
            (true, true, true) | (false, _, _) => is_all,
        };
        assert!(is_right, "{} events of client {client}, of {} sent", fed.next, fed.sent);
        if has_ended {
            self.check_ended(client);
        }
    }

    /// Of a client that broke off or was closed nothing counts but that it ended.
    pub fn check_ended(&self, client: PeerNumber) {
        let fed = &self.clients[&client];
        let was_open = fed.next > 0;
        assert!(
            self.when_full != WhenFull::Hold || !was_open || fed.is_closed,
            "no close event of client {client}"
        );
    }
}
