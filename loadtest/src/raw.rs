//! Handshakes and frames as plain bytes (RFC 6455), for misbehaving and for fast peers.

/// The handshake request for a WebSocket on `path`.
pub fn upgrade_request(path: &str) -> String {
    upgrade_request_with(path, "")
}

/// The handshake request for a WebSocket on `path`, with additional header lines.
pub fn upgrade_request_with(path: &str, lines: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{lines}\r\n"
    )
}

/// The header that accepts the key in [`request`] (RFC 6455, section 1.3).
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The end of a response's head.
pub const HEAD_END: &[u8] = b"\r\n\r\n";

/// The FIN bit in the first byte of a message's last frame.
pub const FIN: u8 = 0x80;

/// The RSV1 bit in the first byte of a compressed message (RFC 7692, section 6).
pub const COMPRESSED: u8 = 0x40;

/// The first byte of an unfragmented text message.
pub const TEXT: u8 = 0x81;

/// The first byte of an unfragmented binary message.
pub const BINARY: u8 = 0x82;

/// The first byte of a ping.
pub const PING: u8 = 0x89;

/// The first byte of a pong.
pub const PONG: u8 = 0x8a;

/// The first byte of a close.
pub const CLOSE: u8 = 0x88;

/// A frame of a server.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// FIN and opcode.
    pub first: u8,
    /// The payload.
    pub payload: &'a [u8],
}

/// The first frame in the bytes of a server, and the rest. `None`: the frame is incomplete.
pub fn take_frame(bytes: &[u8]) -> Option<(Frame<'_>, &[u8])> {
    let (&[first, second], rest) = bytes.split_first_chunk()?;
    let (length, rest) = match second {
        126 => {
            let (length, rest) = rest.split_first_chunk()?;
            (u16::from_be_bytes(*length).into(), rest)
        }
        127 => {
            let (length, rest) = rest.split_first_chunk()?;
            (usize::try_from(u64::from_be_bytes(*length)).ok()?, rest)
        }
        length => (length.into(), rest),
    };
    let (payload, rest) = rest.split_at_checked(length)?;
    Some((Frame { first, payload }, rest))
}

/// A client's frame with the first byte (FIN and opcode) `first`. The mask is zero, which leaves the payload
/// unchanged.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    put_frame(&mut frame, first, [0; 4], &[payload]);
    frame
}

/// Appends a client's frame with the payload in `parts`, masked with `mask`.
pub fn put_frame(out: &mut Vec<u8>, first: u8, mask: [u8; 4], parts: &[&[u8]]) {
    out.push(first);
    match parts.iter().map(|part| part.len()).sum() {
        length @ ..126 => out.push(0x80 | length as u8),
        length @ ..65_536 => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    let start = out.len();
    parts.iter().for_each(|part| out.extend_from_slice(part));
    apply_mask(&mut out[start..], mask);
}

/// Masks in words of 16 bytes, which is faster than byte by byte.
fn apply_mask(payload: &mut [u8], mask: [u8; 4]) {
    let wide = u128::from_ne_bytes(std::array::from_fn(|at| mask[at % 4]));
    let (words, tail) = payload.as_chunks_mut();
    for word in words {
        *word = (u128::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

/// A text message in fragments of one byte each.
pub fn in_fragments(text: &[u8]) -> Vec<u8> {
    let last = text.len().saturating_sub(1);
    let fragments = text.chunks(1).enumerate().flat_map(|(at, byte)| {
        let opcode = if at == 0 { 0x01 } else { 0x00 };
        let fin = if at == last { 0x80 } else { 0x00 };
        frame(fin | opcode, byte)
    });
    fragments.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_tells_its_length_in_the_shortest_form() {
        for (length, head) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            assert_eq!(frame(TEXT, &vec![b'x'; length]).len(), head + 4 + length);
        }
    }

    #[test]
    fn every_byte_is_masked_with_its_own_of_the_mask() {
        let mask = [0x12, 0x34, 0x56, 0x78];
        for length in 0..100 {
            let payload: Vec<u8> = (0..length).collect();
            let (one, two) = payload.split_at(payload.len() / 3);
            let mut frame = b"before".to_vec();
            put_frame(&mut frame, BINARY, mask, &[one, two]);
            let masked: Vec<u8> =
                payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
            let head = [BINARY, 0x80 | length];
            assert_eq!(frame, [b"before", &head[..], &mask, &masked].concat());
        }
    }

    #[test]
    fn a_frame_is_taken_when_it_is_all_here() {
        for (length, head) in [
            (3, vec![TEXT, 3]),
            (300, vec![TEXT, 126, 1, 44]),
            (65_536, vec![TEXT, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let payload = vec![b'x'; length];
            let bytes = [&head[..], &payload, b"rest"].concat();
            let frame = Frame { first: TEXT, payload: &payload };
            assert_eq!(take_frame(&bytes), Some((frame, &b"rest"[..])));
            for end in [0, 1, head.len() - 1, head.len(), head.len() + length - 1] {
                assert_eq!(take_frame(&bytes[..end]), None, "{end} of {length}");
            }
        }
    }

    #[test]
    fn fragments_begin_with_the_opcode_and_end_with_fin() {
        let frames = in_fragments(b"abc");
        let firsts: Vec<_> = frames.chunks(7).map(|frame| frame[0]).collect();
        assert_eq!(firsts, [0x01, 0x00, 0x80]);
    }
}
