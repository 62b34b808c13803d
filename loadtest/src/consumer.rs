//! A back end that consumes what clients send.

use std::borrow::Cow;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::answer::{Answer, take_number};
use crate::dialect::{Dialect, Messages, TOPIC};
use crate::target::Target;
use crate::tasks::in_parallel;
use crate::web_socket::WebSocket;
use crate::{client, raw};

const POP: &[u8] = br#"{"m":"queue.pop","p":{"t":["messages"]},"i":1}"#;

/// A connection that consumes the clients' topic.
pub struct Consumer {
    messages: Messages,
    dialect: Dialect,
}

/// The event with a client's message (`queue.pop` in the protocol).
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
    /// Connects to the API of `target` and starts to consume.
    ///
    /// # Errors
    /// The consumer could not connect, or may not consume.
    pub async fn open(target: Target) -> Result<Self> {
        let dialect = target.dialect;
        let socket = match dialect {
            Dialect::Gridcast => {
                let mut socket = client::open(target.api, "/ws/v1", raw::TEXT).await?;
                socket.feed(&[POP]);
                socket.flush().await?;
                socket.next(|answer, _| Answer::<IgnoredAny>::parse(answer).map(drop)).await?;
                socket
            }
            Dialect::Channels => bail!("a server with channels alone has no topics"),
            Dialect::Nats | Dialect::Bare => target.without_tls().connect(Some(TOPIC)).await?,
        };
        Ok(Self { messages: Messages::of(socket, target.dialect), dialect })
    }

    /// Waits for events and passes each message to `take`, with the client's id if there is one and the time of
    /// arrival.
    ///
    /// # Errors
    /// The connection has [ended](crate::connection::Ended), an event is not a client's message, or `take`
    /// fails.
    pub async fn read(
        &mut self,
        mut take: impl FnMut(&[u8], &[u8], Instant) -> Result<()>,
    ) -> Result<()> {
        match self.dialect {
            Dialect::Gridcast => {
                let read = |json: &[u8], at| match parse_usual(json) {
                    Some((client, data)) => take(data, client, at),
                    None => {
                        let event = Event::parse(json)?;
                        take(event.data().as_bytes(), event.client().as_bytes(), at)
                    }
                };
                self.messages.read(read).await
            }
            _ => self.messages.read(|text, at| take(text, b"", at)).await,
        }
    }
}

/// The id of a client and its message, from an event in its usual form and without escapes. `None`: it has
/// another form.
fn parse_usual(json: &[u8]) -> Option<(&[u8], &[u8])> {
    let (_, rest) = take_number(json.strip_prefix(br#"{"e":"queue.pop","p":{"n":"#)?)?;
    let rest = rest.strip_prefix(br#","c":""#)?;
    let (client, rest) = rest.split_at_checked(rest.iter().position(|&byte| byte == b'"')?)?;
    let start = br#"","t":"messages","d":{"frame":{"type":"text","data":""#;
    let data = rest.strip_prefix(start)?.strip_suffix(br#"","finish":true}}},"id":null}"#)?;
    (is_plain(client) && is_plain(data)).then_some((client, data))
}

/// Whether a JSON string with these `bytes` has no escapes (RFC 8259, section 7). Checking all bytes is faster
/// than stopping at the first escape.
fn is_plain(bytes: &[u8]) -> bool {
    let is_plain = |byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
    bytes.iter().fold(true, |all, &byte| all & is_plain(byte))
}

impl<'a> Event<'a> {
    /// Reads an event.
    ///
    /// # Errors
    /// The data is not an event with a client's message.
    fn parse(json: &'a [u8]) -> Result<Self> {
        serde_json::from_slice(json).with_context(|| {
            format!("not an event of queue.pop: {:.200}", String::from_utf8_lossy(json))
        })
    }

    /// The client's id.
    fn client(&self) -> &str {
        &self.p.c
    }

    /// The message.
    fn data(&self) -> &str {
        &self.p.d.frame.data
    }
}

/// Finds the id of each client: each sends its number, which arrives at a consumer together with the id.
///
/// # Errors
/// A connection ended, or an event is of a client that is not one of these.
pub async fn learn_ids(
    target: Target,
    clients: Vec<WebSocket>,
) -> Result<Vec<(WebSocket, String)>> {
    let mut consumer = Consumer::open(target).await?;
    let (mut ids, mut told) = (vec![String::new(); clients.len()], 0);
    let telling = in_parallel(clients.into_iter().enumerate(), |(number, mut client)| async move {
        client.feed(&[number.to_string().as_bytes()]);
        client.flush().await?;
        Ok((number, client))
    });
    let mut clients = telling.await?;
    while told < clients.len() {
        let take = |data: &[u8], client: &[u8], _| {
            let number: usize = str::from_utf8(data)?.parse()?;
            let id = ids.get_mut(number).context("a message of an unknown client")?;
            *id = str::from_utf8(client)?.to_owned();
            told += 1;
            Ok(())
        };
        consumer.read(take).await?;
    }
    clients.sort_unstable_by_key(|(number, _)| *number);
    Ok(clients.into_iter().map(|(_, client)| client).zip(ids).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: &str = concat!(
        r#"{"e":"queue.pop","p":{"n":12,"c":"7","t":"messages","d":{"frame":"#,
        r#"{"type":"text","data":"ab c","finish":true}}},"id":null}"#
    );

    #[test]
    fn an_event_tells_the_client_and_what_it_sent() {
        let event = r#"{"e":"queue.pop","p":{"n":1,"c":"7","t":"messages","d":{"frame":
            {"type":"text","data":"a\"b","finish":true}}},"id":null}"#;
        let event = Event::parse(event.as_bytes()).expect("it is one");
        assert_eq!((event.client(), event.data()), ("7", "a\"b"));
        assert!(Event::parse(br#"{"E":null,"r":{"s":true},"i":1}"#).is_err());
    }

    #[test]
    fn the_usual_event_is_read_without_a_look_at_it_as_json() {
        assert_eq!(parse_usual(USUAL.as_bytes()), Some((&b"7"[..], &b"ab c"[..])));
    }

    #[test]
    fn what_is_usual_reads_the_same_as_json() {
        // With every kind of damage: truncated, with a byte added, with a byte changed.
        for at in 0..=USUAL.len() {
            let mut texts = vec![USUAL[..at].to_owned()];
            for byte in ["0", "9", " ", "}", ",", "x", "\"", "\\", "\n", "\u{7f}", "é"] {
                texts.push([&USUAL[..at], byte, &USUAL[at..]].concat());
                texts.push([&USUAL[..at], byte, USUAL.get(at + 1..).unwrap_or("")].concat());
            }
            for text in texts {
                let Some((client, data)) = parse_usual(text.as_bytes()) else { continue };
                let event = Event::parse(text.as_bytes()).expect(&text);
                let read = (event.client().as_bytes(), event.data().as_bytes());
                assert_eq!((client, data), read, "{text}");
            }
        }
    }
}
