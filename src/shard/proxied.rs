//! Connections and requests that come through a trusted proxy: the proxy tells the address of its client.
//!
//! With the PROXY protocol each connection begins with a header, before TLS. With
//! forwarded headers each request has its own address, because a proxy may send requests of several
//! clients over one connection.

use super::connection::{Connection, Connections, Phase, Stage};
use super::settings::{ProxyMethod, Settings};
use super::trail::{self, Entry};
use super::turn::Turn;
use crate::address::remote::Remote;
use crate::message::ConnectionKey;
use crate::protocol::http::{Request, forwarded_for};
use crate::protocol::proxy::{ProxyError, ProxyHeader};

/// Marks a newly accepted connection that begins with a PROXY protocol header. Returns whether it does.
pub(super) fn await_header(turn: &Turn, connections: &mut Connections, key: ConnectionKey) -> bool {
    let Some(connection) = connections.get(key) else { return false };
    let proxy = turn.settings.proxy(connection.listener);
    let awaits = proxy.is_some_and(|p| p.trusts(connection.remote, ProxyMethod::Protocol));
    if let Stage::Http(http) = &mut connection.stage {
        http.proxy_header = awaits.then(Box::default);
    }
    awaits
}

/// Reads the next bytes of a PROXY protocol header. A complete header gives the connection the address of
/// the proxy's client; one in which the proxy speaks for itself leaves the address as it is. Returns the
/// length of the part of `input` that belongs to the complete header. Closes a connection that begins with
/// something else.
pub(super) fn read_header(
    turn: &mut Turn,
    connections: &mut Connections,
    key: ConnectionKey,
    input: &[u8],
) -> Option<usize> {
    let connection = connections.get(key)?;
    let Stage::Http(http) = &mut connection.stage else { return None };
    match http.proxy_header.as_mut()?.read(input) {
        Ok(header) => {
            let ProxyHeader { source, length } = header?;
            http.proxy_header = None;
            let source = source.map(Remote::from);
            connection.remote = source.unwrap_or(connection.remote);
            trail::note(turn.trail(key), Entry::Proxied(source));
            Some(length)
        }
        Err(error) => {
            refuse(turn, connections, key, error);
            None
        }
    }
}

/// Refuses a connection that ends within its PROXY protocol header.
pub(super) fn handle_end(turn: &mut Turn, connections: &mut Connections, key: ConnectionKey) {
    let Some(Stage::Http(http)) = connections.get(key).map(|c| &c.stage) else { return };
    if http.proxy_header.as_ref().is_some_and(|reader| reader.has_begun()) {
        refuse(turn, connections, key, ProxyError::Incomplete);
    }
}

/// Closes a connection of a proxy that does not begin with a PROXY protocol header, and counts it once.
fn refuse(turn: &mut Turn, connections: &mut Connections, key: ConnectionKey, error: ProxyError) {
    let Some(connection) = connections.get(key) else { return };
    if connection.phase != Phase::Closed {
        turn.counters.proxy_refused += 1;
        let (listener, remote, why) = (connection.listener, connection.remote, error.reason());
        trail::note(turn.trail(key), Entry::Dropped(remote, why));
        if turn.taps.is_active() {
            turn.tap_refusal(key, listener, remote, None, why);
        }
        connections.close(turn, key);
    }
}

/// Gives a connection the address of the client whose request a trusted proxy has forwarded. To be called
/// for each request before anything else is judged.
pub(super) fn find_client(settings: &Settings, connection: &mut Connection, request: &Request<'_>) {
    let proxy = settings.proxy(connection.listener);
    let Stage::Http(http) = &mut connection.stage else { return };
    let own = match (proxy, http.proxy) {
        (None, None) => return,
        (_, Some(own)) => own,
        // Counted by its own address, before a reload: the count has to end at that address.
        (Some(_), None) if connection.is_counted => return,
        (Some(_), None) => connection.remote,
    };
    connection.remote = match proxy.filter(|proxy| proxy.trusts(own, ProxyMethod::Forwarded)) {
        Some(proxy) => {
            http.proxy = Some(own);
            forwarded_for(request, &proxy.from).unwrap_or(own)
        }
        // A reload has removed the proxy.
        None => own,
    };
}
