//! Answers and events of a node, checked against the documents.

use serde_json::{Value, json};

use super::support::{Server, Socket};
use super::{async_api, open_api};

/// A back end whose answers and events are checked as they come.
struct Checked(Socket);

impl Checked {
    fn call(&mut self, method: &str, params: Value) -> Value {
        let document = async_api();
        let title: String = method.split('.').map(capital).collect();
        let request = json!({ "m": method, "p": params, "i": 12345 });
        let form = document.schema(&format!("{title}Request"));
        assert_eq!(document.check(form, &request), Ok(()), "{request}");
        let answer = self.0.ask(method, &params);
        let form = document.schema(&format!("{title}Answer"));
        assert_eq!(document.check(form, &answer), Ok(()), "{method}: {answer}");
        answer
    }

    fn event(&mut self) -> Value {
        let document = async_api();
        let event: Value = serde_json::from_str(&self.0.text()).expect("an event is JSON");
        assert_eq!(document.check(document.schema("Event"), &event), Ok(()), "{event}");
        event["p"].clone()
    }
}

fn capital(word: &str) -> String {
    word[..1].to_uppercase() + &word[1..]
}

#[test]
fn answers_and_events_of_the_web_socket_are_of_the_described_form() {
    let server = Server::new();
    let mut back_end = Checked(server.backend());
    back_end.call("queue.pop", json!({ "t": ["nobody feeds this"] }));
    back_end.call("queue.unpop", json!({}));
    let answer = back_end.call("queue.unpop", json!({}));
    assert_eq!(answer["E"]["c"], 203);
    back_end.call("queue.pop", json!({ "t": ["messages"], "a": true, "w": 8 }));
    let mut device = server.device("/ws?channels=news");
    let opened = back_end.event();
    let client = opened["c"].clone();
    back_end.call("queue.ack", json!({ "g": opened["g"] }));
    device.send_text("text");
    device.send_binary(&[0, 1, 2]);
    assert_eq!(back_end.event()["d"]["frame"]["type"], "text");
    assert_eq!(back_end.event()["d"]["frame"]["type"], "binary");
    let calls = [
        json!({ "c": client, "f": "set_context", "a": [{ "user_id": 1 }] }),
        json!({ "c": client, "f": "set_context_value", "a": ["room", [1, "x"]] }),
        json!({ "c": client, "f": "get_context" }),
        json!({ "c": client, "f": "subscribe", "a": ["sport"] }),
        json!({ "c": client, "f": "unsubscribe", "a": ["sport"] }),
        json!({ "c": client, "f": "info" }),
    ];
    for call in calls {
        assert!(back_end.call("conn.call", call.clone())["E"].is_null(), "{call}");
    }
    assert_eq!(back_end.call("mesh.send", json!({ "c": "1", "d": "x" }))["E"]["c"], 401);
    back_end.call("mesh.send", json!({ "c": client, "d": "AAEC", "t": "binary" }));
    back_end.call("mesh.publish", json!({ "c": "news", "d": "x", "t": null }));
    let sent = back_end.call("user.send", json!({ "u": [1, "x"], "d": "AAEC", "t": "binary" }));
    assert_eq!(sent["r"], json!({ "s": 1, "f": 0 }));
    let members = back_end.call("channel.members", json!({ "c": "news" }));
    assert_eq!(members["r"]["members"], json!([{ "c": client, "u": "1" }]));
    let counted = back_end.call("channel.info", json!({ "c": ["news", "x"] }));
    let expected = json!({ "news": { "clients": 1 }, "x": { "clients": 0 } });
    assert_eq!(counted["r"]["channels"], expected);
    let told = back_end.call("user.info", json!({ "u": [1, "x"] }));
    assert_eq!(told["r"]["users"]["1"][0]["c"], json!(client));
    assert_eq!(told["r"]["users"]["x"], json!([]));
    let called = back_end.call("user.call", json!({ "u": "1", "f": "subscribe", "a": ["sport"] }));
    assert_eq!(called["r"], json!({ "s": 1, "f": 0 }));
    back_end.call("user.call", json!({ "u": 1, "f": "unsubscribe", "a": ["sport"] }));
    for method in ["node.list", "client.list", "channel.list", "topic.list", "backend.list"] {
        assert!(back_end.call(method, json!({}))["E"].is_null(), "{method}");
    }
    // Another consumer gets again what this one does not settle, and then the end of the client.
    back_end.call("queue.unpop", json!({}));
    back_end.call("queue.pop", json!({ "t": ["messages"], "a": true }));
    assert_eq!(back_end.event()["redelivered"], true);
    assert_eq!(back_end.event()["redelivered"], true);
    // On a connection of its own: the event may come before the answer.
    let mut other = Checked(server.backend());
    other.call("conn.call", json!({ "c": client, "f": "close", "a": [4001, "bye"] }));
    let closed = back_end.event();
    assert_eq!(closed["d"]["code"], 4001);
    assert_eq!(closed["d"]["context"], json!({ "user_id": 1, "room": [1, "x"] }));
}

#[test]
fn what_a_device_gets_is_of_the_described_form() {
    let mut server = Server::new();
    let document = async_api();
    let offer = "Sec-WebSocket-Protocol: gridcast.v1\r\n";
    let mut device = Socket::connect(server.edge, "/ws", offer).expect("it is granted");
    let calls = [
        ("DevicePush", "push", json!({ "d": "AAEC", "t": "binary" })),
        ("DevicePush", "push", json!({ "d": "x", "t": null })),
        ("Subscribe", "subscribe", json!({ "c": ["news"] })),
        ("Subscribe", "subscribe", json!({ "c": ["news"], "o": { "news": "1" } })),
        ("Unsubscribe", "unsubscribe", json!({ "c": ["sport"] })),
    ];
    for (schema, method, params) in calls {
        let request = json!({ "m": method, "p": params, "i": 12345 });
        let form = document.schema(&format!("{schema}Request"));
        assert_eq!(document.check(form, &request), Ok(()), "{request}");
        let answer = device.ask(method, &params);
        assert!(answer["E"].is_null(), "{request}: {answer}");
        let form = document.schema(&format!("{schema}Answer"));
        assert_eq!(document.check(form, &answer), Ok(()), "{answer}");
    }
    let token = json!({ "m": "token", "p": { "token": "a.b.c" }, "i": 1 });
    assert_eq!(document.check(document.schema("TokenRequest"), &token), Ok(()));
    let answer = device.ask("token", &token["p"]);
    assert_eq!(document.check(document.schema("TokenAnswer"), &answer), Ok(()), "{answer}");
    let answer = device.ask("subscribe", &json!({ "c": [] }));
    assert_eq!(document.check(document.schema("SubscribeAnswer"), &answer), Ok(()), "{answer}");
    for message in
        [json!({ "c": "news", "d": "x" }), json!({ "c": "news", "d": "AA", "t": "binary" })]
    {
        server.post("/v1/mesh/publish", &message.to_string());
        let message = serde_json::from_str(&device.text()).expect("a message is JSON");
        assert_eq!(document.check(document.schema("DeviceMessage"), &message), Ok(()), "{message}");
    }
    server.terminate();
    let closing = serde_json::from_str(&device.text()).expect("a hint is JSON");
    assert_eq!(document.check(document.schema("Closing"), &closing), Ok(()), "{closing}");
    assert_eq!(device.closed().0, 1001);
}

#[test]
fn taps_and_their_events_are_of_the_described_form() {
    let server = Server::new();
    let mut tapper = Checked(server.backend());
    let two = json!({ "m": "tap.start", "p": { "c": "1", "user": "ann" } });
    let document = async_api();
    assert!(document.check(document.schema("TapStartRequest"), &two).is_err());
    let answer = tapper.call("tap.start", json!({ "address": "127.0.0.0/8" }));
    assert!(answer["E"].is_null(), "{answer}");
    let mut back_end = server.backend();
    assert!(Socket::connect(server.edge, "/nowhere", "").is_err());
    let mut device = server.device("/ws");
    device.send_text("text");
    let any_event = |tapper: &mut Checked| {
        let event: Value = serde_json::from_str(&tapper.0.text()).expect("an event is JSON");
        assert_eq!(document.check(document.schema("TapEvent"), &event), Ok(()), "{event}");
        event["p"].clone()
    };
    let mut event = |what: &str| {
        let event = any_event(&mut tapper);
        assert_eq!(event["what"], what, "{event}");
        event["c"].clone()
    };
    event("refuse");
    let client = event("connect");
    event("in");
    back_end.done("mesh.send", &json!({ "c": client, "d": "AAEC", "t": "binary" }));
    event("out");
    event("call");
    device.send_close(1000, "");
    event("close");
    let answer = Checked(server.backend()).call("tap.stop", json!({}));
    assert!(answer["E"].is_null(), "{answer}");
    let mut slow = Checked(server.backend());
    slow.call("tap.start", json!({ "topic": "plain", "max_per_s": 1 }));
    let mut device = server.device("/plain");
    (0..100).for_each(|_| device.send_text("more than one a second"));
    while any_event(&mut slow)["what"] != "lost" {}
}

#[test]
fn answers_over_http_are_of_the_described_form() {
    let server = Server::new();
    let (_device, client) = server.client();
    let document = open_api();
    let bodies = [
        ("/v1/mesh/send", json!({ "c": client, "d": "x" })),
        ("/v1/mesh/send", json!({ "c": "1", "d": "x" })),
        ("/v1/mesh/publish", json!({ "c": "x", "d": "x" })),
        ("/v1/conn/call", json!({ "c": client, "f": "info" })),
        ("/v1/conn/call", json!({ "c": client, "f": "get_context" })),
        ("/v1/conn/call", json!({ "c": client, "f": "close" })),
        ("/v1/conn/call", json!({})),
        ("/v1/channel/members", json!({ "c": "x", "max": 1 })),
        ("/v1/channel/info", json!({ "c": "x" })),
        ("/v1/channel/info", json!({ "c": [] })),
        ("/v1/user/info", json!({ "u": ["1", "x"] })),
        ("/v1/user/send", json!({ "u": "1", "d": "x" })),
        ("/v1/user/send", json!({ "u": [], "d": "x" })),
        ("/v1/user/call", json!({ "u": [1, 2], "f": "info" })),
        ("/v1/node/list", json!({})),
        ("/v1/client/list", json!({ "user": "1" })),
        ("/v1/client/list", json!({ "max": 0 })),
        ("/v1/channel/list", json!({ "prefix": "n" })),
        ("/v1/topic/list", json!({ "max": 1 })),
        ("/v1/backend/list", json!({ "max": 1 })),
    ];
    for (path, body) in bodies {
        let response = &document.at("/paths")[path]["post"]["responses"]["200"];
        let form = &response["content"]["application/json"]["schema"];
        let answer = serde_json::from_str(&server.post(path, &body.to_string())).expect("JSON");
        assert_eq!(document.check(form, &answer), Ok(()), "{path} {body}: {answer}");
    }
    for path in ["/v1/nodes", "/version"] {
        let response = &document.at("/paths")[path]["get"]["responses"]["200"];
        let form = &response["content"]["application/json"]["schema"];
        assert_eq!(document.check(form, &server.get(path).json()), Ok(()), "{path}");
    }
    for (path, content) in [("/healthz", "text/plain"), ("/metrics", ""), ("/", "")] {
        let described = &document.at("/paths")[path]["get"]["responses"]["200"]["content"];
        let described = described.as_object().expect("an object").keys().next().expect("a type");
        let response = server.get(path);
        assert_eq!(response.header("content-type"), Some(&described[..]), "{path} {content}");
    }
}
