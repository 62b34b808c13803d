//! The proxies in front of a listener.

use ipnet::IpNet;

use super::definition::section;
use super::document::{ConfigError, Section};
use super::shape::{List, Switch};
use super::user::{RANGE, range};

section! {
    /// The proxies in front of the listener, which tell the addresses of their clients. `remote`, events,
    /// limits of addresses, `from` of users and the log then have the client's address. One of `protocol`
    /// and `forwarded` is set.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Proxy(section) {
        /// Addresses and address ranges of the proxies. From other addresses, what only a proxy may tell
        /// means nothing. On a Unix socket all proxies have the address `127.0.0.1`.
        from: Vec<IpNet> = PROXIES, required("without it nobody is believed", "[\"10.0.0.0/8\", \"::1\"]");

        /// Each connection begins with a PROXY protocol header, version 1 or 2, also before TLS. A
        /// connection without one, or with a broken one, is closed and counted.
        protocol: bool = Switch, derived(false, "false; then `forwarded` is required", "true");

        /// The address of the client is the last entry of `X-Forwarded-For`, or else of `Forwarded`, that is
        /// not in `from`.
        forwarded: bool = Switch, derived(false, "false; then `protocol` is required", "true");
    }
}

const PROXIES: List<IpNet> = List {
    expected: RANGE,
    parse: range,
    empty: Some("an empty list believes nobody: leave `proxy` out"),
};

impl Proxy {
    /// Reads the table `proxy` of a listener's section.
    pub(super) fn read(listener: &Section<'_>) -> Result<Option<Self>, ConfigError> {
        let section = listener.table("proxy")?;
        if !section.is_written() {
            return Ok(None);
        }
        let proxy = Self::read_keys(&section)?;
        match (proxy.protocol, proxy.forwarded) {
            (true, true) => {
                Err(section
                    .fault(&["forwarded"], "a listener has `protocol` or `forwarded`, not both"))
            }
            (false, false) => {
                Err(section.fault(&["protocol"], "missing; set `protocol` or `forwarded` to true"))
            }
            _ => Ok(Some(proxy)),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{parse, refused};

    fn with_proxy(keys: &str) -> String {
        format!("[api]\nproxy = {{ {keys} }}")
    }

    #[test]
    fn a_proxy_has_addresses_and_one_way_to_tell_those_of_clients() {
        let line = |key: &str, why: &str| format!("gridcast.toml:2: api.proxy.{key}: {why}");
        for (keys, key, why) in [
            ("protocol = true", "from", "missing; without it nobody is believed"),
            (
                "from = [], protocol = true",
                "from",
                "an empty list believes nobody: leave `proxy` out",
            ),
            ("from = [\"::1\"]", "protocol", "missing; set `protocol` or `forwarded` to true"),
            (
                "from = [\"::1\"], protocol = true, forwarded = true",
                "forwarded",
                "a listener has `protocol` or `forwarded`, not both",
            ),
            (
                "from = [\"10.0.0.1/8\"], protocol = true",
                "from",
                "expected an IP address or a range that begins with its first, such as \
                 \"10.0.0.0/8\", found \"10.0.0.1/8\"",
            ),
        ] {
            refused(&with_proxy(keys), &line(key, why));
        }
        let proxy = parse(&with_proxy("from = [\"10.0.0.0/8\"], forwarded = true")).api.proxy;
        let proxy = proxy.expect("it is written");
        assert_eq!((proxy.from.len(), proxy.protocol, proxy.forwarded), (1, false, true));
        assert_eq!(parse("").api.proxy, None);
    }

    #[test]
    fn an_edge_may_have_proxies_of_its_own() {
        let text = "[[edge]]\nproxy = { from = [\"::1\"], protocol = true }\n\
                    route = [{ path = \"/\" }]\n";
        let edges = parse(text).edges;
        assert!(edges[0].proxy.as_ref().is_some_and(|proxy| proxy.protocol));
    }
}
