//! Listeners for clients.

use super::definition::section;
use super::document::{ConfigError, Section};
use super::route::read_routes;
use super::shape::LISTEN;
use super::{Api, Limits, Proxy, Route, TlsFiles};
use crate::address::listen::ListenAddress;

section! {
    /// A listener for clients.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Edge(section, limits: &Limits) {
        /// The TCP address that clients connect to, or the path of a Unix socket, which is created with mode
        /// 0660. Port 0 lets the system pick one. No two listeners may have the same address.
        bind: ListenAddress = LISTEN, value(([127, 0, 0, 1], 6790).into()), restart;
    }
    tables {
        /// TLS for this listener. Without this table, the listener speaks plain `ws://`. For both, write two
        /// edges with the same routes.
        tls as "tls": Option<TlsFiles> = TlsFiles::read(section)?, Optional(TlsFiles::definition), restart;

        /// The proxies in front of this listener, which tell the addresses of their clients. Without this
        /// table each client has the address that it connects from.
        proxy as "proxy": Option<Proxy> = Proxy::read(section)?, Optional(Proxy::definition);

        /// A path that clients connect to, and what they may do there. An edge needs at least one route;
        /// their paths differ.
        routes as "route": Vec<Route> = read_routes(section, limits)?, Many(Route::definition);
    }
}

/// Reads the listeners, none of which may have the address of `api`. A limit that a route does not
/// set is the one in `limits`.
pub(super) fn read_edges(
    root: &Section<'_>,
    api: &Api,
    limits: &Limits,
) -> Result<Vec<Edge>, ConfigError> {
    let mut taken = vec![(api.bind.clone(), root.table("api")?.place("bind"))];
    let mut edges = Vec::new();
    for section in root.tables("edge")? {
        let edge = Edge::read_keys(&section, limits)?;
        if edge.routes.is_empty() {
            return Err(section.fault(&["route"], "missing; an edge needs at least one"));
        }
        // Listeners set SO_REUSEPORT: the kernel would let two share an address and mix them up.
        let same = taken
            .iter()
            .find(|(bind, _)| *bind == edge.bind && bind.tcp().is_none_or(|tcp| tcp.port() != 0));
        if let Some((bind, place)) = same {
            return Err(section.fault(&["bind"], format!("{bind} is taken by {place}")));
        }
        taken.push((edge.bind.clone(), section.place("bind")));
        edges.push(edge);
    }
    Ok(edges)
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{parse, refused};

    #[test]
    fn two_listeners_do_not_share_an_address() {
        let edge = |bind| format!("[[edge]]\nbind = \"{bind}\"\nroute = [{{ path = \"/\" }}]\n");
        let two = |bind| format!("{}{}", edge(bind), edge(bind));
        refused(
            &two("127.0.0.1:7000"),
            "gridcast.toml:5: edge.bind: 127.0.0.1:7000 is taken by gridcast.toml:2: edge.bind",
        );
        refused(
            &edge("127.0.0.1:6789"),
            "gridcast.toml:2: edge.bind: 127.0.0.1:6789 is taken by gridcast.toml: api.bind",
        );
        assert_eq!(parse(&two("127.0.0.1:0")).edges.len(), 2, "with port 0 each gets its own");
    }
}
