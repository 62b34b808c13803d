//! Frames that break the protocol, and the code that the connection is closed with (RFC 6455,
//! section 7.4).

use super::support::frame;

/// Invalid input on an open WebSocket.
pub struct Broken {
    pub what: &'static str,
    pub sent: Vec<u8>,
    pub code: u16,
}

const TEXT: u8 = 0x81;
const TEXT_BEGUN: u8 = 0x01;
const CONTINUATION: u8 = 0x80;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;

/// Says that a mask follows.
const MASKED: u8 = 0x80;
const NO_MASK: [u8; 4] = [0; 4];

pub fn broken() -> Vec<Broken> {
    let broken = |code, what, sent| Broken { what, sent, code };
    let error = |what, sent| broken(1002, what, sent);
    let closed_with = |payload: &[u8]| frame(CLOSE, payload);
    vec![
        error("five bytes, their length in 16 bits", with_length(&[126, 0, 5])),
        error("five bytes, their length in 64 bits", with_length(&[127, 0, 0, 0, 0, 0, 0, 0, 5])),
        error("125 bytes, their length in 16 bits", with_length(&[126, 0, 125])),
        error(
            "65,535 bytes, their length in 64 bits",
            with_length(&[127, 0, 0, 0, 0, 0, 0, 255, 255]),
        ),
        error(
            "a length of 64 bits whose first is set",
            with_length(&[127, 128, 0, 0, 0, 0, 0, 0, 0]),
        ),
        error("no mask", vec![TEXT, 2, b'h', b'i']),
        error("a reserved bit", frame(0x90 | TEXT, b"hi")),
        error("compressed, which was not agreed on", frame(0x40 | TEXT, b"hi")),
        error("a reserved opcode", frame(0x83, b"hi")),
        error("a reserved opcode of control", frame(0x8b, b"hi")),
        error("a ping in fragments", frame(PING & 0x7f, b"hi")),
        error("a ping of 126 bytes", frame(PING, &[b'x'; 126])),
        error("a continuation of nothing", frame(CONTINUATION, b"hi")),
        error("a message inside another", [frame(TEXT_BEGUN, b"a"), frame(TEXT, b"b")].concat()),
        error("a close of one byte", closed_with(&[3])),
        error("a close with a code that is never sent", closed_with(&1005_u16.to_be_bytes())),
        error("a close with a code out of range", closed_with(&999_u16.to_be_bytes())),
        broken(1007, "a close whose reason is no UTF-8", closed_with(&[3, 232, 0xff])),
        broken(1007, "text that is no UTF-8", frame(TEXT, &[0xff])),
        broken(1007, "half a surrogate pair in text", frame(TEXT, &[0xed, 0xa0, 0x80])),
        broken(
            1007,
            "text cut inside a character",
            [frame(TEXT_BEGUN, &[0xc3]), frame(CONTINUATION, b"")].concat(),
        ),
        broken(1009, "more than a message may have", with_length(&[127, 0, 0, 0, 0, 0, 1, 0, 1])),
        broken(
            1009,
            "more than a message may have, in two fragments",
            [frame(TEXT_BEGUN, &[b'x'; 4000]), continued(&[127, 0, 0, 0, 0, 0, 1, 0, 0])].concat(),
        ),
    ]
}

/// The head of a text frame with this length, and five bytes of it.
fn with_length(length: &[u8]) -> Vec<u8> {
    headed(TEXT, length)
}

fn continued(length: &[u8]) -> Vec<u8> {
    headed(CONTINUATION, length)
}

fn headed(first: u8, length: &[u8]) -> Vec<u8> {
    let (&form, rest) = length.split_first().expect("a length has a form");
    [&[first, MASKED | form], rest, &NO_MASK, b"hello"].concat()
}
