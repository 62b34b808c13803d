//! HTTP/1.1 requests over one connection that is kept alive, pipelined (RFC 9112, section 9.3.2).

use std::net::SocketAddr;
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use httparse::{EMPTY_HEADER, Response, Status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest response that is waited for, head and body, in bytes; the API's are far shorter.
const RESPONSE_BYTES_MAX: usize = 64 * 1024;
const HEADERS_MAX: usize = 32;

/// One connection, with what it has still to send and what it has read ahead.
pub struct HttpConnection {
    stream: TcpStream,
    host: String,
    to_send: Vec<u8>,
    received: Vec<u8>,
    /// 0 <= taken <= received.len(): the responses before have been read.
    taken: usize,
}

impl HttpConnection {
    /// Connects to `address`.
    ///
    /// # Errors
    /// Nothing listens there.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| address.to_string())?;
        stream.set_nodelay(true)?;
        let host = address.to_string();
        Ok(Self { stream, host, to_send: Vec::new(), received: Vec::new(), taken: 0 })
    }

    /// Adds a request with a body to those that the next flush sends.
    pub fn feed(&mut self, path: &str, body: &str) {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.host,
            body.len()
        );
        self.to_send.extend_from_slice(request.as_bytes());
    }

    /// Adds a request for what is at `path`.
    pub fn feed_get(&mut self, path: &str) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host);
        self.to_send.extend_from_slice(request.as_bytes());
    }

    /// Sends what was fed.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn flush(&mut self) -> Result<()> {
        self.stream.write_all(&self.to_send).await?;
        self.to_send.clear();
        Ok(())
    }

    /// Waits for the next response and reads its body by `parse`.
    ///
    /// # Errors
    /// The connection has ended, the status is not 200 to 202, or `parse` refuses the body.
    pub async fn response<T>(&mut self, parse: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        loop {
            let ahead = &self.received[self.taken..];
            if let Some(body) = find_body(ahead)? {
                self.taken += body.end;
                return parse(&ahead[body]);
            }
            ensure!(ahead.len() < RESPONSE_BYTES_MAX, "a response of more than 64 KiB");
            self.received.drain(..self.taken);
            self.taken = 0;
            let read = self.stream.read_buf(&mut self.received).await?;
            ensure!(read > 0, "the server ended an API connection");
        }
    }
}

/// Where the body of the first response lies; `None` if it is not all here yet.
fn find_body(bytes: &[u8]) -> Result<Option<Range<usize>>> {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut response = Response::new(&mut headers);
    let Status::Complete(head) = response.parse(bytes)? else { return Ok(None) };
    // What nchan answers: 201, somebody got it; 202, nobody did.
    if !matches!(response.code, Some(200..=202)) {
        bail!("the server answered with HTTP status {}", response.code.unwrap_or_default());
    }
    let length = response.headers.iter().find(|it| it.name.eq_ignore_ascii_case("content-length"));
    let length = str::from_utf8(length.context("a response without Content-Length")?.value)?;
    let end = head.saturating_add(length.parse().context("Content-Length")?);
    Ok((end <= bytes.len()).then_some(head..end))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";

    #[test]
    fn a_body_is_found_when_it_is_all_here() {
        for end in 0..RESPONSE.len() {
            assert_eq!(find_body(&RESPONSE[..end]).expect("it is well-formed"), None);
        }
        let two = [RESPONSE, RESPONSE].concat();
        let body = find_body(&two).expect("it is well-formed").expect("it is all here");
        assert_eq!((&two[body.clone()], body.end), (&b"{}"[..], RESPONSE.len()));
    }

    #[test]
    fn a_response_that_is_no_success_or_has_no_length_is_an_error() {
        for response in ["HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"]
        {
            assert!(find_body(response.as_bytes()).is_err(), "{response}");
        }
    }
}
