//! Clients: their handshake on a route, what they send, and what holds it.

use std::borrow::Cow;
use std::sync::Arc;

use super::Shard;
use super::connection::{Client, Connection, Connections, Listener, Pause, Phase, Stage};
use super::context::Context;
use super::memory::SHORT;
use super::rate::Bucket;
use super::replies::HttpShape;
use super::settings::Route;
use super::subscriptions::{TooManyNames, distinct};
use super::timers::Timer;
use super::trail::{self, By, Entry};
use super::turn::Turn;
use super::work;
use crate::message::ConnectionKey;
use crate::protocol::api::{self, NAME_BYTES_MAX};
use crate::protocol::assembler::{Assembler, Payload, Received};
use crate::protocol::deflate::{Agreement, DEFLATED_MAX, INFLATED_PER_CALL};
use crate::protocol::frame::{Kind, Opcode, put_frame};
use crate::protocol::http::{QueryPair, Request, query_pairs};
use crate::protocol::token::{Pass, QUERY_NAME, answered_subprotocol};
use crate::protocol::upgrade::{self, Upgrade};

/// On what terms a client comes in.
struct Terms {
    channels: Vec<Box<str>>,
    context: Context,
    expires_unix_ms: u64,
}

/// Why a handshake is refused: a status, and words.
type Refusal = (u16, Cow<'static, str>);

impl Shard {
    /// Answers a request on an edge listener: a handshake on a route, or a refusal.
    pub(super) fn handle_edge_request(
        &mut self,
        key: ConnectionKey,
        edge: u16,
        request: &Request<'_>,
        shape: &HttpShape,
    ) {
        let routes = &self.turn.settings.edges[usize::from(edge)].routes;
        let found = routes.iter().position(|route| route.path == request.path);
        let Some(index) = found else {
            return self.connections.refuse(&mut self.turn, key, shape, 404, &[], "no such route");
        };
        let route = routes[index].clone();
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
        let admitted = self.admit(key, &route, request, &upgrade);
        match admitted {
            Ok(terms) => self.open_client(key, (index as u16, &route), request, &upgrade, terms),
            Err((status, why)) => {
                let headers: &[_] = match status {
                    401 => &[("WWW-Authenticate", "Bearer")],
                    _ => &[],
                };
                self.connections.refuse(&mut self.turn, key, shape, status, headers, &why);
            }
        }
    }

    /// Judges a handshake, what is cheap first: whether the route is open, who the client is, which
    /// channels it asks for.
    fn admit(
        &mut self,
        key: ConnectionKey,
        route: &Route,
        request: &Request<'_>,
        upgrade: &Upgrade<'_>,
    ) -> Result<Terms, Refusal> {
        self.check_open(key, route, request)?;
        let pass = self.check_token(route, request, upgrade)?;
        let signed = pass.as_ref().map_or(&[][..], |pass| &pass.channels);
        let channels = self.allowed_channels(route, request, signed)?;
        let mut context = Context::default();
        let Some(pass) = pass else {
            return Ok(Terms { channels, context, expires_unix_ms: u64::MAX });
        };
        if context.replace(pass.context).is_err() {
            self.turn.counters.limits.context += 1;
            return Err((403, "the token's context is over 256 keys or 64 KiB".into()));
        }
        Ok(Terms { channels, context, expires_unix_ms: pass.until_unix_ms })
    }

    /// Whether a route takes a client at all now.
    fn check_open(
        &mut self,
        key: ConnectionKey,
        route: &Route,
        request: &Request<'_>,
    ) -> Result<(), Refusal> {
        if let (Some(allowed), Some(origin)) = (&route.origins, request.header("origin")) {
            let is_same = |known: &String| known.as_bytes().eq_ignore_ascii_case(origin);
            if !allowed.iter().any(is_same) {
                trail::note(self.turn.trail(key), Entry::Cause("origin", origin));
                return Err((403, "this route is not open to that origin".into()));
            }
        }
        if self.turn.is_draining {
            return Err((503, "the server is shutting down".into()));
        }
        if self.turn.refuses_arrivals() {
            self.turn.counters.note_shed_arrival();
            return Err((503, SHORT.into()));
        }
        if route
            .topic
            .as_ref()
            .is_some_and(|topic| !self.topics.takes_clients(topic, self.connections.parted_bytes()))
        {
            self.turn.counters.limits.topic_waiting += 1;
            return Err((503, "the topic of this route is full".into()));
        }
        Ok(())
    }

    /// What the client's token says, if the route needs one.
    fn check_token(
        &mut self,
        route: &Route,
        request: &Request<'_>,
        upgrade: &Upgrade<'_>,
    ) -> Result<Option<Pass>, Refusal> {
        let Some(rule) = &route.token else { return Ok(None) };
        self.turn.work.spend(work::TOKEN);
        let pass = rule.check(request, upgrade, self.turn.now.unix_ms);
        pass.map(Some).map_err(|error| (401, error.to_string().into()))
    }

    /// The channels that a client asks for, which the route must allow, and those of its token,
    /// which whoever signed it may choose: each once.
    fn allowed_channels(
        &mut self,
        route: &Route,
        request: &Request<'_>,
        signed: &[String],
    ) -> Result<Vec<Box<str>>, Refusal> {
        let asked = asked_channels(request.query)?;
        let asked = || {
            let names = asked.iter().flat_map(|list| list.split(','));
            names.filter(|name| !name.is_empty())
        };
        for name in asked() {
            if name.len() > NAME_BYTES_MAX {
                return Err((400, "a channel's name has at most 255 bytes".into()));
            }
            if !route.allows(name) {
                return Err((
                    403,
                    format!("this route does not allow the channel {name:?}").into(),
                ));
            }
        }
        let max = self.turn.settings.limits.channels_per_client;
        match distinct(asked().chain(signed.iter().map(String::as_str)), max) {
            Ok(channels) => Ok(channels.into_iter().map(Box::from).collect()),
            Err(TooManyNames) => {
                self.turn.counters.limits.channels_per_client += 1;
                Err((403, format!("more than {max} channels").into()))
            }
        }
    }

    fn open_client(
        &mut self,
        key: ConnectionKey,
        (index, route): (u16, &Arc<Route>),
        request: &Request<'_>,
        upgrade: &Upgrade<'_>,
        Terms { channels, context, expires_unix_ms }: Terms,
    ) {
        let Some(id) = self.ids.next(self.turn.now.ms) else {
            self.turn.counters.limits.client_ids += 1;
            let shape = HttpShape::of(request);
            return self.connections.refuse(
                &mut self.turn,
                key,
                &shape,
                503,
                &[],
                "too many new clients at this moment",
            );
        };
        let Some(connection) = self.connections.get(key) else { return };
        let offers = upgrade.extensions().filter(|_| route.compression);
        let compression = Agreement::of(offers, upgrade.is_of_browser());
        let history_bytes = compression.map_or(0, |agreement| agreement.history_bytes);
        connection.compression = compression.map(|agreement| agreement.window);
        connection.set_outbound_max(route.outbound_bytes);
        connection.stage = Stage::Client(Box::new(Client {
            id,
            route: index,
            expires_unix_ms,
            has_spoken: false,
            messages: Bucket::default(),
            assembler: Assembler::with_history(history_bytes),
            subscriptions: Vec::new(),
            context,
        }));
        self.clients.insert(id, key);
        self.turn.counters.clients += 1;
        let with_token = route.token.as_ref();
        let with_token =
            with_token.and_then(|_| answered_subprotocol(upgrade, &route.subprotocols));
        let subprotocol = upgrade.accepted_subprotocol(&route.subprotocols).or(with_token);
        let date = self.turn.date();
        self.connections.write_with(&mut self.turn, key, |out| {
            upgrade::write_switching(out, date, &upgrade.accept, subprotocol, compression);
        });
        if let Some(connection) = self.connections.get(key) {
            connection.outbound.keep();
        }
        let ping_at_ms = self.turn.now.ms + self.turn.settings.limits.ping_ms;
        self.connections.set_timer(&mut self.turn, key, ping_at_ms);
        self.turn.work.spend(work::of_channels(channels.len()));
        let subscribed = self.subscribe(key, &channels);
        debug_assert!(subscribed.is_ok(), "the number of channels was checked");
        self.withhold_until_known(key, &channels);
        if trail::is_read() {
            let channels = trail::listed(&channels);
            trail::note(self.turn.trail(key), Entry::Opened(id, &route.path, &channels));
        }
        self.tell_open(key, route, request);
        self.name_ward(key);
    }

    /// Reports a client that came to its route's topic.
    fn tell_open(&mut self, key: ConnectionKey, route: &Route, request: &Request<'_>) {
        let Some(topic) = route.topic.as_ref().filter(|_| route.tells_open) else { return };
        let Some(connection) = self.connections.get(key) else { return };
        let remote = connection.remote;
        let Some(client) = connection.client() else { return };
        // The context is lent for the moment that it is written.
        let (id, context) = (client.id, std::mem::take(&mut client.context));
        // Who checks tokens keeps them: a back end has no need of what proves its clients.
        let has_token = route.token.is_some();
        let query = query_pairs(request.query).map(|pair| (pair.name, pair.value));
        let query = query.filter(|(name, _)| !(has_token && name == QUERY_NAME));
        let headers = request
            .headers()
            .filter(|(name, _)| !(has_token && is_secret(name)))
            .map(|(name, value)| (name.to_ascii_lowercase(), String::from_utf8_lossy(value)));
        self.write_event(topic, id, |out| {
            api::put_open(out, request.path, query, headers, remote, context.json());
        });
        self.return_context(key, context);
        self.feed(topic, key, id);
    }

    /// Gives a client its context back: before its event is fed to a topic, which may close the client
    /// and report that with its context.
    fn return_context(&mut self, key: ConnectionKey, context: Context) {
        if let Some(client) = self.connections.get(key).and_then(Connection::client) {
            client.context = context;
        }
    }

    /// Reads one message or control frame of a client.
    pub(super) fn read_client(&mut self, key: ConnectionKey, input: &mut &mut [u8]) {
        // What holds a client takes effect between two frames: so that what follows can be scanned.
        if self.connections.is_held(&mut self.turn, key) && self.connections.is_between_frames(key)
        {
            return self.connections.pause(key, Pause::Hold);
        }
        let Some(connection) = self.connections.get(key) else { return };
        let Listener::Edge(edge) = connection.listener else { return };
        let Stage::Client(client) = &mut connection.stage else { return };
        let route = &self.turn.settings.edges[usize::from(edge)].routes[usize::from(client.route)];
        let ready_ms = route.messages.map_or(0, |rate| rate.ready_ms(client.messages));
        if self.turn.now.ms < ready_ms && client.assembler.frame_left() == Some(0) {
            return self.pause_for_rate(key, ready_ms);
        }
        if !connection.is_inflating
            && let Some(topic) = self.topics.defers(key, client, route, input)
        {
            let topic = topic.clone();
            return self.defer(key, &topic);
        }
        let inflater = connection.compression.map(|_| &mut self.inflater);
        connection.is_inflating = false;
        match client.assembler.read(input, route.message_bytes, inflater) {
            Ok(None) => client.assembler.note_unfinished(self.turn.now.ms),
            Ok(Some(Received::Message(kind, payload))) => {
                let route = route.clone();
                self.handle_client_message(key, &route, kind, &payload);
            }
            Ok(Some(Received::Ping(payload))) => {
                self.connections
                    .write_with(&mut self.turn, key, |out| put_frame(out, Opcode::Pong, &payload));
                self.connections.note_unfinished(&mut self.turn, key);
                self.connections.pause_if_unread(&mut self.turn, key);
            }
            Ok(Some(Received::Pong)) => self.connections.note_unfinished(&mut self.turn, key),
            Ok(Some(Received::Inflating)) => {
                connection.is_inflating = true;
                self.turn.work.spend(work::of_bytes(INFLATED_PER_CALL));
                self.turn.work.end_slice();
            }
            Ok(Some(Received::Close(closed))) => {
                self.connections.close_after_answers(&mut self.turn, key, closed, By::Peer)
            }
            Err(violation) => self.connections.close_for_violation(&mut self.turn, key, violation),
        }
    }

    /// A client has sent as much as it may. Its wake-up is beside the timer of its silence: that one
    /// stays where it is, and there is one of these at most.
    fn pause_for_rate(&mut self, key: ConnectionKey, ready_ms: u64) {
        self.turn.counters.limits.messages_per_s += 1;
        self.connections.pause(key, Pause::Rate);
        self.turn.timers.set(ready_ms, Timer::Rate(key));
    }

    fn handle_client_message(
        &mut self,
        key: ConnectionKey,
        route: &Route,
        kind: Kind,
        payload: &Payload<'_>,
    ) {
        self.turn.counters.client_messages += 1;
        self.turn.work.spend(work::of_bytes(payload.len()));
        if let Some(rate) = route.messages
            && let Some(client) = self.connections.get(key).and_then(Connection::client)
        {
            rate.take(&mut client.messages, self.turn.now.ms);
        }
        if route.echo {
            self.echo(key, kind, payload);
            return self.connections.pause_if_unread(&mut self.turn, key);
        }
        let Some(client) = self.connections.get(key).and_then(Connection::client) else { return };
        client.has_spoken = true;
        let Some(topic) = route.topic.as_ref().filter(|_| route.tells_message) else {
            self.turn.counters.discarded += 1;
            return;
        };
        let id = client.id;
        // The context is lent for the moment that it is written.
        let context = std::mem::take(&mut client.context);
        self.write_event(topic, id, |out| api::put_message(out, kind, payload, context.json()));
        self.return_context(key, context);
        self.feed(topic, key, id);
    }

    fn echo(&mut self, key: ConnectionKey, kind: Kind, payload: &[u8]) {
        let Some(connection) = self.connections.get(key) else { return };
        if connection.is_broken || connection.phase != Phase::Open {
            return;
        }
        let body = self.deflater.body(connection.compression, kind, payload);
        connection.outbound.push_with(&mut self.turn.spare, |out| body.put(out));
        self.turn.counters.note_compression(payload.len() - body.bytes.len());
        self.turn.work.spend(match connection.compression {
            Some(_) if payload.len() <= DEFLATED_MAX => work::of_deflating(payload.len()),
            _ => work::of_bytes(payload.len()),
        });
        self.connections.queue_write(key);
    }
}

/// Whether the value of a header may prove who a client is.
fn is_secret(name: &str) -> bool {
    let secret = ["authorization", "cookie", "sec-websocket-protocol"];
    secret.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// The values of `?channels=`, decoded: each a list of names with commas between them.
fn asked_channels(query: &str) -> Result<Vec<Cow<'_, str>>, Refusal> {
    let mut lists = Vec::new();
    for QueryPair { name, value, flaw } in query_pairs(query) {
        if name != "channels" {
            continue;
        }
        if let Some(flaw) = flaw {
            return Err((400, format!("the query's channels: {flaw}").into()));
        }
        lists.push(value);
    }
    Ok(lists)
}

impl Connections {
    fn is_between_frames(&mut self, key: ConnectionKey) -> bool {
        let client = self.get(key).and_then(Connection::client);
        client.is_some_and(|client| client.assembler.frame_left() == Some(0))
    }

    /// Whether what a client sends is to wait until its context has the key of its route.
    pub fn is_held(&mut self, turn: &mut Turn, key: ConnectionKey) -> bool {
        let Some(connection) = self.get(key) else { return false };
        let Listener::Edge(edge) = connection.listener else { return false };
        let Some(client) = connection.client() else { return false };
        let route = &turn.settings.edges[usize::from(edge)].routes[usize::from(client.route)];
        client.has_spoken && route.hold_until.as_ref().is_some_and(|k| !client.context.has(k))
    }

    pub fn route(&mut self, turn: &mut Turn, key: ConnectionKey, index: u16) -> Arc<Route> {
        let listener = self.get(key).map(|connection| connection.listener);
        let Some(Listener::Edge(edge)) = listener else { return Arc::default() };
        turn.settings.edges[usize::from(edge)].routes[usize::from(index)].clone()
    }
}
