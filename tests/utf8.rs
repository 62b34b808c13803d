//! Text messages of back ends that are not UTF-8, whole or in fragments. A shard is a value here: no socket, no clock.

#![forbid(unsafe_code)]

#[path = "support/shard.rs"]
mod shard_value;

use gridcast::message::ConnectionKey;
use gridcast::shard::{Chunk, Listener, Now, Priority, Shard};
use shard_value::{client_head, upgraded};

const NOW: Now = Now { ms: 0, us: 0, unix_ms: 1_700_000_000_000 };

/// The first bytes of frames: a whole text, a whole binary message, the first and the last fragment of a text.
const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const FIRST: u8 = 0x01;
const LAST: u8 = 0x80;

/// Requests with a place for more bytes: in the common form, with an escape, in another form, and no JSON.
const REQUESTS: [(&str, &str); 4] = [
    (r#"{"m":"mesh.publish","p":{"c":"a","d":""#, r#""},"i":1}"#),
    (r#"{"m":"mesh.publish","p":{"c":"a","d":"\n"#, r#""},"i":1}"#),
    (r#"{"x":""#, r#"","m":"mesh.publish","p":{"c":"a","d":"b"},"i":1}"#),
    ("", ""),
];

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    [&client_head(first, payload.len())[..], payload].concat()
}

fn request((before, behind): (&str, &str), bytes: &[u8]) -> Vec<u8> {
    [before.as_bytes(), bytes, behind.as_bytes()].concat()
}

/// Returns what a new back end is sent after its handshake for these frames.
fn answered(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut shard = shard_value::shard(&shard_value::settings(), NOW);
    let key = upgraded(&mut shard, NOW, Listener::Api, "/ws/v1");
    assert!(written(&mut shard, key).starts_with(b"HTTP/1.1 101 "));
    for frame in frames {
        shard.handle_bytes(NOW, key, &mut frame.clone());
    }
    written(&mut shard, key)
}

fn written(shard: &mut Shard, key: ConnectionKey) -> Vec<u8> {
    let mut written = Vec::new();
    while let Some((to, batch)) = shard.poll_write(Priority::Urgent) {
        assert_eq!(to, key);
        let bytes: Vec<u8> = batch.iter().flat_map(Chunk::bytes).copied().collect();
        shard.handle_written(NOW, key, bytes.len(), true);
        shard.recycle(batch);
        written.extend(bytes);
    }
    written
}

#[test]
fn text_that_is_not_utf8_closes_with_1007() {
    for form in REQUESTS {
        let bad = request(form, b"\xE4\xBD");
        let (start, end) = bad.split_at(bad.len() / 2);
        for frames in [vec![frame(TEXT, &bad)], vec![frame(FIRST, start), frame(LAST, end)]] {
            let answer = answered(&frames);
            let is_close = answer.first() == Some(&0x88) && answer[2..4] == 1007_u16.to_be_bytes();
            assert!(is_close, "{}: {}", bad.escape_ascii(), answer.escape_ascii());
        }
    }
}

#[test]
fn a_binary_message_that_is_not_utf8_is_answered_with_a_fault() {
    for form in REQUESTS {
        let answer = answered(&[frame(BINARY, &request(form, b"\xE4\xBD"))]);
        let text = String::from_utf8_lossy(&answer);
        assert!(text.contains(r#"{"E":{"c":101,"m":"not valid JSON"#), "{text}");
    }
}

#[test]
fn valid_text_is_answered_whatever_its_characters() {
    for form in &REQUESTS[..3] {
        for opcode in [TEXT, BINARY] {
            let answer = answered(&[frame(opcode, &request(*form, "é你😀".as_bytes()))]);
            let text = String::from_utf8_lossy(&answer);
            assert!(text.ends_with(r#"{"E":null,"r":{"s":0,"f":0},"i":1}"#), "{text}");
        }
    }
}
