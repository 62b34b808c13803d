//! The output that was written to one peer.

use gridcast::protocol::deflate::{Inflated, Inflater};
use serde::de::IgnoredAny;

/// Responses, then the frames of a WebSocket if it became one. The connection may have broken
/// anywhere, so the last of them may be a part.
pub fn check(written: &[u8], is_backend: bool) {
    let is_response = written.iter().zip(b"HTTP/1.1 ").all(|(byte, expected)| byte == expected);
    assert!(is_response, "a response comes first: {}", written.escape_ascii());
    let Some(start) = find(written, b"HTTP/1.1 101 ") else { return };
    let Some(end) = find(&written[start..], b"\r\n\r\n") else { return };
    let mut rest = &written[start + end + 4..];
    let is_compressed =
        find(&written[..written.len() - rest.len()], b"permessage-deflate").is_some();
    let mut is_over = false;
    while let Some((first, payload, after)) = split_frame(rest) {
        assert!(!is_over, "nothing follows a close frame");
        is_over = first == 0x88;
        if first & 0x40 != 0 {
            assert!(is_compressed, "{first:#x} was not agreed on");
            let inflated = Inflater::default().inflate(payload, 256, None).expect("it is DEFLATE");
            let Inflated::Whole(message) = inflated else { panic!("more than one call") };
            assert!(message.len() > payload.len());
            check_frame(first & !0x40, &message, is_backend);
        } else {
            check_frame(first, payload, is_backend);
        }
        rest = after;
    }
    assert!(!is_over || rest.is_empty(), "nothing follows a close frame");
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

/// First byte, payload and rest of a frame that is whole.
fn split_frame(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    assert!(
        [0x81, 0x82, 0xC1, 0xC2, 0x88, 0x89, 0x8A].contains(&first),
        "not a server's frame: {first:#x}"
    );
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..126 => (usize::from(length), rest),
        126 => rest.split_first_chunk().map(|(l, rest)| (u16::from_be_bytes(*l).into(), rest))?,
        _ => panic!("no frame here is masked or as long as {length:#x} says"),
    };
    let (payload, rest) = rest.split_at_checked(length)?;
    Some((first, payload, rest))
}

fn check_frame(first: u8, payload: &[u8], is_backend: bool) {
    match first {
        0x81 if is_backend && payload != b"pong" => {
            let is_json = serde_json::from_slice::<IgnoredAny>(payload).is_ok();
            assert!(is_json, "{}", payload.escape_ascii());
        }
        0x81 => assert!(std::str::from_utf8(payload).is_ok()),
        0x88 => assert!(payload.is_empty() || std::str::from_utf8(&payload[2..]).is_ok()),
        _ => {}
    }
}
