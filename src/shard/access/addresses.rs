//! Limits the connections and handshakes of an address at the edges of the node.
//!
//! Each address has a home shard, which counts it; a topic has one in the same way. So the count is
//! exact, and no memory is shared. The shard that accepts a connection asks the home shard and
//! reads nothing until it has the answer. It tells the home shard when the connection is closed.

use std::collections::VecDeque;
use std::net::IpAddr;

use hashbrown::HashMap;

use super::failed_attempts::source_of;
use crate::address::ShardId;
use crate::address::placement::home_of_address;
use crate::message::{ConnectionKey, LocalMessage};
use crate::protocol::http::Request;
use crate::shard::connection::{Arriving, Connections, HttpShape, Listener, Pause, Shape, Stage};
use crate::shard::rate::{Bucket, Rate};
use crate::shard::settings::{AddressLimits, ProxyMethod};
use crate::shard::trail::{self, Entry};
use crate::shard::turn::{Step, Turn};

/// The number of addresses that one shard counts: those that have connections, or had some within
/// the last second. They take about 50 MB. Beyond it connections from other addresses are refused.
const ADDRESSES_MAX: usize = 1 << 20;

/// The limit for which a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LimitReached {
    /// The connections of an address at a time.
    Connections,
    /// The handshakes of an address per second.
    Handshakes,
}

/// The addresses that have this home shard, and what each has used of its limits.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    // At most ADDRESSES_MAX.
    counts: HashMap<IpAddr, Count>,
    // Addresses whose last connection was closed before their bucket was full, in the order of
    // closing. An address is here at most once per handshake of its last second.
    leaving: VecDeque<Leaving>,
}

/// An address without connections, which is remembered until its bucket of handshakes is full
/// again.
#[derive(Clone, Copy, Debug)]
struct Leaving {
    source: IpAddr,
    full_at_ms: u64,
}

/// The usage of one address, compared with its limits.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    connections: u32,
    handshakes: Bucket,
}

impl Addresses {
    /// Returns the number of addresses that are counted.
    pub(crate) fn len(&self) -> usize {
        self.counts.len()
    }

    /// Counts a connection from an address, if its limits allow it.
    ///
    /// # Errors
    /// The address has reached a limit, or too many other addresses are counted.
    fn arrive(
        &mut self,
        now_ms: u64,
        limits: &AddressLimits,
        source: IpAddr,
    ) -> Result<(), LimitReached> {
        self.forget_old(now_ms);
        if self.counts.len() == ADDRESSES_MAX && !self.counts.contains_key(&source) {
            return Err(LimitReached::Connections);
        }
        let count = self.counts.entry(source).or_default();
        // A refused address has connections or an empty bucket. So its entry is in use, not left
        // over.
        if limits.connections.is_some_and(|max| count.connections >= max.get()) {
            return Err(LimitReached::Connections);
        }
        let take = |rate: Rate| rate.take(&mut count.handshakes, now_ms);
        if !limits.handshakes.is_none_or(take) {
            return Err(LimitReached::Handshakes);
        }
        count.connections += 1;
        Ok(())
    }

    /// Ends the count of a connection that was counted.
    fn depart(&mut self, now_ms: u64, source: IpAddr) {
        self.forget_old(now_ms);
        let Some(count) = self.counts.get_mut(&source) else { return };
        count.connections -= 1;
        if count.connections > 0 {
            return;
        }
        match count.handshakes.full_at_ms() {
            full_at_ms if full_at_ms <= now_ms => _ = self.counts.remove(&source),
            full_at_ms => self.leaving.push_back(Leaving { source, full_at_ms }),
        }
    }

    /// Forgets addresses without connections whose bucket is full. An address is remembered for
    /// little more than a second after its last connection.
    fn forget_old(&mut self, now_ms: u64) {
        let is_as_new =
            |count: &Count| count.connections == 0 && count.handshakes.full_at_ms() <= now_ms;
        while let Some(&Leaving { source, full_at_ms }) = self.leaving.front()
            && full_at_ms <= now_ms
        {
            self.leaving.pop_front();
            if self.counts.get(&source).is_some_and(is_as_new) {
                self.counts.remove(&source);
            }
        }
    }
}

impl Addresses {
    /// Handles a connection that this shard accepted at an edge. If addresses have limits, pauses
    /// the connection and asks the home shard of its address.
    pub(crate) fn count_arrival(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
    ) {
        let is_limited = turn.settings.limits.addresses.is_any_set();
        let Some(connection) = connections.get(key) else { return };
        if !is_limited || connection.listener == Listener::Api {
            return;
        }
        let proxy = turn.settings.proxy(connection.listener);
        if proxy.is_some_and(|proxy| proxy.trusts(connection.remote, ProxyMethod::Forwarded)) {
            // The clients behind the proxy are counted at their handshakes.
            return;
        }
        connection.is_receive_stopped = true;
        let source = source_of(connection.remote.ip());
        connections.pause(key, Pause::Address);
        self.tell_home_of(turn, source, LocalMessage::Arrived(source, key));
    }

    /// Counts the client of a handshake that a proxy has forwarded, if addresses have limits: the request
    /// is kept, and [`Step::Counted`] follows. Returns false if nothing is to be counted.
    ///
    /// The connection closes after an answer that refuses the handshake, so it is counted once.
    pub(crate) fn count_forwarded(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        request: &Request<'_>,
        shape: &mut HttpShape,
    ) -> bool {
        let is_limited = turn.settings.limits.addresses.is_any_set();
        let Some(connection) = connections.get(key) else { return false };
        let source = source_of(connection.remote.ip());
        let is_counted = connection.is_counted;
        let Stage::Http(http) = &mut connection.stage else { return false };
        if !is_limited || is_counted || http.proxy.is_none() {
            return false;
        }
        http.is_last = true;
        shape.exchange.keep_alive = false;
        http.replies.reserve(Shape::Response(shape.clone()));
        http.arriving = Some(Box::new(Arriving { request: request.keep(), shape: shape.clone() }));
        connections.pause(key, Pause::Address);
        self.tell_home_of(turn, source, LocalMessage::Arrived(source, key));
        true
    }

    fn tell_home_of(&self, turn: &mut Turn, source: IpAddr, message: LocalMessage) {
        let home = home_of_address(source, turn.settings.shards);
        turn.send_local(home, message);
    }

    /// Answers a shard that accepted a connection from an address with this home shard.
    pub(crate) fn handle_arrived(
        &mut self,
        turn: &mut Turn,
        from: ShardId,
        source: IpAddr,
        key: ConnectionKey,
    ) {
        let counted = self.arrive(turn.now.ms, &turn.settings.limits.addresses, source);
        match counted {
            Ok(()) => {}
            Err(LimitReached::Connections) => turn.counters.limits.connections_per_address += 1,
            Err(LimitReached::Handshakes) => turn.counters.limits.handshakes_per_address_s += 1,
        }
        let may_stay = counted.is_ok();
        turn.send_local(from, LocalMessage::Admitted { address: source, key, may_stay });
    }

    /// Handles the answer of an address's home shard. A refused connection is closed before a byte
    /// of it is read. It gets no response, which would cost a TLS handshake. Nor is its end
    /// awaited, since the peer could then keep its place. A handshake that a proxy has forwarded is
    /// answered.
    pub(crate) fn handle_admitted(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        source: IpAddr,
        key: ConnectionKey,
        is_admitted: bool,
    ) {
        match connections.get(key) {
            Some(connection) if connection.is_arriving() => {
                connection.is_counted = is_admitted;
                turn.push_step(Step::Counted(key, is_admitted));
            }
            Some(connection) if is_admitted => {
                connection.is_counted = true;
                connections.unpause(turn, key, Pause::Address);
            }
            Some(connection) => {
                let why = "its address has reached its limit of connections or handshakes";
                let (listener, remote) = (connection.listener, connection.remote);
                trail::note(turn.trail(key), Entry::Dropped(remote, why));
                if turn.taps.is_active() {
                    turn.tap_refusal(key, listener, remote, None, why);
                }
                connections.close(turn, key);
            }
            // The connection was closed in the meantime.
            None if is_admitted => self.tell_home_of(turn, source, LocalMessage::Departed(source)),
            None => {}
        }
    }

    /// Tells the home shard that a counted connection of this shard is closed.
    pub(crate) fn count_departure(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
    ) {
        let counted = connections.get(key).filter(|connection| connection.is_counted);
        if let Some(source) = counted.map(|connection| source_of(connection.remote.ip())) {
            self.tell_home_of(turn, source, LocalMessage::Departed(source));
        }
    }

    /// Handles the end of a connection that was counted here.
    pub(crate) fn handle_departed(&mut self, turn: &Turn, source: IpAddr) {
        self.depart(turn.now.ms, source);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::shard::fixture;
    use crate::shard::turn::Action;

    fn limits(connections: u32, handshakes_per_s: u32) -> AddressLimits {
        AddressLimits {
            connections: NonZeroU32::new(connections),
            handshakes: Rate::new(handshakes_per_s),
        }
    }

    fn source(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn each_address_has_a_limit_of_connections_of_its_own() {
        let (mut addresses, limits) = (Addresses::default(), limits(2, 0));
        for address in [source(1), source(2)] {
            assert_eq!(addresses.arrive(0, &limits, address), Ok(()));
            assert_eq!(addresses.arrive(0, &limits, address), Ok(()));
            assert_eq!(addresses.arrive(9000, &limits, address), Err(LimitReached::Connections));
        }
        addresses.depart(9000, source(1));
        assert_eq!(addresses.arrive(9000, &limits, source(1)), Ok(()));
        assert_eq!(addresses.arrive(9000, &limits, source(1)), Err(LimitReached::Connections));
    }

    #[test]
    fn handshakes_of_closed_connections_count_for_a_second() {
        let (mut addresses, limits) = (Addresses::default(), limits(0, 4));
        for _ in 0..4 {
            assert_eq!(addresses.arrive(5000, &limits, source(1)), Ok(()));
            addresses.depart(5000, source(1));
        }
        assert_eq!(addresses.arrive(5249, &limits, source(1)), Err(LimitReached::Handshakes));
        assert_eq!(addresses.arrive(5250, &limits, source(1)), Ok(()));
        assert_eq!(addresses.arrive(5250, &limits, source(1)), Err(LimitReached::Handshakes));
    }

    #[test]
    fn an_address_is_forgotten_a_second_after_its_last_connection() {
        let mut addresses = Addresses::default();
        assert_eq!(addresses.arrive(0, &limits(2, 0), source(1)), Ok(()));
        addresses.depart(0, source(1));
        assert_eq!(addresses.len(), 0, "at once, if handshakes have no limit");
        let limits = limits(2, 4);
        for _ in 0..2 {
            assert_eq!(addresses.arrive(0, &limits, source(1)), Ok(()));
            addresses.depart(0, source(1));
        }
        assert_eq!(addresses.arrive(400, &limits, source(2)), Ok(()));
        assert_eq!(addresses.len(), 2, "the bucket is not full yet");
        assert_eq!(addresses.arrive(500, &limits, source(1)), Ok(()));
        addresses.depart(1000, source(2));
        assert_eq!(addresses.len(), 1, "an address that came back in the meantime stays");
        addresses.depart(1000, source(1));
        assert_eq!((addresses.len(), addresses.leaving.len()), (0, 0));
    }

    #[test]
    fn a_connection_is_paused_until_its_home_shard_admits_it_and_closed_if_it_does_not() {
        let mut settings = fixture::settings();
        settings.limits.addresses = limits(1, 0);
        let mut turn = fixture::turn(settings);
        let (mut addresses, mut connections) = (Addresses::default(), Connections::default());
        let keys =
            [0; 2].map(|_| fixture::accepted(&mut turn, &mut connections, Listener::Edge(0)));
        let own = turn.address.shard;
        for key in keys {
            addresses.count_arrival(&mut turn, &mut connections, key);
            assert!(connections.get(key).unwrap().is_paused_for(Pause::Address));
        }
        for (step, expected) in fixture::steps(&mut turn).into_iter().zip(keys) {
            let Step::Message(LocalMessage::Arrived(source, key)) = step else {
                panic!("{step:?}")
            };
            assert_eq!(key, expected);
            addresses.handle_arrived(&mut turn, own, source, key);
        }
        let steps = fixture::steps(&mut turn);
        let answers = steps.iter().filter_map(|step| match step {
            Step::Message(LocalMessage::Admitted { key, may_stay, .. }) => Some((*key, *may_stay)),
            _ => None,
        });
        let answers = answers.collect::<Vec<_>>();
        assert_eq!(answers, [(keys[0], true), (keys[1], false)]);
        let source = source_of(fixture::REMOTE.ip());
        for (key, is_admitted) in answers {
            addresses.handle_admitted(&mut turn, &mut connections, source, key, is_admitted);
        }
        assert!(!connections.get(keys[0]).unwrap().is_paused_for(Pause::Address));
        assert!(turn.actions.contains(&Action::Close(keys[1])));
        assert_eq!(turn.counters.limits.connections_per_address, 1);
        addresses.count_departure(&mut turn, &mut connections, keys[1]);
        assert!(fixture::steps(&mut turn).is_empty(), "a refused connection was not counted");
        addresses.count_departure(&mut turn, &mut connections, keys[0]);
        let steps = fixture::steps(&mut turn);
        assert!(matches!(steps[..], [Step::Message(LocalMessage::Departed(_))]));
    }
}
