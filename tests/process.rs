//! The process: its command line, how it fails, how it stops.

#![forbid(unsafe_code)]

mod support;

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use support::{CONFIG, DRIVER, Message, Process, Server, Socket, command, config_file};

/// Runs the binary to its end.
fn run(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the binary is there")
}

/// Starts a server that has to fail: its exit code and the one line that it wrote.
#[track_caller]
fn failure(config: &str) -> (Option<i32>, String) {
    let file = config_file(config);
    let file = file.to_str().expect("UTF-8");
    let (code, lines) = Process::start(&["serve", "--config", file]).finish();
    std::fs::remove_file(file).expect("the file was there to be read");
    let [line] = &lines[..] else { panic!("not one line: {lines:#?}") };
    (code, line.replace(file, "FILE"))
}

#[test]
fn version_is_the_package_s() {
    let output = run(&["--version"]);
    assert!(output.status.success());
    let version = String::from_utf8(output.stdout).expect("text");
    assert!(version.starts_with("gridcast ") && version.contains('.'), "{version}");
}

#[test]
fn help_names_the_commands() {
    let output = run(&["--help"]);
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).expect("text");
    assert!(
        ["serve", "check", "doctor", "--version"].iter().all(|word| help.contains(word)),
        "{help}"
    );
}

#[test]
fn a_wrong_flag_is_named_with_exit_code_2() {
    for arguments in [&["serve", "--confg", "x"][..], &["sevre"], &["check"]] {
        let (code, lines) = Process::start(arguments).finish();
        assert_eq!(code, Some(2), "{arguments:?}");
        assert!(!lines.is_empty() && !lines.concat().contains("panicked"), "{lines:#?}");
    }
    let (_, lines) = Process::start(&["serve", "--confg", "x"]).finish();
    assert!(lines.concat().contains("--confg"), "{lines:#?}");
}

#[test]
fn a_typo_in_the_configuration_is_named_by_file_line_and_key() {
    let (code, line) = failure("[node]\ncores = 2\n[api]\nbnd = \"127.0.0.1:0\"\n");
    assert_eq!(code, Some(2));
    assert!(line.contains("FILE:4") && line.contains("bnd") && line.contains("bind"), "{line}");
}

#[test]
fn a_bad_value_is_named_by_file_line_and_key() {
    let (code, line) = failure("[limits]\nping_ms = \"30s\"\n");
    assert_eq!(code, Some(2));
    assert!(line.contains("FILE:2") && line.contains("ping_ms") && line.contains("30s"), "{line}");
}

#[test]
fn a_missing_configuration_file_is_named() {
    let (code, lines) = Process::start(&["serve", "--config", "no/such.toml"]).finish();
    assert_eq!(code, Some(2));
    assert!(lines.len() == 1 && lines[0].contains("no/such.toml"), "{lines:#?}");
}

#[test]
fn check_accepts_a_good_configuration_and_refuses_a_bad_one() {
    for (config, code) in [(CONFIG, 0), ("[api]\nbnd = 1\n", 2)] {
        let file = config_file(config);
        let output = run(&["check", "--config", file.to_str().expect("UTF-8")]);
        std::fs::remove_file(file).expect("the file was there to be read");
        assert_eq!(output.status.code(), Some(code), "{output:?}");
    }
}

/// A FIFO that nobody writes.
fn fifo() -> PathBuf {
    let path = config_file("");
    std::fs::remove_file(&path).expect("it was made");
    assert!(Command::new("mkfifo").arg(&path).status().expect("it is installed").success());
    path
}

#[test]
fn no_file_that_is_named_in_a_configuration_keeps_a_command_waiting() {
    let fifo = fifo();
    let path = fifo.to_str().expect("UTF-8");
    let route =
        "[[edge]]\n[[edge.route]]\npath = '/'\ntoken = { algorithm = 'RS256', key_file = 'FIFO' }";
    for config in [
        "[api.tls]\ncert = 'FIFO'\nkey = 'x'",
        "[mesh]\nbind = '127.0.0.1:0'\n[mesh.tls]\ncert = 'FIFO'\nkey = 'x'\nca = 'x'",
        route,
    ] {
        let file = config_file(&config.replace("FIFO", path));
        let arguments = ["check", "--config", file.to_str().expect("UTF-8")];
        let (code, lines) = Process::start(&arguments).finish();
        assert_eq!(code, Some(2));
        assert!(lines.concat().contains("cannot be read: not a regular file"), "{lines:#?}");
        std::fs::remove_file(file).expect("the file was there to be read");
    }
    for command in ["check", "doctor", "serve"] {
        let (code, lines) = Process::start(&[command, "--config", path]).finish();
        assert_eq!(code, Some(2));
        assert_eq!(lines, [format!("gridcast: {path}: cannot be read: not a regular file")]);
    }
    std::fs::remove_file(fifo).expect("it is there");
}

#[test]
fn check_names_what_is_likely_a_mistake() {
    let file = config_file("[api]\nbind = \"127.0.0.1:0\"\n");
    let output = run(&["check", "--config", file.to_str().expect("UTF-8")]);
    std::fs::remove_file(file).expect("the file was there to be read");
    let said = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{said}");
    assert!(
        said.ends_with(
            "\nwarning: no [[edge]] is configured: no device can connect to this node\n"
        )
    );
}

/// The locked memory of a user is counted for all of its processes, so each start is by a user of its
/// own: that takes root.
#[test]
fn a_node_starts_with_the_locked_memory_that_it_asks_for() {
    if !rustix::process::geteuid().is_root() {
        return println!("not run: it takes root to be other users");
    }
    // Where such a user can read them.
    let binary = std::env::temp_dir().join(format!("gridcast-{}", std::process::id()));
    let config = binary.with_extension("toml");
    std::fs::copy(env!("CARGO_BIN_EXE_gridcast"), &binary).expect("it can be copied");
    let text = "[api]\nbind = \"127.0.0.1:0\"\n[node]\ncores = 2\n[log]\nlevel = \"warn\"\n";
    std::fs::write(&config, text).expect("it can be written");
    let start = |kib: u64, user: u32| {
        let user = 1_000_000_000 + 4 * std::process::id() + user;
        let mut command = Command::new("prlimit");
        command.arg(format!("--memlock={}", kib * 1024)).arg(&binary);
        command.args(["serve", "--config"]).arg(&config);
        Process::spawn(command.env_clear().env(DRIVER, "io_uring").uid(user).gid(user))
    };
    let (code, lines) = start(64, 0).finish();
    assert_eq!(code, Some(1));
    let needed = lines.iter().find_map(|line| Some(line.split_once(" cores need ")?.1));
    let needed = needed.expect("it says how much");
    let needed: u64 = needed.split(' ').next().expect("a number").parse().expect("a number");
    // With less nothing is sure: what a ring held is given back at some time after its end.
    let mut node = start(needed, 1);
    // The executor would do with less, and say that it goes without registered buffers.
    let is_of_memory = |line: &str| line.contains("buffers") || line.contains("emory");
    let mut before =
        std::iter::from_fn(|| node.line()).take_while(|line| !line.contains("ready, api "));
    assert_eq!(before.find(|line| is_of_memory(line)), None);
    node.signal(Signal::TERM);
    assert_eq!(node.finish().0, Some(0));
    for file in [binary, config] {
        std::fs::remove_file(file).expect("it was made");
    }
    // The second user's record of ids.
    let user = 1_000_000_000 + 4 * std::process::id() + 1;
    std::fs::remove_dir_all(format!("/dev/shm/gridcast-{user}")).expect("it was made");
}

/// The time of a client's id, in Unix milliseconds.
fn time_of(id: &str) -> u64 {
    (id.parse::<u64>().expect("a number") >> 22) + 1_288_834_974_657
}

#[test]
fn ids_of_a_new_life_are_above_the_record_of_the_one_before() {
    let dir = config_file("");
    std::fs::remove_file(&dir).expect("it was made");
    let config = CONFIG.replace("[node]", "[node]\nid = 5") + &format!("[data]\ndir = {dir:?}\n");
    let record = || std::fs::read_to_string(dir.join("ids-5")).expect("the record");
    let recorded = || -> u64 { record()[19..39].parse().expect("a time") };
    let mut server = Server::start(&config);
    let (_client, first) = server.client();
    assert!(time_of(&first) < recorded());
    server.kill();
    // As if the clock had been an hour ahead during that life, and was set back.
    let hour_ahead = format!("{:020}", recorded() + 3_600_000);
    let text = record().replace(&format!("{:020}", recorded()), &hour_ahead);
    std::fs::write(dir.join("ids-5"), text).expect("it can be written");
    let mut server = Server::start(&config);
    let clients: Vec<_> = (0..100).map(|_| server.client()).collect();
    for (_, id) in &clients {
        assert!(time_of(id) > hour_ahead.parse().expect("a number"), "{id} {hour_ahead}");
        assert!(time_of(id) < recorded());
    }
    drop(clients);
    server.terminate();
    assert_eq!(server.exit_code(), Some(0));
    std::fs::remove_dir_all(dir).expect("it is there");
}

#[test]
fn a_data_directory_that_cannot_be_written_ends_the_start() {
    // Root too can make no directory there.
    let config = format!("{CONFIG}[data]\ndir = \"/proc/gridcast\"\n");
    let (code, line) = failure(&config);
    assert_eq!(code, Some(1));
    assert!(line.starts_with("gridcast: data.dir: /proc/gridcast/ids-1: "), "{line}");
}

#[test]
fn a_node_without_a_place_for_its_record_says_so_and_goes_on() {
    let file = config_file(CONFIG);
    let mut command = command(&["serve", "--config", file.to_str().expect("UTF-8")]);
    let mut node = Process::spawn(command.env("STATE_DIRECTORY", "/proc/gridcast"));
    let mut lines = std::iter::from_fn(|| node.line());
    assert!(lines.any(|line| line.contains("no record of client ids: /proc/gridcast/ids-1: ")));
    assert!(lines.any(|line| line.contains("ready, api ")));
    node.signal(Signal::TERM);
    assert_eq!(node.finish().0, Some(0));
    std::fs::remove_file(file).expect("the file was there to be read");
}

#[test]
fn a_port_in_use_ends_the_start_with_exit_code_1_and_its_address() {
    for section in ["[api]", "[[edge]]"] {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = taken.local_addr().expect("bound").to_string();
        let bind = format!("{section}\nbind = \"127.0.0.1:0\"");
        let config = CONFIG.replacen(&bind, &bind.replace("127.0.0.1:0", &address), 1);
        let (code, line) = failure(&config);
        assert_eq!(code, Some(1), "{line}");
        assert!(line.contains(&address), "{line}");
    }
}

#[test]
fn a_second_server_on_the_same_port_does_not_start() {
    // The listeners share their port among the shards, and must not share it with a stranger.
    let first = Server::new();
    let config = CONFIG.replacen("127.0.0.1:0", &first.api.to_string(), 1);
    let (code, line) = failure(&config);
    assert_eq!(code, Some(1), "{line}");
    assert!(line.contains(&first.api.to_string()), "{line}");
}

/// [`CONFIG`] with a mesh.
fn with_mesh(bind: &str) -> String {
    let mesh = format!("[mesh]\nbind = \"{bind}\"\nkey = \"0123456789abcdef\"\n");
    CONFIG.replace("[node]", "[node]\nid = 7") + &mesh
}

#[test]
fn a_node_with_a_mesh_says_where_and_ends_with_exit_code_0() {
    let mut server = Server::start(&with_mesh("127.0.0.1:0"));
    assert!(server.mesh.expect("the line names it").port() != 0);
    assert_eq!(server.publish("a", "hello"), (0, 0));
    server.terminate();
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn a_mesh_whose_port_is_in_use_does_not_start() {
    let server = Server::start(&with_mesh("127.0.0.1:0"));
    let taken = server.mesh.expect("the line names it");
    let (code, line) = failure(&with_mesh(&taken.to_string()));
    assert_eq!(code, Some(1));
    let words = format!("mesh.bind {taken}: another process has this UDP port; see `ss -lunp`");
    assert!(line.ends_with(&words), "{line}");
}

#[test]
fn sigterm_closes_clients_with_1001_and_exits_0() {
    let mut server = Server::new();
    let mut sockets = [server.device("/ws"), server.device("/echo"), server.backend()];
    server.terminate();
    for socket in &mut sockets {
        assert_eq!(socket.closed().0, 1001);
    }
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn sigterm_answers_what_came_before_it() {
    let mut server = Server::new();
    let mut backend = server.backend();
    let request = br#"{"m":"mesh.publish","p":{"c":"a","d":"x"},"i":1}"#;
    backend.send(&support::frame(0x81, request).repeat(100));
    assert_eq!(backend.text(), r#"{"E":null,"r":{"s":0,"f":0},"i":1}"#);
    server.terminate();
    for _ in 1..100 {
        assert_eq!(backend.text(), r#"{"E":null,"r":{"s":0,"f":0},"i":1}"#);
    }
    assert_eq!(backend.closed().0, 1001);
}

#[test]
fn sigterm_does_not_wait_for_a_client_that_does_not_read() {
    let mut server = Server::new();
    let _stalled = Socket::connect_with_small_buffer(server.edge, "/ws?channels=a");
    let data = "x".repeat(60_000);
    for _ in 0..100 {
        server.publish("a", &data);
    }
    server.terminate();
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn sigterm_gives_out_what_is_in_the_topics_before_it_closes_back_ends() {
    let mut server = Server::new();
    let mut consumer = server.backend();
    // One event at a time: the others are in the topic when the signal comes.
    let pop = r#"{"m":"queue.pop","p":{"t":["plain"],"a":true,"w":1},"i":12345}"#;
    assert_eq!(consumer.call(pop), support::SUCCESS);
    let mut client = server.device("/plain");
    (0..100).for_each(|number| client.send_text(&number.to_string()));
    client.synchronise();
    assert_eq!(consumer.data(), "0");
    server.terminate();
    assert_eq!(client.closed().0, 1001);
    for number in 1..100 {
        let ack = format!(r#"{{"m":"queue.ack","p":{{"g":{number}}},"i":12345}}"#);
        assert_eq!(consumer.call(&ack), support::SUCCESS);
        assert_eq!(consumer.data(), number.to_string());
    }
    let ack = r#"{"m":"queue.ack","p":{"g":100},"i":12345}"#;
    assert_eq!(consumer.call(ack), support::SUCCESS);
    assert_eq!(consumer.closed().0, 1001);
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn sighup_without_a_change_says_so_and_the_node_continues() {
    let mut server = Server::new();
    let mut client = server.device("/echo");
    server.hang_up();
    server.logs("reloaded: no setting has changed");
    assert_eq!(client.call("hello"), "hello");
    server.terminate();
    assert_eq!(client.closed().0, 1001);
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn a_node_whose_shards_look_for_work_before_they_sleep_works_and_ends() {
    let config = CONFIG.replace("[node]", "[node]\nspin_us = 1000");
    let mut server = Server::start(&config);
    // On both shards, some of them.
    let mut clients: Vec<Socket> = (0..16).map(|_| server.device("/ws?channels=a")).collect();
    let mut backends = [server.backend(), server.backend(), server.backend()];
    for number in 0..100 {
        let backend = &mut backends[number % 3];
        assert_eq!(backend.publish("a", &number.to_string()), (16, 0));
        for client in &mut clients {
            assert_eq!(client.text(), number.to_string());
        }
    }
    server.terminate();
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn a_log_in_json_is_one_object_a_line() {
    let mut server = Server::with("[log]\nformat = \"json\"");
    server.terminate();
    server.logs(r#""level":"INFO","fields":{"message":"ended: "#);
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn clients_of_a_node_that_was_stopped_for_longer_than_they_may_be_idle_stay() {
    let mut server = Server::with("[limits]\nping_ms = 1000\nidle_ms = 2000");
    let mut clients: Vec<Socket> = (0..30).map(|_| server.device("/echo")).collect();
    for client in &mut clients {
        assert!(matches!(client.read(), Message::Ping(_)));
    }
    server.freeze();
    for client in &mut clients {
        client.send_pong(b"");
        client.send_text("sent meanwhile");
    }
    thread::sleep(Duration::from_millis(2500));
    server.thaw();
    for client in &mut clients {
        hears(client, "sent meanwhile");
        client.send_text("and afterwards");
        hears(client, "and afterwards");
    }
    server.logs("did not run for");
    assert_eq!(metric(&server, "gridcast_limits_hit_total{limit=\"idle_ms\"}"), 0);
    assert!(metric(&server, "gridcast_stalls_total") > 0);
}

#[test]
fn a_client_that_was_silent_before_a_node_was_stopped_still_has_its_time_and_no_more() {
    let server = Server::with("[limits]\nping_ms = 300\nidle_ms = 600");
    let mut client = server.device("/echo");
    assert!(matches!(client.read(), Message::Ping(_)));
    server.freeze();
    thread::sleep(Duration::from_millis(1000));
    server.thaw();
    assert_eq!(client.closed().0, 1001);
}

/// The next message is this text; pings before it are answered.
#[track_caller]
fn hears(client: &mut Socket, text: &str) {
    loop {
        match client.read() {
            Message::Ping(data) => client.send_pong(&data),
            message => return assert_eq!(message, Message::Text(text.into())),
        }
    }
}

/// The value of a metric without other labels; 0 if it is not there.
fn metric(server: &Server, name: &str) -> u64 {
    let text = server.get("/metrics").body;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().expect("a number"))
}
