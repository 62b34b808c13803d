//! The log of a real process: whatever becomes of its reader costs log lines and nothing else.

#![forbid(unsafe_code)]

mod support;

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Stdio};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{
    CONFIG, DEADLINE, KEY, LogReader, Process, Server, Socket, command, config_file, http,
    node_config, states, until, until_within,
};

const READERS: [LogReader; 2] = [LogReader::Leaves, LogReader::StandsStill];

/// A device that takes all that is written to it for as long as it has room: none.
fn full() -> File {
    File::options().write(true).open("/dev/full").expect("every Linux has it")
}

/// The end for writing of a pipe that nobody reads.
fn closed() -> std::io::PipeWriter {
    std::io::pipe().expect("a pipe").1
}

#[test]
fn a_node_whose_log_has_no_reader_serves_takes_signals_and_ends_well() {
    for reader in READERS {
        let mut server = Server::start_unread(CONFIG, reader);
        let mut client = server.device("/echo");
        server.hang_up();
        assert_eq!(client.call("hello"), "hello");
        assert_eq!(server.get("/readyz").status, 200, "{reader:?}");
        server.terminate();
        assert_eq!(client.closed().0, 1001, "{reader:?}");
        assert_eq!(server.exit_code(), Some(0), "{reader:?}");
    }
}

#[test]
fn a_second_signal_ends_a_node_whose_log_has_no_reader() {
    for reader in READERS {
        let config = CONFIG.replace("[node]", "[node]\ndrain_s = 3600");
        let mut server = Server::start_unread(&config, reader);
        // The drain waits for a consumer that does not acknowledge what it got.
        let mut consumer = server.backend();
        let pop = r#"{"m":"queue.pop","p":{"t":["plain"],"a":true,"w":1},"i":12345}"#;
        assert_eq!(consumer.call(pop), support::SUCCESS);
        let mut client = server.device("/plain");
        client.send_text("one");
        client.send_text("two");
        assert_eq!(consumer.data(), "one");
        server.terminate();
        assert_eq!(client.closed().0, 1001);
        server.terminate();
        assert_eq!(server.exit_code(), Some(128 + Signal::TERM.as_raw()), "{reader:?}");
    }
}

#[test]
fn a_node_whose_log_has_no_reader_stays_in_its_grid_when_another_node_dies() {
    for reader in READERS {
        let mut first = Server::start_unread(&node_config(1, None, &[], KEY), reader);
        let seeds = first.mesh.expect("it has a mesh");
        let mut second = Server::start(&node_config(2, None, &[seeds], KEY));
        let third = Server::start(&node_config(3, None, &[seeds], KEY));
        until_within(DEADLINE, || states(&first).len() == 3 && states(&third).len() == 3);
        second.kill();
        until_within(DEADLINE, || states(&first).len() == 2 && states(&third).len() == 2);
        let states = states(&third);
        assert!(states.iter().all(|(_, state)| state == "up"), "{reader:?}: {states:?}");
        first.terminate();
        assert_eq!(first.exit_code(), Some(0), "{reader:?}");
    }
}

/// A node without an edge, whose standard error is this.
fn start(config: &str, stderr: impl Into<Stdio>) -> (Child, SocketAddr) {
    let file = config_file(config);
    let mut command = command(&["serve", "--config", file.to_str().expect("UTF-8")]);
    let child = command.stderr(stderr).spawn().expect("the binary is there");
    let start = Instant::now();
    let address = loop {
        if let Some(address) = listening(child.id()) {
            break address;
        }
        assert!(start.elapsed() < DEADLINE, "it does not listen");
        std::thread::yield_now();
    };
    fs::remove_file(file).expect("the file was there to be read");
    (child, address)
}

/// Where a process listens on 127.0.0.1, as the kernel has it.
fn listening(pid: u32) -> Option<SocketAddr> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let links = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let sockets: Vec<String> = links.map(|link| link.to_string_lossy().into_owned()).collect();
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).ok()?;
    table.lines().find_map(|line| {
        // Number, local address, remote one, state (0A: listening), …, inode.
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_ours = sockets.contains(&format!("socket:[{}]", fields.get(9)?));
        let port = fields[1].strip_prefix("0100007F:").filter(|_| is_ours && fields[3] == "0A")?;
        Some(SocketAddr::from(([127, 0, 0, 1], u16::from_str_radix(port, 16).ok()?)))
    })
}

fn lines_dropped(api: SocketAddr) -> u64 {
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {api}\r\n\r\n");
    let metrics = http(api, request).body;
    let value = metrics.lines().find_map(|l| l.strip_prefix("gridcast_log_lines_dropped_total "));
    value.expect("it is there").parse().expect("a number")
}

#[test]
fn lines_that_a_full_disk_refuses_are_counted_and_nothing_else_is_lost() {
    for stderr in [Stdio::from(full()), Stdio::from(closed())] {
        let (mut child, api) = start("[api]\nbind = \"127.0.0.1:0\"\n", stderr);
        // The line that says where it listens.
        until(|| lines_dropped(api) >= 1);
        let before = lines_dropped(api);
        kill_process(Pid::from_child(&child), Signal::HUP).expect("it runs");
        until(|| lines_dropped(api) > before);
        kill_process(Pid::from_child(&child), Signal::TERM).expect("it runs");
        assert_eq!(child.wait().expect("it is ours").code(), Some(0));
    }
}

#[test]
fn a_command_whose_answer_cannot_be_written_fails_and_does_not_panic() {
    let file = config_file(CONFIG);
    let file = file.to_str().expect("UTF-8");
    for arguments in [
        &["check", "--config", file][..],
        &["doctor"],
        &["doctor", "--json"],
        &["--help"],
        &["--version"],
    ] {
        for stdout in [Stdio::from(full()), Stdio::from(closed())] {
            let mut command = command(arguments);
            let output = command.stdout(stdout).stderr(Stdio::piped()).output().expect("it runs");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
            assert!(!said.contains("panicked"), "{said}");
        }
    }
    fs::remove_file(file).expect("the file was there to be read");
}

#[test]
fn a_failure_that_cannot_be_written_keeps_its_exit_code() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = format!("[api]\nbind = \"{}\"\n", taken.local_addr().expect("bound"));
    for (config, code) in [("[api]\nbnd = 1\n", 2), (&taken, 1)] {
        let file = config_file(config);
        let arguments = ["serve", "--config", file.to_str().expect("UTF-8")];
        for stderr in [Stdio::from(full()), Stdio::from(closed())] {
            let status = command(&arguments).stderr(stderr).status().expect("it runs");
            assert_eq!(status.code(), Some(code), "{config}");
        }
        fs::remove_file(file).expect("the file was there to be read");
    }
}

/// The lines that a process wrote until its end, each an object.
fn objects(lines: &[String]) -> Vec<Value> {
    lines.iter().map(|line| serde_json::from_str(line).expect(line)).collect()
}

fn process(config: &str) -> Process {
    let file = config_file(config);
    Process::start(&["serve", "--config", file.to_str().expect("UTF-8")])
}

#[test]
fn in_json_the_start_the_end_and_what_is_between_are_one_object_a_line() {
    let config = format!("{}[log]\nformat = \"json\"\n", node_config(7, None, &[], KEY));
    let mut process = process(&config);
    // Before it there may be a word on the machine.
    let ready = std::iter::from_fn(|| process.line())
        .map(|line| serde_json::from_str::<Value>(&line).expect(&line))
        .find(|line| line["fields"]["url"].is_string())
        .expect("it starts");
    assert_eq!(ready["level"], "INFO");
    let fields = &ready["fields"];
    let api: SocketAddr = fields["api"].as_str().expect("an address").parse().expect("an address");
    assert_eq!(fields["url"], format!("http://{api}/"));
    let edge = fields["edges"][0].as_str().expect("an address");
    let mesh = fields["mesh"].as_str().expect("an address");
    let message = format!("ready, api {api}, edge {edge}, mesh {mesh}, open http://{api}/");
    assert_eq!(fields["message"], message);
    process.signal(Signal::TERM);
    let (code, lines) = process.finish();
    assert_eq!(code, Some(0));
    assert!(objects(&lines).len() >= 2, "{lines:#?}");
}

#[test]
fn in_json_the_reason_of_a_failed_start_is_an_object() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().expect("bound");
    let config = format!("[api]\nbind = \"{taken}\"\n[log]\nformat = \"json\"\n");
    let (code, lines) = process(&config).finish();
    let objects = objects(&lines);
    let error = objects.last().expect("it says why");
    assert_eq!((code, error["level"].as_str()), (Some(1), Some("ERROR")));
    assert!(error["fields"]["message"].to_string().contains(&taken.to_string()), "{error}");
}

#[test]
fn in_json_a_fault_of_the_configuration_is_an_object() {
    let (code, lines) = process("[api]\nbnd = 1\n[log]\nformat = \"json\"\n").finish();
    let [error] = &objects(&lines)[..] else { panic!("{lines:#?}") };
    assert_eq!(code, Some(2));
    assert!(error["fields"]["message"].to_string().contains("api.bnd: unknown key"), "{error}");
}

#[test]
fn the_start_line_ends_with_the_address_to_open_in_a_browser() {
    let mut process = process("[api]\nbind = \"127.0.0.1:0\"\n");
    let mut lines = std::iter::from_fn(|| process.line());
    let line = lines.find(|line| line.contains("ready, api ")).expect("it starts");
    let (start, url) = line.split_once(", open ").expect("it names an address");
    let api = start.strip_prefix("gridcast: ready, api ").expect("it names the API");
    assert_eq!(url, format!("http://{api}/"));
}

#[test]
fn the_access_log_is_written_in_json_at_every_level_and_switched_by_a_reload() {
    let config = format!("{CONFIG}[log]\nformat = \"json\"\nlevel = \"error\"\n");
    let file = config_file(&config);
    let mut process = Process::start(&["serve", "--config", file.to_str().expect("UTF-8")]);
    let ready = process.wait_until_ready();
    let call = || {
        let mut device = Socket::connect(ready.edges[0], "/echo", "").expect("granted");
        assert_eq!(device.call("hello"), "hello");
        device.send_close(4001, "bye");
        device.closed();
    };
    call();
    fs::write(&file, format!("{config}access = true\n")).expect("it can be written");
    process.signal(Signal::HUP);
    // Shards look for new settings once a turn. Until then devices leave no line.
    let mut line = None;
    until(|| {
        call();
        line = process.try_line();
        line.is_some()
    });
    let line: Value = serde_json::from_str(&line.expect("one came")).expect("JSON");
    assert_eq!((&line["level"], &line["target"]), (&"INFO".into(), &"access".into()));
    let fields = &line["fields"];
    assert_eq!(fields["message"], "connection ended");
    assert_eq!((&fields["kind"], &fields["route"]), (&"client".into(), &"/echo".into()));
    assert_eq!((&fields["messages_in"], &fields["messages_out"]), (&1.into(), &1.into()));
    assert_eq!(fields["code"], 4001);
    assert!(fields["duration_ms"].is_u64() && fields["bytes_in"].as_u64() > Some(100));
    let _ = fs::remove_file(file);
}
