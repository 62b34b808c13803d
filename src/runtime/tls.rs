//! TLS of one connection: records in, plaintext out, and back. No socket here: the driver brings
//! the bytes and takes them.
//!
//! rustls' unbuffered face is used, since its buffered one keeps 4 KiB for every connection that
//! has ever received. An idle connection has no buffer here.

use std::io;
use std::mem;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::server::{NoServerSessionStorage, UnbufferedServerConnection};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus,
};
use rustls::{Error, ServerConfig};

use crate::shard::{Batch, Chunk};

/// Plaintext that is sealed for one send, in bytes: four full records. What a slow peer has not
/// taken is held as plaintext, which a channel's members share; more per send gains little.
const PART_BYTES: usize = 64 * 1024;

/// The most that an unfinished record or handshake message may take, in bytes: rustls' own bound on
/// a handshake message. A record has at most 18 KiB (RFC 8446, section 5.2).
const UNREAD_BYTES_MAX: usize = 64 * 1024;

/// What one record adds to its plaintext at most, in bytes: its header, and by version a nonce or a
/// type, and the tag (RFC 5288, section 3; RFC 8446, section 5.2).
const RECORD_BYTES: usize = 5 + 8 + 16 + 1;
const RECORD_PLAINTEXT: usize = 16 * 1024;

/// New contexts that may wait for a shard, which looks for them every turn.
const RENEWALS: usize = 2;

/// A certificate with its key, ready to be shown: what a listener tells its peers.
#[derive(Clone, Debug)]
pub struct TlsContext(Arc<ServerConfig>);

impl TlsContext {
    /// TLS 1.2 and 1.3 for HTTP/1.1, with sessions that resume by tickets: so no shard keeps any.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn new(certified: CertifiedKey) -> io::Result<Self> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.ticketer = Ticketer::new().map_err(io::Error::other)?;
        config.send_tls13_tickets = 1;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self(Arc::new(config)))
    }
}

/// One shard's part of a TLS listener: the context for new connections.
#[derive(Debug)]
pub(super) struct Identity {
    context: TlsContext,
    renewals: Receiver<TlsContext>,
}

impl Identity {
    /// Shows `context` until another is sent.
    pub(super) fn new(context: TlsContext) -> (Self, Sender<TlsContext>) {
        let (sender, renewals) = bounded(RENEWALS);
        (Self { context, renewals }, sender)
    }

    /// Takes the newest context. Connections keep the one they began with.
    pub(super) fn renew(&mut self) {
        self.context = self.renewals.try_iter().last().unwrap_or_else(|| self.context.clone());
    }

    /// Begins a session with a peer that has just connected.
    ///
    /// # Errors
    /// The context is of no use, which the first connection would have shown.
    pub(super) fn accept(&self) -> Result<Box<Tls>, Error> {
        Ok(Box::new(Tls {
            session: UnbufferedServerConnection::new(self.context.0.clone())?,
            unread: Vec::new(),
            outgoing: Vec::new(),
            batch: Batch::new(),
            taken: 0,
            in_flight: 0,
            state: State::Open,
        }))
    }
}

/// One connection's session.
pub(super) struct Tls {
    session: UnbufferedServerConnection,
    // Records received and not opened: an unfinished one, or those of a handshake that waits.
    unread: Vec<u8>,
    // Handshake messages and alerts, sealed, that the next send takes.
    outgoing: Vec<u8>,
    // What the shard wants written, the part in flight taken out of it.
    batch: Batch,
    // Bytes of the batch's first chunk that are taken.
    taken: usize,
    // Bytes of plaintext in the send under way.
    in_flight: usize,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    // The peer said that nothing more comes. It may still read.
    Deaf,
    // There is no session to be had with this peer: it is told so, and no more.
    Refused,
    // Nothing follows what is to be written now.
    Closing,
}

/// What came of the peer's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// They were read as far as they go.
    All,
    /// They were the peer's last: it closed its side.
    End,
    /// They were the beginning of no session; an alert says so to the peer.
    Refused,
    /// The session broke: nothing can be read or written any more.
    Broken,
}

/// The session cannot be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

impl Tls {
    /// Whether the session is still being agreed on: only then is opening costly.
    pub(super) fn is_handshaking(&self) -> bool {
        self.state == State::Open && self.session.is_handshaking()
    }

    /// Takes bytes of the peer, to be opened with [`Self::open`].
    pub(super) fn receive(&mut self, ciphertext: &[u8]) {
        if self.state == State::Open {
            self.unread.extend_from_slice(ciphertext);
        }
    }

    /// Opens what was received: appends plaintext to `plaintext`, at most as much as was received.
    /// There may then be something to [`Self::seal`], even if the shard has nothing to say.
    pub(super) fn open(&mut self, plaintext: &mut Vec<u8>) -> Opened {
        if self.state != State::Open {
            return Opened::All;
        }
        let mut opened = 0;
        let result = loop {
            match self.step(&mut opened, plaintext) {
                Ok(Step::More) => {}
                Ok(Step::Last(result)) if self.unread.len() - opened <= UNREAD_BYTES_MAX => {
                    break result;
                }
                Ok(Step::Last(_)) | Err(_) => {
                    let result = self.fail(opened);
                    opened = self.unread.len();
                    break result;
                }
            }
        };
        self.unread.drain(..opened);
        if self.unread.is_empty() {
            self.unread = Vec::new();
        }
        result
    }

    /// One step of rustls, from byte `opened` of what is unread.
    fn step(&mut self, opened: &mut usize, plaintext: &mut Vec<u8>) -> Result<Step, Error> {
        let Self { session, unread, outgoing, .. } = self;
        let UnbufferedStatus { discard, state } =
            session.process_tls_records(&mut unread[*opened..]);
        *opened += discard;
        match state? {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    *opened += record.discard;
                    plaintext.extend_from_slice(record.payload);
                }
            }
            ConnectionState::EncodeTlsData(message) => put_message(message, outgoing),
            // It leaves in its order, whenever that is.
            ConnectionState::TransmitTlsData(message) => message.done(),
            ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => {
                return Ok(Step::Last(Opened::All));
            }
            ConnectionState::PeerClosed => {
                *opened = unread.len();
                self.state = State::Deaf;
                return Ok(Step::Last(Opened::End));
            }
            // Early data is never asked for, and after the end of both sides nothing is opened.
            _ => return Err(Error::HandshakeNotComplete),
        }
        Ok(Step::More)
    }

    /// The peer broke the protocol, or offers nothing that we speak: takes up the alert for it.
    fn fail(&mut self, opened: usize) -> Opened {
        let result = match self.session.is_handshaking() {
            true => Opened::Refused,
            false => Opened::Broken,
        };
        let Self { session, unread, outgoing, .. } = self;
        while session.wants_write()
            && let Ok(ConnectionState::EncodeTlsData(alert)) =
                session.process_tls_records(&mut unread[opened..]).state
        {
            put_message(alert, outgoing);
        }
        self.state = State::Refused;
        self.batch.clear();
        result
    }

    /// Takes a batch to be written; none may be left of the one before.
    pub(super) fn enqueue(&mut self, batch: Batch) {
        debug_assert!(self.batch.is_empty() && self.in_flight == 0);
        self.batch = batch;
    }

    /// Nothing follows what is to be written now, but the words that say so.
    pub(super) fn close(&mut self) {
        if self.state != State::Refused {
            self.state = State::Closing;
        }
    }

    /// Whether it was closed or refused: when [`Self::seal`] then gives nothing, all is written.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Refused | State::Closing)
    }

    /// The next bytes for the peer, which must be written whole before it is called again; an empty
    /// batch if there are none. `scratch` is overwritten.
    ///
    /// # Errors
    /// There is no session that could carry them.
    pub(super) fn seal(&mut self, scratch: &mut Vec<u8>) -> Result<Batch, Broken> {
        let mut sealed = mem::take(&mut self.outgoing);
        self.take_part(scratch);
        if !scratch.is_empty() {
            self.encrypt(scratch, &mut sealed)?;
            self.in_flight = scratch.len();
        }
        if self.state == State::Closing && self.batch.is_empty() {
            self.say_goodbye(&mut sealed)?;
        }
        // The emptied batch carries the bytes, so that it finds its way back to the shard.
        let mut out = match self.batch.is_empty() {
            true => mem::take(&mut self.batch),
            false => Batch::new(),
        };
        if !sealed.is_empty() {
            out.push_back(Chunk::Own(sealed));
        }
        Ok(out)
    }

    /// What [`Self::seal`] gave is written: how much of the shard's batch that was, and whether it
    /// was the last of it; `None` if it was the session's own.
    pub(super) fn written(&mut self) -> Option<(usize, bool)> {
        let bytes = mem::take(&mut self.in_flight);
        (bytes > 0).then_some((bytes, self.batch.is_empty()))
    }

    /// Moves the next bytes of the batch to `part`.
    fn take_part(&mut self, part: &mut Vec<u8>) {
        part.clear();
        while let Some(chunk) = self.batch.front()
            && part.len() < PART_BYTES
        {
            let bytes = &chunk.bytes()[self.taken..];
            let room = PART_BYTES - part.len();
            if bytes.len() > room {
                part.extend_from_slice(&bytes[..room]);
                self.taken += room;
            } else {
                part.extend_from_slice(bytes);
                self.taken = 0;
                self.batch.pop_front();
            }
        }
    }

    fn encrypt(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
        let records = plaintext.len().div_ceil(RECORD_PLAINTEXT);
        match self.session.process_tls_records(&mut self.unread).state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                let room = plaintext.len() + records * RECORD_BYTES;
                append(out, room, |room| traffic.encrypt(plaintext, room))
            }
            _ => Err(Broken),
        }
    }

    /// A close_notify, unless it was said or the session never came to be (RFC 8446, section 6.1).
    fn say_goodbye(&mut self, out: &mut Vec<u8>) -> Result<(), Broken> {
        if self.session.is_handshaking() {
            return Ok(());
        }
        match self.session.process_tls_records(&mut self.unread).state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                append(out, 0, |room| traffic.queue_close_notify(room))
            }
            _ => Ok(()),
        }
    }
}

enum Step {
    More,
    Last(Opened),
}

/// Appends a message of the session itself.
fn put_message<Data>(mut message: EncodeTlsData<'_, Data>, out: &mut Vec<u8>) {
    // Without room it tells how much it needs.
    let Err(EncodeError::InsufficientSize(size)) = message.encode(&mut []) else { return };
    let start = out.len();
    out.resize(start + size.required_size, 0);
    message.encode(&mut out[start..]).expect("it has the room that it asked for");
}

/// Appends what `put` puts into the room it is given, and gives it what it asks for.
fn append(
    out: &mut Vec<u8>,
    mut room: usize,
    mut put: impl FnMut(&mut [u8]) -> Result<usize, EncryptError>,
) -> Result<(), Broken> {
    let start = out.len();
    loop {
        out.resize(start + room, 0);
        match put(&mut out[start..]) {
            Ok(bytes) => {
                out.truncate(start + bytes);
                return Ok(());
            }
            Err(EncryptError::InsufficientSize(size)) if size.required_size > room => {
                room = size.required_size;
            }
            Err(_) => return Err(Broken),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use rcgen::{CertifiedKey as Generated, KeyPair, generate_simple_self_signed};
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::version::{TLS12, TLS13};
    use rustls::{
        ClientConfig, ClientConnection, HandshakeKind, RootCertStore, SupportedProtocolVersion,
    };

    use super::*;

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
        // What the shard would get.
        received: Vec<u8>,
        // The plaintext that the session said is written.
        written: usize,
    }

    impl Pair {
        fn with(config: ClientConfig, context: TlsContext) -> Self {
            let client =
                ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
            let tls = Identity::new(context).0.accept().unwrap();
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
                    // What it makes of an alert is for the test to ask.
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
        let (mut identity, renewal) = Identity::new(context(&old));
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
}
