//! A frame or message of which only a part has arrived.

use super::{Inflation, Payload, Received, Unfinished, collected_bytes_max, finish, take};
use crate::protocol::deflate::{Inflated, Inflating};
use crate::protocol::frame::{CONTROL_BYTES_MAX, HEAD_BYTES_MAX, Head, Kind, Opcode, Violation};
use crate::protocol::mask::unmask;

/// The received part of a frame or message that is not complete.
#[derive(Debug, Default)]
pub(super) struct Partial {
    // The received part of the next frame header: head_length <= 14.
    head: [u8; HEAD_BYTES_MAX],
    head_length: usize,
    frame: Option<OpenFrame>,
    message: Option<OpenMessage>,
    control: Vec<u8>,
    // A compressed message that arrived completely and is partly inflated.
    inflating: Option<(Kind, Box<Inflating>)>,
    // When the incomplete frame or message was first noted.
    since_ms: Option<u64>,
}

/// A frame whose header was read and whose payload is still arriving.
#[derive(Debug)]
struct OpenFrame {
    head: Head,
    // 0 <= taken <= head.length
    taken: u64,
}

/// A message whose last fragment has not arrived completely.
#[derive(Debug)]
struct OpenMessage {
    kind: Kind,
    is_deflated: bool,
    data: Vec<u8>,
    // The length of the prefix of `data` that is valid UTF-8: at most 3 bytes less than all of it.
    valid: usize,
}

impl Partial {
    /// Whether nothing is incomplete.
    pub(super) fn is_idle(&self) -> bool {
        self.head_length == 0
            && self.frame.is_none()
            && self.message.is_none()
            && self.inflating.is_none()
    }

    /// Returns the memory held, in bytes.
    pub(super) fn held_bytes(&self) -> usize {
        let message = self.message.as_ref().map_or(0, |message| message.data.capacity());
        let inflating = self.inflating.as_ref().map_or(0, |(_, state)| state.held_bytes());
        size_of::<Self>() + message + inflating
    }

    /// Notes the time, unless one is noted already.
    pub(super) fn note(&mut self, now_ms: u64) {
        self.since_ms.get_or_insert(now_ms);
    }

    /// Returns the noted time and the bytes so far; `None` if no time was noted.
    pub(super) fn unfinished(&self) -> Option<Unfinished> {
        let data = self.message.as_ref().map_or(0, |message| message.data.len());
        Some(Unfinished { since_ms: self.since_ms?, bytes: data + self.control.len() })
    }

    /// Returns the payload bytes of the current data frame that have not arrived yet. `None` within a
    /// frame header or a control frame.
    pub(super) fn frame_left(&self) -> Option<u64> {
        match &self.frame {
            _ if self.head_length > 0 => None,
            None => Some(0),
            Some(frame) if frame.head.opcode.is_control() => None,
            Some(frame) => Some(frame.head.length - frame.taken),
        }
    }

    /// Keeps the inflate state of a message that needs more calls.
    pub(super) fn keep_inflating(&mut self, kind: Kind, inflating: Box<Inflating>) {
        self.inflating = Some((kind, inflating));
    }

    /// Takes the inflate state of a message that needs more calls, if there is one.
    pub(super) fn take_inflating(&mut self) -> Option<(Kind, Box<Inflating>)> {
        self.inflating.take()
    }

    /// Returns an inflated message, or keeps the inflate state if the message needs more calls.
    pub(super) fn finish_inflated<'a>(
        &mut self,
        kind: Kind,
        inflated: Inflated,
    ) -> Result<Received<'a>, Violation> {
        match inflated {
            Inflated::Whole(message) => finish(Opcode::Data(kind), Payload::Owned(message)),
            Inflated::Unfinished(inflating) => {
                self.keep_inflating(kind, inflating);
                Ok(Received::Inflating)
            }
        }
    }

    /// Consumes input until a message or control frame is complete, or all input is consumed.
    pub(super) fn read<'a>(
        &mut self,
        input: &mut &'a mut [u8],
        message_bytes_max: usize,
        mut inflater: Option<Inflation<'_>>,
    ) -> Result<Option<Received<'a>>, Violation> {
        while self.frame.is_some() || !input.is_empty() {
            let Some(frame) = &mut self.frame else {
                self.read_head(input, message_bytes_max, inflater.is_some())?;
                continue;
            };
            let length = (frame.head.length - frame.taken).min(input.len() as u64) as usize;
            let bytes = take(input, length);
            unmask(bytes, frame.head.mask, frame.taken as usize & 3);
            frame.taken += length as u64;
            let (head, ends) = (frame.head, frame.taken == frame.head.length);
            self.keep(head.opcode, bytes)?;
            if !ends {
                return Ok(None);
            }
            self.frame = None;
            let inflater = inflater.as_mut().map(Inflation::lend);
            if let Some(received) = self.end_frame(head, message_bytes_max, inflater)? {
                return Ok(Some(received));
            }
        }
        Ok(None)
    }

    fn read_head(
        &mut self,
        input: &mut &mut [u8],
        message_bytes_max: usize,
        may_deflate: bool,
    ) -> Result<(), Violation> {
        let length = (HEAD_BYTES_MAX - self.head_length).min(input.len());
        self.head[self.head_length..][..length].copy_from_slice(&input[..length]);
        let bytes = &self.head[..self.head_length + length];
        let Some(head) = Head::parse(bytes, may_deflate)? else {
            take(input, length);
            self.head_length += length;
            return Ok(());
        };
        take(input, head.size - self.head_length);
        self.head_length = 0;
        self.begin_frame(head, message_bytes_max)
    }

    fn begin_frame(&mut self, head: Head, message_bytes_max: usize) -> Result<(), Violation> {
        match (head.opcode, &self.message) {
            (Opcode::Continuation, None) => return Err(Violation::NothingToContinue),
            (Opcode::Data(_), Some(_)) => return Err(Violation::MessageInsideMessage),
            (Opcode::Data(kind), None) => {
                let is_deflated = head.is_deflated;
                self.message = Some(OpenMessage { kind, is_deflated, data: Vec::new(), valid: 0 });
            }
            _ => {}
        }
        if let Some(message) = self.message.as_ref().filter(|_| !head.opcode.is_control()) {
            let bytes_max = collected_bytes_max(message_bytes_max, message.is_deflated);
            if head.length > (bytes_max - message.data.len()) as u64 {
                return Err(Violation::TooLarge);
            }
        }
        self.frame = Some(OpenFrame { head, taken: 0 });
        Ok(())
    }

    fn keep(&mut self, opcode: Opcode, bytes: &[u8]) -> Result<(), Violation> {
        if opcode.is_control() {
            debug_assert!(self.control.len() + bytes.len() <= CONTROL_BYTES_MAX);
            self.control.extend_from_slice(bytes);
            return Ok(());
        }
        let message = self.message.as_mut().expect("a data frame opens or continues a message");
        message.data.extend_from_slice(bytes);
        match message.kind {
            Kind::Text if !message.is_deflated => message.check_utf8(),
            _ => Ok(()),
        }
    }

    fn end_frame<'a>(
        &mut self,
        head: Head,
        message_bytes_max: usize,
        inflater: Option<Inflation<'_>>,
    ) -> Result<Option<Received<'a>>, Violation> {
        if head.opcode.is_control() {
            self.since_ms = self.since_ms.filter(|_| self.message.is_some());
            let payload = Payload::Owned(std::mem::take(&mut self.control));
            return finish(head.opcode, payload).map(Some);
        }
        if !head.fin {
            return Ok(None);
        }
        let message = self.message.take().expect("a data frame opens or continues a message");
        self.since_ms = None;
        if let Some(inflater) = inflater.filter(|_| message.is_deflated) {
            let inflated = inflater.inflate(&message.data, message_bytes_max)?;
            return self.finish_inflated(message.kind, inflated).map(Some);
        }
        if message.kind == Kind::Text && message.valid < message.data.len() {
            return Err(Violation::NotUtf8);
        }
        Ok(Some(Received::Message(message.kind, Payload::Owned(message.data))))
    }
}

impl OpenMessage {
    /// Checks the bytes that were appended. An incomplete character at the end may still become valid.
    fn check_utf8(&mut self) -> Result<(), Violation> {
        match simdutf8::compat::from_utf8(&self.data[self.valid..]) {
            Ok(text) => self.valid += text.len(),
            Err(error) if error.error_len().is_none() => self.valid += error.valid_up_to(),
            Err(_) => return Err(Violation::NotUtf8),
        }
        Ok(())
    }
}
