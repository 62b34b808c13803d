//! Assembles whole messages and control frames from the bytes of a client. Payloads are unmasked. Text
//! is checked to be UTF-8 while it arrives; compressed text once it is inflated.
//!
//! - `assembler.rs`: [`Assembler`], and the fast path for a frame that is whole in one read.
//! - `partial.rs`: a frame or message of which only a part has arrived.

mod partial;

use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};

use super::close::{self, Closed};
use super::deflate::{History, Inflated, Inflater, Inflating, deflated_bytes_max};
use super::frame::{Head, Kind, Opcode, Violation};
use super::mask::unmask;
use partial::Partial;

/// Something that a connection received. A frame that was whole in its input is borrowed from there.
#[derive(Debug)]
pub enum Received<'a> {
    /// A whole message. Text is valid UTF-8, unless it was read with [`Assembler::read_unchecked`].
    Message(Kind, Payload<'a>),
    /// A ping. The pong must carry the same payload.
    Ping(Payload<'a>),
    /// A pong.
    Pong,
    /// A close frame.
    Close(Closed),
    /// Part of a long compressed message was inflated. The next [`Assembler::read`] continues it, even
    /// without more input; the caller decides when.
    Inflating,
}

/// The payload of a frame or message. The receiver may overwrite it.
#[derive(Debug)]
pub enum Payload<'a> {
    /// A slice of the input.
    Borrowed(&'a mut [u8]),
    /// Assembled from several inputs, or inflated.
    Owned(Vec<u8>),
}

impl Deref for Payload<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl DerefMut for Payload<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// The receive state of one WebSocket connection. Takes two pointers while no frame or message is
/// incomplete.
#[derive(Debug, Default)]
pub struct Assembler {
    partial: Option<Box<Partial>>,
    // The window that compressed messages may refer back to; `None`: the client compresses each
    // message independently.
    history: Option<Box<History>>,
}

/// A message or frame that has begun and is not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// When it was first noted, on the caller's clock.
    pub since_ms: u64,
    /// Payload bytes received so far.
    pub bytes: usize,
}

impl Assembler {
    /// Whether no frame and no message is incomplete.
    pub fn is_idle(&self) -> bool {
        self.partial.is_none()
    }

    /// Creates the state for a peer whose compressed messages may refer back `bytes_max` bytes. `None`:
    /// the peer compresses each message independently, or not at all.
    pub fn with_history(bytes_max: Option<NonZeroUsize>) -> Self {
        let history = bytes_max.map(|bytes_max| Box::new(History::new(bytes_max.get())));
        Self { partial: None, history }
    }

    /// Returns the memory held by an incomplete message and by the compression history, in bytes.
    pub fn held_bytes(&self) -> usize {
        let history = self.history.as_deref().map_or(0, History::held_bytes);
        self.partial.as_deref().map_or(0, Partial::held_bytes) + history
    }

    /// Notes the time of an incomplete message or frame, unless a time is noted already. Call this when
    /// [`Self::read`] returns `None`.
    pub fn note_unfinished(&mut self, now_ms: u64) {
        if let Some(partial) = &mut self.partial {
            partial.note(now_ms);
        }
    }

    /// Returns the incomplete message or frame, if [`Self::note_unfinished`] has noted one.
    pub fn unfinished(&self) -> Option<Unfinished> {
        self.partial.as_ref()?.unfinished()
    }

    /// Returns the payload bytes of the current data frame that have not arrived yet: 0 between frames.
    /// Returns `None` within a frame header or a control frame.
    pub fn frame_left(&self) -> Option<u64> {
        self.partial.as_ref().map_or(Some(0), |partial| partial.frame_left())
    }

    /// Consumes bytes from the front of `input` until a message or control frame is complete. Returns
    /// `None` when all input was consumed and nothing is complete.
    ///
    /// A message may have `message_bytes_max` bytes in all its fragments together. Memory is allocated
    /// as bytes arrive, not as lengths are announced. `inflater` is present if compression was
    /// negotiated. The limit then holds for the inflated message, and [`deflated_bytes_max`] of it for
    /// the compressed bytes.
    ///
    /// # Errors
    /// A [`Violation`]: close the connection and read no more.
    pub fn read<'a>(
        &mut self,
        input: &mut &'a mut [u8],
        message_bytes_max: usize,
        inflater: Option<&mut Inflater>,
    ) -> Result<Option<Received<'a>>, Violation> {
        self.read_with::<true>(input, message_bytes_max, inflater)
    }

    /// Does what [`Self::read`] does for a peer without compression, except that the caller has to
    /// check that text is UTF-8.
    ///
    /// # Errors
    /// A [`Violation`]: close the connection and read no more.
    pub fn read_unchecked<'a>(
        &mut self,
        input: &mut &'a mut [u8],
        message_bytes_max: usize,
    ) -> Result<Option<Received<'a>>, Violation> {
        self.read_with::<false>(input, message_bytes_max, None)
    }

    /// Does what [`Self::read`] does. `CHECKS_TEXT`: see [`read_whole`].
    fn read_with<'a, const CHECKS_TEXT: bool>(
        &mut self,
        input: &mut &'a mut [u8],
        message_bytes_max: usize,
        inflater: Option<&mut Inflater>,
    ) -> Result<Option<Received<'a>>, Violation> {
        let history = self.history.as_deref_mut();
        let mut inflation = inflater.map(|inflater| Inflation { inflater, history });
        if self.partial.is_none() {
            let inflater = inflation.as_mut().map(Inflation::lend);
            match read_whole::<CHECKS_TEXT>(input, message_bytes_max, inflater)? {
                Some(Whole::Received(received)) => return Ok(Some(received)),
                Some(Whole::Inflating(kind, inflating)) => {
                    self.partial.get_or_insert_default().keep_inflating(kind, inflating);
                    return Ok(Some(Received::Inflating));
                }
                None if input.is_empty() => return Ok(None),
                None => {}
            }
        }
        let partial = self.partial.get_or_insert_default();
        let received = match (partial.take_inflating(), inflation) {
            (Some((kind, inflating)), Some(inflation)) => {
                let Inflation { inflater, history } = inflation;
                let inflated = inflater.resume(inflating, message_bytes_max, history)?;
                Some(partial.finish_inflated(kind, inflated)?)
            }
            (_, inflation) => partial.read(input, message_bytes_max, inflation)?,
        };
        if partial.is_idle() {
            self.partial = None;
        }
        Ok(received)
    }
}

/// The inflater and the history for the messages of one connection.
struct Inflation<'i> {
    inflater: &'i mut Inflater,
    history: Option<&'i mut History>,
}

impl Inflation<'_> {
    fn lend(&mut self) -> Inflation<'_> {
        Inflation { inflater: self.inflater, history: self.history.as_deref_mut() }
    }

    fn inflate(self, deflated: &[u8], bytes_max: usize) -> Result<Inflated, Violation> {
        self.inflater.inflate(deflated, bytes_max, self.history)
    }
}

/// The outcome of the fast path.
enum Whole<'a> {
    Received(Received<'a>),
    Inflating(Kind, Box<Inflating>),
}

/// The fast path: reads a control frame or an unfragmented message that is whole in `input`. Returns
/// `None` if the slow path is needed. If `CHECKS_TEXT` is false, the caller checks that text is UTF-8. (The slow path
/// always checks text, as it arrives.)
fn read_whole<'a, const CHECKS_TEXT: bool>(
    input: &mut &'a mut [u8],
    message_bytes_max: usize,
    inflater: Option<Inflation<'_>>,
) -> Result<Option<Whole<'a>>, Violation> {
    let Some(head) = Head::parse(input, inflater.is_some())? else { return Ok(None) };
    if head.opcode == Opcode::Continuation {
        return Err(Violation::NothingToContinue);
    }
    let bytes_max = collected_bytes_max(message_bytes_max, head.is_deflated);
    if !head.opcode.is_control() && head.length > bytes_max as u64 {
        return Err(Violation::TooLarge);
    }
    if !head.fin || head.length > (input.len() - head.size) as u64 {
        return Ok(None);
    }
    let frame = take(input, head.size + head.length as usize);
    let payload = &mut frame[head.size..];
    unmask(payload, head.mask, 0);
    let payload = match (head.opcode, inflater.filter(|_| head.is_deflated)) {
        (Opcode::Data(kind), Some(inflater)) => {
            match inflater.inflate(payload, message_bytes_max)? {
                Inflated::Whole(message) => Payload::Owned(message),
                Inflated::Unfinished(inflating) => {
                    return Ok(Some(Whole::Inflating(kind, inflating)));
                }
            }
        }
        _ => Payload::Borrowed(payload),
    };
    let received = match head.opcode {
        Opcode::Data(kind) if !CHECKS_TEXT => Received::Message(kind, payload),
        opcode => finish(opcode, payload)?,
    };
    Ok(Some(Whole::Received(received)))
}

/// Returns the most payload bytes that the frames of a message may have together.
fn collected_bytes_max(message_bytes_max: usize, is_deflated: bool) -> usize {
    match is_deflated {
        true => deflated_bytes_max(message_bytes_max),
        false => message_bytes_max,
    }
}

fn take<'a>(input: &mut &'a mut [u8], length: usize) -> &'a mut [u8] {
    let (taken, rest) = std::mem::take(input).split_at_mut(length);
    *input = rest;
    taken
}

/// Interprets a whole control frame or message. Text is checked to be UTF-8.
fn finish(opcode: Opcode, payload: Payload<'_>) -> Result<Received<'_>, Violation> {
    Ok(match opcode {
        Opcode::Ping => Received::Ping(payload),
        Opcode::Pong => Received::Pong,
        Opcode::Close => Received::Close(parse_close(&payload)?),
        Opcode::Data(Kind::Text) if simdutf8::basic::from_utf8(&payload).is_err() => {
            return Err(Violation::NotUtf8);
        }
        Opcode::Data(kind) => Received::Message(kind, payload),
        Opcode::Continuation => return Err(Violation::NothingToContinue),
    })
}

/// Parses the payload of a close frame (RFC 6455, section 5.5.1).
pub(super) fn parse_close(payload: &[u8]) -> Result<Closed, Violation> {
    if payload.is_empty() {
        return Ok(Closed::default());
    }
    let (code, reason) = payload.split_first_chunk().ok_or(Violation::BadClose)?;
    let code = u16::from_be_bytes(*code);
    if !close::may_be_received(code) {
        return Err(Violation::BadClose);
    }
    let reason = std::str::from_utf8(reason).map_err(|_| Violation::NotUtf8)?;
    Ok(Closed { code: Some(code), reason: reason.to_owned() })
}

#[cfg(test)]
mod tests;
