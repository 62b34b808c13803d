//! A session against a client of rustls, at every split of what passes between them.

use std::io::{Read, Write};

use rcgen::{CertifiedKey as Generated, KeyPair, generate_simple_self_signed};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, SupportedProtocolVersion,
};

use super::*;
use crate::runtime::identity::{ListenerTls, TlsContext};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

fn generate() -> Generated<KeyPair> {
    generate_simple_self_signed(["localhost".into()]).unwrap()
}

fn context(generated: &Generated<KeyPair>) -> TlsContext {
    let key = PrivateKeyDer::try_from(generated.signing_key.serialize_der()).unwrap();
    let chain = vec![generated.cert.der().clone()];
    let certified = CertifiedKey::from_der(chain, key, &default_provider()).unwrap();
    TlsContext::new(certified).unwrap()
}

fn trusting(
    certificate: &CertificateDer<'static>,
    version: &'static SupportedProtocolVersion,
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// A session and its client, between which nothing has passed.
struct Pair {
    client: ClientConnection,
    tls: Box<Tls>,
    // The bytes that the shard would get.
    received: Vec<u8>,
    // The plaintext that the session said is written.
    written: usize,
}

impl Pair {
    fn with(config: ClientConfig, context: TlsContext) -> Self {
        let client =
            ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
        let tls = ListenerTls::new(context).0.accept().unwrap();
        Self { client, tls, received: Vec::new(), written: 0 }
    }

    fn new(version: &'static SupportedProtocolVersion) -> Self {
        let generated = generate();
        Self::with(trusting(generated.cert.der(), version), context(&generated))
    }

    fn connected(version: &'static SupportedProtocolVersion) -> Self {
        let mut pair = Self::new(version);
        pair.talk(usize::MAX);
        assert!(!pair.client.is_handshaking() && !pair.tls.is_handshaking());
        pair
    }

    /// Passes bytes to and fro until neither side has any, the client's cut after `cut` bytes
    /// of each flight.
    fn talk(&mut self, cut: usize) -> Opened {
        let mut opened = Opened::All;
        loop {
            let flight = self.flight();
            if flight.is_empty() && !self.send() {
                return opened;
            }
            let (start, end) = flight.split_at(cut.min(flight.len()));
            for part in [start, end].into_iter().filter(|part| !part.is_empty()) {
                self.tls.receive(part);
                match self.tls.open(&mut self.received) {
                    Opened::All => {}
                    end => opened = end,
                }
            }
            self.send();
        }
    }

    fn flight(&mut self) -> Vec<u8> {
        let mut flight = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut flight).unwrap();
        }
        flight
    }

    /// Brings what the session has for the client; false if there is nothing.
    fn send(&mut self) -> bool {
        let batch = self.tls.seal(&mut Vec::new()).unwrap();
        for chunk in &batch {
            let mut bytes = chunk.bytes();
            while !bytes.is_empty() {
                self.client.read_tls(&mut bytes).unwrap();
                // The test asks later how the client has taken an alert.
                let _ = self.client.process_new_packets();
            }
        }
        self.written += self.tls.written().map_or(0, |(bytes, _)| bytes);
        !batch.is_empty()
    }
}

fn batch(chunks: &[&[u8]]) -> Batch {
    chunks.iter().map(|bytes| Chunk::Own(bytes.to_vec())).collect()
}

#[test]
fn a_session_comes_to_be_at_every_split_of_its_bytes() {
    for version in VERSIONS {
        let generated = generate();
        let (config, context) = (trusting(generated.cert.der(), version), context(&generated));
        for cut in 0..400 {
            let mut pair = Pair::with(config.clone(), context.clone());
            // 1.3 resumes from the second on: that is another handshake to cut.
            pair.client.writer().write_all(b"hello").unwrap();
            pair.talk(cut);
            assert_eq!(pair.received, b"hello", "cut after {cut} bytes");
            assert_eq!(pair.written, 0, "the handshake is not the shard's");
        }
    }
}

#[test]
fn records_are_read_at_every_split() {
    for version in VERSIONS {
        let mut pair = Pair::connected(version);
        let mut expected = Vec::new();
        for cut in 0..150 {
            for word in ["one", "two", "three"] {
                pair.client.writer().write_all(word.as_bytes()).unwrap();
                expected.extend_from_slice(word.as_bytes());
            }
            pair.talk(cut);
            assert_eq!(pair.received, expected, "cut after {cut} bytes");
        }
    }
}

#[test]
fn a_batch_is_written_in_order_and_in_parts_and_told_when_whole() {
    for version in VERSIONS {
        let mut pair = Pair::connected(version);
        let large: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
        pair.tls.enqueue(batch(&[b"first", &large, b"", b"last"]));
        let expected = [b"first", &large[..], b"last"].concat();
        let (mut told, mut got) = (0, Vec::new());
        while told < expected.len() {
            let sealed = pair.tls.seal(&mut Vec::new()).unwrap();
            let bytes: Vec<u8> = sealed.iter().flat_map(Chunk::bytes).copied().collect();
            assert!(bytes.len() <= PART_BYTES + 5 * RECORD_BYTES);
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                pair.client.read_tls(&mut rest).unwrap();
                pair.client.process_new_packets().unwrap();
                // The end of what is there, for now, is an error of its own kind.
                let _ = pair.client.reader().read_to_end(&mut got);
            }
            let (written, is_done) = pair.tls.written().unwrap();
            told += written;
            assert_eq!(is_done, told == expected.len());
            assert_eq!(got, expected[..told]);
        }
    }
}

#[test]
fn an_idle_session_holds_no_buffer() {
    let mut pair = Pair::connected(&TLS13);
    pair.client.writer().write_all(b"question").unwrap();
    pair.talk(3);
    pair.tls.enqueue(batch(&[b"answer"]));
    pair.talk(3);
    let Tls { unread, outgoing, batch, .. } = &*pair.tls;
    assert_eq!((unread.capacity(), outgoing.capacity(), batch.capacity()), (0, 0, 0));
    assert_eq!(pair.written, 6);
}

#[test]
fn the_peer_s_close_ends_its_side_only() {
    for version in VERSIONS {
        let mut pair = Pair::connected(version);
        pair.client.writer().write_all(b"bye").unwrap();
        pair.client.send_close_notify();
        assert_eq!(pair.talk(usize::MAX), Opened::End);
        assert_eq!(pair.received, b"bye");
        pair.tls.enqueue(batch(&[b"answer"]));
        pair.send();
        assert_eq!(pair.written, 6);
    }
}

#[test]
fn our_close_is_said_after_all_else_and_once() {
    for version in VERSIONS {
        let mut pair = Pair::connected(version);
        pair.tls.enqueue(batch(&[b"last words"]));
        pair.tls.close();
        assert!(pair.send() && pair.tls.is_over());
        assert!(!pair.send());
        let mut got = Vec::new();
        // Without a close_notify this would be an error.
        pair.client.reader().read_to_end(&mut got).unwrap();
        assert_eq!(got, b"last words");
    }
}

#[test]
fn a_close_before_the_session_is_agreed_on_says_nothing() {
    let mut pair = Pair::new(&TLS13);
    let hello = pair.flight();
    pair.tls.receive(&hello);
    pair.tls.close();
    assert!(pair.tls.seal(&mut Vec::new()).unwrap().is_empty() && pair.tls.is_over());
}

#[test]
fn plain_http_is_refused_with_an_alert() {
    let mut tls = Pair::new(&TLS13).tls;
    tls.receive(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let mut plaintext = Vec::new();
    assert_eq!(tls.open(&mut plaintext), Opened::Refused);
    assert!(plaintext.is_empty() && tls.is_over() && !tls.is_handshaking());
    let alert = tls.seal(&mut Vec::new()).unwrap();
    assert_eq!(alert[0].bytes()[0], 21, "the content type of alerts");
    assert!(tls.seal(&mut Vec::new()).unwrap().is_empty());
    tls.receive(b"more");
    assert!(tls.unread.capacity() < 100);
}

#[test]
fn who_speaks_another_protocol_only_is_refused() {
    let generated = generate();
    let mut config = trusting(generated.cert.der(), &TLS13);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut pair = Pair::with(config, context(&generated));
    assert_eq!(pair.talk(usize::MAX), Opened::Refused);
}

#[test]
fn a_record_that_was_changed_breaks_the_session() {
    for version in VERSIONS {
        let mut pair = Pair::connected(version);
        pair.tls.enqueue(batch(&[b"never written"]));
        pair.client.writer().write_all(b"hello").unwrap();
        let mut flight = pair.flight();
        *flight.last_mut().unwrap() ^= 1;
        pair.tls.receive(&flight);
        assert_eq!(pair.tls.open(&mut pair.received), Opened::Broken);
        assert!(pair.received.is_empty());
        assert!(pair.send(), "an alert");
        assert!(!pair.send() && pair.written == 0);
    }
}

#[test]
fn a_handshake_message_without_end_is_not_kept() {
    let mut tls = Pair::new(&TLS13).tls;
    // A ClientHello of 65,535 bytes, in records of one byte each.
    let mut result = Opened::All;
    for byte in [1, 0, 255, 255].into_iter().chain(std::iter::repeat_n(0, 20_000)) {
        tls.receive(&[22, 3, 1, 0, 1, byte]);
        result = tls.open(&mut Vec::new());
        if result != Opened::All {
            break;
        }
    }
    assert_ne!(result, Opened::All);
    assert!(tls.unread.len() <= UNREAD_BYTES_MAX + 6);
}

#[test]
fn a_session_is_resumed_by_its_ticket() {
    for version in VERSIONS {
        let generated = generate();
        let (config, context) = (trusting(generated.cert.der(), version), context(&generated));
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let mut pair = Pair::with(config.clone(), context.clone());
            pair.talk(usize::MAX);
            assert_eq!(pair.client.handshake_kind(), Some(kind));
        }
    }
}

#[test]
fn a_renewed_identity_shows_the_newest_certificate() {
    let (old, newest) = (generate(), generate());
    let (mut identity, renewal) = ListenerTls::new(context(&old));
    renewal.send(context(&old)).unwrap();
    renewal.send(context(&newest)).unwrap();
    identity.renew();
    identity.renew();
    let mut pair = Pair::new(&TLS13);
    let config = Arc::new(trusting(newest.cert.der(), &TLS13));
    pair.client = ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
    pair.tls = identity.accept().unwrap();
    pair.talk(usize::MAX);
    assert!(!pair.client.is_handshaking());
}
