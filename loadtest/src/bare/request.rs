//! The requests of the server's table.

use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

/// The headers that a request may have.
const HEADERS_MAX: usize = 32;

/// Appended to the key of a handshake (RFC 6455, section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A complete request.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    pub path: String,
    /// The answer to the key of a WebSocket handshake.
    pub accept: Option<String>,
    /// The place of the body. Its end is the end of the request.
    pub body: Range<usize>,
}

/// Reads the request at the start of `bytes`. Returns `None` if it is not complete.
///
/// # Errors
/// The text is not HTTP.
pub fn take_request(bytes: &[u8]) -> Result<Option<Request>, httparse::Error> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head) = request.parse(bytes)? else { return Ok(None) };
    let header = |name: &str| {
        let mut headers = request.headers.iter();
        headers.find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    };
    let length = header("content-length").and_then(|value| str::from_utf8(value).ok());
    let length = length.and_then(|value| value.parse().ok()).unwrap_or(0_usize);
    let body = head..head.checked_add(length).ok_or(httparse::Error::TooManyHeaders)?;
    if bytes.len() < body.end {
        return Ok(None);
    }
    let path = request.path.unwrap_or_default().to_owned();
    Ok(Some(Request { path, accept: header("sec-websocket-key").map(accept), body }))
}

fn accept(key: &[u8]) -> String {
    STANDARD.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_is_answered_as_in_the_rfc() {
        let text = b"GET /sub/a HTTP/1.1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let request = take_request(text).expect("it is HTTP").expect("it is complete");
        let accept = Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".into());
        assert_eq!(
            request,
            Request { path: "/sub/a".into(), accept, body: text.len()..text.len() }
        );
    }

    #[test]
    fn a_body_belongs_to_its_request() {
        let text = b"POST /pub/a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcPOST";
        let request = take_request(text).expect("it is HTTP").expect("it is complete");
        assert_eq!(&text[request.body], b"abc");
        assert_eq!(take_request(&text[..text.len() - 5]), Ok(None));
    }
}
