use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};

use super::*;
use crate::address::ShardId;
use crate::message::{FromBridge, FromNode, ToShard};
use crate::protocol::admission::Admission;
use crate::protocol::service::HttpService;
use crate::protocol::token::{RuleKeys, TokenAlgorithm, TokenRule, TokenSources, VerifyingKey};
use crate::shard::connection::{Listener, Priority};
use crate::shard::node_state::NodeState;
use crate::shard::settings::{EdgeSettings, RouteSettings, Settings};
use crate::shard::{Action, Now, Shard, ShardRequest, fixture};

mod renewal;

const UPGRADE: &str = "Host: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

const TIMEOUT_MS: u64 = 3000;

fn service() -> HttpService {
    HttpService::new("https://example.org/", TIMEOUT_MS).expect("a URL")
}

fn source() -> Arc<KeySource> {
    Arc::new(KeySource { service: service(), algorithm: None, refresh_s: 300 })
}

fn hook() -> Arc<AdmissionHook> {
    Arc::new(AdmissionHook { service: service(), secret: None })
}

fn rule() -> Arc<TokenRule> {
    let sources = TokenSources { header: true, protocol: true, query: true };
    Arc::new(TokenRule::new(RuleKeys::Fetched(source()), sources))
}

/// A route of each kind: with a token, with a hook, with both.
fn settings() -> Settings {
    let route = |path: &str, token, admit| {
        let subscribe = vec!["news".into()];
        let topic = Some("topic".into());
        let route = RouteSettings {
            path: path.into(),
            token,
            admit,
            subscribe,
            topic,
            ..RouteSettings::default()
        };
        Arc::new(RouteSettings {
            message_bytes: 1000,
            outbound_bytes: 100_000,
            tells_open: true,
            tells_message: true,
            ..route
        })
    };
    let mut settings = fixture::settings();
    let routes = vec![
        route("/token", Some(rule()), None),
        route("/hook", None, Some(hook())),
        route("/both", Some(rule()), Some(hook())),
        Arc::new(RouteSettings {
            echo: true,
            topic: None,
            ..RouteSettings::clone(&route("/echo", None, Some(hook())))
        }),
    ];
    settings.edges = vec![EdgeSettings { port: 6790, routes, proxy: None }];
    settings
}

fn secret(id: &str) -> String {
    id.repeat(32)
}

/// A token that is signed with the key of this name.
fn token(id: &str) -> String {
    let claims = json!({"exp": 1_800_000_000, "sub": "7", "context": {"a": 1}, "channels": ["x"]});
    signed(id, &claims)
}

fn signed(id: &str, claims: &Value) -> String {
    let header = Header { kid: Some(id.to_owned()), ..Header::default() };
    let key = EncodingKey::from_secret(secret(id).as_bytes());
    encode(&header, claims, &key).expect("claims are JSON")
}

fn keys(ids: &[&str]) -> Option<Arc<KeySet>> {
    let key = |id: &&str| {
        VerifyingKey::configured(Some(id), TokenAlgorithm::Hs256, &secret(id)).expect("a secret")
    };
    KeySet::new(ids.iter().map(key).collect()).map(Arc::new)
}

struct World {
    shard: Shard,
    now: Now,
}

impl World {
    fn new() -> Self {
        let settings = settings();
        let now = Now { ms: 1000, us: 1_000_000, unix_ms: 1_700_000_000_000 };
        let state = Arc::new(NodeState::new(&settings, Arc::default()));
        Self { shard: Shard::new(ShardId(0), &settings, state, now), now }
    }

    fn accept(&mut self) -> ConnectionKey {
        let key = self.shard.handle_accepted(self.now, Listener::Edge(0), fixture::REMOTE);
        key.expect("the node is up")
    }

    fn send(&mut self, key: ConnectionKey, bytes: &str) {
        self.shard.handle_bytes(self.now, key, &mut bytes.as_bytes().to_vec());
    }

    fn open(&mut self, target: &str, headers: &str) -> ConnectionKey {
        let key = self.accept();
        self.send(key, &format!("GET {target} HTTP/1.1\r\n{UPGRADE}{headers}\r\n"));
        key
    }

    fn open_with_token(&mut self, path: &str, id: &str) -> ConnectionKey {
        self.open(path, &format!("Authorization: Bearer {}\r\n", token(id)))
    }

    fn pass_ms(&mut self, ms: u64) {
        self.now.ms += ms;
        self.now.us += ms * 1000;
        self.now.unix_ms += ms;
        self.shard.handle_turn(self.now);
    }

    fn hear(&mut self, message: FromBridge) {
        self.shard.handle_message(self.now, ToShard::Node(FromNode::Bridge(Box::new(message))));
        self.pass_ms(0);
    }

    fn report(&mut self, keys: Option<Arc<KeySet>>, quiet_ms: u64, fetched: Option<bool>) {
        let source = source();
        self.hear(FromBridge::Keys(KeysReport { source, keys, quiet_ms, fetched }));
    }

    /// Takes the one message for the bridge.
    fn asked(&mut self) -> ToBridge {
        let message = self.poll().expect("a message");
        assert!(self.poll().is_none());
        message
    }

    /// Takes the next message for the bridge.
    fn poll(&mut self) -> Option<ToBridge> {
        match self.shard.poll_request()? {
            ShardRequest::Bridge(message) => Some(message),
            ShardRequest::Verify(_) | ShardRequest::Reload(_) | ShardRequest::Log(_) => {
                panic!("not for the bridge")
            }
        }
    }

    fn question(&mut self) -> AdmissionRequest {
        match self.asked() {
            ToBridge::Admit(request) => request,
            other => panic!("{other:?}"),
        }
    }

    fn decide(&mut self, request: &AdmissionRequest, verdict: AdmissionVerdict) {
        let (connection, ticket) = (request.connection, request.ticket);
        self.hear(FromBridge::Admission { connection, ticket, verdict });
    }

    /// Writes all output; returns it. Every 503 in it has to say when to try again.
    #[track_caller]
    fn written(&mut self) -> String {
        let mut all = Vec::new();
        for priority in [Priority::Urgent, Priority::Bulk] {
            while let Some((key, batch)) = self.shard.poll_write(priority) {
                let before = all.len();
                batch.iter().for_each(|chunk| all.extend_from_slice(chunk.bytes()));
                self.shard.handle_written(self.now, key, all.len() - before, true);
            }
        }
        let written = String::from_utf8_lossy(&all).into_owned();
        for answer in written.split("HTTP/1.1 ").filter(|answer| answer.starts_with("503")) {
            let seconds = answer.lines().find_map(|line| line.strip_prefix("Retry-After: "));
            let seconds: Option<u8> = seconds.and_then(|text| text.parse().ok());
            assert!(seconds.is_some_and(|seconds| (1..=10).contains(&seconds)), "{answer}");
        }
        written
    }

    #[track_caller]
    fn status(&mut self) -> u16 {
        let written = self.written();
        let status = written.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        status.and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{written:?}"))
    }

    fn waiting(&self) -> u64 {
        self.shard.inspect().report().waiting_handshakes
    }
}

#[test]
fn a_handshake_waits_for_its_key_and_a_crowd_asks_once() {
    let mut world = World::new();
    for _ in 0..3 {
        world.open_with_token("/token", "a");
    }
    assert!(
        matches!(world.asked(), ToBridge::FetchKeys { source: asked, known: None } if asked == source())
    );
    assert_eq!((world.written(), world.waiting()), (String::new(), 3));
    world.report(keys(&["a"]), 0, Some(true));
    assert_eq!(world.written().matches("HTTP/1.1 101").count(), 3);
    assert_eq!(world.waiting(), 0);
    world.open_with_token("/token", "a");
    assert_eq!(world.status(), 101);
    assert!(world.poll().is_none());
}

#[test]
fn a_key_that_stays_unknown_is_refused_and_asked_for_again_only_after_the_pause() {
    let mut world = World::new();
    world.report(keys(&["a"]), 0, Some(true));
    world.open_with_token("/token", "b");
    world.asked();
    world.report(keys(&["a"]), 60_000, Some(false));
    let refused = world.written();
    assert!(refused.starts_with("HTTP/1.1 401") && refused.contains("unknown key"), "{refused}");
    assert!(refused.contains("WWW-Authenticate: Bearer"), "{refused}");
    world.open_with_token("/token", "b");
    assert_eq!(world.status(), 401);
    assert!(world.poll().is_none());
    world.open_with_token("/token", "a");
    assert_eq!(world.status(), 101);
    world.pass_ms(60_000);
    world.written();
    world.open_with_token("/token", "b");
    world.asked();
    world.report(keys(&["b"]), 60_000, Some(true));
    assert_eq!(world.status(), 101);
    world.open_with_token("/token", "a");
    assert_eq!(world.status(), 401, "the issuer has withdrawn the key");
}

#[test]
fn keys_that_were_on_their_way_let_a_handshake_in_or_let_it_ask_for_another_one() {
    for (id, is_among_them) in [("a", true), ("b", false)] {
        let mut world = World::new();
        world.open_with_token("/token", id);
        assert!(matches!(world.asked(), ToBridge::FetchKeys { known: None, .. }));
        let fetched = keys(&["a"]);
        world.report(fetched.clone(), 0, None);
        if is_among_them {
            assert_eq!(world.status(), 101);
            continue;
        }
        let ToBridge::FetchKeys { known, .. } = world.asked() else {
            panic!("no question for keys")
        };
        assert!(Arc::ptr_eq(&known.expect("keys"), &fetched.expect("keys")));
        assert_eq!((world.written(), world.waiting()), (String::new(), 1));
        world.report(keys(&["b"]), 60_000, Some(true));
        assert_eq!(world.status(), 101);
    }
}

#[test]
fn without_any_keys_a_handshake_is_told_to_come_back() {
    let mut world = World::new();
    world.open_with_token("/token", "a");
    world.asked();
    world.report(None, 1000, Some(false));
    assert_eq!(world.status(), 503);
    world.open_with_token("/token", "a");
    assert_eq!(world.status(), 503);
    assert!(world.poll().is_none());
    let counters = world.shard.inspect().report().counters;
    assert_eq!((counters.key_fetches, counters.key_fetches_failed), (1, 1));
    // A handshake whose refusal needs no key does not wait for one.
    for (headers, expected) in [("", 401), ("Authorization: Bearer a.b.c\r\n", 401)] {
        world.pass_ms(1000);
        world.open("/token", headers);
        assert_eq!(world.status(), expected);
        assert!(world.poll().is_none());
    }
}

#[test]
fn keys_that_do_not_come_are_not_waited_for_forever() {
    let mut world = World::new();
    world.open_with_token("/token", "a");
    world.pass_ms(KEYS_WAIT_MS - 1);
    assert_eq!(world.written(), "");
    world.pass_ms(50);
    assert_eq!((world.status(), world.waiting()), (503, 0));
}

#[test]
fn a_hook_is_told_of_the_request_without_the_credentials_that_were_checked() {
    let mut world = World::new();
    world.report(keys(&["a"]), 0, Some(true));
    let headers = format!(
        "Authorization: Bearer {}\r\nCookie: s=1\r\nSec-WebSocket-Protocol: bearer\r\nX-A: 1\r\n",
        token("a")
    );
    world.open("/both?channels=news&token=t&q=1", &headers);
    let question = world.question();
    let body: serde_json::Value = serde_json::from_slice(&question.body).expect("JSON");
    assert_eq!(body["path"], "/both");
    assert_eq!(body["query"], json!({"channels": "news", "q": "1"}));
    assert_eq!(body["headers"]["cookie"], "s=1");
    assert_eq!(body["headers"]["x-a"], "1");
    assert_eq!(body["headers"]["authorization"], json!(null));
    assert_eq!(body["headers"]["sec-websocket-protocol"], json!(null));
    assert_eq!(body["remote"], fixture::REMOTE.to_string());
    assert_eq!(body["claims"]["sub"], "7");
    world.open("/hook?token=t", "Authorization: Basic x\r\n");
    let question = world.question();
    let body: serde_json::Value = serde_json::from_slice(&question.body).expect("JSON");
    assert_eq!(body["headers"]["authorization"], "Basic x");
    assert_eq!((&body["query"], body.get("claims")), (&json!({"token": "t"}), None));
}

#[test]
fn a_hook_adds_to_what_the_token_grants() {
    let mut world = World::new();
    world.report(keys(&["a"]), 0, Some(true));
    world.open_with_token("/both?channels=news", "a");
    let question = world.question();
    assert_eq!((world.written(), world.waiting()), (String::new(), 1));
    let admission = Admission {
        channels: vec!["y".into(), "x".into()],
        context: vec![("b".into(), "2".into()), ("user_id".into(), "8".into())],
        expires_ms: Some(5000),
    };
    world.decide(&question, AdmissionVerdict::Granted(Box::new(admission)));
    assert_eq!(world.status(), 101);
    let report = world.shard.inspect().report();
    assert_eq!((report.channels, report.counters.admissions), (3, 1));
    assert_eq!(report.admissions.count(), 1);
    world.pass_ms(4900);
    assert_eq!(world.written(), "");
    world.pass_ms(200);
    assert!(world.written().contains("token expired"));
}

#[test]
fn a_device_is_kept_out_with_the_status_that_the_decision_asks_for() {
    let mut world = World::new();
    let long = vec![("a".into(), format!("\"{}\"", "x".repeat(70_000)).into())];
    let too_large = Admission { context: long, ..Admission::default() };
    let many = (0..17).map(|number| number.to_string()).collect();
    let too_many = Admission { channels: many, ..Admission::default() };
    for (verdict, expected) in [
        (AdmissionVerdict::Refused(401), 401),
        (AdmissionVerdict::Refused(403), 403),
        (AdmissionVerdict::Failed, 503),
        (AdmissionVerdict::Full, 503),
        (AdmissionVerdict::Granted(Box::new(too_large)), 503),
        (AdmissionVerdict::Granted(Box::new(too_many)), 403),
    ] {
        world.open("/hook", "");
        let question = world.question();
        world.decide(&question, verdict);
        assert_eq!(world.status(), expected);
    }
    let counters = world.shard.inspect().report().counters;
    assert_eq!((counters.admissions, counters.admissions_refused), (6, 2));
    assert_eq!((counters.admissions_failed, counters.limits.waiting_handshakes), (1, 1));
    assert_eq!((counters.limits.context, counters.limits.channels_per_client), (1, 1));
    world.open("/hook?channels=private", "");
    assert_eq!(world.status(), 403);
    assert!(world.poll().is_none(), "channels are checked first");
}

#[test]
fn a_late_decision_is_not_taken_for_that_of_the_next_request() {
    let mut world = World::new();
    let key = world.open("/hook", "");
    let first = world.question();
    world.pass_ms(TIMEOUT_MS - 1);
    assert_eq!(world.written(), "");
    world.pass_ms(50);
    assert_eq!(world.status(), 503);
    assert_eq!(first.device.strong_count(), 0);
    world.send(key, &format!("GET /hook HTTP/1.1\r\n{UPGRADE}\r\n"));
    world.pass_ms(0);
    let second = world.question();
    assert_eq!(second.connection, key);
    world.decide(&first, AdmissionVerdict::Granted(Box::default()));
    assert_eq!((world.written(), world.waiting()), (String::new(), 1));
    world.decide(&second, AdmissionVerdict::Refused(403));
    assert_eq!(world.status(), 403);
    world.decide(&second, AdmissionVerdict::Granted(Box::default()));
    assert_eq!(world.written(), "");
}

#[test]
fn a_device_that_disconnects_gives_its_place_back() {
    let mut world = World::new();
    for is_broken in [false, true] {
        let key = world.open("/hook", "");
        let question = world.question();
        assert_eq!((question.device.strong_count(), world.waiting()), (1, 1));
        world.shard.handle_end(world.now, key, is_broken);
        let actions: Vec<_> = std::iter::from_fn(|| world.shard.poll_action()).collect();
        assert_eq!(actions, [Action::Close(key)]);
        world.shard.handle_closed(key);
        assert_eq!((question.device.strong_count(), world.waiting()), (0, 0));
        world.decide(&question, AdmissionVerdict::Granted(Box::default()));
        assert_eq!(world.written(), "");
    }
}

#[test]
fn what_a_device_sends_while_it_waits_is_read_once_it_is_in() {
    let mut world = World::new();
    let key = world.open("/echo", "");
    let question = world.question();
    // A text message with a mask of zeros.
    let mut hello = vec![0x81, 0x85, 0, 0, 0, 0];
    hello.extend_from_slice(b"hello");
    world.shard.handle_bytes(world.now, key, &mut hello);
    assert_eq!(world.written(), "");
    world.decide(&question, AdmissionVerdict::Granted(Box::default()));
    world.pass_ms(0);
    let written = world.written();
    assert!(written.starts_with("HTTP/1.1 101") && written.ends_with("hello"), "{written:?}");
}

#[test]
fn more_handshakes_than_fit_are_refused_and_counted_and_others_go_on() {
    let mut world = World::new();
    for _ in 0..WAITING_MAX {
        world.open("/hook", "");
        // A turn reads a bounded number of handshakes.
        world.pass_ms(0);
    }
    assert_eq!((world.written(), world.waiting()), (String::new(), WAITING_MAX as u64));
    world.open("/hook", "");
    world.pass_ms(0);
    assert_eq!(world.status(), 503);
    assert_eq!(world.shard.inspect().report().counters.limits.waiting_handshakes, 1);
    let first = world.poll().expect("a question");
    let ToBridge::Admit(first) = first else { panic!("{first:?}") };
    world.decide(&first, AdmissionVerdict::Granted(Box::default()));
    assert_eq!(world.status(), 101);
    world.open("/hook", "");
    assert_eq!(world.written(), "");
}

#[test]
fn handshakes_that_wait_are_refused_when_the_node_shuts_down() {
    let mut world = World::new();
    world.open("/hook", "");
    world.open_with_token("/token", "a");
    world.shard.handle_message(world.now, ToShard::Node(FromNode::Drain { over_ms: 10 }));
    assert_eq!(world.written().matches("HTTP/1.1 503").count(), 2);
    assert_eq!(world.waiting(), 0);
    world.pass_ms(20);
    let actions: Vec<_> = std::iter::from_fn(|| world.shard.poll_action()).collect();
    assert_eq!(actions.iter().filter(|action| matches!(action, Action::Shutdown(_))).count(), 2);
}
