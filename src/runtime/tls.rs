//! The TLS session of one connection: decrypts records and encrypts plaintext. No socket: the driver
//! passes bytes in and out.
//!
//! Uses rustls' unbuffered API, because the buffered one keeps 4 KiB for every connection that has ever
//! received. An idle connection has no buffer here.

use std::mem;
use std::sync::Arc;

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus,
};
use rustls::{Error, ServerConfig};

use crate::shard::{Batch, Chunk, freed_bytes};

/// The plaintext that is encrypted for one send, in bytes: four full records. Data that a slow peer has
/// not read stays plaintext, which the members of a channel share. A larger part would gain little.
const PART_BYTES: usize = 64 * 1024;

/// The most bytes of an incomplete record or handshake message: rustls' own bound on a handshake
/// message. A record has at most 18 KiB (RFC 8446, section 5.2).
const UNREAD_BYTES_MAX: usize = 64 * 1024;

/// The most bytes that a record adds to its plaintext: its header, a nonce (TLS 1.2) or a type (TLS
/// 1.3), and the tag (RFC 5288, section 3; RFC 8446, section 5.2).
const RECORD_BYTES: usize = 5 + 8 + 16 + 1;

/// The most plaintext of one record, in bytes.
const RECORD_PLAINTEXT: usize = 16 * 1024;

/// One connection's TLS session.
pub(super) struct Tls {
    session: UnbufferedServerConnection,
    // Received records that are not decrypted: an incomplete one, or those of a deferred handshake.
    unread: Vec<u8>,
    // Encrypted handshake messages and alerts for the next send.
    outgoing: Vec<u8>,
    // Data from the shard that is not encrypted yet.
    batch: Batch,
    // Bytes of the batch's first chunk that are encrypted already.
    taken: usize,
    // Bytes of plaintext in the current send.
    in_flight: usize,
    state: TlsState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum TlsState {
    Open,
    // The peer has sent close_notify. It may still read.
    Deaf,
    // The session failed. Only the alert is still sent.
    Refused,
    // The connection closes after the data that is queued now.
    Closing,
}

/// The outcome of decrypting received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// All complete records were decrypted.
    All,
    /// The peer has closed its side with close_notify.
    End,
    /// The handshake failed. An alert is queued for the peer.
    Refused,
    /// The session failed after the handshake. Nothing more can be read or written.
    Broken,
}

/// The error of a session that cannot be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

impl Tls {
    /// Begins the session of a new connection.
    ///
    /// # Errors
    /// rustls refuses the configuration.
    pub(super) fn new(config: Arc<ServerConfig>) -> Result<Self, Error> {
        Ok(Self {
            session: UnbufferedServerConnection::new(config)?,
            unread: Vec::new(),
            outgoing: Vec::new(),
            batch: Batch::new(),
            taken: 0,
            in_flight: 0,
            state: TlsState::Open,
        })
    }

    /// Whether the handshake is in progress, in which [`Self::open`] may be expensive.
    pub(super) fn is_handshaking(&self) -> bool {
        self.state == TlsState::Open && self.session.is_handshaking()
    }

    /// Stores bytes from the peer for [`Self::open`].
    pub(super) fn receive(&mut self, ciphertext: &[u8]) {
        if self.state == TlsState::Open {
            self.unread.extend_from_slice(ciphertext);
        }
    }

    /// Decrypts the received bytes and appends the result to `plaintext`: never more than was received.
    /// Afterwards [`Self::seal`] may have something to send, even if the shard has not.
    pub(super) fn open(&mut self, plaintext: &mut Vec<u8>) -> Opened {
        if self.state != TlsState::Open {
            return Opened::All;
        }
        let mut opened = 0;
        let result = loop {
            match self.step(&mut opened, plaintext) {
                Ok(SessionStep::More) => {}
                Ok(SessionStep::Last(result)) if self.unread.len() - opened <= UNREAD_BYTES_MAX => {
                    break result;
                }
                Ok(SessionStep::Last(_)) | Err(_) => {
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

    /// Runs one step of rustls on the unread bytes from offset `opened`.
    fn step(&mut self, opened: &mut usize, plaintext: &mut Vec<u8>) -> Result<SessionStep, Error> {
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
            // `outgoing` keeps the order, so the message counts as sent.
            ConnectionState::TransmitTlsData(message) => message.done(),
            ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => {
                return Ok(SessionStep::Last(Opened::All));
            }
            ConnectionState::PeerClosed => {
                *opened = unread.len();
                self.state = TlsState::Deaf;
                return Ok(SessionStep::Last(Opened::End));
            }
            // Early data is not enabled, and nothing is decrypted after both sides have closed.
            _ => return Err(Error::HandshakeNotComplete),
        }
        Ok(SessionStep::More)
    }

    /// Handles a violation of the protocol, or a peer with no common parameters: queues the alert.
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
        self.state = TlsState::Refused;
        self.batch.clear();
        result
    }

    /// Takes a batch to send. The batch before must be written completely.
    pub(super) fn enqueue(&mut self, batch: Batch) {
        debug_assert!(self.batch.is_empty() && self.in_flight == 0);
        self.batch = batch;
    }

    /// Closes the session after the queued data, with a close_notify.
    pub(super) fn close(&mut self) {
        if self.state != TlsState::Refused {
            self.state = TlsState::Closing;
        }
    }

    /// Whether the session was closed or refused. Then everything is written once [`Self::seal`] returns
    /// an empty batch.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, TlsState::Refused | TlsState::Closing)
    }

    /// Returns the next encrypted bytes for the peer, or an empty batch if there are none. They must be
    /// written completely before the next call. `scratch` is overwritten.
    ///
    /// # Errors
    /// The session has failed or is not established.
    pub(super) fn seal(&mut self, scratch: &mut Vec<u8>) -> Result<Batch, Broken> {
        let mut sealed = mem::take(&mut self.outgoing);
        self.take_part(scratch);
        if !scratch.is_empty() {
            self.encrypt(scratch, &mut sealed)?;
            self.in_flight = scratch.len();
        }
        if self.state == TlsState::Closing && self.batch.is_empty() {
            self.put_close_notify(&mut sealed)?;
        }
        // The emptied batch carries the encrypted bytes, so that it returns to the shard for reuse.
        let mut out = match self.batch.is_empty() {
            true => mem::take(&mut self.batch),
            false => Batch::new(),
        };
        if !sealed.is_empty() {
            out.push_back(Chunk::Own(sealed));
        }
        Ok(out)
    }

    /// Notes that the bytes of [`Self::seal`] are written. Returns how much of the shard's batch they
    /// contained, and whether the batch is complete. Returns `None` if they were only messages of the
    /// session itself.
    pub(super) fn written(&mut self) -> Option<(usize, bool)> {
        let bytes = mem::take(&mut self.in_flight);
        (bytes > 0).then_some((bytes, self.batch.is_empty()))
    }

    /// Returns the memory that dropping the unencrypted data would free, in bytes.
    pub(super) fn freed_bytes(&self) -> usize {
        freed_bytes(&self.batch)
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

    /// Appends a close_notify, unless it was sent before or the handshake is not complete (RFC 8446,
    /// section 6.1).
    fn put_close_notify(&mut self, out: &mut Vec<u8>) -> Result<(), Broken> {
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

enum SessionStep {
    More,
    Last(Opened),
}

/// Appends a handshake message or alert.
fn put_message<Data>(mut message: EncodeTlsData<'_, Data>, out: &mut Vec<u8>) {
    // Encoding into an empty buffer returns the size that it needs.
    let Err(EncodeError::InsufficientSize(size)) = message.encode(&mut []) else { return };
    let start = out.len();
    out.resize(start + size.required_size, 0);
    message.encode(&mut out[start..]).expect("the buffer has the required size");
}

/// Appends the output of `put`. Calls it again with a larger buffer if it needs one.
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
mod tests;
