//! A client: it is subscribed, hears, and sends.

use serde_json::Value;

use crate::ledger::PeerNumber;
use crate::peer::{Mood, Shared};
use crate::random::Random;
use crate::wire::{self, Incoming};

pub const CHANNELS: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];

/// Routes, and the topics that are told what happens on them.
const ROUTES: [(&str, &str); 2] = [("/talk", "messages"), ("/quiet", "doors")];

pub struct Client {
    route: &'static str,
    topic: &'static str,
    has_asked: bool,
    sent: u64,
}

impl Client {
    pub fn new(random: &mut Random) -> Self {
        let (route, topic) = if random.one_in(4) { ROUTES[1] } else { ROUTES[0] };
        Self { route, topic, has_asked: false, sent: 0 }
    }

    pub fn take(&mut self, number: PeerNumber, shared: &mut Shared, incoming: Incoming) {
        let text = match incoming {
            Incoming::Response { status, body } => {
                assert_eq!(status, 101, "client {number}: {body}");
                shared.queue.note_open(number, shared.now_ms);
                return shared.pushes.note_changed(number, 0, true, shared.moment);
            }
            Incoming::Text(text) => text,
            other => panic!("client {number} gets {other:?}"),
        };
        let mut parts = text[1..].split('.').map(str::parse::<u64>);
        let mut part = || parts.next().and_then(Result::ok).expect("a whole message");
        let (by, place) = (part() as PeerNumber, part());
        shared.pushes.note_got(number, by, place);
    }

    pub fn act(&mut self, number: PeerNumber, shared: &mut Shared, is_open: bool) -> Vec<u8> {
        if !self.has_asked {
            self.has_asked = true;
            return self.ask(number, shared);
        }
        let is_mute = self.route == "/quiet" || !is_open || shared.mood != Mood::Busy;
        if is_mute || !shared.random.one_in(3) {
            return Vec::new();
        }
        let mut out = Vec::new();
        for _ in 0..shared.random.between(1, 5) {
            out.extend(self.speak(number, shared));
        }
        out
    }

    fn ask(&mut self, number: PeerNumber, shared: &mut Shared) -> Vec<u8> {
        shared.queue.note_client(number, shared.nodes[number], self.topic);
        let asked = shared.asked(number, 0);
        let mut channels = Vec::new();
        for _ in 0..shared.random.between(0, 3) {
            let channel = *shared.random.pick(&CHANNELS);
            if !channels.contains(&channel) {
                shared.pushes.note_change(asked, number, channel, true);
                channels.push(channel);
            }
        }
        let channels = match channels.is_empty() {
            true => String::new(),
            false => format!("&channels={}", channels.join(",")),
        };
        wire::upgrade(&format!("{}?me={number}{channels}", self.route), false)
    }

    fn speak(&mut self, number: PeerNumber, shared: &mut Shared) -> Vec<u8> {
        self.sent += 1;
        shared.queue.note_sent(number, self.sent, shared.now_ms);
        let text = format!("m{}.{}", self.sent, "~".repeat(*shared.random.pick(&[0, 20, 300])));
        match shared.random.one_in(3) {
            true => wire::frame(&mut shared.random, 0x82, text.as_bytes()),
            false => wire::message(&mut shared.random, &text),
        }
    }
}

/// Returns the client that an open event names.
pub fn number_of(event: &Value) -> Option<PeerNumber> {
    event["query"]["me"].as_str()?.parse().ok()
}
