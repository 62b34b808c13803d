//! A client on one of the routes.

use serde_json::Value;

use crate::ledger::{Fed, PeerNumber};
use crate::peer::{Mood, Shared};
use crate::plan::MESSAGE_BYTES;
use crate::pushes::Asked;
use crate::random::Random;
use crate::wire::{self, Incoming};

pub const CHANNELS: [&str; 4] = ["a", "b", "c", "d"];
pub const CROWDED: &str = "crowded";

const ROUTES: [&str; 4] = ["/talk", "/held", "/echo", "/quiet"];

pub struct Client {
    route: &'static str,
    pub is_in_crowd: bool,
    compresses: bool,
    has_asked: bool,
    /// Whether the client was refused for lack of memory.
    pub is_refused: bool,
    sent: u64,
    echoed: u64,
    pinged: u64,
    ponged: u64,
    has_sent_last_ping: bool,
    /// Whether the client sent a message that is too large: later input is not read.
    pub has_sent_giant: bool,
}

impl Client {
    pub fn new(random: &mut Random, is_in_crowd: bool, compresses: bool) -> Self {
        let route = if is_in_crowd { "/quiet" } else { *random.pick(&ROUTES) };
        Self {
            route,
            is_in_crowd,
            compresses,
            has_asked: false,
            is_refused: false,
            sent: 0,
            echoed: 0,
            pinged: 0,
            ponged: 0,
            has_sent_last_ping: false,
            has_sent_giant: false,
        }
    }

    /// Whether its route may hold it, and end it when it was held for too long.
    pub fn may_be_held(&self) -> bool {
        self.route == "/held" && self.sent > 1
    }

    /// Asks whether the node is there.
    pub fn ping(&mut self, random: &mut Random) -> Vec<u8> {
        self.pinged += 1;
        wire::frame(random, 0x89, &self.pinged.to_be_bytes())
    }

    /// Asks that for the last time, if it has not done so.
    pub fn last_ping(&mut self, random: &mut Random) -> Option<Vec<u8>> {
        let is_last = !std::mem::replace(&mut self.has_sent_last_ping, true);
        is_last.then(|| self.ping(random))
    }

    /// One pong may answer several pings, and comes in their order.
    pub fn take_pong(&mut self, payload: &[u8]) {
        let Some(number) = payload.first_chunk() else { return };
        let number = u64::from_be_bytes(*number);
        assert!(self.ponged < number && number <= self.pinged, "pong {number}");
        self.ponged = number;
    }

    /// Whether its last ping was answered, whatever holds it back.
    pub fn is_ponged(&self) -> bool {
        !self.has_sent_last_ping || self.ponged == self.pinged
    }

    /// Whether all it sent came back, if it is on a route that does so.
    pub fn is_answered(&self) -> bool {
        self.route != "/echo" || self.sent == self.echoed
    }

    pub fn take(
        &mut self,
        number: PeerNumber,
        shared: &mut Shared,
        incoming: Incoming,
        is_first: bool,
    ) {
        let text = match incoming {
            Incoming::Response { status: 503, .. } if shared.has_budget => {
                self.is_refused = true;
                return;
            }
            Incoming::Response { status, body } => {
                assert!(is_first && status == 101, "client {number}: {status} {body}");
                return shared.pushes.note_changed(number, 0, true, shared.moment);
            }
            Incoming::Text(text) => text,
            other => panic!("client {number} gets {other:?}"),
        };
        let mut parts = text[1..].split('.').map(str::parse::<u64>);
        let mut part = || parts.next().and_then(Result::ok).expect("a whole message");
        if text.starts_with('m') {
            self.echoed += 1;
            assert_eq!(part(), self.echoed, "client {number} hears its messages in order");
        } else {
            let (by, place) = (part() as PeerNumber, part());
            shared.pushes.note_got(number, by, place);
        }
    }

    pub fn act(&mut self, number: PeerNumber, shared: &mut Shared, is_open: bool) -> Vec<u8> {
        if !self.has_asked {
            self.has_asked = true;
            return self.ask(number, shared);
        }
        if !is_open
            || self.is_refused
            || self.is_in_crowd
            || shared.mood != Mood::Busy
            || !shared.random.one_in(6)
        {
            return Vec::new();
        }
        let mut out = Vec::new();
        for _ in 0..shared.random.between(1, 5) {
            out.extend(self.speak(number, shared));
        }
        out
    }

    fn ask(&mut self, number: PeerNumber, shared: &mut Shared) -> Vec<u8> {
        shared.ledger.clients.insert(number, Fed::new(self.route == "/held"));
        shared.moment += 1;
        let asked = Asked { by: number, place: 0, at: shared.moment };
        let channel = match self.is_in_crowd {
            true => CROWDED,
            false => *shared.random.pick(&CHANNELS),
        };
        shared.pushes.note_change(asked, number, channel, true);
        let target = format!("{}?me={number}&channels={channel}", self.route);
        wire::upgrade(&target, self.compresses)
    }

    fn speak(&mut self, number: PeerNumber, shared: &mut Shared) -> Vec<u8> {
        let random = &mut shared.random;
        let is_giant = !shared.is_calm && random.one_in(300);
        self.has_sent_giant |= is_giant;
        let padding = if is_giant { MESSAGE_BYTES } else { *random.pick(&[0, 20, 300]) };
        self.sent += 1;
        let text = format!("m{}.{}", self.sent, "~".repeat(padding));
        if matches!(self.route, "/talk" | "/held") {
            let fed = shared.ledger.clients.get_mut(&number).expect("it was told when it asked");
            fed.sent = self.sent;
        }
        match self.compresses && !self.sent.is_multiple_of(3) {
            true => wire::compressed_message(random, &text),
            false => wire::message(random, &text),
        }
    }
}

/// Returns the client that an open event names.
pub fn number_of(event: &Value) -> Option<PeerNumber> {
    event["query"]["me"].as_str()?.parse().ok()
}
