//! Last wills: reports the clients of a lost node as closed.
//!
//! Each shard has a *watcher*, a shard of another node. The shard registers each client there whose
//! end a topic must learn of. If the node is lost, the watcher puts a close event with the reason
//! `node_lost` into the topic for each registered client.
//!
//! A shard selects a watcher by rendezvous hashing and keeps it until it becomes unreachable. Then
//! it selects another one and registers all its clients again. An old watcher may have lost only
//! the link to the shard, and still hold a stale registry. So when a node is declared dead, all
//! watchers that hold a registry of one of its shards exchange their epochs, and the one with the
//! latest epoch reports. If a node that was declared dead comes back, for example because it was
//! frozen, it reports its clients as open again.
//!
//! A client stays registered until its own close event has left the topic: written to a consumer,
//! acknowledged if the consumer acknowledges, or dropped and counted because the topic was full. So
//! if the node is lost together with the event, the end of the client is still reported. If the
//! node is lost after a consumer got the event, and before the watcher is told, the end is reported
//! twice: once by that event and once as `node_lost`.
//!
//! A watcher does not know the contexts of clients: they change with calls of back ends, and each
//! change would cost a message to another node. So a `node_lost` event contains the client's id,
//! but no context.
//!
//! The cost is one small message to the watcher when a client opens and one when it closes, and
//! about 12 bytes of the watcher's memory per client. For each close event in a topic, the client's
//! shard keeps about 40 bytes. If another shard is the home of the topic, it sends a message when
//! the event has left.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::connection::Connections;
use super::turn::{ClientEvent, Turn};
use crate::address::{ClientId, Incarnation, NodeId, ShardAddress, ShardId};
use crate::message::{
    ConnectionKey, Event, GridMessage, LastWillsMessage, REGISTERED_PER_MESSAGE_MAX, WatcherEpoch,
};
use crate::protocol::api;
use crate::protocol::frame::Frame;

/// How long a watcher of a dead node waits for a claim of a later watcher, in milliseconds.
const CLAIM_MS: u64 = 1000;

/// The number of events for lost clients, and for found ones, that one turn creates.
const REPORTED_PER_TURN: usize = 256;

/// The close code of a client whose node is lost: the same as for a broken connection (RFC 6455,
/// section 7.1.5).
const LOST_CODE: u16 = 1006;

/// The close reason of a client whose node is lost.
const LOST_REASON: &str = "node_lost";

/// The clients of this shard that a watcher knows, and the clients of other shards that this shard
/// watches.
#[derive(Debug, Default)]
pub(super) struct LastWills {
    watcher: Option<ShardAddress>,
    // The number of watchers so far, the current one included.
    epoch: WatcherEpoch,
    // Where to go on with registering clients with a new watcher.
    unregistered: Option<Unregistered>,
    // Clients that have ended and whose close event has not left its topic. Bounded by the number
    // of events in topics and of events that wait for room there.
    ended: BTreeMap<ClientId, Arc<str>>,
    // The place in the table of connections from which on clients are to be reported as found.
    unfound: Option<u32>,
    // The clients of each shard that has this one as its watcher.
    watched: BTreeMap<WatchedShard, Registry>,
    // The topics have no room for reports of lost, or found, clients. Credit comes with a message.
    lost_wait: bool,
    found_wait: bool,
    // The number of lost, and found, clients that may still be reported in this turn.
    lost_left: usize,
    found_left: usize,
}

/// The first client that is not registered with a new watcher. Connected clients come first, then
/// those that have ended. So a client that ends in the meantime is not missed.
#[derive(Clone, Copy, Debug)]
enum Unregistered {
    // The place in the table of connections.
    Connected(u32),
    Ended(ClientId),
}

/// A shard that is watched, in one run of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct WatchedShard {
    shard: ShardAddress,
    incarnation: Incarnation,
}

/// The clients that a watched shard has registered.
#[derive(Debug)]
struct Registry {
    // The number of watchers that the shard had, this one included.
    epoch: WatcherEpoch,
    clients: BTreeMap<Arc<str>, BTreeSet<ClientId>>,
    // When the clients are to be reported as lost. None: the node is not dead.
    due_ms: Option<u64>,
}

/// A client and the topic that must learn of its end.
#[derive(Clone, Debug)]
struct Will {
    topic: Arc<str>,
    client: ClientId,
}

impl LastWills {
    /// Begins to report all clients of this shard as found: the grid had declared this node dead.
    pub(super) fn handle_readmitted(&mut self) {
        self.unfound = Some(0);
    }

    /// Returns when the next turn has something to do, in milliseconds of the shard's clock.
    pub(super) fn next_turn(&self, now_ms: u64) -> Option<u64> {
        if self.unregistered.is_some() || (self.unfound.is_some() && !self.found_wait) {
            return Some(0);
        }
        let due = self.watched.values().filter_map(|registry| registry.due_ms);
        due.filter(|due_ms| !self.lost_wait || *due_ms > now_ms).min()
    }

    /// Returns some clients that have ended, and where to go on.
    fn some_ended(&self, from: ClientId) -> (Vec<Will>, Option<Unregistered>) {
        let mut ended = self.ended.range(from..);
        let some = ended.by_ref().take(REGISTERED_PER_MESSAGE_MAX);
        let some = some.map(|(&client, topic)| Will { topic: topic.clone(), client }).collect();
        (some, ended.next().map(|(&client, _)| Unregistered::Ended(client)))
    }

    /// Takes out a client that is due to be reported as lost and whose topic has room, according to
    /// `has_room`.
    fn poll_lost(&mut self, now_ms: u64, has_room: impl Fn(&str) -> bool) -> Option<Will> {
        let due = |registry: &&mut Registry| registry.due_ms.is_some_and(|due_ms| due_ms <= now_ms);
        for registry in self.watched.values_mut().filter(due) {
            for (topic, clients) in &mut registry.clients {
                if has_room(topic)
                    && let Some(client) = clients.pop_first()
                {
                    return Some(Will { topic: topic.clone(), client });
                }
            }
        }
        None
    }

    /// Removes registries whose clients are all reported.
    fn forget_reported(&mut self, now_ms: u64) {
        self.watched.retain(|_, registry| {
            registry.clients.retain(|_, clients| !clients.is_empty());
            !registry.clients.is_empty() || registry.due_ms.is_none_or(|due_ms| due_ms > now_ms)
        });
    }
}

impl LastWills {
    /// Whether a turn has clients to register or to report.
    #[inline]
    pub(super) fn has_work(&self) -> bool {
        self.unregistered.is_some() || self.unfound.is_some() || !self.watched.is_empty()
    }

    /// Registers some more clients with a new watcher. To be called once a turn, before
    /// [`Self::poll_report`].
    pub(super) fn handle_turn(&mut self, turn: &mut Turn, connections: &mut Connections) {
        (self.lost_left, self.found_left) = (REPORTED_PER_TURN, REPORTED_PER_TURN);
        self.found_wait = false;
        self.register_some(turn, connections);
    }

    /// Returns the next event for a lost client, or for a client of this shard that a watcher may
    /// have reported as lost. Only for topics that have room, according to `has_room`.
    pub(super) fn poll_report(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        has_room: impl Fn(&str) -> bool,
    ) -> Option<ClientEvent> {
        let lost = self.poll_lost_report(turn, &has_room);
        lost.or_else(|| self.poll_found_report(turn, connections, &has_room))
    }

    fn poll_lost_report(
        &mut self,
        turn: &mut Turn,
        has_room: impl Fn(&str) -> bool,
    ) -> Option<ClientEvent> {
        if self.watched.is_empty() {
            return None;
        }
        while self.lost_left > 0
            && let Some(Will { topic, client }) = self.poll_lost(turn.now.ms, &has_room)
        {
            self.lost_left -= 1;
            let put = |out: &mut Vec<u8>| api::put_close(out, LOST_CODE, LOST_REASON, None);
            if let Some(frame) = turn.encode_event(&topic, client, put) {
                return Some(ClientEvent { topic, event: unwatched(client, frame), from: None });
            }
        }
        self.lost_wait = self.lost_left > 0;
        self.forget_reported(turn.now.ms);
        None
    }

    fn poll_found_report(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        has_room: impl Fn(&str) -> bool,
    ) -> Option<ClientEvent> {
        while self.found_left > 0
            && let Some(from) = self.unfound
        {
            self.found_left -= 1;
            let (keys, next) = connections.keys(from, 1);
            let key = keys.first().copied();
            let found = key.and_then(|key| Some((key, will_of(turn, connections, key)?)));
            let Some((key, Will { topic, client })) = found else {
                self.unfound = next;
                continue;
            };
            if !has_room(&topic) {
                (self.unfound, self.found_wait) = (Some(key.index), true);
                return None;
            }
            self.unfound = next;
            if let Some(event) = found_event(turn, connections, key, &topic, client) {
                return Some(ClientEvent { topic, event, from: None });
            }
        }
        None
    }

    /// Handles a node that has become reachable. If it was restarted, its earlier run is lost.
    pub(super) fn handle_node_up(
        &mut self,
        turn: &mut Turn,
        node: NodeId,
        incarnation: Incarnation,
    ) {
        // The node has not registered clients over this link yet: what is registered is stale.
        self.watched.retain(|of, _| of.shard.node != node || of.incarnation != incarnation);
        self.find_dead(turn, |of| of.shard.node == node);
        if self.watcher.is_none() {
            self.choose_watcher(turn);
        }
    }

    /// Handles a node that has become unreachable: selects another watcher if it was on that node.
    pub(super) fn handle_node_down(&mut self, turn: &mut Turn, node: NodeId) {
        if self.watcher.is_some_and(|watcher| watcher.node == node) {
            self.choose_watcher(turn);
        }
    }

    /// Selects a watcher by rendezvous hashing and begins to register all clients.
    fn choose_watcher(&mut self, turn: &mut Turn) {
        let rank = |node: &NodeId| {
            let mut hasher = DefaultHasher::new();
            (node.number(), turn.address.node.number(), turn.address.shard.0).hash(&mut hasher);
            hasher.finish()
        };
        let best = turn.roster.others().into_iter().max_by_key(rank);
        self.watcher = best.and_then(|node| watcher_on(turn, turn.address.shard, node));
        self.unregistered = self.watcher.map(|_| Unregistered::Connected(0));
        self.epoch.0 += 1;
        self.tell_watcher(turn, LastWillsMessage::Begin(self.epoch));
    }

    fn tell_watcher(&mut self, turn: &mut Turn, message: LastWillsMessage) {
        if let Some(watcher) = self.watcher {
            let owner = turn.address;
            turn.send_grid(watcher, GridMessage::LastWills(owner, message));
        }
    }

    /// Registers a client that has opened.
    pub(super) fn register(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
    ) {
        let will = will_of(turn, connections, key);
        if let Some(Will { topic, client }) = will.filter(|_| self.is_registered(key)) {
            self.tell_watcher(turn, LastWillsMessage::Register(topic, vec![client]));
        }
    }

    /// Keeps a client registered that has ended, until [`Self::unregister`].
    pub(super) fn keep(&mut self, turn: &Turn, topic: &Arc<str>, client: ClientId) {
        if turn.settings.has_mesh {
            self.ended.insert(client, topic.clone());
        }
    }

    /// Ends the registration of a client: its close event has left the topic, or cannot be put
    /// there.
    pub(super) fn unregister(&mut self, turn: &mut Turn, topic: &Arc<str>, client: ClientId) {
        if self.ended.remove(&client).is_some() {
            self.tell_watcher(turn, LastWillsMessage::Unregister(topic.clone(), client));
        }
    }

    /// Whether the watcher has been told of the clients at the place of a connection. If not,
    /// [`Self::register_some`] will tell it.
    fn is_registered(&self, key: ConnectionKey) -> bool {
        self.watcher.is_some()
            && !matches!(self.unregistered, Some(Unregistered::Connected(from)) if from <= key.index)
    }

    /// Registers some more clients with a new watcher.
    fn register_some(&mut self, turn: &mut Turn, connections: &mut Connections) {
        let Some(unregistered) = self.unregistered else { return };
        let (some, next) = match unregistered {
            Unregistered::Connected(from) => self.some_connected(turn, connections, from),
            Unregistered::Ended(from) => self.some_ended(from),
        };
        self.unregistered = next;
        let mut clients: BTreeMap<Arc<str>, Vec<ClientId>> = BTreeMap::new();
        for Will { topic, client } in some {
            clients.entry(topic).or_default().push(client);
        }
        for (topic, clients) in clients {
            self.tell_watcher(turn, LastWillsMessage::Register(topic, clients));
        }
    }

    /// Returns some connected clients, and where to go on.
    fn some_connected(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        from: u32,
    ) -> (Vec<Will>, Option<Unregistered>) {
        let (keys, next) = connections.keys(from, REGISTERED_PER_MESSAGE_MAX);
        let some = keys.into_iter().filter_map(|key| will_of(turn, connections, key)).collect();
        (
            some,
            Some(
                next.map_or(Unregistered::Ended(ClientId::from_value(0)), Unregistered::Connected),
            ),
        )
    }

    /// Handles a message about the clients of `owner`: from that shard to its watcher, or between
    /// watchers.
    pub(super) fn handle_message(
        &mut self,
        turn: &mut Turn,
        from: ShardAddress,
        owner: ShardAddress,
        message: LastWillsMessage,
    ) {
        match message {
            LastWillsMessage::Begin(epoch) => {
                let Some(incarnation) = turn.roster.incarnation_of(from.node) else { return };
                let registry = Registry { epoch, clients: BTreeMap::new(), due_ms: None };
                self.watched.insert(WatchedShard { shard: from, incarnation }, registry);
            }
            LastWillsMessage::Register(topic, clients) => {
                if let Some(registry) = self.registry_of(turn, from) {
                    registry.clients.entry(topic).or_default().extend(clients);
                }
            }
            LastWillsMessage::Unregister(topic, client) => {
                let registry = self.registry_of(turn, from);
                if let Some(clients) = registry.and_then(|all| all.clients.get_mut(&topic)) {
                    clients.remove(&client);
                }
            }
            LastWillsMessage::Claim { incarnation, epoch } => {
                let of = WatchedShard { shard: owner, incarnation };
                let Some(registry) = self.watched.get(&of) else { return };
                let ours = registry.epoch;
                if ours < epoch {
                    self.watched.remove(&of);
                } else {
                    let claim = LastWillsMessage::Claim { incarnation, epoch: ours };
                    turn.send_grid(from, GridMessage::LastWills(owner, claim));
                }
            }
        }
    }

    /// Returns the registry of a reachable shard.
    fn registry_of(&mut self, turn: &Turn, owner: ShardAddress) -> Option<&mut Registry> {
        let incarnation = turn.roster.incarnation_of(owner.node)?;
        self.watched.get_mut(&WatchedShard { shard: owner, incarnation })
    }

    /// Handles that the grid has declared a run of a node dead.
    pub(super) fn handle_node_dead(
        &mut self,
        turn: &mut Turn,
        node: NodeId,
        incarnation: Incarnation,
    ) {
        self.find_dead(turn, |of| of.shard.node == node && of.incarnation == incarnation);
    }

    /// Begins to report the clients of dead shards, unless a later watcher claims them within
    /// [`CLAIM_MS`].
    fn find_dead(&mut self, turn: &mut Turn, is_dead: impl Fn(WatchedShard) -> bool) {
        let due_ms = turn.now.ms + CLAIM_MS;
        let mut claims = Vec::new();
        for (&of, registry) in &mut self.watched {
            if is_dead(of) && registry.due_ms.is_none() {
                registry.due_ms = Some(due_ms);
                claims.push((of, registry.epoch));
            }
        }
        for (WatchedShard { shard: owner, incarnation }, epoch) in claims {
            for node in turn.roster.others() {
                if let Some(to) = watcher_on(turn, owner.shard, node) {
                    let claim = LastWillsMessage::Claim { incarnation, epoch };
                    turn.send_grid(to, GridMessage::LastWills(owner, claim));
                }
            }
        }
    }
}

/// Returns the shard of a node that would be the watcher of a shard with this number on another
/// node.
fn watcher_on(turn: &Turn, shard: ShardId, node: NodeId) -> Option<ShardAddress> {
    let shards = turn.roster.shard_count(node)?;
    Some(ShardAddress { node, shard: ShardId((shard.index() % shards) as u8) })
}

/// Returns the will of the client on a connection; `None` if its route tells no topic of its end.
fn will_of(turn: &Turn, connections: &mut Connections, key: ConnectionKey) -> Option<Will> {
    let connection = connections.get(key)?;
    let route = connection.route(&turn.settings)?;
    let topic = route.topic.as_ref().filter(|_| route.tells_close)?;
    Some(Will { topic: topic.clone(), client: connection.client()?.id })
}

/// Returns the event that reports a client as found; `None` if its route has no open events.
fn found_event(
    turn: &mut Turn,
    connections: &mut Connections,
    key: ConnectionKey,
    topic: &Arc<str>,
    id: ClientId,
) -> Option<Event> {
    let connection = connections.get(key)?;
    let tells_open = connection.route(&turn.settings)?.tells_open;
    let remote = connection.remote;
    let client = connection.client().filter(|_| tells_open)?;
    let frame =
        turn.encode_event(topic, id, |out| api::put_found(out, remote, client.context.json()))?;
    Some(unwatched(id, frame))
}

/// Returns an event whose client is not watched while it is in the topic.
fn unwatched(client: ClientId, frame: Frame) -> Event {
    Event::new(client, frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{FromShard, ToMesh};
    use crate::shard::fixture::{self, TOPIC};

    /// When the other node was started.
    const INCARNATION: Incarnation = Incarnation(5);

    fn client(number: u64) -> ClientId {
        ClientId::from_value(number)
    }

    /// The only shard of the other node.
    fn other() -> ShardAddress {
        ShardAddress { node: NodeId::new(2).expect("2 is a node id"), shard: ShardId(0) }
    }

    /// A turn of a shard that reaches the other node.
    fn turn() -> Turn {
        let mut settings = fixture::settings();
        settings.has_mesh = true;
        let mut turn = fixture::turn(settings);
        turn.roster.add(other().node, 1, INCARNATION);
        turn
    }

    /// Takes out what this shard tells its watcher, which is on the other node.
    fn told(turn: &mut Turn) -> Vec<LastWillsMessage> {
        let own = turn.address;
        let told = fixture::messages(turn).into_iter().map(|message| match message {
            FromShard::Mesh(ToMesh::Grid(to, GridMessage::LastWills(owner, message)))
                if to == other() && owner == own =>
            {
                message
            }
            message => panic!("{message:?}"),
        });
        told.collect()
    }

    #[test]
    fn a_client_is_registered_with_a_watcher_until_its_close_event_has_left_the_topic() {
        let (mut turn, mut connections) = (turn(), Connections::default());
        let (mut wills, topic) = (LastWills::default(), Arc::from(TOPIC));
        fixture::client(&mut turn, &mut connections, client(1));
        wills.handle_node_up(&mut turn, other().node, INCARNATION);
        assert!(matches!(told(&mut turn)[..], [LastWillsMessage::Begin(WatcherEpoch(1))]));
        while wills.has_work() {
            wills.handle_turn(&mut turn, &mut connections);
        }
        let [LastWillsMessage::Register(_, ref first)] = told(&mut turn)[..] else { panic!() };
        assert_eq!(first[..], [client(1)]);

        let key = fixture::client(&mut turn, &mut connections, client(2));
        wills.register(&mut turn, &mut connections, key);
        let [LastWillsMessage::Register(_, ref second)] = told(&mut turn)[..] else { panic!() };
        assert_eq!(second[..], [client(2)]);
        wills.keep(&turn, &topic, client(2));
        assert!(told(&mut turn).is_empty(), "the close event is still in the topic");
        wills.unregister(&mut turn, &topic, client(2));
        let [LastWillsMessage::Unregister(_, removed)] = told(&mut turn)[..] else { panic!() };
        assert_eq!(removed, client(2));
    }

    #[test]
    fn the_clients_of_a_dead_node_are_reported_once_and_only_those_still_registered() {
        let (mut turn, mut connections) = (turn(), Connections::default());
        let (mut wills, topic): (_, Arc<str>) = (LastWills::default(), TOPIC.into());
        for message in [
            LastWillsMessage::Begin(WatcherEpoch(1)),
            LastWillsMessage::Register(topic.clone(), vec![client(1), client(2), client(3)]),
            LastWillsMessage::Unregister(topic.clone(), client(2)),
        ] {
            wills.handle_message(&mut turn, other(), other(), message);
        }
        let mut reported = |turn: &mut Turn, wills: &mut LastWills, has_room: bool| {
            wills.handle_turn(turn, &mut connections);
            let report = || wills.poll_report(turn, &mut connections, |_| has_room);
            std::iter::from_fn(report)
                .map(|report| (report.event.client, report.event.frame))
                .collect::<Vec<_>>()
        };
        assert!(reported(&mut turn, &mut wills, true).is_empty(), "the node is alive");
        turn.roster.remove(other().node);
        wills.handle_node_dead(&mut turn, other().node, INCARNATION);
        assert!(reported(&mut turn, &mut wills, true).is_empty(), "a later watcher may claim them");
        turn.now.ms += CLAIM_MS;
        assert!(reported(&mut turn, &mut wills, false).is_empty(), "the topic has no room");
        let reports = reported(&mut turn, &mut wills, true);
        let clients: Vec<_> = reports.iter().map(|(client, _)| *client).collect();
        assert_eq!(clients, [client(1), client(3)]);
        for (_, frame) in &reports {
            assert!(String::from_utf8_lossy(frame.bytes()).contains(LOST_REASON));
        }
        assert!(reported(&mut turn, &mut wills, true).is_empty() && !wills.has_work());
    }
}
