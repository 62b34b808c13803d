//! Nodes behind proxies that tell the addresses of their clients, over real sockets: the PROXY protocol,
//! and forwarded headers.

mod support;

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::{fs, process};

use rcgen::generate_simple_self_signed;
use rustls::crypto::ring::default_provider;
use rustls::{ClientConfig, RootCertStore};
use socket2::{Domain, Type};
use support::{Http, Server, Socket, basic, config_of, users};

/// A node that believes 127.0.0.1, in the way that `method` names.
fn config(method: &str) -> String {
    let proxy = format!("proxy = {{ from = [\"127.0.0.1\"], {method} = true }}\n");
    let route = "[[edge.route]]\npath = \"/ws\"\ntopic = \"messages\"\nevents = [\"open\"]\n";
    config_of("127.0.0.1:0", "127.0.0.1:0", &(proxy + route))
}

/// A version 2 header for a client with this address.
fn version_2(client: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend_from_slice(&client);
    header.extend_from_slice(&[10, 0, 0, 9, 0x12, 0x34, 0, 80]);
    header
}

/// A version 2 header by which a proxy speaks for itself.
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

fn line(client: &str) -> Vec<u8> {
    format!("PROXY TCP4 {client} 10.0.0.9 4660 80\r\n").into_bytes()
}

/// Opens a connection that begins with these bytes.
fn beginning(address: SocketAddr, bytes: &[u8]) -> Http {
    let mut http = Http::connect(address);
    http.send(bytes);
    http
}

/// Opens a connection from 127.0.0.2, which is not the proxy's address.
fn stranger(address: SocketAddr) -> Http {
    let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let from: SocketAddr = ([127, 0, 0, 2], 0).into();
    socket.bind(&from.into()).expect("all of 127.0.0.0/8 is loopback");
    socket.connect(&address.into()).expect("the server accepts");
    Http::over(TcpStream::from(socket))
}

fn proxy_refused(server: &Server) -> u64 {
    let page = server.get("/metrics").body;
    let name = "gridcast_proxy_refused_total";
    let values = page.lines().filter(|line| line.starts_with(name));
    values.map(|line| line.rsplit(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap()).sum()
}

/// The `remote` of the next open event.
fn remote(consumer: &mut Socket) -> String {
    let event = consumer.event();
    event["d"]["remote"].as_str().expect("an open event").to_owned()
}

#[test]
fn a_device_has_the_address_that_the_header_tells_wherever_the_header_is_split() {
    let server = Server::start(&config("protocol"));
    let mut consumer = server.consumer("messages");
    let request = Socket::upgrade_request(server.edge, "/ws", "");
    for header in [line("192.0.2.7"), version_2([192, 0, 2, 7])] {
        let whole = [&header[..], request.as_bytes()].concat();
        // Each piece is a segment of its own, though the kernel may join some.
        for split in [1, 5, 12, 16, header.len() - 1, header.len(), header.len() + 9] {
            let mut http = beginning(server.edge, &whole[..split]);
            http.send(&whole[split..]);
            assert_eq!(http.response().status, 101);
            assert_eq!(remote(&mut consumer), "192.0.2.7:4660", "split at {split}");
        }
        let mut http = Http::connect(server.edge);
        http.send_byte_by_byte(&whole);
        assert_eq!(http.response().status, 101);
        assert_eq!(remote(&mut consumer), "192.0.2.7:4660");
    }
}

#[test]
fn a_proxy_that_speaks_for_itself_has_its_own_address() {
    let server = Server::start(&config("protocol"));
    let mut consumer = server.consumer("messages");
    for header in [LOCAL, b"PROXY UNKNOWN\r\n"] {
        let http = beginning(server.edge, header);
        let socket = Socket::upgrade(http, "/ws", "").expect("the upgrade is granted");
        assert_eq!(remote(&mut consumer), socket.address().to_string());
    }
}

#[test]
fn a_missing_or_broken_header_closes_the_connection_and_is_counted() {
    let server = Server::start(&config("protocol"));
    let request = Socket::upgrade_request(server.edge, "/ws", "");
    let mut longest = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff".to_vec();
    longest.resize(20_000, 0);
    for (number, bytes) in
        [request.as_bytes(), b"PROXY TCP4 here there 1 2\r\n", &longest].into_iter().enumerate()
    {
        let rest = beginning(server.edge, bytes).rest();
        assert_eq!(rest, b"", "nothing is answered");
        assert_eq!(proxy_refused(&server), number as u64 + 1);
    }
    let mut cut = beginning(server.edge, &line("192.0.2.7")[..20]);
    cut.shut();
    assert_eq!(cut.rest(), b"");
    assert_eq!(proxy_refused(&server), 4);
}

#[test]
fn a_header_from_another_address_is_no_header() {
    let server = Server::start(&config("protocol"));
    let mut consumer = server.consumer("messages");
    let mut liar = stranger(server.edge);
    let request = Socket::upgrade_request(server.edge, "/ws", "");
    liar.send([&line("192.0.2.7"), request.as_bytes()].concat());
    assert_eq!(liar.response().status, 400);
    let socket = Socket::upgrade(stranger(server.edge), "/ws", "").expect("it needs no header");
    assert_eq!(remote(&mut consumer), socket.address().to_string());
    assert_eq!(proxy_refused(&server), 0);
}

/// A certificate for localhost in two files, and a client that trusts it.
struct Certificate {
    folder: PathBuf,
    client: Arc<ClientConfig>,
}

impl Certificate {
    fn new() -> Self {
        let name = format!("gridcast-proxied-{}", process::id());
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&folder).expect("the test's folder can be written");
        let made = generate_simple_self_signed(["localhost".to_string()]).expect("a certificate");
        fs::write(folder.join("cert.pem"), made.cert.pem()).expect("the folder is there");
        fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).expect("it is there");
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).expect("it is a certificate");
        let client = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has both")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { folder, client: Arc::new(client) }
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn tls_begins_after_the_header_and_addresses_are_counted_by_it() {
    let certificate = Certificate::new();
    let folder = certificate.folder.display();
    let tls = format!(
        "[edge.tls]\ncert = \"{folder}/cert.pem\"\nkey = \"{folder}/key.pem\"\n[[edge.route]]"
    );
    let config = config("protocol").replace("[[edge.route]]", &tls);
    let server = Server::start(&format!("{config}[limits]\nconnections_per_address = 2\n"));
    let mut consumer = server.consumer("messages");
    let connect = |client: &str| {
        let mut http = beginning(server.edge, &line(client)).over_tls(&certificate.client);
        let request = Socket::upgrade_request(server.edge, "/ws", "");
        http.try_send(request).then(|| Socket::upgraded(http))
    };
    let mut devices = Vec::new();
    for client in ["192.0.2.7", "192.0.2.7", "192.0.2.8", "192.0.2.8"] {
        devices.push(connect(client).expect("two of each address have room"));
        assert_eq!(remote(&mut consumer), format!("{client}:4660"));
    }
    for client in ["192.0.2.7", "192.0.2.8"] {
        assert!(connect(client).is_none(), "a third is closed before its handshake");
    }
    assert!(connect("192.0.2.9").is_some());
}

#[test]
fn each_request_of_a_shared_connection_has_its_own_address() {
    let proxy = "proxy = { from = [\"127.0.0.1\"], forwarded = true }\n";
    let user = users(&[("app", "password = \"open sesame\"\nfrom = [\"192.0.2.7\"]")]);
    let config = config("forwarded");
    let config = config.replacen("[[edge]]", &format!("{proxy}{user}[[edge]]"), 1);
    let credentials = basic("app", "open sesame");
    let server = Server::start(&config);
    let mut http = Http::connect(server.api);
    let mut status = |forwarded: &str| {
        let headers = format!("{credentials}{forwarded}");
        http.send(server.raw("GET", "/v1/nodes", &headers, ""));
        http.response().status
    };
    for _ in 0..2 {
        assert_eq!(status("X-Forwarded-For: 192.0.2.7\r\n"), 200);
        assert_eq!(status("X-Forwarded-For: 192.0.2.8\r\n"), 403);
        assert_eq!(status("Forwarded: for=192.0.2.7\r\n"), 200);
        // The client wrote the first entry, the proxy the last.
        assert_eq!(status("X-Forwarded-For: 192.0.2.7, 192.0.2.8\r\n"), 403);
        assert_eq!(status(""), 403, "the proxy itself is not the user");
        assert_eq!(status("X-Forwarded-For: 192.0.2.7, 127.0.0.1\r\n"), 200);
    }
    let mut liar = stranger(server.api);
    let headers = format!("{credentials}X-Forwarded-For: 192.0.2.7\r\n");
    liar.send(server.raw("GET", "/v1/nodes", &headers, ""));
    assert_eq!(liar.response().status, 403);
}

#[test]
fn devices_behind_one_proxy_are_counted_by_their_own_addresses() {
    let limits = "[limits]\nconnections_per_address = 2\n";
    let server = Server::start(&(config("forwarded") + limits));
    let mut consumer = server.consumer("messages");
    let connect = |client: &str| {
        Socket::connect(server.edge, "/ws", &format!("X-Forwarded-For: {client}\r\n"))
    };
    let mut devices = Vec::new();
    for client in ["192.0.2.7", "192.0.2.7", "192.0.2.8", "192.0.2.8"] {
        devices.push(connect(client).expect("two of each address have room"));
        assert_eq!(remote(&mut consumer), client);
    }
    for client in ["192.0.2.7", "192.0.2.8"] {
        let refused = connect(client).err().expect("a third has none");
        assert_eq!(refused.status, 429);
        assert!(refused.header("retry-after").is_some());
    }
    // A place is free again when a device has gone, or was refused for another reason.
    drop(devices);
    support::until(|| connect("192.0.2.7").is_ok());
    let status = || {
        let header = "X-Forwarded-For: 192.0.2.9\r\n";
        Socket::connect(server.edge, "/nowhere", header).err().expect("no such route").status
    };
    for _ in 0..5 {
        support::until(|| status() == 404);
    }
}

#[test]
fn the_proxies_of_a_listener_can_be_reloaded() {
    let forwarded = config("forwarded");
    let mut server = Server::start(&forwarded);
    let mut consumer = server.consumer("messages");
    let connect = |server: &Server| {
        let header = "X-Forwarded-For: 192.0.2.7\r\n";
        Socket::connect(server.edge, "/ws", header).expect("the upgrade is granted")
    };
    let _device = connect(&server);
    assert_eq!(remote(&mut consumer), "192.0.2.7");
    server.reload(&forwarded.replace("[\"127.0.0.1\"]", "[\"10.0.0.1\"]"));
    server.logs("proxy.from");
    let device = connect(&server);
    assert_eq!(remote(&mut consumer), device.address().to_string());
}
