//! A test peer: writes its bytes in pieces, reads in pieces, and checks every byte that it receives.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection};
use socket2::SockRef;

use crate::runtime::faults::Random;

/// Lengths of messages, around the limits of frame length fields and of receive buffers.
const LENGTHS: [usize; 16] =
    [0, 1, 20, 57, 58, 59, 63, 64, 65, 125, 126, 1000, 16_384, 65_535, 65_536, 200_000];

/// A listener as its peers see it.
pub struct Door {
    pub address: SocketAddr,
    pub is_api: bool,
    pub tls: Option<Arc<ClientConfig>>,
}

/// How a peer ends its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    // With a close frame, which the server answers after everything else.
    Close,
    // By shutting down its sending side. The server still sends what was requested.
    Shut,
    // Without a close frame after this many bytes: with a FIN, or with a reset.
    Drop(usize),
    Reset(usize),
}

pub struct Peer {
    name: String,
    line: Line,
    end: End,
    // All bytes to send, and how many are sent.
    says: Vec<u8>,
    said: usize,
    is_shut: bool,
    // The expected bytes of the server. Those of the response's head are not known in advance.
    head: Vec<u8>,
    expected: Vec<u8>,
    got: usize,
}

impl Peer {
    /// Connects. `number` identifies the peer.
    pub fn new(random: &mut Random, door: &Door, number: usize) -> Self {
        let path = if door.is_api { "/ws/v1" } else { "/echo" };
        let (mut says, mut expected) = (upgrade(path).into_bytes(), Vec::new());
        for n in 0..random.below(6) {
            let name = format!("{number}-{n}");
            if door.is_api {
                let call =
                    format!(r#"{{"m":"mesh.publish","p":{{"c":"c","d":"d"}},"i":"{name}"}}"#);
                put_frame(&mut says, 0x81, call.as_bytes(), Some(random));
                let answer = format!(r#"{{"E":null,"r":{{"s":0,"f":0}},"i":"{name}"}}"#);
                put_frame(&mut expected, 0x81, answer.as_bytes(), None);
            } else {
                let length = random.pick(&LENGTHS);
                let message: Vec<u8> = format!("{name},").bytes().cycle().take(length).collect();
                put_frame(&mut says, 0x82, &message, Some(random));
                put_frame(&mut expected, 0x82, &message, None);
            }
        }
        let end = match random.below(4) {
            0 => End::Drop(random.below(says.len())),
            1 => End::Reset(random.below(says.len())),
            2 => End::Shut,
            _ => {
                put_frame(&mut says, 0x88, &[3, 0xe8], Some(random));
                put_frame(&mut expected, 0x88, &[3, 0xe8], None);
                End::Close
            }
        };
        let (name, line) = (format!("{number} on {path}"), Line::new(door));
        Self { name, line, end, says, said: 0, is_shut: false, head: Vec::new(), expected, got: 0 }
    }

    /// Creates a peer that sends `bytes` bytes to a topic, in messages of 1000 bytes.
    pub fn feeding(door: &Door, bytes: usize) -> Self {
        let mut random = Random::new(0);
        let mut says = upgrade("/feed").into_bytes();
        while says.len() < bytes {
            put_frame(&mut says, 0x82, &[b'x'; 1000], Some(&mut random));
        }
        Self { says, ..Self::new(&mut random, door, 0) }
    }

    /// Sends up to this many bytes, as far as the socket accepts them.
    pub fn say(&mut self, bytes: usize) {
        self.said += self.line.write(&self.says[self.said..][..bytes]).unwrap();
    }

    /// Writes and reads a little. Returns whether the connection has ended.
    pub fn step(&mut self, random: &mut Random) -> bool {
        match self.end {
            End::Drop(at) if self.said >= at => return true,
            End::Reset(at) if self.said >= at => {
                self.line.reset();
                return true;
            }
            _ => {}
        }
        if random.below(2) == 0 {
            self.write(random);
        }
        // The peer sometimes reads slowly, so that the server has to wait for room.
        random.below(4) == 0 && self.read(random)
    }

    fn write(&mut self, random: &mut Random) {
        if self.is_shut {
            return;
        }
        let left = &self.says[self.said..];
        let piece = left.len().min(random.pick(&[1, 7, 100, 5000, 1 << 20]));
        self.said += match self.line.write(&left[..piece]) {
            Ok(count) => count,
            Err(error) => panic!("{self:?}: {error}"),
        };
        if self.end == End::Shut && self.said == self.says.len() && !self.is_shut {
            self.is_shut = self.line.shut();
        }
    }

    /// Reads a piece and checks each byte. Returns true at the end, which must follow the last byte.
    fn read(&mut self, random: &mut Random) -> bool {
        let mut bytes = vec![0; random.pick(&[1, 100, 5000, 1 << 20])];
        let count = match self.line.read(&mut bytes) {
            Ok(0) => return self.ended(),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            // After the peer has closed its side, the server drops a close_notify that does not fit
            // into its socket. The peer accepts that.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return self.ended(),
            Err(error) => panic!("{self:?}: {error}"),
        };
        for &byte in &bytes[..count] {
            if !self.head.ends_with(b"\r\n\r\n") {
                self.head.push(byte);
            } else {
                assert_eq!(self.expected.get(self.got), Some(&byte), "{self:?}");
                self.got += 1;
            }
        }
        false
    }

    fn ended(&self) -> bool {
        assert_eq!(self.got, self.expected.len(), "the end came too soon: {self:?}");
        assert!(self.head.starts_with(b"HTTP/1.1 101 "), "{self:?}");
        true
    }
}

/// A client's handshake.
pub fn upgrade(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

impl fmt::Debug for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "peer {} ({}): {:?}, said {} of {}, head {}, got {} of {}",
            self.name,
            if self.line.tls.is_some() { "TLS" } else { "TCP" },
            self.end,
            self.said,
            self.says.len(),
            self.head.len(),
            self.got,
            self.expected.len()
        )
    }
}

/// A non-blocking connection.
struct Line {
    tcp: TcpStream,
    tls: Option<ClientConnection>,
}

impl Line {
    fn new(door: &Door) -> Self {
        let tcp = TcpStream::connect(door.address).expect("there is room in the backlog");
        tcp.set_nonblocking(true).unwrap();
        tcp.set_nodelay(true).unwrap();
        let session = |config: &Arc<ClientConfig>| {
            ClientConnection::new(config.clone(), "localhost".try_into().unwrap()).unwrap()
        };
        Self { tcp, tls: door.tls.as_ref().map(session) }
    }

    /// Writes bytes and returns how many were accepted.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return none_for_later(self.tcp.write(bytes)) };
        if tls.is_handshaking() {
            read_tls(tls, &mut self.tcp)?;
        }
        write_tls(tls, &mut self.tcp)?;
        if tls.is_handshaking() || tls.wants_write() {
            return Ok(0);
        }
        let taken = tls.writer().write(bytes)?;
        write_tls(tls, &mut self.tcp)?;
        Ok(taken)
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.tcp.read(bytes) };
        read_tls(tls, &mut self.tcp)?;
        write_tls(tls, &mut self.tcp)?;
        tls.reader().read(bytes)
    }

    /// Shuts down the sending side. Returns false if that must be tried again.
    fn shut(&mut self) -> bool {
        if let Some(tls) = &mut self.tls {
            if tls.wants_write() {
                return false;
            }
            tls.send_close_notify();
            write_tls(tls, &mut self.tcp).expect("the server reads");
            return !tls.wants_write();
        }
        self.tcp.shutdown(Shutdown::Write).is_ok()
    }

    /// Makes the connection end with a reset when it is dropped.
    fn reset(&self) {
        SockRef::from(&self.tcp).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

fn read_tls(tls: &mut ClientConnection, tcp: &mut TcpStream) -> io::Result<()> {
    while tls.wants_read() && none_for_later(tls.read_tls(tcp))? > 0 {
        tls.process_new_packets().map_err(io::Error::other)?;
    }
    Ok(())
}

fn write_tls(tls: &mut ClientConnection, tcp: &mut TcpStream) -> io::Result<()> {
    while tls.wants_write() && none_for_later(tls.write_tls(tcp))? > 0 {}
    Ok(())
}

fn none_for_later(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}

/// A frame with this first byte; masked, as clients send them, if there is a source of masks.
pub fn put_frame(out: &mut Vec<u8>, first: u8, payload: &[u8], random: Option<&mut Random>) {
    let masked = if random.is_some() { 0x80 } else { 0 };
    out.push(first);
    match payload.len() {
        length @ 0..126 => out.push(masked | length as u8),
        length @ 126..=0xFFFF => {
            out.push(masked | 126);
            out.extend((length as u16).to_be_bytes());
        }
        length => {
            out.push(masked | 127);
            out.extend((length as u64).to_be_bytes());
        }
    }
    let Some(random) = random else { return out.extend_from_slice(payload) };
    let mask: [u8; 4] = std::array::from_fn(|_| random.below(256) as u8);
    out.extend(mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
}
