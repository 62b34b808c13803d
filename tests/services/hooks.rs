//! Admission hooks: what they grant, refuse, and what happens when they fail.

use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::support::{self, Message, Server, Service, Socket, refusing_port};
use crate::{config_with, metric, server_with};

fn server_with_hook(service: &Service, more: &str) -> Server {
    server_with(&format!("admit = {{ url = \"http://{}/admit\"{more} }}", service.address))
}

/// Begins handshakes on connections of their own.
fn handshakes(server: &Server, number: usize) -> Vec<support::Http> {
    let request = Socket::upgrade_request(server.edge, "/in?a=1", "Cookie: s=1\r\n");
    let begin = |_| {
        let mut http = support::Http::connect(server.edge);
        http.send(&request);
        http
    };
    (0..number).map(begin).collect()
}

#[test]
fn a_hook_lets_a_device_in_with_a_user_channels_and_context() {
    let hook = Service::start();
    let server = server_with_hook(&hook, ", secret = \"open sesame\"");
    let mut consumer = server.consumer("in");
    let mut http = handshakes(&server, 1).remove(0);
    let asked = hook.next();
    assert!(asked.head.starts_with("POST /admit HTTP/1.1\r\n"), "{}", asked.head);
    assert_eq!(asked.header("content-type"), Some("application/json"));
    let question: Value = serde_json::from_str(&asked.body).expect("JSON");
    assert_eq!(question["path"], "/in");
    assert_eq!(question["query"], json!({"a": "1"}));
    assert_eq!(question["headers"]["cookie"], "s=1");
    assert!(question["remote"].as_str().is_some_and(|remote| remote.starts_with("127.0.0.1:")));
    let signature = asked.header("gridcast-signature").expect("it is signed");
    let (time, signature) = signature.split_once(",v1=").expect("two parts");
    let time = time.strip_prefix("t=").expect("a time");
    let mut mac = Hmac::<Sha256>::new_from_slice(b"open sesame").expect("any length");
    mac.update(format!("{time}.{}", asked.body).as_bytes());
    let expected: String =
        mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(signature, expected);
    asked.answer(200, r#"{"user_id":10000,"context":{"plan":"free"},"channels":["vip"]}"#);
    assert_eq!(http.response().status, 101);
    let mut device = Socket::upgraded(http);
    let opened = consumer.read();
    let Message::Text(opened) = opened else { panic!("{opened:?}") };
    assert!(opened.contains(r#""context":{"plan":"free","user_id":10000}"#), "{opened}");
    assert_eq!(server.publish("vip", "hello"), (1, 0));
    assert_eq!(device.read(), Message::Text("hello".into()));
    // The next question comes on the same connection of the pool, or on another one.
    let mut http = handshakes(&server, 1).remove(0);
    hook.next().answer(200, "{}");
    assert_eq!(http.response().status, 101);
}

#[test]
fn a_hook_keeps_a_device_out_and_any_failure_is_a_503() {
    let hook = Service::start();
    let server = server_with_hook(&hook, ", timeout_ms = 60000");
    let huge = format!("{{}}{}", " ".repeat(300_000));
    for (status, body, expected) in [
        (401, "", 401),
        (403, "{}", 403),
        (500, "{}", 503),
        (404, "{}", 503),
        (302, "{}", 503),
        (200, "", 503),
        (200, "<html>", 503),
        (200, r#"{"user_id":{}}"#, 503),
        (200, &huge, 503),
        (200, "{}", 101),
    ] {
        let mut http = handshakes(&server, 1).remove(0);
        hook.next().answer(status, body);
        assert_eq!(http.response().status, expected, "{status} {}", &body[..body.len().min(20)]);
    }
    let mut http = handshakes(&server, 1).remove(0);
    drop(hook.next());
    assert_eq!(http.response().status, 503);
    assert_eq!(metric(&server, "gridcast_admissions_total"), 11);
    assert_eq!(metric(&server, "gridcast_admissions_refused_total"), 2);
    assert_eq!(metric(&server, "gridcast_admissions_failed_total"), 8);
}

#[test]
fn a_hook_that_does_not_answer_or_is_not_there_keeps_nobody_waiting() {
    let hook = Service::start();
    let server = server_with_hook(&hook, ", timeout_ms = 100");
    let mut http = handshakes(&server, 1).remove(0);
    let held = hook.next();
    assert_eq!(http.response().status, 503);
    held.answer(200, "{}");
    let (_socket, address) = refusing_port();
    let mut server = server_with(&format!("admit = {{ url = \"http://{address}/\" }}"));
    assert_eq!(handshakes(&server, 1).remove(0).response().status, 503);
    server.logs("admission: http://");
}

#[test]
fn a_reload_closes_the_idle_connections_to_a_hook_that_it_replaces() {
    let (old, new) = (Service::start(), Service::start());
    let config = |hook: &Service| {
        config_with(&format!("admit = {{ url = \"http://{}/admit\" }}", hook.address))
    };
    let mut server = Server::start(&config(&old));
    let mut waiting = handshakes(&server, 2);
    let asked = [old.next(), old.next()];
    for asked in asked {
        asked.answer(200, "{}");
    }
    assert!(waiting.iter_mut().all(|http| http.response().status == 101));
    assert_eq!(old.connections(), 2, "both are kept for the next questions");
    server.reload(&config(&new));
    support::until(|| old.connections() == 0);
    let mut http = handshakes(&server, 1).remove(0);
    new.next().answer(200, "{}");
    assert_eq!(http.response().status, 101);
}

/// The handshakes that wait on all shards.
fn waiting_handshakes(server: &Server) -> u64 {
    let text = server.get("/metrics").body;
    let lines = text.lines().filter(|line| line.starts_with("gridcast_waiting_handshakes{"));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

#[test]
fn a_thousand_handshakes_that_wait_for_a_hook_delay_nobody_else() {
    let hook = Service::start();
    let mut server = server_with_hook(&hook, ", timeout_ms = 60000");
    let mut waiting = handshakes(&server, 1000);
    // As many questions as a hook gets at a time stand still.
    let held: Vec<_> = (0..64).map(|_| hook.next()).collect();
    let mut device = Socket::connect(server.edge, "/plain?channels=a", "").expect("it is let in");
    assert_eq!(server.publish("a", "hello"), (1, 0));
    assert_eq!(device.read(), Message::Text("hello".into()));
    support::until(|| waiting_handshakes(&server) == 1000);
    for asked in held {
        asked.answer(200, "{}");
    }
    for _ in 64..500 {
        hook.next().answer(200, "{}");
    }
    support::until(|| waiting_handshakes(&server) == 500);
    // Those that leave give their places back, and those that stay hear of the end.
    waiting.truncate(999);
    server.terminate();
    let statuses: Vec<u16> = waiting.iter_mut().map(|http| http.response().status).collect();
    let count = |status| statuses.iter().filter(|known| **known == status).count();
    assert!(count(101) >= 499 && count(101) + count(503) == 999, "{}", count(101));
    assert!(count(503) > 0);
}
