//! The order of answers to pipelined requests, however the requests are cut.

use std::thread;

use super::support::{Http, Server, Socket, assert_error, frame};
use super::{BODY, publish, published_to_none};

/// Three requests behind one another, and the answers that they get.
fn pipeline(server: &Server) -> (String, [&'static str; 3]) {
    let requests = [BODY, "{", BODY].map(|body| server.raw("POST", "/v1/mesh/publish", "", body));
    (requests.concat(), [r#"{"E":null"#, r#"{"E":{"c":101"#, r#"{"E":null"#])
}

fn assert_answers(connection: &mut Http, answers: [&str; 3]) {
    for answer in answers {
        let body = connection.response().body;
        assert!(body.starts_with(answer), "{body}");
    }
}

#[test]
fn pipelined_requests_in_one_segment_are_answered_in_order() {
    let server = Server::new();
    let (requests, answers) = pipeline(&server);
    let mut connection = server.http();
    connection.send(requests);
    assert_answers(&mut connection, answers);
}

#[test]
fn pipelined_requests_sent_byte_by_byte_are_answered_in_order() {
    let server = Server::new();
    let (requests, answers) = pipeline(&server);
    let mut connection = server.http();
    connection.send_byte_by_byte(requests);
    assert_answers(&mut connection, answers);
}

#[test]
fn two_thousand_pipelined_requests_are_answered_in_order() {
    let server = Server::new();
    let mut backend = server.backend();
    let mut writer = backend.writer();
    let requests = (0..2000).map(|id| frame(0x81, publish(&format!(r#","i":{id}"#)).as_bytes()));
    let requests = requests.collect::<Vec<_>>().concat();
    let sent = thread::spawn(move || std::io::Write::write_all(&mut writer, &requests));
    for id in 0..2000 {
        assert_eq!(backend.text(), published_to_none(&id.to_string()));
    }
    sent.join().expect("the writer ran").expect("the server read");
}

#[test]
fn different_methods_in_one_segment_are_answered_in_order() {
    let server = Server::new();
    let (_client, id) = server.client();
    let mut backend = server.backend();
    let call = |function, id_of_request| {
        let p = format!(r#"{{"c":"{id}","f":"{function}","a":["a"]}}"#);
        format!(r#"{{"m":"conn.call","p":{p},"i":{id_of_request}}}"#)
    };
    let publish = |id| format!(r#"{{"m":"mesh.publish","p":{{"c":"a","d":"x"}},"i":{id}}}"#);
    let requests = [
        call("subscribe", 1),
        publish(2),
        "{".into(),
        "ping".into(),
        call("unsubscribe", 3),
        publish(4),
    ];
    backend.send(&requests.map(|request| frame(0x81, request.as_bytes())).concat());
    assert_eq!(backend.text(), r#"{"E":null,"r":{"s":true},"i":1}"#);
    assert_eq!(backend.text(), r#"{"E":null,"r":{"s":1,"f":0},"i":2}"#);
    assert_error(&backend.text(), 101, Some("null"));
    assert_eq!(backend.text(), "pong");
    assert_eq!(backend.text(), r#"{"E":null,"r":{"s":true},"i":3}"#);
    assert_eq!(backend.text(), r#"{"E":null,"r":{"s":0,"f":0},"i":4}"#);
}

#[test]
fn an_upgrade_and_its_first_request_may_share_a_segment() {
    let server = Server::new();
    let mut connection = server.http();
    let upgrade = Socket::upgrade_request(server.api, "/ws/v1", "");
    connection.send([upgrade.as_bytes(), &frame(0x81, b"ping")].concat());
    assert_eq!(connection.response().status, 101);
    assert_eq!(Socket::upgraded(connection).text(), "pong");
}

#[test]
fn an_upgrade_and_requests_sent_byte_by_byte_are_answered() {
    let server = Server::new();
    let mut connection = server.http();
    connection.send_byte_by_byte(Socket::upgrade_request(server.api, "/ws/v1", ""));
    assert_eq!(connection.response().status, 101);
    for id in ["1", "2"] {
        connection.send_byte_by_byte(frame(0x81, publish(&format!(r#","i":{id}"#)).as_bytes()));
    }
    let mut backend = Socket::upgraded(connection);
    assert_eq!(backend.text(), published_to_none("1"));
    assert_eq!(backend.text(), published_to_none("2"));
}

#[test]
fn a_request_in_fragments_of_4096_bytes_is_put_together() {
    let server = Server::new();
    let mut client = server.device("/ws?channels=a");
    let mut backend = server.backend();
    let data = "0123456789".repeat(1_000);
    let request = format!(r#"{{"m":"mesh.publish","p":{{"c":"a","d":"{data}"}},"i":1}}"#);
    let [first, middle @ .., last] = &request.as_bytes().chunks(4096).collect::<Vec<_>>()[..]
    else {
        panic!("more than one fragment")
    };
    backend.send(&frame(0x01, first));
    middle.iter().for_each(|part| backend.send(&frame(0x00, part)));
    backend.send(&frame(0x80, last));
    assert_eq!(backend.text(), r#"{"E":null,"r":{"s":1,"f":0},"i":1}"#);
    assert_eq!(client.text(), data);
}

#[test]
fn a_back_end_that_resets_in_the_middle_harms_nobody() {
    let server = Server::new();
    let mut client = server.device("/ws?channels=channel1");
    for _ in 0..20 {
        let mut backend = server.backend();
        backend.send(&frame(0x81, publish("").as_bytes()).repeat(100));
        backend.reset();
    }
    server.publish("channel1", "end");
    while client.text() != "end" {}
}
