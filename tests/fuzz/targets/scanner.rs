//! Control frames that the scanner finds ahead do not depend on how the bytes are cut. Data frames
//! stay as they came, and a reader behind the scanner sees the same messages as without it.

use gridcast::protocol::assembler::{Assembler, Received};
use gridcast::protocol::close::Closed;
use gridcast::protocol::frame::{Kind, Violation};
use gridcast::protocol::scanner::ControlScanner;

use super::input::{Input, pieces};

/// The limit of a message. Frames above it break the protocol when they are read, not before.
const MESSAGE_BYTES_MAX: usize = 4096;

/// Lengths of pieces, flags (1: take the close frame), then what a client sends.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let lengths = input.lengths();
    let takes_close = input.byte() & 1 == 1;
    let whole = scan(&pieces(input.0, &[]), takes_close);
    assert_eq!(scan(&pieces(input.0, &lengths), takes_close), whole, "in pieces of {lengths:?}");
    assert_eq!(scan(&pieces(input.0, &[1]), takes_close), whole, "byte by byte");
    check_against_reader(input.0, takes_close, &whole);
}

/// The result of a scan, and the rest of the input.
#[derive(Debug, PartialEq)]
struct Scanned {
    last_ping: Option<Vec<u8>>,
    close: Option<Result<Closed, Violation>>,
    left: Vec<u8>,
}

fn scan(pieces: &[&[u8]], takes_close: bool) -> Scanned {
    let (mut scanner, mut left) = (ControlScanner::new(0), Vec::new());
    let (mut last_ping, mut close) = (None, None);
    for piece in pieces {
        left.extend_from_slice(piece);
        let heard = scanner.scan(&mut left, false, takes_close);
        last_ping = heard.ping.or(last_ping);
        if heard.close.is_some() {
            assert!(close.is_none(), "a connection closes once");
            close = heard.close;
        }
    }
    // Bytes without anything new change nothing.
    let before = left.clone();
    assert!(scanner.scan(&mut left, false, takes_close).ping.is_none() && left == before);
    Scanned { last_ping, close, left }
}

/// Compares with a reader of all bytes: it sees the same messages, and the same control frames if no
/// violation ends it.
fn check_against_reader(bytes: &[u8], takes_close: bool, scanned: &Scanned) {
    let (all, left) = (read(bytes), read(&scanned.left));
    assert_eq!(left.messages, all.messages);
    if all.violation.is_none() {
        assert!(left.pings.is_empty(), "a whole ping is answered ahead");
        assert_eq!(scanned.last_ping.as_ref(), all.pings.last());
        let closed = if takes_close { scanned.close.clone() } else { left.close.map(Ok) };
        assert_eq!(closed, all.close.map(Ok));
    }
}

#[derive(Debug, Default)]
struct Read {
    messages: Vec<(Kind, Vec<u8>)>,
    pings: Vec<Vec<u8>>,
    close: Option<Closed>,
    violation: Option<Violation>,
}

fn read(bytes: &[u8]) -> Read {
    let mut bytes = bytes.to_vec();
    let mut input = &mut bytes[..];
    let (mut assembler, mut read) = (Assembler::default(), Read::default());
    while read.close.is_none() {
        match assembler.read(&mut input, MESSAGE_BYTES_MAX, None) {
            Ok(None) => break,
            Ok(Some(Received::Message(kind, data))) => read.messages.push((kind, data.to_vec())),
            Ok(Some(Received::Ping(data))) => read.pings.push(data.to_vec()),
            Ok(Some(Received::Pong | Received::Inflating)) => {}
            Ok(Some(Received::Close(closed))) => read.close = Some(closed),
            Err(violation) => {
                read.violation = Some(violation);
                break;
            }
        }
    }
    read
}
