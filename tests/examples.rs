//! The example back ends of the README answer a client, each in its language.

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use support::Server;

/// Ends the example with the test.
struct Example(Child);

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs an example against a server of its own and talks to it as a client; skips with a word where
/// its interpreter is missing.
fn answers_a_client(interpreter: &str, file: &str) {
    if Command::new(interpreter).arg("--version").output().is_err() {
        return eprintln!("skipped: {interpreter} is not installed");
    }
    let server = Server::new();
    let path = format!("{}/examples/{file}", env!("CARGO_MANIFEST_DIR"));
    let child = Command::new(interpreter)
        .args([path, server.api.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the interpreter starts");
    let mut example = Example(child);
    let output = example.0.stdout.take().expect("it is piped");
    let mut lines = BufReader::new(output).lines();
    let first = lines.next().expect("it prints its first answer").expect("it prints text");
    assert_eq!(first, r#"{"E":null,"r":{"s":true},"i":1}"#);
    // What it prints later is read too, lest it waits for a full pipe.
    std::thread::spawn(move || lines.for_each(drop));
    let mut client = server.device("/ws");
    client.send_text("hello");
    assert_eq!(client.text(), "you said: hello");
    let long = "é".repeat(30_000);
    client.send_text(&long);
    assert_eq!(client.text(), format!("you said: {long}"));
}

#[test]
fn the_python_back_end_answers_a_client() {
    answers_a_client("python3", "backend.py");
}

#[test]
fn the_node_back_end_answers_a_client() {
    answers_a_client("node", "backend.mjs");
}

#[test]
fn each_example_stays_under_thirty_lines() {
    for text in [include_str!("../examples/backend.py"), include_str!("../examples/backend.mjs")] {
        assert!(text.lines().count() < 30);
    }
}

#[test]
fn the_nodes_of_the_example_grid_have_valid_configurations() {
    for number in 1..=3 {
        let file = format!("{}/examples/grid/node-{number}.toml", env!("CARGO_MANIFEST_DIR"));
        let check = Command::new(env!("CARGO_BIN_EXE_gridcast"))
            .args(["check", "--config", &file])
            .env_clear()
            .output()
            .expect("gridcast runs");
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    }
}
