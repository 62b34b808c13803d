//! The protocol of NATS, as much as it takes to be measured: inside WebSocket frames, whose limits
//! mean nothing to it (docs.nats.io, "Client Protocol").

use anyhow::{Context, Result, bail};
use async_tungstenite::tungstenite::{Bytes, Message, Utf8Bytes};
use futures_util::StreamExt;
use itoa::Buffer;

use crate::client::Socket;

/// Longest line that a server sends; INFO is some 500 bytes.
const LINE_BYTES_MAX: usize = 4096;

/// What a server says.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// To a subscriber.
    Message(Utf8Bytes),
    /// `+OK`: to a client that asked to be told of each of its commands.
    Ok,
    /// Asks whether we are there.
    Ping,
    /// It is there.
    Pong,
}

/// What a connection has received and nobody has read.
#[derive(Default)]
pub struct Received(Bytes);

/// The first thing to say; with `verbose`, every command is answered.
pub fn connect(verbose: bool) -> String {
    format!("CONNECT {{\"verbose\":{verbose},\"pedantic\":false}}\r\n")
}

/// Publishes `data` to `subject`; in parts, among them its length, for which there is room.
pub fn publish<'a>(subject: &'a str, data: &'a [u8], room: &'a mut Buffer) -> [&'a [u8]; 7] {
    let length = room.format(data.len()).as_bytes();
    [b"PUB ", subject.as_bytes(), b" ", length, b"\r\n", data, b"\r\n"]
}

/// Says that we are there.
pub const PONG: &str = "PONG\r\n";

/// Commands as a frame.
pub fn frame(commands: impl Into<Bytes>) -> Message {
    Message::binary(commands)
}

impl Received {
    /// All has been read.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds what came.
    pub fn add(&mut self, more: Bytes) {
        self.0 = if self.0.is_empty() { more } else { [&self.0[..], &more].concat().into() };
    }

    /// Reads what comes first; `None` if it is not all here yet.
    ///
    /// # Errors
    /// The server reports an error, or does not speak the protocol.
    pub fn take(&mut self) -> Result<Option<Said>> {
        take(&mut self.0)
    }

    /// What comes next on `socket`; `None` once the connection has ended. A ping is answered.
    ///
    /// May be given up at any time: nothing is lost.
    ///
    /// # Errors
    /// Those of [`Received::take`].
    pub async fn next(&mut self, socket: &mut Socket) -> Result<Option<Said>> {
        loop {
            match self.take()? {
                Some(Said::Ping) => socket.send(frame(PONG)).await?,
                Some(said) => return Ok(Some(said)),
                None => match socket.next().await {
                    Some(Ok(Message::Binary(more))) => self.add(more),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    _ => return Ok(None),
                },
            }
        }
    }
}

/// Takes what `received` begins with; `None` if that is not all here yet.
fn take(received: &mut Bytes) -> Result<Option<Said>> {
    loop {
        let Some(end) = received.windows(2).position(|two| two == b"\r\n") else {
            anyhow::ensure!(received.len() <= LINE_BYTES_MAX, "a line of more than 4 KiB");
            return Ok(None);
        };
        let line = str::from_utf8(&received[..end]).context("a line that is not text")?;
        let said = match line.split(' ').next() {
            Some("MSG") => {
                let bytes = line.rsplit(' ').next().and_then(|number| number.parse().ok());
                let bytes: usize = bytes.with_context(|| format!("not a message: {line}"))?;
                let data = end + 2..(end + 2).saturating_add(bytes);
                let after = data.end.saturating_add(2);
                if received.len() < after {
                    return Ok(None);
                }
                let data = received.slice(data);
                *received = received.slice(after..);
                return Ok(Some(Said::Message(data.try_into()?)));
            }
            Some("+OK") => Some(Said::Ok),
            Some("PING") => Some(Said::Ping),
            Some("PONG") => Some(Said::Pong),
            Some("INFO") => None,
            _ => bail!("the server said {line:.200}"),
        };
        *received = received.slice(end + 2..);
        if said.is_some() {
            return Ok(said);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = "INFO {}\r\n+OK\r\nMSG load 1 5\r\na\r\nbc\r\nPING\r\nPONG\r\n";

    #[test]
    fn every_split_reads_the_same() {
        for split in 0..ALL.len() {
            let mut received = Bytes::from_static(&ALL.as_bytes()[..split]);
            let mut said = Vec::new();
            while let Some(one) = take(&mut received).expect("it is well-formed") {
                said.push(one);
            }
            received = [&received[..], &ALL.as_bytes()[split..]].concat().into();
            while let Some(one) = take(&mut received).expect("it is well-formed") {
                said.push(one);
            }
            let message = Said::Message("a\r\nbc".into());
            assert_eq!(said, [Said::Ok, message, Said::Ping, Said::Pong], "split at {split}");
            assert!(received.is_empty());
        }
    }

    #[test]
    fn an_error_of_the_server_is_one() {
        for said in ["-ERR 'Authorization Violation'\r\n", "MSG load 1 x\r\n", "what?\r\n"] {
            assert!(take(&mut Bytes::from_static(said.as_bytes())).is_err(), "{said}");
        }
    }

    #[test]
    fn what_is_published_tells_its_length() {
        let mut room = Buffer::new();
        assert_eq!(publish("load", b"abc", &mut room).concat(), b"PUB load 3\r\nabc\r\n");
    }
}
