//! A back end that publishes: requests are queued one by one, sent together, and answered in order.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use itoa::Buffer;

use crate::answer::Tally;
use crate::client;
use crate::dialect::Dialect;
use crate::http::HttpConnection;
use crate::nats::{self, Nats, Said};
use crate::raw;
use crate::target::Target;
use crate::web_socket::WebSocket;

/// Requests in progress on one connection. Their answers, about 60 to 200 bytes each, have to fit the server's
/// outbound buffer of 1 MiB while requests are still being written.
pub const IN_FLIGHT_MAX: i64 = 1024;

/// A connection to the API.
pub enum Publisher {
    /// A WebSocket at `/ws/v1`.
    WebSocket(WebSocket),
    /// Pipelined `POST /v1/mesh/publish`.
    Http(HttpConnection),
    /// A WebSocket at `/pub/CHANNEL` of a server that speaks [`Dialect::Channels`].
    Channel(WebSocket),
    /// Pipelined `POST /pub/CHANNEL`.
    HttpChannel(HttpConnection),
    /// A NATS connection, with the number of confirmations that were not counted.
    Nats(Nats, u32),
}

/// The receivers of a message.
#[derive(Clone)]
pub enum Destination {
    /// All subscribers of the channel with this name.
    Channel(String),
    /// The client with this id.
    Client(String),
}

impl Publisher {
    /// Connects to the API of `target`. A WebSocket of [`Dialect::Channels`] publishes to the channel of `to` only.
    ///
    /// # Errors
    /// The connection failed, or the server refused the upgrade.
    pub async fn open(target: Target, to: &Destination, over_http: bool) -> Result<Self> {
        let api = target.api;
        Ok(match (target.dialect, over_http) {
            (Dialect::Gridcast, true) => Self::Http(HttpConnection::open(api).await?),
            (Dialect::Gridcast, false) => {
                Self::WebSocket(client::open(api, "/ws/v1", raw::TEXT).await?)
            }
            (Dialect::Channels | Dialect::Bare, true) => {
                Self::HttpChannel(HttpConnection::open(api).await?)
            }
            (Dialect::Channels | Dialect::Bare, false) => {
                let path = format!("/pub/{}", name_of_channel(to)?);
                Self::Channel(client::open(api, &path, raw::TEXT).await?)
            }
            (Dialect::Nats, true) => bail!("NATS does not publish over HTTP"),
            (Dialect::Nats, false) => {
                let socket = client::open(api, "/", raw::BINARY).await?;
                Self::Nats(Nats::greet(socket, true, None).await?, 0)
            }
        })
    }

    /// Queues a request to publish or send `data`, which JSON need not escape.
    ///
    /// # Errors
    /// The protocol has no such destination.
    pub fn feed(&mut self, i: u32, to: &Destination, data: &[u8]) -> Result<()> {
        let (method, name) = match to {
            Destination::Channel(channel) => ("publish", channel),
            Destination::Client(id) => ("send", id),
        };
        let mut room = Buffer::new();
        match self {
            Self::WebSocket(socket) => socket.feed(&[
                br#"{"m":"mesh."#,
                method.as_bytes(),
                br#"","p":{"c":""#,
                name.as_bytes(),
                br#"","d":""#,
                data,
                br#""},"i":"#,
                room.format(i).as_bytes(),
                b"}",
            ]),
            Self::Http(connection) => {
                let body: [&[u8]; _] =
                    [br#"{"c":""#, name.as_bytes(), br#"","d":""#, data, br#""}"#];
                connection.feed(&[b"/v1/mesh/", method.as_bytes()], &body);
            }
            Self::Channel(socket) => socket.feed(&[data]),
            Self::HttpChannel(connection) => {
                connection.feed(&[b"/pub/", name_of_channel(to)?.as_bytes()], &[data]);
            }
            Self::Nats(nats, _) => nats.socket.feed(&nats::publish(name, data, &mut room)),
        }
        Ok(())
    }

    /// Sends the queued requests.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn flush(&mut self) -> Result<()> {
        match self {
            Self::WebSocket(socket)
            | Self::Channel(socket)
            | Self::Nats(Nats { socket, .. }, _) => socket.flush().await,
            Self::Http(connection) | Self::HttpChannel(connection) => connection.flush().await,
        }
    }

    /// Waits for the next answer. Returns the id of its request, and its tally if it has one. If answers of the
    /// protocol have no id, that is `due`. Safe to cancel.
    ///
    /// # Errors
    /// The connection has ended, the answer reports a failure, or it has no id.
    pub async fn answer(&mut self, due: u32) -> Result<(u32, Option<Tally>)> {
        match self {
            Self::WebSocket(socket) => {
                let (i, tally) = socket.next(|answer, _| Tally::parse(answer)).await?;
                Ok((i.context("an answer without the id of its request")?, Some(tally)))
            }
            Self::Http(connection) => Ok((due, Some(connection.response(Tally::parse).await?.1))),
            Self::Channel(socket) => {
                socket.next(|_, _| Ok(())).await?;
                Ok((due, None))
            }
            Self::HttpChannel(connection) => {
                connection.response(|_| Ok(())).await?;
                Ok((due, None))
            }
            Self::Nats(nats, confirmed) => {
                take_ok(nats, confirmed).await?;
                Ok((due, None))
            }
        }
    }

    /// When the last answer arrived.
    pub fn received_at(&self) -> Instant {
        match self {
            Self::WebSocket(socket)
            | Self::Channel(socket)
            | Self::Nats(Nats { socket, .. }, _) => socket.received_at(),
            Self::Http(connection) | Self::HttpChannel(connection) => connection.received_at(),
        }
    }
}

/// Waits until NATS has confirmed one more command than were counted.
async fn take_ok(nats: &mut Nats, confirmed: &mut u32) -> Result<()> {
    while *confirmed == 0 {
        let hear = |said: Said, _| {
            ensure!(said == Said::Ok, "a message for a connection that only publishes");
            *confirmed += 1;
            Ok(())
        };
        nats.hear(hear).await?;
    }
    *confirmed -= 1;
    Ok(())
}

fn name_of_channel(to: &Destination) -> Result<&str> {
    match to {
        Destination::Channel(channel) => Ok(channel),
        Destination::Client(_) => bail!("a server with channels alone sends to no client"),
    }
}
