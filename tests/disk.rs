//! Topics on disk, over real processes: what was reported stored survives a kill, in order for each client.

#![forbid(unsafe_code)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};
use support::{Message, Process, SUCCESS, Server, Service, Socket, command, config_file, until};

/// A data directory of one test, which is removed when the value is dropped.
struct Data(PathBuf);

impl Data {
    fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("gridcast-data-{}-{number}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir(&path).expect("the test's folder can be written");
        Self(path)
    }

    fn config(&self, topic: &str) -> String {
        format!(
            "[node]\ncores = 2\n[api]\nbind = \"127.0.0.1:0\"\n[data]\ndir = {:?}\n\
             [[edge]]\nbind = \"127.0.0.1:0\"\n[[edge.route]]\npath = \"/in\"\ntopic = \"orders\"\n\
             [[topic]]\nname = \"orders\"\nstore = \"disk\"\n{topic}\n",
            self.0
        )
    }

    /// The segments of the topic, in order.
    fn segments(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.0.join("topics/orders")).expect("the topic has a directory");
        let mut files: Vec<_> = files.map(|file| file.expect("an entry").path()).collect();
        files.sort_unstable();
        files
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn consumer(server: &Server, group: Option<&str>) -> Socket {
    let mut consumer = server.backend();
    let mut pop = json!({ "t": ["orders"], "a": true, "w": 64 });
    if let Some(group) = group {
        pop["group"] = group.into();
    }
    let call = json!({ "m": "queue.pop", "p": pop, "i": 12345 }).to_string();
    assert_eq!(consumer.call(&call), SUCCESS);
    consumer
}

fn push(server: &Server, data: &str) -> String {
    let body = json!({ "t": "orders", "d": data, "k": "k" }).to_string();
    server.post("/v1/queue/push", &body)
}

/// The next event: its data, its tag, and whether it is marked as redelivered.
fn next(consumer: &mut Socket) -> (String, u64, bool) {
    let message: Value = serde_json::from_str(&consumer.text()).expect("JSON");
    let event = &message["p"];
    let data = &event["d"]["data"];
    let text = data.as_str().or(event["d"]["frame"]["data"].as_str()).expect("an event");
    let tag = event["g"].as_u64().expect("a tag");
    (text.to_owned(), tag, event["redelivered"] == Value::Bool(true))
}

fn ack(consumer: &mut Socket, tag: u64) {
    let call = json!({ "m": "queue.ack", "p": { "g": tag, "u": true }, "i": 12345 }).to_string();
    assert_eq!(consumer.call(&call), SUCCESS);
}

const STORED: &str = r#"{"E":null,"r":{"s":true}}"#;

#[test]
fn what_was_stored_and_not_acknowledged_comes_again_after_a_kill_and_says_so() {
    let data = Data::new();
    let config = data.config("");
    let mut server = Server::start(&config);
    for text in ["a", "b", "c"] {
        assert_eq!(push(&server, text), STORED);
    }
    server.kill();
    let mut server = Server::start(&config);
    let mut reader = consumer(&server, None);
    let events = [(); 3].map(|()| next(&mut reader));
    let nobody_had_them = ["a", "b", "c"].map(|text| (text.to_owned(), false));
    assert_eq!(events.clone().map(|(text, _, again)| (text, again)), nobody_had_them);
    // The events of a device are stored too, and come after what was there.
    let mut device = server.device("/in");
    device.send_text("d");
    assert_eq!(next(&mut reader).0, "d");
    ack(&mut reader, events[0].1);
    // The acknowledgement is written with the next event at the latest.
    assert_eq!(push(&server, "e"), STORED);
    server.kill();
    let server = Server::start(&config);
    let mut reader = consumer(&server, None);
    let events = [(); 4].map(|()| next(&mut reader)).map(|(text, _, again)| (text, again));
    assert_eq!(events, ["b", "c", "d", "e"].map(|text| (text.to_owned(), true)));
}

#[test]
fn a_second_process_on_the_directory_ends_with_one_line() {
    let data = Data::new();
    let server = Server::start(&data.config(""));
    let file = config_file(&data.config(""));
    let arguments = ["serve", "--config", file.to_str().expect("UTF-8")];
    let (code, lines) = Process::spawn(&mut command(&arguments)).finish();
    fs::remove_file(file).expect("the file was there to be read");
    assert_eq!((code, lines.len()), (Some(1), 1), "{lines:?}");
    assert!(lines[0].contains("another process uses the topics in this directory"), "{lines:?}");
    assert!(lines[0].contains(data.0.to_str().expect("UTF-8")), "{lines:?}");
    assert_eq!(push(&server, "a"), STORED);
}

#[test]
fn damage_ends_the_start_with_file_and_offset_and_a_torn_end_does_not() {
    let data = Data::new();
    let config = data.config("");
    let mut server = Server::start(&config);
    for text in ["first", "second", "third"] {
        assert_eq!(push(&server, text), STORED);
    }
    server.kill();
    let [segment] = &data.segments()[..] else { panic!("{:?}", data.segments()) };
    let whole = fs::read(segment).expect("it can be read");
    let at = whole.windows(6).position(|part| part == b"second").expect("it is stored");
    let mut damaged = whole.clone();
    damaged[at] ^= 1;
    fs::write(segment, damaged).expect("it can be written");
    let file = config_file(&config);
    let arguments = ["serve", "--config", file.to_str().expect("UTF-8")];
    let (code, lines) = Process::spawn(&mut command(&arguments)).finish();
    fs::remove_file(file).expect("the file was there to be read");
    assert_eq!((code, lines.len()), (Some(1), 1), "{lines:?}");
    assert!(lines[0].contains("00000000000000000001.log: offset "), "{lines:?}");
    fs::write(segment, &whole[..whole.len() - 1]).expect("it can be written");
    let server = Server::start(&config);
    let mut reader = consumer(&server, None);
    assert_eq!([next(&mut reader).0, next(&mut reader).0], ["first", "second"]);
}

#[test]
fn an_acknowledged_backlog_leaves_nothing_behind_and_its_room_is_free_again() {
    let data = Data::new();
    let config = data.config("messages = 8");
    let mut server = Server::start(&config);
    for round in 0..3 {
        let mut count = 0_usize;
        let full = loop {
            match push(&server, &format!("{round} {count}")) {
                answer if answer != STORED => break answer,
                _ => count += 1,
            }
        };
        assert_eq!(full, r#"{"E":{"c":201,"m":"the topic is full"}}"#);
        // A quarter is credit for clients.
        assert!((6..=8).contains(&count), "{count}");
        let mut reader = consumer(&server, None);
        let events: Vec<_> = (0..count).map(|_| next(&mut reader)).collect();
        for (number, (text, ..)) in events.iter().enumerate() {
            assert_eq!(*text, format!("{round} {number}"));
        }
        ack(&mut reader, events[count - 1].1);
        until(|| server.get("/metrics").body.contains("topic_messages{topic=\"orders\"} 0\n"));
    }
    server.terminate();
    assert_eq!(server.exit_code(), Some(0));
    let server = Server::start(&config);
    assert_eq!(push(&server, "next"), STORED);
    let mut reader = consumer(&server, None);
    assert_eq!(next(&mut reader).0, "next");
}

/// What the consumers of one group have got, in all runs.
#[derive(Default)]
struct Got {
    /// Events by key and number, and how often each came.
    counts: BTreeMap<(usize, u64), usize>,
    /// What is wrong.
    faults: Vec<String>,
}

type Shared<T> = Arc<Mutex<T>>;

/// Pushes numbered events of one key until the server is gone, several at a time. Notes those that were answered.
fn pusher(
    server: &Server,
    key: usize,
    first: u64,
    stored: Shared<BTreeSet<(usize, u64)>>,
) -> JoinHandle<u64> {
    let mut socket = server.backend();
    thread::spawn(move || {
        let (mut sent, mut answered) = (first, first);
        loop {
            while sent < answered + 32 {
                let (data, key) = (format!("{key} {sent}"), format!("key {key}"));
                let push = json!({ "m": "queue.push", "p": { "t": "orders", "d": data, "k": key },
                                   "i": sent });
                use std::io::Write;
                let frame = support::frame(0x81, push.to_string().as_bytes());
                if socket.writer().write_all(&frame).is_err() {
                    return sent;
                }
                sent += 1;
            }
            let Ok(Message::Text(answer)) = socket.try_read() else { return sent };
            let answer: Value = serde_json::from_str(&answer).expect("JSON");
            assert_eq!(answer["i"], answered, "answers are in order");
            assert_eq!(answer["r"], json!({ "s": true }), "{answer}");
            stored.lock().expect("nobody panics").insert((key, answered));
            answered += 1;
        }
    })
}

/// Consumes a group until the server is gone, and acknowledges most events, some of them late.
fn reader(server: &Server, group: Option<&str>, got: Shared<Got>) -> JoinHandle<()> {
    let mut socket = consumer(server, group);
    thread::spawn(move || {
        let mut last: BTreeMap<usize, u64> = BTreeMap::new();
        let mut events = 0;
        while let Ok(message) = socket.try_read() {
            let Message::Text(text) = message else { continue };
            let message: Value = serde_json::from_str(&text).expect("JSON");
            if message["e"] != "queue.pop" {
                continue;
            }
            let (event, tag) = (&message["p"], message["p"]["g"].as_u64().expect("a tag"));
            let data = event["d"]["data"].as_str().expect("pushed data");
            let (key, number) = data.split_once(' ').expect("key and number");
            let (key, number) = (key.parse().expect("a key"), number.parse().expect("a number"));
            let mut got = got.lock().expect("nobody panics");
            if last.insert(key, number).is_some_and(|before| before >= number) {
                got.faults.push(format!("{data} is out of order"));
            }
            let count = got.counts.entry((key, number)).or_default();
            *count += 1;
            if *count > 1 && event["redelivered"] != json!(true) {
                let fault = format!("{data} came {count} times and is not marked");
                got.faults.push(fault);
            }
            drop(got);
            events += 1;
            if events % 8 == 0 {
                use std::io::Write;
                let ack = json!({ "m": "queue.ack", "p": { "g": tag, "u": true } }).to_string();
                let frame = support::frame(0x81, ack.as_bytes());
                if socket.writer().write_all(&frame).is_err() {
                    return;
                }
            }
        }
    })
}

/// What a sink has got, in all runs.
#[derive(Default)]
struct Sunk {
    /// The key and the number of each id.
    ids: BTreeMap<String, (usize, u64)>,
    /// The latest number of each key.
    latest: BTreeMap<usize, u64>,
}

impl Sunk {
    /// Answers the requests that have come, and looks whether their events are in order and keep their ids.
    fn serve(&mut self, service: &Service) {
        while let Some(asked) = service.try_next() {
            let events: Vec<Value> = serde_json::from_str(&asked.body).expect("an array");
            for event in &events {
                let id = event["id"].as_str().expect("an id").to_owned();
                let data = event["data"]["d"]["data"].as_str().expect("pushed data");
                let (key, number) = data.split_once(' ').expect("key and number");
                let (key, number) = (key.parse().expect("a key"), number.parse().expect("digits"));
                match self.ids.insert(id, (key, number)) {
                    Some(before) => assert_eq!(before, (key, number), "an id is of one event"),
                    None => {
                        let before = self.latest.insert(key, number);
                        assert!(before.is_none_or(|before| before < number), "{data}: {before:?}");
                    }
                }
            }
            asked.answer(200, "");
        }
    }

    fn has_all(&self, stored: &BTreeSet<(usize, u64)>) -> bool {
        let events: BTreeSet<_> = self.ids.values().copied().collect();
        assert_eq!(events.len(), self.ids.len(), "an event has one id");
        stored.is_subset(&events)
    }
}

#[test]
fn ten_kills_under_load_lose_nothing_that_was_stored() {
    const KEYS: usize = 3;
    let data = Data::new();
    let (service, mut sunk) = (Service::start(), Sunk::default());
    let config = format!(
        "{}[[sink]]\nname = \"s\"\ntopic = \"orders\"\nwebhook = {{ url = \"http://{}/\" }}\n",
        data.config("groups = [\"audit\"]\ndefault_group = true"),
        service.address,
    );
    let groups = [None, Some("audit")];
    let got = [(); 2].map(|()| Shared::<Got>::default());
    let stored = Shared::<BTreeSet<(usize, u64)>>::default();
    let mut next_numbers = [0; KEYS];
    for round in 0..10 {
        let mut server = Server::start(&config);
        let mut readers = Vec::new();
        for (group, got) in groups.into_iter().zip(&got) {
            readers.extend([(); 2].map(|()| reader(&server, group, got.clone())));
        }
        let pushers: Vec<_> =
            (0..KEYS).map(|key| pusher(&server, key, next_numbers[key], stored.clone())).collect();
        let is_stored = || stored.lock().expect("nobody panics").len();
        let enough = is_stored() + 100 + 137 * round;
        until(|| {
            sunk.serve(&service);
            is_stored() >= enough
        });
        server.kill();
        readers.into_iter().for_each(|reader| reader.join().expect("no reader panics"));
        for (next, pusher) in next_numbers.iter_mut().zip(pushers) {
            *next = pusher.join().expect("no pusher panics");
        }
    }
    let mut server = Server::start(&config);
    let stored = stored.lock().expect("nobody panics").clone();
    let readers: Vec<_> = groups
        .into_iter()
        .zip(&got)
        .map(|(group, got)| reader(&server, group, got.clone()))
        .collect();
    for (group, got) in groups.into_iter().zip(&got) {
        let has_all = || {
            let got = got.lock().expect("nobody panics");
            stored.iter().all(|event| got.counts.contains_key(event))
        };
        until(has_all);
        let got = got.lock().expect("nobody panics");
        assert_eq!(got.faults, Vec::<String>::new(), "{group:?}");
    }
    until(|| {
        sunk.serve(&service);
        sunk.has_all(&stored)
    });
    server.kill();
    readers.into_iter().for_each(|reader| reader.join().expect("no reader panics"));
}

fn metric(server: &Server, name: &str) -> u64 {
    let (text, sample) = (server.get("/metrics").body, format!("gridcast_{name} "));
    let value = text.lines().find_map(|line| line.strip_prefix(&sample));
    value.unwrap_or_else(|| panic!("{name} is in {text}")).parse().expect("a number")
}

#[test]
fn a_full_disk_is_a_full_topic_and_is_mended_when_there_is_room_again() {
    let data = Data::new();
    // A limit on the size of files stands for a full disk: 8 blocks of 512 bytes. Without the trap, the process would
    // end.
    let script = "trap '' XFSZ; ulimit -Sf 8; exec \"$0\" \"$@\"";
    let (server, _) = Server::start_changed(&data.config(""), |command| {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).arg(command.get_program()).args(command.get_args()).env_clear();
        shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        *command = shell;
    });
    let large = "x".repeat(700);
    let mut stored = 0;
    let refusal = loop {
        match push(&server, &large) {
            answer if answer == STORED => stored += 1,
            answer => break answer,
        }
        assert!(stored < 8, "the files are not bounded");
    };
    assert!(refusal.starts_with(r#"{"E":{"c":201,"m":"not stored in time"#), "{refusal}");
    assert!(stored > 0 && metric(&server, "disk_errors_total") > 0);
    assert_eq!((server.get("/readyz").status, metric(&server, "disk_failing")), (200, 0));
    // The node goes on with everything else.
    assert_eq!(server.publish("nobody", "hears it"), (0, 0));
    server.remove_file_limit();
    until(|| metric(&server, "disk_events_total") == stored + 1);
    assert_eq!(push(&server, "after"), STORED);
    let mut reader = consumer(&server, None);
    for _ in 0..=stored {
        assert_eq!(next(&mut reader).0, large);
    }
    assert_eq!(next(&mut reader).0, "after");
}

#[test]
fn a_disk_that_returns_errors_makes_the_node_unready_until_it_works() {
    let data = Data::new();
    let mut server = Server::start(&data.config(""));
    let directory = data.0.join("topics/orders");
    fs::remove_dir_all(&directory).expect("it was created");
    let refusal = push(&server, "a");
    assert!(refusal.starts_with(r#"{"E":{"c":201,"m":"not stored in time"#), "{refusal}");
    let ready = server.get("/readyz");
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("the disk of data.dir returns errors"), "{}", ready.body);
    server.logs("tried again until it works");
    fs::create_dir(&directory).expect("it was removed");
    until(|| server.get("/readyz").status == 200);
    // The event that was refused was kept, as the answer says it may be.
    let mut reader = consumer(&server, None);
    assert_eq!(next(&mut reader).0, "a");
    assert_eq!(push(&server, "b"), STORED);
}

fn verify(data: &Data) -> (Option<i32>, String) {
    let arguments = ["topics", "verify", data.0.to_str().expect("UTF-8")];
    let output = command(&arguments).output().expect("the binary is there");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).expect("text"))
}

#[test]
fn verify_prints_groups_and_backlogs_and_finds_damage() {
    let data = Data::new();
    let mut server = Server::start(&data.config("groups = [\"audit\"]"));
    for text in ["first", "second", "third"] {
        assert_eq!(push(&server, text), STORED);
    }
    let mut reader = consumer(&server, Some("audit"));
    let events = [(); 3].map(|()| next(&mut reader));
    ack(&mut reader, events[0].1);
    let (status, text) = verify(&data);
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("another process uses the topics in this directory"), "{text}");
    server.terminate();
    assert_eq!(server.exit_code(), Some(0));
    let [segment] = &data.segments()[..] else { panic!("{:?}", data.segments()) };
    let whole = fs::read(segment).expect("it can be read");
    let expected = format!(
        "orders: 1 files, {} bytes, 3 events held\n  default group: 3 events\n  audit: 2 events\n\
         1 topics, 0 faults\n",
        whole.len()
    );
    assert_eq!(verify(&data), (Some(0), expected));
    let at = whole.windows(6).position(|part| part == b"second").expect("it is stored");
    let mut damaged = whole.clone();
    damaged[at] ^= 1;
    fs::write(segment, damaged).expect("it can be written");
    let (status, text) = verify(&data);
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("  fault: 00000000000000000001.log: offset "), "{text}");
    assert!(text.ends_with("1 topics, 1 faults\n"), "{text}");
}

#[test]
fn a_delayed_event_survives_a_kill_and_comes_when_it_is_due() {
    let data = Data::new();
    let config = data.config("");
    let mut server = Server::start(&config);
    for (text, after_ms) in [("next week", 604_800_000), ("soon", 1)] {
        let body = json!({ "t": "orders", "d": text, "after_ms": after_ms }).to_string();
        assert_eq!(server.post("/v1/queue/push", &body), STORED);
    }
    server.kill();
    let mut server = Server::start(&config);
    let mut reader = consumer(&server, None);
    assert_eq!(next(&mut reader).0, "soon");
    server.kill();
    let (status, text) = verify(&data);
    let expected = "2 events held\n  1 of them delayed\n  default group: 1 events\n";
    assert!(text.contains(expected), "{text}");
    assert_eq!(status, Some(0), "{text}");
}

#[test]
fn verify_changes_nothing_in_the_directory() {
    let data = Data::new();
    let mut server = Server::start(&data.config(""));
    assert_eq!(push(&server, "a"), STORED);
    server.terminate();
    assert_eq!(server.exit_code(), Some(0));
    // As in a copy that somebody has made of the files alone.
    fs::remove_file(data.0.join("topics/lock")).expect("it was created");
    let (status, text) = verify(&data);
    assert!(status == Some(0) && text.ends_with("1 topics, 0 faults\n"), "{text}");
    assert!(!data.0.join("topics/lock").exists());
}

#[test]
fn a_list_of_topics_says_which_are_on_disk() {
    let data = Data::new();
    let server = Server::start(&data.config(""));
    let list = server.backend().done("topic.list", &json!({}));
    assert_eq!(list["topics"][0]["store"], "disk", "{list}");
}

#[test]
fn a_reload_names_the_groups_of_a_topic_on_disk_as_needing_a_restart_and_keeps_them() {
    let service = Service::start();
    let sink = |name: &str, path: &str| {
        let url = format!("http://{}/{path}", service.address);
        format!("[[sink]]\nname = {name:?}\ntopic = \"orders\"\nwebhook = {{ url = {url:?} }}\n")
    };
    let data = Data::new();
    let before = data.config("default_group = true");
    let mut server = Server::start(&format!("{before}{}", sink("s", "one")));
    server.reload(&format!("{before}{}", sink("t", "two")));
    server.logs("not applied, needs a restart: sink[\"s\"]: removed");
    server.logs("not applied, needs a restart: sink[\"t\"]: added");
    // The sink that stays delivers, and may get another address.
    assert_eq!(push(&server, "a"), STORED);
    let asked = service.next();
    assert!(asked.body.contains("\"a\""), "{}", asked.body);
    asked.answer(200, "");
    let after = data.config("default_group = false");
    server.reload(&format!("{after}{}", sink("s", "three")));
    server.logs("reloaded: sink[\"s\"].webhook.url: ");
    server.logs("not applied, needs a restart: topic[\"orders\"].default_group: true -> false");
    let mut reader = consumer(&server, None);
    assert_eq!(next(&mut reader).0, "a");
}
