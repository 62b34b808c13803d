//! Consumer groups, `queue.nack`, `queue.push`, timeouts of acknowledgements and dead topics, over sockets.

mod support;

use serde_json::{Value, json};
use support::{Server, Socket};

const TOPIC: &str = r#"
[[topic]]
name = "plain"
groups = ["billing"]
tries = 2
dead = "plain.dead"
"#;

fn consumer(server: &Server, params: &Value) -> Socket {
    let mut consumer = server.backend();
    let answer = consumer.ask("queue.pop", params);
    assert_eq!(answer["r"]["s"], true, "{answer}");
    consumer
}

/// The next event.
fn event(consumer: &mut Socket) -> Value {
    loop {
        let mut message: Value = serde_json::from_str(&consumer.text()).expect("JSON");
        if message["e"] == "queue.pop" {
            break message["p"].take();
        }
    }
}

fn data(event: &Value) -> &str {
    event["d"]["frame"]["data"].as_str().expect("a message of a client")
}

#[test]
fn every_group_gets_every_event_and_an_unknown_group_is_refused() {
    let server = Server::with(TOPIC);
    let mut device = server.device("/plain");
    device.send_text("a");
    device.send_text("b");
    let mut default = consumer(&server, &json!({ "t": ["plain"] }));
    let mut billing = consumer(&server, &json!({ "t": ["plain"], "group": "billing" }));
    for consumer in [&mut default, &mut billing] {
        assert_eq!(data(&event(consumer)), "a");
        assert_eq!(data(&event(consumer)), "b");
    }
    let mut third = server.backend();
    let answer = third.ask("queue.pop", &json!({ "t": ["plain"], "group": "audit" }));
    assert_eq!(answer["E"]["c"], 201);
    let why = "the topic \"plain\" has no group \"audit\" on this node";
    assert_eq!(answer["E"]["m"], why);
    let answer = third.ask("queue.pop", &json!({ "t": ["plain"], "group": "billing" }));
    assert_eq!(answer["r"]["s"], true, "the refused call has left nothing: {answer}");
}

#[test]
fn an_event_that_is_given_back_too_often_goes_to_the_dead_topic() {
    let server = Server::with(TOPIC);
    let mut worker = consumer(&server, &json!({ "t": ["plain"], "a": true }));
    let mut device = server.device("/plain");
    device.send_text("poison");
    let first = event(&mut worker);
    assert_eq!(first["redelivered"], Value::Null);
    worker.ask("queue.nack", &json!({ "g": first["g"] }));
    let second = event(&mut worker);
    assert_eq!((data(&second), &second["redelivered"]), ("poison", &json!(true)));
    worker.ask("queue.nack", &json!({ "g": [second["g"]] }));
    let mut undertaker = consumer(&server, &json!({ "t": ["plain.dead"] }));
    let dead = event(&mut undertaker);
    assert_eq!(
        (data(&dead), &dead["t"], &dead["c"]),
        ("poison", &json!("plain.dead"), &first["c"])
    );
    assert_eq!(dead["dead"], json!({ "t": "plain", "tries": 2, "why": "nack" }));
    // No warning: the configuration names the topic, although no route feeds it.
    let answer = server.backend().ask("queue.pop", &json!({ "t": ["plain.dead"] }));
    assert_eq!(answer["r"], json!({ "s": true }));
    shows_groups(&server);
    device.send_text("food");
    assert_eq!(data(&event(&mut worker)), "food");
}

/// The list of topics and the metrics show that a worker has refused one event twice, and that nobody reads
/// `billing`.
fn shows_groups(server: &Server) {
    let list = server.backend().done("topic.list", &json!({}));
    let topics = list["topics"].as_array().expect("a list");
    let plain = topics.iter().find(|topic| topic["t"] == "plain").expect("the topic");
    let group = |name: Value, [backlog, consumers, redelivered, dead]: [u64; 4]| {
        json!({
            "name": name, "backlog": backlog, "in_flight": 0, "stalled_ms": 0,
            "consumers": consumers, "redelivered": redelivered, "dead": dead,
        })
    };
    let billing = group(json!("billing"), [1, 0, 0, 0]);
    assert_eq!(plain["groups"], json!([group(Value::Null, [0, 1, 1, 1]), billing]));
    let metrics = server.get("/metrics").body;
    for line in [
        r#"gridcast_group_backlog{topic="plain",group="billing"} 1"#,
        r#"gridcast_group_consumers{topic="plain"} 1"#,
        r#"gridcast_group_redelivered_total{topic="plain"} 1"#,
        r#"gridcast_group_dead_total{topic="plain"} 1"#,
        r#"gridcast_group_dead_total{topic="plain",group="billing"} 0"#,
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in {metrics}");
    }
}

#[test]
fn an_event_that_is_not_acknowledged_in_time_goes_to_another_consumer() {
    let server = Server::with("[[topic]]\nname = \"plain\"\nack_s = 1\n");
    let mut late = consumer(&server, &json!({ "t": ["plain"], "a": true, "w": 1 }));
    let mut device = server.device("/plain");
    device.send_text("a");
    let first = event(&mut late);
    let mut other = consumer(&server, &json!({ "t": ["plain"], "a": true }));
    let second = event(&mut other);
    assert_eq!((data(&second), &second["redelivered"]), ("a", &json!(true)));
    late.send_text(&json!({ "m": "queue.ack", "p": { "g": first["g"] }, "i": 7 }).to_string());
    let answer = loop {
        // The consumer may have had the event again before the other came.
        let message: Value = serde_json::from_str(&late.text()).expect("JSON");
        if message["i"] == 7 {
            break message;
        }
    };
    assert_eq!(answer["E"]["c"], 101, "{answer}");
}

#[test]
fn a_back_end_pushes_events_of_its_own_over_http_and_websocket() {
    let server = Server::new();
    let mut worker = consumer(&server, &json!({ "t": ["jobs"] }));
    let answer = server.post("/v1/queue/push", r#"{"t":"jobs","d":"one","k":"a"}"#);
    assert_eq!(answer, r#"{"E":null,"r":{"s":true}}"#);
    let first = event(&mut worker);
    assert_eq!(first["d"], json!({ "event": "push", "data": "one" }));
    let fields = [&first["c"], &first["t"], &first["k"]];
    assert_eq!(fields, [&json!(""), &json!("jobs"), &json!("a")]);
    let mut back_end = server.backend();
    back_end.done("queue.push", &json!({ "t": "jobs", "d": "two", "after_ms": 1 }));
    assert_eq!(event(&mut worker)["d"]["data"], "two");
    let answer =
        back_end.ask("queue.push", &json!({ "t": "jobs", "d": "x", "after_ms": 604_800_001 }));
    let why = "after_ms: expected an integer from 0 to 604800000";
    assert_eq!((&answer["E"]["c"], &answer["E"]["m"]), (&json!(101), &json!(why)));
}
