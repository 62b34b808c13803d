//! A back end over WebSocket or HTTP: what it asks for, and what it makes of the answers.

use std::collections::VecDeque;

use serde_json::{Value, json};

use crate::client::{CHANNELS, CROWDED, number_of};
use crate::ledger::{CLOSED, PeerNumber};
use crate::peer::{Mood, Shared};
use crate::plan::CALLS_WAITING_MAX;
use crate::pushes::Asked;
use crate::wire::{self, Incoming};

/// A client's id that names nobody.
const NOBODY: (u64, PeerNumber) = (7 << 12, PeerNumber::MAX);

/// The use of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Publish,
    Send,
    Change,
    SetKey(PeerNumber),
    Other,
    Info,
    Queue { fault: Option<u64> },
    Ping,
}

pub struct Backend {
    pub is_http: bool,
    kind: Kind,
    is_crowd_known: bool,
    has_upgraded: bool,
    // It was not let in for want of memory, or is to leave for it.
    is_refused: bool,
    consumes: bool,
    has_popped: bool,
    next_place: u64,
    waiting: VecDeque<(u64, What)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Asks for this and that.
    Usual,
    /// Consumes until the end.
    Steady,
    /// Consumes, stops, and goes again soon.
    Restless,
    /// Asks how things are, when all is quiet.
    Auditor,
}

impl Backend {
    pub fn new(is_http: bool, is_crowd_known: bool) -> Self {
        Self {
            is_http,
            kind: Kind::Usual,
            is_crowd_known,
            has_upgraded: is_http,
            is_refused: false,
            consumes: false,
            has_popped: false,
            next_place: 1,
            waiting: VecDeque::new(),
        }
    }

    pub fn steady() -> Self {
        Self { kind: Kind::Steady, ..Self::new(false, false) }
    }

    pub fn restless() -> Self {
        Self { kind: Kind::Restless, ..Self::new(false, false) }
    }

    pub fn auditor() -> Self {
        Self { kind: Kind::Auditor, ..Self::new(false, false) }
    }

    pub fn is_steady(&self) -> bool {
        self.kind == Kind::Steady
    }

    pub fn is_restless(&self) -> bool {
        self.kind == Kind::Restless
    }

    pub fn is_answered(&self) -> bool {
        self.waiting.is_empty() || self.is_refused
    }

    pub fn act(&mut self, number: PeerNumber, shared: &mut Shared, is_open: bool) -> Vec<u8> {
        if !self.has_upgraded {
            self.has_upgraded = true;
            return wire::upgrade("/ws/v1", false);
        }
        if self.is_refused || !self.is_http && !is_open {
            return Vec::new();
        }
        if self.kind == Kind::Steady && !self.consumes {
            return self.pop(shared);
        }
        if self.kind == Kind::Restless && shared.random.one_in(8) && shared.mood == Mood::Busy {
            return if self.consumes { self.unpop(shared) } else { self.pop(shared) };
        }
        let is_usual = self.kind == Kind::Usual && shared.mood == Mood::Busy;
        let mut out = Vec::new();
        if !is_usual || !shared.random.one_in(4) {
            return out;
        }
        for _ in 0..*shared.random.pick(&[1, 1, 3, 12]) {
            if self.waiting.len() < CALLS_WAITING_MAX {
                out.extend(self.ask_something(number, shared));
            }
        }
        out
    }

    fn ask_something(&mut self, number: PeerNumber, shared: &mut Shared) -> Vec<u8> {
        let choice = shared.random.below(100);
        match choice {
            0..40 => {
                let is_crowded = self.is_crowd_known && shared.random.one_in(4);
                let channel = if is_crowded { CROWDED } else { *shared.random.pick(&CHANNELS) };
                self.publish(number, shared, channel)
            }
            40..60 => self.send(number, shared),
            60..72 => self.change(number, shared, "subscribe"),
            72..78 => self.change(number, shared, "unsubscribe"),
            78..84 => self.set_key(shared),
            84 if !shared.is_calm => self.close(shared),
            84..88 => self.info(shared),
            88..96 if !self.is_http => self.pop(shared),
            96..98 if !self.is_http => self.unpop(shared),
            _ if !self.is_http => self.ping(shared),
            _ => self.info(shared),
        }
    }

    pub fn publish(&mut self, number: PeerNumber, shared: &mut Shared, to: &str) -> Vec<u8> {
        let asked = self.asked(number, shared);
        shared.pushes.note_publish(asked, to);
        let data = payload(shared, asked);
        self.request(shared, "mesh.publish", json!({"c": to, "d": data}), What::Publish)
    }

    fn send(&mut self, number: PeerNumber, shared: &mut Shared) -> Vec<u8> {
        let (id, client) = some_client(shared);
        let asked = self.asked(number, shared);
        shared.pushes.note_send(asked, client);
        let data = payload(shared, asked);
        self.request(shared, "mesh.send", json!({"c": id.to_string(), "d": data}), What::Send)
    }

    fn change(&mut self, number: PeerNumber, shared: &mut Shared, function: &str) -> Vec<u8> {
        let (id, client) = some_client(shared);
        let channel = *shared.random.pick(&CHANNELS);
        let asked = self.asked(number, shared);
        shared.pushes.note_change(asked, client, channel, function == "subscribe");
        let params = json!({"c": id.to_string(), "f": function, "a": [channel]});
        self.request(shared, "conn.call", params, What::Change)
    }

    fn set_key(&mut self, shared: &mut Shared) -> Vec<u8> {
        let (id, client) = some_client(shared);
        if let Some(fed) = shared.ledger.clients.get_mut(&client) {
            fed.is_key_asked = true;
        }
        let params = json!({"c": id, "f": "set_context_value", "a": ["user", 1]});
        self.request(shared, "conn.call", params, What::SetKey(client))
    }

    fn close(&mut self, shared: &mut Shared) -> Vec<u8> {
        let (id, _) = some_client(shared);
        let params = json!({"c": id, "f": "close", "a": [4000, "enough"]});
        self.request(shared, "conn.call", params, What::Other)
    }

    fn info(&mut self, shared: &mut Shared) -> Vec<u8> {
        let (id, _) = some_client(shared);
        self.info_of(shared, id)
    }

    pub fn info_of(&mut self, shared: &mut Shared, id: u64) -> Vec<u8> {
        let params = json!({"c": id, "f": "info", "a": []});
        self.request(shared, "conn.call", params, What::Info)
    }

    fn pop(&mut self, shared: &mut Shared) -> Vec<u8> {
        let fault = self.consumes.then_some(202);
        self.consumes = true;
        let topics: &[&str] = match self.kind {
            Kind::Usual if shared.random.one_in(2) => &["messages"],
            Kind::Usual => &["doors", "other"],
            _ => &["doors", "messages"],
        };
        self.request(shared, "queue.pop", json!({"t": topics}), What::Queue { fault })
    }

    fn unpop(&mut self, shared: &mut Shared) -> Vec<u8> {
        let fault = (!self.consumes).then_some(203);
        self.consumes = false;
        self.request(shared, "queue.unpop", json!({}), What::Queue { fault })
    }

    fn ping(&mut self, shared: &mut Shared) -> Vec<u8> {
        self.waiting.push_back((self.next_place, What::Ping));
        self.next_place += 1;
        wire::message(&mut shared.random, "ping")
    }

    fn asked(&self, by: PeerNumber, shared: &mut Shared) -> Asked {
        shared.moment += 1;
        Asked { by, place: self.next_place, at: shared.moment }
    }

    fn request(&mut self, shared: &mut Shared, method: &str, params: Value, what: What) -> Vec<u8> {
        let place = self.next_place;
        self.next_place += 1;
        self.waiting.push_back((place, what));
        if self.is_http {
            let path = match method {
                "mesh.publish" => "/v1/mesh/publish",
                "mesh.send" => "/v1/mesh/send",
                _ => "/v1/conn/call",
            };
            return wire::post(path, &params.to_string());
        }
        let request = json!({"m": method, "p": params, "i": id_of(place)});
        wire::message(&mut shared.random, &request.to_string())
    }

    pub fn take(&mut self, number: PeerNumber, shared: &mut Shared, incoming: Incoming, end: u64) {
        let text = match incoming {
            Incoming::Response { status: 101, .. } => return,
            // Who does not read is not read from, and its request may be late for that.
            Incoming::Response { status: 408 | 503, .. } if shared.has_budget => {
                self.is_refused = true;
                return;
            }
            Incoming::Response { status, body } => {
                assert_eq!(status, 200, "back end {number}: {body}");
                body
            }
            Incoming::Text(text) => text,
            other => panic!("back end {number} gets {other:?}"),
        };
        if text == "pong" {
            let (_, what) = self.waiting.pop_front().expect("it sent a ping");
            return assert_eq!(what, What::Ping, "back end {number}: a pong is out of its turn");
        }
        let value: Value = serde_json::from_str(&text).expect("the API speaks JSON");
        match value["e"].is_null() {
            true => self.take_answer(number, shared, &value),
            false => self.take_event(number, shared, &value["p"], end),
        }
    }

    fn take_answer(&mut self, number: PeerNumber, shared: &mut Shared, answer: &Value) {
        shared.answers += 1;
        let (place, what) = self.waiting.pop_front().expect("only questions are answered");
        if !self.is_http {
            assert_eq!(answer["i"], id_of(place), "back end {number}: {answer}");
        }
        let fault = answer["E"]["c"].as_u64();
        match what {
            What::Publish => {
                let part = |name| answer["r"][name].as_u64().expect("a publish is counted");
                let tally = (part("s"), part("f"));
                shared.pushes.note_published(number, place, tally, shared.moment);
            }
            What::Send => {
                assert!(matches!(fault, None | Some(401)), "{answer}");
                shared.pushes.note_sent(number, place, fault.is_none(), shared.moment);
            }
            What::Change => {
                assert!(matches!(fault, None | Some(301)), "{answer}");
                shared.pushes.note_changed(number, place, fault.is_none(), shared.moment);
            }
            What::SetKey(client) => {
                assert!(matches!(fault, None | Some(301)), "{answer}");
                if let Some(fed) = shared.ledger.clients.get_mut(&client) {
                    fed.is_key_set |= fault.is_none();
                }
            }
            What::Other => assert!(matches!(fault, None | Some(301)), "{answer}"),
            What::Info => self.take_info(shared, answer, fault),
            What::Queue { fault: expected } => {
                assert_eq!(fault, expected, "back end {number}, {place}: {answer}");
                self.has_popped |= fault.is_none();
            }
            What::Ping => panic!("back end {number} got {answer} for a ping"),
        }
    }

    fn take_info(&self, shared: &mut Shared, answer: &Value, fault: Option<u64>) {
        assert!(matches!(fault, None | Some(301)), "{answer}");
        let Some(channels) = answer["r"]["channels"].as_array() else { return };
        assert!(channels.len() <= shared.settings.limits.channels_per_client, "{answer}");
        if self.kind == Kind::Auditor {
            for channel in channels {
                let channel = channel.as_str().expect("channels have names").to_owned();
                *shared.subscribers.entry(channel).or_default() += 1;
            }
        }
    }

    fn take_event(&mut self, number: PeerNumber, shared: &mut Shared, event: &Value, end: u64) {
        assert!(self.has_popped, "back end {number} was told though it did not pop");
        let id = event["c"].as_str().and_then(|id| id.parse().ok()).expect("an id");
        let data = &event["d"];
        if let Some(client) = number_of(data)
            && !shared.known.contains(&(id, client))
        {
            shared.known.push((id, client));
        }
        let place = match data["event"].as_str() {
            Some("open") => 0,
            Some(_) => CLOSED,
            None => {
                let text = data["frame"]["data"].as_str().expect("clients send text");
                let digits = text[1..].split('.').next().expect("the first of them");
                digits.parse().expect("a number")
            }
        };
        let known = shared.known.iter().find(|known| known.0 == id);
        let Some(&(_, client)) = known else { return shared.ledger.note_nameless(id, place) };
        if place == CLOSED {
            let code = data["code"].as_u64().expect("a close event has a code");
            let reason = data["reason"].as_str().expect("a close event has a reason");
            shared.ledger.note_close(client, code, reason);
        }
        shared.ledger.note_event(number, client, place, end);
    }
}

/// Ids of all kinds that come back as they were sent.
fn id_of(place: u64) -> Value {
    if place.is_multiple_of(2) { json!(place) } else { json!(format!("r{place}")) }
}

fn payload(shared: &mut Shared, Asked { by, place, .. }: Asked) -> String {
    let padding = *shared.random.pick(&[0, 0, 10, 130, 500]);
    format!("p{by}.{place}.{}", "~".repeat(padding))
}

fn some_client(shared: &mut Shared) -> (u64, PeerNumber) {
    if shared.known.is_empty() || shared.random.one_in(40) {
        return NOBODY;
    }
    *shared.random.pick(&shared.known)
}
