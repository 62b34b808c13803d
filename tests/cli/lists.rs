//! `nodes`.

use serde_json::{Value, json};

use super::scripted::{Api, Reply};
use super::support::Server;
use super::{at, ended, run};

#[test]
fn the_nodes_are_shown_with_their_states() {
    let server = Server::new();
    let _device = server.device("/ws");
    let said = run(&server, &["nodes"]).succeeded();
    let lines: Vec<Vec<&str>> =
        said.lines().map(|line| line.split_whitespace().collect()).collect();
    let [header, node] = &lines[..] else { panic!("{said}") };
    assert_eq!(header[..4], ["NODE", "STATE", "VERSION", "UPTIME"]);
    assert_eq!(node[..3], ["1", "up", env!("CARGO_PKG_VERSION")]);
    let said = run(&server, &["nodes", "--json"]).succeeded();
    let node: Value = serde_json::from_str(&said).expect("one line of JSON");
    assert_eq!((&node["id"], &node["clients"], &node["cores"]), (&json!(1), &json!(1), &json!(2)));
    assert!(said.starts_with("{\"id\":1,\"state\":\"up\","), "{said}");
}

#[test]
fn what_is_no_list_is_a_failure() {
    let api = Api::start(|_, _| Reply::Result("{}".into()));
    let error = ended(&mut at(api.address, &["nodes"]), b"").failed(1);
    assert!(error.contains("node.list: the answer is not a list"), "{error}");
    let api = Api::start(|_, _| Reply::Lost);
    ended(&mut at(api.address, &["nodes"]), b"").failed(3);
}
