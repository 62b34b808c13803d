//! Sinks over real sockets: a webhook that works, is down, slow, or fails. The test answers every request itself.

#![forbid(unsafe_code)]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use support::{Asked, Server, Service, Socket, refusing_port, until};

/// A server whose topic `orders` has a sink with these keys for a webhook at `address`.
fn server(address: impl std::fmt::Display, keys: &str) -> Server {
    Server::start(&config(address, keys))
}

fn config(address: impl std::fmt::Display, keys: &str) -> String {
    format!(
        "{}[[sink]]\nname = \"s\"\ntopic = \"orders\"\n\
         webhook = {{ url = \"http://{address}/events?a=1\"{keys} }}\n",
        base()
    )
}

fn base() -> &'static str {
    "[node]\ncores = 2\n[api]\nbind = \"127.0.0.1:0\"\n[[edge]]\nbind = \"127.0.0.1:0\"\n\
     [[edge.route]]\npath = \"/in\"\ntopic = \"orders\"\n"
}

fn events(asked: &Asked) -> Vec<Value> {
    serde_json::from_str(&asked.body).expect("an array of events")
}

fn data(event: &Value) -> &str {
    event["data"]["d"]["frame"]["data"].as_str().expect("a message")
}

fn metric(server: &Server, name: &str) -> u64 {
    let (text, sample) =
        (server.get("/metrics").body, format!("gridcast_sink_{name}{{sink=\"s\"}} "));
    let value = text.lines().find_map(|line| line.strip_prefix(&sample));
    value.unwrap_or_else(|| panic!("{name} is in {text}")).parse().expect("a number")
}

#[test]
fn a_webhook_gets_signed_cloud_events_and_its_2xx_acknowledges_them() {
    let service = Service::start();
    let server = server(service.address, ", secret = \"hush\"");
    let mut device = server.device("/in");
    device.send_text("one");
    let asked = service.next();
    assert!(asked.head.starts_with("POST /events?a=1 HTTP/1.1\r\n"), "{}", asked.head);
    assert_eq!(asked.header("content-type"), Some("application/cloudevents-batch+json"));
    let signature = asked.header("gridcast-signature").expect("it is signed");
    let (time, hex) = signature.split_once(",v1=").expect("two parts");
    let time = time.strip_prefix("t=").expect("a time");
    let mut mac = Hmac::<Sha256>::new_from_slice(b"hush").expect("any key");
    mac.update(format!("{time}.{}", asked.body).as_bytes());
    let expected: String =
        mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, expected);
    let [event] = &events(&asked)[..] else { panic!("{}", asked.body) };
    assert_eq!(event["specversion"], "1.0");
    assert_eq!(event["source"], "/gridcast/topics/orders");
    assert_eq!(event["type"], "gridcast.message");
    assert_eq!(event["subject"], event["data"]["c"]);
    assert_eq!((&event["data"]["t"], data(event)), (&json!("orders"), "one"));
    let id = event["id"].as_str().expect("an id").to_owned();
    assert!(id.starts_with("1.") && id.ends_with(".orders.0"), "{id}");
    assert_eq!(metric(&server, "lag_events"), 1);
    asked.answer(204, "");
    until(|| metric(&server, "delivered_total") == 1 && metric(&server, "lag_events") == 0);
    device.send_text("two");
    let asked = service.next();
    assert_eq!(data(&events(&asked)[0]), "two");
    asked.answer(200, "accepted");
    until(|| metric(&server, "batches_total") == 2);
}

#[test]
fn a_service_that_is_down_fails_or_is_slow_gets_the_same_batch_again_with_the_same_ids() {
    let (socket, address) = refusing_port();
    let mut server = server(address, ", timeout_ms = 2000, in_flight = 1");
    let mut device = server.device("/in");
    device.send_text("one");
    server.logs("its events are sent again");
    until(|| metric(&server, "up") == 0);
    let list = server.backend().done("topic.list", &json!({}));
    let orders = list["topics"].as_array().expect("a list").iter().find(|row| row["t"] == "orders");
    let sink = &orders.expect("the topic")["sinks"][0];
    assert_eq!(
        (&sink["name"], &sink["backlog"], &sink["up"]),
        (&json!("s"), &json!(1), &json!(false))
    );
    assert!(sink["error"].as_str().is_some_and(|why| !why.is_empty()), "{sink}");
    assert!(sink["retries"].as_u64() > Some(0), "{sink}");
    let service = Service::on(socket);
    let first = service.next();
    let body = first.body.clone();
    first.answer(500, "");
    let second = service.next();
    assert_eq!(second.body, body);
    device.send_text("two");
    second.answer_with(302, "Location: /other\r\n", "");
    // Not answered in time.
    let late = service.next();
    assert_eq!(late.body, body, "the second event waits for the first");
    // The connection breaks.
    let broken = service.next();
    assert_eq!(broken.body, body);
    drop(broken);
    let last = service.next();
    assert_eq!(last.body, body);
    last.answer(200, "");
    let asked = service.next();
    assert_eq!(data(&events(&asked)[0]), "two");
    asked.answer(200, "");
    server.logs("works again");
    until(|| metric(&server, "delivered_total") == 2 && metric(&server, "up") == 1);
    assert!(metric(&server, "retries_total") >= 5);
    drop(late);
}

#[test]
fn a_pause_that_the_service_asks_for_is_kept() {
    let service = Service::start();
    let server = server(service.address, "");
    server.device("/in").send_text("one");
    let asked = service.next();
    let since = Instant::now();
    asked.answer_with(429, "Retry-After: 1\r\n", "");
    service.next().answer(200, "");
    assert!(since.elapsed() >= Duration::from_secs(1), "{:?}", since.elapsed());
    until(|| metric(&server, "lag_events") == 0);
}

#[test]
fn the_events_of_each_client_arrive_in_order_though_attempts_fail() {
    let service = Service::start();
    let server = server(service.address, ", batch = 5, in_flight = 3");
    let mut devices: Vec<Socket> = (0..8).map(|_| server.device("/in")).collect();
    for number in 0..30 {
        for device in &mut devices {
            device.send_text(&number.to_string());
        }
    }
    let mut stored: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    let (mut count, mut asked_times) = (0, 0_u32);
    while count < 240 {
        let asked = service.next();
        asked_times += 1;
        if asked_times % 4 == 0 {
            asked.answer(503, "");
            continue;
        }
        let batch = events(&asked);
        assert!(batch.len() <= 5);
        for event in &batch {
            let client = event["subject"].as_str().expect("a client").to_owned();
            stored.entry(client).or_default().push(data(event).parse().expect("a number"));
        }
        count += batch.len();
        asked.answer(200, "");
    }
    assert_eq!(stored.len(), 8);
    let all: Vec<u32> = (0..30).collect();
    assert!(stored.values().all(|numbers| *numbers == all), "{stored:?}");
    until(|| metric(&server, "lag_events") == 0);
}

#[test]
fn the_calls_of_an_answer_are_carried_out_in_order_before_the_batch_is_acknowledged() {
    let service = Service::start();
    let server = server(service.address, "");
    let mut consumer = server.backend();
    // With a warning: no route feeds this topic.
    let answer = consumer.ask("queue.pop", &json!({"t": ["others"]}));
    assert!(answer["E"].is_null(), "{answer}");
    let (mut first, mut second) = (server.device("/in"), server.device("/in"));
    first.send_text("one");
    let asked = service.next();
    let client = events(&asked)[0]["subject"].clone();
    let send = |text: &str| json!({"m": "mesh.send", "p": {"c": client, "d": text}, "i": 5});
    let calls = json!([
        send("a"),
        {"m": "conn.call", "p": {"c": client, "f": "subscribe", "a": ["news"]}},
        {"m": "mesh.publish", "p": {"c": "news", "d": "b"}},
        // None of these can be carried out, and none holds up the others.
        {"m": "mesh.send", "p": {"c": "1", "d": "x"}},
        {"m": "queue.pop", "p": {"t": ["others"]}},
        {"m": "admin.reload"},
        7,
        send("c"),
        {"m": "queue.push", "p": {"t": "others", "d": "d"}},
        send("e"),
    ]);
    asked.answer(200, &calls.to_string());
    for text in ["a", "b", "c", "e"] {
        assert_eq!(first.text(), text);
    }
    assert_eq!(consumer.event()["d"]["data"], "d");
    until(|| metric(&server, "delivered_total") == 1);
    assert_eq!((metric(&server, "calls_total"), metric(&server, "failed_calls_total")), (10, 4));
    second.send_text("two");
    // Calls for many turns of two shards.
    let asked = service.next();
    let client = events(&asked)[0]["subject"].clone();
    let calls = (0..500)
        .map(|number| json!({"m": "mesh.send", "p": {"c": client, "d": number.to_string()}}));
    asked.answer(200, &json!(calls.collect::<Vec<_>>()).to_string());
    for number in 0..500 {
        assert_eq!(second.text(), number.to_string());
    }
}

#[test]
fn an_answer_that_is_too_long_acknowledges_the_batch_and_its_calls_are_left_out() {
    let service = Service::start();
    let mut server = server(service.address, "");
    let mut device = server.device("/in");
    device.send_text("one");
    let asked = service.next();
    let client = events(&asked)[0]["subject"].clone();
    let send =
        |text: String| json!([{"m": "mesh.send", "p": {"c": client, "d": text}}]).to_string();
    asked.answer(200, &send("x".repeat(1 << 20)));
    server.logs("the answer is longer than 1048576 bytes; none of its calls is carried out");
    until(|| metric(&server, "delivered_total") == 1 && metric(&server, "lag_events") == 0);
    assert_eq!(metric(&server, "failed_calls_total"), 1);
    device.send_text("two");
    service.next().answer(200, &send("y".into()));
    assert_eq!(device.text(), "y");
}

#[test]
fn a_consumer_that_names_no_group_is_told_that_the_topic_has_no_default_group() {
    let service = Service::start();
    let server = server(service.address, "");
    let mut backend = server.backend();
    let answer = backend.ask("queue.pop", &json!({"t": ["orders"]}));
    assert_eq!(answer["E"]["c"], 201, "{answer}");
    let why = answer["E"]["m"].as_str().expect("a reason");
    assert!(why.contains("default_group = true"), "{why}");
}

#[test]
fn with_default_group_the_sink_and_the_consumers_get_every_event() {
    let service = Service::start();
    let topic = "[[topic]]\nname = \"orders\"\ndefault_group = true\n";
    let server = Server::start(&format!("{}{topic}", config(service.address, "")));
    let mut consumer = server.consumer("orders");
    server.device("/in").send_text("one");
    assert_eq!(consumer.data(), "one");
    let asked = service.next();
    assert_eq!(data(&events(&asked)[0]), "one");
    asked.answer(200, "");
    until(|| metric(&server, "lag_events") == 0);
}

#[test]
fn a_node_that_shuts_down_waits_until_its_sinks_have_delivered() {
    let service = Service::start();
    let mut server = server(service.address, "");
    let mut device = server.device("/in");
    device.send_text("one");
    let asked = service.next();
    server.terminate();
    server.logs("shutting down");
    // Refused, so that the event is sent once more while the node drains.
    asked.answer(500, "");
    let again = service.next();
    assert_eq!(data(&events(&again)[0]), "one");
    again.answer(200, "");
    let (code, lines) = server.finish();
    assert_eq!(code, Some(0), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains("not all work was finished")), "{lines:?}");
}

#[test]
fn a_reload_adds_changes_and_removes_sinks() {
    let (first, second) = (Service::start(), Service::start());
    let mut server = Server::start(base());
    let mut device = server.device("/in");
    server.reload(&config(first.address, ""));
    server.logs("sink[\"s\"]: added");
    device.send_text("one");
    let asked = first.next();
    assert_eq!(data(&events(&asked)[0]), "one");
    // The events that the old service has not acknowledged go to the new one.
    server.reload(&config(second.address, ", secret = \"hush\""));
    server.logs("webhook.secret: set");
    let again = second.next();
    assert_eq!(again.body, asked.body);
    again.answer(200, "");
    until(|| metric(&server, "lag_events") == 0);
    server.reload(base());
    server.logs("sink[\"s\"]: removed");
    let mut consumer = server.consumer("orders");
    device.send_text("two");
    assert_eq!(consumer.data(), "two", "the default group is back");
}

#[test]
fn a_sink_that_a_reload_adds_leaves_a_default_group_in_use_alone_and_says_so() {
    let service = Service::start();
    let mut server = Server::start(base());
    let mut consumer = server.consumer("orders");
    server.reload(&config(service.address, ""));
    server.logs("keeps its default group");
    server.device("/in").send_text("one");
    assert_eq!(consumer.data(), "one");
    assert_eq!(data(&events(&service.next())[0]), "one");
}

#[test]
fn neither_the_log_nor_metrics_nor_a_reload_show_a_secret() {
    let (_socket, address) = refusing_port();
    let mut server = server(address, ", secret = \"hush-hush\"");
    server.device("/in").send_text("one");
    server.logs("its events are sent again");
    let metrics = server.get("/metrics").body;
    server.configure(&config(address, ", secret = \"hush-hush-hush\""));
    let answer = server.post("/v1/admin/reload", "{}");
    assert!(answer.contains("webhook.secret: changed"), "{answer}");
    server.interrupt();
    server.kill();
    let (_, lines) = server.finish();
    for text in lines.iter().chain([&metrics, &answer]) {
        assert!(!text.contains("hush") && !text.contains("a=1"), "{text}");
    }
}
