//! Requests and the error that ends them are the same however the bytes are cut.

use gridcast::protocol::http::{
    Date, HttpError, Request, RequestLimits, RequestReader, RequestStep, Response, percent_decode,
    query_pairs,
};

use super::input::{Input, pieces};

const LIMITS: RequestLimits = RequestLimits { head_bytes: 512, headers: 8, body_bytes: 64 };

/// Lengths of pieces, then what a peer sends.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let lengths = input.lengths();
    let whole = read(&pieces(input.0, &[]));
    assert_eq!(read(&pieces(input.0, &lengths)), whole, "in pieces of {lengths:?}");
    assert_eq!(read(&pieces(input.0, &[1])), whole, "byte by byte");
}

/// What the requests say, and the error that ended them.
fn read(pieces: &[&[u8]]) -> (Vec<String>, Option<HttpError>) {
    let mut reader = RequestReader::default();
    let mut seen = Vec::new();
    for piece in pieces {
        let mut bytes = piece.to_vec();
        let mut input = &mut bytes[..];
        loop {
            match reader.read(&mut input, &LIMITS) {
                Ok(RequestStep::NeedMore) => break,
                // Given only if the body was cut off from it.
                Ok(RequestStep::Head(head)) => check(&head),
                // Asked for only if the body has not begun: this does depend on the cuts.
                Ok(RequestStep::Continue) => {}
                Ok(RequestStep::Request(request)) => {
                    check(&request);
                    seen.push(format!("{request:?}"));
                }
                Err(error) => return (seen, Some(error)),
            }
        }
        assert!(input.is_empty(), "more was asked for while there was some");
    }
    (seen, None)
}

/// Checks the invariants of every parsed request.
fn check(request: &Request<'_>) {
    assert!(request.path.starts_with('/') || request.path == "*");
    assert!(request.body.len() <= LIMITS.body_bytes && request.headers().count() <= LIMITS.headers);
    let is_bare = |value: &[u8]| !value.iter().any(|byte| b"\r\n\0".contains(byte));
    assert!(request.headers().all(|(name, value)| !name.is_empty() && is_bare(value)));
    query_pairs(request.query).for_each(drop);
    let _ = percent_decode(request.path);
    let mut out = Vec::new();
    Response { status: 200, content_type: "text/plain", headers: &[], body: b"ok" }.write(
        &mut out,
        request.exchange(),
        Date::at(0),
    );
    assert!(out.starts_with(b"HTTP/1.1 200 ") && is_whole(&out));
}

/// One head, and a body of two bytes or none.
fn is_whole(response: &[u8]) -> bool {
    let head_end = response.windows(4).position(|four| four == b"\r\n\r\n");
    head_end.is_some_and(|at| matches!(&response[at + 4..], b"" | b"ok"))
}
