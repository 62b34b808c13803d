//! Redis Streams: the address of a server, and the stream of an event.

use std::fmt::{self, Debug, Display};
use std::sync::Arc;

use super::sender_of;
use crate::address::ClientId;

/// Redis Streams. Each event is an entry of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Redis {
    /// The server.
    pub url: RedisUrl,
    /// The key of the stream, in which `{client}` stands for what [`sender_of`] returns.
    pub stream: Arc<str>,
    /// About how many entries a stream keeps. Redis drops older ones. `None`: all.
    pub max_len: Option<u64>,
}

impl Redis {
    /// The key of the stream of an event. `object` is what
    /// [`event_object`](crate::protocol::api::event_object) returns.
    pub fn stream_of(&self, client: ClientId, object: &[u8]) -> String {
        self.stream.replace("{client}", &sender_of(client, object))
    }
}

/// The URL of a Redis server. Shows the host alone: a URL may contain a password.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RedisUrl(Arc<str>);

impl RedisUrl {
    /// Checks a URL: `redis://`, a host, and a user, a password, a port and the number of a database if need be.
    ///
    /// # Errors
    /// The text is no such URL. The error says which form a URL has.
    pub fn new(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str =
            "expected a URL such as \"redis://127.0.0.1:6379\" or \"redis://:PASSWORD@10.0.0.5/0\"";
        let url = text.parse::<http::Uri>().map_err(|_| EXPECTED)?;
        if url.scheme_str() == Some("rediss") {
            return Err(
                "TLS to Redis is not supported: use redis:// in a private network, or through a \
                        TLS tunnel on this machine",
            );
        }
        let authority = url.authority().filter(|_| url.scheme_str() == Some("redis"));
        let authority = authority.ok_or(EXPECTED)?;
        let host = authority.as_str().rsplit('@').next().unwrap_or_default();
        let has_port =
            host == authority.host() || authority.port_u16().is_some_and(|port| port > 0);
        let database = url.path().trim_start_matches('/');
        let has_database = database.is_empty() || database.parse::<u16>().is_ok();
        match !authority.host().is_empty() && has_port && has_database && url.query().is_none() {
            true => Ok(Self(text.into())),
            false => Err(EXPECTED),
        }
    }

    /// The whole URL, maybe with a password.
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl Display for RedisUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.0.rsplit('@').next().unwrap_or_default();
        let host = host.trim_start_matches("redis://");
        formatter.write_str(host.split('/').next().unwrap_or_default())
    }
}

impl Debug for RedisUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(self, formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_a_host_and_shows_no_password() {
        let shown = |text| RedisUrl::new(text).map(|url| url.to_string());
        assert_eq!(shown("redis://127.0.0.1"), Ok("127.0.0.1".to_owned()));
        assert_eq!(shown("redis://app:hush@10.0.0.5:6380/3"), Ok("10.0.0.5:6380".to_owned()));
        assert_eq!(shown("redis://:hush@[::1]:6379/"), Ok("[::1]:6379".to_owned()));
        for wrong in [
            "",
            "redis://",
            "127.0.0.1:6379",
            "http://a",
            "redis://a:0",
            "redis://a:b",
            "redis://a/x",
            "redis://a/-1",
            "redis://a?protocol=3",
            "redis+unix:///x",
            "redis://a b",
        ] {
            assert!(shown(wrong).is_err_and(|why| why.starts_with("expected")), "{wrong}");
        }
        assert!(shown("rediss://a").is_err_and(|why| why.starts_with("TLS to Redis")));
    }

    #[test]
    fn a_stream_may_be_that_of_a_client() {
        let url = RedisUrl::new("redis://a").expect("a URL");
        let redis = Redis { url, stream: "in:{client}".into(), max_len: None };
        assert_eq!(redis.stream_of(ClientId::from_value(7), b"{}"), "in:7");
        let pushed = |object: &str| redis.stream_of(ClientId::of_no_client(7), object.as_bytes());
        assert_eq!((&*pushed(r#"{"k":"a b"}"#), &*pushed("{}")), ("in:a b", "in:-"));
    }
}
