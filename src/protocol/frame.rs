//! WebSocket frames: the head of a client's frame decoded, a server's frame encoded
//! (RFC 6455, section 5.2).

use std::fmt;
use std::sync::Arc;

use super::close::{self, Reason};

/// The longest head of a frame: 2 bytes, 8 of length, 4 of mask.
pub const HEAD_BYTES_MAX: usize = 14;

/// The longest payload of a control frame (RFC 6455, section 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

/// Memory that a frame in a queue takes beside its bytes, at most: its place in a queue that has
/// grown by doubling, two pairs of counts of references, and the heads of two allocations.
pub const QUEUED_FRAME_BYTES: usize = 128;

/// What a message is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8 text.
    Text,
    /// Any bytes.
    Binary,
}

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// Goes on with a message.
    Continuation,
    /// Begins a message.
    Data(Kind),
    /// Ends the connection.
    Close,
    /// Asks for a pong.
    Ping,
    /// Answers a ping.
    Pong,
}

impl Opcode {
    fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Data(Kind::Text),
            0x2 => Self::Data(Kind::Binary),
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            _ => return None,
        })
    }

    fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0x0,
            Self::Data(Kind::Text) => 0x1,
            Self::Data(Kind::Binary) => 0x2,
            Self::Close => 0x8,
            Self::Ping => 0x9,
            Self::Pong => 0xA,
        }
    }

    /// Whether it is a control frame: short, whole, allowed between fragments.
    pub fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// How a peer broke the protocol, or a limit of it. The connection is closed with [`Self::reason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A reserved bit is set that no negotiated extension gives a meaning there.
    ReservedBits,
    /// The opcode is not one of RFC 6455.
    UnknownOpcode,
    /// A client's frame is not masked.
    NotMasked,
    /// A control frame is in fragments or over 125 bytes.
    BadControlFrame,
    /// A length in more bytes than it needs, or one of 64 bits with the highest one set.
    BadLength,
    /// A fragment that continues nothing.
    NothingToContinue,
    /// A new message in the middle of a fragmented one.
    MessageInsideMessage,
    /// A close frame with one byte, a code that may not be sent, or a reason that is not UTF-8.
    BadClose,
    /// A text message that is not UTF-8.
    NotUtf8,
    /// A compressed message that is not DEFLATE (RFC 7692, section 7.2.2).
    BadDeflate,
    /// A message over the limit of its listener.
    TooLarge,
}

impl Violation {
    /// What the peer is told.
    pub fn reason(self) -> Reason {
        let text = match self {
            Self::NotUtf8 => return close::INVALID_UTF8,
            Self::BadDeflate => return close::INVALID_DEFLATE,
            Self::TooLarge => return close::TOO_LARGE,
            Self::ReservedBits => "reserved bit set",
            Self::UnknownOpcode => "unknown opcode",
            Self::NotMasked => "frame not masked",
            Self::BadControlFrame => "control frame fragmented or over 125 bytes",
            Self::BadLength => "frame length too large or not in its shortest form",
            Self::NothingToContinue => "nothing to continue",
            Self::MessageInsideMessage => "new message inside a fragmented one",
            Self::BadClose => "bad close frame",
        };
        Reason { text, ..close::PROTOCOL_ERROR }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason().text)
    }
}

/// The reserved bit that marks a compressed message.
const RSV1: u8 = 0x40;

/// The decoded head of a client's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Whether the message ends with this frame.
    pub fin: bool,
    /// Whether the message that begins with it is compressed (RSV1: RFC 7692, section 6).
    pub is_deflated: bool,
    /// What the frame is for.
    pub opcode: Opcode,
    /// The key that its payload is masked with.
    pub mask: [u8; 4],
    /// Bytes of payload.
    pub length: u64,
    /// Bytes of this head, at most [`HEAD_BYTES_MAX`].
    pub size: usize,
}

impl Head {
    /// Decodes the head at the start of `bytes`; `None` while it is not all there. Messages may be
    /// compressed if that `may_deflate` was agreed on.
    ///
    /// # Errors
    /// What can be told to be wrong from the bytes so far is refused at once.
    pub fn parse(bytes: &[u8], may_deflate: bool) -> Result<Option<Self>, Violation> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        let is_deflated = may_deflate && first & RSV1 != 0;
        if first & if is_deflated { 0x30 } else { 0x70 } != 0 {
            return Err(Violation::ReservedBits);
        }
        let fin = first & 0x80 != 0;
        let opcode = Opcode::from_bits(first & 0x0F).ok_or(Violation::UnknownOpcode)?;
        if is_deflated && !matches!(opcode, Opcode::Data(_)) {
            return Err(Violation::ReservedBits);
        }
        let Some(&second) = bytes.get(1) else { return Ok(None) };
        if second & 0x80 == 0 {
            return Err(Violation::NotMasked);
        }
        let short = second & 0x7F;
        if opcode.is_control() && (!fin || usize::from(short) > CONTROL_BYTES_MAX) {
            return Err(Violation::BadControlFrame);
        }
        let Some((length, at)) = read_length(bytes, short)? else { return Ok(None) };
        let Some(mask) = bytes[at..].first_chunk::<4>() else { return Ok(None) };
        Ok(Some(Self { fin, is_deflated, opcode, mask: *mask, length, size: at + 4 }))
    }
}

/// The payload's length and where the mask begins. The shortest form is the only one (RFC 6455,
/// section 5.2): two readers that differ there would see different frames.
fn read_length(bytes: &[u8], short: u8) -> Result<Option<(u64, usize)>, Violation> {
    let rest = &bytes[2..];
    let (read, allowed) = match short {
        126 => {
            let length = rest.first_chunk().map(|&length| u16::from_be_bytes(length));
            (length.map(|length| (length.into(), 4)), 126..1 << 16)
        }
        127 => {
            let length = rest.first_chunk().map(|&length| u64::from_be_bytes(length));
            (length.map(|length| (length, 10)), 1 << 16..1 << 63)
        }
        length => (Some((length.into(), 2)), 0..126),
    };
    match read {
        Some((length, _)) if !allowed.contains(&length) => Err(Violation::BadLength),
        read => Ok(read),
    }
}

/// Appends the head of an unmasked, unfragmented server frame.
pub fn put_head(out: &mut Vec<u8>, opcode: Opcode, length: usize) {
    let first = 0x80 | opcode.bits();
    match length {
        0..=125 => out.extend_from_slice(&[first, length as u8]),
        126..=0xFFFF => {
            let [high, low] = (length as u16).to_be_bytes();
            out.extend_from_slice(&[first, 126, high, low]);
        }
        _ => {
            out.extend_from_slice(&[first, 127]);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

/// Appends a whole server frame.
pub fn put_frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    put_head(out, opcode, payload.len());
    out.extend_from_slice(payload);
}

/// Appends a close frame; the reason is cut to what fits a control frame.
pub fn put_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    let reason = &reason[..reason.floor_char_boundary(CONTROL_BYTES_MAX - 2)];
    put_head(out, Opcode::Close, 2 + reason.len());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

/// What a frame of one whole message is made of.
#[derive(Clone, Copy, Debug)]
pub struct Body<'a> {
    /// What the message is.
    pub kind: Kind,
    /// Its payload.
    pub bytes: &'a [u8],
    /// Whether the payload is compressed.
    pub is_deflated: bool,
}

impl Body<'_> {
    /// Bytes of its frame.
    pub fn frame_bytes(&self) -> usize {
        let head = match self.bytes.len() {
            0..=125 => 2,
            126..=0xFFFF => 4,
            _ => 10,
        };
        head + self.bytes.len()
    }

    /// Appends its frame.
    pub fn put(&self, out: &mut Vec<u8>) {
        let start = out.len();
        put_frame(out, Opcode::Data(self.kind), self.bytes);
        if self.is_deflated {
            out[start] |= RSV1;
        }
    }
}

/// An encoded server frame: the same bytes for every receiver, on every core and node, since
/// server frames are not masked. A clone is a reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame(Arc<[u8]>);

impl Frame {
    /// Takes bytes that are one or more whole server frames.
    pub fn from_encoded(bytes: &[u8]) -> Self {
        Self(Arc::from(bytes))
    }

    /// The frame of one whole message.
    pub fn message(kind: Kind, payload: &[u8]) -> Self {
        Self::of(&Body { kind, bytes: payload, is_deflated: false })
    }

    /// The frame of a message that may be compressed.
    pub fn of(body: &Body<'_>) -> Self {
        let mut bytes = Vec::with_capacity(body.frame_bytes());
        body.put(&mut bytes);
        Self::from_encoded(&bytes)
    }

    /// These and then the others.
    pub fn followed_by(&self, others: &Self) -> Self {
        Self::from_encoded(&[self.bytes(), others.bytes()].concat())
    }

    /// What the message that its first frame, the only one, carries is.
    pub fn kind(&self) -> Kind {
        match self.0.first().map(|first| first & 0x0F) {
            Some(0x2) => Kind::Binary,
            _ => Kind::Text,
        }
    }

    /// The bytes that go on the wire.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// How many references to the bytes there are, on all cores; this one included.
    pub fn references(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// What its first frame, the only one of a message, carries.
    pub fn payload(&self) -> &[u8] {
        let head = match self.0.get(1) {
            Some(126) => 4,
            Some(127) => 10,
            _ => 2,
        };
        self.0.get(head..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked_head(length: u64) -> Vec<u8> {
        let mut out = Vec::new();
        put_head(&mut out, Opcode::Data(Kind::Binary), length as usize);
        out[1] |= 0x80;
        out.extend_from_slice(&[1, 2, 3, 4]);
        out
    }

    #[test]
    fn every_length_class_decodes_at_its_last_byte_and_no_sooner() {
        for length in [0, 1, 125, 126, 127, 65535, 65536, 1 << 40] {
            let bytes = masked_head(length);
            for end in 0..bytes.len() {
                assert_eq!(Head::parse(&bytes[..end], false), Ok(None), "{length} {end}");
            }
            let head = Head::parse(&bytes, false).unwrap().unwrap();
            assert_eq!((head.length, head.size), (length, bytes.len()));
            assert_eq!((head.fin, head.mask), (true, [1, 2, 3, 4]));
        }
    }

    #[test]
    fn a_broken_head_is_refused_for_what_is_wrong_with_it() {
        let cases: [(&[u8], Violation); 12] = [
            (&[0xC1], Violation::ReservedBits),
            (&[0x83], Violation::UnknownOpcode),
            (&[0x8B], Violation::UnknownOpcode),
            (&[0x81, 0x05], Violation::NotMasked),
            (&[0x09, 0x80], Violation::BadControlFrame),
            (&[0x89, 0xFE], Violation::BadControlFrame),
            (&[0x88, 0xFF], Violation::BadControlFrame),
            (&[0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0], Violation::BadLength),
            (&[0x82, 0xFE, 0, 0], Violation::BadLength),
            (&[0x82, 0xFE, 0, 125], Violation::BadLength),
            (&[0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0, 126], Violation::BadLength),
            (&[0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF], Violation::BadLength),
        ];
        for (bytes, violation) in cases {
            assert_eq!(Head::parse(bytes, false), Err(violation));
        }
    }

    #[test]
    fn only_the_first_frame_of_a_message_may_say_that_it_is_compressed() {
        let is_deflated = |first| {
            let head = Head::parse(&[first, 0x80, 1, 2, 3, 4], true);
            head.map(|head| head.expect("it is all there").is_deflated)
        };
        for (first, expected) in [(0xC1, true), (0x42, true), (0x81, false), (0x80, false)] {
            assert_eq!(is_deflated(first), Ok(expected), "{first:#x}");
        }
        for first in [0xC0, 0xC8, 0xC9, 0xCA, 0xE1, 0xD1, 0xA1, 0x91] {
            assert_eq!(is_deflated(first), Err(Violation::ReservedBits), "{first:#x}");
        }
    }

    #[test]
    fn a_body_knows_the_length_of_its_frame_and_the_frame_what_it_carries() {
        for (length, is_deflated) in [(0, false), (125, true), (126, false), (65_536, true)] {
            for kind in [Kind::Text, Kind::Binary] {
                let bytes = &vec![b'x'; length][..];
                let body = Body { kind, bytes, is_deflated };
                let frame = Frame::of(&body);
                assert_eq!(frame.bytes().len(), body.frame_bytes());
                assert_eq!((frame.kind(), frame.payload()), (kind, bytes));
                assert_eq!(frame.bytes()[0] & RSV1 != 0, is_deflated);
            }
        }
    }

    #[test]
    fn a_close_reason_is_cut_between_characters() {
        let mut out = Vec::new();
        put_close(&mut out, 1000, &"é".repeat(100));
        assert_eq!(usize::from(out[1]), out.len() - 2);
        assert_eq!(std::str::from_utf8(&out[4..]).unwrap().chars().count(), 61);
    }
}
