//! A back end that publishes: requests fed one by one, sent together, answered in order.

use anyhow::{Context, Result, bail, ensure};
use async_tungstenite::tungstenite::Message;
use futures_util::SinkExt;

use crate::answer::{Answer, Tally};
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
