//! A back end that publishes: requests fed one by one, sent together, answered in order.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use async_tungstenite::tungstenite::Message;
use futures_util::SinkExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::client::{self, Socket};
use crate::http::HttpConnection;
use crate::subscribers::CHANNEL;

/// Requests that may be under way on one connection. Their answers, some 60 to 200 bytes each,
/// have to fit the server's outbound buffer of 1 MiB while we still write.
pub const IN_FLIGHT_MAX: i64 = 1024;

/// Read buffer of an API connection, for the answers to many requests at once.
pub const READ_BUFFER_BYTES: usize = 128 * 1024;

/// One connection to the API.
pub enum Publisher {
    /// On `/ws/v1`.
    WebSocket(Box<Socket>),
    /// `POST /v1/mesh/publish`, pipelined.
    Http(HttpConnection),
}

/// How many connections took a published message, and how many did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Tally {
    /// Connections that took it.
    pub s: u64,
    /// Connections that did not.
    pub f: u64,
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
    /// Connects to the API at `address`.
    ///
    /// # Errors
    /// It could not connect, or the server refused the upgrade.
    pub async fn open(address: SocketAddr, over_http: bool) -> Result<Self> {
        Ok(if over_http {
            Self::Http(HttpConnection::open(address).await?)
        } else {
            let socket = client::open(address, "/ws/v1", READ_BUFFER_BYTES).await?;
            Self::WebSocket(Box::new(socket))
        })
    }

    /// Adds a request to publish `data`, which JSON need not escape, to [`CHANNEL`].
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn feed(&mut self, i: u32, data: &str) -> Result<()> {
        let parameters = format!(r#"{{"c":"{CHANNEL}","d":"{data}"}}"#);
        match self {
            Self::WebSocket(socket) => {
                let request = format!(r#"{{"m":"mesh.publish","p":{parameters},"i":{i}}}"#);
                socket.feed(Message::text(request)).await?;
            }
            Self::Http(connection) => connection.feed("/v1/mesh/publish", &parameters),
        }
        Ok(())
    }

    /// Sends what was fed.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn flush(&mut self) -> Result<()> {
        match self {
            Self::WebSocket(socket) => Ok(socket.flush().await?),
            Self::Http(connection) => connection.flush().await,
        }
    }

    /// The next answer: the id of its request and its result. HTTP brings back no id, so there it
    /// is the one that is `due`.
    ///
    /// # Errors
    /// The connection has ended, the answer reports a failure, or it has no id.
    pub async fn answer(&mut self, due: u32) -> Result<(u32, Tally)> {
        match self {
            Self::WebSocket(socket) => {
                let text = client::next_text(socket).await;
                let text = text.context("the server ended an API connection")?;
                let (i, tally) = Answer::parse(text.as_bytes())?;
                Ok((i.context("an answer without the id of its request")?, tally))
            }
            Self::Http(connection) => Ok((due, connection.response(Answer::parse).await?.1)),
        }
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
    fn a_failure_is_an_error_with_its_code_and_message() {
        let answer = Answer::<Tally>::parse(br#"{"E":{"c":101,"m":"why"},"i":7}"#);
        let error = answer.expect_err("it reports a failure").to_string();
        assert!(error.contains("101: why"), "{error}");
    }
}
