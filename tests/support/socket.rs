//! A blocking WebSocket client (RFC 6455) that can send raw frames too, for tests that violate the protocol.

use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, SockRef, Type};

use super::{DEADLINE, Http, Response, Stream};

/// The key and the accept value of RFC 6455, section 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A complete message or a control frame.
#[derive(Debug, PartialEq)]
pub enum Message {
    Text(String),
    Binary(Vec<u8>),
    /// A compressed text message, not inflated.
    Deflated(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(u16, String),
}

/// One WebSocket connection, of a device or of a back end.
pub struct Socket {
    stream: BufReader<Stream>,
}

impl Socket {
    /// Opens a connection; returns the server's response if the upgrade is refused.
    pub fn connect(address: SocketAddr, path: &str, headers: &str) -> Result<Self, Response> {
        Self::upgrade(Http::connect(address), path, headers)
    }

    /// Connects a client with a small receive buffer, so that the server soon notices if the client does not read.
    pub fn connect_with_small_buffer(address: SocketAddr, path: &str) -> Self {
        Self::upgrade(Self::small(address), path, "").expect("the upgrade is granted")
    }

    /// Opens the TCP connection of a client with a small receive buffer.
    pub fn small(address: SocketAddr) -> Http {
        let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a small buffer");
        socket.connect(&address.into()).expect("the server accepts");
        Http::over(socket.into())
    }

    /// Opens a WebSocket on a connection; returns the server's response if the upgrade is refused.
    pub fn upgrade(mut http: Http, path: &str, headers: &str) -> Result<Self, Response> {
        let address = http.stream.get_ref().tcp().peer_addr().expect("connected");
        http.send(Self::upgrade_request(address, path, headers));
        let response = http.response();
        if response.status != 101 {
            return Err(response);
        }
        assert_eq!(response.header("sec-websocket-accept"), Some(ACCEPT));
        Ok(Self { stream: http.stream })
    }

    /// Returns the upgrade request. `headers` are complete lines, each with its CRLF.
    pub fn upgrade_request(host: SocketAddr, path: &str, headers: &str) -> String {
        format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{headers}\r\n"
        )
    }

    /// Takes over a connection whose upgrade was granted.
    pub fn upgraded(http: Http) -> Self {
        Self { stream: http.stream }
    }

    pub fn address(&self) -> SocketAddr {
        self.stream.get_ref().tcp().local_addr().expect("connected")
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).expect("the server reads");
    }

    pub fn send_text(&mut self, text: &str) {
        self.send(&frame(0x81, text.as_bytes()));
    }

    pub fn send_binary(&mut self, data: &[u8]) {
        self.send(&frame(0x82, data));
    }

    pub fn send_ping(&mut self, data: &[u8]) {
        self.send(&frame(0x89, data));
    }

    pub fn send_pong(&mut self, data: &[u8]) {
        self.send(&frame(0x8a, data));
    }

    /// Sends a ping and waits for its pong: the server has read all that was sent before.
    #[track_caller]
    pub fn synchronise(&mut self) {
        self.send_ping(b"here");
        assert_eq!(self.read(), Message::Pong(b"here".into()));
    }

    pub fn send_close(&mut self, code: u16, reason: &str) {
        self.send(&frame(0x88, &[&code.to_be_bytes(), reason.as_bytes()].concat()));
    }

    /// Sets how long a read waits, instead of [`DEADLINE`]. A read that times out loses the part of a message that it
    /// has, so use this only for messages that arrive completely or not at all.
    pub fn set_patience(&mut self, patience: Duration) {
        let tcp = self.stream.get_ref().tcp();
        tcp.set_read_timeout(Some(patience)).expect("a deadline can be set");
    }

    /// Clones the connection, to write from a second thread. Not over TLS.
    pub fn writer(&self) -> TcpStream {
        self.stream.get_ref().tcp().try_clone().expect("a second descriptor")
    }

    /// Resets the connection: the server gets no FIN and no close frame.
    pub fn reset(self) {
        let linger = SockRef::from(self.stream.get_ref().tcp()).set_linger(Some(Duration::ZERO));
        linger.expect("lingering can be turned off");
    }

    #[track_caller]
    pub fn read(&mut self) -> Message {
        self.try_read().expect("a message comes")
    }

    /// Reads the next message, or the error that ends the connection.
    pub fn try_read(&mut self) -> io::Result<Message> {
        let [first, second] = self.take()?;
        assert_eq!(second & 0x80, 0, "a server does not mask (RFC 6455, section 5.1)");
        let length = match second {
            126 => u16::from_be_bytes(self.take()?).into(),
            127 => u64::from_be_bytes(self.take()?),
            length => length.into(),
        };
        let mut payload = vec![0; length.try_into().expect("a frame fits in memory")];
        self.stream.read_exact(&mut payload)?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text is UTF-8");
        Ok(match first {
            0x81 => Message::Text(text(&payload)),
            0x82 => Message::Binary(payload),
            0xc1 => Message::Deflated(payload),
            0x88 if payload.is_empty() => Message::Close(1005, String::new()),
            0x88 => {
                Message::Close(u16::from_be_bytes([payload[0], payload[1]]), text(&payload[2..]))
            }
            0x89 => Message::Ping(payload),
            0x8a => Message::Pong(payload),
            _ => panic!("a frame that this server never sends: {first:#x}"),
        })
    }

    /// Reads the next message, which must be text. Answers pings that come before it.
    #[track_caller]
    pub fn text(&mut self) -> String {
        loop {
            match self.read() {
                Message::Text(text) => return text,
                Message::Ping(data) => self.send_pong(&data),
                other => panic!("not a text message: {other:?}"),
            }
        }
    }

    /// Reads up to the close frame; returns its code and reason.
    #[track_caller]
    pub fn closed(&mut self) -> (u16, String) {
        loop {
            if let Message::Close(code, reason) = self.read() {
                return (code, reason);
            }
        }
    }

    /// Waits for the server's end of the connection.
    #[track_caller]
    pub fn ended(mut self) {
        let error = loop {
            if let Err(error) = self.try_read() {
                break error;
            }
        };
        let timed_out =
            [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut].contains(&error.kind());
        assert!(!timed_out, "the connection stayed open for {DEADLINE:?}");
    }

    /// Waits until the server closes the connection without further data. Over TLS the server must send a close
    /// notification.
    #[track_caller]
    pub fn ended_in_order(mut self) {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).expect("an orderly end");
        assert!(rest.is_empty(), "{rest:?}");
    }

    /// Sends a request of the API; returns the next message, which is its answer.
    #[track_caller]
    pub fn call(&mut self, request: &str) -> String {
        self.send_text(request);
        self.text()
    }

    /// Calls a method of the API; returns the answer, which must come before any event.
    #[track_caller]
    pub fn ask(&mut self, method: &str, params: &Value) -> Value {
        let request = serde_json::json!({ "m": method, "p": params, "i": 12345 });
        let answer: Value =
            serde_json::from_str(&self.call(&request.to_string())).expect("an answer is JSON");
        assert_eq!(answer["i"], 12345, "not an answer: {answer}");
        answer
    }

    /// Makes a call that must succeed; returns its result.
    #[track_caller]
    pub fn done(&mut self, method: &str, params: &Value) -> Value {
        let mut answer = self.ask(method, params);
        assert!(answer["E"].is_null(), "{method} {params}: {answer}");
        answer["r"].take()
    }

    /// Calls a function of a client's connection, which must succeed; returns its result.
    #[track_caller]
    pub fn conn_call(&mut self, client: &str, function: &str, arguments: Value) -> Value {
        let params = serde_json::json!({ "c": client, "f": function, "a": arguments });
        self.done("conn.call", &params)
    }

    /// Publishes text; returns the numbers of subscribers that it reached and did not reach.
    #[track_caller]
    pub fn publish(&mut self, channel: &str, data: &str) -> (u64, u64) {
        let params = serde_json::json!({ "c": channel, "d": data });
        let counts = self.done("mesh.publish", &params);
        let count = |key| counts[key].as_u64().expect("a count");
        (count("s"), count("f"))
    }

    /// Returns the `p` of the next event of a consumer.
    #[track_caller]
    pub fn event(&mut self) -> Value {
        let text = self.text();
        let mut event: Value = serde_json::from_str(&text).expect("an event is JSON");
        assert_eq!(event["e"], "queue.pop", "not an event: {text}");
        event["p"].take()
    }

    /// Returns the client id in the next event, which must be an open event.
    #[track_caller]
    pub fn opened(&mut self) -> String {
        let event = self.event();
        assert_eq!(event["d"]["event"], "open", "not an open event: {event}");
        event["c"].as_str().expect("a client id is a string").to_string()
    }

    /// Returns the data in the next event, which must be a message of a client.
    #[track_caller]
    pub fn data(&mut self) -> String {
        let event = self.event();
        let data = event["d"]["frame"]["data"].as_str();
        data.unwrap_or_else(|| panic!("not a message event: {event}")).to_string()
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// A masked frame, as a client sends it; `first` holds the FIN bit and the opcode.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}
