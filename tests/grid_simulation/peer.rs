//! A peer: a client or a back end, and its connection to a shard of some node.

use std::collections::HashMap;

use gridcast::shard::Shard;

use crate::backend::Backend;
use crate::client::Client;
use crate::ledger::PeerNumber;
use crate::line::{End, Line};
use crate::pushes::{Asked, Moment, Pushes};
use crate::queue::Queue;
use crate::random::Random;
use crate::weather::Weather;
use crate::wire::{self, Incoming, Reader};

/// Moments of one millisecond: they tell what came first, and what time it was.
const MOMENTS_PER_MS: u64 = 1_000_000;

/// The behaviour of peers in a phase of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Peers call, send and disconnect.
    Busy,
    /// Peers read, and send nothing new.
    Quiet,
    /// Peers disconnect.
    Leaving,
}

/// State shared by all peers.
pub struct Shared {
    pub random: Random,
    pub now_ms: u64,
    pub moment: Moment,
    pub mood: Mood,
    pub weather: Weather,
    pub queue: Queue,
    pub pushes: Pushes,
    /// The ids of clients, as open events told them.
    pub known: Vec<(u64, PeerNumber)>,
    /// By peer: its node.
    pub nodes: Vec<usize>,
    /// Since when it is gone, and its node knows.
    pub gone: HashMap<PeerNumber, Moment>,
    /// Channels to which somebody was just subscribed.
    pub fresh: Vec<&'static str>,
    pub answers: u64,
    pub is_verbose: bool,
    /// By node and channel: subscribers, as the clients' `info` tells.
    pub subscribers: HashMap<(u64, String), u64>,
}

impl Shared {
    /// A moment after all others.
    pub fn next_moment(&mut self) -> Moment {
        self.moment = (self.moment + 1).max(self.now_ms * MOMENTS_PER_MS);
        self.moment
    }

    pub fn asked(&mut self, by: PeerNumber, place: u64) -> Asked {
        Asked { by, place, at: self.next_moment() }
    }
}

/// The time of a moment, in milliseconds.
pub fn time_of(moment: Moment) -> u64 {
    moment / MOMENTS_PER_MS
}

pub enum Role {
    Client(Client),
    Backend(Backend),
}

pub struct Peer {
    pub number: PeerNumber,
    pub node: usize,
    pub line: Line,
    pub role: Role,
    /// The upgrade was granted.
    pub is_open: bool,
    /// Whether the peer's node ended, and the connection with it.
    pub is_crashed: bool,
    pub acts_ms: u64,
    was_told: Option<u16>,
    said_goodbye: bool,
    reader: Reader,
}

impl Peer {
    pub fn new(number: PeerNumber, node: usize, line: Line, role: Role, now_ms: u64) -> Self {
        Self {
            number,
            node,
            line,
            role,
            is_open: false,
            is_crashed: false,
            acts_ms: now_ms,
            was_told: None,
            said_goodbye: false,
            reader: Reader::default(),
        }
    }

    /// Whether it has ended, whoever began.
    pub fn has_ended(&self) -> bool {
        self.said_goodbye || self.was_told.is_some() || self.line.is_shut || self.line.is_gone
    }

    /// Whether it waits for no answer.
    pub fn is_answered(&self) -> bool {
        match &self.role {
            Role::Backend(backend) => self.has_ended() || backend.is_answered(),
            Role::Client(_) => true,
        }
    }

    /// Whether all that it sent counts: its connection did not break, and nobody else ended it.
    pub fn has_lost_nothing(&self) -> bool {
        let was_closed = self.was_told.is_some_and(|code| code != 1000);
        !self.is_crashed && !was_closed && self.line.end != Some(End::Reset)
    }

    /// Handles the end of the peer's node.
    pub fn crash(&mut self, shared: &mut Shared) {
        if !self.line.is_gone {
            self.line.is_gone = true;
            self.is_crashed = true;
            self.note_end(shared);
        }
        if let Role::Client(_) = self.role {
            shared.queue.note_crash(self.number, shared.now_ms);
            self.is_crashed = true;
        }
    }

    fn note_end(&self, shared: &mut Shared) {
        shared.queue.note_consumer_end(self.number);
    }

    /// Handles bytes that arrived for the peer.
    pub fn hear(&mut self, shared: &mut Shared, bytes: &[u8]) {
        if self.line.is_gone && !shared.gone.contains_key(&self.number) {
            let moment = shared.next_moment();
            shared.gone.insert(self.number, moment);
        }
        if bytes.is_empty() {
            return;
        }
        self.reader.hear(bytes);
        while let Some(incoming) = self.reader.next() {
            shared.next_moment();
            if shared.is_verbose {
                println!("  peer {} reads {incoming:?}", self.number);
            }
            self.take(shared, incoming);
        }
    }

    fn take(&mut self, shared: &mut Shared, incoming: Incoming) {
        match incoming {
            Incoming::Ping(payload) => {
                let pong = wire::frame(&mut shared.random, 0x8A, &payload);
                self.say(&pong);
            }
            Incoming::Pong(_) => {}
            Incoming::Close(code) => {
                assert!(
                    self.said_goodbye || matches!(self.role, Role::Client(_)),
                    "back end {} was closed with {code}",
                    self.number
                );
                self.note_end(shared);
                self.was_told = Some(code);
            }
            incoming => {
                assert_eq!(self.was_told, None, "peer {} hears more after a close", self.number);
                let number = self.number;
                self.is_open = true;
                match &mut self.role {
                    Role::Client(client) => client.take(number, shared, incoming),
                    Role::Backend(backend) => backend.take(number, shared, incoming),
                }
            }
        }
    }

    /// Sends bytes, if it still sends.
    pub fn say(&mut self, bytes: &[u8]) {
        if self.line.end.is_some() {
            return;
        }
        self.line.inbound.extend(bytes);
        if let Role::Backend(backend) = &mut self.role {
            backend.requests.note_sent(bytes, !self.is_open);
        }
    }

    /// Notes what the shard has read of the peer's bytes, after a turn.
    pub fn note_read(&mut self, shared: &Shared, shard: &mut Shard) {
        if let Role::Backend(backend) = &mut self.role
            && let Some(reading) = shard.inspect().read_progress_of(self.line.key)
        {
            let on_their_way = self.line.inbound.len();
            backend.requests.note_read(self.number, shared, on_their_way, reading);
        }
    }

    /// Does something perhaps.
    pub fn act(&mut self, shared: &mut Shared) {
        self.acts_ms = shared.now_ms + shared.random.between(1, 300) as u64;
        if self.line.end.is_some() || self.line.is_gone {
            self.acts_ms = u64::MAX;
            return;
        }
        if self.line.is_shut || self.was_told.is_some() {
            self.note_end(shared);
            self.line.end = Some(End::Shut);
            return;
        }
        if self.said_goodbye {
            return;
        }
        let may_go = !matches!(&self.role, Role::Backend(backend) if backend.is_steady());
        let wants_to_go = match shared.mood {
            Mood::Busy => may_go && shared.random.one_in(80),
            Mood::Quiet => false,
            Mood::Leaving => true,
        };
        let is_at_loss = matches!(&self.role, Role::Backend(backend) if backend.is_at_loss);
        if wants_to_go || is_at_loss {
            return self.go(shared);
        }
        if shared.is_verbose {
            println!("  {} ms: peer {} acts", shared.now_ms, self.number);
        }
        let bytes = match &mut self.role {
            Role::Client(client) => client.act(self.number, shared, self.is_open),
            Role::Backend(backend) => backend.act(self.number, shared, self.is_open),
        };
        self.say(&bytes);
    }

    /// Ends its connection in one way or the other.
    fn go(&mut self, shared: &mut Shared) {
        self.said_goodbye = true;
        self.note_end(shared);
        let way = shared.random.below(3);
        if shared.is_verbose {
            println!("  peer {} goes in way {way}", self.number);
        }
        match way {
            0 => self.line.end = Some(End::Reset),
            1 => self.line.end = Some(End::Shut),
            // What a half-open connection sends next must be HTTP.
            _ if !self.is_open => self.line.end = Some(End::Shut),
            _ => {
                let close = wire::frame(&mut shared.random, 0x88, &1000u16.to_be_bytes());
                self.say(&close);
            }
        }
    }
}
