//! Programs in the pages, run against a node.

use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::json;

use super::page::{Block, Page};
use super::play::{configuration, translate};
use super::snippets::folder;
use super::support::{Server, Socket};

/// A program that ends with the test.
struct Program {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Program {
    fn line(&mut self) -> String {
        self.lines.next().expect("the program goes on").expect("it prints text")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn blocks(page: &str, info: &str) -> Vec<Block> {
    let blocks: Vec<_> =
        Page::read(page).blocks().into_iter().filter(|block| block.info == info).collect();
    assert!(!blocks.is_empty(), "{page} has no block {info}");
    blocks
}

/// Starts Node with a browser's WebSocket; none if there is no Node that has one.
fn node(script: &str) -> Option<Program> {
    let flag = "--experimental-websocket";
    let known = "process.exit(typeof WebSocket == 'function' ? 0 : 1)";
    let known = Command::new("node").args([flag, "-e", known]).stderr(Stdio::null()).status();
    if !known.is_ok_and(|status| status.success()) {
        eprintln!("skipped: there is no node, or it has no WebSocket");
        return None;
    }
    let mut child = Command::new("node")
        .args([flag, "--no-warnings", "--input-type=module", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("node starts");
    let mut input = child.stdin.take().expect("it is piped");
    input.write_all(script.as_bytes()).expect("node reads its script");
    drop(input);
    let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    Some(Program { child, lines })
}

#[test]
fn the_devices_of_the_pages_send_and_get_what_is_published() {
    for page in ["README.md", "docs/start.md", "docs/guide/devices.md"] {
        for block in blocks(page, "js device") {
            let server = Server::start(&configuration(None));
            let mut consumer = server.consumer("messages");
            let script = translate(&block.text, &server, None);
            let Some(mut device) = node(&script) else { return };
            assert_eq!(consumer.data(), "hello from a device");
            assert_eq!(server.publish("news", "hello"), (1, 0));
            assert_eq!(device.line(), "hello");
        }
    }
}

#[test]
fn the_device_that_makes_calls_gets_its_receipt_and_what_is_published() {
    let block = &blocks("docs/guide/device-protocol.md", "js calls")[0];
    let server = Server::start(&configuration(None));
    let mut consumer = server.consumer("messages");
    let script = translate(&block.text, &server, None);
    let Some(mut device) = node(&script) else { return };
    assert_eq!(consumer.data(), "hello from a device");
    assert_eq!(device.line(), "stored");
    assert_eq!(server.publish("news", "hello"), (1, 0));
    assert_eq!(device.line(), "news hello");
}

#[test]
fn the_reconnecting_device_comes_back_unless_it_was_told_not_to() {
    let block = &blocks("docs/guide/reconnecting.md", "js reconnect")[0];
    let server = Server::start(&configuration(None));
    let mut consumer = server.consumer("messages");
    let script = format!(
        "{}\nconnect(() => 'ws://{}/ws', {{
            onMessage: (data) => console.log(data),
            onOpen: (socket) => socket.send('here'),
            onClose: (code) => console.log(code),
        }});",
        block.text, server.edge
    );
    let Some(mut device) = node(&script) else { return };
    let here = |consumer: &mut Socket| {
        let event = consumer.event();
        assert_eq!(event["d"]["frame"]["data"], "here");
        event["c"].as_str().expect("an id").to_owned()
    };
    let first = here(&mut consumer);
    consumer.conn_call(&first, "close", json!([1013, "later"]));
    assert_eq!(device.line(), "1013");
    let second = here(&mut consumer);
    assert_ne!(first, second);
    consumer.conn_call(&second, "close", json!([4001, "for good"]));
    assert_eq!(device.line(), "4001");
    // Without a timer or a connection Node has nothing left to do.
    assert!(device.lines.next().is_none(), "it goes on");
}

#[test]
fn the_python_and_php_programs_run() {
    for (language, program) in [("python", "python3"), ("php", "php")] {
        if Command::new(program).arg("--version").output().is_err() {
            eprintln!("skipped: {program} is not installed");
            continue;
        }
        let folder = folder(language);
        for page in Page::all() {
            let ends = |block: &&Block| block.info == language && !block.text.contains(SERVES);
            for block in page.blocks().iter().filter(ends) {
                let server = Server::start(&configuration(None));
                let _device = server.device("/ws?channels=news");
                let file = folder.join("snippet");
                fs::write(&file, translate(&block.text, &server, None)).expect("a file");
                let run = Command::new(program).arg(&file).output().expect("it starts");
                let place = format!("{}:{}", page.name, block.line);
                let said = String::from_utf8_lossy(&run.stderr);
                assert!(run.status.success() && said.is_empty(), "{place}: {said}");
            }
        }
        fs::remove_dir_all(folder).expect("the folder was made");
    }
}

/// The call that makes a program of a page a service, which does not end by itself.
const SERVES: &str = "serve_forever()";

#[test]
fn the_admission_hook_of_the_page_admits_the_session_of_the_page() {
    if Command::new("python3").arg("--version").output().is_err() {
        return eprintln!("skipped: python3 is not installed");
    }
    let page = "docs/guide/tokens.md";
    let programs = blocks(page, "python");
    let hook = programs.iter().find(|block| block.text.contains(SERVES)).expect("a hook");
    let program = hook.text.replace(
        "ThreadingHTTPServer((\"127.0.0.1\", 8081), Hook).serve_forever()",
        "hook = ThreadingHTTPServer((\"127.0.0.1\", 0), Hook)\n\
         print(hook.server_port, flush=True)\n\
         hook.serve_forever()",
    );
    let mut python = Command::new("python3");
    python.args(["-c", &program]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = python.spawn().expect("it starts");
    let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let mut hook = Program { child, lines };
    let port = hook.line();

    let configurations = blocks(page, "toml");
    let asks = configurations.iter().find(|block| block.text.contains("admit =")).expect("a route");
    let address = format!("127.0.0.1:{port}/admit");
    let asks = asks.text.replace("127.0.0.1:8081/admit", &address);
    let asks = format!("[api]\nbind = \"\"\n{asks}");
    let server = Server::start(&configuration(Some(&asks)));
    let admitted = Socket::connect(server.edge, "/ws", "Cookie: session=8f2c\r\n");
    let refused = Socket::connect(server.edge, "/ws", "").err().map(|answer| answer.status);
    assert!(admitted.is_ok() && refused == Some(401), "{refused:?}");
}

#[test]
fn the_token_of_the_page_opens_the_route_of_the_page() {
    if Command::new("python3").arg("--version").output().is_err() {
        return eprintln!("skipped: python3 is not installed");
    }
    let page = "docs/guide/tokens.md";
    let server = Server::start(&configuration(Some(&blocks(page, "toml")[0].text)));
    let signed = Command::new("python3").args(["-c", &blocks(page, "python")[0].text]).output();
    let signed = String::from_utf8(signed.expect("it runs").stdout).expect("text");
    let token = signed.trim();
    let header = format!("Authorization: Bearer {token}\r\n");
    let mut consumer = server.consumer("messages");
    let _by_header = Socket::connect(server.edge, "/ws", &header).expect("it is let in");
    let event = consumer.event();
    assert_eq!(event["d"]["context"], json!({ "user_id": "10000" }));
    assert_eq!(server.publish("user:10000", "hello"), (1, 0));
    let protocols = format!("Sec-WebSocket-Protocol: bearer, bearer.{token}\r\n");
    Socket::connect(server.edge, "/ws", &protocols).expect("it is let in");
    let refused = Socket::connect(server.edge, "/ws", "").err().expect("it is refused");
    assert_eq!(refused.status, 401);
}
