//! The API over HTTP: pages, probes, and the upgrade to WebSocket.

use super::{Backends, console, page};
use std::sync::atomic::Ordering;

use crate::message::ConnectionKey;
use crate::protocol::api::{self, ApiMethod, ListMethod, NodeRow};
use crate::protocol::credentials::{Roles, SUBPROTOCOL};
use crate::protocol::http::{Method, Request};
use crate::protocol::{origin, upgrade};
use crate::shard::access::Grant;
use crate::shard::connection::HttpShape;
use crate::shard::connection::{Backend, Connections, Stage};
use crate::shard::trail::{self, Entry};
use crate::shard::turn::Turn;

/// The path at which a back end opens a WebSocket.
pub(crate) const WEBSOCKET_PATH: &str = "/ws/v1";

/// Whether a path needs no credentials: the probes, the start page and the console's files.
pub(crate) fn is_public(path: &str) -> bool {
    path == "/" || is_probe(path) || console::is_console(path)
}

/// Whether a path is that of a probe, which every listener answers.
pub(crate) fn is_probe(path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz")
}

/// Returns the API method at a path.
pub(crate) fn api_method(path: &str) -> Option<ApiMethod> {
    match path {
        "/v1/mesh/send" => Some(ApiMethod::Send),
        "/v1/mesh/publish" => Some(ApiMethod::Publish),
        "/v1/conn/call" => Some(ApiMethod::Call),
        "/v1/user/send" => Some(ApiMethod::UserSend),
        "/v1/user/call" => Some(ApiMethod::UserCall),
        "/v1/queue/push" => Some(ApiMethod::Push),
        "/v1/queue/take" => Some(ApiMethod::Take),
        "/v1/queue/ack" => Some(ApiMethod::Ack),
        "/v1/queue/nack" => Some(ApiMethod::Nack),
        "/v1/admin/reload" => Some(ApiMethod::Reload),
        "/v1/node/list" => Some(ApiMethod::List(ListMethod::Node)),
        "/v1/client/list" => Some(ApiMethod::List(ListMethod::Client)),
        "/v1/channel/list" => Some(ApiMethod::List(ListMethod::Channel)),
        "/v1/topic/list" => Some(ApiMethod::List(ListMethod::Topic)),
        "/v1/backend/list" => Some(ApiMethod::List(ListMethod::Backend)),
        "/v1/channel/members" => Some(ApiMethod::List(ListMethod::Members)),
        "/v1/user/info" => Some(ApiMethod::List(ListMethod::UserInfo)),
        "/v1/channel/info" => Some(ApiMethod::List(ListMethod::ChannelInfo)),
        _ => None,
    }
}

/// Whether a user with these roles may call a method over HTTP.
pub(crate) fn allows_method(roles: Roles, method: ApiMethod) -> bool {
    match method {
        ApiMethod::Take | ApiMethod::Ack | ApiMethod::Nack => roles.read,
        ApiMethod::List(list) if !list.is_for_admins() => roles.read,
        method if method.is_for_admins() => roles.admin,
        _ => roles.write,
    }
}

impl Backends {
    /// Answers a request for a page or a probe.
    pub(crate) fn handle_page_request(
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
            path if console::is_console(path) => {
                return console::handle_request(turn, connections, key, shape, request);
            }
            "/healthz" => (200, "text/plain", "ok\n".into()),
            "/metrics" if is_get => return self.call_report(turn, connections, key, shape.clone()),
            "/metrics" => (200, "text/plain", String::new()),
            "/readyz" if turn.is_going_down() => (503, "text/plain", "going down\n".into()),
            "/readyz" if turn.refuses_arrivals() => (503, "text/plain", "short of memory\n".into()),
            "/readyz" if turn.state.disk.is_failing.load(Ordering::Relaxed) => {
                let why = "the disk of data.dir returns errors: see the log\n";
                (503, "text/plain", why.into())
            }
            "/readyz" => match (turn.roster.seen_count(), turn.settings.process.nodes_expected) {
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
            "/v1/nodes" => (200, json, nodes_page(vec![own_row(turn)])),
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

/// Refuses requests that a web page sends to the API through its visitor's browser, unless
/// `api.origins` allows the page's origin. Returns the origin to name in the response (CORS), if it
/// is an allowed foreign one.
///
/// A GET of a page of the same origin has no `Origin` header. If the settings have no users, such a
/// request is checked by its `Host`, against DNS rebinding.
pub(crate) fn check_origin(
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

/// Checks the `Host` of a request without an `Origin`. Any host is allowed if requests need
/// credentials, and for probes, which reveal nothing.
fn check_host(
    turn: &Turn,
    key: ConnectionKey,
    request: &Request<'_>,
    host: &[u8],
) -> Result<Option<Box<str>>, &'static str> {
    let api = &turn.settings.api;
    let may = !api.users.is_empty()
        || origin::is_address(host)
        // Every browser sends a host.
        || host.is_empty()
        || is_probe(request.path)
        || api.origins.iter().any(|known| origin::is_host_of(known.as_bytes(), host));
    if may {
        return Ok(None);
    }
    trail::note(turn.trail(key), Entry::Cause("host", host));
    Err("without users the API answers to an IP address or localhost alone, and \
                      to the hosts in api.origins; another page may have pointed this name here")
}

/// Answers a CORS preflight request of an allowed origin (Fetch, section 3.2).
pub(crate) fn answer_preflight(
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

/// Upgrades a connection to the WebSocket API, or refuses that.
pub(crate) fn open_websocket(
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
    // A refusal ends the connection. Otherwise frames that the peer sent early would be parsed as a
    // request.
    if turn.is_draining {
        return connections.refuse_and_close(turn, key, 503, "the server is shutting down");
    }
    // Back ends are accepted even if memory is short, since consumers free the memory of topics.
    let date = turn.date();
    let subprotocol = upgrade.subprotocols().find(|name| *name == SUBPROTOCOL);
    connections.reply_bytes(turn, key, |out| {
        upgrade::write_switching(out, date, &upgrade.accept, subprotocol, None);
    });
    let ping_at_ms = turn.now.ms + turn.settings.limits.ping_ms;
    let Some(connection) = connections.get(key) else { return };
    let replies = connection.replies().map(std::mem::take).unwrap_or_default();
    connection.stage = Stage::Backend(Box::new(Backend { replies, grant, ..Backend::default() }));
    connections.note_backend(key);
    turn.counters.backends += 1;
    trail::note(turn.trail(key), Entry::BackendOpened(turn.user_name(grant.user)));
    connections.set_timer(turn, key, ping_at_ms);
}

/// Returns the body of `/v1/nodes`.
pub(crate) fn nodes_page(nodes: Vec<NodeRow>) -> String {
    let mut page = Vec::new();
    api::put_nodes(&mut page, nodes.into_iter());
    String::from_utf8_lossy(&page).into_owned()
}

/// Returns the only row of `/v1/nodes` on a node without a mesh.
fn own_row(turn: &Turn) -> NodeRow {
    let (node, api) = (turn.settings.node, turn.settings.api.advertise.clone());
    NodeRow { node, api, mesh: None }
}

fn version() -> String {
    format!("{{\"apis\":[\"v1\"],\"api\":[\"v1\"],\"version\":\"{}\"}}", env!("CARGO_PKG_VERSION"))
}
