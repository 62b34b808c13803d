//! The API over HTTP: pages, probes, and the way to a WebSocket.

use super::{Backends, page};
use crate::message::ConnectionKey;
use crate::protocol::api::{self, Method as ApiMethod, NodeRow};
use crate::protocol::http::{Method, Request};
use crate::protocol::{origin, upgrade};
use crate::shard::access::Grant;
use crate::shard::connection::HttpShape;
use crate::shard::connection::{Backend, Connections, Stage};
use crate::shard::trail::{self, Entry};
use crate::shard::turn::Turn;

/// Where a back end opens a WebSocket.
pub const SOCKET_PATH: &str = "/ws/v1";

/// Whether a path is open to who has no credentials: a probe and a visitor's browser.
pub fn is_open(path: &str) -> bool {
    matches!(path, "/" | "/healthz" | "/readyz")
}

/// The method that a path stands for.
pub fn api_method(path: &str) -> Option<ApiMethod> {
    match path {
        "/v1/mesh/send" => Some(ApiMethod::Send),
        "/v1/mesh/publish" => Some(ApiMethod::Publish),
        "/v1/conn/call" => Some(ApiMethod::Call),
        _ => None,
    }
}

impl Backends {
    /// Pages for people, probes, and clients that look for the nodes.
    pub fn handle_page_request(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        shape: &HttpShape,
        request: &Request<'_>,
    ) {
        let json = "application/json";
        let is_get = matches!(request.method, Method::Get | Method::Head);
        let (status, content_type, body) = match request.path {
            "/" => (200, "text/html; charset=utf-8", page::page(&turn.settings)),
            "/healthz" => (200, "text/plain", "ok\n".into()),
            "/metrics" if is_get => return self.call_report(turn, connections, key, shape.clone()),
            "/metrics" => (200, "text/plain", String::new()),
            "/readyz" if turn.is_draining => (503, "text/plain", "going down\n".into()),
            "/readyz" if turn.refuses_arrivals() => (503, "text/plain", "short of memory\n".into()),
            "/readyz" => match (turn.roster.seen(), turn.settings.process.nodes_expected) {
                (seen, expected) if seen >= expected => (200, "text/plain", "ready\n".into()),
                (seen, expected) => {
                    let why = format!("{seen} of {expected} nodes have been seen\n");
                    (503, "text/plain", why)
                }
            },
            "/version" => (200, json, version()),
            "/v1/nodes" if is_get && turn.settings.has_mesh => {
                return self.call_nodes(turn, connections, key, shape.clone());
            }
            "/v1/nodes" => (200, json, nodes(turn)),
            _ => {
                return connections.refuse(turn, key, shape, 404, &[], "no such path");
            }
        };
        if !is_get {
            return connections.refuse(
                turn,
                key,
                shape,
                405,
                &[("Allow", "GET, HEAD")],
                "expected GET",
            );
        }
        let headers: &[_] = match request.path {
            "/" => &[
                ("Content-Security-Policy", page::PAGE_POLICY),
                ("Cache-Control", "no-store"),
                ("Referrer-Policy", "no-referrer"),
                ("X-Content-Type-Options", "nosniff"),
            ],
            _ => &[("Cache-Control", "no-store")],
        };
        let date = turn.date();
        connections.reply_bytes(turn, key, |out| {
            shape.put(out, date, (status, content_type), headers, body.as_bytes());
        });
    }
}

/// A web page must not reach the API through its visitor's browser. Gives the origin that is to
/// be named in the response, if it is a foreign one that may.
///
/// A page of the same origin sends no `Origin` with a GET. Where there are no users, the host
/// that it asks for is then all that tells a hostile page from a friend (DNS rebinding).
pub fn check_origin(
    turn: &Turn,
    key: ConnectionKey,
    request: &Request<'_>,
) -> Result<Option<Box<str>>, &'static str> {
    let host = request.host().unwrap_or_default();
    let mut origins = request.header_values("origin");
    let Some(origin) = origins.next() else { return check_host(turn, key, request, host) };
    let api = &turn.settings.api;
    let name = origin.strip_suffix(b"/").unwrap_or(origin);
    let listed = api.origins.iter().find(|known| known.as_bytes().eq_ignore_ascii_case(name));
    match listed {
        _ if origins.next().is_some() => Err("there is more than one Origin header"),
        Some(known) => Ok(Some(known.as_str().into())),
        None if origin::is_own(origin, host) => Ok(None),
        None => {
            trail::note(turn.trail(key), Entry::Cause("origin", origin));
            Err("this origin may not call the API; see api.origins")
        }
    }
}

/// Whether the API may answer to this host. Users' credentials protect it under any name, and a
/// probe learns nothing that others must not know.
fn check_host(
    turn: &Turn,
    key: ConnectionKey,
    request: &Request<'_>,
    host: &[u8],
) -> Result<Option<Box<str>>, &'static str> {
    let api = &turn.settings.api;
    let may = !api.users.is_empty()
        || origin::is_address(host)
        // No browser leaves the host out.
        || host.is_empty()
        || matches!(request.path, "/healthz" | "/readyz")
        || api.origins.iter().any(|known| origin::is_host_of(known.as_bytes(), host));
    if may {
        return Ok(None);
    }
    trail::note(turn.trail(key), Entry::Cause("host", host));
    Err("without users the API answers to an IP address or localhost alone, and \
                      to the hosts in api.origins; another page may have pointed this name here")
}

/// Tells a browser that a page of this origin may call (Fetch, CORS preflight).
pub fn answer_preflight(
    turn: &mut Turn,
    connections: &mut Connections,
    key: ConnectionKey,
    shape: &HttpShape,
) {
    let headers = [
        ("Access-Control-Allow-Methods", "GET, POST"),
        ("Access-Control-Allow-Headers", "Authorization, Content-Type, X-Error-Mode"),
        ("Access-Control-Max-Age", "600"),
    ];
    let date = turn.date();
    connections
        .reply_bytes(turn, key, |out| shape.put(out, date, (204, "text/plain"), &headers, b""));
}

/// A back end changes over to the WebSocket API.
pub fn open(
    turn: &mut Turn,
    connections: &mut Connections,
    key: ConnectionKey,
    grant: Grant,
    request: &Request<'_>,
    shape: &HttpShape,
) {
    let upgrade = match upgrade::check(request) {
        Ok(upgrade) => upgrade,
        Err(error) => return connections.refuse_upgrade(turn, key, shape, &error),
    };
    // The connection ends with such a refusal: an impatient peer's first frames would be taken for
    // the next request.
    if turn.is_draining {
        return connections.refuse_and_close(turn, key, 503, "the server is shutting down");
    }
    // Lets back ends in also when memory is short: consumers free what topics hold.
    let date = turn.date();
    connections.reply_bytes(turn, key, |out| {
        upgrade::write_switching(out, date, &upgrade.accept, None, None);
    });
    let ping_at_ms = turn.now.ms + turn.settings.limits.ping_ms;
    let Some(connection) = connections.get(key) else { return };
    let replies = connection.replies().map(std::mem::take).unwrap_or_default();
    connection.stage = Stage::Backend(Box::new(Backend { replies, grant, ..Backend::default() }));
    turn.counters.backends += 1;
    trail::note(turn.trail(key), Entry::BackendOpened(turn.user_name(grant.user)));
    connections.set_timer(turn, key, ping_at_ms);
}

/// The one row of `/v1/nodes` on a node without a mesh.
fn nodes(turn: &Turn) -> String {
    let (node, api) = (turn.settings.node, turn.settings.api.advertise);
    let row = NodeRow { node, api, mesh: None };
    let mut page = Vec::new();
    api::put_nodes(&mut page, std::iter::once(row));
    String::from_utf8_lossy(&page).into_owned()
}

fn version() -> String {
    format!("{{\"apis\":[\"v1\"],\"api\":[\"v1\"],\"version\":\"{}\"}}", env!("CARGO_PKG_VERSION"))
}
