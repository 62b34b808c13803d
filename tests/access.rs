//! Authentication and authorisation on the API and at the edge, over real sockets.

#![forbid(unsafe_code)]

mod support;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};
use support::{
    CONFIG, Http, Response, SUCCESS, Server, Socket, assert_error, basic, bearer, http, users,
};

/// One user of each kind. The hashes are of `s3cret` and `tok-en`, at a low cost.
const USERS: [(&str, &str); 7] = [
    ("plain", r#"password = "pass:word""#),
    (
        "hashed",
        r#"password = "$argon2id$v=19$m=1024,t=1,p=1$c2FsdHNhbHQ$G0OGg3uuuOl7YVZRG9f8xbuzmopWldR4vXCRnrXzYsw""#,
    ),
    ("token", r#"token = "plain-token""#),
    (
        "hashed token",
        r#"token = "$argon2id$v=19$m=1024,t=1,p=1$dGFzdHNhbHQ$K2a0TdsF8jMPn+DzVPL2/jWkFTR4cA5uDghdwDDCJ1s""#,
    ),
    ("reader", "token = \"reads\"\nroles = [\"read\"]"),
    ("writer", "token = \"writes\"\nroles = [\"write\"]"),
    ("elsewhere", "token = \"elsewhere\"\nfrom = [\"192.0.2.0/24\"]"),
];

const BODY: &str = r#"{"c":"channel1","d":"data"}"#;
const PUBLISHED: &str = r#"{"E":null,"r":{"s":0,"f":0}}"#;
const POP: &str = r#"{"m":"queue.pop","p":{"t":["messages"]},"i":12345}"#;
const PUBLISH: &str = r#"{"m":"mesh.publish","p":{"c":"channel1","d":"data"},"i":12345}"#;

fn server() -> Server {
    Server::with(&users(&USERS))
}

fn publish(server: &Server, headers: &str) -> Response {
    server.request("POST", "/v1/mesh/publish", headers, BODY)
}

#[track_caller]
fn assert_refused(response: &Response, status: u16, code: u16) {
    assert_eq!(response.status, status, "{response:?}");
    assert_error(&response.body, code, None);
    let challenge = (status == 401).then_some("Basic realm=\"gridcast\", Bearer");
    assert_eq!(response.header("www-authenticate"), challenge);
}

#[track_caller]
fn backend(server: &Server, headers: &str) -> Socket {
    Socket::connect(server.api, "/ws/v1", headers).expect("the API grants the upgrade")
}

#[test]
fn every_kind_of_user_may_call_over_http_and_over_websocket() {
    let server = server();
    let all = [
        basic("plain", "pass:word"),
        basic("hashed", "s3cret"),
        bearer("plain-token"),
        bearer("tok-en"),
    ];
    // Twice: the first request verifies the hash, the second one finds it verified.
    for headers in all.iter().chain(&all) {
        let response = publish(&server, headers);
        assert_eq!((response.status, &response.body[..]), (200, PUBLISHED), "{headers}");
        let mut backend = backend(&server, headers);
        assert_eq!(backend.call(POP), SUCCESS);
        assert_eq!(backend.call(PUBLISH), r#"{"E":null,"r":{"s":0,"f":0},"i":12345}"#);
    }
}

/// Header lines with credentials in a subprotocol, as a browser can send them.
fn subprotocols(authorization: &str) -> String {
    let value = authorization.trim_end().strip_prefix("Authorization: ").expect("that header");
    format!(
        "Sec-WebSocket-Protocol: gridcast.api, authorization.{}\r\n",
        URL_SAFE_NO_PAD.encode(value)
    )
}

/// The status of an upgrade with these headers, and the subprotocol that is answered.
fn upgrade(server: &Server, headers: &str) -> (u16, Option<String>) {
    let mut connection = server.http();
    connection.send(Socket::upgrade_request(server.api, "/ws/v1", headers));
    let response = connection.head();
    (response.status, response.header("sec-websocket-protocol").map(str::to_owned))
}

#[test]
fn a_browser_may_present_the_credentials_of_a_websocket_in_a_subprotocol() {
    let server = server();
    let granted = (101, Some("gridcast.api".to_owned()));
    for headers in [
        basic("plain", "pass:word"),
        basic("hashed", "s3cret"),
        bearer("plain-token"),
        bearer("tok-en"),
    ] {
        assert_eq!(upgrade(&server, &subprotocols(&headers)), granted, "{headers}");
    }
    let both = subprotocols(&bearer("wrong")) + &bearer("plain-token");
    assert_eq!(upgrade(&server, &both), granted, "the header takes precedence");
    let reader = subprotocols(&bearer("reads"));
    assert_error(&backend(&server, &reader).call(PUBLISH), 102, Some("12345"));
}

#[test]
fn wrong_repeated_and_misplaced_credentials_in_subprotocols_are_denied() {
    let server = server();
    let right = subprotocols(&bearer("plain-token"));
    for headers in [
        subprotocols(&bearer("wrong")),
        right.repeat(2),
        right.clone() + &bearer("wrong"),
        "Sec-WebSocket-Protocol: authorization.plain-token\r\n".into(),
        "Sec-WebSocket-Protocol: authorization.\r\n".into(),
        "Sec-WebSocket-Protocol: gridcast.api\r\n".into(),
    ] {
        assert_eq!(upgrade(&server, &headers), (401, None), "{headers}");
    }
    // Only a browser's WebSocket needs them there.
    assert_refused(&publish(&server, &right), 401, 102);
}

#[test]
fn credentials_are_required_except_for_probes_and_pages() {
    let server = server();
    for path in ["/v1/nodes", "/version", "/metrics", "/ws/v1", "/elsewhere"] {
        assert_refused(&server.get(path), 401, 102);
    }
    for path in ["/v1/mesh/send", "/v1/mesh/publish", "/v1/conn/call"] {
        assert_refused(&server.request("POST", path, "", BODY), 401, 102);
    }
    let upgrade = Socket::connect(server.api, "/ws/v1", "").err().expect("no upgrade");
    assert_refused(&upgrade, 401, 102);
    for path in ["/", "/console", "/console/main.js", "/healthz", "/readyz"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
}

#[test]
fn wrong_credentials_are_denied() {
    let server = server();
    for headers in [
        basic("plain", "pass"),
        basic("hashed", "secret"),
        basic("nobody", "s3cret"),
        basic("token", "plain-token"),
        bearer("token"),
        bearer("s3cret"),
    ] {
        assert_refused(&publish(&server, &headers), 401, 102);
    }
    let upgrade = Socket::connect(server.api, "/ws/v1", &bearer("x")).err().expect("no upgrade");
    assert_refused(&upgrade, 401, 102);
}

#[test]
fn invalid_and_repeated_authorization_headers_count_as_missing() {
    let server = server();
    let two = bearer("plain-token") + &bearer("plain-token");
    let digest = "Authorization: Digest username=\"plain\"\r\n".to_owned();
    // More often than an address may present wrong credentials.
    for headers in [two, digest, "Authorization: Basic ???\r\n".into()].iter().cycle().take(15) {
        assert_refused(&publish(&server, headers), 401, 102);
    }
    assert_eq!(publish(&server, &bearer("plain-token")).status, 200);
}

#[test]
fn a_denied_request_leaves_the_connection_open() {
    let server = server();
    let mut connection = server.http();
    connection.send(server.raw("POST", "/v1/mesh/publish", "", BODY));
    assert_refused(&connection.response(), 401, 102);
    connection.send(server.raw("POST", "/v1/mesh/publish", &bearer("tok-en"), BODY));
    assert_eq!(connection.response().body, PUBLISHED);
}

#[test]
fn pipelined_requests_are_answered_in_order_even_if_some_wait_for_verification() {
    let server = server();
    let mut connection = server.http();
    let requests = [
        server.raw("POST", "/v1/mesh/publish", &bearer("plain-token"), BODY),
        server.raw("GET", "/version", &basic("hashed", "s3cret"), ""),
        server.raw("POST", "/v1/mesh/publish", &basic("hashed", "wrong"), BODY),
        server.raw("POST", "/v1/mesh/publish", &bearer("tok-en"), BODY),
        server.raw("GET", "/healthz", "Connection: close\r\n", ""),
    ];
    connection.send(requests.concat());
    assert_eq!(connection.response().body, PUBLISHED);
    assert!(connection.response().body.contains("\"version\""));
    assert_refused(&connection.response(), 401, 102);
    assert_eq!(connection.response().body, PUBLISHED);
    assert_eq!(connection.response().body, "ok\n");
    assert_eq!(connection.rest(), b"");
}

#[test]
fn a_user_over_its_quota_gets_an_error_and_stays_connected() {
    let server = Server::with(&users(&[("app", "token = \"app\"\nrequests_per_s = 5")]));
    let mut connection = server.http();
    let headers = bearer("app") + "X-Error-Mode: status\r\n";
    connection.send(server.raw("POST", "/v1/mesh/publish", &headers, BODY).repeat(20));
    let answers: Vec<Response> = (0..20).map(|_| connection.response()).collect();
    assert!(answers[..5].iter().all(|answer| answer.status == 200), "{answers:?}");
    let refused = answers.iter().find(|answer| answer.status != 200).expect("20 are too many");
    assert_eq!(refused.status, 429);
    assert_error(&refused.body, 103, None);
    let mut backend = backend(&server, &bearer("app"));
    backend.send(&support::frame(0x81, PUBLISH.as_bytes()).repeat(20));
    let answers: Vec<String> = (0..20).map(|_| backend.text()).collect();
    let refused = answers.iter().find(|answer| !answer.starts_with(r#"{"E":null"#));
    assert_error(refused.expect("20 are too many"), 103, Some("12345"));
    assert_eq!(backend.call("ping"), "pong");
}

#[test]
fn the_last_request_of_a_connection_waits_for_its_verification() {
    let server = server();
    let headers = basic("hashed", "s3cret") + "Connection: close\r\n";
    let mut connection = server.http();
    connection.send_byte_by_byte(server.raw("POST", "/v1/mesh/publish", &headers, BODY));
    assert_eq!(connection.response().body, PUBLISHED);
    assert_eq!(connection.rest(), b"");
}

#[test]
fn frames_sent_together_with_a_handshake_wait_until_it_is_verified() {
    let server = server();
    let mut connection = server.http();
    let handshake = Socket::upgrade_request(server.api, "/ws/v1", &basic("hashed", "s3cret"));
    connection.send([handshake.as_bytes(), &support::frame(0x81, b"ping")].concat());
    assert_eq!(connection.response().status, 101);
    assert_eq!(Socket::upgraded(connection).text(), "pong");
}

#[test]
fn a_connection_that_breaks_during_verification_does_not_affect_others() {
    let server = server();
    for _ in 0..20 {
        let mut connection = server.http();
        connection.send(server.raw("POST", "/v1/mesh/publish", &basic("hashed", "s3cret"), BODY));
        drop(connection);
    }
    assert_eq!(publish(&server, &basic("hashed", "s3cret")).body, PUBLISHED);
}

#[test]
fn a_missing_role_is_reported_over_http() {
    let server = server();
    assert_refused(&publish(&server, &bearer("reads")), 403, 102);
    for path in ["/v1/mesh/send", "/v1/conn/call"] {
        assert_refused(&server.request("POST", path, &bearer("reads"), BODY), 403, 102);
    }
    for token in ["reads", "writes"] {
        for path in ["/v1/nodes", "/version", "/metrics"] {
            assert_eq!(server.request("GET", path, &bearer(token), "").status, 200, "{path}");
        }
    }
    assert_eq!(publish(&server, &bearer("writes")).body, PUBLISHED);
}

#[test]
fn a_missing_role_is_reported_over_websocket_and_the_connection_stays_open() {
    let server = server();
    let mut reader = backend(&server, &bearer("reads"));
    for method in ["mesh.publish", "mesh.send"] {
        let request = format!(r#"{{"m":"{method}","p":{{"c":"1","d":"x"}},"i":12345}}"#);
        assert_error(&reader.call(&request), 102, Some("12345"));
    }
    let call = r#"{"m":"conn.call","p":{"c":"1","f":"info"},"i":12345}"#;
    assert_error(&reader.call(call), 102, Some("12345"));
    assert_eq!(reader.call(POP), SUCCESS);
    let mut writer = backend(&server, &bearer("writes"));
    assert_error(&writer.call(POP), 201, Some("12345"));
    let unpop = r#"{"m":"queue.unpop","p":{},"i":12345}"#;
    assert_error(&writer.call(unpop), 102, Some("12345"));
    assert_eq!(writer.call(PUBLISH), r#"{"E":null,"r":{"s":0,"f":0},"i":12345}"#);
    writer.send_text("ping");
    assert_eq!(writer.text(), "pong");
}

#[test]
fn those_who_may_read_may_ask_for_users_and_channels() {
    let server = server();
    let methods = [("channel.members", "c"), ("channel.info", "c"), ("user.info", "u")];
    for (method, field) in methods {
        let body = format!(r#"{{"{field}":"1"}}"#);
        let request = format!(r#"{{"m":"{method}","p":{body},"i":12345}}"#);
        let path = format!("/v1/{}", method.replace('.', "/"));
        let mut reader = backend(&server, &bearer("reads"));
        let answer = reader.call(&request);
        assert!(answer.starts_with(r#"{"E":null,"r":{"#), "{method}: {answer}");
        assert_eq!(server.request("POST", &path, &bearer("reads"), &body).status, 200);
        let mut writer = backend(&server, &bearer("writes"));
        assert_error(&writer.call(&request), 102, Some("12345"));
        assert_refused(&server.request("POST", &path, &bearer("writes"), &body), 403, 102);
    }
}

#[test]
fn only_administrators_may_administer() {
    let server = server();
    for token in ["reads", "writes"] {
        let mut backend = backend(&server, &bearer(token));
        let lists = ["node.list", "client.list", "channel.list", "topic.list", "backend.list"];
        for method in ["admin.reload", "tap.start", "tap.stop"].iter().chain(&lists) {
            let request = format!(r#"{{"m":"{method}","p":{{"c":"1"}},"i":12345}}"#);
            assert_error(&backend.call(&request), 102, Some("12345"));
        }
        for method in lists.iter().chain(&["admin.reload"]) {
            let path = format!("/v1/{}", method.replace('.', "/"));
            for body in ["", "{}"] {
                assert_refused(&server.request("POST", &path, &bearer(token), body), 403, 102);
            }
        }
    }
}

#[test]
fn a_user_from_another_address_is_denied() {
    let server = server();
    assert_refused(&publish(&server, &bearer("elsewhere")), 403, 102);
    let refused = Socket::connect(server.api, "/ws/v1", &bearer("elsewhere"));
    assert_refused(&refused.err().expect("no upgrade"), 403, 102);
}

#[test]
fn an_address_that_guesses_is_denied_on_every_shard_and_right_credentials_are_not() {
    let server = server();
    let mut standing = backend(&server, &bearer("plain-token"));
    let mut guesses = (0..).map(|n| publish(&server, &bearer(&format!("guess{n}"))));
    // Another shard may not have been told of the last attempts when it gets a request.
    let last = guesses.by_ref().take(40).find(|response| response.status != 401);
    let last = last.expect("a limit");
    assert_refused(&last, 429, 103);
    assert_eq!((last.header("retry-after"), last.header("connection")), (Some("1"), Some("close")));
    support::until(|| (0..8).all(|_| guesses.next().is_some_and(|guess| guess.status == 429)));
    for headers in [bearer("plain-token"), basic("plain", "pass:word")] {
        assert!((0..8).all(|_| publish(&server, &headers).status == 200), "{headers}");
    }
    // Right credentials with a hashed secret are accepted when retried.
    let headers = basic("hashed", "s3cret");
    support::until(|| publish(&server, &headers).status == 200);
    assert_eq!(standing.call(POP), SUCCESS, "who is in stays in");
    assert_eq!(server.get("/healthz").status, 200);
}

#[test]
fn a_foreign_origin_is_refused_before_its_credentials_are_checked() {
    let server = server();
    let headers = bearer("plain-token") + "Origin: https://evil.example\r\n";
    assert_refused(&publish(&server, &headers), 403, 102);
}

#[test]
fn with_a_user_the_api_listens_on_every_address() {
    let config = CONFIG.replacen("127.0.0.1:0", "0.0.0.0:0", 1);
    let server = Server::start(&(config + &users(&USERS)));
    let address = ([127, 0, 0, 1], server.api.port()).into();
    let request = server.raw("GET", "/version", &bearer("plain-token"), "");
    assert_eq!(http(address, request).status, 200);
    let mut open = Http::connect(address);
    open.send(server.raw("GET", "/version", "", ""));
    assert_refused(&open.response(), 401, 102);
}

#[test]
fn the_response_to_a_refused_upload_arrives_without_a_reset() {
    let server = server();
    let body = "x".repeat(1_000_000);
    for headers in [String::new(), bearer("wrong"), bearer("reads")] {
        let mut connection = server.http();
        connection.send(server.raw("POST", "/v1/mesh/publish", &headers, &body));
        let response = connection.response();
        assert!([401, 403].contains(&response.status), "{response:?}");
        assert_eq!(response.header("connection"), Some("close"));
        assert_eq!(connection.rest(), b"");
    }
    let large = format!(r#"{{"c":"channel1","d":"{}"}}"#, &body[..900_000]);
    for headers in [bearer("plain-token"), basic("hashed", "s3cret")] {
        let response = server.request("POST", "/v1/mesh/publish", &headers, &large);
        assert_eq!((response.status, &response.body[..]), (200, PUBLISHED));
    }
}

#[test]
fn with_users_the_api_answers_under_any_host_name() {
    let server = server();
    let get =
        |headers: &str| format!("GET /version HTTP/1.1\r\nHost: api.example\r\n{headers}\r\n");
    assert_eq!(http(server.api, get(&bearer("plain-token"))).status, 200);
    assert_refused(&http(server.api, get("")), 401, 102);
}

const TOKEN_KEY: &str = "0123456789abcdef0123456789abcdef";

/// Lines to add to an edge: the route `/member`, which accepts tokens in each place.
const MEMBERS: &str = r#"
[[edge.route]]
path = "/member"
topic = "messages"
events = ["open", "message", "close"]
subscribe = ["news"]
hold_until = "user_id"
token = { algorithm = "HS256", key = "0123456789abcdef0123456789abcdef", from = ["header", "protocol", "query"] }
[[edge.route]]
path = "/header"
token = { algorithm = "HS256", key = "0123456789abcdef0123456789abcdef", from = ["header"] }
"#;

/// A token that expires after this number of seconds and the minute of tolerance.
fn token(seconds: i64, mut claims: Value) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.expect("after 1970").as_secs() as i64;
    claims["exp"] = json!(now + seconds - 60);
    let key = EncodingKey::from_secret(TOKEN_KEY.as_bytes());
    encode(&Header::default(), &claims, &key).expect("claims are JSON")
}

#[test]
fn a_client_s_token_is_accepted_in_each_place() {
    let server = Server::with(MEMBERS);
    let token = token(100, json!({}));
    let protocols = |list: &str| format!("Sec-WebSocket-Protocol: {list}\r\n");
    for (path, headers, answered) in [
        ("/member", bearer(&token), None),
        (&format!("/member?token={token}"), String::new(), None),
        ("/member", protocols(&format!("bearer.{token}, chat, b")), Some("chat")),
        ("/member", protocols(&format!("bearer, bearer.{token}")), Some("bearer")),
        ("/member", protocols(&format!("bearer.{token}")), Some(&format!("bearer.{token}")[..])),
        ("/header", bearer(&token), None),
    ] {
        let mut connection = Http::connect(server.edge);
        connection.send(Socket::upgrade_request(server.edge, path, &headers));
        let response = connection.response();
        assert_eq!(response.status, 101, "{path} {headers} {response:?}");
        assert_eq!(response.header("sec-websocket-protocol"), answered);
    }
}

#[test]
fn a_client_without_a_valid_token_is_refused() {
    let server = Server::with(MEMBERS);
    let expired = token(-1, json!({}));
    let right = token(100, json!({}));
    for (path, headers) in [
        ("/member", String::new()),
        ("/member", bearer("a.b.c")),
        ("/member", bearer(&expired)),
        ("/member", bearer(&right[..right.len() - 4])),
        (&format!("/header?token={right}"), String::new()),
    ] {
        let refused = Socket::connect(server.edge, path, &headers).err().expect("no upgrade");
        assert_eq!(refused.status, 401, "{path} {headers}");
        assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
        assert_error(&refused.body, 102, None);
    }
}

#[test]
fn claims_become_context_and_channels_and_release_a_hold() {
    let server = Server::with(MEMBERS);
    let mut consumer = server.consumer("messages");
    let claims = json!({"sub": "u7", "channels": ["room:1"], "context": {"plan": [1]}});
    let path = format!("/member?channels=news&token={}&x=1", token(100, claims));
    let headers = "Authorization: Other secret\r\nCookie: secret\r\nX-Kept: yes\r\n";
    let mut client = Socket::connect(server.edge, &path, headers).expect("the token is right");
    let open = consumer.event();
    assert_eq!(open["d"]["query"], json!({"channels": "news", "x": "1"}));
    let shown = open.to_string();
    assert!(!shown.contains("secret") && shown.contains("x-kept"), "{shown}");
    assert_eq!(server.publish("room:1", "x"), (1, 0));
    assert_eq!(server.publish("news", "y"), (1, 0));
    assert_eq!((client.text(), client.text()), ("x".into(), "y".into()));
    client.send_text("one");
    client.send_text("two, not held");
    let event = consumer.event();
    assert_eq!(event["d"]["context"], json!({"plan": [1], "user_id": "u7"}));
    assert_eq!(consumer.data(), "two, not held");
}

#[test]
fn a_client_is_closed_when_its_token_expires() {
    let server = Server::with(MEMBERS);
    let headers = bearer(&token(2, json!({})));
    let mut client = Socket::connect(server.edge, "/member", &headers).expect("it is right yet");
    assert_eq!(client.closed(), (1008, "token expired".into()));
    client.ended();
}

#[test]
fn without_a_token_rule_what_a_client_sends_reaches_the_back_end_whole() {
    let server = Server::with(MEMBERS);
    let mut consumer = server.consumer("messages");
    let headers = "Cookie: a=b\r\n";
    let _client = Socket::connect(server.edge, "/ws?token=x", headers).expect("it needs none");
    let open = consumer.event();
    assert_eq!(
        (&open["d"]["query"]["token"], &open["d"]["headers"]["cookie"]),
        (&json!("x"), &json!("a=b"))
    );
}
