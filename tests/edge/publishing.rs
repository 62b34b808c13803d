//! Publishing to channels, and sending to clients.

use super::*;

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
fn a_publish_to_several_channels_adds_up_and_leaves_out_the_excluded() {
    let server = Server::new();
    let mut consumer = server.consumer("messages");
    let mut devices: Vec<_> = ["a", "a,b", "b", "c"]
        .into_iter()
        .map(|channels| {
            let device = server.device(&format!("/ws?channels={channels}"));
            (device, consumer.opened())
        })
        .collect();
    let publish = |params: Value| {
        let answer = server.post("/v1/mesh/publish", &params.to_string());
        serde_json::from_str::<Value>(&answer).expect("JSON")["r"].clone()
    };
    let both = json!({ "c": ["a", "b", "a", "nobody"], "d": "first" });
    assert_eq!(publish(both), json!({ "s": 4, "f": 0 }));
    let except = json!({ "c": ["a", "b"], "d": "second", "x": [devices[1].1, "7"] });
    assert_eq!(publish(except), json!({ "s": 2, "f": 0 }));
    let except = json!({ "c": "a", "d": "third", "x": [devices[0].1] });
    assert_eq!(publish(except), json!({ "s": 1, "f": 0 }));
    assert_eq!(publish(json!({ "c": ["nobody"], "d": "" })), json!({ "s": 0, "f": 0 }));
    assert_eq!(publish(json!({ "c": ["c", "b", "a"], "d": "last" })), json!({ "s": 5, "f": 0 }));
    let expected = [
        vec!["first", "second", "last"],
        vec!["first", "first", "third", "last", "last"],
        vec!["first", "second", "last"],
        vec!["last"],
    ];
    for ((device, _), expected) in devices.iter_mut().zip(expected) {
        let got: Vec<_> = expected.iter().map(|_| device.text()).collect();
        assert_eq!(got, expected);
    }
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
