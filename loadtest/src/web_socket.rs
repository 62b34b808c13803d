//! The WebSocket of a back end: frames are written into the buffer that is sent, and read in the one
//! that has come (RFC 6455).

use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

use anyhow::{Result, bail};

use crate::client::Socket;
use crate::connection::Connection;
use crate::raw::{self, Frame};

/// A WebSocket whose messages are all of one kind and of one frame each.
pub struct WebSocket {
    connection: Connection,
    kind: u8,
    masks: Masks,
}

impl WebSocket {
    /// Goes on where `socket` stands, which has no message unread. `kind` is how its frames begin:
    /// [`raw::TEXT`] or [`raw::BINARY`].
    pub fn of(socket: Socket, kind: u8) -> Self {
        let connection = Connection::of(socket.into_inner().into_inner());
        Self { connection, kind, masks: Masks(RandomState::new().hash_one(kind)) }
    }

    /// Adds the message that `parts` make to those that the next flush sends.
    pub fn feed(&mut self, parts: &[&[u8]]) {
        raw::put_frame(self.connection.outbound(), self.kind, self.masks.next(), parts);
    }

    /// Sends what was fed.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn flush(&mut self) -> Result<()> {
        self.connection.flush().await
    }

    /// When the message that was read last had come.
    pub fn received_at(&self) -> Instant {
        self.connection.received_at()
    }

    /// Waits for the next message and reads it by `read`; pings are answered. The wait may be given
    /// up at any time: nothing is lost.
    ///
    /// # Errors
    /// The connection has ended, something else came, or `read` refuses the message.
    pub async fn next<T>(&mut self, read: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
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
                raw::CLOSE => bail!("the server closed an API connection{}", why(payload)),
                _ if first == self.kind => {
                    let message = read(payload);
                    self.connection.take(bytes);
                    return message;
                }
                _ => bail!("a frame that begins with {first:#x}"),
            }
        }
    }
}

/// What a close tells, if it tells anything: its code and its reason.
fn why(payload: &[u8]) -> String {
    payload.split_first_chunk().map_or(String::new(), |(code, reason)| {
        format!(": {} {}", u16::from_be_bytes(*code), String::from_utf8_lossy(reason))
    })
}

/// Masks, another for each frame and never zero. Nobody is between us and the server whom they would
/// have to surprise (RFC 6455, section 10.3), so the steps of a linear congruential generator will
/// do, whose upper bits are the better ones.
struct Masks(u64);

impl Masks {
    fn next(&mut self) -> [u8; 4] {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((self.0 >> 32) as u32 | 1).to_ne_bytes()
    }
}

#[cfg(test)]
mod tests {
    use async_tungstenite::WebSocketStream;
    use async_tungstenite::tokio::{TokioAdapter, accept_async};
    use async_tungstenite::tungstenite::Message;
    use async_tungstenite::tungstenite::protocol::CloseFrame;
    use futures_util::{SinkExt, StreamExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::client;

    /// A back end and the server at its other end.
    async fn connected() -> Result<(WebSocket, WebSocketStream<TokioAdapter<TcpStream>>)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let accept = async { Ok(accept_async(listener.accept().await?.0).await?) };
        let (socket, server) = tokio::try_join!(client::open(address, "/", 4096), accept)?;
        Ok((WebSocket::of(socket, raw::TEXT), server))
    }

    async fn next_text(web_socket: &mut WebSocket) -> Result<String> {
        web_socket.next(|text| Ok(str::from_utf8(text)?.to_owned())).await
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
        assert_eq!(error.to_string(), "the server closed an API connection: 1001 away");

        let (mut back_end, server) = connected().await?;
        drop(server);
        let error = next_text(&mut back_end).await.expect_err("it has ended");
        assert_eq!(error.to_string(), "the server ended an API connection");
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
