//! TLS of one connection: records in, plaintext out, and back. No socket here: the driver brings
//! the bytes and takes them.
//!
//! rustls' unbuffered face is used, since its buffered one keeps 4 KiB for every connection that
//! has ever received. An idle connection has no buffer here.

use std::mem;
use std::sync::Arc;

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus,
};
use rustls::{Error, ServerConfig};

use crate::shard::{Batch, Chunk, freed_bytes};

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
    /// Begins a session with a peer that has just connected.
    ///
    /// # Errors
    /// Those of rustls: the configuration is of no use.
    pub(super) fn new(config: Arc<ServerConfig>) -> Result<Self, Error> {
        Ok(Self {
            session: UnbufferedServerConnection::new(config)?,
            unread: Vec::new(),
            outgoing: Vec::new(),
            batch: Batch::new(),
            taken: 0,
            in_flight: 0,
            state: State::Open,
        })
    }

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

    /// Memory that dropping what is not sealed yet would free.
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
mod tests;
