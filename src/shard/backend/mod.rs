//! The back ends of a shard: their calls over HTTP and WebSocket, and the events that they consume.
//!
//! - `requests.rs`: the API over HTTP, and pages. `page.rs`: the start page.
//! - `calls.rs`: calls that other shards or the mesh carry out. `pending.rs`: calls that wait for answers.
//! - `consumers.rs`: delivery of events to back ends. `acknowledge.rs`: consumers that acknowledge events.
//!   `unrouted.rs`: warnings of topics that no route feeds.

mod acknowledge;
mod calls;
mod consumers;
mod page;
mod pending;
mod requests;
mod unrouted;

use std::collections::BTreeSet;

use super::connection::{Connection, Connections, Stage};
use super::trail::{self, By, Entry};
use super::turn::Turn;
use crate::message::ConnectionKey;
use crate::metrics::Durations;
use crate::protocol::api::{self, Call, Code, Fault};
use crate::protocol::assembler::{Payload, Received};
use crate::protocol::credentials::Roles;
use crate::protocol::frame::{Kind, Opcode, put_frame};
use pending::Pending;
use unrouted::UnroutedTopics;

pub use acknowledge::Unsettled;
pub use calls::{Caller, unreachable_reason};
pub use consumers::TopicHome;
pub use requests::{
    WEBSOCKET_PATH, answer_preflight, api_method, check_origin, is_public, open_websocket,
};

use super::access::{Denial, Grant};

/// The back ends of one shard.
pub struct Backends {
    parser: api::Parser,
    pending: Pending,
    // Back ends that consume, or did so on their present connection. Homes on other nodes know of them.
    consumers: BTreeSet<ConnectionKey>,
    unrouted: UnroutedTopics,
    calls_taken: Durations,
}

impl Backends {
    /// Creates the part without back ends, for a node that was started at this Unix time in milliseconds.
    pub fn new(started_unix_ms: u64) -> Self {
        Self {
            parser: api::Parser::default(),
            pending: Pending::new(started_unix_ms),
            consumers: BTreeSet::new(),
            unrouted: UnroutedTopics::default(),
            calls_taken: Durations::default(),
        }
    }

    /// Returns the number of calls that wait for answers.
    pub fn pending_calls(&self) -> usize {
        self.pending.len()
    }

    /// Returns how long calls waited for their answers.
    pub fn calls_taken(&self) -> Durations {
        self.calls_taken
    }

    /// Lends the parser of calls, since a parsed call borrows from it. Give it back with
    /// [`Self::return_parser`].
    pub fn lend_parser(&mut self) -> api::Parser {
        std::mem::take(&mut self.parser)
    }

    /// Takes the parser back, with its buffers.
    pub fn return_parser(&mut self, parser: api::Parser) {
        self.parser = parser;
    }

    /// Reads one frame of a back end; returns the message if the frame completes one. Answers the text message
    /// `ping` itself.
    pub fn read<'i>(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        input: &mut &'i mut [u8],
    ) -> Option<Payload<'i>> {
        let connection = connections.get(key)?;
        let Stage::Backend(backend) = &mut connection.stage else { return None };
        match backend.assembler.read(input, turn.settings.limits.api_message_bytes, None) {
            Ok(None) | Ok(Some(Received::Pong)) => backend.assembler.note_unfinished(turn.now.ms),
            Ok(Some(Received::Message(Kind::Text, payload))) if *payload == *b"ping" => {
                connections.reply_bytes(turn, key, |out| {
                    put_frame(out, Opcode::Data(Kind::Text), b"pong");
                });
            }
            Ok(Some(Received::Message(_, payload))) => return Some(payload),
            Ok(Some(Received::Ping(payload))) => {
                backend.assembler.note_unfinished(turn.now.ms);
                connections.write_with(turn, key, |out| put_frame(out, Opcode::Pong, &payload));
            }
            Ok(Some(Received::Inflating)) => {}
            Ok(Some(Received::Close(closed))) => {
                connections.close_after_answers(turn, key, closed, By::Peer);
            }
            Err(violation) => connections.close_for_violation(turn, key, violation),
        }
        None
    }

    /// Returns a call over WebSocket if the connection's user may make it. `queue.ack` does not count towards
    /// the user's quota.
    ///
    /// # Errors
    /// The user's roles do not allow the call, the quota is used up, or the call was invalid already.
    pub fn admit_call<'c>(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        call: Result<Call<'c>, Fault>,
    ) -> Result<Call<'c>, Fault> {
        let backend = connections.get(key).and_then(Connection::backend);
        let grant = backend.map_or(Grant::default(), |backend| backend.grant);
        if !matches!(call, Ok(Call::Ack(_))) {
            take_call(turn, grant)?;
        }
        let call = call?;
        check_role(grant.roles, &call)?;
        Ok(call)
    }

    /// Writes a call to the log if the level `debug` is on.
    #[inline]
    pub fn note_call(
        &self,
        turn: &Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        call: &Result<Call<'_>, Fault>,
    ) {
        if trail::is_read()
            && let Ok(call) = call
        {
            let user = connections.get(key).and_then(|connection| connection.user());
            trail::note(turn.trail(key), Entry::Called(turn.user_name(user), call));
        }
    }
}

/// Takes one call out of a user's quota.
///
/// # Errors
/// The quota is used up for now.
pub fn take_call(turn: &mut Turn, grant: Grant) -> Result<(), Fault> {
    let quota = grant.user.and_then(|user| turn.state.quotas.get(user));
    if quota.is_none_or(|quota| quota.take(turn.now.ms)) {
        return Ok(());
    }
    turn.counters.limits.requests_per_s += 1;
    Err(Fault::new(Code::TooManyRequests, "too many requests a second for this user"))
}

/// Checks that roles allow a call.
fn check_role(roles: Roles, call: &Call<'_>) -> Result<(), Fault> {
    let (may, code) = match call {
        Call::Send(..) | Call::Publish(..) | Call::Call(..) => (roles.write, Code::NotAuthorised),
        Call::Pop(..) => (roles.read, Code::ConsumptionFailed),
        Call::Unpop | Call::Ack(_) => (roles.read, Code::NotAuthorised),
    };
    if may { Ok(()) } else { Err(Fault::new(code, Denial::Role.reason())) }
}
