//! Sinks: where they carry the events of a topic, and the form of an event there.

mod cloud_event;

use std::fmt::{self, Write as _};
use std::sync::Arc;

pub use cloud_event::{BATCH_TYPE, CloudEvent, put_batch};

use super::service::HttpService;
use super::signature::SigningSecret;

/// A sink: a consumer group of its own of a topic, which carries every event to an engine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sink {
    /// The name.
    pub name: Arc<str>,
    /// The topic.
    pub topic: Arc<str>,
    /// The engine.
    pub engine: EngineAddress,
}

/// Where an engine is, and how to speak to it. Shows no secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EngineAddress {
    /// An HTTP service that takes batches of CloudEvents.
    Webhook(Webhook),
}

impl fmt::Display for EngineAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Webhook(webhook) => write!(formatter, "webhook {}", webhook.service),
        }
    }
}

/// An HTTP service that takes batches of CloudEvents.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Webhook {
    /// The service.
    pub service: HttpService,
    /// Signs each batch.
    pub secret: Option<SigningSecret>,
    /// The most events of a batch.
    pub batch: usize,
    /// The most batches in flight.
    pub in_flight: usize,
}

/// The beginning of an event's JSON, and the end, around the fields that a consumer reads.
const EVENT_PREFIX: &[u8] = br#"{"e":"queue.pop","p":"#;
const EVENT_SUFFIX: &[u8] = br#","id":null}"#;

/// Returns the object `p` of an encoded event: what `queue.pop` hands to a consumer, without a tag.
pub fn event_object(event: &[u8]) -> &[u8] {
    let object = event.strip_prefix(EVENT_PREFIX);
    object.and_then(|object| object.strip_suffix(EVENT_SUFFIX)).unwrap_or(event)
}

/// Returns the word that says what an event is about: `message`, or the value of `event` in its field `d`.
pub fn event_kind(object: &[u8]) -> &str {
    const DATA: &[u8] = b",\"d\":{\"event\":\"";
    // Before the field `d` stand numbers, and a topic in whose text each quote is escaped.
    let place = memchr::memmem::find(object, b",\"d\":");
    let data = place.map_or(&b""[..], |place| &object[place..]);
    let word = data.strip_prefix(DATA).unwrap_or_default();
    let word = word.split(|&byte| byte == b'"').next().unwrap_or_default();
    match std::str::from_utf8(word) {
        Ok(word) if !word.is_empty() => word,
        _ => "message",
    }
}

/// Returns a name with all bytes but letters, digits, `-`, `_` and `~` percent-encoded. So the name can be
/// a part of an id, of a URL path and of a header.
pub fn encoded_name(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for &byte in name.as_bytes() {
        match byte {
            b'-' | b'_' | b'~' => out.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
            byte => write!(out, "%{byte:02X}").expect("a string takes all that is written"),
        }
    }
    out
}

/// Returns the name that [`encoded_name`] has encoded; `None` if it has not.
pub fn decoded_name(encoded: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut parts = encoded.split('%');
    bytes.extend_from_slice(parts.next()?.as_bytes());
    for part in parts {
        let (hex, rest) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(hex, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    let name = String::from_utf8(bytes).ok()?;
    (encoded_name(&name) == encoded).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{ClientId, NodeId};
    use crate::protocol::api::{EventHead, put_close, put_event, put_message};
    use crate::protocol::frame::{Frame, Kind};

    fn event(put: impl FnOnce(&mut Vec<u8>)) -> Frame {
        let mut out = Vec::new();
        let (node, client) = (NodeId::new(1).expect("a node"), ClientId::from_value(5));
        let head = EventHead { node, client, topic: "a,\"d\":{\"event\":\"x\"" };
        put_event(&mut out, &mut Vec::new(), head, put);
        Frame::from_encoded(&out)
    }

    #[test]
    fn an_event_is_taken_out_of_its_frame_and_its_kind_is_found() {
        let message = event(|out| put_message(out, Kind::Text, b"\"d\":{\"event\":\"open\"", None));
        let object = event_object(message.payload());
        let json: serde_json::Value = serde_json::from_slice(object).expect("an object");
        assert_eq!((json["n"].as_u64(), json["c"].as_str()), (Some(1), Some("5")));
        assert_eq!(event_kind(object), "message");
        let closed = event(|out| put_close(out, 1000, "bye", None));
        assert_eq!(event_kind(event_object(closed.payload())), "close");
    }

    #[test]
    fn a_name_is_encoded_without_dots_and_spaces() {
        assert_eq!(encoded_name("orders.new é-1"), "orders%2Enew%20%C3%A9-1");
    }
}
