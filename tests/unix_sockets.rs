//! Listeners on Unix sockets, with two shards that share each of them.

mod support;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fs, process};

use support::{DEADLINE, Process, command, config_file, config_of};

/// A folder for sockets, removed on drop. Its path is short, as that of a socket has to be.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static FOLDERS: AtomicUsize = AtomicUsize::new(0);
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("gridcast-{}-{number}", process::id()));
        fs::create_dir_all(&folder).expect("the test's folder can be written");
        Self(folder)
    }

    fn api(&self) -> PathBuf {
        self.0.join("api.sock")
    }

    fn edge(&self) -> PathBuf {
        self.0.join("edge.sock")
    }

    /// A node without users, whose listeners are here. `edge_keys` are keys of the edge.
    fn config(&self, edge_keys: &str) -> PathBuf {
        let unix = |path: PathBuf| format!("unix:{}", path.display());
        let lines = format!("{edge_keys}\n[[edge.route]]\npath = \"/echo\"\nhandler = \"echo\"\n");
        config_file(&config_of(&unix(self.api()), &unix(self.edge()), &lines))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Starts a node, and waits for the line that says that it is ready. Returns the line, too.
fn start(config: &Path) -> (Process, String) {
    let config = config.to_str().expect("UTF-8");
    let mut process = Process::spawn(&mut command(&["serve", "--config", config]));
    loop {
        let line = process.line().expect("the node starts");
        if line.contains("ready, ") {
            return (process, line);
        }
    }
}

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).expect("the node listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a deadline can be set");
    stream
}

/// Sends a request that is the last of its connection, and returns the response.
fn ask(path: &Path, target: &str, headers: &str) -> String {
    let mut stream = connect(path);
    let head = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    stream.write_all(format!("{head}{headers}\r\n").as_bytes()).expect("the node reads");
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("the node answers");
    response
}

/// Opens a WebSocket and sends a message, which comes back.
fn echo(path: &Path, before: &[u8]) -> UnixStream {
    let mut stream = connect(path);
    let request = "GET /echo HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
                   Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let message = b"\x81\x85\0\0\0\0hello";
    stream.write_all(&[before, request.as_bytes(), message].concat()).expect("the node reads");
    let mut received = Vec::new();
    while !received.ends_with(b"\x81\x05hello") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("the echo comes");
        received.push(byte[0]);
    }
    stream
}

#[test]
fn both_listeners_may_be_unix_sockets_whose_files_go_with_the_node() {
    let folder = Folder::new();
    let (mut node, ready) = start(&folder.config(""));
    let (api, edge) = (folder.api(), folder.edge());
    let expected = format!("ready, api unix:{}, edge unix:{}", api.display(), edge.display());
    assert!(ready.ends_with(&expected), "{ready}");
    for path in [&api, &edge] {
        let mode = fs::metadata(path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        assert!(ask(path, "/readyz", "").starts_with("HTTP/1.1 200 "));
    }
    let nodes = ask(&api, "/v1/nodes", "");
    let own = format!("\"unix:{}\"", api.display());
    let row = format!("\"api_server\":{own},\"host\":{own},\"ip\":\"\",\"port\":0}}");
    assert!(nodes.contains(&row), "{nodes}");
    assert!(ask(&api, "/", "").starts_with("HTTP/1.1 200 "), "the start page");
    // More than one shard takes.
    let devices: Vec<_> = (0..50).map(|_| echo(&edge, b"")).collect();
    let metrics = ask(&api, "/metrics", "");
    assert!(metrics.contains("gridcast_clients_total 50"), "{metrics}");
    drop(devices);
    node.signal(rustix::process::Signal::TERM);
    let (code, _) = node.finish();
    assert_eq!(code, Some(0));
    assert!(!api.exists() && !edge.exists());
}

#[test]
fn a_stale_socket_is_replaced_and_one_in_use_is_named() {
    let folder = Folder::new();
    drop(UnixListener::bind(folder.edge()).expect("nobody listens"));
    let (_node, _) = start(&folder.config(""));
    drop(echo(&folder.edge(), b""));
    let config = folder.config("");
    let config = config.to_str().expect("UTF-8");
    let mut second = Process::spawn(&mut command(&["serve", "--config", config]));
    let (code, lines) = second.finish();
    assert_ne!(code, Some(0));
    let why = format!("api.bind unix:{}: another process listens there", folder.api().display());
    assert!(lines.iter().any(|line| line.contains(&why)), "{lines:#?}");
    drop(echo(&folder.edge(), b""));
}

#[test]
fn a_proxy_on_a_unix_socket_is_loopback() {
    let folder = Folder::new();
    let (_node, _) = start(&folder.config("proxy = { from = [\"127.0.0.1\"], protocol = true }"));
    drop(echo(&folder.edge(), b"PROXY TCP4 192.0.2.1 192.0.2.9 56324 443\r\n"));
    let mut rest = Vec::new();
    let mut stream = connect(&folder.edge());
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("the node reads");
    let _ = stream.read_to_end(&mut rest);
    assert_eq!(rest, b"", "there is no header");
}

#[test]
fn the_health_of_a_node_on_a_unix_socket_can_be_asked_for() {
    let folder = Folder::new();
    let config = folder.config("");
    let health = || {
        let file = config.to_str().expect("UTF-8");
        let mut command = command(&["check", "--health", "--config", file]);
        command.output().expect("gridcast runs").status.success()
    };
    assert!(!health());
    let _node = start(&config);
    assert!(health());
}
