//! The console: how its files are sent, and that a browser runs it.

#![forbid(unsafe_code)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use support::{SUCCESS, Server, Socket, basic, browser, program, users};

const USERS: [(&str, &str); 2] = [
    ("admin", "password = \"s3cret\"\nroles = [\"admin\"]"),
    ("reader", "password = \"reads\"\nroles = [\"read\"]"),
];

#[test]
fn the_page_has_a_strict_policy_and_its_files_are_kept_by_their_tags() {
    let server = Server::new();
    let page = server.get("/console");
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = page.header("content-security-policy").expect("a policy");
    for directive in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"] {
        assert!(policy.split("; ").any(|part| part == directive), "{policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    assert_eq!(page.header("referrer-policy"), Some("no-referrer"));
    let script = server.get("/console/main.js");
    assert_eq!(script.header("content-type"), Some("text/javascript; charset=utf-8"));
    assert_eq!(script.header("x-content-type-options"), Some("nosniff"));
    let tag = script.header("etag").expect("a tag");
    let known = format!("If-None-Match: {tag}\r\n");
    let mut connection = server.http();
    connection.send(server.raw("GET", "/console/main.js", &(known + "Connection: close\r\n"), ""));
    assert_eq!((connection.head().status, connection.rest()), (304, vec![]));
    let other = server.request("GET", "/console/main.js", "If-None-Match: \"x\"\r\n", "");
    assert_eq!((other.status, other.body), (200, script.body));
}

#[test]
fn files_are_compressed_for_those_that_accept_it_under_a_tag_of_their_own() {
    let server = Server::new();
    for path in ["/console", "/console/main.js"] {
        let head = |accepted: &str| {
            let mut connection = server.http();
            connection.send(server.raw("HEAD", path, accepted, ""));
            connection.head()
        };
        let [plain, gzip] = ["", "Accept-Encoding: gzip\r\n"].map(head);
        let encodings = [&plain, &gzip].map(|response| response.header("content-encoding"));
        assert_eq!(encodings, [None, Some("gzip")], "{path}");
        for response in [&plain, &gzip] {
            assert_eq!(response.header("vary"), Some("Accept-Encoding"), "{path}");
        }
        let bytes = [&plain, &gzip].map(|response| {
            let length = response.header("content-length").expect("a length");
            length.parse::<usize>().expect("a number")
        });
        assert_eq!(server.get(path).body.len(), bytes[0], "{path}");
        assert!(bytes[1] * 2 < bytes[0], "{path}: {bytes:?}");
        let tags = [&plain, &gzip].map(|response| response.header("etag"));
        assert!(tags == [None, None] || tags[0] != tags[1], "{path}");
        if let Some(tag) = tags[1] {
            let known = head(&format!("Accept-Encoding: gzip\r\nIf-None-Match: {tag}\r\n"));
            assert_eq!((known.status, known.header("content-encoding")), (304, None), "{path}");
        }
    }
}

#[test]
fn only_existing_files_of_the_console_can_be_read() {
    let server = Server::new();
    for path in ["/console/", "/console/x.js", "/console/../Cargo.toml", "/console/index.html"] {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
    for path in ["/console", "/console/style.css"] {
        let refused = server.request("POST", path, "", "");
        assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, HEAD")), "{path}");
    }
}

/// Without a browser or Node this is skipped with a word.
#[test]
fn an_operator_finds_watches_and_closes_a_client_in_a_browser() {
    let (Some(browser), Some(node)) = (browser(), program(&["node"])) else {
        return eprintln!("skipped: needs chromium and node on PATH");
    };
    let mut server = Server::with(&users(&USERS));
    let mut device = device(&server);
    let reader = Socket::connect(server.api, "/ws/v1", &basic("reader", "reads"));
    let mut reader = reader.expect("a user");
    let pop = r#"{"m":"queue.pop","p":{"t":["audit"]},"i":12345}"#;
    assert!(reader.call(pop).starts_with(r#"{"E":null,"#), "the reader consumes");
    let others = ["a", "b"].map(|channel| server.device(&format!("/ws?channels={channel}")));
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/console/check.mjs");
    let mut child = Command::new(node)
        .arg(script)
        .arg(browser)
        .arg(format!("http://{}", server.api))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("node starts");
    let mut answers = child.stdin.take().expect("a pipe");
    let requests = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut last = String::new();
    for request in requests.map(|line| line.expect("a line")) {
        let answer = match request.split_once(' ').unwrap_or((&request, "")) {
            ("send", text) => {
                device.send_text(text);
                String::new()
            }
            ("receive", text) => {
                assert_eq!(device.text(), text);
                String::new()
            }
            ("closed", _) => {
                let (code, reason) = device.closed();
                format!("{code} {reason}")
            }
            ("end", _) => {
                server.kill();
                String::new()
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
    drop(others);
}

/// Without Node this is skipped with a word.
#[test]
fn text_of_a_device_cannot_change_how_its_neighbours_are_shown() {
    let Some(node) = program(&["node"]) else { return eprintln!("skipped: no node on PATH") };
    let module = include_str!("../src/console/page/dom.js");
    let print =
        r#"console.log(oneLine("a\nb\u202e\u2066c\u0000\ufeff<b>\u{1f469}\u200d\u{1f527}"));"#;
    let output = Command::new(node)
        .args(["--input-type=module", "--eval", &format!("{module}\n{print}")])
        .output()
        .expect("node starts");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let expected = "a b\u{fffd}\u{fffd}c\u{fffd}\u{fffd}<b>\u{1f469}\u{200d}\u{1f527}\n";
    assert_eq!(text, expected, "{}", String::from_utf8_lossy(&output.stderr));
}

/// Connects the client of user 10000.
fn device(server: &Server) -> Socket {
    let mut backend =
        Socket::connect(server.api, "/ws/v1", &basic("admin", "s3cret")).expect("a user");
    let pop = r#"{"m":"queue.pop","p":{"t":["messages"]},"i":12345}"#;
    assert_eq!(backend.call(pop), SUCCESS);
    let device = server.device("/ws?channels=news,%3Cimg%20src%3Dx%3E");
    let id = backend.opened();
    let context = r#"{"user_id":10000,"name":"<b>name</b>"}"#;
    let set = format!(
        r#"{{"m":"conn.call","p":{{"c":"{id}","f":"set_context","a":[{context}]}},"i":12345}}"#
    );
    assert_eq!(backend.call(&set), SUCCESS);
    assert_eq!(backend.call(r#"{"m":"queue.unpop","p":{},"i":12345}"#), SUCCESS);
    device
}
