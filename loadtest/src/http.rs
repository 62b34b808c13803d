//! Pipelined HTTP/1.1 requests over one persistent connection (RFC 9112, section 9.3.2).

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use httparse::{EMPTY_HEADER, Response, Status};
use itoa::Buffer;
use tokio::net::TcpStream;

use crate::connection::Connection;

const HEADERS_MAX: usize = 32;

/// A persistent HTTP connection.
pub struct HttpConnection {
    connection: Connection,
    host: String,
    last: Head,
}

/// The head of the last response. The next one is usually identical.
#[derive(Default)]
struct Head {
    bytes: Vec<u8>,
    body_bytes: usize,
}

impl HttpConnection {
    /// Connects to `address`.
    ///
    /// # Errors
    /// The connection is refused.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| address.to_string())?;
        stream.set_nodelay(true)?;
        let (host, last) = (address.to_string(), Head::default());
        Ok(Self { connection: Connection::of(stream), host, last })
    }

    /// Queues a request with a body for the next flush. Path and body are given in parts.
    pub fn feed(&mut self, path: &[&[u8]], body: &[&[u8]]) {
        let mut length = Buffer::new();
        let length = length.format(body.iter().map(|part| part.len()).sum::<usize>());
        let between: &[&[u8]] = &[
            b" HTTP/1.1\r\nHost: ",
            self.host.as_bytes(),
            b"\r\nContent-Type: application/json\r\nContent-Length: ",
            length.as_bytes(),
            b"\r\n\r\n",
        ];
        let request = self.connection.outbound();
        request.extend_from_slice(b"POST ");
        for parts in [path, between, body] {
            parts.iter().for_each(|part| request.extend_from_slice(part));
        }
    }

    /// Queues a GET request for `path`.
    pub fn feed_get(&mut self, path: &str) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host);
        self.connection.outbound().extend_from_slice(request.as_bytes());
    }

    /// Sends the queued requests.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn flush(&mut self) -> Result<()> {
        self.connection.flush().await
    }

    /// When the last response arrived.
    pub fn received_at(&self) -> Instant {
        self.connection.received_at()
    }

    /// Waits for the next response and reads its body with `parse`. Safe to cancel.
    ///
    /// # Errors
    /// The connection has ended, the status is not 200 to 202, or `parse` refuses the body.
    pub async fn response<T>(&mut self, parse: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        loop {
            let unread = self.connection.unread();
            if let Some(body) = find_body(unread, &mut self.last)? {
                let end = body.end;
                let parsed = parse(&unread[body]);
                self.connection.take(end);
                return parsed;
            }
            self.connection.receive().await?;
        }
    }
}

/// The position of the first response's body; `None` while the response is incomplete. The head is parsed only
/// if it differs from `last`.
fn find_body(bytes: &[u8], last: &mut Head) -> Result<Option<Range<usize>>> {
    if last.bytes.is_empty() || !bytes.starts_with(&last.bytes) {
        let Some((head_bytes, body_bytes)) = read_head(bytes)? else { return Ok(None) };
        *last = Head { bytes: bytes[..head_bytes].to_owned(), body_bytes };
    }
    let head_bytes = last.bytes.len();
    let end = head_bytes.saturating_add(last.body_bytes);
    Ok((end <= bytes.len()).then_some(head_bytes..end))
}

/// The lengths of the first response's head and body; `None` while the head is incomplete.
fn read_head(bytes: &[u8]) -> Result<Option<(usize, usize)>> {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut response = Response::new(&mut headers);
    let Status::Complete(head_bytes) = response.parse(bytes)? else { return Ok(None) };
    // nchan answers 201 if there are subscribers, and 202 if there are none.
    if !matches!(response.code, Some(200..=202)) {
        bail!("the server answered with HTTP status {}", response.code.unwrap_or_default());
    }
    let length = response.headers.iter().find(|it| it.name.eq_ignore_ascii_case("content-length"));
    let length = str::from_utf8(length.context("a response without Content-Length")?.value)?;
    Ok(Some((head_bytes, length.parse().context("Content-Length")?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";

    #[test]
    fn a_body_is_found_when_it_is_all_here() {
        let mut last = Head::default();
        for _ in ["its head is new", "its head is known"] {
            for end in 0..RESPONSE.len() {
                let body = find_body(&RESPONSE[..end], &mut last).expect("it is well-formed");
                assert_eq!(body, None);
            }
            let two = [RESPONSE, RESPONSE].concat();
            let body = find_body(&two, &mut last).expect("it is well-formed");
            let body = body.expect("it is all here");
            assert_eq!((&two[body.clone()], body.end), (&b"{}"[..], RESPONSE.len()));
        }
    }

    #[test]
    fn a_head_unlike_the_last_one_is_read() {
        let mut last = Head::default();
        for length in [2, 3, 20, 2] {
            let body = "x".repeat(length);
            let response = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
            let found = find_body(response.as_bytes(), &mut last).expect("it is well-formed");
            assert_eq!(&response[found.expect("it is all here")], body);
        }
    }

    #[test]
    fn a_response_that_is_no_success_or_has_no_length_is_an_error() {
        for response in ["HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"]
        {
            let mut last = Head::default();
            find_body(RESPONSE, &mut last).expect("it is well-formed");
            assert!(find_body(response.as_bytes(), &mut last).is_err(), "{response}");
        }
    }
}
