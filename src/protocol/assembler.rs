//! A client's bytes → whole messages and control frames, unmasked, with UTF-8 checked as it
//! arrives; of compressed messages when they are whole.

use std::ops::{Deref, DerefMut};

use super::close::{self, Closed};
use super::deflate::{History, Inflated, Inflater, Inflating, deflated_bytes_max};
use super::frame::{CONTROL_BYTES_MAX, HEAD_BYTES_MAX, Head, Kind, Opcode, Violation};
use super::mask::unmask;

/// What a connection received. A frame that was whole in its input is borrowed from there.
#[derive(Debug)]
pub enum Received<'a> {
    /// A whole message; text is valid UTF-8.
    Message(Kind, Payload<'a>),
    /// A ping, to be answered with the same bytes.
    Ping(Payload<'a>),
    /// A pong.
    Pong,
    /// The peer ends the connection.
    Close(Closed),
    /// A part of a long compressed message was inflated. Reading goes on with it, though no more
    /// input is there: the caller decides when.
    Inflating,
}

/// Bytes that may be overwritten in place, borrowed from the input or owned.
#[derive(Debug)]
pub enum Payload<'a> {
    /// Within the input.
    Borrowed(&'a mut [u8]),
    /// Put together from several inputs, or inflated.
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

/// The reading state of one WebSocket connection: two pointers while no frame is half read.
#[derive(Debug, Default)]
pub struct Assembler {
    partial: Option<Box<Partial>>,
    // What compressed messages may refer back to; `None`: each stands alone.
    history: Option<Box<History>>,
}

/// A message or a frame that is begun and not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// When it was first noted, on the caller's clock.
    pub since_ms: u64,
    /// Bytes of it so far, heads of frames not counted.
    pub bytes: usize,
}

impl Assembler {
    /// Whether no frame and no message is half read.
    pub fn is_idle(&self) -> bool {
        self.partial.is_none()
    }

    /// For a peer whose compressed messages may refer so far back to those before them.
    pub fn with_history(bytes_max: usize) -> Self {
        let history = (bytes_max > 0).then(|| Box::new(History::new(bytes_max)));
        Self { partial: None, history }
    }

    /// Memory that the half-read message takes, and what the next one may refer back to.
    pub fn held_bytes(&self) -> usize {
        let message = |partial: &Partial| {
            let open = partial.message.as_ref().map_or(0, |open| open.data.capacity());
            let inflating = partial.inflating.as_ref().map_or(0, |(_, state)| state.held_bytes());
            size_of::<Partial>() + open + inflating
        };
        let history = self.history.as_deref().map_or(0, History::held_bytes);
        self.partial.as_deref().map_or(0, message) + history
    }

    /// Notes the time for a message or frame that is half read, if this is the first time. To be called
    /// when [`Self::read`] gave nothing.
    pub fn note_unfinished(&mut self, now_ms: u64) {
        if let Some(partial) = &mut self.partial {
            partial.since_ms.get_or_insert(now_ms);
        }
    }

    /// The message or frame that is half read, if one was noted.
    pub fn unfinished(&self) -> Option<Unfinished> {
        let partial = self.partial.as_ref()?;
        let data = partial.message.as_ref().map_or(0, |message| message.data.len());
        Some(Unfinished { since_ms: partial.since_ms?, bytes: data + partial.control.len() })
    }

    /// Bytes of a data frame that is half read and still to come, 0 between frames; `None` within a head
    /// or a control frame.
    pub fn frame_left(&self) -> Option<u64> {
        let Some(partial) = &self.partial else { return Some(0) };
        match &partial.frame {
            _ if partial.head_length > 0 => None,
            None => Some(0),
            Some(frame) if frame.head.opcode.is_control() => None,
            Some(frame) => Some(frame.head.length - frame.taken),
        }
    }

    /// Takes bytes from the front of `input` until something is whole; `None` when all of it was
    /// taken and nothing is. A message may have `message_bytes_max` bytes over all its fragments,
    /// however many they are; memory is taken as bytes arrive, not as lengths are announced. Messages
    /// may be compressed if that was agreed on: then there is an `inflater`, the same limit holds for
    /// what they inflate to, and little more for what is collected before.
    ///
    /// # Errors
    /// After a [`Violation`] the connection is to be closed and nothing more to be read.
    pub fn read<'a>(
        &mut self,
        input: &mut &'a mut [u8],
        message_bytes_max: usize,
        inflater: Option<&mut Inflater>,
    ) -> Result<Option<Received<'a>>, Violation> {
        let history = self.history.as_deref_mut();
        let mut inflation = inflater.map(|inflater| Inflation { inflater, history });
        if self.partial.is_none() {
            let inflater = inflation.as_mut().map(Inflation::lend);
            match read_whole(input, message_bytes_max, inflater)? {
                Some(Whole::Received(received)) => return Ok(Some(received)),
                Some(Whole::Inflating(kind, inflating)) => {
                    self.partial.get_or_insert_default().inflating = Some((kind, inflating));
                    return Ok(Some(Received::Inflating));
                }
                None if input.is_empty() => return Ok(None),
                None => {}
            }
        }
        let partial = self.partial.get_or_insert_default();
        let received = match (partial.inflating.take(), inflation) {
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

/// What inflates the messages of one connection.
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

/// What a frame that was whole in its input came to.
enum Whole<'a> {
    Received(Received<'a>),
    Inflating(Kind, Box<Inflating>),
}

/// The fast path: a frame that is whole in `input` and is a message or a control frame of its own.
fn read_whole<'a>(
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
    Ok(Some(Whole::Received(finish(head.opcode, payload)?)))
}

/// The most bytes of a message's frames.
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

/// What a whole frame or message means. Text is checked here unless it was while it arrived.
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

/// A frame or a message of which a part is here.
#[derive(Debug, Default)]
struct Partial {
    // The head of the next frame as far as it came: head_length <= 14.
    head: [u8; HEAD_BYTES_MAX],
    head_length: usize,
    frame: Option<OpenFrame>,
    message: Option<OpenMessage>,
    control: Vec<u8>,
    // A message that is all here and half inflated.
    inflating: Option<(Kind, Box<Inflating>)>,
    // When what is half read was first noted.
    since_ms: Option<u64>,
}

#[derive(Debug)]
struct OpenFrame {
    head: Head,
    // 0 <= taken <= head.length
    taken: u64,
}

#[derive(Debug)]
struct OpenMessage {
    kind: Kind,
    is_deflated: bool,
    data: Vec<u8>,
    // Bytes of data known to be whole UTF-8 characters; at most 3 less than data.len().
    valid: usize,
}

impl Partial {
    fn is_idle(&self) -> bool {
        self.head_length == 0
            && self.frame.is_none()
            && self.message.is_none()
            && self.inflating.is_none()
    }

    /// What a compressed message is as far as it is inflated.
    fn finish_inflated<'a>(
        &mut self,
        kind: Kind,
        inflated: Inflated,
    ) -> Result<Received<'a>, Violation> {
        match inflated {
            Inflated::Whole(message) => finish(Opcode::Data(kind), Payload::Owned(message)),
            Inflated::Unfinished(inflating) => {
                self.inflating = Some((kind, inflating));
                Ok(Received::Inflating)
            }
        }
    }

    fn read<'a>(
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
    /// Checks what is new. A character that is not all here may still become valid.
    fn check_utf8(&mut self) -> Result<(), Violation> {
        match simdutf8::compat::from_utf8(&self.data[self.valid..]) {
            Ok(text) => self.valid += text.len(),
            Err(error) if error.error_len().is_none() => self.valid += error.valid_up_to(),
            Err(_) => return Err(Violation::NotUtf8),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One masked frame; `first` is its first byte.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        crate::protocol::frame::put_head(&mut out, Opcode::Ping, payload.len());
        out[0] = first;
        out[1] |= 0x80;
        out.extend_from_slice(&[9, 8, 7, 6]);
        let start = out.len();
        out.extend_from_slice(payload);
        unmask(&mut out[start..], [9, 8, 7, 6], 0);
        out
    }

    fn describe(received: Received<'_>) -> String {
        match received {
            Received::Message(kind, data) => {
                format!("{kind:?} {}", String::from_utf8_lossy(&data))
            }
            Received::Ping(data) => format!("ping {}", String::from_utf8_lossy(&data)),
            Received::Pong => "pong".into(),
            Received::Close(closed) => format!("close {:?} {}", closed.code, closed.reason),
            Received::Inflating => "inflating".into(),
        }
    }

    /// Feeds `bytes` in the pieces that `cuts` make; gives what came out, a violation last.
    fn feed(bytes: &[u8], cuts: &[usize], max: usize) -> Vec<String> {
        feed_with(None, bytes, cuts, max)
    }

    fn feed_with(
        mut inflater: Option<&mut Inflater>,
        bytes: &[u8],
        cuts: &[usize],
        max: usize,
    ) -> Vec<String> {
        let mut assembler = Assembler::default();
        let mut out = Vec::new();
        let mut from = 0;
        for &to in cuts.iter().chain([&bytes.len()]) {
            let mut piece = bytes[from..to].to_vec();
            let mut input = &mut piece[..];
            from = to;
            loop {
                match assembler.read(&mut input, max, inflater.as_deref_mut()) {
                    Ok(Some(received)) => out.push(describe(received)),
                    Ok(None) => break,
                    Err(violation) => {
                        out.push(format!("{violation:?}"));
                        return out;
                    }
                }
            }
            assert!(input.is_empty());
        }
        out
    }

    fn assert_at_every_split(bytes: &[u8], expected: &[&str], max: usize) {
        assert_with_at_every_split(None, bytes, expected, max);
    }

    fn assert_with_at_every_split(
        mut inflater: Option<&mut Inflater>,
        bytes: &[u8],
        expected: &[&str],
        max: usize,
    ) {
        let mut feed = |cuts: &[usize]| feed_with(inflater.as_deref_mut(), bytes, cuts, max);
        assert_eq!(feed(&[]), expected, "whole");
        let every: Vec<usize> = (1..bytes.len()).collect();
        assert_eq!(feed(&every), expected, "byte by byte");
        for cut in 1..bytes.len() {
            assert_eq!(feed(&[cut]), expected, "split at {cut}");
            for second in cut..bytes.len().min(cut + 20) {
                assert_eq!(feed(&[cut, second]), expected, "{cut} {second}");
            }
        }
    }

    /// A message compressed by another implementation.
    fn deflated(message: &[u8]) -> Vec<u8> {
        [&miniz_oxide::deflate::compress_to_vec(message, 6)[..], &[0]].concat()
    }

    #[test]
    fn messages_and_control_frames_come_out_the_same_at_every_split() {
        let bytes = [
            frame(0x81, "grüße".as_bytes()),
            frame(0x82, &[0x41; 300]),
            frame(0x89, b"are you there"),
            frame(0x8A, b""),
            frame(0x81, b""),
            frame(0x88, &[0x03, 0xE8, b'b', b'y', b'e']),
        ]
        .concat();
        let binary = format!("Binary {}", "A".repeat(300));
        let expected =
            ["Text grüße", &binary, "ping are you there", "pong", "Text ", "close Some(1000) bye"];
        assert_at_every_split(&bytes, &expected, 1000);
    }

    #[test]
    fn fragments_are_put_together_with_control_frames_between_them() {
        let text = "añb€c😀".as_bytes();
        let bytes = [
            frame(0x01, &text[..2]),
            frame(0x89, b"!"),
            frame(0x00, &text[2..6]),
            frame(0x00, b""),
            frame(0x80, &text[6..]),
            frame(0x82, b"z"),
        ]
        .concat();
        assert_at_every_split(&bytes, &["ping !", "Text añb€c😀", "Binary z"], 1000);
    }

    #[test]
    fn what_breaks_the_protocol_is_named_at_every_split() {
        let cases: [(Vec<Vec<u8>>, &[&str]); 9] = [
            (vec![frame(0x80, b"x")], &["NothingToContinue"]),
            (vec![frame(0x01, b"x"), frame(0x81, b"y")], &["MessageInsideMessage"]),
            (vec![frame(0x81, &[0xFF])], &["NotUtf8"]),
            (vec![frame(0x81, &[0xE2, 0x82])], &["NotUtf8"]),
            (vec![frame(0x01, &[0xE2, 0x82]), frame(0x80, &[0x41])], &["NotUtf8"]),
            (vec![frame(0x88, &[0x03])], &["BadClose"]),
            (vec![frame(0x88, &[0x03, 0xED])], &["BadClose"]),
            (vec![frame(0x88, &[0x03, 0xE8, 0xFF])], &["NotUtf8"]),
            (vec![frame(0x81, b"fine"), frame(0xA1, b"")], &["Text fine", "ReservedBits"]),
        ];
        for (frames, expected) in cases {
            assert_at_every_split(&frames.concat(), expected, 1000);
        }
    }

    #[test]
    fn invalid_text_is_refused_before_its_message_is_whole() {
        let whole = frame(0x81, &[b'a', 0xFF, b'b', b'b', b'b', b'b']);
        assert_eq!(feed(&whole[..8], &[], 1000), ["NotUtf8"]);
    }

    #[test]
    fn the_limit_counts_the_bytes_of_all_fragments_and_not_their_number() {
        let fragments = |count: usize| {
            let mut frames = vec![frame(0x02, b"x")];
            frames.extend((1..count - 1).map(|_| frame(0x00, b"x")));
            frames.push(frame(0x80, b"x"));
            frames.concat()
        };
        assert_eq!(feed(&fragments(500), &[], 500).len(), 1);
        assert_eq!(feed(&fragments(501), &[], 500), ["TooLarge"]);
        assert_at_every_split(&frame(0x82, &[0; 11]), &["TooLarge"], 10);
    }

    #[test]
    fn compressed_messages_come_out_the_same_at_every_split_between_those_that_are_not() {
        let mut inflater = Inflater::default();
        let (text, long) = ("grüße ".repeat(9), "a".repeat(1000));
        let (first, second) = (deflated(text.as_bytes()), deflated(long.as_bytes()));
        let bytes = [
            frame(0xC1, &first),
            frame(0x81, b"plain"),
            frame(0x42, &second[..3]),
            frame(0x89, b"!"),
            frame(0x00, &second[3..5]),
            frame(0x80, &second[5..]),
            frame(0xC1, &[0]),
            frame(0x82, b"z"),
        ]
        .concat();
        let (text, long) = (format!("Text {text}"), format!("Binary {long}"));
        let expected = [&text[..], "Text plain", "ping !", &long, "Text ", "Binary z"];
        assert_with_at_every_split(Some(&mut inflater), &bytes, &expected, 1000);
        assert_at_every_split(&bytes, &["ReservedBits"], 1000);
    }

    #[test]
    fn what_is_wrong_with_a_compressed_message_is_named_at_every_split() {
        let mut inflater = Inflater::default();
        let not_utf8 = deflated(&[b'a', 0xFF]);
        let bomb = deflated(&[0; 101]);
        let incompressible = [vec![0, 100, 0, 0x9B, 0xFF], vec![b'x'; 100], vec![0]].concat();
        let cases: [(Vec<Vec<u8>>, &str); 8] = [
            (vec![frame(0xC1, &not_utf8)], "NotUtf8"),
            (vec![frame(0x41, &not_utf8[..2]), frame(0x80, &not_utf8[2..])], "NotUtf8"),
            (vec![frame(0xC2, b"no DEFLATE")], "BadDeflate"),
            (vec![frame(0xC2, &bomb)], "TooLarge"),
            (vec![frame(0x42, &bomb[..2]), frame(0x80, &bomb[2..])], "TooLarge"),
            (vec![frame(0xC2, &[0; 200])], "TooLarge"),
            (vec![frame(0x42, &[0; 100]), frame(0x00, &[0; 100])], "TooLarge"),
            (vec![frame(0x42, &bomb[..2]), frame(0xC0, &bomb[2..])], "ReservedBits"),
        ];
        for (frames, expected) in cases {
            assert_with_at_every_split(Some(&mut inflater), &frames.concat(), &[expected], 100);
        }
        let expected = format!("Binary {}", "x".repeat(100));
        let whole = frame(0xC2, &incompressible);
        assert_with_at_every_split(Some(&mut inflater), &whole, &[&expected], 100);
    }

    #[test]
    fn a_message_is_unfinished_since_its_first_byte_whatever_control_frames_come_between() {
        let mut assembler = Assembler::default();
        let mut feed = |now_ms, bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            let mut input = &mut bytes[..];
            while assembler.read(&mut input, 100, None).unwrap().is_some() {}
            assembler.note_unfinished(now_ms);
            assembler.unfinished().map(|unfinished| (unfinished.since_ms, unfinished.bytes))
        };
        assert_eq!(feed(1, &frame(0x81, b"whole")), None);
        assert_eq!(feed(2, &frame(0x01, b"abc")), Some((2, 3)));
        assert_eq!(feed(3, &frame(0x89, b"?")), Some((2, 3)));
        assert_eq!(feed(4, &frame(0x89, b"?")[..3]), Some((2, 3)));
        assert_eq!(feed(5, &frame(0x89, b"?")[3..]), Some((2, 3)));
        assert_eq!(feed(6, &frame(0x00, b"")), Some((2, 3)));
        assert_eq!(feed(7, &frame(0x80, b"de")), None);
        assert_eq!(feed(8, &frame(0x89, b"?")[..2]), Some((8, 0)));
        assert_eq!(feed(9, &frame(0x89, b"?")[2..]), None);
        // The next one begins in the bytes that end the one before.
        assert_eq!(feed(10, &frame(0x01, b"a")), Some((10, 1)));
        assert_eq!(feed(11, &[frame(0x80, b"b"), frame(0x01, b"c")].concat()), Some((11, 1)));
    }

    #[test]
    fn a_connection_between_frames_keeps_no_buffer() {
        let mut assembler = Assembler::default();
        let mut bytes = [frame(0x01, b"a"), frame(0x80, b"b")].concat();
        let (mut first, mut second) = bytes.split_at_mut(3);
        assert!(assembler.read(&mut first, 10, None).unwrap().is_none());
        assert!(assembler.partial.is_some());
        assert!(assembler.read(&mut second, 10, None).unwrap().is_some());
        assert!(assembler.partial.is_none());
    }
}
