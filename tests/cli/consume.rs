//! `consume`: events, acknowledgements, signals, connections that are lost.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use rustix::process::Signal;
use serde_json::Value;

use super::support::{Server, until};
use super::{Running, at, run};

/// Starts a consumer and waits until it consumes.
#[track_caller]
fn consumer(server: &Server, arguments: &[&str]) -> Running {
    let arguments = [&["consume"], arguments].concat();
    let running = Running::start(&mut at(server.api, &arguments));
    wait_for_consumers(server, arguments[1], 1);
    running
}

/// Waits until a topic has this number of consumers.
#[track_caller]
fn wait_for_consumers(server: &Server, topic: &str, count: u64) {
    let name = format!("gridcast_topic_consumers{{topic=\"{topic}\"}} ");
    until(|| {
        let metrics = server.get("/metrics").body;
        let number = metrics.lines().find_map(|line| line.strip_prefix(&name));
        number.unwrap_or("0") == count.to_string()
    });
}

/// Keeps the address of a server that restarts, and passes connections to it.
struct Relay {
    address: SocketAddr,
    target: Arc<Mutex<SocketAddr>>,
}

impl Relay {
    fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let address = listener.local_addr().expect("it is bound");
        let target = Arc::new(Mutex::new(target));
        let current = target.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let target = *current.lock().expect("no holder panics");
                // Without a server, the connection is closed.
                if let Ok(far) = TcpStream::connect(target) {
                    pass(&near, &far);
                    pass(&far, &near);
                }
            }
        });
        Self { address, target }
    }

    fn set_target(&self, target: SocketAddr) {
        *self.target.lock().expect("no holder panics") = target;
    }
}

/// Passes bytes in one direction until the end.
fn pass(from: &TcpStream, to: &TcpStream) {
    let mut from = from.try_clone().expect("it is open");
    let mut to = to.try_clone().expect("it is open");
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
}

/// The data of a message in a line.
fn data(line: &str) -> String {
    let event: Value = serde_json::from_str(line).expect("a line is JSON");
    event["d"]["frame"]["data"].as_str().unwrap_or("no message").to_owned()
}

#[test]
fn each_event_is_a_line_as_the_api_gave_it() {
    let server = Server::new();
    let mut device = server.device("/plain");
    device.send_text("hello\u{9b}");
    let said = run(&server, &["consume", "plain", "--count", "1"]).succeeded();
    let start = "{\"n\":1,\"c\":\"";
    let end = "\",\"t\":\"plain\",\"d\":{\"frame\":{\"type\":\"text\",\"data\":\"hello\u{9b}\",\"finish\":true}},\"g\":1}\n";
    assert!(said.starts_with(start) && said.ends_with(end), "{said}");
}

#[test]
fn events_beyond_the_count_stay_in_the_topic() {
    let server = Server::new();
    let mut device = server.device("/plain");
    ["a", "b", "c", "d"].iter().for_each(|text| device.send_text(text));
    let said = run(&server, &["consume", "plain", "--count", "3", "--window", "2"]).succeeded();
    assert_eq!(said.lines().map(data).collect::<Vec<_>>(), ["a", "b", "c"]);
    let said = run(&server, &["consume", "plain", "--count", "1"]).succeeded();
    assert_eq!(data(said.trim_end()), "d");
}

#[test]
fn acknowledged_events_are_done_and_a_signal_ends_the_command() {
    let server = Server::new();
    let mut device = server.device("/plain");
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        for mode in [&["plain", "--ack"][..], &["plain"]] {
            let consumer = consumer(&server, mode);
            device.send_text("first");
            assert_eq!(data(&consumer.line()), "first");
            consumer.signal(signal);
            let ended = consumer.end();
            assert_eq!((ended.code, &ended.out[..], &ended.err[..]), (Some(code), "", ""));
            wait_for_consumers(&server, "plain", 0);
        }
    }
    device.send_text("second");
    let said = run(&server, &["consume", "plain", "--count", "1"]).succeeded();
    assert_eq!(data(said.trim_end()), "second");
}

#[test]
fn a_reader_that_is_gone_ends_the_command_quietly_and_before_the_next_event() {
    let server = Server::new();
    let mut command = at(server.api, &["consume", "plain"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary is there");
    wait_for_consumers(&server, "plain", 1);
    drop(child.stdout.take());
    let ended = child.wait_with_output().expect("the process is ours");
    assert_eq!((ended.status.code(), &ended.stderr[..]), (Some(141), &b""[..]));
    wait_for_consumers(&server, "plain", 0);
    server.device("/plain").send_text("kept");
    let said = run(&server, &["consume", "plain", "--count", "1"]).succeeded();
    assert_eq!(data(said.trim_end()), "kept");
}

#[test]
fn a_consumer_connects_again_when_the_server_restarts() {
    let mut server = Server::new();
    let relay = Relay::to(server.api);
    let consumer = Running::start(&mut at(relay.address, &["consume", "plain", "--ack"]));
    wait_for_consumers(&server, "plain", 1);
    server.kill();
    consumer.says("lost");
    let server = Server::new();
    relay.set_target(server.api);
    consumer.says("connected again");
    server.device("/plain").send_text("after");
    assert_eq!(data(&consumer.line()), "after");
}

#[test]
fn a_lost_connection_ends_a_consumer_that_does_not_reconnect() {
    let mut server = Server::new();
    let consumer = consumer(&server, &["plain", "--no-reconnect"]);
    server.terminate();
    let ended = consumer.end();
    assert_eq!(ended.code, Some(3));
    let expected =
        format!("gridcast: http://{}: the server closed the connection with code 1001", server.api);
    assert!(ended.err.starts_with(&expected), "{}", ended.err);
}

#[test]
fn a_topic_that_no_route_feeds_is_a_warning() {
    let server = Server::new();
    let consumer = Running::start(&mut at(server.api, &["consume", "mesages"]));
    consumer.says("gridcast: warning: ");
}

#[test]
fn wrong_arguments_of_a_consumer_are_named() {
    let server = Server::new();
    run(&server, &["consume"]).failed(2);
    run(&server, &["consume", "a", "--window", "0"]).failed(2);
    run(&server, &["consume", "a", "--count", "0"]).failed(2);
    let error = run(&server, &["consume", ""]).failed(1);
    assert!(error.contains("queue.pop: t: "), "{error}");
}
