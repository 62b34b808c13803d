//! What a node says to those who talk HTTP and WebSocket with it, and what its back ends hear of
//! them. A shard is a value here: no socket, and a clock that only steps.

#![forbid(unsafe_code)]

#[allow(dead_code, reason = "other tests use what this one does not")]
#[path = "support/shard.rs"]
mod shard_value;

use std::sync::Arc;

use gridcast::address::ShardId;
use gridcast::message::ConnectionKey;
use gridcast::shard::settings::{Edge, Route, Settings};
use gridcast::shard::{Listener, Now, Shard};

/// The first moment: Wed, 15 Nov 2023 06:13:20 GMT.
const START: Now = Now { ms: 0, us: 0, unix_ms: 1_700_028_800_000 };

const UPGRADE: &str = "Host: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// A node of one shard, and its clock.
struct Node {
    shard: Shard,
    now: Now,
}

impl Node {
    /// With an edge of this route.
    fn new(route: Route) -> Self {
        let edges = vec![Edge { port: 6790, routes: vec![Arc::new(route)] }];
        let settings = Settings { edges, ..shard_value::settings() };
        Self { shard: Shard::new(ShardId(0), &settings, START), now: START }
    }

    fn accept(&mut self, listener: Listener) -> ConnectionKey {
        let remote = ([127, 0, 0, 1], 50_000).into();
        self.shard.handle_accepted(self.now, listener, remote).expect("the node is up")
    }

    /// What is written when a connection has sent these bytes.
    fn say(&mut self, key: ConnectionKey, bytes: impl AsRef<[u8]>) -> String {
        self.shard.handle_bytes(self.now, key, &mut bytes.as_ref().to_vec());
        self.shard.handle_turn(self.now);
        self.written()
    }

    /// The answer to a request on a connection of its own.
    fn ask(&mut self, listener: Listener, request: &str) -> String {
        let key = self.accept(listener);
        self.say(key, request)
    }

    fn pass_ms(&mut self, ms: u64) {
        let Now { ms: now, us, unix_ms } = self.now;
        self.now = Now { ms: now + ms, us: us + ms * 1000, unix_ms: unix_ms + ms };
        self.shard.handle_turn(self.now);
    }

    /// Writes all that waits to be written; what that was.
    fn written(&mut self) -> String {
        let mut all = Vec::new();
        let next =
            |shard: &mut Shard| shard.poll_urgent_write().or_else(|| shard.poll_bulk_write());
        while let Some((key, batch)) = next(&mut self.shard) {
            let before = all.len();
            batch.iter().for_each(|chunk| all.extend_from_slice(chunk.bytes()));
            self.shard.handle_written(self.now, key, all.len() - before, true);
        }
        String::from_utf8_lossy(&all).into_owned()
    }
}

#[track_caller]
fn assert_holds(text: &str, part: &str) {
    assert!(text.contains(part), "{part:?} is not in {text:?}");
}

#[test]
fn every_response_has_the_date_of_its_second() {
    let mut node = Node::new(shard_value::route());
    let publish = "POST /v1/mesh/publish HTTP/1.1\r\nHost: a\r\nContent-Length: 17\r\n\r\n\
                   {\"c\":\"a\",\"d\":\"b\"}";
    let call = "POST /v1/conn/call HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}";
    let requests = [
        (Listener::Api, publish.to_owned()),
        (Listener::Api, call.to_owned()),
        (Listener::Api, "GET / HTTP/1.1\r\nHost: a\r\n\r\n".into()),
        (Listener::Api, "HEAD /healthz HTTP/1.0\r\n\r\n".into()),
        (Listener::Api, "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".into()),
        (Listener::Api, "GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n".into()),
        (Listener::Api, "PUT / HTTP/1.1\r\nHost: a\r\n\r\n".into()),
        (Listener::Api, "GET / HTTP/1.1\r\n\r\n".into()),
        (Listener::Api, "nonsense\r\n\r\n".into()),
        (Listener::Api, format!("GET /ws/v1 HTTP/1.1\r\n{UPGRADE}\r\n")),
        (Listener::Edge(0), format!("GET /ws HTTP/1.1\r\n{UPGRADE}\r\n")),
        (Listener::Edge(0), "GET /ws HTTP/1.1\r\nHost: a\r\n\r\n".into()),
        (Listener::Edge(0), format!("GET /nowhere HTTP/1.1\r\n{UPGRADE}\r\n")),
    ];
    for (listener, request) in requests {
        let answer = node.ask(listener, &request);
        assert_eq!(
            answer.matches("\r\nDate: Wed, 15 Nov 2023 06:13:20 GMT\r\n").count(),
            1,
            "{answer}"
        );
    }
    let slow = node.accept(Listener::Api);
    node.say(slow, "GET / HTTP/1.1\r\n");
    node.pass_ms(10_001);
    let answer = node.written();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert_holds(&answer, "\r\nDate: Wed, 15 Nov 2023 06:13:30 GMT\r\n");
}
