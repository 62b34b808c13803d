//! What a tap shows, and to whom.

use std::collections::BTreeSet;
use std::sync::Arc;

use gridcast::message::{
    AdmissionRequest, AdmissionVerdict, FromBridge, FromNode, ToBridge, ToShard,
};
use gridcast::protocol::admission::AdmissionHook;
use gridcast::protocol::credentials::{Roles, User};
use gridcast::protocol::service::HttpService;
use gridcast::shard::settings::RouteSettings;
use gridcast::shard::{Listener, ShardRequest};
use serde_json::{Value, json};

use crate::grid::{Grid, SECRET, token, whats};
use crate::shard_value::user;

#[test]
fn a_client_of_another_node_is_watched_from_its_first_message_to_its_end() {
    let mut grid = Grid::new();
    let (device, id) = grid.known_device((2, 1), "/ws");
    let (tapper, other) = (grid.backend((1, 0)), grid.backend((2, 0)));
    grid.tap(tapper, &json!({ "c": id }));
    let stranger = grid.device((2, 1), "/ws");
    grid.send(stranger, "not watched");
    assert_eq!(grid.told(tapper), Vec::<Value>::new());

    grid.send(device, "hello");
    let at = grid.now.unix_ms;
    let head = json!({ "at": at, "node": 2, "c": id });
    let with = |fields: Value| {
        let mut event = head.clone();
        event.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        event
    };
    let heard = json!({ "what": "in", "t": "text", "d": "hello", "bytes": 5 });
    assert_eq!(grid.told(tapper), [with(heard)]);
    grid.send_frame(device, 0x82, &[0, 1, 254]);
    let heard = json!({ "what": "in", "t": "binary", "d": "AAH+", "bytes": 3 });
    assert_eq!(grid.told(tapper), [with(heard)]);

    let sent = grid.call(other, "mesh.send", &json!({ "c": id, "d": "x".repeat(1000) }));
    assert_eq!(sent["r"], json!({ "s": true }));
    let out = json!({ "what": "out", "t": "text", "d": "x".repeat(256), "bytes": 1000 });
    let call =
        json!({ "what": "call", "m": "mesh.send", "arguments": "", "by": null, "error": null });
    assert_eq!(grid.told(tapper), [with(out), with(call)]);

    let arguments = json!(["key", SECRET]);
    grid.function(other, &id, "set_context_value", arguments);
    let told = grid.told(tapper);
    assert_eq!(whats(&told), ["call"]);
    assert_eq!(told[0]["arguments"], "set_context_value key", "no values");

    grid.send_frame(device, 0x88, &[0x0F, 0xA1, b'o', b'k']);
    let close = json!({ "what": "close", "code": 4001, "reason": "ok", "by": "peer" });
    assert_eq!(grid.told(tapper), [with(close)]);

    let call = grid.call(other, "mesh.send", &json!({ "c": id, "d": "late" }));
    assert_eq!(call["E"]["c"], 401);
    let told = grid.told(tapper);
    assert_eq!(whats(&told), ["call"]);
    assert_eq!(told[0]["error"], json!({ "c": 401, "m": "no such client" }));
}

#[test]
fn a_client_is_watched_while_its_context_names_the_user() {
    let mut grid = Grid::new();
    let (device, id) = grid.known_device((2, 0), "/ws");
    let (tapper, other) = (grid.backend((1, 0)), grid.backend((1, 1)));
    grid.tap(tapper, &json!({ "user": 10000 }));
    grid.send(device, "before");
    assert_eq!(grid.told(tapper), Vec::<Value>::new());
    grid.function(other, &id, "set_context", json!([{ "user_id": 10000 }]));
    grid.send(device, "as the user");
    assert_eq!(whats(&grid.told(tapper)), ["in"]);
    grid.function(other, &id, "set_context_value", json!(["user_id", "10000"]));
    grid.send(device, "still the user");
    assert_eq!(whats(&grid.told(tapper)), ["call", "in"]);
    grid.function(other, &id, "set_context_value", json!(["user_id", "20000"]));
    grid.send(device, "another user");
    assert_eq!(whats(&grid.told(tapper)), ["call"], "the call that ended it");
}

#[test]
fn the_subscribers_of_a_channel_are_watched_and_the_publishes_to_it() {
    let mut grid = Grid::new();
    let (one, id) = grid.known_device((2, 0), "/ws");
    let (tapper, other) = (grid.backend((1, 0)), grid.backend((1, 1)));
    grid.tap(tapper, &json!({ "channel": "news" }));
    grid.function(other, &id, "subscribe", json!(["sport", "news"]));
    let told = grid.told(tapper);
    assert_eq!(
        (whats(&told), &told[0]["arguments"]),
        (vec!["call"], &json!("subscribe sport,news"))
    );
    let _two = grid.device((1, 1), "/ws?channels=news");
    let told = grid.told(tapper);
    assert_eq!((whats(&told), &told[0]["channels"]), (vec!["connect"], &json!(1)));

    grid.call(other, "mesh.publish", &json!({ "c": "news", "d": "hello" }));
    let told = grid.told(tapper);
    let (mut calls, mut outs) = (Vec::new(), BTreeSet::new());
    for event in &told {
        match event["what"].as_str() {
            Some("call") => calls.push((event["m"].clone(), event["arguments"].clone())),
            Some("out") => _ = outs.insert(event["c"].to_string()),
            _ => panic!("{event}"),
        }
    }
    assert_eq!(calls, [(json!("mesh.publish"), json!("news"))]);
    assert_eq!((outs.len(), told.len()), (2, 3), "each subscriber once");
    grid.call(other, "mesh.publish", &json!({ "c": "other", "d": "hello" }));
    assert_eq!(grid.told(tapper), Vec::<Value>::new());

    grid.function(other, &id, "unsubscribe", json!(["news"]));
    assert_eq!(whats(&grid.told(tapper)), ["call"]);
    grid.send(one, "not subscribed any more");
    assert_eq!(grid.told(tapper), Vec::<Value>::new());
}

#[test]
fn the_clients_that_feed_a_topic_are_watched_and_its_consumers() {
    let mut grid = Grid::new();
    let echoed = grid.device((1, 0), "/echo");
    let fed = grid.device((1, 1), "/ws");
    let (tapper, other) = (grid.backend((1, 0)), grid.backend((2, 1)));
    grid.tap(tapper, &json!({ "topic": "messages" }));
    grid.send(echoed, "of no topic");
    grid.send(fed, "of the topic");
    assert_eq!(whats(&grid.told(tapper)), ["in"]);
    grid.call(other, "queue.pop", &json!({ "t": ["others"] }));
    let consumer = grid.backend((2, 1));
    grid.send(consumer, r#"{"m":"queue.pop","p":{"t":["messages"]},"i":1}"#);
    let told = grid.told(tapper);
    assert_eq!((whats(&told), &told[0]["m"]), (vec!["call"], &json!("queue.pop")));
}

#[test]
fn an_echo_is_told_in_both_directions() {
    let mut grid = Grid::new();
    let (device, id) = grid.known_device((1, 0), "/echo");
    let tapper = grid.backend((1, 0));
    grid.tap(tapper, &json!({ "c": id }));
    grid.send(device, "echo");
    assert_eq!(whats(&grid.told(tapper)), ["in", "out"]);
}

#[test]
fn connections_of_an_address_are_told_and_refusals_with_their_reason_and_no_secret() {
    let mut grid = Grid::new();
    let tapper = grid.backend((1, 0));
    grid.tap(tapper, &json!({ "address": "192.0.2.7" }));
    grid.tap(tapper, &json!({ "address": "10.0.0.0/8" }));
    let at = (2, 1);
    let secrets = format!("Cookie: session={SECRET}\r\nAuthorization: Bearer {SECRET}\r\n");
    grid.request(at, Listener::Edge(0), &format!("/member?token={SECRET}"), &secrets);
    grid.request(at, Listener::Edge(0), &format!("/nowhere?token={SECRET}"), &secrets);
    grid.request(at, Listener::Edge(0), &format!("/ws?token={SECRET}"), &secrets);
    let texts = grid.read(tapper);
    assert!(texts.iter().all(|text| !text.contains(SECRET)), "{texts:?}");
    let told: Vec<Value> = texts
        .iter()
        .map(|text| serde_json::from_str::<Value>(text).unwrap()["p"].clone())
        .collect();
    assert_eq!(whats(&told), ["refuse", "refuse", "connect"]);
    assert_eq!((&told[0]["status"], &told[0]["path"]), (&json!(401), &json!("/member")));
    assert!(told[0]["why"].as_str().is_some_and(|why| !why.is_empty()), "{}", told[0]);
    assert_eq!((&told[0]["c"], &told[0]["remote"]), (&Value::Null, &json!("192.0.2.7:5000")));
    assert_eq!((&told[1]["status"], &told[1]["why"]), (&json!(404), &json!("no such route")));
    assert_eq!((&told[2]["path"], &told[2]["u"]), (&json!("/ws"), &Value::Null));
}

#[test]
fn the_refusals_of_a_route_are_told_to_a_tap_of_its_topic() {
    let mut grid = Grid::with(|settings| {
        let route = Arc::make_mut(&mut settings.edges[0].routes[0]);
        route.origins = Some(vec!["https://app.example".into()]);
    });
    let tapper = grid.backend((1, 0));
    grid.tap(tapper, &json!({ "topic": "messages" }));
    grid.request((1, 1), Listener::Edge(0), "/ws", "Origin: https://other.example\r\n");
    let told = grid.told(tapper);
    assert_eq!((whats(&told), &told[0]["status"]), (vec!["refuse"], &json!(403)));
}
#[test]
fn refusals_of_a_user_are_told_once_a_token_has_named_the_user() {
    let hook = AdmissionHook {
        service: HttpService::new("https://example.org/", 3000).expect("a URL"),
        secret: None,
    };
    let hook = Arc::new(hook);
    let mut grid = Grid::with(|settings| {
        let routes = &mut settings.edges[0].routes;
        let admit = Some(hook.clone());
        let route =
            RouteSettings { path: "/asked".into(), admit, ..RouteSettings::clone(&routes[1]) };
        Arc::make_mut(&mut routes[1]).subscribe = vec![];
        routes.push(Arc::new(route));
    });
    let tapper = grid.backend((1, 0));
    grid.tap(tapper, &json!({ "user": "ann" }));
    let at = (2, 1);
    let path = |path: &str| format!("{path}&token={}", token());
    grid.device(at, "/member?channels=news");
    assert_eq!(grid.told(tapper), Vec::<Value>::new(), "nobody knows whose connection it is");
    grid.device(at, &path("/member?channels=news"));
    let told = grid.told(tapper);
    assert_eq!((whats(&told), &told[0]["status"]), (vec!["refuse"], &json!(403)));
    assert_eq!((&told[0]["u"], &told[0]["path"]), (&json!("ann"), &json!("/member")));

    let device = grid.device(at, &path("/asked?channels=news"));
    // Others come while the hook decides.
    grid.device(at, "/nowhere");
    let now = grid.now;
    let request = grid.shard(device).poll_request();
    let Some(ShardRequest::Bridge(ToBridge::Admit(request))) = request else {
        panic!("the hook is asked")
    };
    let AdmissionRequest { connection, ticket, .. } = request;
    let verdict = AdmissionVerdict::Refused(401);
    let verdict = Box::new(FromBridge::Admission { connection, ticket, verdict });
    grid.shard(device).handle_message(now, ToShard::Node(FromNode::Bridge(verdict)));
    grid.run();
    let told = grid.told(tapper);
    assert_eq!((whats(&told), &told[0]["status"]), (vec!["refuse"], &json!(401)));
    assert_eq!(told[0]["why"], "the back end does not admit this client");
    assert_eq!((&told[0]["u"], &told[0]["path"]), (&json!("ann"), &json!("/asked")));
    assert!(!told[0].to_string().contains(&token()), "{}", told[0]);
}

#[test]
fn only_an_administrator_may_tap_and_the_caller_of_a_client_is_named() {
    let mut grid = Grid::with(|settings| {
        let app = Roles { read: true, write: true, admin: false };
        let app = User { roles: app, ..user("app", "app") };
        settings.api.users = vec![app, user("root", "root")].into();
    });
    let backend = |grid: &mut Grid, at, name: &str| {
        let header = format!("Authorization: Bearer {name}\r\n");
        let place = grid.request(at, Listener::Api, "/ws/v1", &header);
        grid.read(place);
        place
    };
    let (app, root) = (backend(&mut grid, (1, 1), "app"), backend(&mut grid, (1, 0), "root"));
    for (method, params) in [("tap.start", json!({ "c": "1" })), ("tap.stop", json!({}))] {
        assert_eq!(grid.call(app, method, &params)["E"]["c"], 102);
    }
    grid.tap(root, &json!({ "address": "192.0.2.7" }));
    grid.device((2, 1), "/ws");
    let id = grid.id_of(root);
    // From another node, another shard, and the client's own shard.
    for at in [(1, 1), (2, 0), (2, 1)] {
        let app = backend(&mut grid, at, "app");
        grid.call(app, "mesh.send", &json!({ "c": id, "d": "hello" }));
        grid.function(app, &id, "info", json!([]));
        let told = grid.told(root);
        assert_eq!(whats(&told), ["out", "call", "call"], "{at:?}");
        assert_eq!((&told[1]["by"], &told[2]["by"]), (&json!("app"), &json!("app")), "{at:?}");
    }
}
