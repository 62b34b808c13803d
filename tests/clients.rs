//! The JavaScript client of devices: alone, and against nodes that die, in Node and in a browser.

#![forbid(unsafe_code)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use gridcast::protocol::token::{SigningKey, TokenAlgorithm};
use serde_json::{Value, json};
use support::{Grid, Server, Socket, browser};

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
    survive_the_death_of_the_node(None);
}

#[test]
fn a_device_in_a_browser_survives_the_death_of_its_node() {
    if let Some(browser) = browser() {
        survive_the_death_of_the_node(Some(browser));
    }
}

#[test]
fn a_device_in_node_renews_its_token_and_comes_back_when_the_gateway_says() {
    renew_a_token(None);
}

#[test]
fn a_device_in_a_browser_renews_its_token_and_comes_back_when_the_gateway_says() {
    if let Some(browser) = browser() {
        renew_a_token(Some(browser));
    }
}

#[test]
fn a_device_in_node_recovers_what_it_has_missed_and_is_told_of_what_is_gone() {
    recover(None);
}

#[test]
fn a_device_in_a_browser_recovers_what_it_has_missed_and_is_told_of_what_is_gone() {
    if let Some(browser) = browser() {
        recover(Some(browser));
    }
}

#[test]
fn a_device_in_node_is_told_who_comes_and_goes() {
    tell_who_comes_and_goes(None);
}

#[test]
fn a_device_in_a_browser_is_told_who_comes_and_goes() {
    if let Some(browser) = browser() {
        tell_who_comes_and_goes(Some(browser));
    }
}

fn tell_who_comes_and_goes(browser: Option<PathBuf>) {
    let secret = "0123456789abcdef0123456789abcdef";
    let server = Server::start(&format!(
        "[node]\ncores = 2\n[api]\nbind = \"127.0.0.1:0\"\n[[edge]]\nbind = \"127.0.0.1:0\"\n\
         [[edge.route]]\npath = \"/ws\"\ntopic = \"t\"\nsubscribe = [\"room:*\"]\n\
         token = {{ algorithm = \"HS256\", key = \"{secret}\" }}\n\
         [[channel]]\nmatch = \"room:*\"\npresence = true\npresence_grace_s = 0"
    ));
    let key = SigningKey::new(None, TokenAlgorithm::Hs256, secret).expect("it is long enough");
    let urls = [format!("ws://{}/ws", server.edge)];
    run("presence", browser, &urls, |what, user| match what {
        "token" => {
            let claims = json!({ "sub": user, "exp": now_s() + 3600 });
            key.sign(&claims).expect("it signs")
        }
        _ => panic!("{what} is not known"),
    });
}

fn recover(browser: Option<PathBuf>) {
    let server = Server::start(
        "[node]\ncores = 2\n[api]\nbind = \"127.0.0.1:0\"\n[[edge]]\nbind = \"127.0.0.1:0\"\n\
         [[edge.route]]\npath = \"/ws\"\ntopic = \"t\"\nsubscribe = [\"room:*\"]\n\
         [[channel]]\nmatch = \"room:*\"\nhistory = 3",
    );
    let mut consumer = server.consumer("t");
    let urls = [format!("ws://{}/ws", server.edge)];
    let mut published = 0;
    run("recovery", browser, &urls, |what, text| match what {
        // Each is sent twice, as by a back end that has got no answer.
        "publish" => {
            published += 1;
            let params = json!({ "c": "room:1", "d": text, "k": text }).to_string();
            let answers = [(); 2].map(|()| server.post("/v1/mesh/publish", &params));
            assert_eq!(answers[0], answers[1]);
            assert!(answers[0].contains(r#","o":""#), "{}", answers[0]);
            String::new()
        }
        "close" => {
            let (client, _) = message(&mut consumer);
            consumer.conn_call(&client, "close", json!([1012, ""])).to_string()
        }
        _ => panic!("{what} is not known"),
    });
    let metrics = server.get("/metrics").body;
    let repeated = format!("gridcast_repeated_total {published}\n");
    assert!(metrics.contains(&repeated), "{metrics}");
}

fn survive_the_death_of_the_node(browser: Option<PathBuf>) {
    let mut grid = Grid::new(2);
    let mut consumer = grid.nodes[1].consumer("messages2");
    let urls: Vec<_> =
        grid.nodes.iter().map(|node| format!("ws://{}/private", node.edge)).collect();
    let mut client = String::new();
    run("death", browser, &urls, |what, text| match what {
        "publish" => {
            grid.nodes[1].publish("news", text);
            String::new()
        }
        "publish_binary" => {
            let params = json!({ "c": "news", "d": text, "t": "binary" });
            grid.nodes[1].post("/v1/mesh/publish", &params.to_string())
        }
        "event" => {
            let (from, text) = message(&mut consumer);
            client = from;
            text
        }
        "kill" => {
            grid.nodes[0].kill();
            String::new()
        }
        "close" => consumer.conn_call(&client, "close", json!([4001, "banned"])).to_string(),
        _ => panic!("{what} is not known"),
    });
}

fn renew_a_token(browser: Option<PathBuf>) {
    let secret = "0123456789abcdef0123456789abcdef";
    let mut server = Server::start(&format!(
        "[node]\ncores = 1\n[api]\nbind = \"127.0.0.1:0\"\n[[edge]]\nbind = \"127.0.0.1:0\"\n\
         [[edge.route]]\npath = \"/ws\"\ntopic = \"t\"\n\
         token = {{ algorithm = \"HS256\", key = \"{secret}\" }}"
    ));
    let key = SigningKey::new(None, TokenAlgorithm::Hs256, secret).expect("it is long enough");
    let mut consumer = server.consumer("t");
    let urls = [format!("ws://{}/ws", server.edge)];
    let mut tokens = 0;
    run("renewal", browser, &urls, |what, _| match what {
        "token" => {
            tokens += 1;
            let lasts_s = if tokens == 1 { 1 } else { 3600 };
            let claims = json!({
                "sub": "ada",
                "exp": now_s() + lasts_s,
                "context": { "token": tokens },
            });
            key.sign(&claims).expect("it signs")
        }
        "context" => consumer.event()["d"]["context"]["token"].to_string(),
        "shut_down" => {
            assert_eq!(tokens, 2);
            server.terminate();
            String::new()
        }
        _ => panic!("{what} is not known"),
    });
}

/// Seconds since 1970.
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs()
}

/// Runs a scenario of a device, and answers what it asks for: a word, and the rest of the line.
fn run(
    scenario: &str,
    browser: Option<PathBuf>,
    urls: &[String],
    mut answer: impl FnMut(&str, &str) -> String,
) {
    let Some(mut node) = node() else { return };
    let child = node
        .arg(file("tests/clients/run.mjs"))
        .arg(scenario)
        .arg(browser.unwrap_or_default())
        .args(urls)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = child.expect("node starts");
    let mut answers = child.stdin.take().expect("a pipe");
    let requests = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut last = String::new();
    for request in requests.map(|line| line.expect("a line")) {
        if request == "ok" {
            last = request;
            continue;
        }
        let (what, text) = request.split_once(' ').unwrap_or((&request, ""));
        writeln!(answers, "{}", answer(what, text)).expect("the script reads");
    }
    let status = child.wait().expect("the script ends");
    assert!(status.success() && last == "ok", "the script says why");
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
