//! A back end on the WebSocket API of some node: what it asks for, and what it makes of the answers.

use std::collections::VecDeque;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::client::{CHANNELS, number_of};
use crate::ledger::{CLOSED, PeerNumber};
use crate::peer::{Mood, Shared, time_of};
use crate::pushes::{Asked, Moment};
use crate::requests::{Request, Requests};
use crate::wire::{self, Incoming};

/// Requests without an answer, at most.
const WAITING_MAX: usize = 300;

/// The use of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Publish,
    Send,
    Subscribe(&'static str),
    Unsubscribe,
    Other,
    Info,
    Pop { fault: Option<u64> },
    Unpop { fault: Option<u64> },
    Ack,
    Ping,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Asks for this and that.
    Usual,
    /// Consumes until the end.
    Steady,
    /// Consumes and stops, again and again.
    Restless,
    /// Asks how things are, when all is quiet.
    Auditor,
}

pub struct Backend {
    kind: Kind,
    has_upgraded: bool,
    consumes: bool,
    acknowledges: bool,
    /// Whether the back end does not know whether its calls were carried out.
    pub is_at_loss: bool,
    // Tags that are not acknowledged yet.
    tags: VecDeque<u64>,
    next_place: u64,
    /// Requests that wait for answers.
    pub requests: Requests<What>,
}

impl Backend {
    pub fn usual() -> Self {
        Self {
            kind: Kind::Usual,
            has_upgraded: false,
            consumes: false,
            acknowledges: false,
            is_at_loss: false,
            tags: VecDeque::new(),
            next_place: 1,
            requests: Requests::default(),
        }
    }

    pub fn steady() -> Self {
        Self { kind: Kind::Steady, ..Self::usual() }
    }

    pub fn restless() -> Self {
        Self { kind: Kind::Restless, ..Self::usual() }
    }

    pub fn auditor() -> Self {
        Self { kind: Kind::Auditor, ..Self::usual() }
    }

    pub fn is_steady(&self) -> bool {
        self.kind == Kind::Steady
    }

    pub fn is_answered(&self) -> bool {
        self.requests.is_empty()
    }

    pub fn act(&mut self, number: PeerNumber, shared: &mut Shared, is_open: bool) -> Vec<u8> {
        if !self.has_upgraded {
            self.has_upgraded = true;
            return wire::upgrade("/ws/v1", false);
        }
        if !is_open {
            return Vec::new();
        }
        if self.kind == Kind::Steady && !self.consumes {
            return self.pop(number, shared);
        }
        let mut out = self.acknowledge(number, shared);
        if self.kind == Kind::Restless && shared.mood == Mood::Busy && shared.random.one_in(3) {
            out.extend(if self.consumes {
                self.unpop(number, shared)
            } else {
                self.pop(number, shared)
            });
            return out;
        }
        if self.kind != Kind::Usual || shared.mood != Mood::Busy {
            return out;
        }
        if let Some(channel) = shared.fresh.pop() {
            out.extend(self.publish(number, shared, channel));
        }
        for _ in 0..*shared.random.pick(&[0, 1, 1, 3, 12]) {
            if self.requests.len() < WAITING_MAX {
                out.extend(self.ask_something(number, shared));
            }
        }
        out
    }

    fn ask_something(&mut self, number: PeerNumber, shared: &mut Shared) -> Vec<u8> {
        match shared.random.below(100) {
            0..35 => {
                let channel = *shared.random.pick(&CHANNELS);
                self.publish(number, shared, channel)
            }
            35..55 => self.send(number, shared),
            55..70 => self.change(number, shared, true),
            70..78 => self.change(number, shared, false),
            78..82 => self.set_key(number, shared),
            82..84 => self.close(number, shared),
            84..88 => self.info(number, shared),
            88..94 => self.pop(number, shared),
            94..97 => self.unpop(number, shared),
            _ => self.ping(number, shared),
        }
    }

    pub fn publish(&mut self, number: PeerNumber, shared: &mut Shared, to: &str) -> Vec<u8> {
        let asked = shared.asked(number, self.next_place);
        shared.pushes.note_publish(asked, to);
        let params = pushed(shared, to, asked);
        self.request(number, shared, "mesh.publish", params, What::Publish)
    }

    fn send(&mut self, number: PeerNumber, shared: &mut Shared) -> Vec<u8> {
        let Some((id, client)) = some_client(shared) else { return self.ping(number, shared) };
        let asked = shared.asked(number, self.next_place);
        shared.pushes.note_send(asked, client);
        let params = pushed(shared, &id.to_string(), asked);
        self.request(number, shared, "mesh.send", params, What::Send)
    }

    fn change(&mut self, number: PeerNumber, shared: &mut Shared, subscribes: bool) -> Vec<u8> {
        let Some((id, client)) = some_client(shared) else { return self.ping(number, shared) };
        let channel = *shared.random.pick(&CHANNELS);
        let asked = shared.asked(number, self.next_place);
        shared.pushes.note_change(asked, client, channel, subscribes);
        let (function, what) = match subscribes {
            true => ("subscribe", What::Subscribe(channel)),
            false => ("unsubscribe", What::Unsubscribe),
        };
        let params = json!({"c": id.to_string(), "f": function, "a": [channel]});
        self.request(number, shared, "conn.call", params, what)
    }

    fn set_key(&mut self, number: PeerNumber, shared: &mut Shared) -> Vec<u8> {
        let Some((id, _)) = some_client(shared) else { return self.ping(number, shared) };
        let params = json!({"c": id, "f": "set_context_value", "a": ["user", 1]});
        self.request(number, shared, "conn.call", params, What::Other)
    }

    fn close(&mut self, number: PeerNumber, shared: &mut Shared) -> Vec<u8> {
        let Some((id, _)) = some_client(shared) else { return self.ping(number, shared) };
        let params = json!({"c": id, "f": "close", "a": [4000, "enough"]});
        self.request(number, shared, "conn.call", params, What::Other)
    }

    fn info(&mut self, number: PeerNumber, shared: &mut Shared) -> Vec<u8> {
        let Some((id, _)) = some_client(shared) else { return self.ping(number, shared) };
        self.info_of(number, shared, id)
    }

    pub fn info_of(&mut self, number: PeerNumber, shared: &mut Shared, id: u64) -> Vec<u8> {
        let params = json!({"c": id.to_string(), "f": "info", "a": []});
        self.request(number, shared, "conn.call", params, What::Info)
    }

    fn pop(&mut self, number: PeerNumber, shared: &mut Shared) -> Vec<u8> {
        let fault = self.consumes.then_some(202);
        let topics: &[&'static str] = match self.kind {
            Kind::Usual if shared.random.one_in(2) => &["messages"],
            Kind::Usual if shared.random.one_in(2) => &["doors", "other"],
            _ => &["doors", "messages"],
        };
        let may_acknowledge = matches!(self.kind, Kind::Usual | Kind::Restless);
        let acknowledges = may_acknowledge && shared.random.one_in(3);
        if fault.is_none() {
            (self.consumes, self.acknowledges) = (true, acknowledges);
            self.tags.clear();
            shared.queue.note_pop(number, shared.nodes[number], topics, acknowledges);
        }
        let params = match acknowledges {
            true => json!({"t": topics, "a": true, "w": *shared.random.pick(&[1, 5, 64])}),
            false => json!({"t": topics}),
        };
        self.request(number, shared, "queue.pop", params, What::Pop { fault })
    }

    fn unpop(&mut self, number: PeerNumber, shared: &mut Shared) -> Vec<u8> {
        let fault = (!self.consumes).then_some(203);
        (self.consumes, self.acknowledges) = (false, false);
        shared.queue.note_unpop(number);
        self.request(number, shared, "queue.unpop", json!({}), What::Unpop { fault })
    }

    /// Acknowledges some or all of what it has.
    fn acknowledge(&mut self, number: PeerNumber, shared: &mut Shared) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.acknowledges || (shared.mood == Mood::Busy && shared.random.one_in(3)) {
            return out;
        }
        if shared.random.one_in(2)
            && let Some(&last) = self.tags.back()
        {
            self.tags.clear();
            return self.request(
                number,
                shared,
                "queue.ack",
                json!({"g": last, "u": true}),
                What::Ack,
            );
        }
        while let Some(tag) = self.tags.pop_front() {
            out.extend(self.request(number, shared, "queue.ack", json!({"g": tag}), What::Ack));
        }
        out
    }

    fn ping(&mut self, number: PeerNumber, shared: &mut Shared) -> Vec<u8> {
        self.ask(number, shared, "ping", What::Ping)
    }

    fn request(
        &mut self,
        number: PeerNumber,
        shared: &mut Shared,
        method: &str,
        params: Value,
        what: What,
    ) -> Vec<u8> {
        let request = json!({"m": method, "p": params, "i": self.next_place});
        if shared.is_verbose {
            println!("  and asks {request}");
        }
        self.ask(number, shared, &request.to_string(), what)
    }

    fn ask(
        &mut self,
        number: PeerNumber,
        shared: &mut Shared,
        request: &str,
        what: What,
    ) -> Vec<u8> {
        let place = self.next_place;
        self.next_place += 1;
        let moment = shared.next_moment();
        let frame = wire::message(&mut shared.random, request);
        self.requests.push((number, shared), (place, what), moment, frame.len());
        frame
    }

    pub fn take(&mut self, number: PeerNumber, shared: &mut Shared, incoming: Incoming) {
        let text = match incoming {
            Incoming::Response { status: 101, .. } => return,
            Incoming::Text(text) => text,
            other => panic!("back end {number} gets {other:?}"),
        };
        if text == "pong" {
            let request = self.requests.pop(number, shared).expect("it sent a ping");
            return assert_eq!(
                request.what,
                What::Ping,
                "back end {number}: a pong is out of its turn"
            );
        }
        let value: Value = serde_json::from_str(&text).expect("the API speaks JSON");
        match value["e"].is_null() {
            true => self.take_answer(number, shared, &value),
            false => self.take_event(number, shared, &value["p"]),
        }
    }

    fn take_answer(&mut self, number: PeerNumber, shared: &mut Shared, answer: &Value) {
        shared.answers += 1;
        let request = self.requests.pop(number, shared).expect("only questions are answered");
        let Request { place, what, asked, .. } = request;
        assert_eq!(answer["i"], place, "back end {number}: {answer}");
        let fault = answer["E"]["c"].as_u64();
        let is_done = fault.is_none();
        let now_ms = shared.now_ms;
        match what {
            What::Publish => {
                let part = |name| answer["r"][name].as_u64().expect("a publish is counted");
                let tally = (part("s"), part("f"));
                shared.pushes.note_published(number, place, tally, shared.moment);
            }
            What::Send => {
                assert!(matches!(fault, None | Some(401)), "{answer}");
                shared.pushes.note_sent(number, place, is_done, shared.moment);
            }
            What::Subscribe(channel) => {
                assert!(matches!(fault, None | Some(301)), "{answer}");
                shared.pushes.note_changed(number, place, is_done, shared.moment);
                shared.fresh.extend(is_done.then_some(channel));
            }
            What::Unsubscribe => {
                assert!(matches!(fault, None | Some(301)), "{answer}");
                shared.pushes.note_changed(number, place, is_done, shared.moment);
            }
            What::Other => assert!(matches!(fault, None | Some(301)), "{answer}"),
            What::Info => self.take_info(shared, answer, fault),
            What::Pop { .. } | What::Unpop { .. } if was_frozen(number, shared, asked) => {
                // The time for an answer may have passed while there were no turns: whether it
                // consumes is not clear, and it goes.
                shared.queue.note_popped(number, now_ms);
                shared.queue.note_consumer_end(number);
                self.is_at_loss = true;
            }
            What::Pop { fault: expected } => {
                assert_eq!(fault, expected, "back end {number}, {place}: {answer}");
                if is_done {
                    shared.queue.note_popped(number, now_ms);
                }
            }
            What::Unpop { fault: expected } => {
                assert_eq!(fault, expected, "back end {number}, {place}: {answer}");
            }
            // What it has may have been cancelled meanwhile.
            What::Ack => assert!(matches!(fault, None | Some(101 | 203)), "{answer}"),
            What::Ping => panic!("back end {number} got {answer} for a ping"),
        }
    }

    fn take_info(&self, shared: &mut Shared, answer: &Value, fault: Option<u64>) {
        assert!(matches!(fault, None | Some(301)), "{answer}");
        let Some(channels) = answer["r"]["channels"].as_array() else { return };
        if self.kind == Kind::Auditor {
            for channel in channels {
                let channel = channel.as_str().expect("channels have names").to_owned();
                let node = answer["r"]["node"].as_u64().expect("its node has a number");
                *shared.subscribers.entry((node, channel)).or_default() += 1;
            }
        }
    }

    fn take_event(&mut self, number: PeerNumber, shared: &mut Shared, event: &Value) {
        self.tags.extend(event["g"].as_u64().filter(|_| self.acknowledges));
        let id = event["c"].as_str().and_then(|id| id.parse().ok()).expect("an id");
        let data = &event["d"];
        if let Some(client) = number_of(data)
            && !shared.known.contains(&(id, client))
        {
            let is_new = shared.known.iter().all(|known| known.0 != id);
            assert!(is_new, "client {client} has the id of another: {id}");
            shared.known.push((id, client));
        }
        let reason = data["reason"].as_str().unwrap_or_default();
        let known = shared.known.iter().find(|known| known.0 == id);
        if known.is_none() && reason == "node_lost" {
            // What else there was to be told went with the node.
            return;
        }
        let &(_, client) = known.expect("a client's open event comes before all else");
        if reason == "node_lost" {
            return shared.queue.note_lost(&shared.weather, shared.now_ms, client);
        }
        assert_eq!(event["n"], shared.nodes[client] + 1, "{event}");
        if reason == "node_found" {
            return shared.queue.note_found(client);
        }
        let place = match data["event"].as_str() {
            Some("open") => 0,
            Some(_) => CLOSED,
            None => number_in(&data["frame"]),
        };
        let Shared { queue, weather, now_ms, .. } = shared;
        queue.note_event(weather, *now_ms, number, client, place);
    }
}

fn was_frozen(number: PeerNumber, shared: &Shared, asked: Moment) -> bool {
    shared.weather.frozen_ms(shared.nodes[number], time_of(asked), shared.now_ms) > 0
}

fn number_in(frame: &Value) -> u64 {
    let data = frame["data"].as_str().expect("there is data");
    let text = match frame["type"].as_str() {
        Some("binary") => {
            let bytes = BASE64_STANDARD.decode(data).expect("binary data is base64");
            String::from_utf8(bytes).expect("clients send ASCII")
        }
        _ => data.to_owned(),
    };
    let digits = text[1..].split('.').next().expect("the first of them");
    digits.parse().expect("a number")
}

fn pushed(shared: &mut Shared, to: &str, Asked { by, place, .. }: Asked) -> Value {
    let padding = *shared.random.pick(&[0, 0, 10, 130]);
    let text = format!("p{by}.{place}.{}", "~".repeat(padding));
    match shared.random.one_in(4) {
        true => json!({"c": to, "d": BASE64_STANDARD.encode(text), "t": "binary"}),
        false => json!({"c": to, "d": text}),
    }
}

/// One of the clients that are known, those that came last more often than those that are gone.
fn some_client(shared: &mut Shared) -> Option<(u64, PeerNumber)> {
    let count = shared.known.len();
    let from = if shared.random.one_in(4) { 0 } else { count.saturating_sub(12) };
    (count > 0).then(|| shared.known[from + shared.random.below(count - from)])
}
