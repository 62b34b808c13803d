//! The examples do what they say, each in its language. One whose interpreter is missing is skipped
//! with a word: `.ci/tools` installs them.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use support::{Server, Socket, browser, refusing_port};

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

/// The path of a file of the examples.
fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

/// A server with the configuration of an example, on ports that the system picks, and the example.
fn run(config: &str, program: &mut Command) -> (Server, Example) {
    let config = std::fs::read_to_string(file(config)).expect("the configuration is there");
    let config = config.replace("127.0.0.1:6790", "127.0.0.1:0");
    let head = "[node]\ncores = 1\n[api]\nbind = \"127.0.0.1:0\"\n";
    let server = Server::start(&format!("{head}{config}"));
    let child = program.arg(server.api.to_string()).stdout(Stdio::piped()).spawn();
    let mut example = Example(child.expect("the program starts"));
    let output = example.0.stdout.take().expect("it is piped");
    let mut lines = BufReader::new(output).lines();
    let first = lines.next().expect("it prints its first line").expect("it prints text");
    assert_eq!(first, format!("connected to {}", server.api));
    // What it prints later are errors, of which there are none.
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| eprintln!("{line}")));
    (server, example)
}

fn interpreter(name: &str, version: &str) -> Option<Command> {
    if Command::new(name).arg(version).stdout(Stdio::null()).status().is_ok() {
        return Some(Command::new(name));
    }
    eprintln!("skipped: {name} is not installed");
    None
}

/// The next message of a device, as JSON.
#[track_caller]
fn said(device: &mut Socket) -> Value {
    serde_json::from_str(&device.text()).expect("it is JSON")
}

fn say(device: &mut Socket, message: Value) {
    device.send_text(&message.to_string());
}

fn people_talk(program: &mut Command) {
    let (server, _example) = run("chat/gridcast.toml", program);
    let mut ada = server.device("/chat");
    say(&mut ada, json!({ "login": "ada", "password": "lovelace" }));
    say(&mut ada, json!({ "say": "early" }));
    assert_eq!(said(&mut ada), json!({ "welcome": "ada", "room": "lobby" }));
    assert_eq!(said(&mut ada), json!({ "from": "ada", "say": "early" }));
    for login in [json!({ "login": "ada", "password": "" }), json!({ "say": "x" }), json!([1])] {
        let mut stranger = server.device("/chat");
        say(&mut stranger, login);
        assert_eq!(said(&mut stranger), json!({ "error": "wrong name or password" }));
        assert_eq!(stranger.closed().0, 4001);
    }
    let mut alan = server.device("/chat");
    say(&mut alan, json!({ "login": "alan", "password": "turing" }));
    assert_eq!(said(&mut alan), json!({ "welcome": "alan", "room": "lobby" }));
    assert_eq!(said(&mut ada), json!({ "joined": "alan" }));
    say(&mut alan, json!({ "say": "grüße" }));
    for device in [&mut ada, &mut alan] {
        assert_eq!(said(device), json!({ "from": "alan", "say": "grüße" }));
    }
    ada.send_binary(b"not a message");
    assert_eq!(said(&mut ada), json!({ "error": "say, or room" }));
    say(&mut ada, json!({ "room": "tea" }));
    assert_eq!(said(&mut ada), json!({ "welcome": "ada", "room": "tea" }));
    assert_eq!(said(&mut alan), json!({ "left": "ada" }));
    say(&mut alan, json!({ "room": "tea" }));
    assert_eq!(said(&mut alan), json!({ "welcome": "alan", "room": "tea" }));
    assert_eq!(said(&mut ada), json!({ "joined": "alan" }));
    drop(ada);
    assert_eq!(said(&mut alan), json!({ "left": "ada" }));
}

#[test]
fn people_talk_in_the_python_chat() {
    let Some(mut python) = interpreter("python3", "--version") else { return };
    people_talk(python.arg("-B").arg(file("chat/chat.py")));
}

#[test]
fn people_talk_in_the_php_chat() {
    let Some(mut php) = interpreter("php", "--version") else { return };
    people_talk(php.arg(file("chat/chat.php")));
}

#[test]
fn people_talk_in_the_page_of_the_room() {
    let python = interpreter("python3", "--version");
    let (Some(mut python), Some(mut node), Some(browser)) =
        (python, interpreter("node", "--version"), browser())
    else {
        return;
    };
    let config = std::fs::read_to_string(file("room/gridcast.toml"));
    let config =
        config.expect("the configuration is there").replace("127.0.0.1:6790", "127.0.0.1:0");
    let server =
        Server::start(&format!("[node]\ncores = 1\n[api]\nbind = \"127.0.0.1:0\"\n{config}"));
    python.arg("-B").arg(file("room/room.py")).args([&server.api.to_string(), "127.0.0.1:0"]);
    let child = python.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut back_end = Example(child.expect("python starts"));
    let output = back_end.0.stdout.take().expect("it is piped");
    let mut lines = BufReader::new(output).lines();
    let first = lines.next().expect("it prints its first line").expect("it prints text");
    let page = first.strip_prefix("open ").expect("the address of the page").to_owned();
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| eprintln!("{line}")));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/room.mjs");
    let edge = format!("ws://{}/room", server.edge);
    let status = node.arg(script).arg(browser).args([&page, &edge]).status();
    assert!(status.expect("node starts").success());
}

fn sensors_are_shown(program: &mut Command) {
    let (server, _example) = run("feed/gridcast.toml", program);
    let mut dashboard = server.device("/dashboard?channels=measurements");
    assert_eq!(said(&mut dashboard), json!({ "state": {} }));
    let mut sensor = server.device("/sensor?id=kitchen");
    assert_eq!(said(&mut dashboard), json!({ "sensor": "kitchen", "online": true }));
    let mut alarms = Vec::new();
    for (celsius, alarm) in [(21.5, None), (70.5, Some(true)), (80.5, None), (20.5, Some(false))] {
        say(&mut sensor, json!({ "celsius": celsius }));
        let expected = json!({ "sensor": "kitchen", "celsius": celsius, "online": true });
        assert_eq!(said(&mut dashboard), expected);
        alarms.extend(alarm);
    }
    for alarm in alarms {
        assert_eq!(said(&mut sensor), json!({ "alarm": alarm }));
    }
    let mut other = server.device("/dashboard?channels=sensor:kitchen");
    let state = json!({ "state": { "kitchen": { "celsius": 20.5, "online": true } } });
    assert_eq!(said(&mut other), state);
    drop(sensor);
    for dashboard in [&mut dashboard, &mut other] {
        let gone = json!({ "sensor": "kitchen", "celsius": 20.5, "online": false });
        assert_eq!(said(dashboard), gone);
    }
    let mut nameless = server.device("/sensor");
    assert_eq!(nameless.closed().0, 4000);
}

#[test]
fn the_node_feed_shows_sensors() {
    let Some(mut node) = interpreter("node", "--version") else { return };
    sensors_are_shown(node.arg(file("feed/feed.mjs")));
}

#[test]
fn the_go_feed_shows_sensors() {
    let Some(mut go) = interpreter("go", "version") else { return };
    let program =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("feed-{}", std::process::id()));
    // `go run` would leave the program behind when it is killed.
    let built = go.args(["build", "-o"]).arg(&program).current_dir(file("feed")).status();
    assert!(built.expect("go runs").success());
    sensors_are_shown(&mut Command::new(&program));
    std::fs::remove_file(program).expect("it was built");
}

#[test]
fn a_php_script_behind_a_web_server_answers_devices() {
    let Some(mut php) = interpreter("php", "--version") else { return };
    // The port is free again when the socket is dropped.
    let (socket, address) = refusing_port();
    drop(socket);
    php.args(["-S", &address.to_string(), "-t"]).arg(file("webhook"));
    php.env("GRIDCAST_SECRET", "change-me").stderr(Stdio::null());
    let _php = Example(php.spawn().expect("php starts"));
    let config = std::fs::read_to_string(file("webhook/gridcast.toml"));
    let config = config.expect("the configuration is there");
    let config = config.replace("127.0.0.1:6790", "127.0.0.1:0");
    let config = config.replace("127.0.0.1:8080", &address.to_string());
    let server = Server::start(&format!("[api]\nbind = \"127.0.0.1:0\"\n{config}"));
    let mut ada = server.device("/shop");
    assert_eq!(said(&mut ada), json!({ "menu": { "tea": 2, "cake": 4 } }));
    let mut alan = server.device("/shop");
    assert_eq!(said(&mut alan), json!({ "menu": { "tea": 2, "cake": 4 } }));
    say(&mut alan, json!({ "order": "cake" }));
    assert_eq!(said(&mut alan), json!({ "ordered": "cake", "price": 4 }));
    for device in [&mut ada, &mut alan] {
        assert_eq!(said(device), json!({ "make": "cake" }));
    }
    for wrong in [json!({ "order": "stones" }), json!({ "order": [] }), json!(7)] {
        say(&mut ada, wrong);
        assert_eq!(said(&mut ada), json!({ "error": "not on the menu" }));
    }
    ada.send_binary(b"\xff");
    assert_eq!(said(&mut ada), json!({ "error": "not on the menu" }));
    let mut stranger = TcpStream::connect(address).expect("it listens");
    let request = b"POST /shop.php HTTP/1.0\r\nContent-Length: 2\r\n\r\n[]";
    stranger.write_all(request).expect("it reads");
    let mut answer = String::new();
    stranger.read_to_string(&mut answer).expect("it answers");
    assert!(answer.starts_with("HTTP/1.0 403"), "{answer}");
}

fn jobs_are_worked_on(program: &mut Command) {
    let (server, worker) = run("worker/gridcast.toml", program);
    let mut device = server.device("/jobs");
    say(&mut device, json!({ "job": "resize" }));
    assert_eq!(said(&mut device), json!({ "done": "RESIZE" }));
    // No job: it fails twice, and does not hold up the others for good.
    device.send_text("poison");
    say(&mut device, json!({ "job": "crop" }));
    assert_eq!(said(&mut device), json!({ "done": "CROP" }));
    let dead = r#"{"t":["jobs.dead"],"wait_ms":10000}"#;
    let dead: Value = serde_json::from_str(&server.post("/v1/queue/take", dead)).expect("JSON");
    let event = &dead["r"]["events"][0];
    assert_eq!(event["d"]["frame"]["data"], "poison", "{dead}");
    assert_eq!(event["dead"], json!({ "t": "jobs", "tries": 2, "why": "nack" }));
    server.post("/v1/queue/push", r#"{"t":"jobs","d":"{\"job\":\"mail\"}"}"#);
    support::until(|| jobs(&server) == json!(0));
    drop(worker);
}

/// The events in the topic of the jobs that are not acknowledged.
fn jobs(server: &Server) -> Value {
    let list = server.backend().done("topic.list", &json!({}));
    let topics = list["topics"].as_array().expect("a list");
    topics.iter().find(|topic| topic["t"] == "jobs").expect("the topic")["messages"].clone()
}

#[test]
fn the_python_worker_takes_jobs_over_http() {
    let Some(mut python) = interpreter("python3", "--version") else { return };
    jobs_are_worked_on(python.arg("-B").arg(file("worker/worker.py")));
}

#[test]
fn the_php_worker_takes_jobs_over_http() {
    let Some(mut php) = interpreter("php", "--version") else { return };
    let modules = Command::new("php").arg("-m").output().expect("php runs").stdout;
    if !String::from_utf8_lossy(&modules).lines().any(|module| module == "curl") {
        return eprintln!("skipped: php has no curl extension");
    }
    jobs_are_worked_on(php.arg(file("worker/worker.php")));
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
