//! A rolling restart of a grid behind HAProxy, which checks `/readyz` and so sees that a node is about to
//! shut down. Skipped with a word where HAProxy is not installed: `.ci/tools` installs it.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use std::{env, fs, process, thread};

use support::{Message, Process, Server, Socket, http, until_within};

/// The longest that a node may take to be up or down for HAProxy.
const PATIENCE: Duration = Duration::from_secs(20);

/// Devices that stay connected and connect again when their node shuts down.
const DEVICES: usize = 4;

/// The addresses of a node, which are the same after its restart.
struct Node {
    id: usize,
    api: SocketAddr,
    edge: SocketAddr,
    mesh: SocketAddr,
}

impl Node {
    fn config(&self, seeds: &str) -> String {
        let Self { id, api, edge, mesh } = self;
        format!(
            r#"
[node]
id = {id}
cores = 1
lame_duck_s = 2
[api]
bind = "{api}"
[[edge]]
bind = "{edge}"
proxy = {{ from = ["127.0.0.1"], protocol = true }}
[[edge.route]]
path = "/ws"
subscribe = ["news"]
[mesh]
bind = "{mesh}"
seeds = [{seeds}]
expect = 3
key = "correct horse battery staple"
"#
        )
    }
}

/// Addresses that nobody listens on at this moment, all different.
fn free_addresses<const N: usize>() -> [SocketAddr; N] {
    let listeners = [0; N].map(|_| TcpListener::bind("127.0.0.1:0").expect("a port"));
    listeners.map(|listener| listener.local_addr().expect("it is bound"))
}

fn haproxy() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let folders = env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|folder| folder.join("haproxy")).find(|file| file.is_file())
}

/// HAProxy in front of the nodes.
struct Balancer {
    _process: Process,
    folder: PathBuf,
    edge: SocketAddr,
    api: SocketAddr,
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Balancer {
    fn start(program: &Path, nodes: &[Node]) -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("gridcast-rolling-{}", process::id()));
        fs::create_dir_all(&folder).expect("the test's folder can be written");
        let [edge, api] = free_addresses();
        let file = folder.join("haproxy.cfg");
        let line = |at: SocketAddr, id| format!("    server node{id} {at}\n");
        let edges: String = nodes.iter().map(|node| line(node.edge, node.id)).collect();
        let apis: String = nodes.iter().map(|node| line(node.api, node.id)).collect();
        let text = format!(
            r#"
global
    maxconn 256
    stats socket {folder}/stats mode 600 level admin
defaults
    mode tcp
    timeout connect 5s
    timeout client 75s
    timeout server 75s
    option redispatch
    default-server check inter 100ms fall 2 rise 1
frontend devices
    bind {edge}
    default_backend edge
backend edge
    option httpchk GET /readyz
    default-server send-proxy-v2
{edges}
frontend back_ends
    bind {api}
    default_backend api
backend api
    option httpchk GET /readyz
{apis}
"#,
            folder = folder.display()
        );
        fs::write(&file, text).expect("the folder is there");
        let mut command = Command::new(program);
        let process = Process::spawn(command.arg("-db").arg("-f").arg(&file));
        Self { _process: process, folder, edge, api }
    }

    /// Waits until HAProxy sends connections to a node, or does not.
    #[track_caller]
    fn wait_for(&self, node: &Node, is_up: bool) {
        let name = format!("node{}", node.id);
        until_within(PATIENCE, || {
            let servers = ["edge", "api"].map(|backend| self.status(backend, &name));
            servers.iter().all(|status| {
                let status = status.as_deref().unwrap_or("unknown");
                if is_up { status == "UP" } else { status.starts_with("DOWN") }
            })
        });
    }

    fn status(&self, backend: &str, server: &str) -> Option<String> {
        let mut socket = UnixStream::connect(self.folder.join("stats")).ok()?;
        socket.write_all(b"show stat\n").ok()?;
        let mut table = String::new();
        socket.read_to_string(&mut table).ok()?;
        let start = format!("{backend},{server},");
        let line = table.lines().find(|line| line.starts_with(&start))?;
        line.split(',').nth(17).map(str::to_owned)
    }
}

/// Publishes one number after another, each again until a node answers that it was published.
fn publish(api: SocketAddr, begun: &AtomicU64, is_over: &AtomicBool) {
    // The last number is published after the end is known, so that it wakes all devices.
    let mut is_last = false;
    while !is_last {
        is_last = is_over.load(Ordering::Acquire);
        let number = begun.fetch_add(1, Ordering::AcqRel);
        let body = format!(r#"{{"c":"news","d":"{number}"}}"#);
        let request = format!(
            "POST /v1/mesh/publish HTTP/1.1\r\nHost: {api}\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        // Paced by the answers. A subscriber's queue has room for tens of thousands of these numbers.
        while !http(api, &request).body.starts_with(r#"{"E":null,"#) {}
    }
}

/// Stays subscribed, on one node after another. Each number that was published while a connection was open
/// has to arrive. Returns the number of connections.
fn listen(edge: SocketAddr, begun: &AtomicU64, is_over: &AtomicBool) -> usize {
    let mut connections = 0;
    while !is_over.load(Ordering::Acquire) {
        let mut device =
            Socket::connect(edge, "/ws?channels=news", "").expect("no device is refused");
        // Numbers from here on are published after the handshake.
        let mut next = begun.load(Ordering::Acquire);
        connections += 1;
        while !(is_over.load(Ordering::Acquire) && next == begun.load(Ordering::Acquire)) {
            match device.read() {
                Message::Text(number) => {
                    let number: u64 = number.parse().expect("a number");
                    assert!(number <= next, "{next} was lost, {number} came");
                    next = next.max(number + 1);
                }
                Message::Ping(data) => device.send_pong(&data),
                Message::Close(1001, _) => {
                    device.send_close(1001, "");
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    connections
}

/// Connects and disconnects all the time. Returns how often.
fn come_and_go(edge: SocketAddr, is_over: &AtomicBool) -> usize {
    let mut count = 0;
    while !is_over.load(Ordering::Acquire) {
        let device = Socket::connect(edge, "/ws", "").expect("no device is refused");
        drop(device);
        count += 1;
    }
    count
}

#[test]
fn a_rolling_restart_behind_haproxy_loses_no_publish_and_refuses_no_device() {
    let Some(program) = haproxy() else {
        return eprintln!("skipped: haproxy is not installed; .ci/tools installs it");
    };
    let addresses = [1, 2, 3].map(|id| (id, free_addresses::<3>()));
    let nodes = addresses.map(|(id, [api, edge, mesh])| Node { id, api, edge, mesh });
    let seeds = nodes.iter().map(|node| format!("\"{}\"", node.mesh));
    let seeds = seeds.collect::<Vec<_>>().join(", ");
    let mut servers: Vec<Server> =
        nodes.iter().map(|node| Server::start(&node.config(&seeds))).collect();
    let balancer = Balancer::start(&program, &nodes);
    nodes.iter().for_each(|node| balancer.wait_for(node, true));
    let (begun, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    // Ends the threads also when this thread panics.
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    let (connections, comings) = thread::scope(|scope| {
        let end = End(&is_over);
        let publisher = scope.spawn(|| publish(balancer.api, &begun, &is_over));
        let visitor = scope.spawn(|| come_and_go(balancer.edge, &is_over));
        let devices: Vec<_> =
            (0..DEVICES).map(|_| scope.spawn(|| listen(balancer.edge, &begun, &is_over))).collect();
        for (node, server) in nodes.iter().zip(&mut servers) {
            server.terminate();
            balancer.wait_for(node, false);
            assert_eq!(server.exit_code(), Some(0));
            *server = Server::start(&node.config(&seeds));
            balancer.wait_for(node, true);
        }
        drop(end);
        publisher.join().expect("each publish was answered");
        let comings = visitor.join().expect("no device was refused");
        let devices = devices.into_iter().map(|device| device.join().expect("nothing was lost"));
        (devices.sum::<usize>(), comings)
    });
    // Each node was left by those that were connected to it.
    assert!(connections > DEVICES, "{connections} connections");
    assert!(comings > 0 && begun.load(Ordering::Acquire) > 100, "{comings} comings");
}
