//! The log at level `debug`: enough lines to follow a connection from accept to close, and no secrets. Shards are
//! values here: no socket, no clock.

#![forbid(unsafe_code)]

#[path = "support/shard.rs"]
mod shard_value;

use std::io;
use std::sync::{Arc, Mutex};

use gridcast::message::ConnectionKey;
use gridcast::protocol::credentials::{Roles, User};
use gridcast::protocol::token::{TokenAlgorithm, TokenRule, TokenSources};
use gridcast::shard::settings::{EdgeSettings, RouteSettings, Settings};
use gridcast::shard::{Action, Listener, Now, Priority, Shard};
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::json;
use shard_value::{call, upgraded};
use tracing::Level;

const NOW: Now = Now { ms: 0, us: 0, unix_ms: 1_700_000_000_000 };

const KEY: &str = "0123456789abcdef0123456789abcdef";

const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// Returns the lines that are logged while `run` runs, down to `level`.
fn logged(level: Level, run: impl FnOnce()) -> Vec<String> {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panicked").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .without_time()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, run);
    let text = String::from_utf8(lines.0.lock().expect("nobody panicked").clone());
    text.expect("lines are text").lines().map(str::to_owned).collect()
}

fn token(exp: u64, key: &str) -> String {
    let key = EncodingKey::from_secret(key.as_bytes());
    encode(&Header::default(), &json!({ "exp": exp }), &key).expect("claims are JSON")
}

fn right_token() -> String {
    token(NOW.unix_ms / 1000 + 100, KEY)
}

/// A shard with the route `/ws`, which allows one origin, and the route `/member`, which needs a token.
fn settings() -> Settings {
    let open = RouteSettings {
        subscribe: vec!["news".into()],
        origins: Some(vec!["https://app.example".into()]),
        ..shard_value::route()
    };
    let places = TokenSources { header: true, protocol: true, query: true };
    let rule =
        TokenRule::with_key(TokenAlgorithm::Hs256, KEY, places).expect("the key is long enough");
    let token = Some(Arc::new(rule));
    let member = RouteSettings {
        path: "/member".into(),
        token,
        topic: Some("members".into()),
        tells_open: true,
        ..shard_value::route()
    };
    let edge =
        EdgeSettings { proxy: None, port: 6790, routes: vec![Arc::new(open), Arc::new(member)] };
    Settings { edges: vec![edge], ..shard_value::settings() }
}

/// A shard whose one user may only read.
fn settings_with_user() -> Settings {
    let roles = Roles { read: true, write: false, admin: false };
    let user = User { roles, ..shard_value::user("app", "s3cret-token") };
    let mut settings = settings();
    settings.api.users = vec![user].into();
    settings
}

fn shard(settings: &Settings) -> Shard {
    shard_value::shard(settings, NOW)
}

fn accept(shard: &mut Shard, listener: Listener) -> ConnectionKey {
    let remote = ([192, 0, 2, 7], 5000).into();
    shard.handle_accepted(NOW, listener, remote).expect("the node is up")
}

fn send(shard: &mut Shard, key: ConnectionKey, text: &str) {
    shard.handle_bytes(NOW, key, &mut text.as_bytes().to_vec());
}

/// Writes all output, and closes the sockets that are to be closed; returns the output.
fn settle(shard: &mut Shard) -> String {
    settle_at(shard, NOW)
}

fn settle_at(shard: &mut Shard, now: Now) -> String {
    let mut written = Vec::new();
    shard.handle_turn(now);
    while let Some((key, batch)) =
        shard.poll_write(Priority::Urgent).or_else(|| shard.poll_write(Priority::Bulk))
    {
        let before = written.len();
        batch.iter().for_each(|chunk| written.extend_from_slice(chunk.bytes()));
        shard.handle_written(now, key, written.len() - before, true);
    }
    while let Some(action) = shard.poll_action() {
        match action {
            Action::Shutdown(key) => shard.handle_end(now, key, false),
            Action::Close(key) => shard.handle_closed(key),
            _ => {}
        }
    }
    String::from_utf8_lossy(&written).into_owned()
}

/// Runs the life of a client, from its handshake until a back end closes it.
fn life_of_a_client() {
    let mut shard = shard(&settings());
    let back_end = upgraded(&mut shard, NOW, Listener::Api, "/ws/v1");
    shard.handle_bytes(
        NOW,
        back_end,
        &mut call(r#"{"m":"queue.pop","p":{"t":["members"]},"i":1}"#),
    );
    settle(&mut shard);
    let client = accept(&mut shard, Listener::Edge(0));
    let target = format!("/member?channels=news,a%0Ab&token={}", right_token());
    let cookie = "Cookie: session=s3cret\r\n";
    send(&mut shard, client, &format!("GET {target} HTTP/1.1\r\nHost: a\r\n{UPGRADE}{cookie}\r\n"));
    let id = opened(&settle(&mut shard));
    for json in [
        format!(r#"{{"m":"conn.call","p":{{"c":"{id}","f":"subscribe","a":["room"]}},"i":1}}"#),
        r#"{"m":"mesh.publish","p":{"c":"room","d":"s3cret"},"i":1}"#.to_owned(),
        r#"{"m":"mesh.send","p":{"c":"1","d":"s3cret"},"i":1}"#.to_owned(),
        format!(r#"{{"m":"conn.call","p":{{"c":"{id}","f":"close","a":[4000,"bye"]}},"i":1}}"#),
    ] {
        shard.handle_bytes(NOW, back_end, &mut call(&json));
        settle(&mut shard);
    }
    shard.handle_end(NOW, back_end, true);
    settle(&mut shard);
}

/// Returns the id of the client whose open event is in some output.
fn opened(written: &str) -> String {
    let (_, rest) = written.split_once(r#""c":""#).expect("an event with a client's id");
    rest.split('"').next().unwrap_or_default().to_owned()
}

/// Asserts that lines with these parts are there in this order.
#[track_caller]
fn assert_in_order(lines: &[String], expected: &[&[&str]]) {
    let mut rest = lines.iter();
    for parts in expected {
        let has_all = |line: &&String| parts.iter().all(|part| line.contains(part));
        assert!(rest.any(|line| has_all(&line)), "{parts:?} is not in its place in {lines:#?}");
    }
}

#[test]
fn a_client_can_be_followed_from_accept_to_close() {
    let lines = logged(Level::DEBUG, life_of_a_client);
    assert_in_order(
        &lines,
        &[
            &["accepted connection=0-1-0 remote=192.0.2.7:5000 listener=Edge(0)"],
            &["request connection=0-1-0 method=GET path=/member"],
            &["client opened connection=0-1-0 client=", " path=/member channels=news,a\\nb"],
            &["called by a back end connection=0-1-0", "function=subscribe room"],
            &["called by a back end connection=0-1-0", "function=close 4000 bye"],
            &["client closed connection=0-1-0", "code=4000 reason=bye by=Backend"],
            &["socket closed connection=0-1-0"],
        ],
    );
}

#[test]
fn a_back_end_can_be_followed_with_its_calls_and_their_failures() {
    let lines = logged(Level::DEBUG, life_of_a_client);
    assert_in_order(
        &lines,
        &[
            &["accepted connection=0-0-0", "listener=Api"],
            &["back end opened connection=0-0-0 user=\"\""],
            &["call connection=0-0-0", "call=conn.call", "subscribe room"],
            &["call connection=0-0-0", "call=mesh.publish room"],
            &["call connection=0-0-0", "call=mesh.send 1"],
            &["call failed connection=0-0-0 code=401 why=no such client"],
            &["back end closed connection=0-0-0", "by=Peer"],
            &["socket closed connection=0-0-0"],
        ],
    );
}

#[test]
fn no_line_shows_a_token_a_query_a_header_or_a_payload() {
    let lines = logged(Level::DEBUG, life_of_a_client).join("\n");
    for secret in ["s3cret", "session", &right_token(), "token=", "?"] {
        assert!(!lines.contains(secret), "{secret} in {lines}");
    }
}

#[test]
fn above_debug_nothing_is_logged_of_connections() {
    assert_eq!(logged(Level::INFO, life_of_a_client), [""; 0]);
}

#[test]
fn a_consumer_that_is_closed_because_it_does_not_answer_is_named_in_a_warning() {
    let silent = |calls: &[&str]| {
        logged(Level::WARN, || {
            let mut shard = shard(&settings());
            let back_end = upgraded(&mut shard, NOW, Listener::Api, "/ws/v1");
            for json in calls {
                shard.handle_bytes(NOW, back_end, &mut call(json));
            }
            settle(&mut shard);
            let limits = settings().limits;
            for ms in [limits.ping_ms, limits.idle_ms].map(|ms| NOW.ms + ms + 1) {
                shard.handle_turn(Now { ms, us: ms * 1000, ..NOW });
            }
        })
    };
    assert_eq!(silent(&[]), [""; 0], "a back end that consumes nothing");
    let lines = silent(&[r#"{"m":"queue.pop","p":{"t":["members"]},"i":1}"#]);
    let [line] = &lines[..] else { panic!("one line: {lines:#?}") };
    for part in
        ["a back end that consumes is closed", "remote=", "topics=members", "no answer to ping"]
    {
        assert!(line.contains(part), "{part} is not in {line}");
    }
}

/// Sends one request on a new connection; returns the response and the lines about it.
fn refusal(settings: &Settings, listener: Listener, request: &str) -> (String, Vec<String>) {
    let mut response = String::new();
    let lines = logged(Level::DEBUG, || {
        let mut shard = shard(settings);
        let key = accept(&mut shard, listener);
        send(&mut shard, key, request);
        response = settle(&mut shard);
    });
    (response, lines)
}

#[test]
fn every_refusal_at_the_edge_has_its_reason_in_the_response_and_in_the_log() {
    let now = NOW.unix_ms / 1000;
    let (old, early) = (token(now - 100, KEY), right_token());
    let foreign = token(now + 100, "another key of enough bytes to pass");
    let mut answers = Vec::new();
    for (target, headers, status, why) in [
        ("/nowhere", "", 404, "no such route"),
        ("/ws", "Origin: https://evil.example\r\n", 403, "not open to that origin"),
        ("/ws?channels=other", "", 403, "does not allow the channel"),
        ("/member", "", 401, "requires a token"),
        (&format!("/member?token={old}"), "", 401, "has expired"),
        (&format!("/member?token={foreign}"), "", 401, "signature is wrong"),
        (&format!("/member?token={early}x"), "", 401, "is wrong"),
        ("/member?token=s3cret", "", 401, "is not a JSON Web Token"),
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n{UPGRADE}{headers}\r\n");
        let (response, lines) = refusal(&settings(), Listener::Edge(0), &request);
        assert!(response.starts_with(&format!("HTTP/1.1 {status}")), "{response}");
        assert!(response.contains(why), "{why}: {response}");
        let line = format!("refused connection=0-0-0 remote=192.0.2.7:5000 status={status} why=");
        assert_in_order(&lines, &[&[&line, why]]);
        let shown = lines.join("\n");
        assert!(![&old, &foreign, "s3cret", "?"].iter().any(|s| shown.contains(*s)), "{shown}");
        answers.push(response);
    }
    let upgrade =
        format!("GET /ws HTTP/1.1\r\nHost: a\r\n{UPGRADE}Origin: https://evil.example\r\n\r\n");
    let (_, lines) = refusal(&settings(), Listener::Edge(0), &upgrade);
    assert_in_order(&lines, &[&["what=\"origin\" text=https://evil.example"], &["refused"]]);
}

#[test]
fn every_refusal_of_the_api_has_its_reason_in_the_log() {
    let credentials = "Authorization: Bearer s3cret-token\r\n";
    let alone = settings();
    let with_user = settings_with_user();
    for (settings, target, headers, parts) in [
        (&alone, "/metrics", "Host: evil.example\r\n", ["text=evil.example", "status=403"]),
        (&alone, "/v2", "Host: localhost\r\n", ["path=/v2", "status=404 why=no such path"]),
        (
            &alone,
            "/metrics",
            "Host: localhost\r\nOrigin: http://evil.example\r\n",
            ["what=\"origin\" text=http://evil.example", "status=403 why=this origin"],
        ),
        (
            &with_user,
            "/metrics",
            "Host: localhost\r\n",
            ["path=/metrics", "status=401 why=this needs"],
        ),
        (
            &with_user,
            "/metrics",
            "Host: localhost\r\nAuthorization: Bearer s3cret-guess\r\n",
            ["path=/metrics", "status=401 why=these are no user's credentials"],
        ),
        // `app:s3cret`, and `s3cret:app` with name and password swapped.
        (
            &with_user,
            "/metrics",
            "Host: localhost\r\nAuthorization: Basic YXBwOnMzY3JldA==\r\n",
            ["what=\"user\" text=app", "status=401"],
        ),
        (
            &with_user,
            "/metrics",
            "Host: localhost\r\nAuthorization: Basic czNjcmV0OmFwcA==\r\n",
            ["what=\"user\" text=a name that no user has", "status=401"],
        ),
        (
            &with_user,
            "/v1/mesh/publish",
            &format!("Host: localhost\r\n{credentials}"),
            ["path=/v1/mesh/publish", "status=403 why=this user's roles"],
        ),
        (&alone, "/metrics", "Host : localhost\r\n", ["accepted", "status=400 why=a header line"]),
    ] {
        let request = format!("GET {target} HTTP/1.1\r\n{headers}\r\n");
        let (_, lines) = refusal(settings, Listener::Api, &request);
        let parts: Vec<&[&str]> = parts.iter().map(std::slice::from_ref).collect();
        assert_in_order(&lines, &parts);
        assert!(!lines.join("\n").contains("s3cret"), "{lines:#?}");
    }
}

#[test]
fn a_call_over_http_names_its_user() {
    let mut settings = settings_with_user();
    let users = settings.api.users.iter();
    let mut users: Vec<_> = users.map(|(_, user)| user.clone()).collect();
    users[0].roles = Roles::ALL;
    settings.api.users = users.into();
    let body = r#"{"c":"room","d":"s3cret"}"#;
    let request = format!(
        "POST /v1/mesh/publish HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer s3cret-token\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let (response, lines) = refusal(&settings, Listener::Api, &request);
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    assert_in_order(&lines, &[&["call connection=0-0-0 user=\"app\" call=mesh.publish room"]]);
    assert!(!lines.join("\n").contains("s3cret"), "{lines:#?}");
}

#[test]
fn an_address_without_attempts_left_is_logged_once_at_warn_without_its_credentials() {
    let lines = logged(Level::WARN, || {
        let mut shard = shard(&settings_with_user());
        for guess in 0..30 {
            let key = accept(&mut shard, Listener::Api);
            let credentials = format!("Authorization: Bearer s3cret-{guess}\r\n");
            let request = format!("GET /version HTTP/1.1\r\nHost: a\r\n{credentials}\r\n");
            send(&mut shard, key, &request);
            settle(&mut shard);
        }
    });
    let [line] = &lines[..] else { panic!("not one line: {lines:#?}") };
    assert!(line.contains("WARN") && line.contains("192.0.2.7"), "{line}");
    assert!(!line.contains("s3cret"), "{line}");
}

/// Returns the lines of the access log that `run` leaves, without their beginnings.
fn access_lines(run: impl FnOnce()) -> Vec<String> {
    let lines = logged(Level::INFO, run);
    let start = " INFO access: connection ended ";
    lines.iter().filter_map(|line| line.strip_prefix(start).map(str::to_owned)).collect()
}

fn with_access_log(settings: Settings) -> Settings {
    Settings { has_access_log: true, ..settings }
}

/// Returns the bytes received from, and written to, all connections.
fn bytes_of(shard: &Shard) -> (u64, u64) {
    let counters = shard.inspect().counters();
    (counters.received_bytes, counters.sent_bytes)
}

#[test]
fn a_client_leaves_one_line_with_its_messages_and_bytes_in_the_access_log() {
    let mut bytes = (0, 0);
    let lines = access_lines(|| {
        let mut shard = shard(&with_access_log(settings()));
        let client = accept(&mut shard, Listener::Edge(0));
        let request =
            format!("GET /ws?channels=news&t=s3cret HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n");
        send(&mut shard, client, &request);
        settle(&mut shard);
        for text in ["one", "two"] {
            shard.handle_bytes(NOW, client, &mut call(text));
        }
        // One message by a publish, none by a ping: control frames are no messages.
        shard.handle_bytes(NOW, client, &mut shard_value::client_head(0x89, 0));
        settle(&mut shard);
        let before = bytes_of(&shard);
        let back_end = upgraded(&mut shard, NOW, Listener::Api, "/ws/v1");
        settle(&mut shard);
        let handshake = bytes_of(&shard);
        let mut publish = call(r#"{"m":"mesh.publish","p":{"c":"news","d":"three"},"i":1}"#);
        let publish_bytes = publish.len() as u64;
        shard.handle_bytes(NOW, back_end, &mut publish);
        let written = settle(&mut shard);
        assert!(written.contains("three"), "{written}");
        let answer = r#"{"E":null,"r":{"s":1,"f":0},"i":1}"#;
        let at = Now { ms: 1500, us: 1_500_000, unix_ms: NOW.unix_ms + 1500 };
        // A close frame with the code 4001.
        let mut close = shard_value::client_head(0x88, 2);
        close.extend_from_slice(&4001_u16.to_be_bytes());
        shard.handle_bytes(at, client, &mut close);
        settle_at(&mut shard, at);
        let all = bytes_of(&shard);
        let of_back_end = (
            handshake.0 - before.0 + publish_bytes,
            handshake.1 - before.1 + answer.len() as u64 + 2,
        );
        bytes = (all.0 - of_back_end.0, all.1 - of_back_end.1);
    });
    let [line] = &lines[..] else { panic!("{lines:#?}") };
    let start =
        "connection=0-0-0 address=192.0.2.7:5000 listener=\"edge\" kind=\"client\" client=\"";
    let (received, written) = bytes;
    let end = format!(
        "\" route=\"/ws\" messages_in=2 messages_out=1 bytes_in={received} bytes_out={written} \
         duration_ms=1500 code=4001"
    );
    assert!(line.starts_with(start) && line.ends_with(&end), "{line}\n{start}…{end}");
}

#[test]
fn the_access_log_names_the_user_of_a_client_escaped_and_cut() {
    let user = format!("a\\\"b\\n{}", "x".repeat(300));
    let lines = access_lines(|| {
        let mut shard = shard(&with_access_log(settings()));
        let back_end = upgraded(&mut shard, NOW, Listener::Api, "/ws/v1");
        shard.handle_bytes(
            NOW,
            back_end,
            &mut call(r#"{"m":"queue.pop","p":{"t":["members"]},"i":1}"#),
        );
        settle(&mut shard);
        let client = accept(&mut shard, Listener::Edge(0));
        let target = format!("/member?token={}", right_token());
        send(&mut shard, client, &format!("GET {target} HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n"));
        let id = opened(&settle(&mut shard));
        for arguments in [
            format!(r#""f":"set_context_value","a":["user_id","{user}"]"#),
            r#""f":"close","a":[4000,"bye"]"#.to_owned(),
        ] {
            let json = format!(r#"{{"m":"conn.call","p":{{"c":"{id}",{arguments}}},"i":1}}"#);
            shard.handle_bytes(NOW, back_end, &mut call(&json));
            settle(&mut shard);
        }
        shard.handle_end(NOW, back_end, true);
        settle(&mut shard);
    });
    let [client, back_end] = &lines[..] else { panic!("{lines:#?}") };
    let shown = format!("user=\"a\\\"b\\n{}\" route=\"/member\"", "x".repeat(256 - 4));
    assert!(client.contains(&shown) && client.ends_with(" code=4000"), "{client}");
    // The pop, two calls, and their answers; one event.
    let counted = "kind=\"backend\" messages_in=3 messages_out=4 ";
    assert!(back_end.contains(counted) && back_end.ends_with(" code=1006"), "{back_end}");
}

#[test]
fn the_access_log_counts_the_requests_of_an_http_connection_and_names_its_user() {
    let lines = access_lines(|| {
        let mut shard = shard(&with_access_log(settings_with_user()));
        let caller = accept(&mut shard, Listener::Api);
        for secret in ["s3cret-token", "s3cret-token", "wrong"] {
            let authorization = format!("Authorization: Bearer {secret}\r\n");
            send(
                &mut shard,
                caller,
                &format!("GET /metrics?a=s3cret HTTP/1.1\r\nHost: a\r\n{authorization}\r\n"),
            );
            settle(&mut shard);
        }
        shard.handle_end(NOW, caller, false);
        settle(&mut shard);
        let refused = accept(&mut shard, Listener::Edge(0));
        send(
            &mut shard,
            refused,
            "GET /nowhere?a=s3cret HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        );
        settle(&mut shard);
        let silent = accept(&mut shard, Listener::Edge(0));
        shard.handle_end(NOW, silent, true);
        settle(&mut shard);
    });
    let [caller, refused, silent] = &lines[..] else { panic!("{lines:#?}") };
    let of_http = |listener, rest| format!("listener=\"{listener}\" kind=\"http\" {rest}bytes_in=");
    assert!(caller.contains(&of_http("api", "user=\"app\" requests=3 ")), "{caller}");
    assert!(refused.contains(&of_http("edge", "requests=1 ")), "{refused}");
    assert!(silent.contains(&of_http("edge", "requests=0 ")), "{silent}");
    assert!(silent.ends_with("bytes_in=0 bytes_out=0 duration_ms=0"), "{silent}");
    assert!(lines.iter().all(|line| !line.contains("s3cret")), "{lines:#?}");
}

#[test]
fn the_access_log_is_off_by_default_and_follows_reloads() {
    let lines = access_lines(|| {
        let off = settings();
        let mut shard = shard(&off);
        let reload = |shard: &mut Shard, settings: Settings| {
            let settings = off.reloaded(settings, &[]).expect("few routes");
            let state = gridcast::shard::node_state::NodeState::new(&settings, Arc::default());
            shard.handle_reload(NOW, &settings, Arc::new(state));
        };
        let end = |shard: &mut Shard, key| {
            shard.handle_end(NOW, key, true);
            settle(shard);
        };
        let before = accept(&mut shard, Listener::Api);
        reload(&mut shard, with_access_log(settings()));
        let [first, second] = [(); 2].map(|()| accept(&mut shard, Listener::Api));
        end(&mut shard, before);
        end(&mut shard, first);
        reload(&mut shard, settings());
        end(&mut shard, second);
    });
    let [first] = &lines[..] else { panic!("{lines:#?}") };
    assert!(first.starts_with("connection=0-1-0 "), "{first}");
}
