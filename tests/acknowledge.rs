//! Consumers that acknowledge: `queue.pop` with `"a":true`, `queue.ack`.

mod support;

use serde_json::Value;
use support::{SUCCESS, Server, Socket, assert_error};

fn acknowledging(server: &Server, window: u32) -> Socket {
    let mut consumer = server.backend();
    let pop =
        format!(r#"{{"m":"queue.pop","p":{{"t":["plain"],"a":true,"w":{window}}},"i":12345}}"#);
    assert_eq!(consumer.call(&pop), SUCCESS);
    consumer
}

fn ack(consumer: &mut Socket, tag: u64, up_to: bool) -> String {
    consumer.call(&format!(r#"{{"m":"queue.ack","p":{{"g":{tag},"u":{up_to}}},"i":12345}}"#))
}

/// The data and the tag of the next event, and whether it is marked as redelivered.
fn tagged(consumer: &mut Socket) -> (String, u64, bool) {
    let event = loop {
        let mut message: Value = serde_json::from_str(&consumer.text()).expect("JSON");
        // Skips the answers to acknowledgements between events.
        if message["e"] == "queue.pop" {
            break message["p"].take();
        }
    };
    let data = event["d"]["frame"]["data"].as_str().expect("it is a text message").to_owned();
    (data, event["g"].as_u64().expect("it is tagged"), event["redelivered"] == Value::Bool(true))
}

#[test]
fn unacknowledged_events_are_bounded_by_the_window() {
    let server = Server::new();
    let mut consumer = acknowledging(&server, 2);
    let mut client = server.device("/plain");
    ["a", "b", "c", "d"].iter().for_each(|text| client.send_text(text));
    assert_eq!(tagged(&mut consumer), ("a".into(), 1, false));
    assert_eq!(tagged(&mut consumer), ("b".into(), 2, false));
    // The answer is written before the next event.
    assert_eq!(ack(&mut consumer, 2, false), SUCCESS);
    assert_eq!(tagged(&mut consumer), ("c".into(), 3, false));
    assert_eq!(ack(&mut consumer, 3, true), SUCCESS);
    assert_eq!(tagged(&mut consumer), ("d".into(), 4, false));
}

#[test]
fn unacknowledged_events_are_redelivered_to_another_consumer_and_marked() {
    let server = Server::new();
    let mut first = acknowledging(&server, 10);
    let mut client = server.device("/plain");
    ["a", "b", "c"].iter().for_each(|text| client.send_text(text));
    assert_eq!((tagged(&mut first).1, tagged(&mut first).1, tagged(&mut first).1), (1, 2, 3));
    assert_eq!(ack(&mut first, 1, false), SUCCESS);
    first.reset();
    let mut second = acknowledging(&server, 10);
    assert_eq!(tagged(&mut second), ("b".into(), 1, true));
    assert_eq!(tagged(&mut second), ("c".into(), 2, true));
    assert_eq!(second.call(r#"{"m":"queue.unpop","p":{},"i":12345}"#), SUCCESS);
    let mut third = server.consumer("plain");
    assert_eq!([third.data(), third.data()], ["b", "c"]);
}

#[test]
fn a_tag_that_is_not_outstanding_is_an_invalid_argument() {
    let server = Server::new();
    let mut consumer = acknowledging(&server, 1);
    assert_error(&ack(&mut consumer, 1, false), 101, Some("12345"));
    let mut client = server.device("/plain");
    client.send_text("a");
    assert_eq!(tagged(&mut consumer).1, 1);
    assert_eq!(ack(&mut consumer, 1, false), SUCCESS);
    assert_error(&ack(&mut consumer, 1, true), 101, Some("12345"));
}

#[test]
fn queue_ack_fails_for_a_consumer_that_does_not_acknowledge() {
    let server = Server::new();
    let mut consumer = server.consumer("plain");
    assert_error(&ack(&mut consumer, 1, false), 203, Some("12345"));
}

#[test]
fn ten_thousand_events_pass_a_small_window_once_and_in_order() {
    let server = Server::new();
    let mut consumer = acknowledging(&server, 8);
    let client = server.device("/plain");
    let mut writer = client.writer();
    let sent = std::thread::spawn(move || {
        use std::io::Write;
        for number in 0..10_000 {
            let text = number.to_string();
            writer.write_all(&support::frame(0x81, text.as_bytes())).expect("it is read");
        }
    });
    for number in 0..10_000 {
        let (data, tag, is_redelivered) = tagged(&mut consumer);
        assert_eq!((data, is_redelivered), (number.to_string(), false));
        if number % 4 == 3 {
            consumer.send_text(&format!(r#"{{"m":"queue.ack","p":{{"g":{tag},"u":true}}}}"#));
        }
    }
    sent.join().expect("all was sent");
}
