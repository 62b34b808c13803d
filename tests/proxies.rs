//! The proxy configurations of `docs/operating/proxies`, each with its proxy and a node behind.
//!
//! A proxy that is not installed is skipped with a word: `.ci/tools` installs all of them.

mod support;

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::json;
use socket2::{Domain, Type};
use support::{DEADLINE, Http, Message, Process, Server, Socket, http};

/// A node whose pings come soon enough for a test to wait for some.
const CONFIG: &str = r#"
[node]
cores = 1
[api]
bind = "127.0.0.1:0"
[[edge]]
bind = "127.0.0.1:0"
proxy = { from = ["127.0.0.1"], forwarded = true }
[[edge.route]]
path = "/ws"
topic = "messages"
events = ["open", "message", "close"]
subscribe = ["*"]
[limits]
ping_ms = 1000
idle_ms = 2500
"#;

/// A proxy in front of a node; both end with the value.
struct Proxy {
    process: Process,
    folder: PathBuf,
    /// Where devices connect.
    edge: SocketAddr,
    /// Where back ends connect, if the proxy stands in front of the API.
    api: Option<SocketAddr>,
    server: Server,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Proxy {
    /// Starts the proxy with its file of the documentation, whose ports and paths are replaced by
    /// those of the test.
    fn start(name: &str, file: &str, arguments: &[&str]) -> Option<Self> {
        Self::start_changed(name, file, arguments, CONFIG, str::to_owned)
    }

    /// Starts the proxy with a changed file, in front of a node with this configuration.
    fn start_changed(
        name: &str,
        file: &str,
        arguments: &[&str],
        config: &str,
        change: impl Fn(&str) -> String,
    ) -> Option<Self> {
        let Some(program) = find(name) else {
            eprintln!("skipped: {name} is not installed; .ci/tools installs it");
            return None;
        };
        let server = Server::start(config);
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!(
            "proxy-{name}-{}-{}",
            server.edge.port(),
            std::process::id()
        ));
        fs::create_dir_all(&folder).expect("the folder can be made");
        let (edge, api) = (free_address(), free_address());
        let documented = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operating/proxies");
        let text = fs::read_to_string(documented.join(file)).expect("the file is there");
        let text = change(&replaced(&text, &server, (edge, api), &folder));
        let api = text.contains(&server.api.to_string()).then_some(api);
        let config = folder.join(file);
        fs::write(&config, text).expect("it can be written");
        let config = config.to_str().expect("UTF-8");
        let mut command = Command::new(program);
        command.env("HOME", &folder);
        for &argument in arguments {
            command.arg(if argument == "FILE" { config } else { argument });
        }
        let process = Process::spawn(&mut command);
        let mut proxy = Self { process, folder, edge, api, server };
        proxy.wait_until_it_listens();
        Some(proxy)
    }

    fn wait_until_it_listens(&mut self) {
        let start = Instant::now();
        while [Some(self.edge), self.api]
            .iter()
            .flatten()
            .any(|address| TcpStream::connect(address).is_err())
        {
            if self.process.has_ended() {
                let (code, lines) = self.process.finish();
                panic!("the proxy ended with {code:?}: {lines:#?}");
            }
            assert!(start.elapsed() < DEADLINE, "the proxy does not listen");
            std::thread::yield_now();
        }
    }
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// An address that nobody listens on at this moment. The system hands out others first.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("it is bound")
}

fn replaced(
    text: &str,
    server: &Server,
    (edge, api): (SocketAddr, SocketAddr),
    folder: &Path,
) -> String {
    let folder = folder.to_str().expect("UTF-8");
    let pairs = [
        ("127.0.0.1:6790", server.edge.to_string()),
        ("127.0.0.1:6789", server.api.to_string()),
        ("8080", edge.port().to_string()),
        ("8081", api.port().to_string()),
        ("/run/nginx.pid", format!("{folder}/nginx.pid")),
        ("/var/log/nginx/error.log", "stderr".to_owned()),
        // Of a test one worker and few descriptors are enough.
        ("worker_processes auto", "worker_processes 1".to_owned()),
        ("worker_connections 65536", "worker_connections 256".to_owned()),
        ("maxconn 65536", "maxconn 256".to_owned()),
    ];
    pairs.into_iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, &to))
}

/// Checks what the documentation promises of a device behind the proxy.
fn devices_get_through(proxy: &Proxy) {
    let mut device = Socket::connect(proxy.edge, "/ws?channels=news", "").expect("the upgrade");
    // Nothing is said but pings, which have to come through both ways.
    for _ in 0..2 {
        let Message::Ping(data) = device.read() else { panic!("not a ping") };
        device.send_pong(&data);
    }
    let mut consumer = proxy.server.consumer("messages");
    let opened = consumer.event();
    let client = opened["c"].as_str().expect("an id").to_owned();
    assert_eq!(opened["d"]["path"], "/ws");
    assert_eq!(opened["d"]["query"], json!({ "channels": "news" }));
    device.send_text("hello from a device");
    assert_eq!(consumer.data(), "hello from a device");
    let large = "x".repeat(60_000);
    device.send_text(&large);
    assert_eq!(consumer.data(), large);
    assert_eq!(proxy.server.publish("news", "hello"), (1, 0));
    assert_eq!(device.text(), "hello");
    device.send_close(4002, "bye");
    let closed = consumer.event();
    assert_eq!((&closed["c"], &closed["d"]["code"]), (&json!(client), &json!(4002)));
    let refused = Socket::connect(proxy.edge, "/nowhere", "").err().expect("no such route");
    assert_eq!(refused.status, 404);
}

/// Connects to the proxy from 127.0.0.2, and sends these header lines.
fn device_from_elsewhere(proxy: &Proxy, headers: &str) -> Socket {
    let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let from: SocketAddr = ([127, 0, 0, 2], 0).into();
    socket.bind(&from.into()).expect("all of 127.0.0.0/8 is loopback");
    socket.connect(&proxy.edge.into()).expect("the proxy listens");
    Socket::upgrade(Http::over(socket.into()), "/ws", headers).expect("the upgrade")
}

/// Whatever a device says about its address, events have the one that it connected to the proxy from.
fn devices_have_their_addresses(proxy: &Proxy, has_port: bool) {
    let mut consumer = proxy.server.consumer("messages");
    for headers in ["", "X-Forwarded-For: 192.0.2.1\r\n", "X-Forwarded-For: 127.0.0.1\r\n"] {
        let device = device_from_elsewhere(proxy, headers);
        let expected = match has_port {
            true => device.address().to_string(),
            false => device.address().ip().to_string(),
        };
        let opened = loop {
            let event = consumer.event();
            if event["d"]["event"] == "open" {
                break event;
            }
        };
        assert_eq!(opened["d"]["remote"], expected, "{headers:?}");
    }
}

/// Checks what the documentation promises of back ends.
fn back_ends_get_through(proxy: &Proxy) {
    let api = proxy.api.expect("the proxy stands in front of the API");
    let body = r#"{"c":"nobody","d":"hello"}"#;
    let length = body.len();
    let host = api;
    let request = format!(
        "POST /v1/mesh/publish HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    let answer = http(api, request);
    assert_eq!((answer.status, &answer.body[..]), (200, r#"{"E":null,"r":{"s":0,"f":0}}"#));
    let mut back_end = Socket::connect(api, "/ws/v1", "").expect("the upgrade");
    let counts = back_end.done("mesh.publish", &json!({ "c": "nobody", "d": "hello" }));
    assert_eq!(counts, json!({ "s": 0, "f": 0 }));
}

#[test]
fn nginx_lets_devices_and_back_ends_through() {
    let Some(proxy) = Proxy::start("nginx", "nginx.conf", &["-g", "daemon off;", "-c", "FILE"])
    else {
        return;
    };
    devices_get_through(&proxy);
    devices_have_their_addresses(&proxy, false);
    back_ends_get_through(&proxy);
}

#[test]
fn haproxy_lets_devices_and_back_ends_through() {
    let Some(proxy) = Proxy::start("haproxy", "haproxy.cfg", &["-db", "-f", "FILE"]) else {
        return;
    };
    devices_get_through(&proxy);
    devices_have_their_addresses(&proxy, false);
    back_ends_get_through(&proxy);
}

#[test]
fn caddy_lets_devices_and_back_ends_through() {
    let arguments = ["run", "--adapter", "caddyfile", "--config", "FILE"];
    let Some(proxy) = Proxy::start("caddy", "Caddyfile", &arguments) else {
        return;
    };
    devices_get_through(&proxy);
    devices_have_their_addresses(&proxy, false);
    back_ends_get_through(&proxy);
}

/// [`CONFIG`] with the PROXY protocol.
fn with_protocol() -> String {
    CONFIG.replace("forwarded = true", "protocol = true")
}

#[test]
fn haproxy_tells_addresses_by_the_proxy_protocol_in_both_versions() {
    for version in ["send-proxy-v2", "send-proxy"] {
        let change = |text: &str| text.replace("send-proxy-v2", version);
        let (arguments, config) = (["-db", "-f", "FILE"], with_protocol());
        let file = "haproxy-tcp.cfg";
        let Some(proxy) = Proxy::start_changed("haproxy", file, &arguments, &config, change) else {
            return;
        };
        // The health check of the proxy is one of its own connections.
        devices_get_through(&proxy);
        devices_have_their_addresses(&proxy, true);
    }
}

#[test]
fn nginx_tells_addresses_by_the_proxy_protocol() {
    let module = "ngx_stream_module.so";
    let folders = ["/usr/share/nginx/modules", "/usr/lib/nginx/modules"];
    let Some(folder) = folders.into_iter().find(|folder| Path::new(folder).join(module).exists())
    else {
        return eprintln!("skipped: nginx has no {module}; .ci/tools installs it");
    };
    // By its own path: the module's folder depends on how nginx was built.
    let change = |text: &str| text.replace("load_module modules", &format!("load_module {folder}"));
    let (arguments, config) = (["-g", "daemon off;", "-c", "FILE"], with_protocol());
    let file = "nginx-tcp.conf";
    let Some(proxy) = Proxy::start_changed("nginx", file, &arguments, &config, change) else {
        return;
    };
    devices_get_through(&proxy);
    devices_have_their_addresses(&proxy, true);
}

#[test]
fn haproxy_tells_addresses_by_the_proxy_protocol_before_http() {
    let change = |text: &str| {
        text.replacen("server node1", "default-server send-proxy-v2\n    server node1", 1)
    };
    let (arguments, config) = (["-db", "-f", "FILE"], with_protocol());
    let Some(proxy) = Proxy::start_changed("haproxy", "haproxy.cfg", &arguments, &config, change)
    else {
        return;
    };
    devices_have_their_addresses(&proxy, true);
}
