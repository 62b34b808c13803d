//! Messages and the violation that ends them are the same however the bytes are cut, with and
//! without an agreement on compression.

use gridcast::protocol::assembler::{Assembler, Received};
use gridcast::protocol::deflate::Inflater;
use gridcast::protocol::frame::{Kind, Violation};

use super::input::{Input, pieces};

/// Lengths of pieces, the limit of a message, then what a client sends.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let lengths = input.lengths();
    let max = usize::from(input.byte()) * 4;
    for mut inflater in [None, Some(Inflater::default())] {
        let mut read = |lengths: &[usize]| read(&pieces(input.0, lengths), max, inflater.as_mut());
        let whole = read(&[]);
        assert_eq!(read(&lengths), whole, "in pieces of {lengths:?}");
        assert_eq!(read(&[1]), whole, "byte by byte");
    }
}

#[derive(Debug, PartialEq)]
enum Seen {
    Message(Kind, Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>, String),
    Violation(Violation),
}

fn read(pieces: &[&[u8]], max: usize, mut inflater: Option<&mut Inflater>) -> Vec<Seen> {
    let mut assembler = Assembler::default();
    let mut seen = Vec::new();
    for piece in pieces {
        let mut bytes = piece.to_vec();
        let mut input = &mut bytes[..];
        loop {
            match assembler.read(&mut input, max, inflater.as_deref_mut()) {
                Ok(None) => break,
                Ok(Some(Received::Inflating)) => {}
                Ok(Some(received)) => seen.push(checked(received, max)),
                Err(violation) => {
                    assert!(violation.reason().text.len() <= 123);
                    seen.push(Seen::Violation(violation));
                    return seen;
                }
            }
        }
        assert!(input.is_empty(), "more was asked for while there was some");
    }
    seen
}

fn checked(received: Received<'_>, max: usize) -> Seen {
    match received {
        Received::Message(kind, data) => {
            assert!(data.len() <= max);
            assert!(kind == Kind::Binary || std::str::from_utf8(&data).is_ok());
            Seen::Message(kind, data.to_vec())
        }
        Received::Ping(data) => {
            assert!(data.len() <= 125);
            Seen::Ping(data.to_vec())
        }
        Received::Pong => Seen::Pong,
        Received::Inflating => unreachable!("reading goes on"),
        Received::Close(closed) => {
            assert!(closed.reason.len() <= 123);
            Seen::Close(closed.code, closed.reason)
        }
    }
}
