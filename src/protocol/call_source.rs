//! Sources: engines whose messages are calls.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;

use super::sink::{RedisUrl, nats_hosts};

/// A source: an engine whose messages are calls, which the node carries out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CallSource {
    /// The name.
    pub name: Arc<str>,
    /// The engine.
    pub engine: CallEngine,
}

/// Where the engine of a source is, and which of its messages are calls. Shows no secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CallEngine {
    /// NATS JetStream.
    Nats(NatsConsumer),
    /// Redis Streams.
    Redis(RedisGroup),
}

impl CallEngine {
    /// The most connections at a time.
    pub fn connections(&self) -> usize {
        match self {
            Self::Nats(_) => 1,
            // One waits for messages, the other acknowledges.
            Self::Redis(_) => 2,
        }
    }
}

impl fmt::Display for CallEngine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nats(nats) => write!(formatter, "nats {}", nats_hosts(&nats.servers)),
            Self::Redis(redis) => write!(formatter, "redis {}", redis.url),
        }
    }
}

/// A durable consumer of a JetStream stream, which is made where it is missing.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct NatsConsumer {
    /// The URLs of the servers, which may contain passwords.
    pub servers: Arc<[String]>,
    /// The stream.
    pub stream: Arc<str>,
    /// The consumer.
    pub consumer: Arc<str>,
}

impl fmt::Debug for NatsConsumer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = nats_hosts(&self.servers);
        write!(formatter, "NatsConsumer({hosts}, {}, {})", self.stream, self.consumer)
    }
}

/// A group of a Redis stream, which is made where it is missing. A call is the field `data` of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RedisGroup {
    /// The server.
    pub url: RedisUrl,
    /// The key of the stream.
    pub stream: Arc<str>,
    /// The group.
    pub group: Arc<str>,
}

/// Whether a text is a name of a stream or a consumer of NATS: 1 to 255 visible ASCII characters, none of which has a
/// meaning in subjects or paths.
pub fn is_nats_name(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_graphic() && !b".*>/\\".contains(&byte);
    (1..=255).contains(&text.len()) && text.bytes().all(is_allowed)
}

/// What the events of `queue.push` that keep their order have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushOrder {
    topic: Box<str>,
    key: Box<str>,
}

/// How a call is ordered among those of its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallOrder {
    /// A shard carries out such calls in the order in which it gets them.
    Arrival,
    /// `queue.push` with a key: after the end of those before it with the same topic and key.
    Push(PushOrder),
    /// `queue.push` without a key: in no order.
    Any,
}

impl CallOrder {
    /// Returns the order of a call. What is no call is refused by the shard: its order does not matter.
    pub fn of(text: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct SniffedMethod<'t> {
            #[serde(borrow)]
            m: Cow<'t, str>,
        }
        #[derive(Deserialize)]
        struct SniffedPush<'t> {
            #[serde(borrow)]
            p: SniffedEvent<'t>,
        }
        #[derive(Deserialize)]
        struct SniffedEvent<'t> {
            #[serde(borrow)]
            t: Cow<'t, str>,
            #[serde(borrow, default)]
            k: Cow<'t, str>,
        }
        let method = serde_json::from_slice(text);
        if !method.is_ok_and(|SniffedMethod { m }| m == "queue.push") {
            return Self::Arrival;
        }
        match serde_json::from_slice(text) {
            Ok(SniffedPush { p: SniffedEvent { t, k } }) if !k.is_empty() => {
                Self::Push(PushOrder { topic: t.into(), key: k.into() })
            }
            _ => Self::Any,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_with_the_same_topic_and_key_have_an_order() {
        let push = |topic: &str, key: &str| {
            CallOrder::Push(PushOrder { topic: topic.into(), key: key.into() })
        };
        for (text, order) in [
            (r#"{"m":"queue.push","p":{"t":"a","d":{"x":[1]},"k":"b"}}"#, push("a", "b")),
            (
                r#"{"p":{"k":"\u0062 ","t":"a","after_ms":1},"m":"queue\u002epush","i":7}"#,
                push("a", "b "),
            ),
            (r#"{"m":"queue.push","p":{"t":"a","d":"x"}}"#, CallOrder::Any),
            (r#"{"m":"queue.push","p":{"t":"a","d":"x","k":""}}"#, CallOrder::Any),
            (r#"{"m":"queue.push","p":{"t":1,"k":"b"}}"#, CallOrder::Any),
            (r#"{"m":"mesh.publish","p":{"c":"a","d":"x","k":"b"}}"#, CallOrder::Arrival),
            (r#"{"m":"user.send","p":[]}"#, CallOrder::Arrival),
            ("[]", CallOrder::Arrival),
            ("", CallOrder::Arrival),
        ] {
            assert_eq!(CallOrder::of(text.as_bytes()), order, "{text}");
        }
    }

    #[test]
    fn names_of_nats_have_no_dots_and_wildcards() {
        assert!(is_nats_name("ORDERS_new-1") && is_nats_name(&"x".repeat(255)));
        for name in ["", "a.b", "a b", "*", ">", "a/b", "a\\b", "é", &"x".repeat(256)] {
            assert!(!is_nats_name(name), "{name}");
        }
    }
}
