//! Sources, whose messages are calls.

use std::sync::Arc;

use super::definition::section;
use super::document::{ConfigError, Section};
use super::shape::{NAME, Text};
use super::sink::{NatsServers, RedisServer};
use crate::protocol::call_source::{
    CallEngine, CallSource, NatsConsumer, RedisGroup, is_nats_name,
};
use crate::protocol::sink::RedisUrl;

/// The most sources of a node. Each holds up to 64 messages in memory.
const SOURCES_MAX: usize = 16;

section! {
    /// A source: an engine whose messages are calls, such as `{"m":"mesh.publish","p":{"c":"news","d":"hello"}}`. The
    /// node carries out each call, and acknowledges the message after that. One of the tables below names the engine.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(super) struct CallSourceKeys(section) {
        /// The name of the source, in metrics and the log.
        name: String = NAME, required("a source needs one", "\"pushes\"");
    }
    tables {
        /// NATS with JetStream.
        nats as "nats": Option<NatsConsumer> = read_nats(section)?, Optional(NatsConsumerKeys::definition);

        /// Redis Streams.
        redis as "redis": Option<RedisGroup> = read_redis(section)?, Optional(RedisGroupKeys::definition);
    }
}

section! {
    /// NATS with JetStream. Each message of a stream is a call.
    pub(super) struct NatsConsumerKeys(section) {
        /// The servers, of which one that can be reached is used. A URL may contain a user and a password.
        servers: Vec<String> = NatsServers,
            required("NATS has at least one", "[\"nats://127.0.0.1:4222\"]");

        /// The stream, which has to exist.
        stream: String = NATS_NAME, required("a source on NATS has one", "\"PUSHES\"");

        /// The durable consumer, which is made where it is missing. Nodes with the same one share its messages.
        consumer: String = NATS_NAME, value("gridcast".to_owned());
    }
}

section! {
    /// Redis Streams. The field `data` of each entry is a call.
    pub(super) struct RedisGroupKeys(section) {
        /// The server. The URL may contain a user, a password and the number of a database.
        url: RedisUrl = RedisServer, required("Redis has one", "\"redis://127.0.0.1:6379\"");

        /// The key of the stream, which is made where it is missing.
        stream: String = NAME, required("a source on Redis has one", "\"pushes\"");

        /// The group of consumers, which is made where it is missing. Nodes with the same one share its entries.
        group: String = NAME, value("gridcast".to_owned());
    }
}

const NATS_NAME: Text<String> = Text {
    expected: "a name of 1 to 255 visible ASCII characters without any of `.*>/\\\\`",
    parse: |text| is_nats_name(text).then(|| text.to_owned()),
};

fn read_nats(source: &Section<'_>) -> Result<Option<NatsConsumer>, ConfigError> {
    let section = source.table("nats")?;
    if !section.is_written() {
        return Ok(None);
    }
    let NatsConsumerKeys { servers, stream, consumer } = NatsConsumerKeys::read_keys(&section)?;
    let (stream, consumer) = (stream.into(), consumer.into());
    Ok(Some(NatsConsumer { servers: servers.into(), stream, consumer }))
}

fn read_redis(source: &Section<'_>) -> Result<Option<RedisGroup>, ConfigError> {
    let section = source.table("redis")?;
    if !section.is_written() {
        return Ok(None);
    }
    let RedisGroupKeys { url, stream, group } = RedisGroupKeys::read_keys(&section)?;
    Ok(Some(RedisGroup { url, stream: stream.into(), group: group.into() }))
}

/// Reads the sources of a node.
pub(super) fn read_call_sources(root: &Section<'_>) -> Result<Vec<Arc<CallSource>>, ConfigError> {
    let sections = root.tables("source")?;
    if let Some(section) = sections.get(SOURCES_MAX) {
        return Err(section.fault(&["name"], format!("expected at most {SOURCES_MAX} sources")));
    }
    let mut sources: Vec<Arc<CallSource>> = Vec::new();
    for section in &sections {
        let CallSourceKeys { name, nats, redis } = CallSourceKeys::read_keys(section)?;
        if sources.iter().any(|other| *other.name == name) {
            let reason = format!("{name:?} is the name of an earlier source");
            return Err(section.fault(&["name"], reason));
        }
        let engines = [nats.map(CallEngine::Nats), redis.map(CallEngine::Redis)];
        let mut engines = engines.into_iter().flatten();
        let Some(engine) = engines.next() else {
            return Err(section.fault(&["name"], "the source has no engine: add `nats` or `redis`"));
        };
        if engines.next().is_some() {
            return Err(section.fault(&["name"], "a source has one engine: keep one of its tables"));
        }
        sources.push(Arc::new(CallSource { name: name.into(), engine }));
    }
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{parse, refused};
    use crate::protocol::call_source::CallEngine;

    #[test]
    fn a_source_has_a_group_of_its_own_unless_one_is_named() {
        let config = parse(
            "[[source]]\nname = \"a\"\nredis = { url = \"redis://a\", stream = \"s\" }\n\
             [[source]]\nname = \"b\"\nnats = { servers = [\"nats://a\"], stream = \"S\" }",
        );
        let [redis, nats] = &config.call_sources[..] else { panic!("{:?}", config.call_sources) };
        let CallEngine::Redis(redis) = &redis.engine else { panic!("{redis:?}") };
        assert_eq!((&*redis.stream, &*redis.group), ("s", "gridcast"));
        let CallEngine::Nats(nats) = &nats.engine else { panic!("{nats:?}") };
        assert_eq!((&*nats.stream, &*nats.consumer), ("S", "gridcast"));
        assert_eq!(config.services(), (0, 3));
    }

    #[test]
    fn sources_that_cannot_work_are_refused() {
        let at = "gridcast.toml:";
        let source = "[[source]]\nname = \"a\"\n";
        refused(
            source,
            &format!("{at}2: source.name: the source has no engine: add `nats` or `redis`"),
        );
        let redis = "redis = { url = \"redis://a\", stream = \"s\" }\n";
        let nats = "nats = { servers = [\"nats://a\"], stream = \"S\" }\n";
        refused(
            &format!("{source}{redis}{source}{redis}"),
            &format!("{at}5: source.name: \"a\" is the name of an earlier source"),
        );
        refused(
            &format!("{source}{redis}{nats}"),
            &format!("{at}2: source.name: a source has one engine: keep one of its tables"),
        );
        refused(
            &format!("{source}nats = {{ servers = [\"nats://a\"], stream = \"a.b\" }}"),
            &format!(
                "{at}3: source.nats.stream: expected a name of 1 to 255 visible ASCII characters without any \
                 of `.*>/\\\\`, found \"a.b\""
            ),
        );
    }
}
