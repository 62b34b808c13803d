//! The envelope of a request: ids, params, data, and requests that are not valid.

use super::support::{self, Message, Server, assert_error};
use super::{BODY, PUBLISHED_TO_NONE, publish, published_to_none};

#[test]
fn request_ids_come_back_to_the_digit() {
    let server = Server::new();
    let mut backend = server.backend();
    for id in [
        "0",
        "12345",
        "-7",
        "18446744073709551615",
        "-9223372036854775808",
        "12345678901234567890123",
        "1.50",
        "1E+2",
        "null",
        r#""""#,
        r#""12345""#,
        r#""a \"quoted\" é""#,
    ] {
        let answer = backend.call(&publish(&format!(r#","i":{id}"#)));
        assert_eq!(answer, published_to_none(id));
    }
}

#[test]
fn request_ids_come_back_in_errors_to_the_digit() {
    let server = Server::new();
    let mut backend = server.backend();
    for id in ["18446744073709551615", "12345678901234567890123", "1.50", r#""x""#, "null"] {
        let answer = backend.call(&format!(r#"{{"i":{id},"m":"dance"}}"#));
        assert_error(&answer, 101, Some(id));
    }
}

#[test]
fn a_missing_request_id_is_null() {
    let server = Server::new();
    assert_eq!(server.backend().call(&publish("")), published_to_none("null"));
}

#[test]
fn params_may_stand_in_an_array() {
    let server = Server::new();
    let request = format!(r#"{{"m":"mesh.publish","p":[{BODY}],"i":1}}"#);
    assert_eq!(server.backend().call(&request), published_to_none("1"));
}

#[test]
fn an_empty_array_stands_for_empty_params() {
    let server = Server::new();
    let mut consumer = server.consumer("messages");
    let answer = consumer.call(r#"{"m":"queue.unpop","p":[],"i":12345}"#);
    assert_eq!(answer, support::SUCCESS);
}

#[test]
fn queue_pop_takes_a_bare_array_of_topics() {
    let server = Server::new();
    let mut consumer = server.backend();
    let answer = consumer.call(r#"{"m":"queue.pop","p":["plain","messages2"],"i":12345}"#);
    assert_eq!(answer, support::SUCCESS);
    server.device("/plain").send_text("data");
    assert_eq!(consumer.data(), "data");
}

#[test]
fn the_last_of_two_equal_keys_holds() {
    let server = Server::new();
    let mut client = server.device("/ws?channels=b");
    let request =
        r#"{"m":"dance","i":1,"m":"mesh.publish","p":{"c":"a","d":"x","c":"b","d":"y"},"i":2}"#;
    assert_eq!(server.backend().call(request), r#"{"E":null,"r":{"s":1,"f":0},"i":2}"#);
    assert_eq!(client.text(), "y");
}

#[test]
fn unknown_fields_are_ignored() {
    let server = Server::new();
    let request = r#"{"x":[{"m":"dance"}],"m":"mesh.publish","p":{"c":"a","y":{"d":1},"d":"x"},"i":1,"z":null}"#;
    assert_eq!(server.backend().call(request), published_to_none("1"));
    let answer = server.post("/v1/mesh/publish", r#"{"c":"a","d":"x","more":{"c":7}}"#);
    assert_eq!(answer, PUBLISHED_TO_NONE);
}

#[test]
fn white_space_between_tokens_is_ignored() {
    let server = Server::new();
    let request = "\r\n{ \"m\" : \"mesh.publish\" ,\t\"p\" : { \"c\" : \"a\" , \"d\" : \"x\" } ,\n\"i\" : 1 }\n";
    assert_eq!(server.backend().call(request), published_to_none("1"));
}

#[test]
fn a_request_may_come_as_binary() {
    let server = Server::new();
    let mut backend = server.backend();
    backend.send_binary(publish(r#","i":1"#).as_bytes());
    assert_eq!(backend.text(), published_to_none("1"));
}

#[test]
fn what_is_no_request_gets_101_and_the_connection_stays_open() {
    let server = Server::new();
    let mut backend = server.backend();
    for request in [
        "",
        "x",
        "{",
        "null",
        "7",
        "[]",
        r#""ping""#,
        "{}",
        r#"{"m":7}"#,
        r#"{"m":"mesh.publish"}"#,
    ] {
        assert_error(&backend.call(request), 101, Some("null"));
    }
    assert_eq!(backend.call("ping"), "pong");
}

#[test]
fn deeply_nested_json_gets_101_and_harms_nobody() {
    let server = Server::new();
    let mut backend = server.backend();
    let nested = "[".repeat(200_000);
    assert_error(&backend.call(&nested), 101, Some("null"));
    assert_eq!(backend.call("ping"), "pong");
}

#[test]
fn a_client_id_may_be_an_integer() {
    let server = Server::new();
    let (mut client, id) = server.client();
    let answer = server.post("/v1/mesh/send", &format!(r#"{{"c":{id},"d":"data"}}"#));
    assert_eq!(answer, r#"{"E":null,"r":{"s":true}}"#);
    assert_eq!(client.text(), "data");
    let answer = server.post("/v1/conn/call", &format!(r#"{{"c":{id},"f":"get_context","a":[]}}"#));
    assert_eq!(answer, r#"{"E":null,"r":{"s":true,"context":{}}}"#);
}

#[test]
fn base64_may_have_padding_or_none() {
    let server = Server::new();
    let mut client = server.device("/ws?channels=a");
    for data in ["+/8=", "+/8"] {
        let request = format!(r#"{{"c":"a","d":"{data}","t":"binary"}}"#);
        server.post("/v1/mesh/publish", &request);
        assert_eq!(client.read(), Message::Binary(vec![0xfb, 0xff]));
    }
}

#[test]
fn base64_that_is_invalid_gets_101() {
    let server = Server::new();
    for data in ["A", "!!!!", "AA=A", "AAA=====", "A A="] {
        let request = format!(r#"{{"c":"a","d":"{data}","t":"binary"}}"#);
        assert_error(&server.post("/v1/mesh/publish", &request), 101, None);
    }
}

#[test]
fn escapes_in_data_are_decoded() {
    let server = Server::new();
    let mut client = server.device("/ws?channels=a");
    server.post("/v1/mesh/publish", r#"{"c":"\u0061","d":"\u00e9\ud83d\ude00\n\"\\\/"}"#);
    assert_eq!(client.text(), "é\u{1f600}\n\"\\/");
}

#[test]
fn conn_call_works_over_http() {
    let server = Server::new();
    let (_client, id) = server.client();
    let request = format!(r#"{{"c":"{id}","f":"subscribe","a":["channel1"]}}"#);
    assert_eq!(server.post("/v1/conn/call", &request), r#"{"E":null,"r":{"s":true}}"#);
    assert_eq!(server.publish("channel1", "data"), (1, 0));
}

#[test]
fn a_websocket_request_beyond_its_limit_is_closed_with_1009() {
    let server = Server::with("[limits]\napi_message_bytes = 4096");
    let mut backend = server.backend();
    backend.send_text(&"x".repeat(4097));
    assert_eq!(backend.closed().0, 1009);
}
