//! A WebSocket without copies: frames are written into the send buffer, and read in place (RFC 6455).

use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

use anyhow::{Result, bail, ensure};

use crate::connection::{Connection, Ended};
use crate::raw::{self, Frame, HEAD_END};

/// A WebSocket whose messages all have one kind and one frame each.
pub struct WebSocket {
    connection: Connection,
    kind: u8,
    masks: Masks,
}

impl WebSocket {
    /// Opens a WebSocket on `path`, with additional header `lines` in the request. `kind` is the first byte of its frames:
    /// [`raw::TEXT`] or [`raw::BINARY`].
    ///
    /// # Errors
    /// The server refuses, or ends the connection.
    pub async fn open(
        mut connection: Connection,
        path: &str,
        lines: &str,
        kind: u8,
    ) -> Result<Self> {
        let request = raw::upgrade_request_with(path, lines);
        connection.outbound().extend_from_slice(request.as_bytes());
        connection.flush().await?;
        let head_bytes = loop {
            let mut ends = connection.unread().windows(HEAD_END.len());
            if let Some(at) = ends.position(|end| end == HEAD_END) {
                break at + HEAD_END.len();
            }
            connection.receive().await?;
        };
        let head = String::from_utf8_lossy(&connection.unread()[..head_bytes]);
        let is_granted = head.starts_with("HTTP/1.1 101 ") && head.contains(raw::ACCEPT);
        ensure!(
            is_granted,
            "the server refused a WebSocket: {}",
            head.lines().next().unwrap_or("")
        );
        connection.take(head_bytes);
        Ok(Self { connection, kind, masks: Masks(RandomState::new().hash_one(kind)) })
    }

    /// Queues the message in `parts` for the next flush.
    pub fn feed(&mut self, parts: &[&[u8]]) {
        raw::put_frame(self.connection.outbound(), self.kind, self.masks.next(), parts);
    }

    /// Sends the queued messages.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn flush(&mut self) -> Result<()> {
        self.connection.flush().await
    }

    /// When the last message arrived.
    pub fn received_at(&self) -> Instant {
        self.connection.received_at()
    }

    /// Waits for messages and passes each to `read`, with its time of arrival. Answers pings. Safe to cancel.
    ///
    /// # Errors
    /// The connection has [`Ended`], a frame is not a message of this kind, or `read` refuses the message.
    pub async fn next<T>(&mut self, read: impl FnOnce(&[u8], Instant) -> Result<T>) -> Result<T> {
        loop {
            let unread = self.connection.unread();
            let Some((Frame { first, payload }, rest)) = raw::take_frame(unread) else {
                self.connection.receive().await?;
                continue;
            };
            let bytes = unread.len() - rest.len();
            match first {
                raw::PING => {
                    let payload = payload.to_owned();
                    let (key, outbound) = (self.masks.next(), self.connection.outbound());
                    raw::put_frame(outbound, raw::PONG, key, &[&payload]);
                    self.connection.take(bytes);
                    self.connection.flush().await?;
                }
                raw::PONG => self.connection.take(bytes),
                raw::CLOSE => bail!(Ended(why(payload))),
                _ if first == self.kind => {
                    let message = read(payload, self.connection.received_at());
                    self.connection.take(bytes);
                    return message;
                }
                _ => bail!("a frame that begins with {first:#x}"),
            }
        }
    }
}

/// The code and reason of a close, if it has any.
fn why(payload: &[u8]) -> String {
    payload.split_first_chunk().map_or(String::new(), |(code, reason)| {
        format!(": {} {}", u16::from_be_bytes(*code), String::from_utf8_lossy(reason))
    })
}

/// Masks, one per frame and never zero. There is no intermediary, against which masks should be unpredictable
/// (RFC 6455, section 10.3). So a linear congruential generator is sufficient, of which the upper bits are the
/// better ones.
struct Masks(u64);

impl Masks {
    fn next(&mut self) -> [u8; 4] {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((self.0 >> 32) as u32 | 1).to_ne_bytes()
    }
}

#[cfg(test)]
pub mod tests {
    use async_tungstenite::WebSocketStream;
    use async_tungstenite::tokio::{TokioAdapter, accept_async};
    use async_tungstenite::tungstenite::Message;
    use async_tungstenite::tungstenite::protocol::CloseFrame;
    use futures_util::{SinkExt, StreamExt};
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    /// A client and the server at its other end.
    pub async fn connected() -> Result<(WebSocket, WebSocketStream<TokioAdapter<TcpStream>>)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let accept = async { Ok(accept_async(listener.accept().await?.0).await?) };
        let connection = Connection::of(TcpStream::connect(address).await?);
        Ok(tokio::try_join!(WebSocket::open(connection, "/", "", raw::TEXT), accept)?)
    }

    async fn next_text(web_socket: &mut WebSocket) -> Result<String> {
        web_socket.next(|text, _| Ok(str::from_utf8(text)?.to_owned())).await
    }

    #[tokio::test]
    async fn what_comes_right_behind_the_handshake_is_read() -> Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let connection = Connection::of(TcpStream::connect(listener.local_addr()?).await?);
        let (mut server, _) = listener.accept().await?;
        let head = format!("HTTP/1.1 101 x\r\nSec-WebSocket-Accept: {}\r\n\r\n", raw::ACCEPT);
        server.write_all(&[head.as_bytes(), &[raw::TEXT, 2], b"hi"].concat()).await?;
        let mut client = WebSocket::open(connection, "/", "", raw::TEXT).await?;
        assert_eq!(next_text(&mut client).await?, "hi");
        Ok(())
    }

    #[tokio::test]
    async fn what_a_server_refuses_is_an_error_that_says_so() -> Result<()> {
        for head in ["HTTP/1.1 404 Not Found\r\n\r\n", "HTTP/1.1 101 x\r\n\r\n"] {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let connection = Connection::of(TcpStream::connect(listener.local_addr()?).await?);
            let (mut server, _) = listener.accept().await?;
            server.write_all(head.as_bytes()).await?;
            let refused = WebSocket::open(connection, "/", "", raw::TEXT).await.map(|_| ());
            let error = refused.expect_err("it was refused").to_string();
            assert!(error.ends_with(head.trim_end()), "{error}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_server_reads_what_was_fed_and_is_read() -> Result<()> {
        let (mut back_end, mut server) = connected().await?;
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let text = "x".repeat(length);
            back_end.feed(&[b"<", text.as_bytes(), b">"]);
            back_end.flush().await?;
            let received = server.next().await.expect("it is connected")?;
            assert_eq!(received, Message::text(format!("<{text}>")));
        }
        for text in ["one", "", &"x".repeat(40_000), "last"] {
            server.send(Message::text(text)).await?;
            assert_eq!(next_text(&mut back_end).await?, text);
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_ping_is_answered_by_the_way() -> Result<()> {
        let (mut back_end, mut server) = connected().await?;
        server.feed(Message::Pong("unasked".into())).await?;
        server.feed(Message::Ping("why?".into())).await?;
        server.send(Message::text("text")).await?;
        assert_eq!(next_text(&mut back_end).await?, "text");
        let received = server.next().await.expect("it is connected")?;
        assert_eq!(received, Message::Pong("why?".into()));
        Ok(())
    }

    #[tokio::test]
    async fn what_ends_a_connection_is_an_error_that_says_so() -> Result<()> {
        let (mut back_end, mut server) = connected().await?;
        let (code, reason) = (1001.into(), "away".into());
        server.send(Message::Close(Some(CloseFrame { code, reason }))).await?;
        let error = next_text(&mut back_end).await.expect_err("it was closed");
        assert_eq!(error.to_string(), "the server ended a connection: 1001 away");

        let (mut back_end, server) = connected().await?;
        drop(server);
        let error = next_text(&mut back_end).await.expect_err("it has ended");
        assert_eq!(error.to_string(), "the server ended a connection");
        Ok(())
    }

    #[tokio::test]
    async fn another_kind_of_message_is_an_error() -> Result<()> {
        let (mut back_end, mut server) = connected().await?;
        server.send(Message::binary("text")).await?;
        assert!(next_text(&mut back_end).await.is_err());
        Ok(())
    }
}
