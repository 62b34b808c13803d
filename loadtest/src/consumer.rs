//! A back end that consumes what clients send.

use std::borrow::Cow;

use anyhow::{Context, Result, bail};
use async_tungstenite::tungstenite::Message;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::answer::Answer;
use crate::client::{self, Socket};
use crate::dialect::{Dialect, Messages, TOPIC};
use crate::server::Target;
use crate::tasks::in_parallel;

/// Read buffer of a consumer, for many events at once.
const READ_BUFFER_BYTES: usize = 16 * 1024;

const POP: &str = r#"{"m":"queue.pop","p":{"t":["messages"]},"i":1}"#;

/// A connection that consumes the clients' topic.
pub struct Consumer {
    messages: Messages,
    dialect: Dialect,
}

/// The event that brings a client's message (`queue.pop` of the protocol).
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow)]
    p: Delivery<'a>,
}

#[derive(Deserialize)]
struct Delivery<'a> {
    #[serde(borrow)]
    c: Cow<'a, str>,
    #[serde(borrow)]
    d: Content<'a>,
}

#[derive(Deserialize)]
struct Content<'a> {
    #[serde(borrow)]
    frame: Frame<'a>,
}

#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(borrow)]
    data: Cow<'a, str>,
}

impl Consumer {
    /// Connects to the API of `target` and begins to consume.
    ///
    /// # Errors
    /// It could not connect, or may not consume.
    pub async fn open(target: Target) -> Result<Self> {
        let dialect = target.dialect;
        let socket = match dialect {
            Dialect::Gridcast => {
                let mut socket = client::open(target.api, "/ws/v1", READ_BUFFER_BYTES).await?;
                socket.send(Message::text(POP)).await?;
                let answer = client::next_text(&mut socket).await;
                let answer = answer.context("the consumer was closed")?;
                Answer::<IgnoredAny>::parse(answer.as_bytes())?;
                socket
            }
            Dialect::Channels => bail!("a server with channels alone has no topics"),
            Dialect::Nats => target.connect(Some(TOPIC), READ_BUFFER_BYTES).await?,
        };
        Ok(Self { messages: Messages::of(socket, target), dialect })
    }

    /// What `read` makes of what a client sent, and of its id where there is one; `None` once the
    /// connection has ended.
    ///
    /// # Errors
    /// Something came that is not a client's message, or those of `read`.
    pub async fn next<T>(
        &mut self,
        read: impl FnOnce(&str, &str) -> Result<T>,
    ) -> Result<Option<T>> {
        let Some(text) = self.messages.next().await? else { return Ok(None) };
        match self.dialect {
            Dialect::Gridcast => {
                let event = Event::parse(&text)?;
                read(event.data(), event.client()).map(Some)
            }
            _ => read(&text, "").map(Some),
        }
    }
}

impl<'a> Event<'a> {
    /// Reads an event.
    ///
    /// # Errors
    /// It is none of a client's message.
    fn parse(text: &'a str) -> Result<Self> {
        serde_json::from_str(text)
            .with_context(|| format!("not an event of queue.pop: {text:.200}"))
    }

    /// Id of the client.
    fn client(&self) -> &str {
        &self.p.c
    }

    /// What it sent.
    fn data(&self) -> &str {
        &self.p.d.frame.data
    }
}

/// Has each client say its number, which `target` tells with its id: gives
/// the clients with their ids.
///
/// # Errors
/// A connection ended, or the server told of a client that is not one of these.
pub async fn learn_ids(target: Target, clients: Vec<Socket>) -> Result<Vec<(Socket, String)>> {
    let mut consumer = Consumer::open(target).await?;
    let mut ids = vec![String::new(); clients.len()];
    let telling = in_parallel(clients.into_iter().enumerate(), |(number, mut client)| async move {
        client.send(Message::text(number.to_string())).await?;
        Ok((number, client))
    });
    let mut clients = telling.await?;
    for _ in 0..clients.len() {
        let read = consumer.next(|data, client| Ok((data.parse::<usize>()?, client.to_owned())));
        let (number, client) = read.await?.context("the consumer was closed")?;
        *ids.get_mut(number).context("a message of an unknown client")? = client;
    }
    clients.sort_unstable_by_key(|(number, _)| *number);
    Ok(clients.into_iter().map(|(_, client)| client).zip(ids).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_tells_the_client_and_what_it_sent() {
        let event = r#"{"e":"queue.pop","p":{"n":1,"c":"7","t":"messages","d":{"frame":
            {"type":"text","data":"a\"b","finish":true}}},"id":null}"#;
        let event = Event::parse(event).expect("it is one");
        assert_eq!((event.client(), event.data()), ("7", "a\"b"));
        assert!(Event::parse(r#"{"E":null,"r":{"s":true},"i":1}"#).is_err());
    }
}
