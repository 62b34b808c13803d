//! Routing of HTTP requests: to a handshake, a page, a call, or a refusal.
//!
//! A body may take a megabyte. The body is received only if the origin, credentials, address and
//! role of the request allow the call. Any other request is answered at its head, and the
//! connection closes; pages need no body either. While credentials are verified, nothing is read
//! beyond the read-ahead of a paused connection. A request that arrives in one piece is checked
//! once, as a whole.

use super::access::{CredentialCheck, Denial, Grant};
use super::admission::Refusal;
use super::backend::{self, Caller, WEBSOCKET_PATH};
use super::client::{HandshakeChecks, Progress};
use super::connection::{Arriving, Listener, Parked, Pause, Phase, Stage};
use super::connection::{HttpShape, Shape};
use super::trail::{self, Entry};
use super::{Shard, proxied};
use crate::message::ConnectionKey;
use crate::protocol::http::{CONTINUE, Method, Request, RequestStep};
use crate::protocol::upgrade::{self, UpgradeError};

/// The result of checking a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestCheck {
    /// The body may be received.
    Proceed,
    /// The credentials are being verified: the request is parked.
    AwaitVerification,
    /// The request is answered.
    Answered,
}

/// How much of a request has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RequestPart {
    Head,
    Whole,
}

impl Shard {
    /// Reads one request.
    pub(super) fn read_http(&mut self, key: ConnectionKey, input: &mut &mut [u8]) {
        let Some(connection) = self.connections.get(key) else { return };
        let is_api = connection.listener == Listener::Api;
        let settings = &self.turn.settings;
        let limits = if is_api { settings.api.http } else { settings.limits.edge_http };
        let Stage::Http(http) = &mut connection.stage else { return };
        if http.is_last {
            *input = &mut [];
            return;
        }
        let mut reader = std::mem::take(&mut http.reader);
        let mut step = reader.read(input, &limits);
        if let Ok(RequestStep::Head(head)) = step {
            self.connections.note_partial_request(&mut self.turn, key);
            // Edge listeners accept no body.
            let judged = if is_api {
                self.check_request(key, head, RequestPart::Head)
            } else {
                RequestCheck::Proceed
            };
            match judged {
                RequestCheck::Proceed => step = reader.read(input, &limits),
                RequestCheck::AwaitVerification => {
                    return self.connections.keep_reader(key, reader);
                }
                RequestCheck::Answered => {
                    return self.connections.close_after_answer(&mut self.turn, key);
                }
            }
        }
        match step {
            Ok(RequestStep::NeedMore | RequestStep::Head(_)) => {
                self.connections.note_partial_request(&mut self.turn, key);
            }
            Ok(RequestStep::Continue) => {
                self.connections.note_partial_request(&mut self.turn, key);
                let put = |out: &mut Vec<u8>| out.extend_from_slice(CONTINUE);
                self.connections.reply_bytes(&mut self.turn, key, put);
            }
            Ok(RequestStep::Request(mut request)) => {
                self.connections.begin_request(&mut self.turn, key, &mut request);
                self.check_request(key, request, RequestPart::Whole);
            }
            Err(error) => {
                return self.connections.refuse_malformed(&mut self.turn, key, error);
            }
        }
        if input.is_empty() {
            // Called without input, to release the buffers of the last request.
            let _ = reader.read(input, &limits);
        }
        let Some(connection) = self.connections.get(key) else { return };
        let Stage::Http(http) = &mut connection.stage else { return };
        http.reader = reader;
        if http.is_last && http.replies.is_empty() {
            self.connections.finish(&mut self.turn, key);
        }
    }

    /// Checks a request, and answers it unless its body or a verification is needed first.
    fn check_request(
        &mut self,
        key: ConnectionKey,
        request: Request<'_>,
        part: RequestPart,
    ) -> RequestCheck {
        let (turn, connections) = (&mut self.turn, &mut self.connections);
        let mut shape = HttpShape::of(&request);
        let Some(connection) = connections.get(key) else { return RequestCheck::Answered };
        proxied::find_client(&turn.settings, connection, &request);
        if connection.listener != Listener::Api {
            let is_upgrade = upgrade::is_upgrade(&request);
            if backend::is_probe(request.path) && !is_upgrade {
                self.backends.handle_page_request(turn, connections, key, &shape, &request);
                return RequestCheck::Answered;
            }
            if is_upgrade
                && self.addresses.count_forwarded(turn, connections, key, &request, &mut shape)
            {
                return RequestCheck::Answered;
            }
            return self.handshake(key, &request, &shape, Progress::New);
        }
        if part == RequestPart::Head {
            trail::note(turn.trail(key), Entry::Requested(request.method.name(), request.path));
        }
        let origin = backend::check_origin(turn, key, &request);
        if let Ok(origin) = &origin {
            shape.allow_origin.clone_from(origin);
        }
        // Health checks and browsers that open the page have no credentials.
        let is_public = backend::is_public(request.path);
        let is_preflight =
            request.method == Method::Other("OPTIONS") && shape.allow_origin.is_some();
        if !(origin.is_err() || is_preflight || is_public) {
            return match self.api_access.check_credentials(turn, connections, key, &request) {
                CredentialCheck::Decided(admitted) => {
                    self.admit(key, shape, admitted, request, part)
                }
                CredentialCheck::Pending(fingerprint) => {
                    let kept = (part == RequestPart::Whole).then(|| request.keep());
                    self.api_access.park(turn, connections, key, shape, kept, fingerprint);
                    RequestCheck::AwaitVerification
                }
            };
        }
        if part == RequestPart::Head {
            connections.answer_at_head(turn, key, &mut shape);
        }
        match origin {
            Err(why) => connections.refuse(turn, key, &shape, 403, &[], why),
            Ok(_) if is_preflight => backend::answer_preflight(turn, connections, key, &shape),
            Ok(_) => self.backends.handle_page_request(turn, connections, key, &shape, &request),
        }
        RequestCheck::Answered
    }

    /// Refuses an unauthorised request. Carries out an authorised one, or lets its body follow.
    fn admit(
        &mut self,
        key: ConnectionKey,
        mut shape: HttpShape,
        admitted: Result<Grant, Denial>,
        request: Request<'_>,
        part: RequestPart,
    ) -> RequestCheck {
        let (turn, connections) = (&mut self.turn, &mut self.connections);
        let grant = match admitted {
            Ok(grant) => grant,
            Err(denial) => {
                if part == RequestPart::Head {
                    connections.answer_at_head(turn, key, &mut shape);
                }
                self.api_access.deny(turn, connections, key, &shape, denial);
                return RequestCheck::Answered;
            }
        };
        let method = backend::api_method(request.path);
        let Some(Stage::Http(http)) = connections.get(key).map(|c| &mut c.stage) else {
            return RequestCheck::Answered;
        };
        if part == RequestPart::Head
            && request.method == Method::Post
            && method.is_some_and(|method| backend::allows_method(grant.roles, method))
        {
            (http.is_head_accepted, http.is_authenticated) = (true, true);
            return RequestCheck::Proceed;
        }
        let is_socket = request.path == WEBSOCKET_PATH;
        if !(part == RequestPart::Head && is_socket) {
            (http.is_authenticated, http.user) = (true, grant.user);
        }
        if part == RequestPart::Head {
            connections.answer_at_head(turn, key, &mut shape);
        }
        match method {
            // The first frames could be mistaken for the body.
            None if is_socket && part == RequestPart::Head => {
                connections.refuse_upgrade(turn, key, &shape, &UpgradeError::Body);
            }
            None if is_socket => {
                backend::open_websocket(turn, connections, key, grant, &request, &shape);
                self.backends.handle_take_upgrade(turn, connections, key);
            }
            None => self.backends.handle_page_request(turn, connections, key, &shape, &request),
            Some(method) if !backend::allows_method(grant.roles, method) => {
                self.api_access.deny(turn, connections, key, &shape, Denial::Role);
            }
            Some(_) if request.method != Method::Post => {
                let allow = [("Allow", "POST")];
                connections.refuse(turn, key, &shape, 405, &allow, "expected POST");
            }
            Some(method) => {
                // The parser stays borrowed during the call, because the call refers to its
                // buffers.
                let mut parser = self.backends.lend_parser();
                let call = backend::take_call(turn, grant);
                let bodiless = method.call_without_params().filter(|_| request.body.is_empty());
                let call = call.and_then(|()| match bodiless {
                    Some(call) => Ok(call),
                    None => parser.params(method, request.body),
                });
                self.call(Caller { key, shape: Shape::Response(shape) }, call);
                self.backends.return_parser(parser);
            }
        }
        RequestCheck::Answered
    }

    /// Answers the handshake of a client, or parks it.
    fn handshake(
        &mut self,
        key: ConnectionKey,
        request: &Request<'_>,
        shape: &HttpShape,
        progress: Progress,
    ) -> RequestCheck {
        let (turn, connections) = (&mut self.turn, &mut self.connections);
        let (topics, admissions) = (&self.topics, &self.admissions);
        let pending_close_bytes = connections.pending_close_bytes();
        let (settings, now_ms) = (turn.settings.clone(), turn.now.ms);
        let checks = HandshakeChecks {
            takes_clients: &|topic| {
                topics.feeders.takes_clients(&settings, topic, pending_close_bytes)
            },
            keys: &|source| admissions.lookup(now_ms, source),
        };
        let clients = &mut self.clients;
        match clients.handle_request(turn, connections, key, request, shape, &checks, progress) {
            None => RequestCheck::Answered,
            Some(need) => {
                self.admissions.park(turn, connections, key, request, shape, need);
                RequestCheck::AwaitVerification
            }
        }
    }

    /// Continues a parked handshake, or refuses it.
    pub(super) fn continue_handshake(
        &mut self,
        key: ConnectionKey,
        settled: Result<Progress, Refusal>,
    ) {
        let Some(connection) = self.connections.get(key) else { return };
        let is_open = connection.phase == Phase::Open;
        let Stage::Http(http) = &mut connection.stage else { return };
        let Some(parked) = http.parked.take_if(|_| is_open) else { return };
        let Parked { request: Some(mut request), shape, .. } = *parked else { return };
        http.replies.cancel_last();
        self.turn.taps.note_resumed(key, request.lend().path);
        match settled {
            Ok(progress) => _ = self.handshake(key, &request.lend(), &shape, progress),
            Err((status, why)) => {
                let headers: &[_] = match status {
                    401 => &[("WWW-Authenticate", "Bearer")],
                    _ => &[],
                };
                self.connections.refuse(&mut self.turn, key, &shape, status, headers, why);
            }
        }
        let (turn, connections) = (&mut self.turn, &mut self.connections);
        // A handshake that has its keys may wait for an admission hook next.
        if connections.get(key).is_some_and(|connection| !connection.has_parked_handshake()) {
            connections.unpause(turn, key, Pause::Parked);
            connections.write_replies(turn, key);
            connections.pause_requests_if_congested(turn, key);
        }
    }

    /// Continues a parked request after its credentials were verified, or the verification timed
    /// out.
    pub(super) fn answer_parked(&mut self, key: ConnectionKey, admitted: Result<Grant, Denial>) {
        let Some(connection) = self.connections.get(key) else { return };
        let has_read_ahead = !connection.read_ahead.is_empty();
        let Stage::Http(http) = &mut connection.stage else { return };
        let Some(parked) = http.parked.take() else { return };
        http.replies.cancel_last();
        let Parked { request, shape, .. } = *parked;
        match request {
            Some(mut request) => {
                _ = self.admit(key, shape, admitted, request.lend(), RequestPart::Whole)
            }
            None => {
                let reader = std::mem::take(&mut http.reader);
                let Some(head) = reader.head() else { return };
                match self.admit(key, shape, admitted, head, RequestPart::Head) {
                    RequestCheck::Proceed => {
                        self.connections.keep_reader(key, reader);
                        // A peer that waits for `100 Continue` sends nothing that would trigger the
                        // next read.
                        if !has_read_ahead {
                            self.read_http(key, &mut &mut [][..]);
                        }
                    }
                    RequestCheck::AwaitVerification | RequestCheck::Answered => {
                        self.connections.close_after_answer(&mut self.turn, key);
                    }
                }
            }
        }
        let (turn, connections) = (&mut self.turn, &mut self.connections);
        connections.unpause(turn, key, Pause::Parked);
        connections.write_replies(turn, key);
        connections.pause_if_congested(turn, key);
    }

    /// Continues a forwarded handshake whose client's address was counted, or has reached a limit.
    pub(super) fn answer_counted(&mut self, key: ConnectionKey, is_admitted: bool) {
        let Some(connection) = self.connections.get(key) else { return };
        let Stage::Http(http) = &mut connection.stage else { return };
        let Some(arriving) = http.arriving.take() else { return };
        http.replies.cancel_last();
        let Arriving { mut request, shape } = *arriving;
        self.turn.taps.note_request(key, request.lend().path);
        if is_admitted {
            self.handshake(key, &request.lend(), &shape, Progress::New);
        } else {
            let why = "your address has reached its limit of connections or handshakes";
            self.connections.refuse(&mut self.turn, key, &shape, 429, &[], why);
        }
        let (turn, connections) = (&mut self.turn, &mut self.connections);
        connections.unpause(turn, key, Pause::Address);
        connections.write_replies(turn, key);
    }
}
