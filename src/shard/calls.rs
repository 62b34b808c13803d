//! Routing of calls and commands. A *call* comes from a back end connected to this shard. A
//! *command* is the part of a call that one shard executes: this shard or another.

use super::Shard;
use super::backend::{self, Caller, Verdict};
use super::publishing::{self, HomeParts};
use super::taps::{self, ClientCall};
use super::turn::ShardCommand;
use crate::message::{
    ClientCommand, ClientReply, LocalCommand, LocalMessage, PlacedPublish, Publish, Requester,
    UserAction, UserCommand,
};
use crate::protocol::api::{Call, Code, Content, Fault, NotUtf8, Parser, Reply, Tally};
use crate::protocol::frame::Frame;

impl Shard {
    /// Carries out a call of a back end connected to this shard. The answer is written when it is
    /// known, in the order of the calls.
    pub(super) fn call(&mut self, caller: Caller, call: Result<Call<'_>, Fault>) {
        let (turn, connections) = (&mut self.turn, &mut self.connections);
        let may_be_placed = publishing::may_be_placed(turn, &self.backends, &call);
        if may_be_placed && publishing::must_wait(turn, connections, caller.key, &call) {
            return publishing::park(connections, caller, call);
        }
        turn.counters.calls += 1;
        self.backends.note_call(turn, connections, caller.key, &call);
        if turn.taps.is_active()
            && let Ok(call) = &call
        {
            let user = connections.get(caller.key).and_then(|connection| connection.user());
            turn.tap_call(user, call);
        }
        let answer = match call {
            Err(fault) => Err(fault),
            Ok(_) if !self.backends.has_room() => {
                turn.counters.limits.calls_waiting += 1;
                Err(Fault::new(Code::TooManyRequests, "too many calls wait for answers"))
            }
            Ok(call) if may_be_placed && publishing::is_placed(turn, &call) => {
                let Self { turn, connections, clients, backends, homes, .. } = self;
                let mut parts = HomeParts { turn, connections, clients, backends, homes };
                return match call {
                    Call::Publish(channel, content) => {
                        publishing::publish(&mut parts, caller, channel, &content);
                    }
                    Call::MultiPublish(publish) => {
                        publishing::publish_several(&mut parts, caller, &publish);
                    }
                    _ => {}
                };
            }
            Ok(Call::Publish(channel, content)) => return self.publish(caller, channel, &content),
            Ok(Call::MultiPublish(publish)) => {
                return self.backends.call_multi_publish(turn, connections, caller, &publish);
            }
            Ok(Call::Send(client, content)) => {
                let has_pending_publish =
                    self.clients.has_pending_publish(turn.backend_id(caller.key));
                match turn.roster.address_of(client) {
                    None => {
                        Err(Fault::new(Code::SendFailed, backend::unreachable_reason(turn, client)))
                    }
                    Some(address) if address == turn.address && !has_pending_publish => {
                        let told = turn.taps.is_active().then(|| {
                            let user = connections.get(caller.key).and_then(|caller| caller.user());
                            let taps = self.clients.taps_of(connections, client);
                            ClientCall::own_send(turn, client, user, taps)
                        });
                        let (kind, bytes) = (content.kind, &content.bytes);
                        let sent = self.clients.send(turn, connections, client, kind, bytes);
                        if let Some(told) = told.flatten() {
                            told.tell(turn, &sent);
                        }
                        sent.map(Reply::from)
                    }
                    Some(address) => {
                        let backends = &mut self.backends;
                        return backends.call_send(
                            turn,
                            connections,
                            caller,
                            address,
                            client,
                            &content,
                        );
                    }
                }
            }
            Ok(Call::Call(client, function)) => {
                return self.backends.call_function(turn, connections, caller, client, function);
            }
            Ok(Call::UserSend(users, content)) => {
                let frame = Frame::message(content.kind, &content.bytes);
                let command = UserCommand { users, action: UserAction::Send(frame) };
                return self.backends.call_users(turn, connections, caller, command);
            }
            Ok(Call::UserCall(users, function)) => {
                let command = UserCommand { users, action: UserAction::Call(function) };
                return self.backends.call_users(turn, connections, caller, command);
            }
            Ok(Call::Pop(topics, settling, group)) => {
                let backends = &mut self.backends;
                return backends.call_pop(turn, connections, caller, &topics, settling, group);
            }
            Ok(Call::Take(take)) => {
                return self.backends.call_take(turn, connections, caller, &take);
            }
            Ok(Call::Ack(tags)) => {
                return self.backends.call_ack(turn, connections, caller, tags, Verdict::Settled);
            }
            Ok(Call::Push(event)) => {
                return self.backends.call_push(turn, connections, caller, &event);
            }
            Ok(Call::Nack(tags, after_ms)) => {
                let verdict = Verdict::Refused { after_ms };
                return self.backends.call_ack(turn, connections, caller, tags, verdict);
            }
            Ok(Call::Reload) => {
                if let Some(ticket) = self.backends.open_reload(turn, connections, caller) {
                    self.reload.request(ticket);
                }
                return;
            }
            Ok(Call::List(_)) if !self.lists.has_room() => {
                turn.counters.limits.lists += 1;
                Err(Fault::new(Code::TooManyRequests, "too many lists are gathered at once"))
            }
            Ok(Call::List(call)) => {
                if let Some(ticket) = self.backends.open_list(turn, connections, caller) {
                    self.lists.begin(turn, ticket, call);
                }
                return;
            }
            Ok(Call::Tap(tap)) => match self.taps.check_room(turn, caller.key) {
                Err(fault) => Err(fault),
                Ok(()) => {
                    let shards = taps::all_shards(turn);
                    let backends = &mut self.backends;
                    if let Some(requester) = backends.open_tap(turn, connections, caller, &shards) {
                        self.taps.start(turn, connections, requester, tap);
                    }
                    return;
                }
            },
            Ok(Call::Untap) => {
                self.taps.stop(turn, caller.key);
                Ok(Reply::Done)
            }
            Ok(Call::Unpop) => return self.backends.call_unpop(turn, connections, caller),
        };
        connections.reply(turn, caller.key, &caller.shape, &answer);
    }

    /// Publishes at once if only this shard can have subscribers and no earlier publish of the back
    /// end is pending. Otherwise sends the publish to all shards that may have subscribers.
    // Always inlined: most calls are publishes, and to pass on the content costs 40 instructions.
    #[inline(always)]
    fn publish(&mut self, caller: Caller, channel: &str, content: &Content<'_>) {
        let (turn, connections) = (&mut self.turn, &mut self.connections);
        let backend = turn.backend_id(caller.key);
        let has_pending_publish = self.clients.has_pending_publish(backend);
        if has_pending_publish || !turn.is_alone() {
            let receivers =
                self.backends.receivers_of_publish(turn, connections, caller.key, channel);
            let is_for_others = receivers.include_others_than(turn.address.shard);
            if is_for_others || has_pending_publish && !receivers.shards.is_empty() {
                let backends = &mut self.backends;
                return backends.call_publish(
                    turn,
                    connections,
                    caller,
                    receivers,
                    channel,
                    content,
                );
            }
        }
        let published = match self.clients.has_channel(channel) {
            true => {
                let frame = Frame::message(content.kind, &content.bytes);
                self.clients.publish(turn, connections, channel, frame, None, None)
            }
            false => Ok(Tally::default()),
        };
        match published {
            Ok(tally) => {
                let answer = Ok(Reply::Published(tally));
                connections.reply(turn, caller.key, &caller.shape, &answer);
            }
            Err(walk) => {
                let requester = self.backends.wait_for_publish(turn, connections, caller);
                if let Some(requester) = requester {
                    self.clients.defer_publish(requester, walk.into());
                }
            }
        }
    }

    /// Executes a command for a back end of this or another shard, after the earlier commands of
    /// the same back end.
    pub(super) fn execute_command(&mut self, requester: Requester, command: ShardCommand) {
        let (turn, connections) = (&mut self.turn, &mut self.connections);
        let command = match self.clients.queue_behind_publish(requester, command) {
            Ok(Some(command)) => command,
            Ok(None) => return,
            Err(ShardCommand::Local(LocalCommand::Recover(answer))) => {
                return self.clients.refuse_recovery(turn, connections, &answer);
            }
            Err(command) => {
                turn.counters.limits.calls_waiting += 1;
                let why = "too much waits behind a large publish";
                let fault = Fault::new(Code::TooManyRequests, why);
                return match command.is_publish() {
                    true => turn.answer_publish(requester, Err(fault)),
                    false => turn.answer(requester, Err(fault)),
                };
            }
        };
        let told = match &command {
            ShardCommand::Client(command) if turn.taps.is_active() => {
                let taps = self.clients.taps_of(connections, command.client());
                ClientCall::new(turn, requester, command, taps)
            }
            _ => None,
        };
        let done = match command {
            ShardCommand::Local(LocalCommand::Publish(Publish { channel, frame, excluded })) => {
                let excluded = excluded.as_deref().map(|excluded| &excluded[..]);
                let done = self.clients.publish(turn, connections, &channel, frame, None, excluded);
                return match done {
                    Ok(tally) => turn.answer_publish(requester, Ok(tally)),
                    Err(walk) => self.clients.defer_publish(requester, walk.into()),
                };
            }
            ShardCommand::Local(LocalCommand::Deliver(placed)) => {
                let PlacedPublish { publish: Publish { channel, frame, excluded }, position } =
                    &*placed;
                let excluded = excluded.as_deref().map(|excluded| &excluded[..]);
                let frame = frame.clone();
                let done =
                    self.clients.publish(turn, connections, channel, frame, *position, excluded);
                return match done {
                    Ok(tally) => turn.answer_publish(requester, Ok(tally)),
                    Err(walk) => self.clients.defer_publish(requester, walk.into()),
                };
            }
            ShardCommand::Local(LocalCommand::Recover(answer)) => {
                return self.clients.handle_recovery(turn, connections, *answer);
            }
            ShardCommand::Local(LocalCommand::ForUsers(command)) => {
                return self.clients.carry_out_for_users(turn, connections, requester, command);
            }
            ShardCommand::Local(LocalCommand::Join(topic, terms)) => {
                let joined = self.topics.home.join(turn, &topic, requester.backend, &terms);
                joined.map(|()| ClientReply::Done)
            }
            ShardCommand::Local(LocalCommand::Leave(topic)) => {
                let left = self.topics.home.leave(turn, &topic, requester.backend);
                left.map(|()| ClientReply::Done)
            }
            ShardCommand::Local(LocalCommand::Push(push)) => {
                return self.topics.home.handle_push(turn, requester, *push);
            }
            ShardCommand::Local(LocalCommand::Report) => {
                let report =
                    LocalMessage::Report(requester.ticket, Box::new(self.inspect().report()));
                return self.turn.send_local(requester.backend.at.shard, report);
            }
            ShardCommand::Client(ClientCommand::Send(client, frame)) => {
                self.clients.send(turn, connections, client, frame.kind(), frame.payload())
            }
            ShardCommand::Client(ClientCommand::Call(client, function)) => {
                match self.clients.execute(turn, connections, requester, client, &function) {
                    Some(done) => done,
                    None => {
                        if let Some(told) = told {
                            told.tell(turn, &Ok(()));
                        }
                        return;
                    }
                }
            }
        };
        if let Some(told) = told {
            told.tell(turn, &done);
        }
        turn.answer(requester, done);
    }
}

/// Reads a call of the bridge, which has no connection.
///
/// # Errors
/// The text is no call, or the call needs a connection, or is for administration.
pub(super) fn read_bridge_call<'a>(
    parser: &'a mut Parser,
    text: &'a mut [u8],
) -> Result<Call<'a>, Fault> {
    match parser.text_request(text) {
        Ok(request) => request.call.and_then(without_connection),
        Err(NotUtf8) => Err(Fault::new(Code::InvalidArgument, "not valid UTF-8")),
    }
}

/// Checks that a call needs no connection.
///
/// # Errors
/// The call needs one, or is for administration.
fn without_connection(call: Call<'_>) -> Result<Call<'_>, Fault> {
    match call {
        Call::Send(..)
        | Call::Publish(..)
        | Call::MultiPublish(_)
        | Call::Call(..)
        | Call::UserSend(..)
        | Call::UserCall(..)
        | Call::Push(_) => Ok(call),
        _ => {
            let why = "m: expected mesh.send, mesh.publish, conn.call, user.send, user.call or queue.push";
            Err(Fault::new(Code::InvalidArgument, why))
        }
    }
}
