//! Responses, close codes and events for HTTP and WebSocket input. A shard is a value here: no socket, and the test
//! sets the clock.

#![forbid(unsafe_code)]

#[path = "support/shard.rs"]
mod shard_value;

use std::sync::Arc;

use gridcast::message::ConnectionKey;
use gridcast::protocol::token::{TokenAlgorithm, TokenRule, TokenSources};
use gridcast::shard::settings::{EdgeSettings, RouteSettings, Settings};
use gridcast::shard::{Listener, Now, Priority, Shard};
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};
use shard_value::{call, upgraded};
use zlib_rs::{Deflate, DeflateFlush};

/// The start time: Wed, 15 Nov 2023 06:13:20 GMT.
const START: Now = Now { ms: 0, us: 0, unix_ms: 1_700_028_800_000 };

const UPGRADE: &str = "Host: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// A node of one shard, and its clock.
struct Node {
    shard: Shard,
    now: Now,
}

impl Node {
    /// Creates a node whose edge has this route.
    fn new(route: RouteSettings) -> Self {
        let edges = vec![EdgeSettings { proxy: None, port: 6790, routes: vec![Arc::new(route)] }];
        let settings = Settings { edges, ..shard_value::settings() };
        Self { shard: shard_value::shard(&settings, START), now: START }
    }

    fn accept(&mut self, listener: Listener) -> ConnectionKey {
        let remote = ([127, 0, 0, 1], 50_000).into();
        self.shard.handle_accepted(self.now, listener, remote).expect("the node is up")
    }

    /// Feeds bytes to a connection; returns the output.
    fn say(&mut self, key: ConnectionKey, bytes: impl AsRef<[u8]>) -> String {
        self.shard.handle_bytes(self.now, key, &mut bytes.as_ref().to_vec());
        self.shard.handle_turn(self.now);
        self.written()
    }

    /// Sends a request on a new connection; returns the response.
    fn ask(&mut self, listener: Listener, request: &str) -> String {
        let key = self.accept(listener);
        self.say(key, request)
    }

    fn pass_ms(&mut self, ms: u64) {
        let Now { ms: now, us, unix_ms } = self.now;
        self.now = Now { ms: now + ms, us: us + ms * 1000, unix_ms: unix_ms + ms };
        self.shard.handle_turn(self.now);
    }

    /// Writes all output; returns it.
    fn written(&mut self) -> String {
        let mut all = Vec::new();
        let next = |shard: &mut Shard| {
            shard.poll_write(Priority::Urgent).or_else(|| shard.poll_write(Priority::Bulk))
        };
        while let Some((key, batch)) = next(&mut self.shard) {
            let before = all.len();
            batch.iter().for_each(|chunk| all.extend_from_slice(chunk.bytes()));
            self.shard.handle_written(self.now, key, all.len() - before, true);
        }
        String::from_utf8_lossy(&all).into_owned()
    }
}

/// The secret of [`token_route`].
const KEY: &str = "0123456789abcdef0123456789abcdef";

/// A token for [`token_route`] with these claims, which expires in an hour.
fn token(mut claims: Value) -> String {
    claims["exp"] = json!(START.unix_ms / 1000 + 3600);
    let key = EncodingKey::from_secret(KEY.as_bytes());
    encode(&Header::default(), &claims, &key).expect("claims are JSON")
}

/// The route `/ws`, which needs a token and sends all events to the topic `messages`.
fn token_route() -> RouteSettings {
    let places = TokenSources { header: true, protocol: true, query: true };
    RouteSettings {
        token: TokenRule::with_key(TokenAlgorithm::Hs256, KEY, places).map(Arc::new),
        ..reporting_route()
    }
}

/// The route `/ws`, which sends all events to the topic `messages`.
fn reporting_route() -> RouteSettings {
    RouteSettings {
        topic: Some("messages".into()),
        tells_open: true,
        tells_message: true,
        tells_close: true,
        ..shard_value::route()
    }
}

/// Connects a back end that consumes the topic `messages`.
fn consume(node: &mut Node) -> ConnectionKey {
    let back_end = upgraded(&mut node.shard, node.now, Listener::Api, "/ws/v1");
    let granted = node.say(back_end, call(r#"{"m":"queue.pop","p":{"t":["messages"]},"i":1}"#));
    assert_holds(&granted, r#"{"E":null,"r":{"s":true},"i":1}"#);
    back_end
}

#[track_caller]
fn assert_holds(text: &str, part: &str) {
    assert!(text.contains(part), "{part:?} is not in {text:?}");
}

#[test]
fn every_response_has_the_current_date() {
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

#[test]
fn an_open_event_describes_the_client() {
    let mut node = Node::new(token_route());
    consume(&mut node);
    let token = token(json!({"sub": "u7", "context": {"plan": "gold"}}));
    let request = format!("GET /ws?token={token}&x=1 HTTP/1.1\r\n{UPGRADE}\r\n");
    let said = node.ask(Listener::Edge(0), &request);
    assert_holds(&said, r#""d":{"event":"open","path":"/ws","query":{"x":"1"},"#);
    assert_holds(&said, r#""context":{"plan":"gold","user_id":"u7"}}},"id":null}"#);
    assert!(!said.contains(&token), "{said}");
}

#[test]
fn a_query_parameter_that_cannot_be_decoded_is_reported_unchanged() {
    let mut node = Node::new(reporting_route());
    consume(&mut node);
    let request = format!("GET /ws?x=%zz&channels=a&%ff HTTP/1.1\r\n{UPGRADE}\r\n");
    let said = node.ask(Listener::Edge(0), &request);
    assert_holds(&said, "HTTP/1.1 101");
    assert_holds(&said, r#""query":{"x":"%zz","channels":"a","%ff":""}"#);
    for query in ["channels=%zz", "channels=a&channels=%ff"] {
        let request = format!("GET /ws?{query} HTTP/1.1\r\n{UPGRADE}\r\n");
        let refused = node.ask(Listener::Edge(0), &request);
        assert!(refused.starts_with("HTTP/1.1 400"), "{refused}");
        assert_holds(&refused, "the query's channels: ");
    }
}

#[test]
fn several_cookie_headers_are_reported_as_one() {
    let mut node = Node::new(reporting_route());
    consume(&mut node);
    let cookies = "Cookie: a=1\r\nAccept: x\r\ncookie: b=2; c=3\r\nAccept: y\r\n";
    let said = node.ask(Listener::Edge(0), &format!("GET /ws HTTP/1.1\r\n{UPGRADE}{cookies}\r\n"));
    assert_holds(&said, r#""cookie":"a=1; b=2; c=3""#);
    assert_holds(&said, r#""accept":"x,y""#);
}

#[test]
fn the_response_to_a_refused_token_has_the_reason() {
    let mut node = Node::new(token_route());
    let key = EncodingKey::from_secret(KEY.as_bytes());
    let encoded = |claims| encode(&Header::default(), &claims, &key).expect("claims are JSON");
    let until = START.unix_ms / 1000 + 3600;
    for (token, why) in [
        (encoded(json!([until])), "the token's claims: they are not an object"),
        (
            encoded(json!({"exp": until, "aud": 7})),
            "the token's claims: aud is neither a string nor",
        ),
        (token(json!({"aud": ["elsewhere"]})), "the token's aud does not name this service"),
        (token(json!({"context": {"": 1}})), "the token's claims: context is not an object with"),
        ("%zz".into(), "the token is not a JSON Web Token"),
    ] {
        let request = format!("GET /ws?token={token} HTTP/1.1\r\n{UPGRADE}\r\n");
        let answer = node.ask(Listener::Edge(0), &request);
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
        assert_holds(&answer, why);
    }
}

#[test]
fn a_frame_length_that_is_not_encoded_minimally_is_closed_with_1002() {
    let mut node = Node::new(shard_value::route());
    for (listener, path) in [(Listener::Edge(0), "/ws"), (Listener::Api, "/ws/v1")] {
        for head in [&[0x81, 0xFE, 0, 1][..], &[0x81, 0xFF, 0, 0, 0, 0, 0, 0, 0, 200]] {
            let key = upgraded(&mut node.shard, node.now, listener, path);
            node.written();
            let closed = node.say(key, [head, &[0, 0, 0, 0, b'x']].concat());
            assert_holds(&closed, "frame length too large or not in its shortest form");
            assert_holds(&closed, "\u{3}\u{fffd}frame");
        }
    }
}

#[test]
fn an_invalid_host_gets_400_on_both_listeners() {
    let mut node = Node::new(shard_value::route());
    for listener in [Listener::Api, Listener::Edge(0)] {
        for host in ["a:b:c", "[", "%zz", "a:99999"] {
            for request in [
                format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n"),
                format!("GET http://{host}/healthz HTTP/1.1\r\nHost: a\r\n\r\n"),
            ] {
                let answer = node.ask(listener, &request);
                assert!(answer.starts_with("HTTP/1.1 400 "), "{request}: {answer}");
            }
        }
    }
}

#[test]
fn the_first_offered_subprotocol_that_the_route_accepts_is_selected() {
    let accepts = |subprotocols: &[&str], route| RouteSettings {
        subprotocols: subprotocols.iter().map(|&name| name.to_owned()).collect(),
        ..route
    };
    let token = token(json!({}));
    let answered = |route: RouteSettings, offers: &str| {
        let mut node = Node::new(route);
        let offers = format!("Sec-WebSocket-Protocol: {offers}\r\n");
        let request = format!("GET /ws HTTP/1.1\r\n{UPGRADE}{offers}\r\n");
        let answer = node.ask(Listener::Edge(0), &request);
        assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
        let answered = answer.split("\r\nSec-WebSocket-Protocol: ").nth(1);
        answered.and_then(|rest| rest.split("\r\n").next()).map(str::to_owned)
    };
    for (offers, expected) in [
        ("mqtt, chat", Some("chat")),
        ("chat.v2, chat", Some("chat.v2")),
        ("mqtt,\r\nSec-WebSocket-Protocol: chat", Some("chat")),
        ("Chat", None),
        ("mqtt", None),
    ] {
        let route = accepts(&["chat", "chat.v2"], shard_value::route());
        assert_eq!(answered(route, offers).as_deref(), expected, "{offers}");
        assert_eq!(answered(shard_value::route(), offers), None, "{offers}");
    }
    let bearer = format!("bearer.{token}");
    for (accepted, offers, expected) in [
        (&["chat"][..], format!("bearer, {bearer}, chat"), "chat"),
        (&["chat"], format!("mqtt, bearer, {bearer}"), "bearer"),
        (&["chat"], format!("mqtt, {bearer}"), &bearer[..]),
        (&[], format!("{bearer}, mqtt"), "mqtt"),
        (&[], bearer.clone(), &bearer),
    ] {
        let route = accepts(accepted, token_route());
        assert_eq!(answered(route, &offers).as_deref(), Some(expected), "{offers}");
    }
}

/// A client's compressed message (RFC 7692, section 7.2.1) in one frame, with a mask of zeros.
fn deflated(compressor: &mut Deflate, text: &str) -> Vec<u8> {
    let (before, mut out) = (compressor.total_out(), vec![0; 1000]);
    compressor.compress(text.as_bytes(), &mut out, DeflateFlush::SyncFlush).expect("there is room");
    out.truncate((compressor.total_out() - before) as usize - 4);
    [&[0xC1, 0x80 | out.len() as u8, 0, 0, 0, 0], &out[..]].concat()
}

#[test]
fn compressed_messages_with_context_takeover_are_decoded() {
    let texts = ["the same words again and again", "the same words again, and others"];
    for agent in ["", "User-Agent: Mozilla/5.0 (X11)\r\n"] {
        let mut node = Node::new(RouteSettings { compression: true, ..reporting_route() });
        consume(&mut node);
        let client = node.accept(Listener::Edge(0));
        let offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
        let answer = node.say(client, format!("GET /ws HTTP/1.1\r\n{UPGRADE}{agent}{offer}\r\n"));
        assert_holds(&answer, "permessage-deflate; server_no_context_takeover");
        let stands_alone = answer.contains("; client_no_context_takeover");
        assert_eq!(stands_alone, !agent.is_empty(), "{answer}");
        let mut compressor = Deflate::new(6, false, 15);
        for text in texts.iter().cycle().take(6) {
            if stands_alone {
                compressor.reset();
            }
            let said = node.say(client, deflated(&mut compressor, text));
            assert_holds(&said, &format!(r#"{{"frame":{{"type":"text","data":"{text}""#));
        }
    }
}
