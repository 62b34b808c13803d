//! Calls through any node, for clients of any node.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Grid, Message, Server, Socket, frame};

/// Calls `check` for each node of the API and each node of a client, the same two among them. Each
/// time with a client that nothing was done with before, and its id.
fn for_each_pair(check: impl Fn(&Server, &mut Socket, &str, u64)) {
    let grid = Grid::new(3);
    let holders = || (0..3).flat_map(|_| grid.nodes.iter().zip(1..));
    // All come before the first goes, which their consumers would hear of.
    let mut clients: Vec<_> = holders().map(|(holder, id)| (holder.client(), id)).collect();
    for (through, clients) in grid.nodes.iter().zip(clients.chunks_mut(3)) {
        for ((client, id), node) in clients {
            check(through, client, id, *node);
        }
    }
}

/// The answer's code of an error.
fn code(answer: &serde_json::Value) -> u64 {
    answer["E"]["c"].as_u64().unwrap_or_else(|| panic!("not an error: {answer}"))
}

#[test]
fn a_message_is_sent_through_any_node_to_a_client_of_any() {
    for_each_pair(|through, client, id, _| {
        let mut backend = through.backend();
        let sent = json!({ "s": true });
        let text = json!({ "c": id, "d": "data" });
        let binary = json!({ "c": id, "d": "AAH+/w==", "t": "binary" });
        assert_eq!(backend.done("mesh.send", &text), sent);
        assert_eq!(client.read(), Message::Text("data".into()));
        assert_eq!(backend.done("mesh.send", &binary), sent);
        assert_eq!(client.read(), Message::Binary(vec![0, 1, 254, 255]));
        for body in [text, binary] {
            let answer = through.post("/v1/mesh/send", &body.to_string());
            assert_eq!(answer, r#"{"E":null,"r":{"s":true}}"#);
        }
        assert_eq!(client.read(), Message::Text("data".into()));
        assert_eq!(client.read(), Message::Binary(vec![0, 1, 254, 255]));
    });
}

#[test]
fn a_user_is_reached_on_every_node_and_out_of_the_counts_when_a_node_dies() {
    let mut grid = Grid::new(3);
    let mut clients: Vec<_> = grid.nodes.iter().map(Server::client).collect();
    let mut backend = grid.nodes[0].backend();
    for (_, id) in &clients {
        let done = json!({ "s": true });
        assert_eq!(backend.conn_call(id, "set_context_value", json!(["user_id", "ada"])), done);
    }
    for through in &grid.nodes {
        let sent = through.backend().done("user.send", &json!({ "u": "ada", "d": "hello" }));
        assert_eq!(sent, json!({ "s": 3, "f": 0 }));
        clients.iter_mut().for_each(|(client, _)| assert_eq!(client.text(), "hello"));
        let call = json!({ "u": ["ada"], "f": "subscribe", "a": ["room"] });
        assert_eq!(through.backend().done("user.call", &call), json!({ "s": 3, "f": 0 }));
        assert_eq!(through.backend().publish("room", "x"), (3, 0));
        let told = through.backend().done("user.info", &json!({ "u": "ada" }));
        let rows = told["users"]["ada"].as_array().expect("a list").iter();
        let nodes: BTreeSet<_> = rows.map(|row| row["n"].as_u64()).collect();
        assert_eq!(nodes, [1, 2, 3].map(Some).into());
        let counted = through.backend().done("channel.info", &json!({ "c": "room" }));
        assert_eq!(counted, json!({ "channels": { "room": { "clients": 3 } }, "missing": [] }));
        clients.iter_mut().for_each(|(client, _)| assert_eq!(client.text(), "x"));
    }
    let died = Instant::now();
    grid.nodes[2].kill();
    loop {
        let asked = Instant::now();
        let reached = backend.done("user.call", &json!({ "u": "ada", "f": "info" }));
        assert_eq!(reached, json!({ "s": 2, "f": 0 }));
        let took = asked.elapsed();
        assert!(took < Duration::from_secs(4), "a call took {took:?}");
        let told = backend.done("user.info", &json!({ "u": "ada" }));
        assert_eq!(told["users"]["ada"].as_array().map(Vec::len), Some(2));
        let counted = backend.done("channel.info", &json!({ "c": "room" }));
        assert_eq!(counted["channels"]["room"]["clients"], 2);
        // The grid has given the dead node up once it is not waited for any more.
        if took < Duration::from_millis(500) && died.elapsed() > Duration::from_secs(1) {
            return;
        }
        assert!(died.elapsed() < Duration::from_secs(50), "the dead node is still waited for");
    }
}

#[test]
fn each_function_of_a_connection_is_called_through_any_node() {
    for_each_pair(|through, client, id, node| {
        let mut backend = through.backend();
        let done = json!({ "s": true });
        let mut call = |function, arguments| backend.conn_call(id, function, arguments);

        assert_eq!(call("set_context_value", json!(["user_id", 10000])), done);
        assert_eq!(call("get_context", json!([]))["context"], json!({ "user_id": 10000 }));
        assert_eq!(call("set_context", json!([{ "name": "a" }])), done);
        assert_eq!(call("get_context", json!([]))["context"], json!({ "name": "a" }));

        let [one, two] = ["one", "two"].map(|part| format!("{id}-{part}"));
        assert_eq!(call("subscribe", json!([one, two])), done);
        let info = call("info", json!([]));
        assert_eq!((&info["node"], &info["remote"]), (&json!(node), &json!(client.address())));
        assert_eq!(info["channels"], json!([one, two]));
        assert_eq!(backend.publish(&one, "first"), (1, 0));
        assert_eq!(client.text(), "first");
        assert_eq!(backend.conn_call(id, "unsubscribe", json!([one])), done);
        assert_eq!(backend.publish(&one, "nobody hears it"), (0, 0));
        assert_eq!(backend.publish(&two, "second"), (1, 0));
        assert_eq!(client.text(), "second");

        assert_eq!(backend.conn_call(id, "close", json!([4001, "enough"])), done);
        assert_eq!(client.closed(), (4001, "enough".into()));
        client.send_close(4001, "");
        let call = json!({ "c": id, "f": "info", "a": [] });
        assert_eq!(code(&backend.ask("conn.call", &call)), 301);
        assert_eq!(code(&backend.ask("mesh.send", &json!({ "c": id, "d": "late" }))), 401);
        assert_eq!(backend.publish(&two, "late"), (0, 0));
    });
}

#[test]
fn a_publish_through_any_node_counts_and_reaches_each_subscriber_once() {
    let grid = Grid::new(3);
    // Different numbers on the nodes, so that no count can stand for another.
    let subscribers = |server: &Server, count| -> Vec<Socket> {
        (0..count).map(|_| server.device("/plain?channels=news,other")).collect()
    };
    let mut clients: Vec<Socket> = grid
        .nodes
        .iter()
        .zip([1, 2, 4])
        .flat_map(|(node, count)| subscribers(node, count))
        .collect();
    for (node, number) in grid.nodes.iter().zip(0..) {
        assert_eq!(node.backend().publish("news", &format!("ws {number}")), (7, 0));
        assert_eq!(node.publish("news", &format!("http {number}")), (7, 0));
        let binary = json!({ "c": "other", "d": "AAH+/w==", "t": "binary" });
        assert_eq!(node.backend().done("mesh.publish", &binary), json!({ "s": 7, "f": 0 }));
        assert_eq!(node.publish("nobody's", "x"), (0, 0));
    }
    for client in &mut clients {
        for number in 0..3 {
            assert_eq!(client.text(), format!("ws {number}"));
            assert_eq!(client.text(), format!("http {number}"));
            assert_eq!(client.read(), Message::Binary(vec![0, 1, 254, 255]));
        }
    }
}

#[test]
fn a_publish_to_several_channels_adds_up_over_the_grid_and_leaves_out_clients_of_any_node() {
    let grid = Grid::new(3);
    let mut devices: Vec<(Socket, String)> = Vec::new();
    let mut consumer = grid.nodes[0].consumer("messages");
    for node in &grid.nodes {
        for channels in ["a", "a,b"] {
            let device = node.device(&format!("/ws?channels={channels}"));
            devices.push((device, consumer.opened()));
        }
    }
    let excluded = [&devices[0].1, &devices[3].1];
    for (node, number) in grid.nodes.iter().zip(0..) {
        let mut backend = node.backend();
        let all = json!({ "c": ["a", "b"], "d": format!("all {number}") });
        assert_eq!(backend.done("mesh.publish", &all), json!({ "s": 9, "f": 0 }));
        let some = json!({ "c": ["a", "b"], "d": format!("some {number}"), "x": excluded });
        assert_eq!(backend.done("mesh.publish", &some), json!({ "s": 6, "f": 0 }));
    }
    for (at, (device, _)) in devices.iter_mut().enumerate() {
        let copies = 1 + at % 2;
        for number in 0..3 {
            for _ in 0..copies {
                assert_eq!(device.text(), format!("all {number}"));
            }
            for _ in 0..if [0, 3].contains(&at) { 0 } else { copies } {
                assert_eq!(device.text(), format!("some {number}"));
            }
        }
    }
}

#[test]
fn a_publish_right_behind_the_answer_to_a_subscribe_arrives_every_time() {
    const ROUNDS: usize = 1000;
    let grid = Grid::new(3);
    let (mut client, id) = grid.nodes[1].client();
    let [mut subscribing, _, mut publishing] = [0, 1, 2].map(|index| grid.nodes[index].backend());
    for round in 0..ROUNDS {
        let channel = format!("channel {}", round % 10);
        subscribing.conn_call(&id, "subscribe", json!([channel]));
        assert_eq!(publishing.publish(&channel, &round.to_string()), (1, 0), "round {round}");
        assert_eq!(client.text(), round.to_string());
        // So that the next subscribe is news to the other nodes again.
        subscribing.conn_call(&id, "unsubscribe", json!([channel]));
    }
}

#[test]
fn a_client_that_subscribes_as_it_connects_gets_what_is_published_from_then_on() {
    let grid = Grid::new(3);
    for round in 0..100 {
        let channel = format!("channel{round}");
        let mut client = grid.nodes[round % 3].device(&format!("/plain?channels={channel}"));
        assert_eq!(grid.nodes[(round + 1) % 3].publish(&channel, "x"), (1, 0), "round {round}");
        assert_eq!(client.text(), "x");
    }
}

#[test]
fn pipelined_publishes_arrive_whole_and_in_order_on_each_node() {
    publish_in_a_pipeline(&Grid::new(3));
}

#[test]
fn links_that_are_spread_over_threads_carry_all_in_order_and_come_back() {
    let mut grid = Grid::with(3, "threads = 2\n");
    publish_in_a_pipeline(&grid);
    for node in &grid.nodes {
        let metrics = node.get("/metrics").body;
        let carried = |line: &str| line.starts_with("gridcast_mesh_thread_links{");
        let carried: Vec<&str> = metrics.lines().filter(|line| carried(line)).collect();
        let expected = [(0, 0), (1, 1), (2, 1)];
        let expected = expected.map(|(thread, links)| {
            format!("gridcast_mesh_thread_links{{thread=\"{thread}\"}} {links}")
        });
        assert_eq!(carried, expected);
    }
    // The links of a node that was killed are replaced.
    grid.nodes[2].kill();
    grid.restart(2);
    grid.wait_until_whole();
    publish_in_a_pipeline(&grid);
}

/// Publishes without waiting for answers, to a client of each node.
fn publish_in_a_pipeline(grid: &Grid) {
    const MESSAGES: usize = 5000;
    let mut clients: Vec<Socket> =
        grid.nodes.iter().map(|node| node.device("/plain?channels=news")).collect();
    let mut backend = grid.nodes[0].backend();
    let mut writer = backend.writer();
    let sending = std::thread::spawn(move || {
        let publish = |i| json!({ "m": "mesh.publish", "p": { "c": "news", "d": i }, "i": i });
        let requests = (0..MESSAGES)
            .flat_map(|number| frame(0x81, publish(number.to_string()).to_string().as_bytes()));
        std::io::Write::write_all(&mut writer, &requests.collect::<Vec<u8>>())
    });
    let reading: Vec<_> = clients
        .drain(..)
        .map(|mut client| {
            std::thread::spawn(move || {
                (0..MESSAGES).for_each(|number| assert_eq!(client.text(), number.to_string()));
            })
        })
        .collect();
    for number in 0..MESSAGES {
        assert_eq!(backend.text(), format!(r#"{{"E":null,"r":{{"s":3,"f":0}},"i":"{number}"}}"#));
    }
    sending.join().expect("no panic").expect("the node reads");
    reading.into_iter().for_each(|reading| reading.join().expect("all of it arrives in order"));
}

#[test]
fn what_one_back_end_sends_to_a_client_of_another_node_arrives_in_order() {
    const MESSAGES: usize = 2000;
    let grid = Grid::new(2);
    let (mut client, id) = grid.nodes[1].client();
    let mut backend = grid.nodes[0].backend();
    backend.conn_call(&id, "subscribe", json!(["news"]));
    let request = |number: usize| match number % 2 {
        0 => json!({ "m": "mesh.send", "p": { "c": id, "d": number.to_string() } }),
        _ => json!({ "m": "mesh.publish", "p": { "c": "news", "d": number.to_string() } }),
    };
    let requests: Vec<u8> =
        (0..MESSAGES).flat_map(|n| frame(0x81, request(n).to_string().as_bytes())).collect();
    let mut writer = backend.writer();
    let sending = std::thread::spawn(move || std::io::Write::write_all(&mut writer, &requests));
    for number in 0..MESSAGES {
        assert_eq!(client.text(), number.to_string());
    }
    sending.join().expect("no panic").expect("the node reads");
}
