//! The configuration of a running server is reloaded, and the server becomes a lame duck, over real sockets.

mod support;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{fs, process, thread};

use serde_json::{Value, json};

use support::{CONFIG, Server, Socket, until, until_within, users};

/// The longest that something may take which a configured time of a second brings about.
const PATIENCE: Duration = Duration::from_secs(30);

/// A user with all roles, and the header of its requests.
const USER: &str = "[[api.user]]\nname = \"app\"\ntoken = \"open-sesame\"\n";
const HEADER: &str = "Authorization: Bearer open-sesame\r\n";

fn status(server: &Server, headers: &str) -> u16 {
    let body = r#"{"c":"a","d":"x"}"#;
    server.request("POST", "/v1/mesh/publish", headers, body).status
}

#[test]
fn routes_come_and_go_and_clients_of_the_others_stay() {
    let mut server = Server::new();
    let mut kept: Vec<Socket> = (0..8).map(|_| server.device("/echo")).collect();
    let mut removed: Vec<Socket> = (0..8).map(|_| server.device("/private")).collect();
    let config = CONFIG.replace("/private", "/new").replace("message_bytes = 16777216", "");
    server.reload(&config);
    server.logs(
        "reloaded: edge[\"127.0.0.1:0\"].route[\"/echo\"].message_bytes: 16777216 -> not set",
    );
    for client in &mut removed {
        assert_eq!(client.closed(), (1001, "this route was removed".into()));
    }
    // Each shard applies the settings in its next turn.
    let is_open = |path| Socket::connect(server.edge, path, "").is_ok();
    until(|| (0..8).all(|_| is_open("/new") && !is_open("/private")));
    for client in &mut kept {
        assert_eq!(client.call("hello"), "hello");
    }
    let mut consumer = server.consumer("messages2");
    server.device("/new").send_text("first");
    assert_eq!(consumer.data(), "first");
    let mut back = server.device("/echo");
    back.send_text(&"x".repeat(65_537));
    assert_eq!(back.closed().0, 1009);
}

#[test]
fn new_bounds_of_topics_hold_for_the_topics_that_exist() {
    let config = |messages: u32, when_full: &str| {
        format!("{CONFIG}[queue]\ntopic_messages = {messages}\nwhen_full = \"{when_full}\"\n")
    };
    let holds = |server: &Server, messages: u32| {
        let metric = format!("gridcast_topic_messages{{topic=\"plain\"}} {messages}\n");
        until(|| server.get("/metrics").body.contains(&metric));
    };
    let mut server = Server::start(&config(4, "hold"));
    let mut client = server.device("/plain");
    (0..20).for_each(|number| client.send_text(&number.to_string()));
    holds(&server, 4);
    server.reload(&config(10, "hold"));
    server.logs("reloaded: queue.topic_messages: 4 -> 10");
    holds(&server, 10);

    // What waits stays; nothing more is taken, and the client that waits for room is closed.
    server.reload(&config(5, "close"));
    assert_eq!(client.closed(), (1013, "topic is full, try again later".into()));
    holds(&server, 10);
    let mut consumer = server.consumer("plain");
    (0..10).for_each(|number| assert_eq!(consumer.data(), number.to_string()));
    // There is room once the topic knows that they were written.
    holds(&server, 0);
    server.device("/plain").send_text("next");
    assert_eq!(consumer.data(), "next");
}

/// A node with a topic `jobs` in memory or on disk, and what its table says.
struct WithTopic {
    server: Server,
    store: &'static str,
    folder: PathBuf,
}

impl Drop for WithTopic {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl WithTopic {
    fn start(store: &'static str, keys: &str) -> Self {
        let name = format!("gridcast-reload-{}-{store}", process::id());
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        let server = Server::start(&config_with_topic(&folder, store, keys));
        Self { server, store, folder }
    }

    /// Reloads the table with other keys, and waits until the log says so.
    fn reload(&mut self, keys: &str, change: &str) {
        self.server.reload(&config_with_topic(&self.folder, self.store, keys));
        self.server.logs(&format!("topic[\"jobs\"].{change}"));
    }

    fn ask(&self, path: &str, params: &Value) -> Value {
        serde_json::from_str(&self.server.post(path, &params.to_string())).expect("JSON")
    }

    fn push(&self, data: &str) -> Value {
        self.ask("/v1/queue/push", &json!({ "t": "jobs", "d": data, "k": data }))
    }

    /// Takes an event of a topic; `None` if none comes within a second. Its data, and its tag.
    fn take(&self, topic: &str) -> Option<(String, Value)> {
        let answer =
            self.ask("/v1/queue/take", &json!({ "t": [topic], "max": 1, "wait_ms": 1000 }));
        let event = &answer["r"]["events"].as_array().expect("events").first()?.clone();
        Some((event["d"]["data"].as_str().expect("pushed").to_owned(), event["g"].clone()))
    }

    fn shows(&self, metric: &str) {
        until(|| self.server.get("/metrics").body.contains(metric));
    }
}

fn config_with_topic(folder: &Path, store: &str, keys: &str) -> String {
    let table = format!("[[topic]]\nname = \"jobs\"\nstore = \"{store}\"\n{keys}\n");
    format!("{CONFIG}[data]\ndir = {folder:?}\n{table}")
}

fn keys_of_a_topic_change(store: &'static str) {
    let mut node = WithTopic::start(store, "messages = 1\nwhen_full = \"drop_oldest\"");
    let success = json!({ "E": null, "r": { "s": true } });
    // The bound and what happens at it.
    assert_eq!([node.push("a"), node.push("b")], [success.clone(), success.clone()]);
    node.shows("gridcast_topic_messages{topic=\"jobs\"} 1\n");
    node.reload("messages = 3\nwhen_full = \"hold\"", "messages: 1 -> 3");
    until(|| node.push("c") == success);
    let keys = "messages = 3\nwhen_full = \"hold\"\ntries = 1\ndead = \"jobs.dead\"";
    // An event that is given back goes to the dead topic now.
    node.reload(keys, "tries: 0 -> 1");
    let (data, tag) = node.take("jobs").expect("it waits");
    assert_eq!(data, "b");
    node.ask("/v1/queue/nack", &json!({ "g": tag }));
    assert_eq!(node.take("jobs.dead").map(|(data, _)| data), Some("b".into()));
    // One that is not acknowledged goes there too.
    let (data, _) = node.take("jobs").expect("it waits");
    assert_eq!(data, "c");
    node.reload(&format!("{keys}\nack_s = 1"), "ack_s: 30 -> 1");
    until_within(PATIENCE, || node.take("jobs.dead").is_some_and(|(data, _)| data == "c"));
    // One that waits for too long is dropped and counted.
    assert_eq!(node.push("d"), success);
    node.reload(&format!("{keys}\nack_s = 1\nmax_age_s = 1"), "max_age_s: 0 -> 1");
    until_within(PATIENCE, || {
        node.server.get("/metrics").body.contains("gridcast_topic_messages{topic=\"jobs\"} 0\n")
    });
    // What the node cannot change is named, and nothing else is lost by it.
    let keys = format!("{keys}\nack_s = 1\nmax_age_s = 0\ngroups = [\"audit\"]");
    node.reload(&keys, "groups: [] -> [\"audit\"]");
    assert_eq!(node.push("e"), success);
    assert_eq!(node.take("jobs").map(|(data, _)| data), Some("e".into()));
}

#[test]
fn keys_of_a_topic_in_memory_change() {
    keys_of_a_topic_change("memory");
}

#[test]
fn keys_of_a_topic_on_disk_change() {
    keys_of_a_topic_change("disk");
}

#[test]
fn users_come_and_go_with_their_connections() {
    let mut server = Server::new();
    let mut anybody = server.backend();
    server.reload(&format!("{CONFIG}{USER}"));
    server.logs("reloaded: api.user[\"app\"]: added");
    assert_eq!(anybody.closed(), (1008, "the rights of this user have changed".into()));
    until(|| (0..8).all(|_| status(&server, "") == 401 && status(&server, HEADER) == 200));
    let mut user = Socket::connect(server.api, "/ws/v1", HEADER).expect("the user may connect");
    assert_eq!(user.publish("a", "x"), (0, 0));

    let other = USER.replace("open-sesame", "another-secret");
    server.reload(&format!("{CONFIG}{other}"));
    server.logs("reloaded: api.user[\"app\"].token: changed");
    assert_eq!(user.closed().0, 1008);
    until(|| (0..8).all(|_| status(&server, HEADER) == 401));
    let header = HEADER.replace("open-sesame", "another-secret");
    until(|| (0..8).all(|_| status(&server, &header) == 200));

    let mut user = Socket::connect(server.api, "/ws/v1", &header).expect("the user may connect");
    server.reload(&format!("{CONFIG}{other}roles = [\"admin\"]\n"));
    server.logs("reloaded: api.user[\"app\"].roles: set to [\"admin\"]");
    assert_eq!(user.publish("a", "x"), (0, 0));
    server.reload(&format!("{CONFIG}{other}roles = [\"read\"]\n"));
    assert_eq!(user.closed().0, 1008);
}

#[test]
fn a_file_that_is_being_written_opens_the_api_to_nobody() {
    let mut server = Server::start(&format!("{CONFIG}{USER}"));
    for written in ["", "[node]\n", CONFIG] {
        server.reload(written);
        server.logs("api.user: none is left");
        assert_eq!((status(&server, ""), status(&server, HEADER)), (401, 200));
    }
}

#[test]
fn a_wrong_line_changes_nothing_and_is_named() {
    let mut server = Server::new();
    let mut client = server.device("/echo");
    let wrong =
        CONFIG.replace("/private", "/new").replace("handler = \"echo\"", "handler = \"ecco\"");
    server.reload(&wrong);
    let line = 1 + wrong.lines().position(|line| line.contains("ecco")).expect("it is there");
    server.logs(&format!(".toml:{line}: edge.route.handler: expected \"echo\", found \"ecco\""));
    server.reload(&format!("{CONFIG}[limits]\nanswer_ms = 700\n"));
    server.logs("reloaded: limits.answer_ms: 1500 -> 700");
    assert!(Socket::connect(server.edge, "/private", "").is_ok());
    assert!(Socket::connect(server.edge, "/new", "").is_err());
    assert_eq!(client.call("hello"), "hello");
}

#[test]
fn what_needs_a_restart_is_named_and_the_rest_is_applied() {
    let mut server = Server::new();
    let config = CONFIG.replace("cores = 2", "cores = 1\nid = 5\ndrain_s = 3");
    for _ in 0..2 {
        server.reload(&config);
        server.logs("not applied, needs a restart: node.cores: 2 -> 1");
        server.logs("not applied, needs a restart: node.id: 1 -> 5");
    }
    server.hang_up();
    server.logs("needs a restart: node.id");
    let nodes = server.get("/v1/nodes").body;
    assert!(nodes.contains("\"id\":1,"), "{nodes}");
}

#[test]
fn the_level_of_the_log_changes() {
    let mut server = Server::new();
    server.reload(&format!("{CONFIG}[log]\nlevel = \"debug\"\n"));
    server.logs("reloaded: log.level: \"info\" -> \"debug\"");
    let _client = server.device("/echo");
    server.logs("accepted");
}

#[test]
fn a_stream_of_messages_survives_twenty_reloads_without_a_gap() {
    let mut server = Server::new();
    let mut subscribers: Vec<Socket> = (0..4).map(|_| server.device("/ws?channels=a")).collect();
    let mut backend = server.backend();
    let is_over = AtomicBool::new(false);
    let published = thread::scope(|scope| {
        let publisher = scope.spawn(|| {
            let mut number = 0;
            while !is_over.load(Ordering::Relaxed) {
                assert_eq!(backend.publish("a", &number.to_string()), (4, 0));
                number += 1;
                for subscriber in &mut subscribers {
                    assert_eq!(subscriber.text(), (number - 1).to_string());
                }
            }
            number
        });
        for reload in 0..20 {
            let (path, answer_ms) = (format!("/{reload}"), 1000 + reload);
            let config = CONFIG.replace("/private", &path);
            server.reload(&format!("{config}[limits]\nanswer_ms = {answer_ms}\n"));
            server.logs("limits.answer_ms: ");
        }
        is_over.store(true, Ordering::Relaxed);
        publisher.join().expect("no gap")
    });
    assert!(published > 0);
}

#[test]
fn every_listener_answers_probes() {
    let server = Server::new();
    for address in [server.api, server.edge] {
        for (path, body) in [("/healthz", "ok\n"), ("/readyz", "ready\n")] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
            let response = support::http(address, request);
            assert_eq!((response.status, &response.body[..]), (200, body), "{address} {path}");
        }
    }
}

#[test]
fn a_lame_duck_is_not_ready_and_does_everything_else_until_ctrl_c_skips_the_rest() {
    let config = CONFIG.replace("[node]", "[node]\nlame_duck_s = 3600");
    let mut server = Server::start(&config);
    let mut before = server.device("/echo");
    server.terminate();
    server.logs("/readyz answers 503");
    for address in [server.api, server.edge] {
        let request = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\n\r\n");
        assert_eq!(support::http(address, request).status, 503);
    }
    let mut after = server.device("/echo");
    for client in [&mut before, &mut after] {
        assert_eq!(client.call("hello"), "hello");
    }
    assert_eq!(server.publish("a", "x"), (0, 0));
    server.interrupt();
    assert_eq!((before.closed().0, after.closed().0), (1001, 1001));
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn an_administrator_reloads_over_http_and_websocket_and_is_told_the_changes() {
    let users = users(&[
        ("app", "token = \"open-sesame\""),
        ("admin", "token = \"open-admin\"\nroles = [\"admin\"]"),
    ]);
    let config = format!("{CONFIG}{users}");
    let mut server = Server::start(&config);
    let admin = HEADER.replace("sesame", "admin");
    let post = |server: &Server, headers: &str, body: &str| {
        let response = server.request("POST", "/v1/admin/reload", headers, body);
        (response.status, response.body)
    };
    assert_eq!(post(&server, "", "").0, 401);
    assert_eq!(post(&server, HEADER, "").0, 403);
    assert_eq!(post(&server, HEADER, "{}").0, 403);
    let nothing = r#"{"E":null,"r":{"changed":[],"restart":[]}}"#;
    assert_eq!(post(&server, &admin, ""), (200, nothing.into()));
    assert_eq!(post(&server, &admin, "{}"), (200, nothing.into()));

    server.configure(
        &format!("{config}[limits]\nanswer_ms = 700\n").replace("cores = 2", "cores = 1"),
    );
    let mut socket = Socket::connect(server.api, "/ws/v1", &admin).expect("it may connect");
    let changes = "{\"E\":null,\"r\":{\"changed\":[\"limits.answer_ms: 1500 -> 700\"],\
                   \"restart\":[\"node.cores: 2 -> 1\"]},\"i\":7}";
    assert_eq!(socket.call(r#"{"m":"admin.reload","i":7}"#), changes);

    server.configure("[api]\nbnd = 1\n");
    let answer = socket.call(r#"{"m":"admin.reload","p":{},"i":8}"#);
    let reason = support::assert_error(&answer, 301, Some("8"));
    assert!(
        reason.contains(".toml:2: api.bnd: unknown key; did you mean \\\"bind\\\"?"),
        "{reason}"
    );
    server.logs("not reloaded, the running configuration stays");
    let mut app = Socket::connect(server.api, "/ws/v1", HEADER).expect("it may connect");
    support::assert_error(&app.call(r#"{"m":"admin.reload","i":9}"#), 102, Some("9"));
}
