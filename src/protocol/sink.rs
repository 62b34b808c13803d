//! Sinks: where they carry the events of a topic, and the form of an event there.

mod cloud_event;
mod kafka;
mod redis;

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::sync::Arc;

pub use cloud_event::{BATCH_TYPE, CloudEvent, put_batch};
pub use kafka::{
    Kafka, KafkaBroker, KafkaCluster, KafkaLogin, KafkaMechanism, KafkaTls, is_kafka_topic,
};
pub use redis::{Redis, RedisUrl};
use serde::Deserialize;

use super::service::HttpService;
use super::signature::SigningSecret;
use crate::address::ClientId;

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
    /// NATS with JetStream.
    Nats(Nats),
    /// Kafka.
    Kafka(Kafka),
    /// Redis Streams.
    Redis(Redis),
}

/// The most events of a batch for NATS.
const NATS_BATCH: usize = 512;

/// The most batches for NATS in flight.
const NATS_IN_FLIGHT: usize = 4;

/// The most events of a batch for Kafka, which becomes at least one record batch for each partition.
const KAFKA_BATCH: usize = 2048;

/// The most batches for Kafka in flight. With one, no partition has two requests in flight.
const KAFKA_IN_FLIGHT: usize = 1;

/// The most connections to the brokers of a Kafka cluster.
pub const KAFKA_CONNECTIONS: usize = 32;

/// The most events of a batch for Redis, which serves nobody else while it stores them: about a millisecond.
const REDIS_BATCH: usize = 256;

/// The most batches for Redis in flight. Each has a connection of its own.
const REDIS_IN_FLIGHT: usize = 4;

impl EngineAddress {
    /// The most events of a batch.
    pub fn batch(&self) -> usize {
        match self {
            Self::Webhook(webhook) => webhook.batch,
            Self::Nats(_) => NATS_BATCH,
            Self::Kafka(_) => KAFKA_BATCH,
            Self::Redis(_) => REDIS_BATCH,
        }
    }

    /// The most batches in flight.
    pub fn in_flight(&self) -> usize {
        match self {
            Self::Webhook(webhook) => webhook.in_flight,
            Self::Nats(_) => NATS_IN_FLIGHT,
            Self::Kafka(_) => KAFKA_IN_FLIGHT,
            Self::Redis(_) => REDIS_IN_FLIGHT,
        }
    }

    /// Whether batches are spread over many clients: an event of each before a second one of any. NATS acknowledges each
    /// event by itself, and the next one of its client waits for that. The other engines store a batch as one.
    pub fn spreads_batches(&self) -> bool {
        matches!(self, Self::Nats(_))
    }

    /// The most connections at a time; `None` for a webhook, whose connections are those of an HTTP service.
    pub fn connections(&self) -> Option<usize> {
        match self {
            Self::Webhook(_) => None,
            Self::Nats(_) => Some(1),
            Self::Kafka(_) => Some(KAFKA_CONNECTIONS),
            Self::Redis(_) => Some(REDIS_IN_FLIGHT),
        }
    }
}

impl fmt::Display for EngineAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Webhook(webhook) => write!(formatter, "webhook {}", webhook.service),
            Self::Nats(nats) => write!(formatter, "nats {}", nats_hosts(&nats.servers)),
            Self::Kafka(kafka) => write!(formatter, "kafka {}", kafka.cluster),
            Self::Redis(redis) => write!(formatter, "redis {}", redis.url),
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

/// NATS with JetStream. Each event is a message of its own.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Nats {
    /// The URLs of the servers, which may contain passwords.
    pub servers: Arc<[String]>,
    /// The subject, in which `{client}` stands for what [`sender_of`] returns, encoded as a name.
    pub subject: Arc<str>,
}

impl Nats {
    /// The subject of an event. `object` is what [`event_object`](super::api::event_object) returns.
    pub fn subject_of(&self, client: ClientId, object: &[u8]) -> String {
        // A dot, a space or a wildcard of a key would make another subject.
        self.subject.replace("{client}", &encoded_name(&sender_of(client, object)))
    }
}

impl fmt::Debug for Nats {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Nats({}, {})", nats_hosts(&self.servers), self.subject)
    }
}

/// Returns servers of NATS without passwords.
pub fn nats_hosts(servers: &[String]) -> String {
    let host = |url: &String| url.rsplit(['@', '/']).next().unwrap_or_default().to_owned();
    servers.iter().map(host).collect::<Vec<_>>().join(",")
}

/// Whether a text is the URL of a NATS server: `nats` or `tls`, and a host, with a user, a password and a port
/// if need be.
pub fn is_nats_url(text: &str) -> bool {
    let Ok(url) = text.parse::<http::Uri>() else { return false };
    let has_scheme = matches!(url.scheme_str(), Some("nats" | "tls"));
    let has_port = |authority: &http::uri::Authority| {
        let host = authority.as_str().rsplit('@').next().unwrap_or_default();
        host == authority.host() || authority.port_u16().is_some_and(|port| port > 0)
    };
    let has_host = url.host().is_some_and(|host| !host.is_empty());
    has_scheme
        && has_host
        && url.authority().is_some_and(has_port)
        && matches!(url.path(), "" | "/")
}

/// Whether a text is a subject of NATS for events: tokens with dots between them, without wildcards. `{client}`
/// may be a part of it.
pub fn is_nats_subject(text: &str) -> bool {
    let is_token = |token: &str| {
        let is_visible = token.bytes().all(|byte| byte.is_ascii_graphic());
        !token.is_empty() && is_visible && !token.contains(['*', '>'])
    };
    text.len() <= 255 && text.split('.').all(is_token)
}

/// Returns what the events of one order have in common: the id of the client, or the key of an event that a back
/// end has pushed, or `-` if it has none. `object` is what [`event_object`](super::api::event_object) returns.
pub fn sender_of(client: ClientId, object: &[u8]) -> String {
    match client.is_of_no_client() {
        true => pushed_key(object).unwrap_or_else(|| "-".to_owned()),
        false => client.to_string(),
    }
}

/// Returns the key of an event that a back end has pushed, if it has one.
fn pushed_key(object: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Pushed<'o> {
        #[serde(borrow, default)]
        k: Cow<'o, str>,
    }
    let Pushed { k } = serde_json::from_slice(object).ok()?;
    (!k.is_empty()).then(|| k.into_owned())
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
    use crate::address::NodeId;
    use crate::protocol::api::{EventHead, event_object, put_close, put_event, put_message};
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
    fn urls_of_nats_show_no_password_and_subjects_have_no_wildcards() {
        let servers =
            ["nats://app:hush@10.0.0.5:4222".to_owned(), "tls://b.example.org".to_owned()];
        assert!(servers.iter().all(|url| is_nats_url(url)));
        for url in ["http://a:1", "nats://", "a:4222", "nats://a:0", "nats://a:b", "nats://a/x", ""]
        {
            assert!(!is_nats_url(url), "{url}");
        }
        let nats = Nats { servers: servers.into(), subject: "orders.{client}".into() };
        assert_eq!(nats.subject_of(ClientId::from_value(7), b"{}"), "orders.7");
        let pushed = |object: &str| nats.subject_of(ClientId::of_no_client(7), object.as_bytes());
        assert_eq!(
            pushed(r#"{"c":"","d":{"k":"x"},"k":"a.*\u00e9 \"b"}"#),
            "orders.a%2E%2A%C3%A9%20%22b"
        );
        assert_eq!(pushed(r#"{"c":"","d":{"k":"x"}}"#), "orders.-");
        assert_eq!(pushed(r#"{"c":"","k":""}"#), "orders.-");
        assert_eq!(format!("{nats:?}"), "Nats(10.0.0.5:4222,b.example.org, orders.{client})");
        assert_eq!(EngineAddress::Nats(nats).to_string(), "nats 10.0.0.5:4222,b.example.org");
        assert!(is_nats_subject("a.{client}.b"));
        for subject in ["", "a..b", "a.*", "a.>", "a b", "a."] {
            assert!(!is_nats_subject(subject), "{subject}");
        }
    }

    #[test]
    fn a_name_is_encoded_without_dots_and_spaces() {
        assert_eq!(encoded_name("orders.new é-1"), "orders%2Enew%20%C3%A9-1");
    }
}
