//! The cases of both benches. Each case is set up once and can be repeated any number of times.

#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "each bench uses its own part of this"
)]

mod codec;
mod crowd;
mod fleet;
mod passing;
#[path = "../../tests/support/shard.rs"]
mod shard_value;

pub use codec::{Decoding, EncodingEvent, Handshake, Parsing, RemotePublishes};
pub use crowd::{Crowd, Recovering};
pub use fleet::Fleet;
pub use passing::{Hop, Passing};

/// A client's frame, with a mask that changes every byte.
pub fn client_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x9A, 0x17, 0xE3, 0x5C];
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        length @ ..=125 => frame.push(0x80 | length as u8),
        length @ ..=0xFFFF => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// The request that a browser sends to open a WebSocket.
pub fn handshake(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: edge.example.org\r\nConnection: Upgrade\r\nPragma: no-cache\r\n\
         Cache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 \
         (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36\r\nUpgrade: websocket\r\n\
         Origin: https://example.org\r\nSec-WebSocket-Version: 13\r\n\
         Accept-Encoding: gzip, deflate, br\r\nAccept-Language: en-US,en;q=0.9\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// A call of a back end that publishes so many bytes.
pub fn publish_call(channel: &str, bytes: usize) -> String {
    let data = "x".repeat(bytes);
    format!(r#"{{"m":"mesh.publish","p":{{"c":"{channel}","d":"{data}"}},"i":12345}}"#)
}

/// The same over HTTP.
pub fn publish_post(channel: &str, bytes: usize) -> String {
    let body = format!(r#"{{"c":"{channel}","d":"{}"}}"#, "x".repeat(bytes));
    let length = body.len();
    format!(
        "POST /v1/mesh/publish HTTP/1.1\r\nHost: 127.0.0.1:6789\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}
