//! The back ends of a shard: their calls over HTTP and WebSocket, and the events that they consume.
//!
//! - `requests.rs`: the API over HTTP, and pages. `page.rs`: the start page. `console.rs`: the console.
//! - `calls.rs`: calls that other shards or the mesh carry out. `pending.rs`: calls that wait for
//!   answers.
//! - `consumers.rs`: delivery of events to back ends. `acknowledge.rs`: consumers that acknowledge
//!   events. `takes.rs`: events that back ends take over HTTP. `settle.rs`: their acknowledgements.
//! - `for_users.rs`: calls for all connections of some users. `push.rs`: events of back ends for topics. `unrouted.rs`: warnings of topics that no route feeds.
//! - `list.rs`: finds back ends for `backend.list`.

mod acknowledge;
mod calls;
mod console;
mod consumers;
mod for_users;
mod list;
mod page;
mod pending;
mod push;
mod requests;
mod settle;
mod takes;
mod unrouted;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::connection::{Connections, Stage};
use super::trail::{self, By, Entry};
use super::turn::Turn;
use crate::message::ConnectionKey;
use crate::metrics::{CallSourceReport, Durations};
use crate::protocol::api::{self, ApiRequest, Call, Code, Fault, NotUtf8};
use crate::protocol::assembler::{Payload, Received};
use crate::protocol::credentials::Roles;
use crate::protocol::frame::{Kind, Opcode, Violation, put_frame};
use pending::PendingQuestions;
use takes::Takes;
use unrouted::UnroutedTopics;

pub(super) use acknowledge::{Unsettled, Verdict};
pub(super) use calls::{Asked, Caller, ask_to_publish, unreachable_reason};
pub(super) use consumers::TopicHome;
pub(super) use list::walk_backends;
pub(super) use pending::Answer;
pub(super) use requests::{
    WEBSOCKET_PATH, allows_method, answer_preflight, api_method, check_origin, is_probe, is_public,
    nodes_page, open_websocket,
};
pub(super) use settle::stale_tags;
pub(super) use takes::{TakeKey, is_take};

use super::access::{Denial, Grant};

/// A message of a back end on the WebSocket API.
pub(super) struct BackendRequest<'i> {
    // The type of the message. Text is not checked to be UTF-8 yet.
    kind: Kind,
    payload: Payload<'i>,
    // The user and the roles of the back end.
    grant: Grant,
}

impl BackendRequest<'_> {
    /// Parses the request. The call is a fault if the user's roles do not allow it, or the user's
    /// quota is used up. `queue.ack` and `queue.nack` do not count towards the quota.
    ///
    /// # Errors
    /// A text message is not UTF-8.
    #[inline]
    pub(super) fn parse<'a>(
        &'a mut self,
        turn: &mut Turn,
        parser: &'a mut api::Parser,
    ) -> Result<ApiRequest<'a>, Violation> {
        let mut request = match self.kind {
            Kind::Text => parser.text_request(&mut self.payload),
            Kind::Binary => Ok(parser.request(&mut self.payload)),
        }
        .map_err(|NotUtf8| Violation::NotUtf8)?;
        let counts = !matches!(request.call, Ok(Call::Ack(_) | Call::Nack(..)));
        let taken = if counts { take_call(turn, self.grant) } else { Ok(()) };
        let admitted = match &request.call {
            Ok(call) => taken.and_then(|()| check_role(self.grant.roles, call)),
            Err(_) => taken,
        };
        if let Err(fault) = admitted {
            request.call = Err(fault);
        }
        Ok(request)
    }
}

/// The back ends of one shard.
pub(super) struct Backends {
    parser: api::Parser,
    pending: PendingQuestions,
    // Those of `pending` that are publishes through homes of channels.
    placed_publishes: usize,
    // Back ends that consume, or did so on their present connection. Homes on other nodes know of
    // them.
    consumers: BTreeSet<ConnectionKey>,
    // Takes over HTTP.
    takes: Takes,
    unrouted: UnroutedTopics,
    calls_taken: Durations,
    // The sources whose calls this shard carries out, by name. The configuration bounds their number.
    call_sources: BTreeMap<Arc<str>, CallSourceReport>,
}

impl Backends {
    /// Creates the part without back ends, for a node that was started at this Unix time in
    /// milliseconds.
    pub(super) fn new(started_unix_ms: u64) -> Self {
        Self {
            parser: api::Parser::default(),
            pending: PendingQuestions::new(started_unix_ms),
            placed_publishes: 0,
            consumers: BTreeSet::new(),
            takes: Takes::new(started_unix_ms),
            unrouted: UnroutedTopics::default(),
            calls_taken: Durations::default(),
            call_sources: BTreeMap::new(),
        }
    }

    /// Returns the number of calls that wait for answers.
    pub(super) fn pending_calls(&self) -> usize {
        self.pending.len()
    }

    /// Returns the number of takes that wait, or whose answers are being written.
    pub(super) fn waiting_takes(&self) -> usize {
        self.takes.len()
    }

    /// Returns how long calls waited for their answers.
    pub(super) fn calls_taken(&self) -> Durations {
        self.calls_taken
    }

    /// Keeps the figures of a source of calls. `None`: the source was removed.
    pub(super) fn note_call_source(
        &mut self,
        source: Arc<str>,
        report: Option<Box<CallSourceReport>>,
    ) {
        match report {
            Some(report) => drop(self.call_sources.insert(source, *report)),
            None => drop(self.call_sources.remove(&source)),
        }
    }

    /// Returns the figures of the sources whose calls this shard carries out.
    pub(super) fn call_sources(&self) -> Vec<CallSourceReport> {
        self.call_sources.values().cloned().collect()
    }

    /// Lends the parser of calls, since a parsed call borrows from it. Give it back with
    /// [`Self::return_parser`].
    pub(super) fn lend_parser(&mut self) -> api::Parser {
        std::mem::take(&mut self.parser)
    }

    /// Takes the parser back, with its buffers.
    pub(super) fn return_parser(&mut self, parser: api::Parser) {
        self.parser = parser;
    }

    /// Reads one frame of a back end; returns the request if the frame completes one. Answers the
    /// text message `ping` itself.
    pub(super) fn read<'i>(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        input: &mut &'i mut [u8],
    ) -> Option<BackendRequest<'i>> {
        let connection = connections.get(key)?;
        let Stage::Backend(backend) = &mut connection.stage else { return None };
        match backend.assembler.read_unchecked(input, turn.settings.limits.api_message_bytes) {
            Ok(None) | Ok(Some(Received::Pong)) => backend.assembler.note_unfinished(turn.now.ms),
            Ok(Some(Received::Message(Kind::Text, payload))) if *payload == *b"ping" => {
                connection.record_backend_message(true);
                connections.reply_bytes(turn, key, |out| {
                    put_frame(out, Opcode::Data(Kind::Text), b"pong");
                });
            }
            Ok(Some(Received::Message(kind, payload))) => {
                let grant = backend.grant;
                connection.record_backend_message(true);
                return Some(BackendRequest { kind, payload, grant });
            }
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

    /// Writes a call to the log if the level `debug` is on.
    #[inline]
    pub(super) fn note_call(
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

/// Takes one call out of a user's quota, if the user has one.
///
/// # Errors
/// The user has made more calls than `requests_per_s` allows.
pub(super) fn take_call(turn: &mut Turn, grant: Grant) -> Result<(), Fault> {
    let quota = grant.user.and_then(|user| turn.state.quotas.get(user)?.as_ref());
    if quota.is_none_or(|quota| quota.take(turn.now.ms)) {
        return Ok(());
    }
    turn.counters.limits.requests_per_s += 1;
    Err(Fault::new(Code::TooManyRequests, "too many requests a second for this user"))
}

/// Checks that roles allow a call.
fn check_role(roles: Roles, call: &Call<'_>) -> Result<(), Fault> {
    let (may, code) = match call {
        Call::Send(..)
        | Call::Publish(..)
        | Call::MultiPublish(_)
        | Call::Call(..)
        | Call::UserSend(..)
        | Call::UserCall(..)
        | Call::Push(_) => (roles.write, Code::NotAuthorised),
        Call::Pop(..) | Call::Take(_) => (roles.read, Code::ConsumptionFailed),
        Call::List(list) if !list.method().is_for_admins() => (roles.read, Code::NotAuthorised),
        Call::Reload | Call::List(_) | Call::Tap(_) | Call::Untap => {
            (roles.admin, Code::NotAuthorised)
        }
        Call::Unpop | Call::Ack(_) | Call::Nack(..) => (roles.read, Code::NotAuthorised),
    };
    if may { Ok(()) } else { Err(Fault::new(code, Denial::Role.reason())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{ClientId, ShardAddress, ShardId};
    use crate::message::{
        BridgeCallId, Delivery, FromConsumer, FromShard, GridMessage, LocalMessage, MessageNumber,
        PopId, Ticket, ToBridge,
    };
    use crate::protocol::api::{Content, Reply, Settling};
    use crate::protocol::frame::Frame;
    use crate::shard::connection::{Listener, PolledWrite, Priority, Shape};
    use crate::shard::fixture::{self, TOPIC};
    use crate::shard::turn::Step;

    /// A shard's back ends: one, on a WebSocket.
    struct Fixture {
        turn: Turn,
        connections: Connections,
        backends: Backends,
        key: ConnectionKey,
    }

    impl Fixture {
        fn new() -> Self {
            let mut settings = fixture::settings();
            settings.shards = 2;
            let (mut turn, mut connections) = (fixture::turn(settings), Connections::default());
            let key = fixture::accepted(&mut turn, &mut connections, Listener::Api);
            let connection = connections.get(key).expect("it was accepted");
            connection.stage = Stage::Backend(Box::default());
            Self { turn, connections, backends: Backends::new(1), key }
        }

        fn caller(&self) -> Caller {
            Caller { key: self.key, shape: Shape::Message("7".into()) }
        }

        /// Writes all output of the back end; returns it.
        fn written(&mut self) -> String {
            let mut bytes = Vec::new();
            while let Some(PolledWrite { batch, .. }) =
                self.connections.poll_write(&self.turn, Priority::Urgent)
            {
                batch.iter().for_each(|chunk| bytes.extend_from_slice(chunk.bytes()));
                let length = batch.iter().map(|chunk| chunk.bytes().len()).sum();
                self.connections.handle_written(&mut self.turn, self.key, length);
                self.backends.handle_written(&mut self.turn, &mut self.connections, self.key);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        }

        /// Sends to a client of the other shard; returns the ticket of the question to that shard.
        fn send(&mut self) -> Ticket {
            let to = ShardAddress { shard: ShardId(1), ..self.turn.address };
            let content = Content { kind: Kind::Text, bytes: b"hello".into() };
            let (client, caller) = (ClientId::from_value(1), self.caller());
            let Self { turn, connections, backends, .. } = self;
            backends.call_send(turn, connections, caller, to, client, &content);
            let asked = fixture::messages(turn);
            let [FromShard::Local(asked_shard, ref message)] = asked[..] else {
                panic!("{asked:?}")
            };
            let LocalMessage::Grid(GridMessage::Ask { ticket, .. }) = message else {
                panic!("{message:?}")
            };
            assert_eq!(asked_shard, to.shard);
            *ticket
        }
    }

    #[test]
    fn a_call_waits_for_the_answer_of_another_shard_or_for_its_timeout() {
        let mut fixture = Fixture::new();
        let (first, second) = (fixture.send(), fixture.send());
        assert_eq!((fixture.backends.pending_calls(), fixture.written()), (2, String::new()));
        let Fixture { turn, connections, backends, .. } = &mut fixture;
        backends.handle_answer(turn, connections, second, Answer::Done(Ok(Reply::Done)));
        assert_eq!(fixture.written(), "", "answers keep the order of the calls");
        let Fixture { turn, connections, backends, .. } = &mut fixture;
        turn.now.ms += turn.settings.limits.answer_ms;
        assert!(backends.expire(turn, connections, first));
        assert!(!backends.expire(turn, connections, second), "the second call was answered");
        assert_eq!(turn.counters.limits.answer_ms, 1);
        let written = fixture.written();
        let timed_out = written.find("no answer in time").expect("a fault for the first call");
        assert!(written[timed_out..].contains("\"i\":7"), "{written}");
        assert_eq!(fixture.backends.pending_calls(), 0);
    }

    #[test]
    fn a_call_of_the_bridge_is_answered_to_the_bridge() {
        let mut fixture = Fixture::new();
        let to = ShardAddress { shard: ShardId(1), ..fixture.turn.address };
        let send = |fixture: &mut Fixture, call| {
            let content = Content { kind: Kind::Text, bytes: b"hello".into() };
            let (client, caller) = (ClientId::from_value(1), Caller::of_bridge(call));
            let Fixture { turn, connections, backends, .. } = fixture;
            backends.call_send(turn, connections, caller, to, client, &content);
            match fixture::messages(turn)[..] {
                [FromShard::Local(_, LocalMessage::Grid(GridMessage::Ask { ticket, .. }))] => {
                    ticket
                }
                ref asked => panic!("{asked:?}"),
            }
        };
        let first = send(&mut fixture, BridgeCallId(8));
        let second = send(&mut fixture, BridgeCallId(9));
        let Fixture { turn, connections, backends, .. } = &mut fixture;
        assert!(turn.poll_bridge_answer().is_none());
        backends.handle_answer(turn, connections, second, Answer::Done(Ok(Reply::Done)));
        let answer = turn.poll_bridge_answer();
        assert!(
            matches!(answer, Some(ToBridge::Called { call: BridgeCallId(9), outcome: Ok(()) })),
            "{answer:?}"
        );
        turn.now.ms += turn.settings.limits.answer_ms;
        turn.now.us += turn.settings.limits.answer_ms * 1000;
        assert!(backends.expire(turn, connections, first));
        let answer = turn.poll_bridge_answer();
        assert!(
            matches!(answer, Some(ToBridge::Called { call: BridgeCallId(8), outcome: Err(_) })),
            "{answer:?}"
        );
    }

    #[test]
    fn an_event_is_delivered_only_to_a_consumer_and_reported_once_it_is_written() {
        let mut fixture = Fixture::new();
        let (id, node) = (fixture.turn.backend_id(fixture.key), fixture.turn.address.node);
        let deliver = |fixture: &mut Fixture| {
            let Fixture { turn, connections, backends, key } = fixture;
            let home = TopicHome { node, topic: TOPIC.into() };
            let frame = Frame::from_encoded(b"event");
            let (is_acknowledged, is_redelivered) = (false, false);
            let delivery = Delivery {
                number: MessageNumber(5),
                pop: PopId(1),
                is_acknowledged,
                is_redelivered,
                frame,
            };
            backends.deliver(turn, connections, *key, home, delivery);
        };
        deliver(&mut fixture);
        assert!(matches!(
            to_home(&mut fixture.turn)[..],
            [LocalMessage::Grid(GridMessage::FromConsumer {
                consumer,
                message: FromConsumer::Returned { number: MessageNumber(5), pop: PopId(1) },
                ..
            })] if consumer == id
        ));

        let caller = fixture.caller();
        let Fixture { turn, connections, backends, key } = &mut fixture;
        backends.call_pop(turn, connections, caller, &[TOPIC], Settling::Written, None);
        let asked = to_home(turn);
        let [LocalMessage::Ask { ticket, .. }] = asked[..] else { panic!("{asked:?}") };
        backends.handle_answer(turn, connections, ticket, Answer::Done(Ok(Reply::Done)));
        let steps = fixture::steps(turn);
        let [Step::PopAnswered(answered, PopId(1))] = steps[..] else { panic!("{steps:?}") };
        assert_eq!(answered, *key);
        backends.start_consuming(turn, connections, *key, PopId(1));
        assert!(
            matches!(to_home(turn)[..], [LocalMessage::StartDelivery(_, backend)] if backend == id)
        );

        deliver(&mut fixture);
        assert!(to_home(&mut fixture.turn).is_empty(), "the event is not written yet");
        assert!(fixture.written().ends_with("event"));
        assert!(matches!(
            to_home(&mut fixture.turn)[..],
            [LocalMessage::Grid(GridMessage::FromConsumer {
                consumer,
                message: FromConsumer::Written(1),
                ..
            })] if consumer == id
        ));
    }

    /// Takes out the messages to the home of the topic, which may be either shard.
    fn to_home(turn: &mut Turn) -> Vec<LocalMessage> {
        let own = fixture::steps(turn).into_iter().filter_map(|step| match step {
            Step::Message(message) => Some(message),
            _ => None,
        });
        let own: Vec<_> = own.collect();
        let other = fixture::messages(turn).into_iter().map(|message| match message {
            FromShard::Local(_, message) => message,
            message => panic!("{message:?}"),
        });
        own.into_iter().chain(other).collect()
    }
}
