//! Devices that speak the subprotocol `gridcast.v1`, and remember their position in one channel with history.

use std::borrow::Cow;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::ledger::Ledger;
use crate::payload::Payload;
use crate::target::Target;
use crate::web_socket::WebSocket;
use crate::{client, raw};

/// The header by which a device asks for the subprotocol.
pub const SUBPROTOCOL: &str = "Sec-WebSocket-Protocol: gridcast.v1\r\n";

/// A device and what it has received of its channel, over all its connections.
pub struct Device {
    target: Target,
    channel: Channel,
    bytes: usize,
    /// `None`: it is not connected.
    socket: Option<WebSocket>,
    /// Empty: it has never subscribed.
    position: String,
    /// The messages of the channel that have arrived.
    pub received: Ledger,
}

/// A channel, and the source of the messages that are published to it.
#[derive(Clone)]
pub struct Channel {
    pub name: Arc<str>,
    pub source: u32,
}

/// What the gateway says to a device: a message, or an answer.
#[derive(Deserialize)]
struct Said<'a> {
    #[serde(borrow)]
    e: Option<Cow<'a, str>>,
    #[serde(borrow)]
    p: Option<Message<'a>>,
    /// The error of an answer, or null.
    #[serde(rename = "E", default)]
    error: Value,
    r: Option<Value>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    d: Cow<'a, str>,
    #[serde(borrow)]
    o: Cow<'a, str>,
}

impl Device {
    /// A device that is not connected. The messages of its channel have `bytes` bytes.
    pub fn new(target: Target, channel: Channel, bytes: u32) -> Self {
        Self {
            target,
            channel,
            bytes: bytes as usize,
            socket: None,
            position: String::new(),
            received: Ledger::default(),
        }
    }

    /// Connects.
    ///
    /// # Errors
    /// The connection failed, or the server refused the upgrade or did not answer within 10 s.
    pub async fn connect(&mut self) -> Result<()> {
        let opening = client::open_as(self.target.edge, "/ws", SUBPROTOCOL, raw::TEXT);
        self.socket = Some(opening.await?);
        Ok(())
    }

    /// Ends the connection.
    pub fn disconnect(&mut self) {
        self.socket = None;
    }

    /// Subscribes to the channel: from now on the first time, later from the last position on.
    ///
    /// # Errors
    /// The server refused, has ended the connection, or no longer has all messages since the position.
    pub async fn subscribe(&mut self) -> Result<()> {
        let name = &self.channel.name;
        let from = match self.position.as_str() {
            "" => String::new(),
            position => format!(r#","o":{{"{name}":"{position}"}}"#),
        };
        let call = format!(r#"{{"m":"subscribe","p":{{"c":["{name}"]{from}}},"i":1}}"#);
        let answer = self.ask(&call).await?;
        let channel = &answer["channels"][&*self.channel.name];
        let is_whole = self.position.is_empty() || channel["recovered"] == true;
        ensure!(is_whole, "the server no longer has what a device has missed: {channel}");
        if self.position.is_empty() {
            self.position = channel["o"].as_str().context("no position")?.to_owned();
        }
        Ok(())
    }

    /// Ends the subscription.
    ///
    /// # Errors
    /// The server refused, or has ended the connection.
    pub async fn unsubscribe(&mut self) -> Result<()> {
        let name = &self.channel.name;
        let call = format!(r#"{{"m":"unsubscribe","p":{{"c":["{name}"]}},"i":2}}"#);
        self.ask(&call).await.map(drop)
    }

    /// Receives until the message before `end` has arrived.
    ///
    /// # Errors
    /// The connection has ended, or something else than a message of the channel arrived.
    pub async fn receive_until(&mut self, end: u32) -> Result<()> {
        while self.received.next() < end {
            let socket = self.socket.as_mut().context("the device is not connected")?;
            let (received, position) = (&mut self.received, &mut self.position);
            let read = |text: &[u8], _| {
                let Said { e: Some(event), p: Some(message), .. } = serde_json::from_slice(text)?
                else {
                    bail!("not an event: {}", String::from_utf8_lossy(text));
                };
                ensure!(event == "message", "an event {event:?}");
                let payload = Payload::parse(message.d.as_bytes(), self.bytes)
                    .filter(|payload| payload.source == self.channel.source)
                    .with_context(|| format!("a message that was not sent: {:.80}", message.d))?;
                received.observe(payload.sequence);
                position.clear();
                position.push_str(&message.o);
                Ok(())
            };
            socket.next(read).await?;
        }
        Ok(())
    }

    /// Makes a call, and returns its result. No message can come before it.
    async fn ask(&mut self, call: &str) -> Result<Value> {
        let socket = self.socket.as_mut().context("the device is not connected")?;
        socket.feed(&[call.as_bytes()]);
        socket.flush().await?;
        let read = |text: &[u8], _| {
            let said: Said = serde_json::from_slice(text)?;
            match (said.error, said.r) {
                (Value::Null, Some(result)) => Ok(result),
                _ => bail!("{call}: {}", String::from_utf8_lossy(text)),
            }
        };
        socket.next(read).await
    }
}

#[cfg(test)]
mod tests {
    use async_tungstenite::tungstenite::Message as Frame;
    use futures_util::StreamExt;
    use nix::unistd::Pid;

    use super::*;
    use crate::dialect::Dialect;
    use crate::web_socket::tests::connected;

    /// A device on `socket`, in a channel whose messages have 40 bytes.
    fn device_on(socket: WebSocket) -> Device {
        let nowhere = ([127, 0, 0, 1], 0).into();
        let target = Target {
            api: nowhere,
            edge: nowhere,
            pid: Pid::this(),
            dialect: Dialect::Gridcast,
            tls: false,
        };
        let channel = Channel { name: "again:3".into(), source: 3 };
        Device { socket: Some(socket), ..Device::new(target, channel, 40) }
    }

    fn answer(channel: &str) -> Frame {
        let result = format!(r#"{{"s":true,"channels":{{"again:3":{channel}}}}}"#);
        Frame::text(format!(r#"{{"E":null,"r":{result},"i":1}}"#))
    }

    fn message(sequence: u32, position: &str) -> Frame {
        let data = Payload::now(3, sequence).text(40);
        let params = format!(r#"{{"c":"again:3","d":"{data}","o":"{position}"}}"#);
        Frame::text(format!(r#"{{"e":"message","p":{params}}}"#))
    }

    #[tokio::test]
    async fn a_device_subscribes_again_from_the_position_of_its_last_message() -> Result<()> {
        let (socket, mut server) = connected().await?;
        let mut device = device_on(socket);
        for frame in [answer(r#"{"o":"p0"}"#), message(0, "p1"), message(1, "p2")] {
            server.send(frame).await?;
        }
        server.send(answer(r#"{"recovered":true,"missed":0,"o":"p2"}"#)).await?;
        device.subscribe().await?;
        device.receive_until(2).await?;
        device.subscribe().await?;
        assert!(device.received.damage(2).is_none());
        let calls = [server.next().await, server.next().await];
        let calls = calls.map(|call| call.expect("it was called").map(|call| call.to_string()));
        let [first, second] = calls;
        assert_eq!(first?, r#"{"m":"subscribe","p":{"c":["again:3"]},"i":1}"#);
        let from = r#""o":{"again:3":"p2"}"#;
        assert_eq!(second?, format!(r#"{{"m":"subscribe","p":{{"c":["again:3"],{from}}},"i":1}}"#));
        Ok(())
    }

    #[tokio::test]
    async fn a_gap_is_an_error() -> Result<()> {
        let (socket, mut server) = connected().await?;
        let mut device = device_on(socket);
        server.send(answer(r#"{"o":"p0"}"#)).await?;
        server.send(answer(r#"{"recovered":false,"missed":0,"o":"p9"}"#)).await?;
        device.subscribe().await?;
        let error = device.subscribe().await.expect_err("there is a gap").to_string();
        assert!(error.contains("no longer has"), "{error}");
        Ok(())
    }
}
