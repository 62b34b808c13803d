//! Key sets of issuers: fetched, replaced, missing, and from whom.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{CertifiedKey, KeyPair, PKCS_ED25519, PublicKeyData, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};

use crate::support::{self, Server, Service, Socket, refusing_port};
use crate::{config_with, metric, server_with};

/// A key of an issuer, and its name.
pub(crate) struct SigningKey {
    id: &'static str,
    pair: KeyPair,
}

impl SigningKey {
    pub(crate) fn new(id: &'static str) -> Self {
        Self { id, pair: KeyPair::generate_for(&PKCS_ED25519).expect("a key") }
    }

    /// The public key as the issuer publishes it.
    pub(crate) fn published(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.pair.der_bytes());
        json!({"kty": "OKP", "crv": "Ed25519", "kid": self.id, "use": "sig", "x": x})
    }

    pub(crate) fn token(&self) -> String {
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(self.id.into());
        let key = EncodingKey::from_ed_der(self.pair.serialized_der());
        encode(&header, &json!({"exp": 4_102_444_800_u64, "sub": "7"}), &key).expect("claims")
    }
}

pub(crate) fn key_set(keys: &[&SigningKey]) -> String {
    json!({"keys": keys.iter().map(|key| key.published()).collect::<Vec<_>>()}).to_string()
}

/// A server whose route `/in` takes tokens with these settings, and whose route `/plain` takes anybody.
pub(crate) fn server_with_token(settings: &str) -> Server {
    server_with(&format!("token = {{ {settings} }}"))
}

/// Tries to connect with a token; returns the status, and the body of a refusal.
pub(crate) fn connect(server: &Server, token: &str) -> (u16, String) {
    match Socket::connect(server.edge, "/in", &format!("Authorization: Bearer {token}\r\n")) {
        Ok(_) => (101, String::new()),
        Err(response) => (response.status, response.body),
    }
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
    service_with_certificate(name, &generate_simple_self_signed(names).expect("a certificate"))
}

/// A service with this certificate, and the file with its authority.
pub(crate) fn service_with_certificate(
    name: &str,
    certified: &CertifiedKey<KeyPair>,
) -> (Service, PathBuf) {
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
