//! Issuers of keys and admission hooks over real sockets: services that work, are down, slow, or answer
//! garbage. The test answers every request itself.

#![forbid(unsafe_code)]

mod support;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use sha2::Sha256;
use support::{Message, Server, Service, Socket, refusing_port};

/// A key of an issuer, and its name.
struct SigningKey {
    id: &'static str,
    pair: KeyPair,
}

impl SigningKey {
    fn new(id: &'static str) -> Self {
        Self { id, pair: KeyPair::generate_for(&PKCS_ED25519).expect("a key") }
    }

    /// The public key as the issuer publishes it.
    fn published(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.pair.der_bytes());
        json!({"kty": "OKP", "crv": "Ed25519", "kid": self.id, "use": "sig", "x": x})
    }

    fn token(&self) -> String {
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(self.id.into());
        let key = EncodingKey::from_ed_der(self.pair.serialized_der());
        encode(&header, &json!({"exp": 4_102_444_800_u64, "sub": "7"}), &key).expect("claims")
    }
}

fn key_set(keys: &[&SigningKey]) -> String {
    json!({"keys": keys.iter().map(|key| key.published()).collect::<Vec<_>>()}).to_string()
}

/// A server whose route `/in` takes tokens with these settings, and whose route `/plain` takes anybody.
fn server_with_token(settings: &str) -> Server {
    server_with(&format!("token = {{ {settings} }}"))
}

fn server_with(line: &str) -> Server {
    Server::start(&config_with(line))
}

fn config_with(line: &str) -> String {
    format!(
        "[node]\ncores = 2\n[api]\nbind = \"127.0.0.1:0\"\n[[edge]]\nbind = \"127.0.0.1:0\"\n\
         [[edge.route]]\npath = \"/in\"\ntopic = \"in\"\nevents = [\"open\"]\nsubscribe = [\"*\"]\n{line}\n\
         [[edge.route]]\npath = \"/plain\"\nsubscribe = [\"*\"]\n"
    )
}

/// Tries to connect with a token; returns the status, and the body of a refusal.
fn connect(server: &Server, token: &str) -> (u16, String) {
    match Socket::connect(server.edge, "/in", &format!("Authorization: Bearer {token}\r\n")) {
        Ok(_) => (101, String::new()),
        Err(response) => (response.status, response.body),
    }
}

fn metric(server: &Server, name: &str) -> u64 {
    let text = server.get("/metrics").body;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{name} is in {text}")).parse().expect("a number")
}

#[test]
fn keys_of_an_issuer_are_replaced_without_a_restart() {
    let issuer = Service::start();
    let (old, new, unknown) =
        (SigningKey::new("old"), SigningKey::new("new"), SigningKey::new("x"));
    let server = server_with_token(&format!("jwks = \"http://{}/keys?a=1\"", issuer.address));
    let asked = issuer.next();
    assert!(asked.head.starts_with("GET /keys?a=1 HTTP/1.1\r\n"), "{}", asked.head);
    // A device that comes before the keys waits for them.
    let edge = server.edge;
    let token = old.token();
    let early = std::thread::spawn(move || {
        Socket::connect(edge, "/in", &format!("Authorization: Bearer {token}\r\n")).is_ok()
    });
    server.publish("any", "the shards work meanwhile");
    asked.answer(200, &key_set(&[&old]));
    assert!(early.join().expect("it connects"));
    assert_eq!(connect(&server, &old.token()).0, 101);
    // The kid of the new key is unknown: the keys are fetched again.
    let token = new.token();
    let waiting = std::thread::spawn(move || {
        Socket::connect(edge, "/in", &format!("Authorization: Bearer {token}\r\n")).is_ok()
    });
    issuer.next().answer(200, &key_set(&[&new]));
    assert!(waiting.join().expect("it connects"));
    let (status, why) = connect(&server, &old.token());
    assert!(status == 401 && why.contains("unknown key"), "{status} {why}");
    assert_eq!(connect(&server, &unknown.token()).0, 401);
    assert_eq!(connect(&server, &new.token()).0, 101);
    assert_eq!(metric(&server, "gridcast_key_fetches_total"), 2, "one a minute for unknown keys");
}

#[test]
fn an_issuer_that_fails_is_asked_again_and_devices_are_told_to_come_back() {
    let key = SigningKey::new("a");
    let keys = key_set(&[&key]);
    let huge = format!("{}{}", keys, " ".repeat(300_000));
    for (status, headers, body, logged) in [
        (500, "", &keys[..], "status 500"),
        (200, "", "<html>", "not JSON"),
        (200, "", r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#, "no usable key"),
        (200, "", &huge, "longer than 262144 bytes"),
        (302, "Location: /other\r\n", "", "status 302"),
    ] {
        let issuer = Service::start();
        let mut server = server_with_token(&format!("jwks = \"http://{}/keys\"", issuer.address));
        issuer.next().answer_with(status, headers, body);
        server.logs(logged);
        assert_eq!(connect(&server, &key.token()).0, 503, "{logged}");
        // A redirect is not followed: the next request is a second try.
        let again = issuer.next();
        assert!(again.head.starts_with("GET /keys HTTP"), "{}", again.head);
        again.answer(200, &keys);
        server.logs("works again");
        assert_eq!(connect(&server, &key.token()).0, 101, "{logged}");
    }
}

#[test]
fn an_issuer_that_is_down_keeps_nobody_waiting() {
    let (_socket, address) = refusing_port();
    let mut server = server_with_token(&format!("jwks = \"http://{address}/keys\""));
    server.logs("keys: http://");
    assert_eq!(connect(&server, &SigningKey::new("a").token()).0, 503);
    assert_eq!(connect(&server, "a.b.c").0, 401);
    server.device("/plain").synchronise();
}

/// A service over TLS, and the file with its authority.
fn service_over_tls(name: &str) -> (Service, PathBuf) {
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let certified = generate_simple_self_signed(names).expect("a certificate");
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let file = folder.join(format!("gridcast-{name}-{}.pem", std::process::id()));
    fs::write(&file, certified.cert.pem()).expect("the test's folder can be written");
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has both")
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .expect("the key is the certificate's");
    (Service::with_tls(config), file)
}

#[test]
fn an_issuer_is_known_by_its_authority() {
    let key = SigningKey::new("a");
    let (issuer, ca) = service_over_tls("issuer");
    let (_, other_ca) = service_over_tls("other");
    let url = format!("jwks = \"https://localhost:{}/keys\"", issuer.address.port());
    let server = server_with_token(&format!("{url}, ca = \"{}\"", ca.display()));
    issuer.next().answer(200, &key_set(&[&key]));
    assert_eq!(connect(&server, &key.token()).0, 101);
    for untrusted in [format!("{url}, ca = \"{}\"", other_ca.display()), url] {
        let mut server = server_with_token(&untrusted);
        server.logs("certificate");
        assert_eq!(connect(&server, &key.token()).0, 503);
    }
    for file in [ca, other_ca] {
        fs::remove_file(file).expect("it was written");
    }
}

#[test]
fn a_reload_with_a_wrong_authority_keeps_the_running_configuration() {
    let key = SigningKey::new("a");
    let (issuer, ca) = service_over_tls("reloaded");
    let url = format!("https://localhost:{}/keys", issuer.address.port());
    let config = config_with(&format!("token = {{ jwks = \"{url}\", ca = \"{}\" }}", ca.display()));
    let mut server = Server::start(&config);
    issuer.next().answer(200, &key_set(&[&key]));
    assert_eq!(connect(&server, &key.token()).0, 101);
    let authority = fs::read(&ca).expect("it was written");
    for (wrong, why) in
        [("", "no PEM certificate in it"), ("-----BEGIN CERTIFICATE-----", "cut off")]
    {
        fs::write(&ca, wrong).expect("the test's folder can be written");
        server.reload(&format!("{config}[limits]\nanswer_ms = 700\n"));
        server.logs(&format!("edge.route.token.ca: {}: {why}", ca.display()));
        assert_eq!(connect(&server, &key.token()).0, 101, "{why}");
    }
    fs::remove_file(&ca).expect("it was written");
    server.hang_up();
    server.logs("cannot be read: No such file");
    assert_eq!(connect(&server, &key.token()).0, 101);
    // Nothing of it was applied, not even the limit.
    fs::write(&ca, authority).expect("the test's folder can be written");
    server.hang_up();
    server.logs("reloaded: limits.answer_ms: 1500 -> 700");
    assert_eq!(connect(&server, &key.token()).0, 101);
    assert_eq!(metric(&server, "gridcast_key_fetches_total"), 1, "the keys were kept");
    fs::remove_file(&ca).expect("it was written");
}

#[test]
fn a_reload_to_an_issuer_that_is_down_keeps_the_keys_of_the_others() {
    let key = SigningKey::new("a");
    let issuer = Service::start();
    let token = |address| format!("token = {{ jwks = \"http://{address}/keys\" }}");
    let config = config_with(&token(issuer.address));
    let mut server = Server::start(&config);
    issuer.next().answer(200, &key_set(&[&key]));
    assert_eq!(connect(&server, &key.token()).0, 101);

    let (_socket, address) = refusing_port();
    let route = format!("[[edge.route]]\npath = \"/new\"\n{}\n", token(address));
    server.reload(&format!("{config}{route}"));
    server.logs(&format!("keys: http://{address}"));
    let header = format!("Authorization: Bearer {}\r\n", key.token());
    // Each shard applies the settings in its next turn.
    support::until(|| {
        let refused = Socket::connect(server.edge, "/new", &header).err();
        let refused = refused.expect("nobody is let in without keys");
        assert!(matches!(refused.status, 404 | 503), "{refused:?}");
        refused.body.contains("the keys that verify tokens are not available yet")
    });
    // The issuer that stays is not asked again: its keys are still there.
    assert_eq!(connect(&server, &key.token()).0, 101);
}

fn server_with_hook(service: &Service, more: &str) -> Server {
    server_with(&format!("admit = {{ url = \"http://{}/admit\"{more} }}", service.address))
}

/// Begins handshakes on connections of their own.
fn handshakes(server: &Server, number: usize) -> Vec<support::Http> {
    let request = Socket::upgrade_request(server.edge, "/in?a=1", "Cookie: s=1\r\n");
    let begin = |_| {
        let mut http = support::Http::connect(server.edge);
        http.send(&request);
        http
    };
    (0..number).map(begin).collect()
}

#[test]
fn a_hook_lets_a_device_in_with_a_user_channels_and_context() {
    let hook = Service::start();
    let server = server_with_hook(&hook, ", secret = \"open sesame\"");
    let mut consumer = server.consumer("in");
    let mut http = handshakes(&server, 1).remove(0);
    let asked = hook.next();
    assert!(asked.head.starts_with("POST /admit HTTP/1.1\r\n"), "{}", asked.head);
    assert_eq!(asked.header("content-type"), Some("application/json"));
    let question: Value = serde_json::from_str(&asked.body).expect("JSON");
    assert_eq!(question["path"], "/in");
    assert_eq!(question["query"], json!({"a": "1"}));
    assert_eq!(question["headers"]["cookie"], "s=1");
    assert!(question["remote"].as_str().is_some_and(|remote| remote.starts_with("127.0.0.1:")));
    let signature = asked.header("gridcast-signature").expect("it is signed");
    let (time, signature) = signature.split_once(",v1=").expect("two parts");
    let time = time.strip_prefix("t=").expect("a time");
    let mut mac = Hmac::<Sha256>::new_from_slice(b"open sesame").expect("any length");
    mac.update(format!("{time}.{}", asked.body).as_bytes());
    let expected: String =
        mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(signature, expected);
    asked.answer(200, r#"{"user_id":10000,"context":{"plan":"free"},"channels":["vip"]}"#);
    assert_eq!(http.response().status, 101);
    let mut device = Socket::upgraded(http);
    let opened = consumer.read();
    let Message::Text(opened) = opened else { panic!("{opened:?}") };
    assert!(opened.contains(r#""context":{"plan":"free","user_id":10000}"#), "{opened}");
    assert_eq!(server.publish("vip", "hello"), (1, 0));
    assert_eq!(device.read(), Message::Text("hello".into()));
    // The next question comes on the same connection of the pool, or on another one.
    let mut http = handshakes(&server, 1).remove(0);
    hook.next().answer(200, "{}");
    assert_eq!(http.response().status, 101);
}

#[test]
fn a_hook_keeps_a_device_out_and_any_failure_is_a_503() {
    let hook = Service::start();
    let server = server_with_hook(&hook, ", timeout_ms = 60000");
    let huge = format!("{{}}{}", " ".repeat(300_000));
    for (status, body, expected) in [
        (401, "", 401),
        (403, "{}", 403),
        (500, "{}", 503),
        (404, "{}", 503),
        (302, "{}", 503),
        (200, "", 503),
        (200, "<html>", 503),
        (200, r#"{"user_id":{}}"#, 503),
        (200, &huge, 503),
        (200, "{}", 101),
    ] {
        let mut http = handshakes(&server, 1).remove(0);
        hook.next().answer(status, body);
        assert_eq!(http.response().status, expected, "{status} {}", &body[..body.len().min(20)]);
    }
    let mut http = handshakes(&server, 1).remove(0);
    drop(hook.next());
    assert_eq!(http.response().status, 503);
    assert_eq!(metric(&server, "gridcast_admissions_total"), 11);
    assert_eq!(metric(&server, "gridcast_admissions_refused_total"), 2);
    assert_eq!(metric(&server, "gridcast_admissions_failed_total"), 8);
}

#[test]
fn a_hook_that_does_not_answer_or_is_not_there_keeps_nobody_waiting() {
    let hook = Service::start();
    let server = server_with_hook(&hook, ", timeout_ms = 100");
    let mut http = handshakes(&server, 1).remove(0);
    let held = hook.next();
    assert_eq!(http.response().status, 503);
    held.answer(200, "{}");
    let (_socket, address) = refusing_port();
    let mut server = server_with(&format!("admit = {{ url = \"http://{address}/\" }}"));
    assert_eq!(handshakes(&server, 1).remove(0).response().status, 503);
    server.logs("admission: http://");
}

/// The handshakes that wait on all shards.
fn waiting_handshakes(server: &Server) -> u64 {
    let text = server.get("/metrics").body;
    let lines = text.lines().filter(|line| line.starts_with("gridcast_waiting_handshakes{"));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

#[test]
fn a_thousand_handshakes_that_wait_for_a_hook_delay_nobody_else() {
    let hook = Service::start();
    let mut server = server_with_hook(&hook, ", timeout_ms = 60000");
    let mut waiting = handshakes(&server, 1000);
    // As many questions as a hook gets at a time stand still.
    let held: Vec<_> = (0..64).map(|_| hook.next()).collect();
    let mut device = Socket::connect(server.edge, "/plain?channels=a", "").expect("it is let in");
    assert_eq!(server.publish("a", "hello"), (1, 0));
    assert_eq!(device.read(), Message::Text("hello".into()));
    support::until(|| waiting_handshakes(&server) == 1000);
    for asked in held {
        asked.answer(200, "{}");
    }
    for _ in 64..500 {
        hook.next().answer(200, "{}");
    }
    support::until(|| waiting_handshakes(&server) == 500);
    // Those that leave give their places back, and those that stay hear of the end.
    waiting.truncate(999);
    server.terminate();
    let statuses: Vec<u16> = waiting.iter_mut().map(|http| http.response().status).collect();
    let count = |status| statuses.iter().filter(|known| **known == status).count();
    assert!(count(101) >= 499 && count(101) + count(503) == 999, "{}", count(101));
    assert!(count(503) > 0);
}
