//! Clients, channels and topics over real sockets: sections 4 to 6 of the specification.

#![forbid(unsafe_code)]

mod support;

use std::collections::HashMap;
use std::io::Write;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use support::{CONFIG, DEADLINE, Http, Message, SUCCESS, Server, Socket, frame, until};

/// A server whose edge has one route, `/ws`, with these keys; then further sections.
fn server_with_route(keys: &str, sections: &str) -> Server {
    Server::start(&format!(
        "[node]\ncores = 2\n[api]\nbind = \"127.0.0.1:0\"\n[[edge]]\nbind = \"127.0.0.1:0\"\n\
         [[edge.route]]\npath = \"/ws\"\n{keys}\n{sections}"
    ))
}

/// A `conn.call` over HTTP that has to succeed; its result.
#[track_caller]
fn conn_call(server: &Server, client: &str, function: &str, arguments: Value) -> Value {
    let request = json!({"c": client, "f": function, "a": arguments}).to_string();
    let answer: Value =
        serde_json::from_str(&server.post("/v1/conn/call", &request)).expect("an answer is JSON");
    assert_eq!(answer["E"], Value::Null, "{answer}");
    answer["r"].clone()
}

/// Writes bytes from a thread of their own, so that the test may read meanwhile.
fn write_aside(socket: &Socket, bytes: Vec<u8>) -> JoinHandle<()> {
    let mut writer = socket.writer();
    // A server that closes the connection ends the writing; what the test reads tells of it.
    thread::spawn(move || drop(writer.write_all(&bytes)))
}

/// The numbers of `range`, each as a text message.
fn numbers(range: std::ops::Range<u32>) -> Vec<u8> {
    range.flat_map(|number| frame(0x81, number.to_string().as_bytes())).collect()
}

fn status_of_refusal(server: &Server, path: &str, headers: &str) -> Option<u16> {
    Socket::connect(server.edge, path, headers).err().map(|response| response.status)
}

// Routes and the handshake.

#[test]
fn channels_named_at_connect_are_subscribed() {
    let server = Server::new();
    let mut client = server.device("/ws?x=1&channels=a,caf%C3%A9");
    for channel in ["a", "café"] {
        assert_eq!(server.publish(channel, channel), (1, 0));
        assert_eq!(client.text(), channel);
    }
}

#[test]
fn a_channel_that_the_route_does_not_allow_gets_403() {
    let server = Server::new();
    let mut allowed = server.device("/private?channels=user-1,news");
    assert_eq!(server.publish("user-1", "x"), (1, 0));
    assert_eq!(allowed.text(), "x");
    for channels in ["users", "news2", "news,other", "*", "user"] {
        let path = format!("/private?channels={channels}");
        assert_eq!(status_of_refusal(&server, &path, ""), Some(403), "{channels}");
    }
    assert_eq!(server.publish("news", "x"), (1, 0));
}

#[test]
fn a_route_without_patterns_allows_no_channel() {
    let server = Server::new();
    assert_eq!(status_of_refusal(&server, "/echo?channels=a", ""), Some(403));
}

#[test]
fn an_unknown_route_gets_404() {
    let server = Server::new();
    for path in ["/", "/wss", "/ws/", "/ws/v1", "/v1/mesh/publish"] {
        assert_eq!(status_of_refusal(&server, path, ""), Some(404), "{path}");
    }
}

#[test]
fn plain_get_of_a_route_gets_426() {
    let server = Server::new();
    let response = support::http(server.edge, "GET /ws HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!((response.status, response.header("upgrade")), (426, Some("websocket")));
}

#[test]
fn another_websocket_version_gets_426_with_ours() {
    let server = Server::new();
    let request =
        Socket::upgrade_request(server.edge, "/ws", "").replace("Version: 13", "Version: 12");
    let response = support::http(server.edge, request);
    assert_eq!((response.status, response.header("sec-websocket-version")), (426, Some("13")));
}

#[test]
fn an_origin_that_the_route_does_not_list_gets_403() {
    let server = server_with_route("origins = [\"https://app.example\"]", "");
    let origin = |origin| format!("Origin: https://{origin}\r\n");
    assert_eq!(status_of_refusal(&server, "/ws", &origin("evil.example")), Some(403));
    assert_eq!(status_of_refusal(&server, "/ws", &origin("app.example")), None);
}

#[test]
fn a_second_edge_serves_its_own_routes() {
    let edge = "[[edge]]\nbind = \"127.0.0.1:0\"\n[[edge.route]]\npath = \"/first\"\n[[edge]]";
    let server = Server::start(&CONFIG.replace("[[edge]]", edge));
    assert_eq!(status_of_refusal(&server, "/first", ""), None);
    assert_eq!(status_of_refusal(&server, "/ws", ""), Some(404));
}

#[test]
fn a_half_open_handshake_is_closed_in_time() {
    let server = Server::with("[limits]\nhandshake_ms = 100");
    for address in [server.edge, server.api] {
        for bytes in ["", "GET /ws HTTP/1.1\r\nHost:"] {
            let mut connection = Http::connect(address);
            connection.send(bytes);
            connection.rest();
        }
    }
}

// Publishing.

#[test]
fn a_thousand_subscribers_on_all_shards_get_each_message_once() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("its maximum");
    let server = Server::new();
    let mut clients: Vec<_> = (0..1000).map(|_| server.device("/ws?channels=all")).collect();
    for data in ["first", "second"] {
        assert_eq!(server.publish("all", data), (1000, 0));
    }
    for client in &mut clients {
        assert_eq!([client.text(), client.text()], ["first", "second"]);
    }
}

#[test]
fn a_client_subscribed_twice_gets_a_message_once() {
    let server = Server::new();
    let mut consumer = server.consumer("messages");
    let mut client = server.device("/ws?channels=a,a");
    let id = consumer.opened();
    conn_call(&server, &id, "subscribe", json!(["a", "a"]));
    for data in ["first", "second"] {
        assert_eq!(server.publish("a", data), (1, 0));
        assert_eq!(client.text(), data);
    }
    conn_call(&server, &id, "unsubscribe", json!(["a"]));
    assert_eq!(server.publish("a", "third"), (0, 0));
}

#[test]
fn binary_data_passes_both_ways() {
    let server = Server::new();
    let mut consumer = server.consumer("plain");
    let mut client = server.device("/plain?channels=a");
    client.send_binary(&[0, 0xff, 0x80]);
    let event = consumer.event();
    let frame = &event["d"]["frame"];
    assert_eq!((&frame["type"], &frame["data"]), (&json!("binary"), &json!("AP+A")));
    let id = event["c"].as_str().expect("an id");
    let request = format!(r#"{{"c":"{id}","d":"AP+A","t":"binary"}}"#);
    assert_eq!(server.post("/v1/mesh/send", &request), r#"{"E":null,"r":{"s":true}}"#);
    assert_eq!(client.read(), Message::Binary(vec![0, 0xff, 0x80]));
}

#[test]
fn ten_thousand_published_messages_arrive_in_order() {
    let server = Server::new();
    let mut clients = [(); 12].map(|()| server.device("/ws?channels=a"));
    let mut backend = server.backend();
    let publish = |number| format!(r#"{{"m":"mesh.publish","p":{{"c":"a","d":"{number}"}}}}"#);
    let requests = (0..10_000).flat_map(|number| frame(0x81, publish(number).as_bytes()));
    let sent = write_aside(&backend, requests.collect());
    for _ in 0..10_000 {
        assert_eq!(backend.text(), r#"{"E":null,"r":{"s":12,"f":0},"i":null}"#);
    }
    sent.join().expect("all was sent");
    for number in 0..10_000 {
        for client in &mut clients {
            assert_eq!(client.text(), number.to_string());
        }
    }
}

#[test]
fn sends_and_publishes_of_one_connection_arrive_in_order() {
    let server = Server::new();
    let (mut client, id) = server.client();
    conn_call(&server, &id, "subscribe", json!(["a"]));
    // Enough connections for one on another shard than the client's.
    for _ in 0..8 {
        let mut backend = server.backend();
        for number in (0..200).step_by(2) {
            let send = format!(r#"{{"m":"mesh.send","p":{{"c":"{id}","d":"{number}"}}}}"#);
            let next = number + 1;
            let publish = format!(r#"{{"m":"mesh.publish","p":{{"c":"a","d":"{next}"}}}}"#);
            backend.send(&[send, publish].map(|text| frame(0x81, text.as_bytes())).concat());
        }
        for number in 0..200 {
            assert_eq!(client.text(), number.to_string());
        }
    }
}

#[test]
fn a_publish_right_after_a_subscribe_reaches_the_client() {
    let server = Server::new();
    let mut consumer = server.consumer("messages");
    let mut clients: Vec<_> = (0..10)
        .map(|_| {
            let client = server.device("/ws");
            (client, consumer.opened())
        })
        .collect();
    // Several connections of each kind, so that subscriber, publisher and client differ in shard.
    let mut backends = [(); 8].map(|()| server.backend());
    for round in 0..1000 {
        let (client, id) = &mut clients[round % 10];
        let subscribe = format!(
            r#"{{"m":"conn.call","p":{{"c":"{id}","f":"subscribe","a":["{round}"]}},"i":12345}}"#
        );
        assert_eq!(backends[round % 8].call(&subscribe), SUCCESS);
        let publish =
            format!(r#"{{"m":"mesh.publish","p":{{"c":"{round}","d":"{round}"}},"i":1}}"#);
        let answer = backends[round * 3 % 7].call(&publish);
        assert_eq!(answer, r#"{"E":null,"r":{"s":1,"f":0},"i":1}"#, "round {round}");
        assert_eq!(client.text(), round.to_string());
    }
}

// Slow and broken clients.

/// Publishes until a message fails at a client that does not read, while `reader` gets each.
#[track_caller]
fn publish_until_one_fails(server: &Server, reader: &mut Socket) {
    let data = "x".repeat(16_384);
    for _ in 0..4_000 {
        let counts = server.publish("a", &data);
        assert_eq!(reader.text(), data);
        if counts != (2, 0) {
            assert_eq!(counts, (1, 1));
            return;
        }
    }
    panic!("all that was published fitted somewhere");
}

#[test]
fn a_client_that_does_not_read_delays_no_other_and_is_closed_with_1013() {
    let server = Server::with("[limits]\noutbound_bytes = 131072");
    let mut consumer = server.consumer("messages");
    let mut stalled = Socket::connect_with_small_buffer(server.edge, "/ws?channels=a");
    let id = consumer.opened();
    let mut reader = server.device("/plain?channels=a");
    publish_until_one_fails(&server, &mut reader);
    assert_eq!(stalled.closed().0, 1013);
    let event = consumer.event();
    assert_eq!((&event["c"], &event["d"]["code"]), (&json!(id), &json!(1013)));
    assert_eq!(server.publish("a", "end"), (1, 0));
    assert_eq!(reader.text(), "end");
}

#[test]
fn a_slow_client_may_be_kept_and_lose_only_messages() {
    let server = Server::with("[limits]\noutbound_bytes = 131072\nslow_client = \"drop\"");
    let mut stalled = Socket::connect_with_small_buffer(server.edge, "/ws?channels=a");
    let mut reader = server.device("/plain?channels=a");
    publish_until_one_fails(&server, &mut reader);
    // It takes messages again once it has read, and what it gets is whole.
    until(|| {
        assert_eq!(stalled.text().len(), 16_384);
        server.publish("a", "end") == (2, 0)
    });
    while stalled.text() != "end" {}
}

#[test]
fn a_message_larger_than_the_outbound_buffer_is_counted_as_failed() {
    let server = Server::with("[limits]\noutbound_bytes = 131072\nslow_client = \"drop\"");
    let mut client = server.device("/ws?channels=a");
    assert_eq!(server.publish("a", &"x".repeat(500_000)), (0, 1));
    assert_eq!(server.publish("a", "small"), (1, 0));
    assert_eq!(client.text(), "small");
}

#[test]
fn a_reset_by_the_client_frees_it() {
    let server = Server::new();
    let mut consumer = server.consumer("messages");
    let client = server.device("/ws?channels=a");
    let id = consumer.opened();
    assert_eq!(server.publish("a", "x"), (1, 0));
    client.reset();
    let event = consumer.event();
    assert_eq!((&event["c"], &event["d"]["code"]), (&json!(id), &json!(1006)));
    assert_eq!(server.publish("a", "x"), (0, 0));
}

#[test]
fn a_connection_that_ends_without_a_close_frame_frees_it() {
    let server = Server::new();
    let mut consumer = server.consumer("messages");
    drop(server.device("/ws?channels=a"));
    consumer.opened();
    assert_eq!(consumer.event()["d"]["code"], 1006);
    assert_eq!(server.publish("a", "x"), (0, 0));
}

#[test]
fn a_thousand_clients_that_reset_leave_nothing_behind() {
    let server = Server::new();
    for _ in 0..1000 {
        server.device("/plain?channels=a").reset();
    }
    until(|| server.publish("a", "x") == (0, 0));
}

#[test]
fn a_client_that_answers_no_ping_is_closed() {
    let server = Server::with("[limits]\nping_ms = 50\nidle_ms = 200");
    let mut client = server.device("/ws");
    assert!(matches!(client.read(), Message::Ping(_)));
    client.ended();
}

#[test]
fn a_client_that_answers_pings_stays() {
    let server = Server::with("[limits]\nping_ms = 50\nidle_ms = 200");
    let mut client = server.device("/echo");
    for _ in 0..10 {
        match client.read() {
            Message::Ping(data) => client.send_pong(&data),
            other => panic!("not a ping: {other:?}"),
        }
    }
    client.send_text("still here");
    while client.read() != Message::Text("still here".into()) {}
}

// Events.

#[test]
fn an_open_event_tells_how_the_client_came() {
    let server = Server::new();
    let mut consumer = server.consumer("messages");
    let path = "/ws?channels=a&token=x%20y";
    let client = Socket::connect(server.edge, path, "X-Token: abc\r\n").expect("granted");
    let event = consumer.event();
    let d = &event["d"];
    assert_eq!((&d["event"], &d["path"]), (&json!("open"), &json!("/ws")));
    assert_eq!(d["query"], json!({"channels": "a", "token": "x y"}));
    assert_eq!(d["headers"]["x-token"], "abc", "{d}");
    assert_eq!(d["remote"], client.address().to_string());
}

#[test]
fn a_close_event_tells_how_the_client_went() {
    let server = Server::new();
    let mut consumer = server.consumer("messages");
    let mut client = server.device("/ws");
    let id = consumer.opened();
    conn_call(&server, &id, "set_context_value", json!(["user_id", 10000]));
    client.send_close(4001, "bye");
    assert_eq!(client.closed().0, 4001);
    let d = json!({"event": "close", "code": 4001, "reason": "bye", "context": {"user_id": 10000}});
    assert_eq!(consumer.event()["d"], d);
}

#[test]
fn a_close_frame_without_a_code_is_reported_as_1005() {
    let server = Server::new();
    let mut consumer = server.consumer("messages");
    let mut client = server.device("/ws");
    consumer.opened();
    client.send(&frame(0x88, b""));
    client.ended();
    let d = consumer.event()["d"].take();
    assert_eq!((&d["code"], &d["reason"]), (&json!(1005), &json!("")));
}

#[test]
fn a_route_reports_only_the_events_that_it_names() {
    let server = Server::new();
    let mut consumer = server.consumer("plain");
    let mut client = server.device("/plain");
    client.send_text("first");
    client.send_close(1000, "");
    client.ended();
    server.device("/plain").send_text("second");
    assert_eq!([consumer.data(), consumer.data()], ["first", "second"]);
}

// Frames.

#[test]
fn an_echo_has_every_length_of_frame() {
    let server = Server::new();
    let mut client = server.device("/echo");
    for length in [0, 1, 125, 126, 65_535, 65_536, 1 << 20] {
        client.send_binary(&vec![0xa5; length]);
        assert_eq!(client.read(), Message::Binary(vec![0xa5; length]));
        client.send_text(&"a".repeat(length));
        assert_eq!(client.read(), Message::Text("a".repeat(length)));
    }
}

#[test]
fn fragments_are_put_together_around_control_frames() {
    let server = Server::new();
    let mut client = server.device("/echo");
    for (first, part) in [
        (0x01, "h".as_bytes()),
        (0x89, b"1"),
        (0x00, "é".as_bytes()),
        (0x8a, b""),
        (0x89, b"2"),
        (0x00, &[0xf0, 0x9f]),
        (0x80, &[0x98, 0x80]),
    ] {
        client.send(&frame(first, part));
    }
    assert_eq!(client.read(), Message::Pong(b"1".into()));
    assert_eq!(client.read(), Message::Pong(b"2".into()));
    assert_eq!(client.read(), Message::Text("hé\u{1f600}".into()));
}

#[test]
fn frames_sent_byte_by_byte_are_read() {
    let server = Server::new();
    let mut client = server.device("/echo");
    let bytes = [frame(0x01, b"he"), frame(0x89, b"x"), frame(0x80, &[b'l'; 200])].concat();
    bytes.chunks(1).for_each(|byte| client.send(byte));
    assert_eq!(client.read(), Message::Pong(b"x".into()));
    assert_eq!(client.read(), Message::Text(format!("he{}", "l".repeat(200))));
}

#[test]
fn what_breaks_the_protocol_is_closed_with_1002() {
    let server = Server::new();
    for (rule, bytes) in [
        ("a client masks", vec![0x81, 1, b'x']),
        ("no reserved bit", frame(0xc1, b"x")),
        ("no unknown data opcode", frame(0x83, b"x")),
        ("no unknown control opcode", frame(0x8b, b"x")),
        ("no long ping", frame(0x89, &[0; 126])),
        ("no fragment of a ping", frame(0x09, b"x")),
        ("no end without a start", frame(0x80, b"x")),
        ("no start inside a message", [frame(0x01, b"x"), frame(0x81, b"y")].concat()),
        ("no half code", frame(0x88, &[3])),
        ("no reserved code", frame(0x88, &1005_u16.to_be_bytes())),
        ("no code below 1000", frame(0x88, &999_u16.to_be_bytes())),
    ] {
        let mut client = server.device("/echo");
        client.send(&bytes);
        assert_eq!(client.closed().0, 1002, "{rule}");
        client.ended();
    }
}

#[test]
fn a_message_beyond_its_limit_is_closed_with_1009() {
    let server = Server::new();
    let whole = frame(0x82, &[0; 65_537]);
    let fragments = [frame(0x02, &[0; 40_000]), frame(0x80, &[0; 40_000])].concat();
    for bytes in [whole, fragments] {
        let mut client = server.device("/ws");
        write_aside(&client, bytes);
        assert_eq!(client.closed().0, 1009);
    }
}

#[test]
fn a_message_at_its_limit_is_taken() {
    let server = Server::new();
    let mut consumer = server.consumer("plain");
    server.device("/plain").send_text(&"x".repeat(65_536));
    assert_eq!(consumer.data().len(), 65_536);
}

#[test]
fn text_that_is_not_utf_8_is_closed_with_1007() {
    let server = Server::new();
    for bytes in [
        frame(0x81, &[b'a', 0xff]),
        frame(0x81, &[0xc3]),
        frame(0x81, &[0xed, 0xa0, 0x80]),
        [frame(0x01, &[0xc3]), frame(0x80, &[0x28])].concat(),
        frame(0x88, &[0x03, 0xe8, 0xff]),
    ] {
        let mut client = server.device("/echo");
        client.send(&bytes);
        assert_eq!(client.closed().0, 1007, "{bytes:x?}");
    }
}

// Topics.

#[test]
fn ten_thousand_messages_of_a_client_arrive_in_order() {
    let server = Server::new();
    let mut consumer = server.consumer("plain");
    let client = server.device("/plain");
    let sent = write_aside(&client, numbers(0..10_000));
    for number in 0..10_000 {
        assert_eq!(consumer.data(), number.to_string());
    }
    sent.join().expect("all was sent");
}

#[test]
fn competing_consumers_share_the_messages_and_keep_each_client_s_order() {
    const CLIENTS: usize = 20;
    const EACH: usize = 200;
    let server = Server::new();
    let (sender, events) = mpsc::channel();
    for number in 0..2 {
        let (mut consumer, sender) = (server.consumer("plain"), sender.clone());
        thread::spawn(move || {
            while let Ok(Message::Text(text)) = consumer.try_read() {
                sender.send((number, text)).expect("the test waits");
            }
        });
    }
    let clients: Vec<_> = (0..CLIENTS).map(|_| server.device("/plain")).collect();
    clients.iter().for_each(|client| drop(write_aside(client, numbers(0..EACH as u32))));
    let mut next = HashMap::new();
    for _ in 0..CLIENTS * EACH {
        let (consumer, text) = events.recv_timeout(DEADLINE).expect("no message is lost");
        let event: Value = serde_json::from_str(&text).expect("an event is JSON");
        let (first_consumer, number) =
            next.entry(event["p"]["c"].to_string()).or_insert((consumer, 0));
        assert_eq!(event["p"]["d"]["frame"]["data"], number.to_string());
        assert_eq!(*first_consumer, consumer, "a client stays at its consumer");
        *number += 1;
    }
    assert_eq!(next.len(), CLIENTS);
}

#[test]
fn what_a_dead_consumer_was_not_written_goes_to_another_in_order() {
    const MESSAGES: u32 = 300;
    let server = Server::with("[limits]\noutbound_bytes = 262144\nedge_message_bytes = 65536");
    let mut dying = Socket::connect_with_small_buffer(server.api, "/ws/v1");
    let pop = r#"{"m":"queue.pop","p":{"t":["plain"]},"i":12345}"#;
    assert_eq!(dying.call(pop), SUCCESS);
    let mut client = server.device("/plain");
    for number in 0..MESSAGES {
        client.send_text(&format!("{number:060000}"));
    }
    client.synchronise();
    dying.reset();
    let mut other = server.consumer("plain");
    let number = |data: String| data.parse::<u32>().expect("a number");
    // What the kernel had taken for the dead consumer is gone with it; nothing after that is.
    let first = number(other.data());
    assert!(first < MESSAGES - 1, "all went to a consumer that did not read");
    for expected in first + 1..MESSAGES {
        assert_eq!(number(other.data()), expected);
    }
}

#[test]
fn messages_wait_for_a_consumer() {
    let server = Server::new();
    let mut client = server.device("/plain");
    client.send(&numbers(0..100));
    client.synchronise();
    let mut consumer = server.consumer("plain");
    for number in 0..100 {
        assert_eq!(consumer.data(), number.to_string());
    }
}

#[test]
fn messages_outlive_the_client_that_sent_them() {
    let server = Server::new();
    let mut client = server.device("/plain");
    client.send_text("last words");
    client.send_close(1000, "");
    client.ended();
    assert_eq!(server.consumer("plain").data(), "last words");
}

#[test]
fn a_full_topic_holds_its_clients_and_loses_nothing() {
    let server = Server::with("[queue]\ntopic_messages = 4");
    let clients = [(); 3].map(|()| server.device("/plain"));
    let sent = clients.each_ref().map(|client| write_aside(client, numbers(0..2_000)));
    let mut consumer = server.consumer("plain");
    let mut next = HashMap::new();
    for _ in 0..6_000 {
        let event = consumer.event();
        let number = next.entry(event["c"].to_string()).or_insert(0);
        assert_eq!(event["d"]["frame"]["data"], number.to_string());
        *number += 1;
    }
    for thread in sent {
        thread.join().expect("all was sent");
    }
}

#[test]
fn a_full_topic_stops_reading_from_its_clients() {
    let server = Server::with("[queue]\ntopic_messages = 4");
    let mut client = server.device("/plain");
    // Far more than the kernel keeps for one connection: held back, this cannot end by itself.
    let big = frame(0x81, "x".repeat(65_000).as_bytes());
    let sent = write_aside(&client, big.repeat(1_000));
    let mut consumer = server.consumer("plain");
    for _ in 0..1_000 {
        assert_eq!(consumer.data().len(), 65_000);
    }
    sent.join().expect("all was sent");
    client.synchronise();
}

#[test]
fn big_messages_pass_a_small_topic_behind_many_small_ones() {
    let limits = "[limits]\nedge_message_bytes = 250000";
    let queue = "[queue]\ntopic_messages = 8\ntopic_bytes = 1000000";
    let server = Server::with(&format!("{limits}\n{queue}"));
    let mut consumer = server.consumer("plain");
    let small = server.device("/plain");
    write_aside(&small, numbers(0..100));
    (0..100).for_each(|number| assert_eq!(consumer.data(), number.to_string()));
    // Enough clients for one on another shard than the first: room was lent to that one's shard.
    let clients = [(); 8].map(|()| server.device("/plain"));
    for client in &clients {
        write_aside(client, frame(0x81, &[b'x'; 240_000]));
        assert_eq!(consumer.data().len(), 240_000);
    }
}

#[test]
fn a_full_topic_may_drop_its_oldest() {
    let server = Server::with("[queue]\ntopic_messages = 8\nwhen_full = \"drop_oldest\"");
    let mut client = server.device("/plain");
    client.send(&numbers(0..100));
    // A pong would not tell: a client that waits for room is answered its pings all the same.
    until(|| {
        let text = server.get("/metrics").body;
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.map_or(0, |value| value.parse::<u64>().expect("a number"))
        };
        let kept = value("gridcast_topic_messages{topic=\"plain\"}");
        value("gridcast_dropped_total") + kept == 100
    });
    let mut consumer = server.consumer("plain");
    let first = consumer.data().parse().expect("a number");
    // Room that is lent to a shard without messages may take a quarter of the topic.
    assert!((92..=94).contains(&first), "{first} is the oldest of those kept");
    for number in first + 1..100 {
        assert_eq!(consumer.data(), number.to_string());
    }
}

#[test]
fn a_full_topic_may_close_the_client_with_1013() {
    let server = Server::with("[queue]\ntopic_messages = 4\nwhen_full = \"close\"");
    let mut client = server.device("/plain");
    client.send(&numbers(0..100));
    assert_eq!(client.closed().0, 1013);
    let mut consumer = server.consumer("plain");
    assert_eq!([(); 3].map(|()| consumer.data()), ["0", "1", "2"]);
}

#[test]
fn a_route_without_a_topic_discards_what_clients_send() {
    let server = server_with_route("subscribe = [\"*\"]", "");
    let mut client = server.device("/ws?channels=a");
    client.send(&numbers(0..1000));
    client.synchronise();
    assert_eq!(server.publish("a", "x"), (1, 0));
    assert_eq!(client.text(), "x");
}

#[test]
fn a_held_client_s_messages_wait_for_the_key_in_its_context() {
    let server = server_with_route("topic = \"held\"\nhold_until = \"user_id\"", "");
    let mut consumer = server.consumer("held");
    let mut client = server.device("/ws");
    client.send(&numbers(0..3));
    let first = consumer.event();
    assert_eq!(first["d"], json!({"frame": {"type": "text", "data": "0", "finish": true}}));
    let id = first["c"].as_str().expect("an id");
    conn_call(&server, id, "set_context_value", json!(["other", 1]));
    conn_call(&server, id, "set_context_value", json!(["user_id", 10000]));
    for number in 1..3 {
        // The context proves that the message was let through after the key was set.
        let event = consumer.event();
        assert_eq!(event["d"]["frame"]["data"], number.to_string());
        assert_eq!(event["d"]["context"], json!({"other": 1, "user_id": 10000}));
    }
    client.send_text("3");
    assert_eq!(consumer.data(), "3");
}

// Compression.

/// The offer of a browser.
const OFFER: &str = "User-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n\
    Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";

/// A frame, and its payload if it is compressed.
fn compressed(socket: &mut Socket) -> Vec<u8> {
    let Message::Deflated(payload) = socket.read() else { panic!("not compressed") };
    let end = [0, 0, 0xFF, 0xFF, 1, 0, 0, 0xFF, 0xFF];
    miniz_oxide::inflate::decompress_to_vec(&[&payload[..], &end].concat()).expect("DEFLATE")
}

#[test]
fn compression_is_granted_where_the_route_says_so_and_nowhere_else() {
    let server = server_with_route(
        "handler = \"echo\"\ncompression = true",
        "[[edge.route]]\npath = \"/plain\"\nhandler = \"echo\"",
    );
    let grant = |path: &str, headers: &str| {
        let mut http = Http::connect(server.edge);
        http.send(Socket::upgrade_request(server.edge, path, headers));
        http.response().header("sec-websocket-extensions").map(str::to_owned)
    };
    let granted = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
    assert_eq!(grant("/ws", OFFER).as_deref(), Some(granted));
    assert_eq!(grant("/ws", ""), None);
    assert_eq!(grant("/plain", OFFER), None);

    let text = "the same again, ".repeat(20);
    let deflated = [miniz_oxide::deflate::compress_to_vec(text.as_bytes(), 6), vec![0]].concat();
    let mut client = Socket::connect(server.edge, "/ws", OFFER).expect("granted");
    client.send(&frame(0xC1, &deflated));
    assert_eq!(compressed(&mut client), text.as_bytes());
    client.send(&frame(0xC1, &[0]));
    assert_eq!(client.text(), "");
    client.send_text("short");
    assert_eq!(client.text(), "short");
    client.send(&frame(0xC2, &[0xFF; 9]));
    assert_eq!(client.closed().0, 1007);

    let mut client = Socket::connect(server.edge, "/plain", OFFER).expect("granted");
    client.send(&frame(0xC1, &deflated));
    assert_eq!(client.closed().0, 1002);
}

#[test]
fn a_message_that_inflates_beyond_the_limit_closes_with_1009() {
    let keys = "handler = \"echo\"\ncompression = true\nmessage_bytes = 1000";
    let server = server_with_route(keys, "");
    let of = |length: usize| {
        let deflated = miniz_oxide::deflate::compress_to_vec(&vec![b'a'; length], 6);
        frame(0xC1, &[&deflated[..], &[0]].concat())
    };
    let mut client = Socket::connect(server.edge, "/ws", OFFER).expect("granted");
    client.send(&of(1000));
    assert_eq!(compressed(&mut client), [b'a'; 1000]);
    client.send(&of(1001));
    assert_eq!(client.closed().0, 1009);
}

#[test]
fn a_fan_out_compresses_once_for_each_shard_and_window() {
    const CLIENTS: u64 = 10;
    let server = server_with_route("compression = true\nsubscribe = [\"*\"]", "");
    let small = "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=10\r\n";
    let connect =
        |headers| Socket::connect(server.edge, "/ws?channels=a", headers).expect("granted");
    let mut plain: Vec<_> = (0..CLIENTS).map(|_| connect("")).collect();
    let mut large: Vec<_> = (0..CLIENTS).map(|_| connect(OFFER)).collect();
    let mut narrow: Vec<_> = (0..CLIENTS).map(|_| connect(small)).collect();
    let text = "what is new, ".repeat(30);
    assert_eq!(server.publish("a", &text), (3 * CLIENTS, 0));
    plain.iter_mut().for_each(|client| assert_eq!(client.text(), text));
    for client in large.iter_mut().chain(&mut narrow) {
        assert_eq!(compressed(client), text.as_bytes());
    }
    let metrics = server.get("/metrics").body;
    let count = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|count| count.parse::<u64>().ok()).expect("it is counted")
    };
    assert_eq!(count("gridcast_compressed_total"), 2 * CLIENTS);
    // Two shards, two windows.
    assert!((2..=4).contains(&count("gridcast_compressions_total")), "{metrics}");
    assert!(count("gridcast_compression_saved_bytes_total") > 2 * CLIENTS * 300);
}

#[test]
fn a_message_to_one_client_is_compressed_too() {
    let server = server_with_route("topic = \"t\"\nevents = [\"open\"]\ncompression = true", "");
    let mut consumer = server.consumer("t");
    let mut client = Socket::connect(server.edge, "/ws", OFFER).expect("granted");
    let id = consumer.opened();
    let text = "only for you, ".repeat(10);
    let request = json!({"c": id, "d": text}).to_string();
    for _ in 0..4 {
        server.post("/v1/mesh/send", &request);
        assert_eq!(compressed(&mut client), text.as_bytes());
    }
}

// Limits.

/// A limit's count in `/metrics`.
#[track_caller]
fn limit_hit(server: &Server, limit: &str) -> u64 {
    let name = format!("gridcast_limits_hit_total{{limit=\"{limit}\"}} ");
    let text = server.get("/metrics").body;
    let value = text.lines().find_map(|line| line.strip_prefix(&name[..]));
    value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
}

#[test]
fn an_address_has_no_more_connections_than_it_may() {
    let sections = "[limits]\nconnections_per_address = 3\n";
    let server = server_with_route("handler = \"echo\"", sections);
    let mut clients: Vec<Socket> = (0..3).map(|_| server.device("/ws")).collect();
    assert_eq!(Http::connect(server.edge).rest(), b"", "closed without a word");
    assert_eq!(limit_hit(&server, "connections_per_address"), 1);
    server.backend();
    clients.pop();
    // The place of one that is gone is free once the server has heard of it.
    until(|| {
        let request = Socket::upgrade_request(server.edge, "/ws", "");
        Http::connect(server.edge).try_send(request)
    });
    for client in &mut clients {
        client.send_text("still here");
        assert_eq!(client.text(), "still here");
    }
}

#[test]
fn a_client_over_its_rate_is_heard_in_the_end() {
    let server = server_with_route("handler = \"echo\"\nmessages_per_s = 100", "");
    let mut client = server.device("/ws");
    client.send(&numbers(0..150));
    for number in 0..150 {
        assert_eq!(client.text(), number.to_string());
    }
    assert!(limit_hit(&server, "messages_per_s") > 0);
}
