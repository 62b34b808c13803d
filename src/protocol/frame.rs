//! WebSocket frames: decodes the header of client frames and encodes server frames (RFC 6455, section
//! 5.2).

use std::fmt;
use std::sync::Arc;

use super::close::{self, Reason};

/// The longest frame header, in bytes: 2, then 8 of length and 4 of mask.
pub const HEAD_BYTES_MAX: usize = 14;

/// The longest payload of a control frame, in bytes (RFC 6455, section 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

/// The most memory that a queued frame takes in addition to its bytes: its slot in a queue that grows
/// by doubling, two pairs of reference counts, and the headers of two allocations.
pub const QUEUED_FRAME_BYTES: usize = 128;

/// The type of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8 text.
    Text,
    /// Arbitrary bytes.
    Binary,
}

/// The opcode of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// Continues a fragmented message.
    Continuation,
    /// Begins a message; the whole message if the frame is final.
    Data(Kind),
    /// Starts or confirms the closing handshake.
    Close,
    /// Requests a pong.
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

    /// Whether this is a control frame: at most 125 bytes, never fragmented, allowed between the
    /// fragments of a message.
    pub fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// A violation of the protocol or of a limit by the peer. The connection is closed with
/// [`Self::reason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A reserved bit is set to which no negotiated extension gives a meaning.
    ReservedBits,
    /// The opcode is not defined in RFC 6455.
    UnknownOpcode,
    /// A client's frame is not masked.
    NotMasked,
    /// A control frame is fragmented or longer than 125 bytes.
    BadControlFrame,
    /// A length is not in its shortest form, or has the highest of its 64 bits set.
    BadLength,
    /// A continuation frame arrived, but no message is in progress.
    NothingToContinue,
    /// A new message began before a fragmented one had ended.
    MessageInsideMessage,
    /// A close frame has a payload of one byte or a code that may not be sent.
    BadClose,
    /// A text message or a close reason is not valid UTF-8.
    NotUtf8,
    /// A compressed message is not valid DEFLATE (RFC 7692, section 7.2.2).
    BadDeflate,
    /// A message exceeds the size limit of its listener.
    TooLarge,
}

impl Violation {
    /// Returns the close code and text to send to the peer.
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
            Self::NothingToContinue => "continuation frame without a message in progress",
            Self::MessageInsideMessage => "new message before the fragmented one ended",
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

/// The decoded header of a client frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Whether this frame is the last of its message.
    pub fin: bool,
    /// Whether the message that begins with this frame is compressed (RSV1: RFC 7692, section 6).
    pub is_deflated: bool,
    /// The frame's opcode.
    pub opcode: Opcode,
    /// The masking key of the payload.
    pub mask: [u8; 4],
    /// The length of the payload, in bytes.
    pub length: u64,
    /// The length of this header, in bytes: at most [`HEAD_BYTES_MAX`].
    pub size: usize,
}

impl Head {
    /// Decodes the header at the start of `bytes`. Returns `None` if more bytes are needed.
    /// `may_deflate`: compression was negotiated, so a message may be compressed.
    ///
    /// # Errors
    /// A violation is reported as soon as the bytes so far show it, before the header is complete.
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

/// Returns the payload's length and the offset of the mask. Only the shortest form of a length is valid
/// (RFC 6455, section 5.2): two parsers that disagree on it would see different frames.
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

/// Appends the header of a server frame: unmasked and not fragmented.
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

/// Returns the length of a frame with a payload of this length, in bytes.
pub fn message_bytes(payload: usize) -> usize {
    let head = match payload {
        0..=125 => 2,
        126..=0xFFFF => 4,
        _ => 10,
    };
    head + payload
}

/// Appends a complete server frame.
pub fn put_frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    put_head(out, opcode, payload.len());
    out.extend_from_slice(payload);
}

/// Appends a close frame. The reason is truncated to fit in a control frame.
pub fn put_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    let reason = &reason[..reason.floor_char_boundary(CONTROL_BYTES_MAX - 2)];
    put_head(out, Opcode::Close, 2 + reason.len());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

/// The payload of a frame that holds one whole message.
#[derive(Clone, Copy, Debug)]
pub struct Body<'a> {
    /// The type of the message.
    pub kind: Kind,
    /// The payload.
    pub bytes: &'a [u8],
    /// Whether the payload is compressed.
    pub is_deflated: bool,
}

impl Body<'_> {
    /// Returns the length of the encoded frame, in bytes.
    pub fn frame_bytes(&self) -> usize {
        message_bytes(self.bytes.len())
    }

    /// Appends the encoded frame.
    pub fn put(&self, out: &mut Vec<u8>) {
        let start = out.len();
        put_frame(out, Opcode::Data(self.kind), self.bytes);
        if self.is_deflated {
            out[start] |= RSV1;
        }
    }
}

/// An encoded server frame. Server frames are not masked, so the same bytes serve every receiver on
/// every core and node. Cloning only adds a reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame(Arc<[u8]>);

impl Frame {
    /// Creates a frame from bytes that already are one or more complete server frames.
    pub fn from_encoded(bytes: &[u8]) -> Self {
        Self(Arc::from(bytes))
    }

    /// Encodes an uncompressed message.
    pub fn message(kind: Kind, payload: &[u8]) -> Self {
        Self::of(&Body { kind, bytes: payload, is_deflated: false })
    }

    /// Encodes a message that may be compressed.
    pub fn of(body: &Body<'_>) -> Self {
        let mut bytes = Vec::with_capacity(body.frame_bytes());
        body.put(&mut bytes);
        Self::from_encoded(&bytes)
    }

    /// Concatenates this frame and `others`.
    pub fn followed_by(&self, others: &Self) -> Self {
        Self::from_encoded(&[self.bytes(), others.bytes()].concat())
    }

    /// Returns the type of the message in the first frame.
    pub fn kind(&self) -> Kind {
        match self.0.first().map(|first| first & 0x0F) {
            Some(0x2) => Kind::Binary,
            _ => Kind::Text,
        }
    }

    /// Returns the bytes to put on the wire.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the number of references to the bytes on all cores, including this one.
    pub fn references(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// Returns the payload of a frame that holds one message.
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
