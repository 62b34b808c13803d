//! Every request, response, error and event of the protocol's text, over real sockets.
//!
//! The comment over each test names the heading of `seed/` that it holds to.

#![forbid(unsafe_code)]

mod support;

use support::{Message, SUCCESS, Server, Socket, assert_error};

/// The id of a client that no node ever had.
const NOBODY: &str = "1463786910324359168";

/// Makes a client's message reach a consumer: the event's text.
fn event_of(client: &mut Socket, consumer: &mut Socket, text: &str) -> String {
    client.send_text(text);
    consumer.text()
}

/// A `conn.call` request with the id 12345.
fn conn_call(client: &str, function: &str, arguments: &str) -> String {
    format!(
        r#"{{"m":"conn.call","p":{{"c":"{client}","f":"{function}","a":{arguments}}},"i":12345}}"#
    )
}

/// Asserts that a back end gets `code` for each `p` of method `m`, and that the message of the
/// error names the field at fault.
fn assert_refused(backend: &mut Socket, m: &str, code: u16, params: &[(&str, &str)]) {
    for (field, p) in params {
        let answer = backend.call(&format!(r#"{{"m":"{m}","p":{p},"i":12345}}"#));
        assert_names(assert_error(&answer, code, Some("12345")), field);
    }
}

fn assert_names(message: &str, field: &str) {
    let mut words = message.split(|letter: char| !letter.is_alphanumeric());
    assert!(words.any(|word| word == field), "{message:?} does not name {field:?}");
}

/// Params without one of the fields that `mesh.send` and `mesh.publish` need, or with a wrong one,
/// and the name of that field.
const WRONG_MESSAGES: [(&str, &str); 8] = [
    ("c", r#"{"d":"data"}"#),
    ("c", r#"{"c":true,"d":"data"}"#),
    ("c", r#"{"c":null,"d":"data"}"#),
    ("d", r#"{"c":"1463786910324359168"}"#),
    ("d", r#"{"c":"1463786910324359168","d":7}"#),
    ("t", r#"{"c":"1463786910324359168","d":"data","t":"image"}"#),
    ("t", r#"{"c":"1463786910324359168","d":"data","t":1}"#),
    ("d", r#"{"c":"1463786910324359168","d":"not base64","t":"binary"}"#),
];

// HTTP API. Grid sending: request and response.
#[test]
fn http_send_reaches_the_client() {
    let server = Server::new();
    let (mut client, id) = server.client();
    let answer = server.post("/v1/mesh/send", &format!(r#"{{"c":"{id}","d":"data"}}"#));
    assert_eq!(answer, r#"{"E":null,"r":{"s":true}}"#);
    assert_eq!(client.read(), Message::Text("data".into()));
}

// HTTP API. Grid sending: `t`, binary type.
#[test]
fn http_send_decodes_binary_data() {
    let server = Server::new();
    let (mut client, id) = server.client();
    let request = format!(r#"{{"c":"{id}","d":"AAH+/w==","t":"binary"}}"#);
    assert_eq!(server.post("/v1/mesh/send", &request), r#"{"E":null,"r":{"s":true}}"#);
    assert_eq!(client.read(), Message::Binary(vec![0, 1, 254, 255]));
}

// HTTP API. Grid sending: `t`, text type.
#[test]
fn http_send_takes_text_as_a_type() {
    let server = Server::new();
    let (mut client, id) = server.client();
    let request = format!(r#"{{"c":"{id}","d":"data","t":"text"}}"#);
    assert_eq!(server.post("/v1/mesh/send", &request), r#"{"E":null,"r":{"s":true}}"#);
    assert_eq!(client.read(), Message::Text("data".into()));
}

// HTTP API. Grid sending: error 101.
#[test]
fn http_send_refuses_each_wrong_field() {
    let server = Server::new();
    for (field, body) in WRONG_MESSAGES {
        assert_names(assert_error(&server.post("/v1/mesh/send", body), 101, None), field);
    }
    for id in ["", "x", "-1", "1.5", "18446744073709551616"] {
        let answer = server.post("/v1/mesh/send", &format!(r#"{{"c":"{id}","d":"data"}}"#));
        assert_names(assert_error(&answer, 101, None), "c");
    }
}

// HTTP API. Grid sending: error 401.
#[test]
fn http_send_to_nobody_fails() {
    let server = Server::new();
    let answer = server.post("/v1/mesh/send", &format!(r#"{{"c":"{NOBODY}","d":"data"}}"#));
    assert_error(&answer, 401, None);
}

// HTTP API. Grid publishing: request and response.
#[test]
fn http_publish_counts_three_subscribers() {
    let server = Server::new();
    let clients = [(); 3].map(|()| server.device("/ws?channels=channel1"));
    let _other = server.device("/ws?channels=channel2");
    let answer = server.post("/v1/mesh/publish", r#"{"c":"channel1","d":"data"}"#);
    assert_eq!(answer, r#"{"E":null,"r":{"s":3,"f":0}}"#);
    for mut client in clients {
        assert_eq!(client.read(), Message::Text("data".into()));
    }
}

// HTTP API. Grid publishing: response, `s` and `f`.
#[test]
fn http_publish_to_no_subscriber_counts_zero() {
    let server = Server::new();
    let answer = server.post("/v1/mesh/publish", r#"{"c":"channel1","d":"data"}"#);
    assert_eq!(answer, r#"{"E":null,"r":{"s":0,"f":0}}"#);
}

// HTTP API. Grid publishing: `t`, binary type.
#[test]
fn http_publish_decodes_binary_data() {
    let server = Server::new();
    let mut client = server.device("/ws?channels=channel1");
    let request = r#"{"c":"channel1","d":"AAH+/w==","t":"binary"}"#;
    assert_eq!(server.post("/v1/mesh/publish", request), r#"{"E":null,"r":{"s":1,"f":0}}"#);
    assert_eq!(client.read(), Message::Binary(vec![0, 1, 254, 255]));
}

// HTTP API. Grid publishing: error 101.
#[test]
fn http_publish_refuses_each_wrong_field() {
    let server = Server::new();
    for (field, body) in WRONG_MESSAGES {
        assert_names(assert_error(&server.post("/v1/mesh/publish", body), 101, None), field);
    }
}

// WebSocket API. Ping/Pong: the text.
#[test]
fn ws_ping_text_is_answered_with_pong_text() {
    assert_eq!(Server::new().backend().call("ping"), "pong");
}

// WebSocket API. Ping/Pong: the frame.
#[test]
fn ws_ping_frame_is_answered_with_pong_frame() {
    let server = Server::new();
    let mut backend = server.backend();
    backend.send_ping(b"data");
    assert_eq!(backend.read(), Message::Pong(b"data".into()));
}

// WebSocket API. Consumption Queue: request and response.
#[test]
fn queue_pop_succeeds() {
    let server = Server::new();
    let request = r#"{"m":"queue.pop","p":{"t":["messages"]},"i":12345}"#;
    assert_eq!(server.backend().call(request), SUCCESS);
}

// WebSocket API. Consumption Queue: request, `t` as an array of several topics.
#[test]
fn queue_pop_consumes_every_topic_that_it_names() {
    let server = Server::new();
    let mut consumer = server.backend();
    let request = r#"{"m":"queue.pop","p":{"t":["plain","messages2"]},"i":12345}"#;
    assert_eq!(consumer.call(request), SUCCESS);
    for (path, topic) in [("/plain", "plain"), ("/private", "messages2")] {
        server.device(path).send_text("data");
        assert_eq!(consumer.event()["t"], topic);
    }
}

// WebSocket API. Consumption Queue: event.
#[test]
fn queue_pop_event_has_the_seed_s_shape_to_the_letter() {
    let server = Server::new();
    let mut consumer = server.consumer("messages");
    let mut client = server.device("/ws");
    let id = consumer.opened();
    assert_eq!(
        event_of(&mut client, &mut consumer, "json str"),
        format!(
            r#"{{"e":"queue.pop","p":{{"n":1,"c":"{id}","t":"messages","d":{{"frame":{{"type":"text","data":"json str","finish":true}}}}}},"id":null}}"#
        )
    );
}

// WebSocket API. Consumption Queue: event, `n`.
#[test]
fn queue_pop_event_names_the_node_as_a_number() {
    let config = support::CONFIG.replace("[node]", "[node]\nid = 1023");
    let server = Server::start(&config);
    let mut consumer = server.consumer("plain");
    server.device("/plain").send_text("data");
    assert_eq!(consumer.event()["n"], 1023);
}

// WebSocket API. Consumption Queue: event, `d` of a binary message.
#[test]
fn queue_pop_event_encodes_binary_data() {
    let server = Server::new();
    let mut consumer = server.consumer("plain");
    server.device("/plain").send_binary(&[0, 1, 254, 255]);
    assert_eq!(
        consumer.event()["d"].to_string(),
        r#"{"frame":{"data":"AAH+/w==","finish":true,"type":"binary"}}"#
    );
}

// WebSocket API. Consumption Queue: event, `d` of text that JSON has to escape.
#[test]
fn queue_pop_event_escapes_the_text() {
    let server = Server::new();
    let mut consumer = server.consumer("plain");
    let mut client = server.device("/plain");
    for text in ["", r#"{"a":"\"\\"}"#, "\u{0}\u{1f}\t\r\n\u{7f}", "é\u{1f600}\u{2028}"] {
        client.send_text(text);
        assert_eq!(consumer.data(), text);
    }
}

// WebSocket API. Consumption Queue: error 101.
#[test]
fn queue_pop_refuses_wrong_topics() {
    let server = Server::new();
    let wrong = [
        ("t", "{}"),
        ("t", r#"{"t":[]}"#),
        ("t", r#"{"t":"topic1"}"#),
        ("t", r#"{"t":[1]}"#),
        ("t", r#"{"t":[""]}"#),
        ("p", "null"),
        ("p", "7"),
    ];
    assert_refused(&mut server.backend(), "queue.pop", 101, &wrong);
}

// WebSocket API. Consumption Queue: error 201.
#[test]
fn queue_pop_of_a_topic_beyond_the_limit_fails() {
    let server = Server::with("[queue]\ntopics = 3");
    let mut backend = server.backend();
    let answer = backend.call(r#"{"m":"queue.pop","p":{"t":["a","b","c","d"]},"i":12345}"#);
    assert_error(&answer, 201, Some("12345"));
}

// WebSocket API. Consumption Queue: error 202.
#[test]
fn queue_pop_twice_is_repeated_consumption() {
    let server = Server::new();
    let mut consumer = server.consumer("messages");
    let again = consumer.call(r#"{"m":"queue.pop","p":{"t":["topic2"]},"i":12345}"#);
    assert_error(&again, 202, Some("12345"));
}

// WebSocket API. Cancel queue consumption: request and response.
#[test]
fn queue_unpop_ends_the_consumption() {
    let server = Server::new();
    let mut consumer = server.consumer("plain");
    assert_eq!(consumer.call(r#"{"m":"queue.unpop","p":{},"i":12345}"#), SUCCESS);
    let mut other = server.consumer("plain");
    server.device("/plain").send_text("data");
    assert_eq!(other.data(), "data");
    // Nothing came before this answer: the event went to the other consumer only.
    assert_eq!(consumer.call("ping"), "pong");
}

// WebSocket API. Cancel queue consumption: all topics, and consumption anew.
#[test]
fn queue_pop_succeeds_again_after_unpop() {
    let server = Server::new();
    let mut consumer = server.consumer("plain");
    assert_eq!(consumer.call(r#"{"m":"queue.unpop","p":{},"i":12345}"#), SUCCESS);
    let request = r#"{"m":"queue.pop","p":{"t":["plain"]},"i":12345}"#;
    assert_eq!(consumer.call(request), SUCCESS);
    server.device("/plain").send_text("data");
    assert_eq!(consumer.data(), "data");
}

// WebSocket API. Cancel queue consumption: error 203.
#[test]
fn queue_unpop_without_consumption_fails() {
    let answer = Server::new().backend().call(r#"{"m":"queue.unpop","p":{},"i":12345}"#);
    assert_error(&answer, 203, Some("12345"));
}

// WebSocket API. Remote setting connection context: `set_context_value`.
#[test]
fn set_context_value_shows_in_the_client_s_next_event() {
    let server = Server::new();
    let mut consumer = server.consumer("messages");
    let mut client = server.device("/ws");
    let id = consumer.opened();
    let request = conn_call(&id, "set_context_value", r#"["user_id",10000]"#);
    assert_eq!(server.backend().call(&request), SUCCESS);
    assert_eq!(
        event_of(&mut client, &mut consumer, "x"),
        format!(
            r#"{{"e":"queue.pop","p":{{"n":1,"c":"{id}","t":"messages","d":{{"frame":{{"type":"text","data":"x","finish":true}},"context":{{"user_id":10000}}}}}},"id":null}}"#
        )
    );
}

// WebSocket API. Remote setting connection context: `set_context`.
#[test]
fn set_context_replaces_the_whole_context() {
    let server = Server::new();
    let (_client, id) = server.client();
    let mut backend = server.backend();
    let calls = [("set_context_value", r#"["old",1]"#), ("set_context", r#"[{"user_id":10000}]"#)];
    for (function, arguments) in calls {
        assert_eq!(backend.call(&conn_call(&id, function, arguments)), SUCCESS);
    }
    assert_eq!(
        backend.call(&conn_call(&id, "get_context", "[]")),
        r#"{"E":null,"r":{"s":true,"context":{"user_id":10000}},"i":12345}"#
    );
}

// WebSocket API. Remote setting connection context: error 101.
#[test]
fn conn_call_refuses_wrong_arguments() {
    let server = Server::new();
    let (_client, id) = server.client();
    let mut backend = server.backend();
    for (function, arguments) in [
        ("set_context_value", "[]"),
        ("set_context_value", r#"["key"]"#),
        ("set_context_value", "[1,2]"),
        ("set_context", "[]"),
        ("set_context", "[7]"),
        ("subscribe", "[7]"),
        ("unsubscribe", "[null]"),
        ("subscribe", r#""channel1""#),
        ("close", r#"["1000"]"#),
        ("close", r#"[1005,""]"#),
        ("dance", "[]"),
    ] {
        let answer = backend.call(&conn_call(&id, function, arguments));
        assert_error(&answer, 101, Some("12345"));
    }
}

// WebSocket API. Remote setting connection context: error 101, `c`, `f` and `a` themselves.
#[test]
fn conn_call_refuses_each_wrong_field() {
    let server = Server::new();
    let wrong = [
        ("c", r#"{"f":"info","a":[]}"#),
        ("c", r#"{"c":"x","f":"info","a":[]}"#),
        ("f", r#"{"c":"1","a":[]}"#),
        ("f", r#"{"c":"1","f":7,"a":[]}"#),
        ("a", r#"{"c":"1","f":"subscribe","a":{}}"#),
    ];
    assert_refused(&mut server.backend(), "conn.call", 101, &wrong);
}

// WebSocket API. Remote setting connection context: error 301.
#[test]
fn conn_call_on_nobody_fails() {
    let server = Server::new();
    let mut backend = server.backend();
    for (function, arguments) in [
        ("set_context_value", r#"["user_id",10000]"#),
        ("set_context", r#"[{"user_id":10000}]"#),
        ("subscribe", r#"["channel1","channel2"]"#),
        ("unsubscribe", r#"["channel1","channel2"]"#),
        ("get_context", "[]"),
        ("info", "[]"),
        ("close", r#"[1000,"bye"]"#),
    ] {
        let answer = backend.call(&conn_call(NOBODY, function, arguments));
        assert_error(&answer, 301, Some("12345"));
    }
}

// WebSocket API. Remote operation connection subscription channel: `subscribe`.
#[test]
fn subscribe_takes_effect_on_every_channel_named() {
    let server = Server::new();
    let (mut client, id) = server.client();
    let request = conn_call(&id, "subscribe", r#"["channel1","channel2"]"#);
    assert_eq!(server.backend().call(&request), SUCCESS);
    for channel in ["channel1", "channel2"] {
        assert_eq!(server.publish(channel, channel), (1, 0));
        assert_eq!(client.text(), channel);
    }
}

// WebSocket API. Remote operation connection subscription channel: `unsubscribe`.
#[test]
fn unsubscribe_takes_effect_on_every_channel_named() {
    let server = Server::new();
    let (_client, id) = server.client();
    let mut backend = server.backend();
    let three = r#"["channel1","channel2","channel3"]"#;
    assert_eq!(backend.call(&conn_call(&id, "subscribe", three)), SUCCESS);
    let two = r#"["channel1","channel2"]"#;
    assert_eq!(backend.call(&conn_call(&id, "unsubscribe", two)), SUCCESS);
    let counts = ["channel1", "channel2", "channel3"].map(|channel| server.publish(channel, "x"));
    assert_eq!(counts, [(0, 0), (0, 0), (1, 0)]);
}

// WebSocket API. Remote operation connection subscription channel: error 301.
#[test]
fn subscribe_beyond_the_limit_of_channels_fails() {
    let server = Server::with("[limits]\nchannels_per_client = 2");
    let (_client, id) = server.client();
    let mut backend = server.backend();
    assert_eq!(backend.call(&conn_call(&id, "subscribe", r#"["a","b"]"#)), SUCCESS);
    assert_error(&backend.call(&conn_call(&id, "subscribe", r#"["c"]"#)), 301, Some("12345"));
}

// gridcast's own function of `conn.call`: `get_context`.
#[test]
fn get_context_of_a_new_client_is_empty() {
    let server = Server::new();
    let (_client, id) = server.client();
    assert_eq!(
        server.backend().call(&conn_call(&id, "get_context", "[]")),
        r#"{"E":null,"r":{"s":true,"context":{}},"i":12345}"#
    );
}

// gridcast's own function of `conn.call`: `info`.
#[test]
fn info_describes_the_connection() {
    let server = Server::new();
    let (client, id) = server.client();
    let mut backend = server.backend();
    assert_eq!(backend.call(&conn_call(&id, "subscribe", r#"["channel1"]"#)), SUCCESS);
    let answer = backend.call(&conn_call(&id, "info", "[]"));
    let start =
        format!(r#"{{"E":null,"r":{{"s":true,"node":1,"remote":"{}","since":"#, client.address());
    let rest = answer.strip_prefix(&start).unwrap_or_else(|| panic!("not {start}…: {answer}"));
    let (since, rest) = rest.split_once(',').expect("more fields");
    assert_eq!(rest, r#""channels":["channel1"],"buffered":0},"i":12345}"#);
    // The client id holds the same moment, or a later one if another life of this node, and here that
    // is any other test's, was ahead: 22 bits of node, shard and sequence are under it.
    let opened_ms = (id.parse::<u64>().expect("an id is a number") >> 22) + 1_288_834_974_657;
    assert!(since.parse::<u64>().expect("a moment") < opened_ms + 1_000, "{answer}");
}

// gridcast's own function of `conn.call`: `close`.
#[test]
fn close_ends_the_client_with_its_code_and_reason() {
    let server = Server::new();
    let (mut client, id) = server.client();
    let request = conn_call(&id, "close", r#"[4001,"bye"]"#);
    assert_eq!(server.backend().call(&request), SUCCESS);
    assert_eq!(client.read(), Message::Close(4001, "bye".into()));
}

// WebSocket API. Grid sending: request, whose id the seed names `id`, and response.
#[test]
fn mesh_send_takes_id_for_i() {
    let server = Server::new();
    let (mut client, id) = server.client();
    let request = format!(r#"{{"m":"mesh.send","p":{{"c":"{id}","d":"data"}},"id":12345}}"#);
    assert_eq!(server.backend().call(&request), SUCCESS);
    assert_eq!(client.read(), Message::Text("data".into()));
}

// WebSocket API. Grid sending: request with `i`, binary type.
#[test]
fn mesh_send_decodes_binary_data() {
    let server = Server::new();
    let (mut client, id) = server.client();
    let request =
        format!(r#"{{"m":"mesh.send","p":{{"c":"{id}","d":"AAH+/w==","t":"binary"}},"i":12345}}"#);
    assert_eq!(server.backend().call(&request), SUCCESS);
    assert_eq!(client.read(), Message::Binary(vec![0, 1, 254, 255]));
}

// WebSocket API. Grid sending: error 101.
#[test]
fn mesh_send_refuses_each_wrong_field() {
    assert_refused(&mut Server::new().backend(), "mesh.send", 101, &WRONG_MESSAGES);
}

// WebSocket API. Grid sending: error 401.
#[test]
fn mesh_send_to_nobody_fails() {
    let request = format!(r#"{{"m":"mesh.send","p":{{"c":"{NOBODY}","d":"data"}},"id":12345}}"#);
    assert_error(&Server::new().backend().call(&request), 401, Some("12345"));
}

// WebSocket API. Grid publishing: request and response, the nine subscribers of the seed.
#[test]
fn mesh_publish_counts_nine_subscribers() {
    let server = Server::new();
    let clients = [(); 9].map(|()| server.device("/ws?channels=channel1"));
    let request = r#"{"m":"mesh.publish","p":{"c":"channel1","d":"data"},"i":12345}"#;
    assert_eq!(server.backend().call(request), r#"{"E":null,"r":{"s":9,"f":0},"i":12345}"#);
    for mut client in clients {
        assert_eq!(client.read(), Message::Text("data".into()));
    }
}

// WebSocket API. Grid publishing: `t`, binary type.
#[test]
fn mesh_publish_decodes_binary_data() {
    let server = Server::new();
    let mut client = server.device("/ws?channels=channel1");
    let request =
        r#"{"m":"mesh.publish","p":{"c":"channel1","d":"AAH+/w==","t":"binary"},"i":12345}"#;
    assert_eq!(server.backend().call(request), r#"{"E":null,"r":{"s":1,"f":0},"i":12345}"#);
    assert_eq!(client.read(), Message::Binary(vec![0, 1, 254, 255]));
}

// WebSocket API. Grid publishing: error 101.
#[test]
fn mesh_publish_refuses_each_wrong_field() {
    assert_refused(&mut Server::new().backend(), "mesh.publish", 101, &WRONG_MESSAGES);
}
