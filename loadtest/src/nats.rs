//! The part of the NATS protocol that a measurement needs, inside WebSocket frames, whose boundaries do not
//! matter to it (docs.nats.io, "Client Protocol").

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use itoa::Buffer;

use crate::web_socket::WebSocket;

/// The longest line of a server. INFO has about 500 bytes.
const LINE_BYTES_MAX: usize = 4096;

/// A message of the server.
#[derive(Debug, PartialEq, Eq)]
pub enum Said<'a> {
    /// `MSG`: a message to a subscriber.
    Message(&'a [u8]),
    /// `+OK`: a confirmation, if the client has asked for them.
    Ok,
    /// `PING`.
    Ping,
    /// `PONG`.
    Pong,
}

/// A connection.
pub struct Nats {
    /// The WebSocket that carries the connection.
    pub socket: WebSocket,
    received: Received,
}

/// The start of an incomplete message.
#[derive(Default)]
struct Received(Vec<u8>);

impl Nats {
    /// Continues on a socket whose messages have all been read.
    pub fn of(socket: WebSocket) -> Self {
        Self { socket, received: Received::default() }
    }

    /// Connects on `socket`, with every command confirmed if `verbose`. Waits until the subscription to
    /// `channel`, if there is one, is effective.
    ///
    /// # Errors
    /// The server refused.
    pub async fn greet(socket: WebSocket, verbose: bool, channel: Option<&str>) -> Result<Self> {
        let mut nats = Self::of(socket);
        let subscribe = channel.map_or(String::new(), |channel| format!("SUB {channel} 1\r\n"));
        nats.socket.feed(&[connect(verbose).as_bytes(), subscribe.as_bytes(), b"PING\r\n"]);
        nats.socket.flush().await?;
        let mut is_there = false;
        while !is_there {
            let hear = |said: Said, _| {
                ensure!(
                    matches!(said, Said::Ok | Said::Pong),
                    "a message before any was published"
                );
                is_there |= said == Said::Pong;
                Ok(())
            };
            nats.hear(hear).await?;
        }
        ensure!(nats.received.0.is_empty(), "a message before any was published");
        Ok(nats)
    }

    /// Waits for input and passes each complete message to `hear`, with its time of arrival. Answers pings. Safe
    /// to cancel.
    ///
    /// # Errors
    /// The connection has ended, the server reports an error or violates the protocol, or `hear` fails.
    pub async fn hear(&mut self, mut hear: impl FnMut(Said, Instant) -> Result<()>) -> Result<()> {
        let (socket, received, mut pings) = (&mut self.socket, &mut self.received, 0);
        let reading = socket.next(|more, at| {
            received.read(more, |said| match said {
                Said::Ping => {
                    pings += 1;
                    Ok(())
                }
                said => hear(said, at),
            })
        });
        reading.await?;
        for _ in 0..pings {
            socket.feed(&[b"PONG\r\n"]);
        }
        socket.flush().await
    }
}

/// The CONNECT command. With `verbose`, the server confirms every command.
fn connect(verbose: bool) -> String {
    format!("CONNECT {{\"verbose\":{verbose},\"pedantic\":false}}\r\n")
}

/// The parts of a PUB command, whose length is written into `buffer`.
pub fn publish<'a>(subject: &'a str, data: &'a [u8], room: &'a mut Buffer) -> [&'a [u8]; 7] {
    let length = room.format(data.len()).as_bytes();
    [b"PUB ", subject.as_bytes(), b" ", length, b"\r\n", data, b"\r\n"]
}

/// The parts of a PUB command whose message is answered to the subject `inbox`. The length is written into `buffer`.
pub fn request<'a>(
    subject: &'a str,
    inbox: &'a str,
    data: &'a [u8],
    room: &'a mut Buffer,
) -> [&'a [u8]; 9] {
    let [publish, subject, space, rest @ ..] = publish(subject, data, room);
    let [length, end, data, last] = rest;
    [publish, subject, space, inbox.as_bytes(), space, length, end, data, last]
}

impl Received {
    /// Appends `more`, passes each complete message to `hear`, and keeps the rest.
    fn read(&mut self, more: &[u8], hear: impl FnMut(Said) -> Result<()>) -> Result<()> {
        if self.0.is_empty() {
            let rest = take_all(more, hear)?;
            self.0.extend_from_slice(rest);
        } else {
            self.0.extend_from_slice(more);
            let rest = take_all(&self.0, hear)?.len();
            self.0.drain(..self.0.len() - rest);
        }
        Ok(())
    }
}

/// Passes each complete message to `hear`, and returns the rest.
fn take_all(mut received: &[u8], mut hear: impl FnMut(Said) -> Result<()>) -> Result<&[u8]> {
    while let Some((said, rest)) = take(received)? {
        said.map_or(Ok(()), &mut hear)?;
        received = rest;
    }
    Ok(received)
}

/// The first message of `received`, if it is a relevant one, and the rest. `None`: the message is incomplete.
fn take(received: &[u8]) -> Result<Option<(Option<Said<'_>>, &[u8])>> {
    let Some(end) = received.iter().position(|&byte| byte == b'\n') else {
        ensure!(received.len() <= LINE_BYTES_MAX, "a line of more than 4 KiB");
        return Ok(None);
    };
    let (line, rest) = (received[..end].trim_ascii_end(), &received[end + 1..]);
    let said = match line {
        [b'M', b'S', b'G', b' ', ..] => {
            let length = line.rsplit(|&byte| byte == b' ').next().and_then(number);
            let length = length.with_context(|| format!("not a message: {}", shown(line)))?;
            let Some((data, rest)) = rest.split_at_checked(length) else { return Ok(None) };
            let Some((end, rest)) = rest.split_first_chunk() else { return Ok(None) };
            ensure!(end == b"\r\n", "a message of another length than its line says");
            return Ok(Some((Some(Said::Message(data)), rest)));
        }
        b"+OK" => Some(Said::Ok),
        b"PING" => Some(Said::Ping),
        b"PONG" => Some(Said::Pong),
        [b'I', b'N', b'F', b'O', b' ', ..] => None,
        _ => bail!("the server said {}", shown(line)),
    };
    Ok(Some((said, rest)))
}

/// The number that `digits` represent.
fn number(digits: &[u8]) -> Option<usize> {
    str::from_utf8(digits).ok()?.parse().ok()
}

/// A line as text for an error.
fn shown(line: &[u8]) -> String {
    format!("{:.200}", String::from_utf8_lossy(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = "INFO {}\r\n+OK\r\nMSG load 1 5\r\na\r\nbc\r\nPING\r\nPONG\r\n";

    #[test]
    fn every_split_reads_the_same() {
        for split in 0..=ALL.len() {
            let (mut received, mut said) = (Received::default(), Vec::new());
            for more in [&ALL[..split], &ALL[split..]] {
                let hear = |one: Said| {
                    said.push(format!("{one:?}"));
                    Ok(())
                };
                received.read(more.as_bytes(), hear).expect("it is well-formed");
            }
            let all = [Said::Ok, Said::Message(b"a\r\nbc"), Said::Ping, Said::Pong];
            assert_eq!(said, all.map(|one| format!("{one:?}")), "split at {split}");
            assert!(received.0.is_empty());
        }
    }

    #[test]
    fn an_error_of_the_server_is_one() {
        for said in [
            "-ERR 'Authorization Violation'\r\n",
            "MSG load 1 x\r\n",
            "MSG load 1 2\r\nabc\r\n",
            "what?\r\n",
        ] {
            assert!(take(said.as_bytes()).is_err(), "{said}");
        }
    }

    #[test]
    fn a_line_without_end_is_an_error() {
        assert_eq!(take(&[b'x'; LINE_BYTES_MAX]).expect("it may still end"), None);
        assert!(take(&[b'x'; LINE_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn what_is_published_tells_its_length() {
        let mut room = Buffer::new();
        assert_eq!(publish("load", b"abc", &mut room).concat(), b"PUB load 3\r\nabc\r\n");
        let request = request("load", "_INBOX.1", b"abc", &mut room).concat();
        assert_eq!(request, b"PUB load _INBOX.1 3\r\nabc\r\n");
    }
}
