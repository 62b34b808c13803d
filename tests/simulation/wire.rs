//! The peers' side of the protocols: what they write, and what they make of what they read.

use crate::random::Random;

/// A message that a peer reads.
#[derive(Debug)]
pub enum Incoming {
    Response { status: u16, body: String },
    Text(String),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(u16),
}

/// Puts bytes together to responses, and to frames after an upgrade.
#[derive(Default)]
pub struct Reader {
    buffer: Vec<u8>,
    is_upgraded: bool,
    compresses: bool,
    /// Bytes of all that came out so far.
    pub consumed: u64,
}

impl Reader {
    pub fn hear(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    pub fn next(&mut self) -> Option<Incoming> {
        let (incoming, length) = match self.is_upgraded {
            true => {
                let is_compressed = self.buffer.first().is_some_and(|first| first & 0x40 != 0);
                assert!(self.compresses || !is_compressed, "what was not agreed on");
                read_frame(&self.buffer)?
            }
            false => read_response(&self.buffer)?,
        };
        if let Incoming::Response { status: 101, .. } = incoming {
            self.is_upgraded = true;
            let head = self.buffer[..length].to_ascii_lowercase();
            self.compresses = head.windows(18).any(|part| part == b"permessage-deflate");
        }
        self.buffer.drain(..length);
        self.consumed += length as u64;
        Some(incoming)
    }
}

fn read_response(bytes: &[u8]) -> Option<(Incoming, usize)> {
    let head = bytes.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..head]).expect("a head is ASCII");
    let status = text[9..12].parse().expect("a status has three digits");
    let length = text
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok())
        .unwrap_or(0);
    let body = bytes.get(head..head + length)?;
    let body = String::from_utf8(body.to_vec()).expect("bodies are text");
    Some((Incoming::Response { status, body }, head + length))
}

fn read_frame(bytes: &[u8]) -> Option<(Incoming, usize)> {
    let (&first, &short) = (bytes.first()?, bytes.get(1)?);
    let (length, at) = match short {
        126 => (u64::from(u16::from_be_bytes(*bytes[2..].first_chunk()?)), 4),
        127 => (u64::from_be_bytes(*bytes[2..].first_chunk()?), 10),
        short => (short.into(), 2),
    };
    assert!(short < 128, "a server does not mask (RFC 6455, section 5.1)");
    let end = at + length as usize;
    let payload = bytes.get(at..end)?;
    let incoming = match first {
        0xC1 => {
            let end = [0, 0, 0xFF, 0xFF, 1, 0, 0, 0xFF, 0xFF];
            let text = miniz_oxide::inflate::decompress_to_vec(&[payload, &end].concat());
            Incoming::Text(String::from_utf8(text.expect("DEFLATE")).expect("text is UTF-8"))
        }
        // What peers say is ASCII in either form.
        0x81 | 0x82 => Incoming::Text(String::from_utf8(payload.to_vec()).expect("text is UTF-8")),
        0x88 => Incoming::Close(payload.first_chunk().map_or(1005, |&c| u16::from_be_bytes(c))),
        0x89 => Incoming::Ping(payload.to_vec()),
        0x8A => Incoming::Pong(payload.to_vec()),
        other => panic!("no frame that a server sends here: {other:#x}"),
    };
    Some((incoming, end))
}

/// An upgrade request, with an offer to compress perhaps.
pub fn upgrade(target: &str, compresses: bool) -> Vec<u8> {
    let offer = match compresses {
        true => "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n",
        false => "",
    };
    format!(
        "GET {target} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{offer}\r\n"
    )
    .into_bytes()
}

/// A request of the HTTP API.
pub fn post(path: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// A text message, in fragments now and then, with a ping between them.
pub fn message(random: &mut Random, text: &str) -> Vec<u8> {
    data(random, 0x01, text.as_bytes())
}

/// The same, compressed in a final block.
pub fn compressed_message(random: &mut Random, text: &str) -> Vec<u8> {
    let mut deflated = miniz_oxide::deflate::compress_to_vec(text.as_bytes(), 6);
    deflated.push(0);
    data(random, 0x41, &deflated)
}

fn data(random: &mut Random, first: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    if random.one_in(4) && bytes.len() > 1 {
        let at = random.between(1, bytes.len() - 1);
        out.extend(frame(random, first, &bytes[..at]));
        if random.one_in(2) {
            out.extend(frame(random, 0x89, b"between"));
        }
        out.extend(frame(random, 0x80, &bytes[at..]));
    } else {
        out.extend(frame(random, 0x80 | first, bytes));
    }
    out
}

/// A masked frame with this first byte.
pub fn frame(random: &mut Random, first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        length @ 0..=125 => out.push(0x80 | length as u8),
        length => {
            out.push(0x80 | 126);
            let length = u16::try_from(length).expect("peers send short messages");
            out.extend(length.to_be_bytes());
        }
    }
    let mask = (random.next() as u32).to_ne_bytes();
    out.extend(mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    out
}
