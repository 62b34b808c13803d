//! The events of clients that come and go.

use super::*;

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
