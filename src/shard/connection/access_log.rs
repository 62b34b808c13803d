//! The access log: one line at the end of each connection, if `log.access` is on.
//!
//! The counters exist only for connections that were accepted while it was on. A line shows no secret, no
//! query and no message.

use super::outbound::Observers;
use super::{Connection, Connections, Listener, Stage};
use crate::message::ConnectionKey;
use crate::protocol::api::TapEvent;
use crate::shard::trail::shown_part;
use crate::shard::turn::Turn;

/// The `tracing` target of the lines. The log writes them at every `log.level`.
pub const ACCESS_LOG_TARGET: &str = "access";

/// What the access log knows of an open connection.
#[derive(Debug, Default)]
pub(super) struct AccessRecord {
    // When the connection was accepted, in milliseconds on the shard's clock.
    accepted_ms: u64,
    requests: u64,
    messages_in: u64,
    messages_out: u64,
    bytes_in: u64,
    bytes_out: u64,
    /// The peer, once it has ended. Then the connection does not know the peer any more.
    peer: Option<LoggedPeer>,
}

/// Who the peer of a connection was, and how it ended.
#[derive(Debug, Default)]
struct LoggedPeer {
    kind: &'static str,
    client: Option<String>,
    user: Option<String>,
    route: Option<String>,
    code: Option<u16>,
}

impl AccessRecord {
    /// Counts a message of a client or back end, or one to it.
    #[cold]
    #[inline(never)]
    pub(super) fn count_message(&mut self, is_incoming: bool) {
        match is_incoming {
            true => self.messages_in += 1,
            false => self.messages_out += 1,
        }
    }
}

impl Connection {
    /// Begins to count, for a connection that was just accepted.
    pub(super) fn begin_access_record(&mut self, now_ms: u64) {
        self.access_record =
            Some(Box::new(AccessRecord { accepted_ms: now_ms, ..Default::default() }));
        self.outbound.observers.set(Observers::ACCESS_LOG, true);
    }

    /// Counts received bytes.
    #[inline]
    pub(super) fn record_received(&mut self, bytes: usize) {
        if let Some(record) = &mut self.access_record {
            record.bytes_in += bytes as u64;
        }
    }

    /// Counts written bytes.
    #[inline]
    pub(super) fn record_written(&mut self, bytes: usize) {
        if let Some(record) = &mut self.access_record {
            record.bytes_out += bytes as u64;
        }
    }

    /// Counts an HTTP request.
    #[inline]
    pub(super) fn record_request(&mut self) {
        if let Some(record) = &mut self.access_record {
            record.requests += 1;
        }
    }

    /// Counts a message of a client, or one to it.
    pub(in crate::shard) fn record_client_message(&mut self, event: &TapEvent<'_>) {
        if let Some(record) = &mut self.access_record {
            match event {
                TapEvent::In(..) => record.count_message(true),
                TapEvent::Out(..) => record.count_message(false),
                _ => {}
            }
        }
    }

    /// Counts a message of a back end on the WebSocket API, or one to it, or an answer to a device.
    #[inline]
    pub(in crate::shard) fn record_backend_message(&mut self, is_incoming: bool) {
        if let Some(record) = &mut self.access_record
            && matches!(self.stage, Stage::Backend(_) | Stage::Client(_))
        {
            record.count_message(is_incoming);
        }
    }
}

impl Connections {
    /// Counts a message to a back end on the WebSocket API.
    #[inline]
    pub fn record_backend_output(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.get(key) {
            connection.record_backend_message(false);
        }
    }

    /// Notes who the peer of a connection was, before the connection forgets it. `code` is the close code
    /// of a WebSocket connection.
    pub(super) fn record_end(&mut self, turn: &Turn, key: ConnectionKey, code: Option<u16>) {
        let Some(connection) = self.get(key) else { return };
        let Some(record) = &connection.access_record else { return };
        if record.peer.is_some() {
            return;
        }
        let peer = connection.peer(turn, code);
        if let Some(record) = &mut connection.access_record {
            record.peer = Some(peer);
        }
    }

    /// Writes the line of a connection whose socket is closed. Does nothing if the connection has messages
    /// that are not processed yet: its end is reported later, and then its line is written.
    pub fn log_access(&mut self, turn: &Turn, key: ConnectionKey) {
        if self.get(key).is_none_or(|connection| connection.has_pending_close) {
            return;
        }
        self.record_end(turn, key, None);
        let Some(connection) = self.get(key) else { return };
        let Some(record) = connection.access_record.take() else { return };
        connection.outbound.observers.set(Observers::ACCESS_LOG, false);
        if turn.settings.has_access_log {
            write_line(turn, key, connection, &record);
        }
    }
}

impl Connection {
    fn peer(&self, turn: &Turn, code: Option<u16>) -> LoggedPeer {
        match &self.stage {
            Stage::Client(client) | Stage::Unsubscribing(client) => LoggedPeer {
                kind: "client",
                client: Some(client.id.to_string()),
                user: client.context.user().map(|user| shown_part(&user).to_owned()),
                route: self.route(&turn.settings).map(|route| shown_part(&route.path).to_owned()),
                code,
            },
            Stage::Backend(backend) => LoggedPeer {
                kind: "backend",
                user: user_of_api(turn, backend.grant.user),
                code,
                ..LoggedPeer::default()
            },
            Stage::Http(http) => LoggedPeer {
                kind: "http",
                user: user_of_api(turn, http.user),
                ..LoggedPeer::default()
            },
            Stage::Ending => LoggedPeer { kind: "http", ..LoggedPeer::default() },
        }
    }
}

/// Returns the name of a user of the API. `None` if no users are configured, or nobody has logged in.
fn user_of_api(turn: &Turn, user: Option<usize>) -> Option<String> {
    Some(turn.user_name(user)).filter(|name| !name.is_empty()).map(str::to_owned)
}

#[cold]
#[inline(never)]
fn write_line(turn: &Turn, key: ConnectionKey, connection: &Connection, record: &AccessRecord) {
    let AccessRecord { accepted_ms, requests, peer, .. } = record;
    let Some(LoggedPeer { kind, client, user, route, code }) = peer else { return };
    let listener = match connection.listener {
        Listener::Api => "api",
        Listener::Edge(_) => "edge",
    };
    tracing::info!(
        target: ACCESS_LOG_TARGET,
        connection = %turn.trail(key),
        address = %connection.remote,
        listener,
        kind,
        client = client.as_deref(),
        user = user.as_deref(),
        route = route.as_deref(),
        requests = (*kind == "http").then_some(*requests),
        messages_in = (*kind != "http").then_some(record.messages_in),
        messages_out = (*kind != "http").then_some(record.messages_out),
        bytes_in = record.bytes_in,
        bytes_out = record.bytes_out,
        duration_ms = turn.now.ms.saturating_sub(*accepted_ms),
        code,
        "connection ended",
    );
}
