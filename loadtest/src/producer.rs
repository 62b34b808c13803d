//! Devices whose messages are answered once they are stored: calls of `push` in the subprotocol `gridcast.v1`, or
//! publishes to a stream of NATS JetStream.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use itoa::Buffer;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::timeout;

use crate::answer::Tally;
use crate::device::SUBPROTOCOL;
use crate::dialect::Dialect;
use crate::nats::{self, Nats, Said};
use crate::target::Target;
use crate::web_socket::WebSocket;
use crate::{client, raw};

/// The subject of the stream.
const SUBJECT: &str = "store";

/// A stream that keeps everything on disk (docs.nats.io, "NATS API Reference").
const CREATE: &str = "$JS.API.STREAM.CREATE.STORE";
const STREAM: &[u8] = br#"{"name":"STORE","subjects":["store"],"storage":"file","num_replicas":1}"#;

/// Where NATS answers the one client whose messages they are. Each connection has an inbox of its own.
const INBOX: &str = "_INBOX.";

/// Time limit for the answer to the creation of a stream.
const CREATION_TIME_MAX: Duration = Duration::from_secs(10);

/// A device.
pub enum Producer {
    /// A WebSocket on the route `/ws`.
    Device(WebSocket),
    /// A NATS connection, and its inbox.
    JetStream(Nats, String),
}

/// The answer of JetStream to a publish.
#[derive(Deserialize)]
struct Stored {
    seq: Option<u64>,
    error: Option<Value>,
}

impl Producer {
    /// Creates the place where messages are stored, if the server does not have it already.
    ///
    /// # Errors
    /// The server refused, or did not answer within 10 s.
    pub async fn prepare(target: Target) -> Result<()> {
        if target.dialect != Dialect::Nats {
            return Ok(());
        }
        let Self::JetStream(mut nats, inbox) = Self::open(target, u32::MAX).await? else {
            bail!("no NATS connection");
        };
        let mut room = Buffer::new();
        nats.socket.feed(&nats::request(CREATE, &inbox, STREAM, &mut room));
        nats.socket.flush().await?;
        let (mut is_answered, mut refusal) = (false, None);
        let answered = async {
            while !is_answered {
                let hear = |said: Said, _| {
                    if let Said::Message(answer) = said {
                        is_answered = true;
                        refusal = serde_json::from_slice::<Stored>(answer)?.error;
                    }
                    Ok(())
                };
                nats.hear(hear).await?;
            }
            anyhow::Ok(())
        };
        timeout(CREATION_TIME_MAX, answered).await.context("NATS has no JetStream")??;
        ensure!(refusal.is_none(), "no stream: {refusal:?}");
        Ok(())
    }

    /// Connects as the producer `source`.
    ///
    /// # Errors
    /// The connection failed, or the server refused the upgrade or the subprotocol.
    pub async fn open(target: Target, source: u32) -> Result<Self> {
        Ok(match target.dialect {
            Dialect::Nats => {
                let inbox = format!("{INBOX}{source}");
                let socket = client::open(target.edge, "/", raw::BINARY).await?;
                Self::JetStream(Nats::greet(socket, false, Some(&inbox)).await?, inbox)
            }
            _ => Self::Device(client::open_as(target.edge, "/ws", SUBPROTOCOL, raw::TEXT).await?),
        })
    }

    /// Queues a message, which JSON need not escape.
    pub fn feed(&mut self, i: u32, data: &[u8]) {
        let mut room = Buffer::new();
        match self {
            Self::Device(socket) => socket.feed(&[
                br#"{"m":"push","p":{"d":""#,
                data,
                br#""},"i":"#,
                room.format(i).as_bytes(),
                b"}",
            ]),
            Self::JetStream(nats, inbox) => {
                nats.socket.feed(&nats::request(SUBJECT, inbox, data, &mut room));
            }
        }
    }

    /// Sends the queued messages.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn flush(&mut self) -> Result<()> {
        match self {
            Self::Device(socket) | Self::JetStream(Nats { socket, .. }, _) => socket.flush().await,
        }
    }

    /// Waits for receipts. Passes the number of each message to `take`, with the time of arrival. `due` is the first message
    /// without a receipt: receipts of NATS have no numbers of the sender, and come in the order of its messages. Safe to
    /// cancel.
    ///
    /// # Errors
    /// The connection has ended, or a message was not stored.
    pub async fn receipts(&mut self, due: u32, mut take: impl FnMut(u32, Instant)) -> Result<()> {
        match self {
            Self::Device(socket) => {
                let read = |answer: &[u8], at| {
                    let i = Tally::parse(answer)?.0.context("a receipt without a number")?;
                    take(i, at);
                    Ok(())
                };
                socket.next(read).await
            }
            Self::JetStream(nats, _) => {
                let mut due = due;
                let hear = |said: Said, at| {
                    let Said::Message(receipt) = said else { bail!("{said:?} for a producer") };
                    check_stored(receipt)?;
                    take(due, at);
                    due += 1;
                    Ok(())
                };
                nats.hear(hear).await
            }
        }
    }
}

fn check_stored(receipt: &[u8]) -> Result<()> {
    let Stored { seq, error } = serde_json::from_slice(receipt)?;
    ensure!(seq.is_some() && error.is_none(), "not stored: {error:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_of_jet_stream_names_a_place_or_an_error() {
        assert!(check_stored(br#"{"stream":"STORE", "seq":7}"#).is_ok());
        for refused in [
            &br#"{"error":{"code":503,"err_code":10077,"description":"maximum bytes exceeded"},"seq":0}"#[..],
            br#"{"stream":"STORE"}"#,
            b"+OK",
        ] {
            assert!(check_stored(refused).is_err(), "{}", String::from_utf8_lossy(refused));
        }
    }
}
