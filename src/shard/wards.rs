//! The clients of a lost node. Each shard names those whose end a topic is to hear of to a guardian, a
//! shard of another node; if the node is lost, its guardians report their end.
//!
//! A guardian is chosen when a shard has none, by rendezvous hashing, and stays until it is out of
//! reach: then another is told all anew. It may have lost its ward's link only, and hold a list that is
//! old: so when a node is given up, all who hold a list of it say which they were, and the last one
//! reports. A node that was given up and comes back, from a freeze, say, reports its clients as open.
//!
//! That a client is gone the guardian hears when its `close` event has left the topic for good:
//! written to a consumer, acknowledged if that acknowledges, or lost, and counted, for want of room. So
//! if the node is lost with the event, the end of the client is reported all the same. If it is lost
//! between a consumer's getting the event and the guardian's hearing of it, that end is reported twice,
//! once as itself and once as lost: better than never.
//!
//! A guardian knows no contexts: they change with each call of a back end, and each change would cost a
//! message to another node. So `node_lost` says which client it was, and nothing else.
//!
//! This costs one small message to the guardian per client that comes and per one that goes, and there
//! about 12 bytes of memory per client. For each close event that waits its client's shard keeps about
//! 40 bytes; if the topic lives on another shard, that sends it a message when the event has left.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::connection::Connections;
use super::turn::{ClientEvent, Turn};
use crate::address::{ClientId, NodeId, ShardAddress, ShardId};
use crate::message::{ConnectionKey, Event, Message, Party, WARDS_AT_ONCE, WardsMessage};
use crate::protocol::api;
use crate::protocol::frame::Frame;

/// How long those who hold a list of a dead node wait for one who was its guardian later.
const CLAIM_MS: u64 = 1000;

/// Events of lost and found clients per turn.
const REPORTED_PER_TURN: usize = 256;

/// Of a client whose node is lost, as of one whose connection broke (RFC 6455, section 7.1.5).
const LOST: (u16, &str) = (1006, "node_lost");

/// What a shard has told its guardian, and what others have told it.
#[derive(Debug, Default)]
pub struct Wards {
    guardian: Option<ShardAddress>,
    // How many guardians there were, this one included.
    epoch: u64,
    // Who is still to be named.
    unnamed: Option<Unnamed>,
    // Clients that are gone and whose close event has not left its topic: no more of them than of
    // events in topics, or waiting for room there.
    ended: BTreeMap<ClientId, Arc<str>>,
    // The place in the table of connections from which on clients are to be reported as found.
    unfound: Option<u32>,
    // By shard, and when its node was started.
    guarded: BTreeMap<(ShardAddress, u64), List>,
    // Reports wait for credit, which comes with a message: of lost clients, of found ones.
    lost_wait: bool,
    found_wait: bool,
    // How many may still be reported in this turn, of each.
    lost_left: usize,
    found_left: usize,
}

/// From which on clients are still to be named to a new guardian.
#[derive(Clone, Copy, Debug)]
enum Unnamed {
    // By place in the table of connections, and then all that ended: who ends meanwhile is among these.
    Connected(u32),
    Ended(ClientId),
}

/// What a shard of another node has told us.
#[derive(Debug)]
struct List {
    epoch: u64,
    clients: BTreeMap<Arc<str>, BTreeSet<ClientId>>,
    // The node is dead: from then on its clients are reported.
    due_ms: Option<u64>,
}

impl Wards {
    /// The grid had given this node up: all clients are to be reported as found.
    pub fn handle_given_up(&mut self) {
        self.unfound = Some(0);
    }

    /// When there is something to do.
    pub fn next_turn(&self, now_ms: u64) -> Option<u64> {
        if self.unnamed.is_some() || (self.unfound.is_some() && !self.found_wait) {
            return Some(0);
        }
        let due = self.guarded.values().filter_map(|list| list.due_ms);
        due.filter(|due_ms| !self.lost_wait || *due_ms > now_ms).min()
    }

    /// Some of those that ended, and who is to be named next.
    fn some_ended(&self, from: ClientId) -> (Vec<(Arc<str>, ClientId)>, Option<Unnamed>) {
        let mut ended = self.ended.range(from..);
        let some = ended.by_ref().take(WARDS_AT_ONCE);
        let some = some.map(|(&client, topic)| (topic.clone(), client)).collect();
        (some, ended.next().map(|(&client, _)| Unnamed::Ended(client)))
    }

    /// A client to report that its topic has room for, as far as is known.
    fn poll_lost(
        &mut self,
        now_ms: u64,
        has_room: impl Fn(&str) -> bool,
    ) -> Option<(Arc<str>, ClientId)> {
        let due = |list: &&mut List| list.due_ms.is_some_and(|due_ms| due_ms <= now_ms);
        for list in self.guarded.values_mut().filter(due) {
            for (topic, clients) in &mut list.clients {
                if has_room(topic)
                    && let Some(client) = clients.pop_first()
                {
                    return Some((topic.clone(), client));
                }
            }
        }
        None
    }

    fn forget_reported(&mut self, now_ms: u64) {
        self.guarded.retain(|_, list| {
            list.clients.retain(|_, clients| !clients.is_empty());
            !list.clients.is_empty() || list.due_ms.is_none_or(|due_ms| due_ms > now_ms)
        });
    }
}

impl Wards {
    /// Whether a turn has clients to name or to report.
    #[inline]
    pub fn has_work(&self) -> bool {
        self.unnamed.is_some() || self.unfound.is_some() || !self.guarded.is_empty()
    }

    /// Names some more clients to a new guardian. To be called once a turn, before
    /// [`Self::poll_report`].
    pub fn handle_turn(&mut self, turn: &mut Turn, connections: &mut Connections) {
        (self.lost_left, self.found_left) = (REPORTED_PER_TURN, REPORTED_PER_TURN);
        self.found_wait = false;
        self.name_wards(turn, connections);
    }

    /// The next event about a client that was lost, or that others may have reported as lost, for a topic
    /// that has room as far as `has_room` knows.
    pub fn poll_report(
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
        if self.guarded.is_empty() {
            return None;
        }
        while self.lost_left > 0
            && let Some((topic, client)) = self.poll_lost(turn.now.ms, &has_room)
        {
            self.lost_left -= 1;
            let (code, reason) = LOST;
            let put = |out: &mut Vec<u8>| api::put_close(out, code, reason, None);
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
            let ward = key.and_then(|key| Some((key, ward_at(turn, connections, key)?)));
            let Some((key, (topic, client))) = ward else {
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

    /// A node is within reach, and so not lost; if it began anew, what it was is.
    pub fn guard_node(&mut self, turn: &mut Turn, node: NodeId, incarnation: u64) {
        // It has told us nothing since: what we know is old.
        self.guarded.retain(|(owner, of), _| owner.node != node || *of != incarnation);
        self.find_dead(turn, |owner, _| owner.node == node);
        if self.guardian.is_none() {
            self.choose_guardian(turn);
        }
    }

    /// A node is out of reach: another one is to guard our clients.
    pub fn miss_guardian(&mut self, turn: &mut Turn, node: NodeId) {
        if self.guardian.is_some_and(|guardian| guardian.node == node) {
            self.choose_guardian(turn);
        }
    }

    fn choose_guardian(&mut self, turn: &mut Turn) {
        let rank = |node: &NodeId| {
            let mut hasher = DefaultHasher::new();
            (node.number(), turn.address.node.number(), turn.address.shard.0).hash(&mut hasher);
            hasher.finish()
        };
        let best = turn.roster.others().into_iter().max_by_key(rank);
        self.guardian = best.and_then(|node| stand_in(turn, turn.address.shard, node));
        self.unnamed = self.guardian.map(|_| Unnamed::Connected(0));
        self.epoch += 1;
        self.tell_guardian(turn, WardsMessage::Begin(self.epoch));
    }

    fn tell_guardian(&mut self, turn: &mut Turn, message: WardsMessage) {
        if let Some(guardian) = self.guardian {
            let owner = turn.address;
            turn.send(Party::Shard(guardian), Message::Wards(owner, message));
        }
    }

    /// A client is there.
    pub fn name_ward(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
    ) {
        if let Some((topic, client)) =
            ward_at(turn, connections, key).filter(|_| self.is_named(key))
        {
            self.tell_guardian(turn, WardsMessage::Add(topic, vec![client]));
        }
    }

    /// A client is gone: the guardian stands in for its close event, until [`Self::unname_ward`].
    pub fn keep_ward(&mut self, turn: &Turn, topic: &Arc<str>, client: ClientId) {
        if turn.settings.has_mesh {
            self.ended.insert(client, topic.clone());
        }
    }

    /// The close event of a client has left its topic for good, or cannot get there.
    pub fn unname_ward(&mut self, turn: &mut Turn, topic: &Arc<str>, client: ClientId) {
        if self.ended.remove(&client).is_some() {
            self.tell_guardian(turn, WardsMessage::Remove(topic.clone(), client));
        }
    }

    fn is_named(&self, key: ConnectionKey) -> bool {
        self.guardian.is_some()
            && !matches!(self.unnamed, Some(Unnamed::Connected(from)) if from <= key.index)
    }

    /// Names some more clients to a new guardian.
    pub fn name_wards(&mut self, turn: &mut Turn, connections: &mut Connections) {
        let Some(unnamed) = self.unnamed else { return };
        let (some, next) = match unnamed {
            Unnamed::Connected(from) => self.some_connected(turn, connections, from),
            Unnamed::Ended(from) => self.some_ended(from),
        };
        self.unnamed = next;
        let mut clients: BTreeMap<Arc<str>, Vec<ClientId>> = BTreeMap::new();
        for (topic, client) in some {
            clients.entry(topic).or_default().push(client);
        }
        for (topic, clients) in clients {
            self.tell_guardian(turn, WardsMessage::Add(topic, clients));
        }
    }

    /// Some of those that are connected, and who is to be named next.
    fn some_connected(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        from: u32,
    ) -> (Vec<(Arc<str>, ClientId)>, Option<Unnamed>) {
        let (keys, next) = connections.keys(from, WARDS_AT_ONCE);
        let some = keys.into_iter().filter_map(|key| ward_at(turn, connections, key)).collect();
        (some, Some(next.map_or(Unnamed::Ended(ClientId::from_value(0)), Unnamed::Connected)))
    }

    pub fn handle_wards(
        &mut self,
        turn: &mut Turn,
        from: ShardAddress,
        owner: ShardAddress,
        message: WardsMessage,
    ) {
        match message {
            WardsMessage::Begin(epoch) => {
                let Some(incarnation) = turn.roster.incarnation_of(from.node) else { return };
                let list = List { epoch, clients: BTreeMap::new(), due_ms: None };
                self.guarded.insert((from, incarnation), list);
            }
            WardsMessage::Add(topic, clients) => {
                if let Some(list) = self.list_of(turn, from) {
                    list.clients.entry(topic).or_default().extend(clients);
                }
            }
            WardsMessage::Remove(topic, client) => {
                let list = self.list_of(turn, from);
                if let Some(clients) = list.and_then(|list| list.clients.get_mut(&topic)) {
                    clients.remove(&client);
                }
            }
            WardsMessage::Claim(incarnation, epoch) => {
                let Some(list) = self.guarded.get(&(owner, incarnation)) else { return };
                let ours = list.epoch;
                if ours < epoch {
                    self.guarded.remove(&(owner, incarnation));
                } else {
                    let claim = WardsMessage::Claim(incarnation, ours);
                    turn.send(Party::Shard(from), Message::Wards(owner, claim));
                }
            }
        }
    }

    /// What a shard within reach has told us.
    fn list_of(&mut self, turn: &Turn, owner: ShardAddress) -> Option<&mut List> {
        let incarnation = turn.roster.incarnation_of(owner.node)?;
        self.guarded.get_mut(&(owner, incarnation))
    }

    /// A node is given up, as it was started then.
    pub fn handle_node_dead(&mut self, turn: &mut Turn, node: NodeId, incarnation: u64) {
        self.find_dead(turn, |owner, of| owner.node == node && of == incarnation);
    }

    /// Their clients are to be reported, unless another one claims to have guarded them later.
    fn find_dead(&mut self, turn: &mut Turn, is_dead: impl Fn(ShardAddress, u64) -> bool) {
        let due_ms = turn.now.ms + CLAIM_MS;
        let mut claims = Vec::new();
        for (&(owner, incarnation), list) in &mut self.guarded {
            if is_dead(owner, incarnation) && list.due_ms.is_none() {
                list.due_ms = Some(due_ms);
                claims.push((owner, incarnation, list.epoch));
            }
        }
        for (owner, incarnation, epoch) in claims {
            for node in turn.roster.others() {
                if let Some(to) = stand_in(turn, owner.shard, node) {
                    let claim = WardsMessage::Claim(incarnation, epoch);
                    turn.send(Party::Shard(to), Message::Wards(owner, claim));
                }
            }
        }
    }
}

/// The shard of a node that a shard of that number elsewhere would choose.
fn stand_in(turn: &Turn, shard: ShardId, node: NodeId) -> Option<ShardAddress> {
    let shards = turn.roster.shard_count(node)?;
    Some(ShardAddress { node, shard: ShardId((shard.index() % shards) as u8) })
}

/// A client that is there and whose end is to be reported, and the topic that is to hear of it.
fn ward_at(
    turn: &Turn,
    connections: &mut Connections,
    key: ConnectionKey,
) -> Option<(Arc<str>, ClientId)> {
    let connection = connections.get(key)?;
    let route = connection.route(&turn.settings)?;
    let topic = route.topic.as_ref().filter(|_| route.tells_close)?;
    Some((topic.clone(), connection.client()?.id))
}

/// The event that tells a topic that a client is there, if its route tells who opens.
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

fn unwatched(client: ClientId, frame: Frame) -> Event {
    Event { client, frame, is_watched: false }
}
