//! The JavaScript client of devices: alone, and against nodes that die, in Node and in a browser.

#![forbid(unsafe_code)]

mod support;

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::{Grid, Socket};

/// Node with a WebSocket of its own: from version 22, or with a flag from 20.10.
fn node() -> Option<Command> {
    let flag = "--experimental-websocket";
    let check = Command::new("node")
        .args([flag, "--eval", "new WebSocket('ws://[::1]:9').onerror = () => {}"])
        .output();
    if check.is_ok_and(|output| output.status.success()) {
        let mut command = Command::new("node");
        command.arg(flag);
        return Some(command);
    }
    eprintln!("skipped: no node of version 20.10 or later on PATH");
    None
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

#[test]
fn the_client_keeps_its_rules_against_a_gateway_that_a_test_plays() {
    let Some(mut node) = node() else { return };
    let output = node.arg("--test").arg(file("clients/js/test/unit.test.js")).output();
    let output = output.expect("node starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_device_in_node_survives_the_death_of_its_node() {
    if let Some(node) = node() {
        survives_the_death_of_its_node(node, None);
    }
}

#[test]
fn a_device_in_a_browser_survives_the_death_of_its_node() {
    let Some(node) = node() else { return };
    let path = env::var_os("PATH").unwrap_or_default();
    let browser = ["chromium", "google-chrome"]
        .iter()
        .flat_map(|name| env::split_paths(&path).map(move |folder| folder.join(name)))
        .find(|file| file.is_file());
    let Some(browser) = browser else { return eprintln!("skipped: no chromium on PATH") };
    survives_the_death_of_its_node(node, Some(browser));
}

/// Runs the scenario, and does what it asks for.
fn survives_the_death_of_its_node(mut node: Command, browser: Option<PathBuf>) {
    let mut grid = Grid::new(2);
    let mut consumer = grid.nodes[1].consumer("messages2");
    let urls = grid.nodes.iter().map(|node| format!("ws://{}/private", node.edge));
    let child = node
        .arg(file("tests/clients/run.mjs"))
        .args(urls)
        .args(browser)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = child.expect("node starts");
    let mut answers = child.stdin.take().expect("a pipe");
    let requests = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut client = String::new();
    let mut last = String::new();
    for request in requests.map(|line| line.expect("a line")) {
        let answer = match request.split_once(' ').unwrap_or((&request, "")) {
            ("publish", text) => {
                grid.nodes[1].publish("news", text);
                String::new()
            }
            ("publish_binary", data) => {
                let params = json!({ "c": "news", "d": data, "t": "binary" });
                grid.nodes[1].post("/v1/mesh/publish", &params.to_string())
            }
            ("event", _) => {
                let (from, text) = message(&mut consumer);
                client = from;
                text
            }
            ("kill", _) => {
                grid.nodes[0].kill();
                String::new()
            }
            ("close", _) => {
                consumer.conn_call(&client, "close", json!([4001, "banned"])).to_string()
            }
            _ => {
                last = request;
                continue;
            }
        };
        writeln!(answers, "{answer}").expect("the script reads");
    }
    let status = child.wait().expect("the script ends");
    assert!(status.success() && last == "ok", "{last}: the script says why");
}

/// The next message of a device: its client, and its type and data.
#[track_caller]
fn message(consumer: &mut Socket) -> (String, String) {
    loop {
        let event = consumer.event();
        if let Value::Object(frame) = &event["d"]["frame"] {
            let text = |value: &Value| value.as_str().expect("a string").to_owned();
            let [kind, data] = ["type", "data"].map(|key| text(&frame[key]));
            return (text(&event["c"]), format!("{kind} {data}"));
        }
    }
}
