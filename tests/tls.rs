//! TLS on the edge and the API, over real sockets.

#![forbid(unsafe_code)]

mod support;

use std::io::Read;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fs, process};

use rcgen::{CertificateParams, CertifiedKey, KeyPair, date_time_ymd, generate_simple_self_signed};
use rustls::crypto::ring::default_provider;
use rustls::{ClientConfig, RootCertStore};
use support::{DEADLINE, Http, Message, Process, Server, Socket, config_file, routes, until};

/// A certificate for localhost in two files, and clients that trust it.
struct Certificate {
    folder: PathBuf,
    client: Arc<ClientConfig>,
}

impl Certificate {
    fn new() -> Self {
        static FOLDERS: AtomicUsize = AtomicUsize::new(0);
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("gridcast-tls-{}-{number}", process::id()));
        fs::create_dir_all(&folder).expect("the test's folder can be written");
        let client = write_certificate(&folder);
        Self { folder, client }
    }

    /// Puts another certificate into the files.
    fn replace(&mut self) {
        self.client = write_certificate(&self.folder);
    }

    /// Puts a certificate into the files that expires at the beginning of a year.
    fn write_until(&self, year: i32) {
        let mut params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let cert = params.self_signed(&key).expect("a certificate");
        fs::write(self.folder.join("cert.pem"), cert.pem()).expect("the folder is there");
        fs::write(self.folder.join("key.pem"), key.serialize_pem()).expect("the folder is there");
    }

    /// The keys of a section that names the files.
    fn keys(&self) -> String {
        let folder = self.folder.display();
        format!("cert = \"{folder}/cert.pem\"\nkey = \"{folder}/key.pem\"\n")
    }

    fn connect(&self, address: SocketAddr) -> Http {
        Http::connect(address).over_tls(&self.client)
    }

    fn socket(&self, address: SocketAddr, path: &str) -> Socket {
        Socket::upgrade(self.connect(address), path, "").expect("the upgrade is granted")
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn write_certificate(folder: &Path) -> Arc<ClientConfig> {
    let CertifiedKey { cert, signing_key }: CertifiedKey<KeyPair> =
        generate_simple_self_signed(["localhost".to_string()]).expect("a certificate");
    fs::write(folder.join("cert.pem"), cert.pem()).expect("the folder is there");
    fs::write(folder.join("key.pem"), signing_key.serialize_pem()).expect("the folder is there");
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).expect("it is a certificate");
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has both")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

/// Two shards; an edge over TLS and one without.
fn server(certificate: &Certificate) -> Server {
    server_with(certificate, "")
}

/// With further sections.
fn server_with(certificate: &Certificate, sections: &str) -> Server {
    let routes = routes();
    let edge = "[[edge]]\nbind = \"127.0.0.1:0\"\n";
    Server::start(&format!(
        "[node]\ncores = 2\n[api]\nbind = \"127.0.0.1:0\"\n{edge}[edge.tls]\n{}{routes}\
         {edge}{routes}{sections}",
        certificate.keys()
    ))
}

#[test]
fn clients_with_and_without_tls_talk_to_the_same_back_ends() {
    let certificate = Certificate::new();
    let server = server(&certificate);
    let mut consumer = server.consumer("messages");
    let mut secure = certificate.socket(server.edges[0], "/ws?channels=news");
    consumer.opened();
    let mut plain = Socket::connect(server.edges[1], "/ws?channels=news", "").expect("granted");
    consumer.opened();
    assert_eq!(server.publish("news", "hello"), (2, 0));
    for client in [&mut secure, &mut plain] {
        assert_eq!(client.text(), "hello");
        client.send_text("thanks");
        assert_eq!(consumer.data(), "thanks");
    }
}

#[test]
fn the_api_is_reached_over_tls() {
    let certificate = Certificate::new();
    let keys = certificate.keys();
    let server = Server::start(&format!(
        "[api]\nbind = \"127.0.0.1:0\"\n[api.tls]\n{keys}\
         [[edge]]\nbind = \"127.0.0.1:0\"\n{}",
        routes()
    ));
    let mut http = certificate.connect(server.api);
    http.send(server.raw("POST", "/v1/mesh/publish", "", r#"{"c":"a","d":"x"}"#).repeat(2));
    for _ in 0..2 {
        assert_eq!(http.response().body, r#"{"E":null,"r":{"s":0,"f":0}}"#);
    }
    let mut backend = certificate.socket(server.api, "/ws/v1");
    assert_eq!(backend.call("ping"), "pong");
    http.send(server.raw("GET", "/healthz", "Connection: close\r\n", ""));
    assert_eq!(http.response().status, 200);
    assert_eq!(http.rest(), b"");
}

#[test]
fn messages_of_1_mib_come_back_whole() {
    let certificate = Certificate::new();
    let server = server(&certificate);
    let mut client = certificate.socket(server.edge, "/echo");
    let message: Vec<u8> = (0..1u32 << 20).map(|n| (n % 251) as u8).collect();
    for _ in 0..4 {
        client.send_binary(&message);
    }
    for _ in 0..4 {
        assert!(client.read() == Message::Binary(message.clone()));
    }
}

#[test]
fn many_small_messages_come_back_in_order() {
    let certificate = Certificate::new();
    let server = server(&certificate);
    let mut client = certificate.socket(server.edge, "/echo");
    for first in (0..10_000).step_by(1000) {
        (first..first + 1000).for_each(|number| client.send_text(&number.to_string()));
    }
    for number in 0..10_000 {
        assert_eq!(client.text(), number.to_string());
    }
}

#[test]
fn a_crowd_that_comes_at_once_waits_its_turn_and_gets_in() {
    let certificate = Certificate::new();
    let mut server = server(&certificate);
    let mut crowd: Vec<Http> = (0..200).map(|_| certificate.connect(server.edge)).collect();
    crowd.iter_mut().for_each(Http::greet);
    for http in crowd {
        let mut socket = Socket::upgrade(http, "/echo", "").expect("granted");
        assert_eq!(socket.call("hello"), "hello");
    }
    server.terminate();
    server.logs("limits_hit.tls_handshakes=");
}

#[test]
fn a_connection_too_many_of_its_address_ends_before_its_handshake() {
    const HANDSHAKE: u8 = 22;
    let certificate = Certificate::new();
    let server = server_with(&certificate, "[limits]\nconnections_per_address = 1\n");
    let mut client = certificate.socket(server.edges[0], "/echo");
    assert_ne!(Http::connect(server.edges[0]).rest().first(), Some(&HANDSHAKE));
    assert_eq!(client.call("hello"), "hello");
}

#[test]
fn a_question_and_the_end_of_its_asker_come_in_one_and_are_answered() {
    let certificate = Certificate::new();
    let server = server(&certificate);
    let request = Socket::upgrade_request(server.edge, "/nowhere", "Connection: close\r\n");
    let mut crowd: Vec<Http> = (0..50).map(|_| certificate.connect(server.edge)).collect();
    for http in &mut crowd {
        http.send(&request);
        http.shut();
    }
    crowd.into_iter().for_each(|mut http| assert_eq!(http.response().status, 404));
}

#[test]
fn plain_bytes_on_a_tls_port_get_an_alert_and_an_orderly_end() {
    let certificate = Certificate::new();
    let server = server(&certificate);
    let mut http = Http::connect(server.edge);
    http.send("GET /echo HTTP/1.1\r\nHost: localhost\r\n\r\n");
    // Type 21, fatal: RFC 8446, section 6.
    let alert = http.rest();
    assert!(alert.len() == 7 && alert[0] == 21 && alert[5] == 2, "{alert:?}");
}

#[test]
fn a_client_that_ends_without_a_word_is_gone() {
    let certificate = Certificate::new();
    let server = server(&certificate);
    let mut consumer = server.consumer("messages");
    for is_reset in [true, false] {
        let client = certificate.socket(server.edge, "/ws?channels=news");
        consumer.opened();
        match is_reset {
            true => client.reset(),
            false => client.writer().shutdown(Shutdown::Write).expect("connected"),
        }
        assert_eq!(consumer.event()["d"]["code"], 1006);
        until(|| server.publish("news", "x") == (0, 0));
    }
}

#[test]
fn a_connection_that_ends_amid_its_handshake_leaves_nothing() {
    let certificate = Certificate::new();
    let mut server = server(&certificate);
    for _ in 0..20 {
        let mut tcp = TcpStream::connect(server.edge).expect("the server accepts");
        tcp.set_read_timeout(Some(DEADLINE)).expect("a deadline can be set");
        std::io::Write::write_all(&mut tcp, &[22, 3, 1, 0, 200, 1]).expect("the server reads");
        tcp.shutdown(Shutdown::Write).expect("connected");
        tcp.read_to_end(&mut Vec::new()).expect("an orderly end");
    }
    server.terminate();
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn a_slow_reader_is_closed_in_order_and_delays_no_other() {
    let certificate = Certificate::new();
    let server = server(&certificate);
    let http = Socket::small(server.edge).over_tls(&certificate.client);
    let mut slow = Socket::upgrade(http, "/ws?channels=a", "").expect("granted");
    let mut quick = certificate.socket(server.edge, "/ws?channels=a");
    let data = "x".repeat(60_000);
    let mut published = 0;
    until(|| {
        let subscribers = server.publish("a", &data).0;
        assert_eq!(quick.text(), data);
        published += 1;
        subscribers == 1
    });
    let mut read = 0;
    let end = loop {
        match slow.read() {
            Message::Text(text) => assert_eq!(text, data),
            end => break end,
        }
        read += 1;
    };
    assert!(matches!(end, Message::Close(1013, _)), "{end:?}");
    assert!(0 < read && read < published, "{read} of {published}");
    slow.ended_in_order();
}

#[test]
fn sigterm_closes_clients_with_1001_and_the_session_after_it() {
    let certificate = Certificate::new();
    let mut server = server(&certificate);
    let mut client = certificate.socket(server.edge, "/ws");
    server.terminate();
    assert_eq!(client.closed().0, 1001);
    client.ended_in_order();
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn a_reload_names_renewed_certificates_and_keeps_connections_and_what_is_right() {
    let mut certificate = Certificate::new();
    let mut server = server(&certificate);
    let mut before = certificate.socket(server.edge, "/echo");

    fs::write(certificate.folder.join("cert.pem"), "rubbish").expect("it can be written");
    server.hang_up();
    server.logs("edge.tls.cert: ");
    let mut meanwhile = certificate.socket(server.edge, "/echo");

    certificate.replace();
    let changed = "edge[\\\"127.0.0.1:0\\\"].tls.{}: the file has changed";
    let changes = ["cert", "key"].map(|key| format!("\"{}\"", changed.replace("{}", key)));
    let answer = server.post("/v1/admin/reload", "");
    let expected = format!("{{\"changed\":[{}],\"restart\":[]}}", changes.join(","));
    assert_eq!(answer, format!("{{\"E\":null,\"r\":{expected}}}"));
    server.logs("certificate read again");
    server.logs("reloaded: edge[\"127.0.0.1:0\"].tls.key: the file has changed");
    // Each shard looks for it once a turn.
    let is_shown = || {
        let mut http = certificate.connect(server.edge);
        http.try_send(Socket::upgrade_request(server.edge, "/echo", ""))
    };
    until(|| (0..8).all(|_| is_shown()));
    let mut after = certificate.socket(server.edge, "/echo");
    for socket in [&mut before, &mut meanwhile, &mut after] {
        assert_eq!(socket.call("hello"), "hello");
    }
}

#[test]
fn sighup_does_not_wait_for_a_certificate_that_is_a_fifo_and_names_one_that_has_expired() {
    let certificate = Certificate::new();
    let mut server = server(&certificate);
    let cert = certificate.folder.join("cert.pem");

    certificate.write_until(2020);
    server.hang_up();
    server.logs("cert.pem: the certificate of CN=rcgen self signed cert expired on Jan  1 ");

    fs::remove_file(&cert).expect("it is there");
    let made = process::Command::new("mkfifo").arg(&cert).status().expect("it is installed");
    assert!(made.success());
    server.hang_up();
    server.logs("cert.pem: cannot be read: not a regular file");
    server.terminate();
    assert_eq!(server.exit_code(), Some(0));
}

/// The lines of `/metrics` that tell when certificates expire.
fn expiries(server: &Server) -> Vec<String> {
    let text = server.get("/metrics").body;
    let lines = text.lines().filter_map(|line| {
        line.strip_prefix("gridcast_certificate_expiry_timestamp_seconds{listener=")
    });
    lines.map(str::to_owned).collect()
}

#[test]
fn the_expiry_of_a_certificate_in_use_is_in_the_metrics_and_follows_reloads() {
    let certificate = Certificate::new();
    certificate.write_until(2031);
    let mut server = server(&certificate);
    let cert = certificate.folder.join("cert.pem");
    let expiry =
        |unix_s: u64| vec![format!("\"127.0.0.1:0\",file=\"{}\"}} {unix_s}", cert.display())];
    assert_eq!(expiries(&server), expiry(1_924_992_000));

    // The file alone is not in use.
    certificate.write_until(2030);
    assert_eq!(expiries(&server), expiry(1_924_992_000));
    server.hang_up();
    server.logs("reloaded: ");
    until(|| expiries(&server) == expiry(1_893_456_000));

    // What is refused is not in use either.
    fs::write(&cert, "rubbish").expect("it can be written");
    server.hang_up();
    server.logs("not reloaded");
    assert_eq!(expiries(&server), expiry(1_893_456_000));
}

#[test]
fn files_that_are_not_right_are_named_with_their_line() {
    let certificate = Certificate::new();
    let (other, empty) = (Certificate::new(), certificate.folder.join("empty.pem"));
    fs::write(&empty, "").expect("it can be written");
    let path = |certificate: &Certificate, name| certificate.folder.join(name);
    let (cert, key) = (path(&certificate, "cert.pem"), path(&certificate, "key.pem"));
    for (cert, key, place, why) in [
        (&empty, &key, "FILE:2: api.tls.cert: ", "no PEM certificate in it"),
        (&cert, &cert, "FILE:3: api.tls.key: ", "no PEM private key in it"),
        (&path(&other, "none.pem"), &key, "FILE:2: api.tls.cert: ", "cannot be read: No such file"),
        (&cert, &path(&other, "key.pem"), "FILE:3: api.tls.key: ", "not the key of "),
    ] {
        let (cert, key) = (cert.display(), key.display());
        let file = config_file(&format!("[api.tls]\ncert = \"{cert}\"\nkey = \"{key}\"\n"));
        let name = file.to_str().expect("UTF-8");
        for command in ["serve", "check"] {
            let (code, lines) = Process::start(&[command, "--config", name]).finish();
            let [line] = &lines[..] else { panic!("not one line: {lines:#?}") };
            let line = line.replace(name, "FILE");
            assert_eq!(code, Some(2), "{line}");
            assert!(line.contains(place) && line.contains(why), "{line}");
        }
        fs::remove_file(&file).expect("it was there to be read");
    }
}
