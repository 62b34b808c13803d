//! The back ends of a shard: what they ask for over HTTP and WebSocket, the answers that they wait for, and
//! the events that they consume.
//!
//! - `requests.rs`: the API over HTTP, and pages. `page.rs`: the page of the first minute.
//! - `calls.rs`: calls that other shards or the mesh carry out. `pending.rs`: those without an answer.
//! - `consumers.rs`: events on their way to back ends. `acknowledge.rs`: back ends that acknowledge them.
//!   `unfed.rs`: topics that back ends consume and nothing feeds.

mod acknowledge;
mod calls;
mod consumers;
mod page;
mod pending;
mod requests;
mod unfed;

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
use unfed::Unfed;

pub use acknowledge::Unsettled;
pub use calls::{Caller, why_nobody};
pub use requests::{SOCKET_PATH, answer_preflight, api_method, check_origin, is_open, open};

use super::access::{Grant, Refusal};

/// The back ends of one shard.
pub struct Backends {
    parser: api::Parser,
    pending: Pending,
    // Those that consume, of which the topics of every node are to know, and those that did.
    consumers: BTreeSet<ConnectionKey>,
    unfed: Unfed,
    calls_taken: Durations,
}

impl Backends {
    /// No back ends yet, of a node that was started then, in Unix milliseconds.
    pub fn new(started_unix_ms: u64) -> Self {
        Self {
            parser: api::Parser::default(),
            pending: Pending::new(started_unix_ms),
            consumers: BTreeSet::new(),
            unfed: Unfed::default(),
            calls_taken: Durations::default(),
        }
    }

    /// Calls that wait for answers.
    pub fn pending_calls(&self) -> usize {
        self.pending.len()
    }

    /// How long calls took to be answered.
    pub fn calls_taken(&self) -> Durations {
        self.calls_taken
    }

    /// Lends the parser of calls, for as long as what it read is carried out; to be given back.
    pub fn lend_parser(&mut self) -> api::Parser {
        std::mem::take(&mut self.parser)
    }

    /// Takes the parser back.
    pub fn return_parser(&mut self, parser: api::Parser) {
        self.parser = parser;
    }

    /// Reads one frame of a back end; gives a whole message that it ended. A `ping` is answered here.
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

    /// A call over WebSocket, if the user of this connection may make it. One that settles events
    /// asks for nothing, and is not counted.
    ///
    /// # Errors
    /// The user's role does not allow it, or it calls too often.
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

    /// Writes a call to the log, if anybody reads it.
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

/// Takes one call out of what a user may ask for.
///
/// # Errors
/// The user has called too often.
pub fn take_call(turn: &mut Turn, grant: Grant) -> Result<(), Fault> {
    let quota = grant.user.and_then(|user| turn.state.quotas.get(user));
    if quota.is_none_or(|quota| quota.take(turn.now.ms)) {
        return Ok(());
    }
    turn.counters.limits.requests_per_s += 1;
    Err(Fault::new(Code::TooManyRequests, "too many requests a second for this user"))
}

/// Whether these roles allow a call.
fn check_role(roles: Roles, call: &Call<'_>) -> Result<(), Fault> {
    let (may, code) = match call {
        Call::Send(..) | Call::Publish(..) | Call::Call(..) => (roles.write, Code::NotAuthorised),
        Call::Pop(..) => (roles.read, Code::ConsumptionFailed),
        Call::Unpop | Call::Ack(_) => (roles.read, Code::NotAuthorised),
    };
    if may { Ok(()) } else { Err(Fault::new(code, Refusal::Role.explained().1)) }
}
