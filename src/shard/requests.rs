//! HTTP on both listeners: the back ends' requests, the pages for people and probes, refusals.

use super::Shard;
use super::access::{Grant, Refusal};
use super::connection::{Backend, Connections, Listener, Stage};
use super::heads::Judged;
use super::memory::SHORT;
use super::page;
use super::pending::Kind;
use super::replies::{HttpShape, Shape};
use super::trail::{self, Entry};
use super::turn::Turn;
use super::work;
use crate::message::{Command, ConnectionKey, Party};
use crate::protocol::api::{self, Code, Fault, Method as ApiMethod, NodeRow};
use crate::protocol::http::{CONTINUE, Exchange, HttpError, Method, Request, RequestReader, Step};
use crate::protocol::{origin, upgrade};

impl Shard {
    /// Reads one request.
    pub(super) fn read_http(&mut self, key: ConnectionKey, input: &mut &mut [u8]) {
        let Some(connection) = self.connections.get(key) else { return };
        let limits = match connection.listener {
            Listener::Api => self.turn.settings.api.http,
            Listener::Edge(_) => self.turn.settings.limits.edge_http,
        };
        let Stage::Http(http) = &mut connection.stage else { return };
        if http.is_last {
            *input = &mut [];
            return;
        }
        let mut reader = std::mem::take(&mut http.reader);
        let mut step = reader.read(input, &limits);
        if let Ok(Step::Head(head)) = step {
            match self.judge_head(key, head) {
                Judged::Goes => step = reader.read(input, &limits),
                Judged::Waits => return self.connections.keep_reader(key, reader),
                Judged::Answered => return self.connections.end_with_answer(&mut self.turn, key),
            }
        }
        match step {
            Ok(Step::NeedMore | Step::Head(_)) => {
                self.connections.wait_for_rest(&mut self.turn, key)
            }
            Ok(Step::Continue) => {
                self.connections.wait_for_rest(&mut self.turn, key);
                self.connections
                    .reply_bytes(&mut self.turn, key, |out| out.extend_from_slice(CONTINUE));
            }
            Ok(Step::Request(request)) => self.answer_request(key, request),
            Err(error) => {
                self.connections.count_refused(&mut self.turn, error);
                return self.connections.refuse_for_good(
                    &mut self.turn,
                    key,
                    error.status(),
                    &error.to_string(),
                );
            }
        }
        if input.is_empty() {
            // Frees what the last request took; there is nothing to read.
            let _ = reader.read(input, &limits);
        }
        let Some(connection) = self.connections.get(key) else { return };
        let Stage::Http(http) = &mut connection.stage else { return };
        http.reader = reader;
        match http.is_last && http.replies.is_empty() {
            true => self.connections.finish(&mut self.turn, key),
            false => self.connections.pause_if_unread(&mut self.turn, key),
        }
    }

    fn answer_request(&mut self, key: ConnectionKey, mut request: Request<'_>) {
        let now_ms = self.turn.now.ms;
        self.turn.counters.http_requests += 1;
        self.turn.work.spend(work::REQUEST);
        let Some(connection) = self.connections.get(key) else { return };
        let is_edge = connection.listener != Listener::Api;
        let Stage::Http(http) = &mut connection.stage else { return };
        // Where handshakes are limited, each takes a connection. Where nobody new comes in,
        // whoever is refused goes.
        let ends = is_edge
            && (self.turn.settings.limits.addresses.handshakes.is_some()
                || self.turn.refuses_arrivals());
        request.keep_alive &= !ends && !http.is_draining;
        http.is_mid_request = false;
        http.started_ms = now_ms;
        http.has_answered = true;
        http.is_last = !request.keep_alive;
        if !std::mem::take(&mut http.is_judged) {
            let (method, path) = (request.method.name(), request.path);
            trail::note(self.turn.trail(key), Entry::Requested(method, path));
        }
        self.handle_request(key, request);
    }

    /// Answers a whole request.
    fn handle_request(&mut self, key: ConnectionKey, request: Request<'_>) {
        let mut shape = HttpShape::of(&request);
        let Some(connection) = self.connections.get(key) else { return };
        if let Listener::Edge(edge) = connection.listener {
            return self.handle_edge_request(key, edge, &request, &shape);
        }
        match self.check_origin(key, &request) {
            Ok(origin) => shape.allow_origin = origin,
            Err(why) => return self.connections.refuse(&mut self.turn, key, &shape, 403, &[], why),
        }
        if request.method == Method::Other("OPTIONS") && shape.allow_origin.is_some() {
            return self.answer_preflight(key, &shape);
        }
        match request.path {
            // A probe and a visitor's browser have no credentials.
            _ if is_open(request.path) => self.handle_page_request(key, &shape, &request),
            _ => self.handle_unproven(key, shape, request),
        }
    }

    /// A request of a user who may come in.
    pub(super) fn handle_granted(
        &mut self,
        key: ConnectionKey,
        shape: HttpShape,
        grant: Grant,
        request: Request<'_>,
    ) {
        if let Some(Stage::Http(http)) = self.connections.get(key).map(|c| &mut c.stage) {
            http.is_proven = true;
            http.user = grant.user;
        }
        let Some(method) = api_method(request.path) else {
            return match request.path {
                SOCKET_PATH => self.open_backend(key, grant, &request, &shape),
                _ => self.handle_page_request(key, &shape, &request),
            };
        };
        match grant.roles.write {
            true => self.handle_api_request(key, shape, (grant, method), request),
            false => self.refuse_access(key, &shape, Refusal::Role),
        }
    }

    /// A call over HTTP.
    fn handle_api_request(
        &mut self,
        key: ConnectionKey,
        shape: HttpShape,
        (grant, method): (Grant, ApiMethod),
        request: Request<'_>,
    ) {
        if request.method != Method::Post {
            return self.connections.refuse(
                &mut self.turn,
                key,
                &shape,
                405,
                &[("Allow", "POST")],
                "expected POST",
            );
        }
        // The parser is taken out while what it read is carried out: the call borrows from it.
        let mut parser = std::mem::take(&mut self.parser);
        let call = self.take_call(grant).and_then(|()| parser.params(method, request.body));
        self.call(key, Shape::Response(shape), call);
        self.parser = parser;
    }

    /// Pages for people, probes, and clients that look for the nodes.
    pub(super) fn handle_page_request(
        &mut self,
        key: ConnectionKey,
        shape: &HttpShape,
        request: &Request<'_>,
    ) {
        let json = "application/json";
        let is_get = matches!(request.method, Method::Get | Method::Head);
        let (status, content_type, body) = match request.path {
            "/" => (200, "text/html; charset=utf-8", page::page(&self.turn.settings)),
            "/healthz" => (200, "text/plain", "ok\n".into()),
            "/metrics" if is_get => return self.call_report(key, shape.clone()),
            "/metrics" => (200, "text/plain", String::new()),
            "/readyz" if self.turn.is_draining => (503, "text/plain", "going down\n".into()),
            "/readyz" if self.turn.refuses_arrivals() => {
                (503, "text/plain", "short of memory\n".into())
            }
            "/readyz" => match (self.turn.roster.seen(), self.turn.settings.process.nodes_expected)
            {
                (seen, expected) if seen >= expected => (200, "text/plain", "ready\n".into()),
                (seen, expected) => {
                    let why = format!("{seen} of {expected} nodes have been seen\n");
                    (503, "text/plain", why)
                }
            },
            "/version" => (200, json, version()),
            "/v1/nodes" if is_get && self.turn.settings.has_mesh => {
                let shape = Shape::Response(shape.clone());
                return self.ask(key, shape, Kind::Nodes, &[Party::Mesh], || Command::Nodes);
            }
            "/v1/nodes" => (200, json, self.nodes()),
            _ => {
                return self.connections.refuse(
                    &mut self.turn,
                    key,
                    shape,
                    404,
                    &[],
                    "no such path",
                );
            }
        };
        if !is_get {
            return self.connections.refuse(
                &mut self.turn,
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
        let date = self.turn.date();
        self.connections.reply_bytes(&mut self.turn, key, |out| {
            shape.put(out, date, (status, content_type), headers, body.as_bytes());
        });
    }

    fn nodes(&self) -> String {
        let (node, api) = (self.turn.settings.node, self.turn.settings.api.advertise);
        let row = NodeRow { node, api, mesh: None };
        let mut page = Vec::new();
        api::put_nodes(&mut page, std::iter::once(row));
        String::from_utf8_lossy(&page).into_owned()
    }

    /// A web page must not reach the API through its visitor's browser. Gives the origin that is to
    /// be named in the response, if it is a foreign one that may.
    ///
    /// A page of the same origin sends no `Origin` with a GET. Where there are no users, the host
    /// that it asks for is then all that tells a hostile page from a friend (DNS rebinding).
    pub(super) fn check_origin(
        &self,
        key: ConnectionKey,
        request: &Request<'_>,
    ) -> Result<Option<Box<str>>, &'static str> {
        let host = request.host().unwrap_or_default();
        let mut origins = request.header_values("origin");
        let Some(origin) = origins.next() else { return self.check_host(key, request, host) };
        let api = &self.turn.settings.api;
        let name = origin.strip_suffix(b"/").unwrap_or(origin);
        let listed = api.origins.iter().find(|known| known.as_bytes().eq_ignore_ascii_case(name));
        match listed {
            _ if origins.next().is_some() => Err("there is more than one Origin header"),
            Some(known) => Ok(Some(known.as_str().into())),
            None if origin::is_own(origin, host) => Ok(None),
            None => {
                trail::note(self.turn.trail(key), Entry::Cause("origin", origin));
                Err("this origin may not call the API; see api.origins")
            }
        }
    }

    /// Whether the API may answer to this host. Users' credentials protect it under any name, and a
    /// probe learns nothing that others must not know.
    fn check_host(
        &self,
        key: ConnectionKey,
        request: &Request<'_>,
        host: &[u8],
    ) -> Result<Option<Box<str>>, &'static str> {
        let api = &self.turn.settings.api;
        let may = !api.users.is_empty()
            || origin::is_address(host)
            // No browser leaves the host out.
            || host.is_empty()
            || matches!(request.path, "/healthz" | "/readyz")
            || api.origins.iter().any(|known| origin::is_host_of(known.as_bytes(), host));
        if may {
            return Ok(None);
        }
        trail::note(self.turn.trail(key), Entry::Cause("host", host));
        Err("without users the API answers to an IP address or localhost alone, and \
                          to the hosts in api.origins; another page may have pointed this name here")
    }

    /// Tells a browser that a page of this origin may call (Fetch, CORS preflight).
    pub(super) fn answer_preflight(&mut self, key: ConnectionKey, shape: &HttpShape) {
        let headers = [
            ("Access-Control-Allow-Methods", "GET, POST"),
            ("Access-Control-Allow-Headers", "Authorization, Content-Type, X-Error-Mode"),
            ("Access-Control-Max-Age", "600"),
        ];
        let date = self.turn.date();
        self.connections.reply_bytes(&mut self.turn, key, |out| {
            shape.put(out, date, (204, "text/plain"), &headers, b"")
        });
    }

    /// A back end changes over to the WebSocket API.
    fn open_backend(
        &mut self,
        key: ConnectionKey,
        grant: Grant,
        request: &Request<'_>,
        shape: &HttpShape,
    ) {
        let upgrade = match upgrade::check(request) {
            Ok(upgrade) => upgrade,
            Err(error) => {
                let (status, headers) = (error.status(), error.headers());
                return self.connections.refuse(
                    &mut self.turn,
                    key,
                    shape,
                    status,
                    headers,
                    &error.to_string(),
                );
            }
        };
        // The connection ends with such a refusal: an impatient peer's first frames would be taken for
        // the next request.
        if self.turn.is_draining {
            return self.connections.refuse_for_good(
                &mut self.turn,
                key,
                503,
                "the server is shutting down",
            );
        }
        if self.turn.refuses_arrivals() {
            self.turn.counters.note_shed_arrival();
            return self.connections.refuse_for_good(&mut self.turn, key, 503, SHORT);
        }
        let date = self.turn.date();
        self.connections.reply_bytes(&mut self.turn, key, |out| {
            upgrade::write_switching(out, date, &upgrade.accept, None, None);
        });
        let ping_at_ms = self.turn.now.ms + self.turn.settings.limits.ping_ms;
        let Some(connection) = self.connections.get(key) else { return };
        let replies = connection.replies().map(std::mem::take).unwrap_or_default();
        connection.stage =
            Stage::Backend(Box::new(Backend { replies, grant, ..Backend::default() }));
        self.turn.counters.backends += 1;
        trail::note(self.turn.trail(key), Entry::BackendOpened(self.turn.user_name(grant.user)));
        self.connections.set_timer(&mut self.turn, key, ping_at_ms);
    }
}

/// Where a back end opens a WebSocket.
pub(super) const SOCKET_PATH: &str = "/ws/v1";

/// Whether a path is open to who has no credentials: a probe and a visitor's browser.
pub(super) fn is_open(path: &str) -> bool {
    matches!(path, "/" | "/healthz" | "/readyz")
}

/// The method that a path stands for.
pub(super) fn api_method(path: &str) -> Option<ApiMethod> {
    match path {
        "/v1/mesh/send" => Some(ApiMethod::Send),
        "/v1/mesh/publish" => Some(ApiMethod::Publish),
        "/v1/conn/call" => Some(ApiMethod::Call),
        _ => None,
    }
}

impl HttpShape {
    /// The shape of the response to this request.
    pub(super) fn of(request: &Request<'_>) -> Self {
        let fault_status = request.header("x-error-mode").is_some_and(|mode| mode == b"status");
        Self { exchange: request.exchange(), fault_status, allow_origin: None }
    }

    fn of_refusal() -> Self {
        Self { exchange: Exchange::REFUSED, fault_status: false, allow_origin: None }
    }
}

fn version() -> String {
    format!("{{\"apis\":[\"v1\"],\"api\":[\"v1\"],\"version\":\"{}\"}}", env!("CARGO_PKG_VERSION"))
}

impl Connections {
    /// Keeps what is half read of a request.
    pub fn keep_reader(&mut self, key: ConnectionKey, reader: RequestReader) {
        if let Some(Stage::Http(http)) = self.get(key).map(|c| &mut c.stage) {
            http.reader = reader;
        }
    }

    fn count_refused(&mut self, turn: &mut Turn, error: HttpError) {
        let limits = &mut turn.counters.limits;
        match error {
            HttpError::BodyTooLarge => limits.api_message_bytes += 1,
            HttpError::HeadTooLarge => limits.head_bytes += 1,
            HttpError::TooManyHeaders => limits.headers += 1,
            _ => {}
        }
    }

    /// A request is half read: its time begins to count.
    pub fn wait_for_rest(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let now_ms = turn.now.ms;
        let Some(connection) = self.get(key) else { return };
        let Stage::Http(http) = &mut connection.stage else { return };
        if !http.is_mid_request {
            http.is_mid_request = true;
            http.started_ms = now_ms;
            self.set_timer(turn, key, now_ms + turn.settings.limits.handshake_ms);
        }
    }

    /// Answers with a status other than 200, in the API's envelope.
    pub fn refuse(
        &mut self,
        turn: &mut Turn,
        key: ConnectionKey,
        shape: &HttpShape,
        status: u16,
        headers: &[(&str, &str)],
        why: &str,
    ) {
        turn.counters.http_refused += 1;
        if let Some(remote) = self.get(key).map(|connection| connection.remote) {
            trail::note(turn.trail(key), Entry::Refused(remote, status, why));
        }
        turn.work.spend(work::REFUSAL);
        turn.work.end_slice();
        let code = match status {
            401 | 403 => Code::NotAuthorised,
            413 | 414 | 431 => Code::TooLarge,
            429 | 503 => Code::TooManyRequests,
            _ => Code::InvalidArgument,
        };
        let mut body = Vec::new();
        api::put_answer(&mut body, &Err(Fault::new(code, why.to_owned())), None);
        let date = turn.date();
        self.reply_bytes(turn, key, |out| {
            shape.put(out, date, (status, "application/json"), headers, &body);
        });
    }

    /// A request did not come in time.
    pub fn refuse_slow_request(&mut self, turn: &mut Turn, key: ConnectionKey) {
        turn.counters.limits.handshake_ms += 1;
        self.refuse_for_good(turn, key, 408, "the request did not come in time");
    }

    /// Where the next request begins is not known: the connection ends with this answer.
    pub fn refuse_for_good(&mut self, turn: &mut Turn, key: ConnectionKey, status: u16, why: &str) {
        self.refuse(turn, key, &HttpShape::of_refusal(), status, &[], why);
        self.end_with_answer(turn, key);
    }

    /// The connection ends with the answer to its last request. What the peer still sends is
    /// received and dropped for a while, so that it reads the answer (RFC 9112, section 9.6).
    pub fn end_with_answer(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        let Stage::Http(http) = &mut connection.stage else { return };
        http.is_last = true;
        if http.replies.is_empty() {
            self.finish(turn, key);
        }
    }
}
