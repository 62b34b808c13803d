//! A back end that publishes: requests fed one by one, sent together, answered in order.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use async_tungstenite::tungstenite::Message;
use futures_util::SinkExt;
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer};

use crate::client::{self, Socket};
use crate::dialect::{self, Dialect};
use crate::http::HttpConnection;
use crate::nats::{self, Received, Said};
use crate::server::Target;

/// Requests that may be under way on one connection. Their answers, some 60 to 200 bytes each,
/// have to fit the server's outbound buffer of 1 MiB while we still write.
pub const IN_FLIGHT_MAX: i64 = 1024;

/// Read buffer of an API connection, for the answers to many requests at once.
pub const READ_BUFFER_BYTES: usize = 16 * 1024;

/// One connection to the API.
pub enum Publisher {
    /// On `/ws/v1`.
    WebSocket(Box<Socket>),
    /// `POST /v1/mesh/publish`, pipelined.
    Http(HttpConnection),
    /// On `/pub/CHANNEL` of a server that speaks [`Dialect::Channels`].
    Channel(Box<Socket>),
    /// `POST /pub/CHANNEL`, pipelined.
    HttpChannel(HttpConnection),
    /// Of NATS.
    Nats(Box<Socket>, Received),
}

/// Whom a message is for.
#[derive(Clone)]
pub enum Destination {
    /// All who are subscribed to the channel of this name.
    Channel(String),
    /// The client with this id.
    Client(String),
}

/// How many connections took a message, and how many did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Tally {
    /// Connections that took it; of a message to one client, 1.
    #[serde(deserialize_with = "number_or_true")]
    pub s: u64,
    /// Connections that did not.
    #[serde(default)]
    pub f: u64,
}

/// A publish is answered with a number, a send with `true`.
fn number_or_true<'a, D: Deserializer<'a>>(deserializer: D) -> Result<u64, D::Error> {
    struct Reached;

    impl Visitor<'_> for Reached {
        type Value = u64;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a number, or whether it was sent")
        }

        fn visit_u64<E>(self, number: u64) -> Result<u64, E> {
            Ok(number)
        }

        fn visit_bool<E>(self, is_so: bool) -> Result<u64, E> {
            Ok(is_so.into())
        }
    }

    deserializer.deserialize_any(Reached)
}

/// An answer of the API, as the protocol has it.
#[derive(Deserialize)]
pub struct Answer<R> {
    #[serde(rename = "E")]
    error: Option<Failure>,
    r: Option<R>,
    /// The id of the request; absent over HTTP.
    i: Option<u32>,
}

#[derive(Deserialize)]
struct Failure {
    c: i64,
    m: String,
}

impl<R: DeserializeOwned> Answer<R> {
    /// Reads an answer; gives the id of the request and the result.
    ///
    /// # Errors
    /// It is none, or one that reports a failure.
    pub fn parse(json: &[u8]) -> Result<(Option<u32>, R)> {
        let answer: Self = serde_json::from_slice(json)
            .with_context(|| format!("not an answer: {}", String::from_utf8_lossy(json)))?;
        if let Some(Failure { c, m }) = answer.error {
            bail!("the server answered with error {c}: {m}");
        }
        Ok((answer.i, answer.r.context("an answer without result and without error")?))
    }
}

impl Publisher {
    /// Connects to the API of `target`. Over WebSocket, a server with channels is told at once for
    /// which one: the one of `to`.
    ///
    /// # Errors
    /// It could not connect, or the server refused the upgrade.
    pub async fn open(target: Target, to: &Destination, over_http: bool) -> Result<Self> {
        let api = target.api;
        Ok(match (target.dialect, over_http) {
            (Dialect::Gridcast, true) => Self::Http(HttpConnection::open(api).await?),
            (Dialect::Gridcast, false) => {
                Self::WebSocket(Box::new(client::open(api, "/ws/v1", READ_BUFFER_BYTES).await?))
            }
            (Dialect::Channels, true) => Self::HttpChannel(HttpConnection::open(api).await?),
            (Dialect::Channels, false) => {
                let path = path_of_channel(to)?;
                Self::Channel(Box::new(client::open(api, &path, READ_BUFFER_BYTES).await?))
            }
            (Dialect::Nats, true) => bail!("NATS does not publish over HTTP"),
            (Dialect::Nats, false) => {
                let mut socket = client::open(api, "/", READ_BUFFER_BYTES).await?;
                dialect::greet(&mut socket, true, None).await?;
                Self::Nats(Box::new(socket), Received::default())
            }
        })
    }

    /// Adds a request to publish or send `data`, which JSON need not escape.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn feed(&mut self, i: u32, to: &Destination, data: &str) -> Result<()> {
        let (method, name) = match to {
            Destination::Channel(channel) => ("publish", channel),
            Destination::Client(id) => ("send", id),
        };
        match self {
            Self::WebSocket(socket) => {
                let request =
                    format!(r#"{{"m":"mesh.{method}","p":{{"c":"{name}","d":"{data}"}},"i":{i}}}"#);
                socket.feed(Message::text(request)).await?;
            }
            Self::Http(connection) => {
                let body = format!(r#"{{"c":"{name}","d":"{data}"}}"#);
                connection.feed(&format!("/v1/mesh/{method}"), &body);
            }
            Self::Channel(socket) => socket.feed(Message::text(data)).await?,
            Self::HttpChannel(connection) => connection.feed(&path_of_channel(to)?, data),
            Self::Nats(socket, _) => socket.feed(nats::frame(nats::publish(name, data))).await?,
        }
        Ok(())
    }

    /// Sends what was fed.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn flush(&mut self) -> Result<()> {
        match self {
            Self::WebSocket(socket) | Self::Channel(socket) | Self::Nats(socket, _) => {
                Ok(socket.flush().await?)
            }
            Self::Http(connection) | Self::HttpChannel(connection) => connection.flush().await,
        }
    }

    /// The next answer: the id of its request, and its result if it has one that counts. Where
    /// answers bring back no id, it is the one that is `due`. The wait may be given up at any time:
    /// nothing is lost.
    ///
    /// # Errors
    /// The connection has ended, the answer reports a failure, or it has no id.
    pub async fn answer(&mut self, due: u32) -> Result<(u32, Option<Tally>)> {
        const ENDED: &str = "the server ended an API connection";
        match self {
            Self::WebSocket(socket) => {
                let text = client::next_text(socket).await.context(ENDED)?;
                let (i, tally) = Answer::parse(text.as_bytes())?;
                Ok((i.context("an answer without the id of its request")?, Some(tally)))
            }
            Self::Http(connection) => Ok((due, Some(connection.response(Answer::parse).await?.1))),
            Self::Channel(socket) => {
                client::next_text(socket).await.context(ENDED)?;
                Ok((due, None))
            }
            Self::HttpChannel(connection) => {
                connection.response(|_| Ok(())).await?;
                Ok((due, None))
            }
            Self::Nats(socket, received) => {
                let said = received.next(socket).await?.context(ENDED)?;
                ensure!(said == Said::Ok, "a message for a connection that only publishes");
                Ok((due, None))
            }
        }
    }
}

fn path_of_channel(to: &Destination) -> Result<String> {
    match to {
        Destination::Channel(channel) => Ok(format!("/pub/{channel}")),
        Destination::Client(_) => bail!("a server with channels alone sends to no client"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_gives_its_id_and_result() {
        let answer = Answer::<Tally>::parse(br#"{"E":null,"r":{"s":9,"f":1},"i":7}"#);
        assert_eq!(answer.expect("it reports success"), (Some(7), Tally { s: 9, f: 1 }));
    }

    #[test]
    fn an_answer_over_http_has_no_id() {
        let answer = Answer::<Tally>::parse(br#"{"E":null,"r":{"s":9,"f":1}}"#);
        assert_eq!(answer.expect("it reports success").0, None);
    }

    #[test]
    fn a_client_that_was_sent_to_is_one_that_was_reached() {
        let answer = Answer::<Tally>::parse(br#"{"E":null,"r":{"s":true},"i":7}"#);
        assert_eq!(answer.expect("it reports success").1, Tally { s: 1, f: 0 });
    }

    #[test]
    fn a_failure_is_an_error_with_its_code_and_message() {
        let answer = Answer::<Tally>::parse(br#"{"E":{"c":101,"m":"why"},"i":7}"#);
        let error = answer.expect_err("it reports a failure").to_string();
        assert!(error.contains("101: why"), "{error}");
    }
}
