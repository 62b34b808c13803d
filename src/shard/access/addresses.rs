//! How many connections an address has at the edge, and how many it may have.
//!
//! Each address has a home, the one shard of the node that counts it, as each topic has: so the
//! count is exact and nothing is shared. A shard that accepts a connection asks the home and reads
//! nothing until it knows; it tells the home when the connection is closed.

use std::collections::VecDeque;
use std::net::IpAddr;

use hashbrown::HashMap;

use super::tries::source_of;
use crate::address::placement::home_of_address;
use crate::message::{ConnectionKey, Message, Party};
use crate::shard::connection::{Connections, Listener, Pause};
use crate::shard::rate::{Bucket, Rate};
use crate::shard::settings::AddressLimits;
use crate::shard::trail::{self, Entry};
use crate::shard::turn::Turn;

/// Addresses that one home counts, at most: those with connections, and those that had some within
/// the last second. That takes about 50 MB. Beyond it connections from further ones are refused.
const ADDRESSES_MAX: usize = 1 << 20;

/// Which limit refuses a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The address has as many connections as it may.
    Connections,
    /// It has made as many handshakes of late as it may.
    Handshakes,
}

/// The addresses whose home a shard is.
#[derive(Debug, Default)]
pub struct Addresses {
    counts: HashMap<IpAddr, Count>,
    // Those whose last connection was closed before their bucket was full, and when it is.
    leaving: VecDeque<(IpAddr, u64)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    connections: u32,
    handshakes: Bucket,
}

impl Addresses {
    /// How many are counted.
    pub fn len(&self) -> usize {
        self.counts.len()
    }

    /// A connection comes from an address; it is counted unless it is refused.
    pub fn arrive(
        &mut self,
        now_ms: u64,
        limits: &AddressLimits,
        source: IpAddr,
    ) -> Result<(), Refusal> {
        self.forget_old(now_ms);
        if self.counts.len() == ADDRESSES_MAX && !self.counts.contains_key(&source) {
            return Err(Refusal::Connections);
        }
        let count = self.counts.entry(source).or_default();
        // An address that is refused has connections, or has used up its bucket: it stays.
        if limits.connections.is_some_and(|max| count.connections >= max.get()) {
            return Err(Refusal::Connections);
        }
        let take = |rate: Rate| rate.take(&mut count.handshakes, now_ms);
        if !limits.handshakes.is_none_or(take) {
            return Err(Refusal::Handshakes);
        }
        count.connections += 1;
        Ok(())
    }

    /// One that was counted is closed.
    pub fn depart(&mut self, now_ms: u64, source: IpAddr) {
        self.forget_old(now_ms);
        let Some(count) = self.counts.get_mut(&source) else { return };
        count.connections -= 1;
        if count.connections > 0 {
            return;
        }
        match count.handshakes.full_at_ms() {
            full_at_ms if full_at_ms <= now_ms => _ = self.counts.remove(&source),
            full_at_ms => self.leaving.push_back((source, full_at_ms)),
        }
    }

    /// Each waits for at most a second, and what waits behind it for hardly more.
    fn forget_old(&mut self, now_ms: u64) {
        let is_as_new =
            |count: &Count| count.connections == 0 && count.handshakes.full_at_ms() <= now_ms;
        while let Some(&(source, due_ms)) = self.leaving.front()
            && due_ms <= now_ms
        {
            self.leaving.pop_front();
            if self.counts.get(&source).is_some_and(is_as_new) {
                self.counts.remove(&source);
            }
        }
    }
}

impl Addresses {
    /// A connection was accepted: if its address has limits, it is not read from until the home of
    /// the address has said that it may stay.
    pub fn count_arrival(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
    ) {
        let is_limited = turn.settings.limits.addresses.are_there();
        let Some(connection) = connections.get(key) else { return };
        if !is_limited || connection.listener == Listener::Api {
            return;
        }
        connection.is_receive_stopped = true;
        let source = source_of(connection.remote.ip());
        connections.pause(key, Pause::Address);
        self.tell_home_of(turn, source, Message::Arrived(source, key));
    }

    fn tell_home_of(&self, turn: &mut Turn, source: IpAddr, message: Message) {
        let home = home_of_address(source, turn.settings.shards);
        let home = turn.local_party(home);
        turn.send(home, message);
    }

    /// A connection came to another shard, or this one, from an address whose home this is.
    pub fn handle_arrived(
        &mut self,
        turn: &mut Turn,
        from: Party,
        source: IpAddr,
        key: ConnectionKey,
    ) {
        let judged = self.arrive(turn.now.ms, &turn.settings.limits.addresses, source);
        match judged {
            Ok(()) => {}
            Err(Refusal::Connections) => turn.counters.limits.connections_per_address += 1,
            Err(Refusal::Handshakes) => turn.counters.limits.handshakes_per_address_s += 1,
        }
        turn.send(from, Message::Admitted(source, key, judged.is_ok()));
    }

    /// Whether a connection may stay. One that may not is closed before a byte of it is read: no
    /// words, which would take a TLS handshake, and no waiting for its end, which would take its
    /// place for as long as it likes.
    pub fn handle_admitted(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        source: IpAddr,
        key: ConnectionKey,
        is_admitted: bool,
    ) {
        match connections.get(key) {
            Some(connection) if is_admitted => {
                connection.is_counted = true;
                connections.unpause(turn, key, Pause::Address);
            }
            Some(connection) => {
                let why = "its address has as many connections, or handshakes, as it may";
                let entry = Entry::Dropped(connection.remote, why);
                trail::note(turn.trail(key), entry);
                connections.close(turn, key);
            }
            // It was closed meanwhile.
            None if is_admitted => self.tell_home_of(turn, source, Message::Departed(source)),
            None => {}
        }
    }

    /// A connection is closed and about to be forgotten.
    pub fn count_departure(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
    ) {
        let counted = connections.get(key).filter(|connection| connection.is_counted);
        if let Some(source) = counted.map(|connection| source_of(connection.remote.ip())) {
            self.tell_home_of(turn, source, Message::Departed(source));
        }
    }

    /// One that was counted here is closed.
    pub fn handle_departed(&mut self, turn: &Turn, source: IpAddr) {
        self.depart(turn.now.ms, source);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

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
    fn an_address_has_no_more_connections_than_it_may_and_others_have_their_own() {
        let (mut addresses, limits) = (Addresses::default(), limits(2, 0));
        for address in [source(1), source(2)] {
            assert_eq!(addresses.arrive(0, &limits, address), Ok(()));
            assert_eq!(addresses.arrive(0, &limits, address), Ok(()));
            assert_eq!(addresses.arrive(9000, &limits, address), Err(Refusal::Connections));
        }
        addresses.depart(9000, source(1));
        assert_eq!(addresses.arrive(9000, &limits, source(1)), Ok(()));
        assert_eq!(addresses.arrive(9000, &limits, source(1)), Err(Refusal::Connections));
    }

    #[test]
    fn handshakes_of_connections_that_are_gone_count_for_a_second() {
        let (mut addresses, limits) = (Addresses::default(), limits(0, 4));
        for _ in 0..4 {
            assert_eq!(addresses.arrive(5000, &limits, source(1)), Ok(()));
            addresses.depart(5000, source(1));
        }
        assert_eq!(addresses.arrive(5249, &limits, source(1)), Err(Refusal::Handshakes));
        assert_eq!(addresses.arrive(5250, &limits, source(1)), Ok(()));
        assert_eq!(addresses.arrive(5250, &limits, source(1)), Err(Refusal::Handshakes));
    }

    #[test]
    fn an_address_is_forgotten_with_its_last_connection_and_its_last_second() {
        let mut addresses = Addresses::default();
        assert_eq!(addresses.arrive(0, &limits(2, 0), source(1)), Ok(()));
        addresses.depart(0, source(1));
        assert_eq!(addresses.len(), 0, "without a limit of handshakes at once");
        let limits = limits(2, 4);
        for _ in 0..2 {
            assert_eq!(addresses.arrive(0, &limits, source(1)), Ok(()));
            addresses.depart(0, source(1));
        }
        assert_eq!(addresses.arrive(400, &limits, source(2)), Ok(()));
        assert_eq!(addresses.len(), 2, "its bucket is not full yet");
        assert_eq!(addresses.arrive(500, &limits, source(1)), Ok(()));
        addresses.depart(1000, source(2));
        assert_eq!(addresses.len(), 1, "who came back meanwhile stays");
        addresses.depart(1000, source(1));
        assert_eq!((addresses.len(), addresses.leaving.len()), (0, 0));
    }
}
