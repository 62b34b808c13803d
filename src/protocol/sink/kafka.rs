//! Kafka: the brokers of a cluster, how to log in there, and the key of an event.

use std::fmt::{self, Debug, Display};
use std::sync::Arc;

use super::pushed_key;
use crate::address::ClientId;

/// A topic of Kafka. Each event is a record of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kafka {
    /// The cluster.
    pub cluster: KafkaCluster,
    /// The topic.
    pub topic: Arc<str>,
}

impl Kafka {
    /// The key of an event, which decides its partition: the client's id, or the key of an event that a back end has
    /// pushed. `None`: the event has no order. `object` is what
    /// [`event_object`](crate::protocol::api::event_object) returns.
    pub fn key_of(client: ClientId, object: &[u8]) -> Option<String> {
        match client.is_of_no_client() {
            true => pushed_key(object),
            false => Some(client.to_string()),
        }
    }
}

/// A Kafka cluster, and how to log in there. Shows no secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KafkaCluster {
    /// Brokers that know the others.
    pub brokers: Arc<[KafkaBroker]>,
    /// How connections are encrypted. `None`: not at all.
    pub tls: Option<KafkaTls>,
    /// Who logs in. `None`: nobody.
    pub login: Option<KafkaLogin>,
}

impl Display for KafkaCluster {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let brokers: Vec<String> = self.brokers.iter().map(KafkaBroker::to_string).collect();
        formatter.write_str(&brokers.join(","))
    }
}

/// The encryption of connections to brokers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KafkaTls {
    /// The certificates of the authorities that the brokers' certificates must come from, in DER. `None`: the
    /// authorities that the system trusts.
    pub authorities: Option<Arc<[Vec<u8>]>>,
}

/// The address of a broker.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KafkaBroker {
    /// A name, or an IP address without brackets.
    pub host: Arc<str>,
    /// The port.
    pub port: u16,
}

impl KafkaBroker {
    /// Reads `HOST:PORT`, where an IPv6 address has brackets. `None`: the text has another form.
    pub fn parse(text: &str) -> Option<Self> {
        let authority = text.parse::<http::uri::Authority>().ok()?;
        let host = authority.host();
        let port = authority.port_u16().filter(|port| *port > 0)?;
        // Neither a user nor anything behind the port.
        if host.is_empty() || text.len() != host.len() + 1 + authority.port()?.as_str().len() {
            return None;
        }
        Some(Self { host: host.trim_matches(['[', ']']).into(), port })
    }
}

impl Display for KafkaBroker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(formatter, "[{}]:{}", self.host, self.port),
            false => write!(formatter, "{}:{}", self.host, self.port),
        }
    }
}

/// A user of a Kafka cluster. Shows no password.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct KafkaLogin {
    /// The name.
    pub user: Arc<str>,
    /// The password.
    pub password: Arc<str>,
    /// How the password is shown to a broker.
    pub mechanism: KafkaMechanism,
}

impl Debug for KafkaLogin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "KafkaLogin({}, {:?})", self.user, self.mechanism)
    }
}

/// How a password is shown to a broker: a mechanism of SASL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KafkaMechanism {
    /// The password itself.
    Plain,
    /// A proof with SHA-256 (RFC 7677).
    ScramSha256,
    /// A proof with SHA-512.
    ScramSha512,
}

/// Whether a text is the name of a topic of Kafka: 1 to 249 letters, digits, `.`, `_` and `-`, but neither `.` nor `..`.
pub fn is_kafka_topic(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=249).contains(&text.len()) && text.bytes().all(is_allowed) && !matches!(text, "." | "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_has_a_host_and_a_port() {
        for text in ["a:9092", "kafka-1.example.org:1", "127.0.0.1:65535", "[::1]:9092"] {
            let broker = KafkaBroker::parse(text);
            assert_eq!(broker.map(|broker| broker.to_string()).as_deref(), Some(text));
        }
        let ipv6 = KafkaBroker::parse("[::1]:9092").expect("an address");
        assert_eq!((&*ipv6.host, ipv6.port), ("::1", 9092));
        for wrong in
            ["", "a", "a:", ":1", "a:0", "a:65536", "a:b", "u@a:1", "kafka://a:1", "a:1/x", "a b:1"]
        {
            assert_eq!(KafkaBroker::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_login_shows_no_password() {
        let login = KafkaLogin {
            user: "app".into(),
            password: "hush".into(),
            mechanism: KafkaMechanism::Plain,
        };
        assert_eq!(format!("{login:?}"), "KafkaLogin(app, Plain)");
    }

    #[test]
    fn a_key_is_that_of_the_client_or_of_the_pushed_event() {
        let key = |client, object: &str| Kafka::key_of(client, object.as_bytes());
        assert_eq!(key(ClientId::from_value(7), "{}").as_deref(), Some("7"));
        let pushed = |object| key(ClientId::of_no_client(7), object);
        assert_eq!(pushed(r#"{"c":"","k":"a b"}"#).as_deref(), Some("a b"));
        assert_eq!(pushed(r#"{"c":"","k":""}"#), None);
        assert_eq!(pushed(r#"{"c":""}"#), None);
    }

    #[test]
    fn topics_have_a_few_characters() {
        assert!(is_kafka_topic("orders.new_1-x") && is_kafka_topic(&"x".repeat(249)));
        for wrong in ["", ".", "..", "a b", "a/b", "é", &"x".repeat(250)] {
            assert!(!is_kafka_topic(wrong), "{wrong}");
        }
    }
}
