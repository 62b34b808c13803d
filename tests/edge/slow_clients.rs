//! Slow and broken clients.

use super::*;

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
