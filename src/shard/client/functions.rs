//! Commands of back ends for one client: messages, and functions called on it.

use super::Clients;
use super::context::{Context, TooLarge};
use super::presence::member_of;
use super::user_index::UserIndex;
use crate::address::ClientId;
use crate::message::{ClientReply, ConnectionKey, Requester};
use crate::protocol::api::{self, Code, Fault, Function, Info, MessageOrigin, TapEvent};
use crate::protocol::frame::Kind;
use crate::shard::connection::{Connection, Connections, Pause, Phase};
use crate::shard::memory::Shortage;
use crate::shard::trail::{self, By, Entry};
use crate::shard::turn::{Step, Turn};

impl Clients {
    /// Appends a message to a client's outbound queue.
    ///
    /// # Errors
    /// The client is not on this shard, it is closing, or its queue is full.
    pub(crate) fn send(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        client: ClientId,
        kind: Kind,
        payload: &[u8],
    ) -> Result<ClientReply, Fault> {
        let fault = |message| Err(Fault::new(Code::SendFailed, message));
        let Some(&key) = self.by_id.get(&client) else { return fault("no such client") };
        let Some(connection) = connections.get(key) else { return fault("no such client") };
        if connection.phase != Phase::Open {
            return fault("the client is closing");
        }
        if connection.outbound.is_in_flight() && turn.is_short(Shortage::Frames) {
            turn.counters.failed += 1;
            turn.counters.note_shed_frames(1);
            return fault(
                "the node is short of memory, and the client has not read what it was sent",
            );
        }
        let form = connection.form;
        let (as_sent, message) = match form.is_enveloped() {
            false => (kind, payload),
            true => {
                self.envelope.clear();
                let origin = MessageOrigin::default();
                api::put_device_message(&mut self.envelope, origin, kind, payload);
                (Kind::Text, &self.envelope[..])
            }
        };
        let body = self.deflater.body(form.window(), as_sent, message);
        let bytes = body.frame_bytes();
        if connection.has_room_for(bytes) {
            connection.outbound.push_with(&mut turn.buffer_pool, |out| body.put(out));
            turn.counters.note_compression(message.len() - body.bytes.len());
            turn.counters.delivered += 1;
            if connection.is_observed() {
                turn.observe_message(connection, TapEvent::Out(kind, payload));
            }
            connections.queue_write(key);
            return Ok(ClientReply::Done);
        }
        let is_too_slow = connection.is_too_slow_for(bytes);
        turn.counters.failed += 1;
        turn.counters.limits.outbound_bytes += 1;
        if is_too_slow && turn.settings.limits.close_slow_clients {
            connections.close_slow(turn, key);
        }
        fault("the client's outbound buffer is full")
    }

    /// Calls a function on a client. Returns `None` if the answer follows later, once every node
    /// knows of a newly subscribed channel.
    pub(crate) fn execute(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        requester: Requester,
        client: ClientId,
        function: &Function,
    ) -> Option<Result<ClientReply, Fault>> {
        let Some(&key) = self.by_id.get(&client) else { return Some(Err(no_such_client())) };
        trail::note(turn.trail(key), Entry::Function(client, function));
        let done = self.apply(turn, connections, key, function);
        match function {
            Function::Subscribe(channels)
                if done.is_ok() && self.answer_when_known(requester, channels) =>
            {
                None
            }
            _ => Some(done),
        }
    }

    /// Calls a function on the client of a connection. Other nodes may not know yet of a channel that it
    /// subscribes to.
    pub(super) fn apply(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        function: &Function,
    ) -> Result<ClientReply, Fault> {
        if turn.taps.is_active() {
            turn.push_step(Step::ClientChanged(key));
        }
        let may_change_user = self.has_presence()
            && matches!(function, Function::SetContextValue(..) | Function::SetContext(_));
        let before = match may_change_user {
            true => connections.get(key).and_then(Connection::client).and_then(|it| member_of(it)),
            false => None,
        };
        let users = &mut self.users;
        let done = match function {
            Function::SetContextValue(name, value) => {
                let (name, value) = (name.clone(), value.clone());
                change_context(users, turn, connections, key, |context| context.set(name, value))
            }
            Function::SetContext(entries) => {
                let entries = entries.clone();
                change_context(users, turn, connections, key, |context| context.replace(entries))
            }
            Function::Subscribe(channels) => self.subscribe(turn, connections, key, channels),
            Function::Unsubscribe(channels) => {
                self.unsubscribe(turn, connections, key, channels);
                Ok(ClientReply::Done)
            }
            Function::Close(code, reason) => {
                connections.close_for(turn, key, *code, reason, By::Backend);
                Ok(ClientReply::Done)
            }
            Function::GetContext => {
                let client = connections.get(key).and_then(Connection::client);
                let json = client.and_then(|client| client.context.json().map(str::to_owned));
                Ok(ClientReply::Context(json.unwrap_or_else(|| "{}".into())))
            }
            Function::Info => self.info(turn, connections, key).ok_or_else(no_such_client),
        };
        if may_change_user {
            self.change_user(turn, connections, key, before);
        }
        done
    }

    fn info(
        &self,
        turn: &Turn,
        connections: &mut Connections,
        key: ConnectionKey,
    ) -> Option<ClientReply> {
        let node = turn.settings.node;
        let connection = connections.get(key)?;
        let (remote, since_ms) = (connection.remote, connection.since_ms);
        let buffered = connection.outbound.buffered() as u64;
        let subscriptions = &connection.client()?.subscriptions;
        let mut channels: Vec<Box<str>> =
            subscriptions.iter().map(|s| self.channels.name(s.channel).into()).collect();
        channels.sort_unstable();
        Some(ClientReply::Info(Box::new(Info { node, remote, since_ms, channels, buffered })))
    }
}

/// Changes a client's context, and with it the client's user. Resumes reading if the client was held for a key that is
/// set now.
pub(super) fn change_context(
    users: &mut UserIndex,
    turn: &mut Turn,
    connections: &mut Connections,
    key: ConnectionKey,
    change: impl FnOnce(&mut Context) -> Result<(), TooLarge>,
) -> Result<ClientReply, Fault> {
    let connection = connections.get(key).ok_or_else(no_such_client)?;
    let route = connection.route(&turn.settings).cloned().unwrap_or_default();
    let client = connection.client().ok_or_else(no_such_client)?;
    let before = users.hash_of(&client.context);
    if change(&mut client.context).is_err() {
        turn.counters.limits.context += 1;
        let why = "the context would be over 256 keys or 64 KiB";
        return Err(Fault::new(Code::ExecutionFailed, why));
    }
    let after = users.hash_of(&client.context);
    if before != after {
        users.remove(before, key.index);
        users.insert(after, key.index);
    }
    if !client.is_held(&route) {
        connections.unpause(turn, key, Pause::Hold);
    }
    Ok(ClientReply::Done)
}

/// Returns the fault for a call to a client that is not on this shard.
pub(super) fn no_such_client() -> Fault {
    Fault::new(Code::ExecutionFailed, "no such client")
}
