//! Sinks, which carry the events of a topic to an engine.

use std::path::PathBuf;
use std::sync::Arc;

use super::definition::section;
use super::document::{ConfigError, Section};
use super::file::PemFile;
use super::kafka::{
    BROKERS, ClusterKeys, KAFKA_MECHANISM, KAFKA_PASSWORD, KAFKA_TOPIC, KAFKA_USER, cluster,
};
use super::service::{SIGNING_SECRET, Url, service};
use super::shape::{NAME, Switch, Text, ValueShape, milliseconds, whole};
use crate::protocol::signature::SigningSecret;
use crate::protocol::sink::{
    EngineAddress, Kafka, KafkaBroker, KafkaMechanism, Nats, Redis, RedisUrl, Sink, Webhook,
    is_nats_subject, is_nats_url,
};

/// The most sinks of a node. Each costs its topic's bookkeeping once more.
const SINKS_MAX: usize = 64;

section! {
    /// A sink: a consumer group of its own of a topic. A sink carries every event of the node's clients to an
    /// engine, and acknowledges the event when the engine has. One of the tables below names the engine.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(super) struct SinkKeys(section) {
        /// The name of the sink, in metrics and the log.
        name: String = NAME, required("a sink needs one", "\"orders-to-billing\"");

        /// The topic whose events the sink carries.
        topic: String = NAME, required("a sink needs one", "\"orders\"");
    }
    tables {
        /// NATS with JetStream.
        nats as "nats": Option<Nats> = read_nats(section)?, Optional(NatsKeys::definition);

        /// Kafka.
        kafka as "kafka": Option<Kafka> = read_kafka(section)?, Optional(KafkaKeys::definition);

        /// Redis Streams.
        redis as "redis": Option<Redis> = read_redis(section)?, Optional(RedisKeys::definition);

        /// An HTTP service that takes batches of CloudEvents.
        webhook as "webhook": Option<Webhook> = read_webhook(section)?, Optional(WebhookKeys::definition);
    }
}

section! {
    /// An HTTP service that takes batches of CloudEvents.
    pub(super) struct WebhookKeys(section) {
        /// The URL that gets the events: `https://`, or `http://` to a loopback address.
        url: String = Url, required("a webhook has one", "\"https://orders.example.org/events\"");

        /// A secret that signs each batch: the header `Gridcast-Signature` is `t=UNIX_SECONDS,v1=HEX`, with
        /// the HMAC-SHA256 of `UNIX_SECONDS.BODY`.
        secret: Option<SigningSecret> = SIGNING_SECRET,
            none("none: batches are not signed", "\"a secret of the service and gridcast\"");

        /// The most events of a batch.
        batch: usize = whole(1..=10_000), value(100);

        /// The longest time until the answer. After that the batch is sent again.
        timeout_ms: u64 = milliseconds(1..=600_000), value(10_000);

        /// The most batches that wait for their answers. No two of them have events of the same client.
        in_flight: usize = whole(1..=64), value(4);

        /// A PEM file: the authorities that the certificate of the URL must come from.
        ca: Option<PathBuf> = PemFile, none("those that the system trusts", "\"/etc/gridcast/ca.pem\"");
    }
}

section! {
    /// NATS with JetStream. A stream has to take the subject: without one, events are not acknowledged.
    pub(super) struct NatsKeys(section) {
        /// The servers, of which one that can be reached is used. A URL may contain a user and a password.
        servers: Vec<String> = NatsServers,
            required("NATS has at least one", "[\"nats://127.0.0.1:4222\"]");

        /// The subject of the messages. `{client}` stands for the client's id, for a pushed event for its key or `-`.
        subject: String = NATS_SUBJECT, required("a sink for NATS has one", "\"orders.{client}\"");
    }
}

section! {
    /// A topic of Kafka, or of what speaks its protocol. Each event becomes a record, with the client as its key.
    pub(super) struct KafkaKeys(section) {
        /// Brokers, of which one that can be reached names the others.
        brokers: Vec<KafkaBroker> = BROKERS,
            required("Kafka has at least one", "[\"127.0.0.1:9092\"]");

        /// The topic, which has to exist.
        topic: String = KAFKA_TOPIC, required("a sink for Kafka has one", "\"orders\"");

        /// Whether connections are encrypted.
        tls: Option<bool> = Switch, none("false", "true");

        /// A PEM file: the authorities that the certificates of the brokers must come from.
        ca: Option<PathBuf> = PemFile, none("those that the system trusts", "\"/etc/gridcast/ca.pem\"");

        /// The user that logs in with SASL.
        user: Option<String> = KAFKA_USER, none("none: nobody logs in", "\"gridcast\"");

        /// The password of the user.
        password: Option<String> = KAFKA_PASSWORD, none("none", "\"a secret of the brokers and gridcast\"");

        /// How the password is shown. Use `plain` with `tls` only: it sends the password itself.
        mechanism: KafkaMechanism = KAFKA_MECHANISM, value(KafkaMechanism::ScramSha512);
    }
}

section! {
    /// Redis Streams. Each event becomes an entry with the fields `id`, `client` and `data`.
    pub(super) struct RedisKeys(section) {
        /// The server. The URL may contain a user, a password and the number of a database.
        url: RedisUrl = RedisServer, required("Redis has one", "\"redis://127.0.0.1:6379\"");

        /// The key of the stream. `{client}` stands for the client's id, for a pushed event for its key or `-`.
        stream: String = NAME, required("a sink for Redis has one", "\"orders\"");

        /// About how many entries the stream keeps. Redis drops older ones, whether somebody has read them or not.
        max_len: Option<u64> = whole(1..=1_000_000_000), none("none: all", "1000000");
    }
}

/// The URL of a Redis server. A refused URL is not shown: it may contain a password.
pub(super) struct RedisServer;

impl ValueShape for RedisServer {
    type Value = RedisUrl;

    const IS_SECRET: bool = true;

    fn expected(&self) -> String {
        "a URL such as \"redis://127.0.0.1:6379\" or \"redis://:PASSWORD@10.0.0.5/0\"".to_owned()
    }

    fn read(&self, section: &Section<'_>, key: &str) -> Result<Option<RedisUrl>, ConfigError> {
        let Some(url) = section.secret(key) else { return Ok(None) };
        RedisUrl::new(url).map(Some).map_err(|why| section.fault(&[key], why))
    }
}

const NATS_SUBJECT: Text<String> = Text {
    expected: "a subject without wildcards, such as \"orders.{client}\"",
    parse: |text| is_nats_subject(text).then(|| text.to_owned()),
};

/// The URLs of NATS servers. A refused URL is not shown: it may contain a password.
pub(super) struct NatsServers;

impl ValueShape for NatsServers {
    type Value = Vec<String>;

    const IS_SECRET: bool = true;

    fn expected(&self) -> String {
        "a list of URLs such as \"nats://10.0.0.5:4222\" or \"tls://nats.example.org\"".to_owned()
    }

    fn read(&self, section: &Section<'_>, key: &str) -> Result<Option<Vec<String>>, ConfigError> {
        let Some(items) = section.strings(key)? else { return Ok(None) };
        let urls = items.iter().map(|item| item.as_str().filter(|url| is_nats_url(url)));
        match urls.map(|url| url.map(str::to_owned)).collect::<Option<Vec<_>>>() {
            Some(urls) if !urls.is_empty() => Ok(Some(urls)),
            _ => Err(section.fault(&[key], format!("expected {}", self.expected()))),
        }
    }
}

fn read_nats(sink: &Section<'_>) -> Result<Option<Nats>, ConfigError> {
    let section = sink.table("nats")?;
    if !section.is_written() {
        return Ok(None);
    }
    let NatsKeys { servers, subject } = NatsKeys::read_keys(&section)?;
    Ok(Some(Nats { servers: servers.into(), subject: subject.into() }))
}

fn read_kafka(sink: &Section<'_>) -> Result<Option<Kafka>, ConfigError> {
    let section = sink.table("kafka")?;
    if !section.is_written() {
        return Ok(None);
    }
    let KafkaKeys { brokers, topic, tls, ca, user, password, mechanism } =
        KafkaKeys::read_keys(&section)?;
    let tls = tls.unwrap_or_default();
    let keys = ClusterKeys { brokers, tls, ca, user, password, mechanism };
    Ok(Some(Kafka { cluster: cluster(&section, keys)?, topic: topic.into() }))
}

fn read_redis(sink: &Section<'_>) -> Result<Option<Redis>, ConfigError> {
    let section = sink.table("redis")?;
    if !section.is_written() {
        return Ok(None);
    }
    let RedisKeys { url, stream, max_len } = RedisKeys::read_keys(&section)?;
    Ok(Some(Redis { url, stream: stream.into(), max_len }))
}

fn read_webhook(sink: &Section<'_>) -> Result<Option<Webhook>, ConfigError> {
    let section = sink.table("webhook")?;
    if !section.is_written() {
        return Ok(None);
    }
    let WebhookKeys { url, secret, batch, timeout_ms, in_flight, ca } =
        WebhookKeys::read_keys(&section)?;
    let service = service(&section, &url, timeout_ms, ca)?;
    Ok(Some(Webhook { service, secret, batch, in_flight }))
}

/// Reads the tables `sink`.
pub(super) fn read_sinks(root: &Section<'_>) -> Result<Vec<Arc<Sink>>, ConfigError> {
    let sections = root.tables("sink")?;
    if let Some(section) = sections.get(SINKS_MAX) {
        return Err(section.fault(&["name"], format!("expected at most {SINKS_MAX} sinks")));
    }
    let mut sinks: Vec<Arc<Sink>> = Vec::new();
    for section in &sections {
        let SinkKeys { name, topic, nats, kafka, redis, webhook } = SinkKeys::read_keys(section)?;
        if sinks.iter().any(|other| *other.name == name) {
            let reason = format!("{name:?} is the name of an earlier sink");
            return Err(section.fault(&["name"], reason));
        }
        let engines = [
            nats.map(EngineAddress::Nats),
            kafka.map(EngineAddress::Kafka),
            redis.map(EngineAddress::Redis),
            webhook.map(EngineAddress::Webhook),
        ];
        let mut engines = engines.into_iter().flatten();
        let Some(engine) = engines.next() else {
            let reason = "the sink has no engine: add `nats`, `kafka`, `redis` or `webhook`";
            return Err(section.fault(&["topic"], reason));
        };
        if engines.next().is_some() {
            return Err(section.fault(&["topic"], "a sink has one engine: keep one of its tables"));
        }
        sinks.push(Arc::new(Sink { name: name.into(), topic: topic.into(), engine }));
    }
    Ok(sinks)
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{parse, refused};

    #[test]
    fn a_sink_has_a_name_a_topic_and_an_engine() {
        let config = parse(
            "[[sink]]\nname = \"a\"\ntopic = \"t\"\nwebhook = { url = \"http://127.0.0.1:1/\", batch = 7 }",
        );
        let sink = &config.sinks[0];
        let crate::protocol::sink::EngineAddress::Webhook(webhook) = &sink.engine else {
            panic!("{sink:?}")
        };
        assert_eq!((&*sink.name, &*sink.topic), ("a", "t"));
        assert_eq!((webhook.batch, webhook.in_flight), (7, 4));
        assert_eq!((webhook.service.timeout_ms, webhook.secret.is_none()), (10_000, true));
    }

    #[test]
    fn descriptors_are_reserved_for_the_connections_of_an_engine() {
        let services = |engine: &str| {
            parse(&format!("[[sink]]\nname = \"a\"\ntopic = \"t\"\n{engine}")).services()
        };
        assert_eq!(services("webhook = { url = \"http://127.0.0.1:1/\" }"), (1, 0));
        assert_eq!(services("nats = { servers = [\"nats://a\"], subject = \"a\" }"), (0, 1));
        assert_eq!(services("kafka = { brokers = [\"a:1\"], topic = \"a\" }"), (0, 32));
        assert_eq!(services("redis = { url = \"redis://a\", stream = \"a\" }"), (0, 4));
    }

    #[test]
    fn sinks_that_cannot_work_are_refused() {
        let at = "gridcast.toml:";
        let sink = "[[sink]]\nname = \"a\"\ntopic = \"t\"\n";
        let webhook = "webhook = { url = \"http://127.0.0.1:1/\" }\n";
        refused(
            sink,
            &format!(
                "{at}3: sink.topic: the sink has no engine: add `nats`, `kafka`, `redis` or `webhook`"
            ),
        );
        refused("[[sink]]\nname = \"a\"", &format!("{at}1: sink.topic: missing; a sink needs one"));
        let twice = format!("{sink}{webhook}{sink}{webhook}");
        refused(&twice, &format!("{at}6: sink.name: \"a\" is the name of an earlier sink"));
        let password =
            format!("{sink}nats = {{ servers = [\"http://a:hush@b\"], subject = \"a\" }}");
        refused(
            &password,
            &format!(
                "{at}4: sink.nats.servers: expected a list of URLs such as \"nats://10.0.0.5:4222\" or \
                 \"tls://nats.example.org\""
            ),
        );
        let tls = format!("{sink}redis = {{ url = \"rediss://:hush@a\", stream = \"a\" }}");
        refused(
            &tls,
            &format!(
                "{at}4: sink.redis.url: TLS to Redis is not supported: use redis:// in a private network, \
                 or through a TLS tunnel on this machine"
            ),
        );
        let nats = "nats = { servers = [\"nats://a\"], subject = \"a\" }\n";
        refused(
            &format!("{sink}{nats}{webhook}"),
            &format!("{at}3: sink.topic: a sink has one engine: keep one of its tables"),
        );
        let secret = format!("{sink}webhook = {{ url = \"http://10.0.0.1/?key=hush\" }}");
        refused(
            &secret,
            &format!(
                "{at}4: sink.webhook.url: http:// is allowed to loopback addresses only; anywhere else \
                 use https://"
            ),
        );
    }
}
