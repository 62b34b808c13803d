//! A node of one shard as a value, whose back ends call its API over HTTP. The test sets the clock.

#![allow(dead_code, reason = "each test uses its own part of this")]

use std::collections::BTreeMap;
use std::sync::Arc;

use gridcast::message::ConnectionKey;
use gridcast::shard::node_state::NodeState;
use gridcast::shard::settings::Settings;
use gridcast::shard::{Listener, Now, Shard};
use serde_json::Value;

/// The node, at a time in milliseconds.
pub struct Node {
    pub shard: Shard,
    pub now: Now,
    // Output that was written and not looked at.
    written: BTreeMap<u32, Vec<u8>>,
}

fn at(ms: u64) -> Now {
    Now { ms, us: ms * 1000, unix_ms: 1_700_000_000_000 + ms }
}

impl Node {
    pub fn new(settings: &Settings) -> Self {
        let shard = super::shard_value::shard(settings, at(0));
        Self { shard, now: at(0), written: BTreeMap::new() }
    }

    pub fn reload(&mut self, settings: &Settings) {
        let state = Arc::new(NodeState::new(settings, Arc::default()));
        self.shard.handle_reload(self.now, settings, state);
        self.settle();
    }

    /// Lets this time pass.
    pub fn pass_ms(&mut self, ms: u64) {
        let end_ms = self.now.ms + ms;
        while self.now.ms < end_ms {
            self.now = at((self.now.ms + 10).min(end_ms));
            self.settle();
        }
    }

    /// Connects a back end that will speak HTTP.
    pub fn connect(&mut self) -> ConnectionKey {
        let remote = ([127, 0, 0, 1], 50_000).into();
        self.shard.handle_accepted(self.now, Listener::Api, remote).expect("the node is up")
    }

    /// Sends a request.
    pub fn post(&mut self, key: ConnectionKey, path: &str, params: &Value) {
        let body = params.to_string();
        let length = body.len();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        self.receive(key, request.into_bytes());
    }

    /// Sends a request and returns its answer.
    #[track_caller]
    pub fn ask(&mut self, key: ConnectionKey, path: &str, params: &Value) -> Value {
        self.post(key, path, params);
        self.answer(key).expect("the call is answered at once")
    }

    pub fn receive(&mut self, key: ConnectionKey, mut bytes: Vec<u8>) {
        self.shard.handle_bytes(self.now, key, &mut bytes);
        self.settle();
    }

    /// The next answer, if it was written.
    pub fn answer(&mut self, key: ConnectionKey) -> Option<Value> {
        let written = self.written.get_mut(&key.index)?;
        let text = String::from_utf8(written.clone()).expect("responses are text");
        let (head, rest) = text.split_once("\r\n\r\n")?;
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>())
        });
        let length = length.expect("responses tell their length").expect("a number");
        written.drain(..head.len() + 4 + length);
        Some(serde_json::from_str(&rest[..length]).expect("JSON"))
    }

    /// The messages that a back end on a WebSocket has got.
    pub fn frames(&mut self, key: ConnectionKey) -> Vec<Value> {
        let mut bytes = &self.written.remove(&key.index).unwrap_or_default()[..];
        if bytes.starts_with(b"HTTP/1.1 101") {
            let end = bytes.windows(4).position(|part| part == b"\r\n\r\n");
            bytes = &bytes[end.expect("the head ends") + 4..];
        }
        let mut messages = Vec::new();
        while let [_, length, rest @ ..] = bytes {
            let (length, rest) = match length {
                126 => (usize::from(rest[0]) << 8 | usize::from(rest[1]), &rest[2..]),
                length => (usize::from(*length), rest),
            };
            messages.push(serde_json::from_slice(&rest[..length]).expect("JSON"));
            bytes = &rest[length..];
        }
        messages
    }

    /// Runs turns until nothing is left to do, and writes all output.
    fn settle(&mut self) {
        super::shard_value::settle(&mut self.shard, self.now, &mut self.written);
    }
}
