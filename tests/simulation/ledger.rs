//! Rules of the queue: messages that clients sent, and their outcome.

use std::collections::{HashMap, HashSet};

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
    // What its close event said.
    closed: Option<Closed>,
}

/// The content of a close event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The client ended, and all that it sent before was received.
    InOrder,
    /// The node has dropped what was left of it: a topic was full, or memory short.
    ForShortage,
    /// Anything else.
    Otherwise,
}

/// How much of what a client sent has to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// All of it: the client is there.
    Open,
    /// All of it, and the close event, unless that says otherwise: the client ended in order.
    EndedInOrder,
    /// Whatever stands before what came, and the close event.
    Ended,
}

impl Fed {
    pub fn new(is_held: bool) -> Self {
        Self { is_held, ..Self::default() }
    }
}

/// Events that consumers got.
pub struct Ledger {
    when_full: WhenFull,
    pub clients: HashMap<PeerNumber, Fed>,
    // By client and number: who got it, and where it ended in the bytes written to them.
    receipts: HashMap<(PeerNumber, u64), Vec<(PeerNumber, u64)>>,
    last_at_consumer: HashMap<(PeerNumber, PeerNumber), u64>,
    // Consumers that have ended: how much the shard knew at that time to be written to them.
    ended: HashMap<PeerNumber, u64>,
    // Events of clients whose open event was dropped: nobody can tell whose they are.
    nameless: HashSet<(u64, u64)>,
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
            nameless: HashSet::new(),
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

    /// A client ended, and its close event says so.
    pub fn note_close(&mut self, client: PeerNumber, code: u64, reason: &str) {
        let fed = self.clients.get_mut(&client).expect("events are about clients");
        fed.closed = Some(match (code, reason) {
            (1000, _) | (1006, "connection ended without a close frame") => Closed::InOrder,
            (1013, _) => Closed::ForShortage,
            _ => Closed::Otherwise,
        });
    }

    /// A consumer got an event of a client whose open event did not come.
    pub fn note_nameless(&mut self, id: u64, number: u64) {
        self.nameless.insert((id, number));
    }

    fn check_order(&mut self, client: PeerNumber, number: u64) {
        let fed = self.clients.get_mut(&client).expect("events are about clients");
        if number == CLOSED {
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
        assert!(is_copy || fed.closed.is_none(), "client {client} spoke after its end");
        fed.next = fed.next.max(number + 1);
    }

    /// All events that have to come did, but for those that the node counted as dropped or refused. To be
    /// asked when all is quiet.
    pub fn check_lost(&self, clients: &[(PeerNumber, Standing)], counted: u64) {
        let (mut lost, mut unnamed) = (0, 0);
        for &(client, standing) in clients {
            let missing = self.missing(client, standing);
            let is_counted = match self.when_full {
                WhenFull::Hold => false,
                // Whose message is refused is closed.
                WhenFull::Close => standing != Standing::Open,
                WhenFull::DropOldest => true,
            };
            assert!(missing == 0 || is_counted, "{missing} events of client {client} are missing");
            match self.clients[&client].next {
                // What came of the others is among the nameless.
                0 => (lost, unnamed) = (lost + 1, unnamed + missing - 1),
                _ => lost += missing,
            }
        }
        lost += unnamed.saturating_sub(self.nameless.len() as u64);
        assert!(lost <= counted, "{lost} events are missing, and {counted} were counted");
    }

    /// Events of a client that have to come and did not.
    fn missing(&self, client: PeerNumber, standing: Standing) -> u64 {
        let fed = &self.clients[&client];
        let is_open = standing == Standing::Open;
        let is_whole = is_open
            || fed.closed == Some(Closed::InOrder)
            || standing == Standing::EndedInOrder && fed.closed == Some(Closed::Otherwise);
        let wanted = match (fed.is_held, fed.is_key_set) {
            // Its open event comes first.
            _ if !is_whole => fed.next.max(1),
            (true, false) => fed.sent.min(1) + 1,
            (true, true) | (false, _) => fed.sent + 1,
        };
        let has_come = |number: &u64| self.receipts.contains_key(&(client, *number));
        let missing = (0..wanted).filter(|number| !has_come(number)).count() as u64;
        let no_end = !is_open && fed.closed.is_none();
        missing + u64::from(no_end)
    }
}
