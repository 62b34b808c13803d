//! A peer: its reading, its end, and one of the two roles.

use std::collections::HashMap;

use gridcast::shard::settings::Settings;

use crate::backend::Backend;
use crate::client::Client;
use crate::ledger::{Ledger, PeerNumber};
use crate::line::{End, Line};
use crate::pushes::{Moment, Pushes};
use crate::random::Random;
use crate::wire::{self, Incoming, Reader};

/// The behaviour of peers in a phase of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Peers call, send, stall and break off.
    Busy,
    /// Peers read, and send nothing new.
    Quiet,
    /// Peers disconnect.
    Leaving,
}

/// State shared by all peers.
pub struct Shared {
    pub random: Random,
    pub settings: std::sync::Arc<Settings>,
    pub ledger: Ledger,
    pub pushes: Pushes,
    /// The ids of clients, as open events told them.
    pub known: Vec<(u64, PeerNumber)>,
    pub moment: Moment,
    pub mood: Mood,
    pub is_calm: bool,
    /// Decides on what only some runs have: a node that is stopped, wall clocks that step, clients that ping
    /// and clients that die without a word.
    pub trouble: Random,
    pub is_troubled: bool,
    /// Newcomers may be refused for want of memory.
    pub has_budget: bool,
    pub answers: u64,
    pub is_verbose: bool,
    /// Subscribers of each channel, as the clients' `info` tells.
    pub subscribers: HashMap<String, u64>,
}

pub enum Role {
    Client(Client),
    Backend(Backend),
}

pub struct Peer {
    pub number: PeerNumber,
    pub line: Line,
    pub role: Role,
    /// The upgrade was granted, or a response came.
    pub is_open: bool,
    /// The code of the close frame that came.
    pub was_told: Option<u16>,
    /// Whether the peer stalls at times.
    is_slow: bool,
    reader: Reader,
    said_goodbye: bool,
    /// Whether the peer died silently: it neither reads nor sends.
    pub is_dead: bool,
}

impl Peer {
    pub fn new(number: PeerNumber, line: Line, role: Role, is_slow: bool) -> Self {
        Self {
            number,
            line,
            role,
            is_open: false,
            was_told: None,
            is_slow,
            reader: Reader::default(),
            said_goodbye: false,
            is_dead: false,
        }
    }

    /// Whether it has ended, whoever began.
    pub fn has_ended(&self) -> bool {
        self.said_goodbye || self.was_told.is_some() || self.line.is_shut || self.line.is_gone
    }

    /// Whether all that it sent before its end counts: it ended in order, and nobody else began. Of
    /// a slow one that is not known: it may not have read who did.
    pub fn has_ended_in_order(&self) -> bool {
        let was_asked = self.was_told.is_some_and(|code| code != 1000);
        self.said_goodbye && self.line.end == Some(End::Shut) && !was_asked && !self.is_slow
    }

    /// Handles bytes that arrived for the peer.
    pub fn hear(&mut self, shared: &mut Shared, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.reader.hear(bytes);
        while let Some(incoming) = self.reader.next() {
            shared.moment += 1;
            if shared.is_verbose {
                println!("  peer {} reads {incoming:?}", self.number);
            }
            self.take(shared, incoming);
        }
    }

    fn take(&mut self, shared: &mut Shared, incoming: Incoming) {
        match incoming {
            // It has gone, and its kernel says so to whoever still sends: its close frame, or its end,
            // lies behind more data than a node reads ahead of a client that it holds back.
            Incoming::Ping(_) if self.said_goodbye => {
                self.line.end = Some(End::Reset);
            }
            Incoming::Ping(payload) => {
                let pong = wire::frame(&mut shared.random, 0x8A, &payload);
                self.say(&pong);
            }
            Incoming::Pong(payload) => {
                if let Role::Client(client) = &mut self.role {
                    client.take_pong(&payload);
                }
            }
            Incoming::Close(code) => {
                shared.ledger.note_end(self.number, self.line.reported);
                self.was_told = Some(code);
            }
            incoming => {
                assert_eq!(self.was_told, None, "peer {} hears more after a close", self.number);
                let is_first = !std::mem::replace(&mut self.is_open, true);
                let (number, end) = (self.number, self.reader.consumed);
                match &mut self.role {
                    Role::Client(client) => client.take(number, shared, incoming, is_first),
                    Role::Backend(backend) => backend.take(number, shared, incoming, end),
                }
            }
        }
    }

    fn say(&mut self, bytes: &[u8]) {
        if self.line.end.is_none() {
            self.line.inbound.extend(bytes);
        }
    }

    /// Does something perhaps.
    pub fn act(&mut self, shared: &mut Shared) {
        if self.is_dead {
            return;
        }
        self.read_or_stall(shared);
        if self.line.end.is_some() || self.line.is_gone {
            return;
        }
        if self.line.is_shut || self.was_told.is_some() {
            if shared.random.one_in(3) {
                shared.ledger.note_end(self.number, self.line.reported);
                self.line.end = Some(End::Shut);
            }
            return;
        }
        if self.said_goodbye {
            return;
        }
        let wants_to_go = match shared.mood {
            Mood::Busy if self.is_restless() => shared.random.one_in(30),
            Mood::Busy => !shared.is_calm && self.may_go() && shared.random.one_in(150),
            Mood::Quiet => false,
            Mood::Leaving => shared.random.one_in(4),
        };
        if wants_to_go {
            return self.go(shared);
        }
        if shared.is_troubled && self.is_open {
            self.ping_or_die(shared);
        }
        let bytes = match &mut self.role {
            Role::Client(client) => client.act(self.number, shared, self.is_open),
            Role::Backend(backend) => backend.act(self.number, shared, self.is_open),
        };
        self.say(&bytes);
    }

    fn is_restless(&self) -> bool {
        matches!(&self.role, Role::Backend(backend) if backend.is_restless())
    }

    fn ping_or_die(&mut self, shared: &mut Shared) {
        let Role::Client(client) = &mut self.role else { return };
        if client.is_in_crowd {
            return;
        }
        if shared.mood != Mood::Busy {
            // Nothing follows it that would be answered in its place.
            if let Some(ping) = client.last_ping(&mut shared.trouble) {
                self.say(&ping);
            }
            return;
        }
        if !shared.is_calm && shared.trouble.one_in(400) {
            if shared.is_verbose {
                println!("  peer {} dies", self.number);
            }
            (self.is_dead, self.said_goodbye, self.line.room) = (true, true, 0);
        } else if shared.trouble.one_in(10) {
            let ping = client.ping(&mut shared.trouble);
            self.say(&ping);
        }
    }

    fn may_go(&self) -> bool {
        matches!(&self.role, Role::Client(client) if !client.is_in_crowd)
            || matches!(&self.role, Role::Backend(backend) if !backend.is_steady())
    }

    fn read_or_stall(&mut self, shared: &mut Shared) {
        let random = &mut shared.random;
        if !self.is_slow || shared.mood != Mood::Busy {
            self.line.room = usize::MAX;
        } else if random.one_in(8) {
            self.line.room = *random.pick(&[0, 0, 1, 100, 3000]);
        }
    }

    /// Ends its connection in one way or the other.
    fn go(&mut self, shared: &mut Shared) {
        self.said_goodbye = true;
        shared.ledger.note_end(self.number, self.line.reported);
        let way = shared.random.below(3);
        if shared.is_verbose {
            println!("  peer {} goes in way {way}", self.number);
        }
        match way {
            0 => self.line.end = Some(End::Reset),
            1 => self.line.end = Some(End::Shut),
            // What a half-open connection sends next must be HTTP.
            _ if !self.is_upgraded() => self.line.end = Some(End::Shut),
            _ => {
                let close = wire::frame(&mut shared.random, 0x88, &1000u16.to_be_bytes());
                self.say(&close);
            }
        }
    }

    fn is_upgraded(&self) -> bool {
        self.is_open && !matches!(&self.role, Role::Backend(backend) if backend.is_http)
    }
}
