//! Devices that speak the device protocol, `gridcast.v1`.

use gridcast::protocol::token::{SigningKey, TokenAlgorithm};

use super::*;

const OFFER: &str = "Sec-WebSocket-Protocol: gridcast.v1\r\n";

const KEYS: &str = "topic = \"t\"\nsubscribe = [\"room:*\", \"news\"]\ncompression = true";

fn device(server: &Server, path: &str) -> Socket {
    Socket::connect(server.edge, path, OFFER).expect("the edge grants the upgrade")
}

/// The next message, as JSON.
#[track_caller]
fn json_of(device: &mut Socket) -> Value {
    serde_json::from_str(&device.text()).expect("a message in an envelope is JSON")
}

#[test]
fn the_protocol_is_answered_to_those_who_offer_it_in_their_order_of_preference() {
    let server = server_with_route(
        "subprotocols = [\"chat\"]",
        "[[edge.route]]\npath = \"/token\"\ntoken = { algorithm = \"HS256\", \
         key = \"0123456789abcdef0123456789abcdef\", from = [\"protocol\"] }",
    );
    let answer = |path: &str, offered: &str| {
        let mut http = Http::connect(server.edge);
        let headers = format!("Sec-WebSocket-Protocol: {offered}\r\n");
        http.send(Socket::upgrade_request(server.edge, path, &headers));
        let response = http.response();
        (response.status, response.header("sec-websocket-protocol").map(str::to_owned))
    };
    assert_eq!(answer("/ws", "gridcast.v1"), (101, Some("gridcast.v1".into())));
    assert_eq!(answer("/ws", "chat, gridcast.v1"), (101, Some("chat".into())));
    assert_eq!(answer("/ws", "other, gridcast.v1, chat"), (101, Some("gridcast.v1".into())));
    assert_eq!(answer("/ws", "gridcast.v2"), (101, None));
    let token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ1IiwiZXhwIjo0MTAyNDQ0ODAwfQ.\
                 cvh9YkuIVwbUDsB0VA3h5W59bLY5tnVAk5X-GzCNruE";
    let (status, answered) = answer("/token", &format!("bearer.{token}, gridcast.v1"));
    assert_eq!((status, answered.as_deref()), (101, Some("gridcast.v1")));
}

#[test]
fn a_device_gets_messages_in_envelopes_and_others_get_them_as_they_are() {
    let server = server_with_route(KEYS, "");
    let mut consumer = server.consumer("t");
    let mut device = device(&server, "/ws?channels=room:1");
    let mut plain = server.device("/ws?channels=room:1");
    assert_eq!(server.publish("room:1", "hi \\\"you\\\""), (2, 0));
    assert_eq!(device.text(), r#"{"e":"message","p":{"c":"room:1","d":"hi \"you\""}}"#);
    assert_eq!(plain.text(), "hi \"you\"");
    let binary = json!({ "c": "room:1", "d": "AAEC", "t": "binary" }).to_string();
    server.post("/v1/mesh/publish", &binary);
    assert_eq!(device.text(), r#"{"e":"message","p":{"c":"room:1","d":"AAEC","t":"binary"}}"#);
    assert_eq!(plain.read(), Message::Binary(vec![0, 1, 2]));

    device.send_text(r#"{"m":"push","p":{"d":"who am I"},"i":1}"#);
    let client = consumer.event()["c"].as_str().expect("an id").to_owned();
    assert_eq!(device.text(), r#"{"E":null,"r":{"s":true},"i":1}"#);
    let send = json!({ "c": client, "d": "é" }).to_string();
    assert_eq!(server.post("/v1/mesh/send", &send), r#"{"E":null,"r":{"s":true}}"#);
    assert_eq!(device.text(), r#"{"e":"message","p":{"d":"é"}}"#);
}

#[test]
fn a_push_becomes_an_ordinary_event_and_is_answered_once_it_is_in_the_topic() {
    let server = server_with_route(KEYS, "");
    let mut device = device(&server, "/ws");
    device.send_text(r#"{"m":"push","p":{"d":"text"},"i":"a"}"#);
    device.send_binary(br#"{"m":"push","p":{"d":"AAE=","t":"binary"},"i":2}"#);
    assert_eq!(device.text(), r#"{"E":null,"r":{"s":true},"i":"a"}"#);
    assert_eq!(device.text(), r#"{"E":null,"r":{"s":true},"i":2}"#);
    let mut consumer = server.consumer("t");
    let event = consumer.event();
    assert_eq!(event["d"], json!({"frame": {"type": "text", "data": "text", "finish": true}}));
    server.post(
        "/v1/conn/call",
        &json!({ "c": event["c"], "f": "set_context_value", "a": ["k", 7] }).to_string(),
    );
    let event = consumer.event();
    assert_eq!(event["d"], json!({"frame": {"type": "binary", "data": "AAE=", "finish": true}}));
    device.send_text(r#"{"m":"push","p":{"d":"more"},"i":3}"#);
    assert_eq!(consumer.event()["d"]["context"], json!({ "k": 7 }));
    assert_eq!(device.text(), r#"{"E":null,"r":{"s":true},"i":3}"#);
}

#[test]
fn a_device_subscribes_and_unsubscribes_as_its_route_allows_all_or_nothing() {
    let server = server_with_route(KEYS, "[limits]\nchannels_per_client = 3");
    let mut device = device(&server, "/ws");
    let subscribe =
        r#"{"m":"subscribe","p":{"c":["room:1","news","room:1"],"o":{"news":"x"}},"i":1}"#;
    assert_eq!(
        device.call(subscribe),
        r#"{"E":null,"r":{"s":true,"channels":{"room:1":{},"news":{"recovered":false}}},"i":1}"#
    );
    assert_eq!(server.publish("room:1", "a"), (1, 0));
    assert_eq!(json_of(&mut device)["p"]["d"], "a");
    let refused = device.ask("subscribe", &json!({ "c": ["room:2", "secret"] }));
    assert_eq!(refused["E"]["c"], 102);
    let why = refused["E"]["m"].as_str().expect("a reason");
    assert!(why.contains("\"secret\""), "{why}");
    let refused = device.ask("subscribe", &json!({ "c": ["room:2", "room:3"] }));
    assert_eq!(refused["E"]["c"], 301);
    assert_eq!(server.publish("room:2", "b"), (0, 0));
    assert_eq!(
        device.done("unsubscribe", &json!({ "c": ["room:1", "other"] })),
        json!({"s": true})
    );
    assert_eq!(server.publish("room:1", "c"), (0, 0));
    assert_eq!(server.publish("news", "d"), (1, 0));
    assert_eq!(json_of(&mut device)["p"], json!({ "c": "news", "d": "d" }));
}

#[test]
fn what_is_no_call_is_answered_and_the_connection_stays_open() {
    let server = server_with_route("subscribe = [\"*\"]", "");
    let mut device = device(&server, "/ws");
    for (text, code, id) in [
        ("hello", 101, "null"),
        ("[]", 101, "null"),
        ("{\"m\":\"mesh.publish\",\"p\":{},\"i\":7}", 101, "7"),
        ("{\"m\":\"push\",\"i\":8}", 101, "8"),
        // The route has no topic.
        ("{\"m\":\"push\",\"p\":{\"d\":\"x\"},\"i\":9}", 201, "9"),
    ] {
        support::assert_error(&device.call(text), code, Some(id));
    }
    device.send_binary(b"\xFF");
    support::assert_error(&device.text(), 101, Some("null"));
    assert_eq!(device.call("ping"), "pong");
    assert_eq!(device.done("unsubscribe", &json!({ "c": ["a"] })), json!({"s": true}));
}

#[test]
fn an_event_that_is_too_long_for_its_topic_is_refused_with_104() {
    let server = server_with_route(KEYS, "[queue]\ntopic_bytes = 135168");
    let mut consumer = server.consumer("t");
    let mut device = device(&server, "/ws");
    assert_eq!(device.done("push", &json!({ "d": "short" })), json!({"s": true}));
    let client = consumer.event()["c"].as_str().expect("an id").to_owned();
    // Each event carries the context, and may take three quarters of the topic.
    let long = "x".repeat(60_000);
    conn_call(&server, &client, "set_context_value", json!(["k", long]));
    let refused = device.ask("push", &json!({ "d": long }));
    assert_eq!(refused["E"]["c"], 104, "{refused}");
    assert_eq!(device.done("push", &json!({ "d": "short" })), json!({"s": true}));
}

#[test]
fn calls_are_held_until_the_context_has_the_key_as_messages_are() {
    let keys = "topic = \"t\"\nsubscribe = [\"*\"]\nhold_until = \"user_id\"";
    let server = server_with_route(keys, "");
    let mut consumer = server.consumer("t");
    let mut device = device(&server, "/ws");
    device.done("subscribe", &json!({ "c": ["a"] }));
    device.done("push", &json!({ "d": "password" }));
    device.send_text(r#"{"m":"push","p":{"d":"second"},"i":2}"#);
    let client = consumer.event()["c"].as_str().expect("an id").to_owned();
    device.synchronise();
    conn_call(&server, &client, "set_context_value", json!(["user_id", "u"]));
    assert_eq!(device.text(), r#"{"E":null,"r":{"s":true},"i":2}"#);
    assert_eq!(consumer.data(), "second");
}

#[test]
fn envelopes_are_compressed_for_those_who_agreed_on_it() {
    let server = server_with_route(KEYS, "");
    let offer = format!("{OFFER}{}", compression::OFFER);
    let mut device =
        Socket::connect(server.edge, "/ws?channels=room:1", &offer).expect("it is granted");
    let mut plain =
        Socket::connect(server.edge, "/ws?channels=room:1", compression::OFFER).expect("granted");
    let text = "the same again, ".repeat(20);
    assert_eq!(server.publish("room:1", &text), (2, 0));
    let expected = json!({"e": "message", "p": {"c": "room:1", "d": text}});
    let inflated = compression::compressed(&mut device);
    assert_eq!(serde_json::from_slice::<Value>(&inflated).expect("JSON"), expected);
    assert_eq!(compression::compressed(&mut plain), text.as_bytes());
}

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A token that expires in the year 2100, with further claims.
fn token(mut claims: Value) -> String {
    claims["exp"] = json!(4_102_444_800_u64);
    let key =
        SigningKey::new(None, TokenAlgorithm::Hs256, SECRET).expect("the secret is long enough");
    key.sign(&claims).expect("it signs")
}

/// A device that connects with a token.
fn device_with_token(server: &Server, claims: Value) -> Socket {
    let offer = format!("Sec-WebSocket-Protocol: gridcast.v1, bearer.{}\r\n", token(claims));
    Socket::connect(server.edge, "/ws", &offer).expect("the edge grants the upgrade")
}

fn server_with_tokens() -> Server {
    let keys = format!("topic = \"t\"\ntoken = {{ algorithm = \"HS256\", key = \"{SECRET}\" }}");
    server_with_route(&keys, "")
}

#[test]
fn a_new_token_adds_its_context_to_that_of_the_client_whose_user_stays() {
    let server = server_with_tokens();
    let mut consumer = server.consumer("t");
    let claims =
        json!({ "sub": "ada", "context": { "rank": 1, "colour": "red" }, "channels": ["a"] });
    let mut device = device_with_token(&server, claims);
    assert_eq!(device.done("push", &json!({ "d": "x" })), json!({"s": true}));
    let client = consumer.event()["c"].as_str().expect("an id").to_owned();
    conn_call(&server, &client, "set_context_value", json!(["room", 7]));
    conn_call(&server, &client, "set_context_value", json!(["user_id", "inner-1"]));
    let other = device.ask("token", &json!({ "token": token(json!({ "sub": "bob" })) }));
    assert_eq!(other["E"]["c"], 102, "{other}");
    let claims = json!({ "sub": "ada", "context": { "rank": 2 }, "channels": ["b"] });
    assert_eq!(device.done("token", &json!({ "token": token(claims) })), json!({"s": true}));
    let found = conn_call(&server, &client, "get_context", json!([]));
    let expected = json!({ "user_id": "inner-1", "rank": 2, "colour": "red", "room": 7 });
    assert_eq!(found["context"], expected);
    assert_eq!(conn_call(&server, &client, "info", json!([]))["channels"], json!(["a"]));
    // Each context is small enough, and both together are not.
    let large = |key: &str| json!({ "sub": "ada", "context": { key: "x".repeat(40_000) } });
    assert_eq!(device.done("token", &json!({ "token": token(large("k")) })), json!({"s": true}));
    let refused = device.ask("token", &json!({ "token": token(large("l")) }));
    assert_eq!(refused["E"]["c"], 301, "{refused}");
}

#[test]
fn a_route_without_tokens_takes_none() {
    let server = server_with_route(KEYS, "");
    let mut device = device(&server, "/ws");
    let answer = device.ask("token", &json!({ "token": token(json!({ "sub": "ada" })) }));
    assert_eq!(answer["E"]["c"], 101, "{answer}");
}

#[test]
fn a_device_that_a_back_end_closes_is_told_when_to_come_back_if_the_code_asks_for_it() {
    let server = server_with_route("topic = \"t\"\nevents = [\"open\"]", "");
    let mut consumer = server.consumer("t");
    for (code, is_told) in [(1000, false), (1001, true), (1008, false), (1013, true), (4000, false)]
    {
        let mut device = device(&server, "/ws");
        let client = consumer.event()["c"].as_str().expect("an id").to_owned();
        conn_call(&server, &client, "close", json!([code, "why"]));
        if is_told {
            let hint = json_of(&mut device);
            assert_eq!((&hint["e"], &hint["p"]["code"]), (&json!("closing"), &json!(code)));
            assert!(hint["p"]["after_ms"].as_u64().is_some_and(|ms| ms < 1000), "{hint}");
        }
        assert_eq!(device.closed(), (code, "why".into()));
    }
}
