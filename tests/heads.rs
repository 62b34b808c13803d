//! Request heads of the API. A request that is denied is answered before its body arrives. Each request is checked,
//! even if its head equals the last one. A shard is a value here: no socket, no clock.

#![forbid(unsafe_code)]

#[path = "support/shard.rs"]
mod shard_value;

use gridcast::message::{ConnectionKey, ToShard};
use gridcast::protocol::credentials::{Roles, Scheme, Secret, SecretHash, User};
use gridcast::shard::settings::Settings;
use gridcast::shard::{Action, Listener, Now, Priority, Shard, ShardRequest};

/// The hash of `open-sesame`, at the lowest cost.
const HASH: &str =
    "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$C9dSOluYdkmtLT0p/yKRF52y2gY/RLdIWShtB/Aq6K8";

const NOW: Now = Now { ms: 0, us: 0, unix_ms: 1_700_000_000_000 };

const BODY: &str = r#"{"c":"room","d":"x"}"#;

/// Many more bytes than a paused connection keeps.
const LONG: usize = 200_000;

fn user(token: &str, roles: Roles, from: &[&str]) -> User {
    let secret = match SecretHash::parse(token) {
        Some(hash) => Secret::Hashed(hash),
        None => Secret::Plain(token.into()),
    };
    let from = from.iter().map(|range| range.parse().expect("a range")).collect();
    let name = token.into();
    User { name, scheme: Scheme::Bearer, secret, roles, from, requests_per_s: 0 }
}

/// Users with plain secrets.
fn settings() -> Settings {
    with_users(vec![
        user("writes", Roles::ALL, &[]),
        user("reads", Roles { read: true, write: false, admin: false }, &[]),
        user("elsewhere", Roles::ALL, &["192.0.2.0/24"]),
    ])
}

/// One user with a hashed secret.
fn settings_with_hash() -> Settings {
    with_users(vec![user(HASH, Roles::ALL, &[])])
}

fn with_users(users: Vec<User>) -> Settings {
    let mut settings = shard_value::settings();
    settings.api.users = users.into();
    settings
}

struct Peer {
    shard: Shard,
    key: ConnectionKey,
}

impl Peer {
    fn new(settings: &Settings) -> Self {
        let mut shard = shard_value::shard(settings, NOW);
        let remote = ([10, 0, 0, 1], 5000).into();
        let key = shard.handle_accepted(NOW, Listener::Api, remote).expect("the node is up");
        Self { shard, key }
    }

    fn send(&mut self, text: &str) {
        self.shard.handle_bytes(NOW, self.key, &mut text.as_bytes().to_vec());
        self.shard.handle_turn(NOW);
    }

    /// Returns the output for a connection.
    fn received(&mut self) -> String {
        let mut all = Vec::new();
        while let Some((key, batch)) = self.shard.poll_write(Priority::Urgent) {
            let before = all.len();
            batch.iter().for_each(|chunk| all.extend_from_slice(chunk.bytes()));
            self.shard.handle_written(NOW, key, all.len() - before, true);
        }
        String::from_utf8_lossy(&all).into_owned()
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.shard.poll_action()).collect()
    }

    /// Runs the verification that the shard asks for.
    fn verify(&mut self) {
        let result = self.shard.poll_request();
        let Some(ShardRequest::Verify(verification)) = result else { panic!("one is asked for") };
        let result = verification.run();
        self.shard.handle_message(NOW, ToShard::Node(result));
        self.shard.handle_turn(NOW);
    }
}

/// A head that announces a body of this number of bytes.
fn head(request_line: &str, headers: &str, length: usize) -> String {
    format!(
        "{request_line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{headers}\r\n"
    )
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

const PUBLISH: &str = "POST /v1/mesh/publish";

#[test]
fn a_denied_request_is_answered_at_its_head() {
    let foreign = bearer("writes") + "Origin: https://evil.example\r\n";
    for (request_line, headers, status) in [
        (PUBLISH, String::new(), 401),
        (PUBLISH, bearer("wrong"), 401),
        (PUBLISH, bearer("reads"), 403),
        (PUBLISH, bearer("elsewhere"), 403),
        (PUBLISH, foreign, 403),
        ("PUT /v1/mesh/publish", bearer("writes"), 405),
        ("GET /v1/conn/call", bearer("writes"), 405),
        ("POST /v1/unknown", bearer("writes"), 404),
        ("POST /v1/unknown", String::new(), 401),
        ("GET /version", bearer("reads"), 200),
        ("GET /metrics", bearer("reads"), 200),
        ("GET /ws/v1", bearer("reads"), 400),
        ("GET /", String::new(), 200),
        ("POST /healthz", String::new(), 405),
    ] {
        for framing in ["Content-Length: 200000", "Transfer-Encoding: chunked"] {
            let mut peer = Peer::new(&settings());
            let head = head(request_line, &headers, LONG);
            peer.send(&head.replace("Content-Length: 200000", framing));
            let answer = peer.received();
            let expected = format!("HTTP/1.1 {status} ");
            assert!(answer.starts_with(&expected), "{request_line} {headers}: {answer}");
            assert!(answer.contains("Connection: close\r\n"), "{request_line}: {answer}");
            assert_eq!(peer.actions(), [Action::Shutdown(peer.key)], "{request_line}");
            // The peer may continue to send before it reads. Its bytes are dropped, and there is no reset.
            (0..10).for_each(|_| peer.send(&"x".repeat(20_000)));
            assert_eq!((peer.received(), peer.actions()), (String::new(), vec![]));
        }
    }
}

#[test]
fn without_users_a_foreign_page_is_refused_at_its_head() {
    let mut peer = Peer::new(&shard_value::settings());
    peer.send(&head(PUBLISH, "Origin: https://evil.example\r\n", LONG));
    assert!(peer.received().starts_with("HTTP/1.1 403 "));
    assert_eq!(peer.actions(), [Action::Shutdown(peer.key)]);
}

#[test]
fn a_granted_request_is_read_completely_and_stays_connected() {
    let mut peer = Peer::new(&settings());
    for token in ["writes", "writes"] {
        peer.send(&head(PUBLISH, &bearer(token), BODY.len()));
        assert_eq!(peer.received(), "");
        peer.send(&BODY[..5]);
        assert_eq!(peer.received(), "");
        peer.send(&BODY[5..]);
        assert!(peer.received().ends_with(r#"{"E":null,"r":{"s":0,"f":0}}"#));
    }
    // A complete request is answered in any case, and the connection stays open.
    peer.send(&(head(PUBLISH, "", BODY.len()) + BODY));
    assert!(peer.received().starts_with("HTTP/1.1 401 "));
    peer.send(&(head(PUBLISH, &bearer("writes"), BODY.len()) + BODY));
    assert!(peer.received().starts_with("HTTP/1.1 200 "));
    assert_eq!(peer.actions(), []);
}

#[test]
fn a_pending_answer_is_written_before_the_one_to_a_refused_head() {
    let mut peer = Peer::new(&settings());
    let first = head(PUBLISH, &bearer("writes"), BODY.len()) + BODY;
    peer.send(&(first.repeat(2) + &head(PUBLISH, &bearer("wrong"), LONG)));
    let answers = peer.received();
    let at = |text: &str| answers.find(text).unwrap_or_else(|| panic!("no {text} in {answers}"));
    assert!(at("HTTP/1.1 200") < at("HTTP/1.1 401"));
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 2);
}

#[test]
fn a_denied_peer_that_waits_for_100_gets_the_final_status() {
    let expect = "Expect: 100-continue\r\n";
    let mut peer = Peer::new(&settings());
    peer.send(&head(PUBLISH, &(bearer("wrong") + expect), LONG));
    let answer = peer.received();
    assert!(answer.starts_with("HTTP/1.1 401 ") && !answer.contains("100 Continue"), "{answer}");
    let mut peer = Peer::new(&settings());
    peer.send(&head(PUBLISH, &(bearer("writes") + expect), BODY.len()));
    assert_eq!(peer.received(), "HTTP/1.1 100 Continue\r\n\r\n");
    peer.send(BODY);
    assert!(peer.received().starts_with("HTTP/1.1 200 "));
}

#[test]
fn during_verification_only_a_little_of_a_body_is_kept() {
    for (token, status) in [("open-sesame", 200), ("open-sesam", 401)] {
        let mut peer = Peer::new(&settings_with_hash());
        let padding = " ".repeat(LONG);
        peer.send(&head(PUBLISH, &bearer(token), LONG + BODY.len()));
        peer.send(&padding[..20_000]);
        assert_eq!(peer.actions(), [Action::Pause(peer.key)], "its socket is not read from");
        assert_eq!(peer.received(), "");
        peer.verify();
        if status == 200 {
            assert_eq!(peer.actions(), [Action::Resume(peer.key)]);
            peer.send(&padding[20_000..]);
            peer.send(BODY);
        }
        let answer = peer.received();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert_eq!(answer.contains("Connection: close"), status == 401);
    }
}

#[test]
fn a_peer_that_waits_for_100_gets_it_after_the_verification() {
    let headers = bearer("open-sesame") + "Expect: 100-continue\r\n";
    let mut peer = Peer::new(&settings_with_hash());
    peer.send(&head(PUBLISH, &headers, BODY.len()));
    assert_eq!(peer.received(), "");
    peer.verify();
    assert_eq!(peer.received(), "HTTP/1.1 100 Continue\r\n\r\n");
    peer.send(BODY);
    assert!(peer.received().starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_head_whose_verification_takes_too_long_is_answered_503() {
    let mut peer = Peer::new(&settings_with_hash());
    peer.send(&head(PUBLISH, &bearer("open-sesame"), LONG));
    let late = Now { ms: 1600, us: 1_600_000, ..NOW };
    peer.shard.handle_turn(late);
    let answer = peer.received();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("Retry-After: 1\r\n"));
    assert!(answer.contains("Connection: close\r\n"), "{answer}");
    assert_eq!(peer.actions(), [Action::Shutdown(peer.key)]);
}

fn publish(host: &str, authorization: &str) -> String {
    let length = BODY.len();
    format!(
        "POST /v1/mesh/publish HTTP/1.1\r\nHost: {host}\r\n{authorization}\
         Content-Length: {length}\r\n\r\n{BODY}"
    )
}

#[test]
fn each_request_of_a_connection_is_checked_by_its_own_credentials() {
    let mut peer = Peer::new(&with_users(vec![
        user("writes", Roles::ALL, &[]),
        user("reader", Roles { read: true, write: false, admin: false }, &[]),
        user("remote", Roles::ALL, &["192.0.2.0/24"]),
    ]));
    for (token, status) in [
        ("writes", 200),
        ("writes", 200),
        ("writeS", 401),
        ("writes", 200),
        ("reader", 403),
        ("remote", 403),
        ("writes", 200),
        ("\r\nX: x", 401),
        ("writes", 200),
    ] {
        peer.send(&publish("a", &format!("Authorization: Bearer {token}\r\n")));
        let answer = peer.received();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{token}: {answer}");
    }
    peer.send(&publish("a", ""));
    assert!(peer.received().starts_with("HTTP/1.1 401 "), "nobody's");
}

#[test]
fn an_expired_verification_is_repeated_even_if_the_head_is_the_same() {
    let mut peer = Peer::new(&settings_with_hash());
    let request = publish("a", "Authorization: Bearer open-sesame\r\n");
    peer.send(&request);
    peer.verify();
    assert!(peer.received().starts_with("HTTP/1.1 200 "));
    peer.send(&request);
    assert!(peer.received().starts_with("HTTP/1.1 200 "), "known by now");
    assert!(peer.shard.poll_request().is_none());
    // Longer than verified credentials are remembered.
    let later = Now { ms: NOW.ms + 400_000, ..NOW };
    peer.shard.handle_bytes(later, peer.key, &mut request.into_bytes());
    assert!(peer.received().is_empty());
    assert!(peer.shard.poll_request().is_some());
}

#[test]
fn without_users_each_request_of_a_connection_is_checked_by_its_own_host_and_origin() {
    let mut peer = Peer::new(&shard_value::settings());
    for (host, origin, status) in [
        ("127.0.0.1", "", 200),
        ("127.0.0.1", "", 200),
        ("evil.test", "", 403),
        ("127.0.0.1", "", 200),
        ("127.0.0.x", "", 403),
        ("127.0.0.1", "Origin: http://127.0.0.1\r\n", 200),
        ("127.0.0.1", "Origin: http://evil.test\r\n", 403),
        ("127.0.0.1", "Origin: http://127.0.0.1\r\n", 200),
    ] {
        peer.send(&publish(host, origin));
        let answer = peer.received();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{host} {origin}: {answer}");
    }
}
