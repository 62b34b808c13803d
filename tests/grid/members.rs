//! Nodes that join, leave, and are not let in.

use std::fs;

use serde_json::json;

use crate::support::{
    DEADLINE, Grid, KEY, Process, SUCCESS, Server, assert_error, config_file, node_config, states,
    until_within,
};

#[test]
fn a_node_that_joins_is_known_to_all_and_knows_the_channels() {
    let mut grid = Grid::new(3);
    let mut clients: Vec<_> =
        grid.nodes.iter().map(|node| node.device("/plain?channels=news")).collect();
    grid.join();
    eprintln!("grid: a fourth node is known to all after {:?}", grid.wait_until_whole());
    assert_eq!(grid.nodes[3].publish("news", "from the fourth"), (3, 0));
    clients.push(grid.nodes[3].device("/plain?channels=news"));
    assert_eq!(grid.nodes[1].publish("news", "to all"), (4, 0));
    for (client, from) in clients.iter_mut().zip([true, true, true, false]) {
        assert!(!from || client.text() == "from the fourth");
        assert_eq!(client.text(), "to all");
    }
}

/// The value of a metric of a node.
fn metric(node: &Server, name: &str) -> u64 {
    let metrics = node.get("/metrics").body;
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{name} is not in\n{metrics}")).parse().expect("a number")
}

#[test]
fn a_node_is_ready_once_it_has_seen_the_nodes_that_it_expects_and_stays_so() {
    let expecting = |id, seeds: &[_], key| {
        node_config(id, None, seeds, key).replace("[mesh]", "[mesh]\nexpect = 2")
    };
    let first = Server::start(&expecting(1, &[], KEY));
    let seeds = [first.mesh.expect("it has a mesh")];
    let is_unready = |node: &Server| {
        let response = node.get("/readyz");
        (response.status, &response.body[..]) == (503, "1 of 2 nodes have been seen\n")
    };
    // A node with another key is alone: it does not look like a part of the grid.
    let stranger = Server::start(&expecting(2, &seeds, "another key of the same length"));
    let refused = "gridcast_mesh_refused_total{reason=\"key\"}";
    until_within(DEADLINE, || metric(&stranger, refused) > 0 && metric(&first, refused) > 0);
    for node in [&first, &stranger] {
        assert!(is_unready(node));
        assert_eq!(node.get("/healthz").status, 200);
        assert_eq!(metric(node, "gridcast_mesh_nodes"), 1);
        assert_eq!(metric(node, "gridcast_mesh_expected"), 2);
    }
    let mut second = Server::start(&expecting(3, &seeds, KEY));
    for node in [&first, &second] {
        // Each shard hears of it by itself.
        until_within(DEADLINE, || (0..8).all(|_| node.get("/readyz").status == 200));
        assert_eq!(metric(node, "gridcast_mesh_nodes"), 2);
    }
    second.kill();
    until_within(DEADLINE, || metric(&first, "gridcast_mesh_nodes") == 1);
    assert!((0..8).all(|_| first.get("/readyz").status == 200));
    assert!(is_unready(&stranger));
}

#[test]
fn a_node_that_is_told_to_end_leaves_the_grid_at_once() {
    let mut grid = Grid::new(3);
    let mut clients: Vec<_> =
        grid.nodes.iter().map(|node| node.device("/plain?channels=news")).collect();
    let (_client, gone) = grid.nodes[2].client();
    assert_eq!(grid.nodes[0].publish("news", "to all"), (3, 0));
    grid.nodes[2].terminate();
    assert_eq!(grid.nodes[2].exit_code(), Some(0));
    let rest = |id| (id, "up".to_owned());
    let left = grid.nodes.drain(..2).collect::<Vec<Server>>();
    for node in &left {
        // What it said last was that it leaves: nobody has to find out.
        let took = until_within(DEADLINE, || states(node) == [rest(1), rest(2)]);
        eprintln!("grid: a node that left is gone after {took:?}");
        assert_eq!(node.publish("news", "to the rest"), (2, 0));
        let answer = node.post("/v1/mesh/send", &format!(r#"{{"c":"{gone}","d":"late"}}"#));
        assert_error(&answer, 401, None);
    }
    clients.truncate(2);
    for client in &mut clients {
        assert_eq!(client.text(), "to all");
        assert_eq!((client.text(), client.text()), ("to the rest".into(), "to the rest".into()));
    }
}

#[test]
fn nodes_that_are_replaced_one_after_the_other_hand_over_what_they_hold() {
    let mut grid = Grid::new(3);
    for index in 0..3 {
        let [beside, other] = [1, 2].map(|step| (index + step) % 3);
        let mut stays = grid.nodes[beside].device("/plain?channels=news");
        let mut leaves = grid.nodes[index].device("/plain");
        (0..100).for_each(|number| leaves.send_text(&number.to_string()));
        leaves.synchronise();
        // One event at a time: the others are in the topic when the signal comes, and nobody is
        // connected to the node.
        let mut consumer = grid.nodes[beside].backend();
        let pop = r#"{"m":"queue.pop","p":{"t":["plain"],"a":true,"w":1},"i":12345}"#;
        assert_eq!(consumer.call(pop), SUCCESS);
        // With the first event, the node knows the consumer.
        let mut first = Some(consumer.event());
        drop(leaves);
        grid.nodes[index].terminate();
        for number in 0..100 {
            let event = first.take().unwrap_or_else(|| consumer.event());
            assert_eq!(event["d"]["frame"]["data"], number.to_string());
            consumer.done("queue.ack", &json!({ "g": event["g"] }));
        }
        assert_eq!(grid.nodes[index].exit_code(), Some(0));
        assert_eq!(grid.nodes[other].publish("news", "while it is away"), (1, 0));
        grid.restart(index);
        eprintln!("grid: replaced: known to all after {:?}", grid.wait_until_whole());
        assert_eq!(grid.nodes[index].publish("news", "from the new one"), (1, 0));
        assert_eq!(stays.text(), "while it is away");
        assert_eq!(stays.text(), "from the new one");
    }
}

#[test]
fn a_node_with_another_key_is_refused_and_both_logs_say_so() {
    let mut grid = Grid::new(1);
    let seed = grid.nodes[0].mesh.expect("it has a mesh");
    let mut stranger =
        Server::start(&node_config(2, None, &[seed], "another key of the same length"));
    let why = "the peer has another grid key (mesh.key)";
    stranger.logs(why);
    grid.nodes[0].logs(why);
    for (node, id) in [(&grid.nodes[0], 1), (&stranger, 2)] {
        assert_eq!(states(node), [(id, "up".to_owned())]);
    }
}

#[test]
fn a_node_whose_id_is_in_use_ends_and_both_logs_say_so() {
    let mut grid = Grid::new(2);
    let seed = grid.nodes[0].mesh.expect("it has a mesh");
    let known = grid.nodes[1].mesh.expect("it has a mesh");
    // That of the node that it asks, and that of one that that node knows.
    let newcomers = [(1, seed), (2, known)].map(|(id, holder)| {
        let file = config_file(&node_config(id, None, &[seed], KEY));
        let arguments = ["serve", "--config", file.to_str().expect("UTF-8")];
        (
            Process::start(&arguments),
            file,
            format!("node id {id} is in use by the node at {holder}"),
        )
    });
    for (mut newcomer, file, why) in newcomers {
        // It asks for a while: who had the id before may be about to go.
        let (code, lines) = newcomer.finish();
        fs::remove_file(file).expect("the file was there to be read");
        assert_eq!(code, Some(1), "{lines:#?}");
        assert!(lines.last().is_some_and(|line| line.contains(&why)), "{lines:#?}");
        grid.nodes[0].logs(&format!("is refused: {why}"));
    }
    grid.wait_until_whole();
}

#[test]
fn nodes_that_start_before_their_seed_join_when_it_comes() {
    let mut grid = Grid::new(2);
    grid.nodes[0].kill();
    grid.join();
    grid.restart(0);
    eprintln!("grid: whole {:?} after the seed came", grid.wait_until_whole());
}
