//! The handshake of a new client: its request on an edge listener is checked and answered.

use std::borrow::Cow;
use std::num::NonZeroU64;
use std::sync::Arc;

use super::context::user_of;
use super::messages::push_or_close;
use super::question::{Checked, Granted, KeyLookup, Need, Progress, check_with_keys, put_question};
use super::subscriptions::{TooManyNames, distinct};
use super::{Clients, Context};
use crate::address::remote::Remote;
use crate::message::ConnectionKey;
use crate::protocol::admission::Admission;
use crate::protocol::api::{self, DEVICE_SUBPROTOCOL, NAME_BYTES_MAX};
use crate::protocol::assembler::Assembler;
use crate::protocol::deflate::Agreement;
use crate::protocol::http::{QueryPair, Request, query_pairs};
use crate::protocol::token::{KeySource, Pass, QUERY_NAME, TokenError, answered_subprotocol};
use crate::protocol::upgrade::{self, Upgrade};
use crate::shard::connection::HttpShape;
use crate::shard::connection::{
    Client, Connections, Device, HeldToken, Listener, MessageForm, Stage,
};
use crate::shard::memory::SHORT_OF_MEMORY;
use crate::shard::settings::RouteSettings;
use crate::shard::trail::{self, Entry};
use crate::shard::turn::{Step, Turn};
use crate::shard::work;

/// Why a handshake is refused: the status code and the explanation.
type HandshakeRefusal = (u16, Cow<'static, str>);

/// Lookups for the check of a handshake: whether topics accept clients, and the fetched keys.
pub(crate) struct HandshakeChecks<'a> {
    /// Whether a topic accepts new clients.
    pub takes_clients: &'a dyn Fn(&str) -> bool,
    /// Returns the fetched keys of a source.
    pub keys: &'a dyn Fn(&Arc<KeySource>) -> KeyLookup<'a>,
}

/// A client's request on a route.
#[derive(Clone, Copy)]
struct Handshake<'r> {
    key: ConnectionKey,
    remote: Remote,
    // The index of the route among those of the edge.
    index: u16,
    route: &'r Arc<RouteSettings>,
    request: &'r Request<'r>,
    upgrade: &'r Upgrade<'r>,
}

impl Clients {
    /// Answers a request on an edge listener: accepts the handshake, or refuses it. If the handshake
    /// needs something from outside the shard first, returns that instead of answering.
    #[allow(clippy::too_many_arguments, reason = "a clear list is better than a struct for it")]
    pub(crate) fn handle_request(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        request: &Request<'_>,
        shape: &HttpShape,
        checks: &HandshakeChecks<'_>,
        progress: Progress,
    ) -> Option<Need> {
        let connection = connections.get(key)?;
        let (listener, remote) = (connection.listener, connection.remote);
        let Listener::Edge(edge) = listener else { return None };
        let routes = &turn.settings.edges[usize::from(edge)].routes;
        let Some(index) = routes.iter().position(|r| r.path == request.path && !r.is_removed)
        else {
            connections.refuse(turn, key, shape, 404, &[], "no such route");
            return None;
        };
        let route = routes[index].clone();
        let upgrade = match upgrade::check(request) {
            Ok(upgrade) => upgrade,
            Err(error) => {
                connections.refuse_upgrade(turn, key, shape, &error);
                return None;
            }
        };
        let index = index as u16;
        let handshake = Handshake { key, remote, index, route: &route, request, upgrade: &upgrade };
        match admit(turn, handshake, checks, progress) {
            Ok(Checked::Passed(granted)) => {
                self.open_client(turn, connections, handshake, shape, granted);
            }
            Ok(Checked::Needs(need)) => return Some(need),
            Err((status, why)) => {
                let headers: &[_] = match status {
                    401 => &[("WWW-Authenticate", "Bearer")],
                    _ => &[],
                };
                connections.refuse(turn, key, shape, status, headers, &why);
            }
        }
        None
    }

    fn open_client(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        handshake: Handshake<'_>,
        shape: &HttpShape,
        Granted { channels, context, expires_unix_ms, token }: Granted,
    ) {
        let Some(id) = self.ids.next(turn.now.ms) else {
            turn.counters.limits.client_ids += 1;
            let why = "too many new clients at this moment";
            return connections.refuse(turn, handshake.key, shape, 503, &[], why);
        };
        let Handshake { key, index, route, request, upgrade, .. } = handshake;
        let Some(connection) = connections.get(key) else { return };
        let offers = upgrade.extensions().filter(|_| route.compression);
        let compression = Agreement::of(offers, upgrade.is_of_browser());
        let history_bytes = compression.and_then(|agreement| agreement.history_bytes);
        let subprotocol = answered(upgrade, route);
        let is_device = subprotocol == Some(DEVICE_SUBPROTOCOL);
        connection.form = MessageForm::new(compression.map(|agreed| agreed.window), is_device);
        connection.set_outbound_max(route.outbound_bytes);
        self.users.insert(self.users.hash_of(&context), key.index);
        connection.stage = Stage::Client(Box::new(Client {
            expires_unix_ms,
            assembler: Assembler::with_history(history_bytes),
            context,
            device: is_device.then(|| Box::new(Device::new(token))),
            ..Client::new(id, index)
        }));
        self.by_id.insert(id, key);
        turn.counters.clients += 1;
        let date = turn.date();
        connections.write_with(turn, key, |out| {
            upgrade::write_switching(out, date, &upgrade.accept, subprotocol, compression);
        });
        if let Some(connection) = connections.get(key) {
            connection.outbound.protect_queued();
        }
        let ping_at_ms = turn.now.ms + turn.settings.limits.ping_ms;
        connections.set_timer(turn, key, ping_at_ms);
        turn.work.spend(work::of_channels(channels.len()));
        let subscribed = self.subscribe(turn, connections, key, &channels);
        debug_assert!(subscribed.is_ok(), "the number of channels was checked");
        self.withhold_until_known(connections, key, &channels);
        if trail::is_read() {
            let channels = trail::listed(&channels);
            trail::note(
                turn.trail(key),
                Entry::Opened { client: id, path: &route.path, channels: &channels },
            );
        }
        report_open(turn, connections, key, route, request);
        turn.push_step(Step::ClientOpened(key));
    }
}

/// Returns the subprotocol to answer with: the first offered one that gridcast or the route accepts.
fn answered<'r>(upgrade: &Upgrade<'r>, route: &RouteSettings) -> Option<&'r str> {
    let accepted = upgrade.accepted_subprotocol(|name| {
        name == DEVICE_SUBPROTOCOL || route.subprotocols.iter().any(|known| known == name)
    });
    let with_token = || {
        route.token.as_ref()?;
        answered_subprotocol(upgrade, &route.subprotocols)
    };
    accepted.or_else(with_token)
}

/// Whether the value of this header may be a credential.
fn is_secret(name: &str) -> bool {
    let secret = ["authorization", "cookie", "sec-websocket-protocol"];
    secret.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// Returns the decoded values of `?channels=`, each a comma-separated list of names.
fn asked_channels(query: &str) -> Result<Vec<Cow<'_, str>>, HandshakeRefusal> {
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

/// Checks a handshake, cheapest test first: the route, the token, the channels, the admission hook.
fn admit(
    turn: &mut Turn,
    handshake: Handshake<'_>,
    checks: &HandshakeChecks<'_>,
    progress: Progress,
) -> Result<Checked<Granted>, HandshakeRefusal> {
    let Handshake { key, remote, route, request, .. } = handshake;
    check_open(turn, key, route, request, checks.takes_clients)?;
    let may_wait = matches!(progress, Progress::New);
    if let Progress::Admitted(granted, admission) = progress {
        return add_admission(turn, *granted, *admission).map(Checked::Passed);
    }
    let pass = match check_token(turn, handshake, checks, may_wait)? {
        Checked::Passed(pass) => pass,
        Checked::Needs(need) => return Ok(Checked::Needs(need)),
    };
    if turn.taps.is_active()
        && let Some(pass) = &pass
    {
        turn.taps.note_user(key, user_of(&pass.context).as_deref());
    }
    let signed = pass.as_ref().map_or(&[][..], |pass| &pass.channels);
    let channels = allowed_channels(turn, route, request, signed)?;
    let context = Context::default();
    let mut granted = Granted { channels, context, expires_unix_ms: None, token: None };
    let mut claims = None;
    if let Some(pass) = pass {
        if granted.context.replace(pass.context).is_err() {
            turn.counters.limits.context += 1;
            return Err((403, "the token's context is over 256 keys or 64 KiB".into()));
        }
        granted.expires_unix_ms = NonZeroU64::new(pass.until_unix_ms);
        granted.token = Some(Box::new(HeldToken { subject: pass.subject, ..HeldToken::default() }));
        claims = Some(pass.claims);
    }
    let Some(hook) = route.admit.clone() else { return Ok(Checked::Passed(granted)) };
    let question = put_question(route, request, remote, claims.as_deref());
    Ok(Checked::Needs(Need::Hook { hook, granted: Box::new(granted), question }))
}

/// Adds what an admission hook grants.
fn add_admission(
    turn: &mut Turn,
    granted: Granted,
    Admission { channels, context, expires_ms }: Admission,
) -> Result<Granted, HandshakeRefusal> {
    let Granted { channels: known, context: mut all, expires_unix_ms, mut token } = granted;
    if all.extend(context).is_err() {
        turn.counters.limits.context += 1;
        let why = "the context from the back end that admits clients is over 256 keys or 64 KiB";
        return Err((503, why.into()));
    }
    let names = known.iter().map(|name| &**name).chain(channels.iter().map(String::as_str));
    let channels = distinct_channels(turn, names)?;
    let until = |ms| NonZeroU64::new(turn.now.unix_ms.saturating_add(ms));
    // The earlier of the token's expiry and the hook's.
    let admitted_until_ms = expires_ms.and_then(until);
    let expires_unix_ms = expires_unix_ms.into_iter().chain(admitted_until_ms).min();
    if let Some(token) = &mut token {
        token.admitted_until_ms = admitted_until_ms;
    }
    Ok(Granted { channels, context: all, expires_unix_ms, token })
}

/// Checks whether the route accepts clients at present.
fn check_open(
    turn: &mut Turn,
    key: ConnectionKey,
    route: &RouteSettings,
    request: &Request<'_>,
    takes_clients: &dyn Fn(&str) -> bool,
) -> Result<(), HandshakeRefusal> {
    if let (Some(allowed), Some(origin)) = (&route.origins, request.header("origin")) {
        let is_same = |known: &String| known.as_bytes().eq_ignore_ascii_case(origin);
        if !allowed.iter().any(is_same) {
            trail::note(turn.trail(key), Entry::Cause("origin", origin));
            return Err((403, "this route is not open to that origin".into()));
        }
    }
    if turn.is_draining {
        return Err((503, "the server is shutting down".into()));
    }
    if turn.refuses_arrivals() {
        turn.counters.note_shed_arrival();
        return Err((503, SHORT_OF_MEMORY.into()));
    }
    if route.topic.as_ref().is_some_and(|topic| !takes_clients(topic)) {
        turn.counters.limits.topic_waiting += 1;
        return Err((503, "the topic of this route is full".into()));
    }
    Ok(())
}

/// Checks the client's token, if the route requires one. Returns what is missing if a key may arrive soon.
fn check_token(
    turn: &mut Turn,
    handshake: Handshake<'_>,
    checks: &HandshakeChecks<'_>,
    may_wait: bool,
) -> Result<Checked<Option<Pass>>, HandshakeRefusal> {
    let Handshake { route, request, upgrade, .. } = handshake;
    let Some(rule) = &route.token else { return Ok(Checked::Passed(None)) };
    turn.work.spend(work::TOKEN);
    let unix_ms = turn.now.unix_ms;
    let check = |keys: Option<&_>| rule.check(request, upgrade, unix_ms, keys);
    let error = match check_with_keys(rule, checks.keys, may_wait, check) {
        Ok(Checked::Passed(pass)) => return Ok(Checked::Passed(Some(pass))),
        Ok(Checked::Needs(need)) => return Ok(Checked::Needs(need)),
        Err(error) => error,
    };
    let status = if error == TokenError::NoKeys { 503 } else { 401 };
    Err((status, error.to_string().into()))
}

/// Returns the distinct channels to subscribe to: those requested, which the route must allow, and
/// those in the token.
fn allowed_channels(
    turn: &mut Turn,
    route: &RouteSettings,
    request: &Request<'_>,
    signed: &[String],
) -> Result<Vec<Box<str>>, HandshakeRefusal> {
    let requester = asked_channels(request.query)?;
    let requester = || {
        let names = requester.iter().flat_map(|list| list.split(','));
        names.filter(|name| !name.is_empty())
    };
    for name in requester() {
        if name.len() > NAME_BYTES_MAX {
            return Err((400, "a channel's name has at most 255 bytes".into()));
        }
        if !route.allows(name) {
            return Err((403, format!("this route does not allow the channel {name:?}").into()));
        }
    }
    distinct_channels(turn, requester().chain(signed.iter().map(String::as_str)))
}

/// Returns the distinct channels among these, if a client may have so many.
fn distinct_channels<'n>(
    turn: &mut Turn,
    names: impl Iterator<Item = &'n str>,
) -> Result<Vec<Box<str>>, HandshakeRefusal> {
    let max = turn.settings.limits.channels_per_client;
    match distinct(names, max) {
        Ok(channels) => Ok(channels.into_iter().map(Box::from).collect()),
        Err(TooManyNames) => {
            turn.counters.limits.channels_per_client += 1;
            Err((403, format!("more than {max} channels").into()))
        }
    }
}

/// Sends an open event to the topic of the client's route.
fn report_open(
    turn: &mut Turn,
    connections: &mut Connections,
    key: ConnectionKey,
    route: &RouteSettings,
    request: &Request<'_>,
) {
    let Some(topic) = route.topic.as_ref().filter(|_| route.tells_open) else { return };
    let Some(connection) = connections.get(key) else { return };
    let remote = connection.remote;
    let Some(client) = connection.client() else { return };
    let (id, context) = (client.id, &client.context);
    // Leaves out the client's credentials: back ends do not need them where gridcast checks the
    // token.
    let has_token = route.token.is_some();
    let query = query_pairs(request.query).map(|pair| (pair.name, pair.value));
    let query = query.filter(|(name, _)| !(has_token && name == QUERY_NAME));
    let headers = request
        .headers()
        .filter(|(name, _)| !(has_token && is_secret(name)))
        .map(|(name, value)| (name.to_ascii_lowercase(), String::from_utf8_lossy(value)));
    let frame = turn.encode_event(topic, id, |out| {
        api::put_open(out, request.path, query, headers, remote, context.json());
    });
    push_or_close(turn, connections, key, topic, id, frame);
}
