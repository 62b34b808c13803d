//! A blocking HTTP/1.1 client that sends raw bytes, so that a test controls each of them.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::ClientConfig;
use serde_json::Value;

use super::{DEADLINE, Stream};

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(given, _)| given.eq_ignore_ascii_case(name))?;
        Some(value)
    }

    /// Whether gridcast refuses something that it may accept later. A health check is no refusal.
    fn is_curable_refusal(&self) -> bool {
        matches!(self.status, 429 | 503) && self.header("content-type") == Some("application/json")
    }

    fn says_when_to_retry(&self) -> bool {
        let seconds = self.header("retry-after").and_then(|text| text.parse().ok());
        seconds.is_some_and(|seconds: u8| (1..=10).contains(&seconds))
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("the body is JSON")
    }
}

/// One connection, for requests one after another or pipelined.
pub struct Http {
    pub(super) stream: BufReader<Stream>,
}

impl Http {
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).expect("the server accepts"))
    }

    pub fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).expect("a deadline can be set");
        stream.set_nodelay(true).expect("small segments can be sent");
        Self { stream: BufReader::new(Stream::Plain(stream)) }
    }

    /// Opens a connection over TLS. Nothing may have been sent or received before.
    pub fn over_tls(self, config: &Arc<ClientConfig>) -> Self {
        let Stream::Plain(tcp) = self.stream.into_inner() else { panic!("it is over TLS already") };
        Self { stream: BufReader::new(Stream::tls(tcp, config.clone())) }
    }

    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.get_mut().write_all(bytes.as_ref()).expect("the server reads");
    }

    /// Shuts down the sending end of the TCP connection, without a TLS close notification.
    pub fn shut(&mut self) {
        self.stream.get_ref().tcp().shutdown(Shutdown::Write).expect("connected");
    }

    /// Begins a TLS handshake.
    pub fn greet(&mut self) {
        self.stream.get_mut().greet();
    }

    /// Sends bytes and waits for a first byte; returns false if the connection is not established.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.get_mut().write_all(bytes.as_ref()).is_ok()
            && self.stream.fill_buf().is_ok_and(|bytes| !bytes.is_empty())
    }

    /// Sends each byte in a segment of its own.
    pub fn send_byte_by_byte(&mut self, bytes: impl AsRef<[u8]>) {
        bytes.as_ref().chunks(1).for_each(|byte| self.send(byte));
    }

    #[track_caller]
    pub fn response(&mut self) -> Response {
        let mut response = self.head();
        let mut body = Vec::new();
        match response.header("content-length").map(|length| length.parse().expect("a length")) {
            _ if response.status < 200 => Ok(0),
            Some(length) => self.stream.by_ref().take(length).read_to_end(&mut body),
            None => self.stream.read_to_end(&mut body),
        }
        .expect("the body comes");
        response.body = String::from_utf8(body).expect("the body is text");
        assert!(!response.is_curable_refusal() || response.says_when_to_retry(), "{response:?}");
        response
    }

    /// Reads a response without a body, as to a HEAD request.
    #[track_caller]
    pub fn head(&mut self) -> Response {
        let status_line = self.line();
        let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("not a status line: {status_line:?}"));
        let mut headers = Vec::new();
        while let Some((name, value)) = self.line().split_once(':') {
            headers.push((name.to_string(), value.trim().to_string()));
        }
        Response { status, headers, body: String::new() }
    }

    /// Waits until the server closes the connection; returns what came before.
    #[track_caller]
    pub fn rest(mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => panic!("{error}"),
            _ => rest,
        }
    }

    #[track_caller]
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("a line comes");
        line.strip_suffix("\r\n").unwrap_or_else(|| panic!("a cut line: {line:?}")).to_string()
    }
}

/// Sends `request` on a connection of its own and reads one response.
#[track_caller]
pub fn http(address: SocketAddr, request: impl AsRef<[u8]>) -> Response {
    let mut connection = Http::connect(address);
    connection.send(request);
    connection.response()
}
