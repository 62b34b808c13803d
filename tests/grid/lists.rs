//! Lists of administration over nodes that answer, freeze and die.

use serde_json::{Value, json};

use crate::support::{DEADLINE, Grid, Server, assert_error, bearer, until_within, users};

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
    let list = grid.nodes[0].backend().done("node.list", &json!({}));
    assert_eq!((&list["missing"], &list["nodes"][2]["clients"]), (&json!([3]), &Value::Null));
    grid.nodes[2].kill();
    until_within(DEADLINE, || {
        let list = grid.nodes[0].backend().done("node.list", &json!({}));
        states(&list) == [(1, "up"), (2, "up"), (3, "lost")] && list["missing"] == json!([])
    });
}

#[test]
fn lists_need_the_role_admin() {
    let server = Server::with(&users(&[
        ("app", "token = \"open-sesame\""),
        ("admin", "token = \"open-admin\"\nroles = [\"admin\"]"),
    ]));
    let status = |headers: &str| server.request("POST", "/v1/node/list", headers, "").status;
    let (app, admin) = (&bearer("open-sesame"), &bearer("open-admin"));
    assert_eq!([status(""), status(app), status(admin)], [401, 403, 200]);
    let mut socket = crate::support::Socket::connect(server.api, "/ws/v1", app).expect("it may");
    assert_error(&socket.call(r#"{"m":"node.list","i":1}"#), 102, Some("1"));
}

#[test]
fn a_device_is_found_by_its_user_from_any_node_and_channels_are_counted_over_all() {
    let grid = Grid::new(3);
    let mut devices = Vec::new();
    for node in &grid.nodes {
        devices.push(node.device("/plain?channels=news,sport"));
        devices.push(node.device("/plain?channels=news"));
    }
    let (_device, client) = grid.nodes[2].client();
    let mut back_end = grid.nodes[0].backend();
    back_end.conn_call(&client, "set_context_value", json!(["user_id", 10000]));
    for node in &grid.nodes {
        let mut back_end = node.backend();
        let page = back_end.done("client.list", &json!({ "user": "10000" }));
        let [found] = &page["clients"].as_array().expect("a list")[..] else { panic!("{page}") };
        assert_eq!((&found["c"], &found["n"]), (&json!(client), &json!(3)));
        assert_eq!((&found["u"], &found["channels"]), (&json!("10000"), &json!(0)));
        let page = back_end.done("client.list", &json!({ "channel": "news", "max": 1000 }));
        assert_eq!(
            (page["clients"].as_array().map(Vec::len), &page["next"]),
            (Some(6), &Value::Null)
        );
        let page = back_end.done("channel.list", &json!({}));
        let channels = json!([{ "c": "news", "clients": 6 }, { "c": "sport", "clients": 3 }]);
        assert_eq!((&page["channels"], &page["missing"]), (&channels, &json!([])));
        let topics = back_end.done("topic.list", &json!({}));
        assert!(topics["topics"].as_array().is_some_and(|topics| !topics.is_empty()), "{topics}");
    }
    // The walk of all pages meets each device once.
    let (mut params, mut met) = (json!({ "max": 2 }), Vec::new());
    while met.len() < 100 {
        let page = back_end.done("client.list", &params);
        let ids = page["clients"].as_array().expect("a list").iter().map(|row| row["c"].clone());
        met.extend(ids.map(|id| id.as_str().map(str::to_owned)));
        params["after"] = page["next"].clone();
        if params["after"].is_null() {
            break;
        }
    }
    assert_eq!(met.len(), 7);
    met.sort_unstable();
    met.dedup();
    assert_eq!(met.len(), 7);
}

#[test]
fn a_page_passes_over_a_node_that_is_frozen() {
    let grid = Grid::new(3);
    let _devices: Vec<_> = grid.nodes.iter().map(Server::client).collect();
    let mut back_end = grid.nodes[0].backend();
    grid.nodes[1].freeze();
    let (mut params, mut nodes, mut missing) = (json!({}), Vec::new(), Vec::new());
    for _ in 0..4 {
        let page = back_end.done("client.list", &params);
        nodes
            .extend(page["clients"].as_array().expect("a list").iter().map(|row| row["n"].clone()));
        missing.extend(page["missing"].as_array().expect("a list").iter().cloned());
        params["after"] = page["next"].clone();
        if params["after"].is_null() {
            break;
        }
    }
    assert_eq!((nodes, missing), (vec![json!(1), json!(3)], vec![json!(2)]));
    grid.nodes[1].thaw();
}
