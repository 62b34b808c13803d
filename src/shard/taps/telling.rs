//! Events that the parts of a shard report to the taps. Work that no tap watches does not get here: a
//! caller first asks `Connection::is_tapped`, `Connection::is_observed` or `WatchedTaps::is_active`.

use super::watched::{Subject, TapSet};
use crate::address::remote::Remote;
use crate::address::{ClientId, ShardAddress};
use crate::message::{ClientCommand, ConnectionKey, GridMessage, Requester};
use crate::protocol::api::{self, Call, Fault, TapEvent, TapHead, TapTarget};
use crate::shard::connection::{Connection, Listener};
use crate::shard::trail::{self, ShownFunction};
use crate::shard::turn::Turn;

/// The most bytes of a user's name that are told to other shards.
const CALLER_BYTES_MAX: usize = 255;

impl Turn {
    /// Tells these taps what happened to a client, or to no client alone.
    fn tap(&mut self, taps: TapSet, client: Option<ClientId>, event: TapEvent<'_>) {
        let head = TapHead { unix_ms: self.now.unix_ms, node: self.address.node, client };
        self.taps.tell(self.now.ms, taps, || api::tap_frame(head, event));
        self.send_to_tappers();
    }

    /// Tells the taps that match a client what happened to it.
    #[cold]
    #[inline(never)]
    pub fn tap_client(&mut self, connection: &Connection, event: TapEvent<'_>) {
        if let Some((client, taps)) = connection.tapped() {
            self.tap(taps, Some(client), event);
        }
    }

    /// Notes a message of a client, or one to it, for those that observe the client: the access log and
    /// taps. Called only if [`Connection::is_observed`].
    #[cold]
    #[inline(never)]
    pub fn observe_message(&mut self, connection: &mut Connection, event: TapEvent<'_>) {
        connection.record_client_message(&event);
        if connection.is_tapped() {
            self.tap_client(connection, event);
        }
    }

    /// Sends what there is to send to tappers.
    pub(super) fn send_to_tappers(&mut self) {
        while let Some((tapper, message)) = self.taps.poll_message() {
            self.send_grid(tapper.at, GridMessage::ToTapper(tapper, message));
        }
    }

    /// Tells taps that a connection of a device was refused, with a status or without an answer. Back ends
    /// are not told of.
    #[cold]
    #[inline(never)]
    pub fn tap_refusal(
        &mut self,
        key: ConnectionKey,
        listener: Listener,
        remote: Remote,
        status: Option<u16>,
        why: &str,
    ) {
        let Listener::Edge(edge) = listener else { return };
        let (path, user) = self.taps.take_request(key);
        let routes = &self.settings.edges[usize::from(edge)].routes;
        let route = routes.iter().find(|route| path.as_deref() == Some(&route.path[..]));
        let taps = self.taps.matching(&Subject {
            client: None,
            user: user.as_deref(),
            topic: route.and_then(|route| route.topic.as_deref()),
            address: remote.ip(),
            is_in: &|_| false,
        });
        let (path, user) = (path.as_deref(), user.as_deref());
        self.tap(taps, None, TapEvent::Refuse { status, why, remote, user, path });
    }

    /// Tells the taps of a channel, of topics, or of a user, of a call that names them. A call for one
    /// client is told by the shard that holds the client: see [`ClientCall`].
    #[cold]
    #[inline(never)]
    pub fn tap_call(&mut self, user: Option<usize>, call: &Call<'_>) {
        let taps = match call {
            Call::Publish(channel, _) => self.taps.of_channel(|name| name == *channel),
            Call::MultiPublish(publish) => {
                self.taps.of_channel(|name| publish.channels.contains(&name))
            }
            Call::Pop(topics, ..) => self.taps.of_topic(|name| topics.contains(&name)),
            Call::Take(take) => self.taps.of_topic(|name| take.topics.contains(&name)),
            Call::Push(event) => self.taps.of_topic(|name| *name == *event.topic),
            Call::UserSend(users, _) | Call::UserCall(users, _) => self.taps.of_target(
                |target| matches!(target, TapTarget::User(name) if users.contains(name)),
            ),
            _ => return,
        };
        if taps.is_empty() {
            return;
        }
        let (method, arguments) = match call {
            Call::Publish(channel, _) => ("mesh.publish", trail::listed(&[channel])),
            Call::MultiPublish(publish) => ("mesh.publish", trail::listed(&publish.channels)),
            Call::Pop(topics, ..) => ("queue.pop", trail::listed(topics)),
            Call::Take(take) => ("queue.take", trail::listed(&take.topics)),
            Call::Push(event) => ("queue.push", trail::listed(&[event.topic])),
            Call::UserSend(users, _) => ("user.send", trail::listed(users)),
            Call::UserCall(users, _) => ("user.call", trail::listed(users)),
            _ => return,
        };
        let by = self.shown_user(user);
        let (by, arguments) = (by.as_deref(), &arguments[..]);
        self.tap(taps, None, TapEvent::Call { method, arguments, by, outcome: None });
    }

    /// Tells another shard, ahead of a call for one of its clients, which user makes the call.
    #[cold]
    #[inline(never)]
    pub fn tap_caller(&mut self, to: ShardAddress, requester: Requester, user: Option<usize>) {
        if let Some(user) = self.shown_user(user) {
            self.send_grid(to, GridMessage::Caller(requester, user));
        }
    }

    /// Returns the name of a user. `None` if no users are configured.
    fn shown_user(&self, user: Option<usize>) -> Option<Box<str>> {
        let name = self.user_name(user);
        let name = &name[..name.floor_char_boundary(CALLER_BYTES_MAX)];
        (!name.is_empty()).then(|| name.into())
    }
}

/// A call for one client, on the shard that holds the client, to be told once it is carried out.
pub(in crate::shard) struct ClientCall {
    client: ClientId,
    taps: TapSet,
    method: &'static str,
    arguments: String,
    by: Option<Box<str>>,
}

impl ClientCall {
    /// Notes a call of a back end of any shard. `watching` are the taps that match the client. `None`: no
    /// tap is told of the call.
    #[cold]
    #[inline(never)]
    pub(in crate::shard) fn new(
        turn: &mut Turn,
        requester: Requester,
        command: &ClientCommand,
        watching: TapSet,
    ) -> Option<Self> {
        let by = turn.taps.take_caller(requester);
        let client = command.client();
        let ClientCommand::Call(_, function) = command else {
            return Self::send(turn, client, by, watching);
        };
        let taps = watching.joined(turn.taps.of_target(|target| match target {
            TapTarget::Client(known) => *known == client,
            TapTarget::Channel(name) => function.subscribes_to(name),
            _ => false,
        }));
        (!taps.is_empty()).then(|| {
            let arguments = ShownFunction(function).to_string();
            Self { client, taps, method: "conn.call", arguments, by }
        })
    }

    /// Notes a `mesh.send` of a back end of this shard.
    #[cold]
    #[inline(never)]
    pub(in crate::shard) fn own_send(
        turn: &Turn,
        client: ClientId,
        user: Option<usize>,
        watching: TapSet,
    ) -> Option<Self> {
        Self::send(turn, client, turn.shown_user(user), watching)
    }

    fn send(turn: &Turn, client: ClientId, by: Option<Box<str>>, watching: TapSet) -> Option<Self> {
        let is_of =
            |target: &TapTarget| matches!(target, TapTarget::Client(known) if *known == client);
        let taps = watching.joined(turn.taps.of_target(is_of));
        let call = Self { client, taps, method: "mesh.send", arguments: String::new(), by };
        (!taps.is_empty()).then_some(call)
    }

    /// Tells the taps of the call and of its outcome.
    pub(in crate::shard) fn tell<T>(self, turn: &mut Turn, outcome: &Result<T, Fault>) {
        let Self { client, taps, method, arguments, by } = self;
        let outcome = Some(outcome.as_ref().map(|_| ()));
        let (arguments, by) = (&arguments[..], by.as_deref());
        turn.tap(taps, Some(client), TapEvent::Call { method, arguments, by, outcome });
    }
}
