//! Lists of administration over nodes that answer, freeze and die.

use std::time::Instant;

use serde_json::{Value, json};

use crate::support::{DEADLINE, Grid, Server, assert_error, until_within};

/// The ids of the nodes that a `node.list` lists, with their states.
fn states(list: &Value) -> Vec<(u64, &str)> {
    let nodes = list["nodes"].as_array().expect("a list").iter();
    let state = |node: &Value| node["state"].as_str().map(str::len);
    assert!(nodes.clone().all(|node| state(node).is_some()), "{list}");
    nodes.filter_map(|node| Some((node["id"].as_u64()?, node["state"].as_str()?))).collect()
}

#[test]
fn any_node_lists_all_nodes_and_names_one_that_is_frozen_or_dead() {
    let mut grid = Grid::new(3);
    let _clients: Vec<_> = grid.nodes.iter().map(Server::client).collect();
    for node in &grid.nodes {
        let list = node.backend().done("node.list", &json!({}));
        assert_eq!(states(&list), [(1, "up"), (2, "up"), (3, "up")]);
        assert_eq!(list["missing"], json!([]));
        for node in list["nodes"].as_array().expect("a list") {
            assert_eq!((&node["clients"], &node["cores"]), (&json!(1), &json!(2)), "{node}");
            assert!(["io_uring", "epoll"].contains(&node["driver"].as_str().expect("a name")));
            assert!(node["memory"].as_u64() > Some(0) && node["memory_max"].as_u64() > Some(0));
        }
    }
    grid.nodes[2].freeze();
    let asked = Instant::now();
    let list = grid.nodes[0].backend().done("node.list", &json!({}));
    assert!(asked.elapsed().as_millis() < 2000, "answered after {:?}", asked.elapsed());
    assert_eq!((&list["missing"], &list["nodes"][2]["clients"]), (&json!([3]), &Value::Null));
    grid.nodes[2].kill();
    until_within(DEADLINE, || {
        let list = grid.nodes[0].backend().done("node.list", &json!({}));
        states(&list) == [(1, "up"), (2, "up")] && list["missing"] == json!([])
    });
}

#[test]
fn lists_need_the_role_admin() {
    let users = "[[api.user]]\nname = \"app\"\ntoken = \"open-sesame\"\n\
                 [[api.user]]\nname = \"admin\"\ntoken = \"open-admin\"\nroles = [\"admin\"]\n";
    let server = Server::with(users);
    let status = |headers: &str| server.request("POST", "/v1/node/list", headers, "").status;
    let (app, admin) =
        ("Authorization: Bearer open-sesame\r\n", "Authorization: Bearer open-admin\r\n");
    assert_eq!([status(""), status(app), status(admin)], [401, 403, 200]);
    let mut socket = crate::support::Socket::connect(server.api, "/ws/v1", app).expect("it may");
    assert_error(&socket.call(r#"{"m":"node.list","i":1}"#), 102, Some("1"));
}
