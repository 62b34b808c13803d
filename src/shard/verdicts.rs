//! Credentials that wait to be compared with hashes, in a fair order.
//!
//! A comparison takes tens of milliseconds on the one thread that makes them, and whoever can reach
//! the API can ask for one. So no address and no user name has more than a few that wait, and who
//! is likely to be right goes first: an address that presented right credentials of late, then
//! credentials that were turned away and came again. A guesser gains nothing by presenting a guess
//! again and again, except at the cost of others that it could have made.

use std::cmp::Reverse;
use std::net::IpAddr;

use crate::message::ConnectionKey;
use crate::protocol::credentials::Fingerprint;

use super::access::Verification;

/// Comparisons that a shard has under way at a time: one is made while the verdict on the other
/// travels.
pub const RUNNING_MAX: usize = 2;

/// Credentials of one source that may wait.
const PER_SOURCE: usize = 4;

/// Credentials with one user name that may wait.
const PER_NAME: usize = 4;

/// How often a shard begins a comparison for a source without tries left, at most, in milliseconds.
const SUSPECT_PAUSE_MS: u64 = 200;

/// Every so many comparisons the one that has waited longest is next, whatever its rank.
const OLDEST_EVERY: u64 = 4;

/// Whose credentials wait, and what is known of them.
#[derive(Debug)]
pub struct Claim {
    /// What they are known by.
    pub fingerprint: Fingerprint,
    /// Where they came from.
    pub source: IpAddr,
    /// The user name; empty for a token.
    pub name: String,
    /// What decides on their order.
    pub rank: Rank,
}

/// The order of claims: the greatest goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// The source has tries left.
    pub has_tries: bool,
    /// The source presented right credentials of late.
    pub is_trusted: bool,
    /// How often they were turned away before, unjudged.
    pub returns: u8,
}

/// Those who wait for one verdict.
#[derive(Debug)]
pub struct Waiters {
    /// What the verdict is on.
    pub fingerprint: Fingerprint,
    /// Where the credentials came from first.
    pub source: IpAddr,
    /// The connections.
    pub keys: Vec<ConnectionKey>,
}

/// Whether a claim counts towards a bound.
type IsAlike<'a> = &'a dyn Fn(&Claim) -> bool;

struct Waiting {
    claim: Claim,
    verification: Verification,
    keys: Vec<ConnectionKey>,
}

/// All of one shard.
pub struct Verdicts {
    places: usize,
    // In the order they came: waiting.len() <= places.
    waiting: Vec<Waiting>,
    // One entry per comparison that the verifier has not answered yet, so the verifier never holds
    // more of this shard: running.len() <= RUNNING_MAX.
    running: Vec<Waiters>,
    begun: u64,
    // When the next comparison for a source without tries may begin.
    suspects_from_ms: u64,
}

impl Verdicts {
    /// None wait; so many may.
    pub fn new(places: usize) -> Self {
        Self { places, waiting: Vec::new(), running: Vec::new(), begun: 0, suspects_from_ms: 0 }
    }

    /// Whether a verdict on these credentials is awaited.
    pub fn are_awaited(&self, fingerprint: Fingerprint) -> bool {
        self.waiting.iter().any(|waiting| waiting.claim.fingerprint == fingerprint)
            || self.running.iter().any(|running| running.fingerprint == fingerprint)
    }

    /// How many credentials of this source wait for a verdict.
    pub fn awaited_of(&self, source: IpAddr) -> usize {
        self.waiting.iter().filter(|waiting| waiting.claim.source == source).count()
            + self.running.iter().filter(|running| running.source == source).count()
    }

    /// Takes a claim in; gives those that lose their place to it.
    ///
    /// # Errors
    /// There is no place for it, and no claim of a lower rank to take one from.
    pub fn offer(
        &mut self,
        claim: Claim,
        verification: Verification,
    ) -> Result<Vec<Waiters>, Verification> {
        let bounds: [(usize, IsAlike<'_>); 3] = [
            (PER_SOURCE, &|other| other.source == claim.source),
            (PER_NAME, &|other| !claim.name.is_empty() && other.name == claim.name),
            (self.places, &|_| true),
        ];
        let mut losers: Vec<Fingerprint> = Vec::new();
        for (max, is_alike) in bounds {
            let stays = |waiting: &&Waiting| !losers.contains(&waiting.claim.fingerprint);
            let alike = || self.waiting.iter().filter(stays).filter(|w| is_alike(&w.claim));
            if alike().count() < max {
                continue;
            }
            // Of equals the last that came.
            let lowest = alike().rev().min_by_key(|waiting| waiting.claim.rank);
            match lowest.filter(|waiting| waiting.claim.rank < claim.rank) {
                Some(loser) => losers.push(loser.claim.fingerprint),
                None => return Err(verification),
            }
        }
        let loses = |waiting: &mut Waiting| losers.contains(&waiting.claim.fingerprint);
        let displaced = self.waiting.extract_if(.., loses).map(Waiting::waiters).collect();
        self.waiting.push(Waiting { claim, verification, keys: Vec::new() });
        Ok(displaced)
    }

    /// A connection waits for this verdict, which is awaited.
    pub fn wait(&mut self, fingerprint: Fingerprint, key: ConnectionKey) {
        let waiting = self.waiting.iter_mut().find(|w| w.claim.fingerprint == fingerprint);
        if let Some(waiting) = waiting {
            waiting.keys.push(key);
        } else if let Some(running) =
            self.running.iter_mut().find(|running| running.fingerprint == fingerprint)
        {
            running.keys.push(key);
        }
    }

    /// The next comparison to be made, if one may begin now.
    pub fn begin(&mut self, now_ms: u64) -> Option<Verification> {
        if self.running.len() == RUNNING_MAX {
            return None;
        }
        let takes_suspects = self.suspects_from_ms <= now_ms;
        let mut ready = self.waiting.iter().enumerate();
        let may = |(_, waiting): &(usize, &Waiting)| takes_suspects || waiting.has_tries();
        let (at, _) = match (self.begun + 1).is_multiple_of(OLDEST_EVERY) {
            true => ready.find(may),
            // Of equals the first that came.
            false => ready.filter(may).max_by_key(|&(at, w)| (w.claim.rank, Reverse(at))),
        }?;
        let next = self.waiting.remove(at);
        self.begun += 1;
        if !next.has_tries() {
            self.suspects_from_ms = now_ms + SUSPECT_PAUSE_MS;
        }
        let Waiting { claim: Claim { fingerprint, source, .. }, verification, keys } = next;
        self.running.push(Waiters { fingerprint, source, keys });
        Some(verification)
    }

    /// When [`Self::begin`] has one again, if time alone decides that.
    pub fn next_begin(&self) -> Option<u64> {
        let is_held_back = !self.waiting.is_empty() && self.running.len() < RUNNING_MAX;
        is_held_back.then_some(self.suspects_from_ms)
    }

    /// Ends a comparison that this shard asked for; gives who waited for its verdict.
    pub fn settle(&mut self, fingerprint: Fingerprint) -> Option<Waiters> {
        let at = self.running.iter().position(|running| running.fingerprint == fingerprint)?;
        Some(self.running.swap_remove(at))
    }

    /// Takes over the verdict that another shard asked for; gives who waited for it here. A
    /// comparison of the same credentials that this shard asked for stays in progress.
    pub fn settle_early(&mut self, fingerprint: Fingerprint) -> Option<Waiters> {
        if let Some(running) = self.running.iter_mut().find(|r| r.fingerprint == fingerprint) {
            let keys = std::mem::take(&mut running.keys);
            return Some(Waiters { keys, ..*running });
        }
        let at = self.waiting.iter().position(|w| w.claim.fingerprint == fingerprint)?;
        Some(self.waiting.remove(at).waiters())
    }
}

impl Waiting {
    fn has_tries(&self) -> bool {
        self.claim.rank.has_tries
    }

    fn waiters(self) -> Waiters {
        let Claim { fingerprint, source, .. } = self.claim;
        Waiters { fingerprint, source, keys: self.keys }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::credentials::{Credentials, FingerprintKey, Scheme};

    const CLEAN: Rank = Rank { has_tries: true, is_trusted: false, returns: 0 };
    const SUSPECT: Rank = Rank { has_tries: false, is_trusted: false, returns: 1 };

    fn fingerprint(number: usize) -> Fingerprint {
        let (name, secret) = (String::new(), number.to_string());
        Credentials { scheme: Scheme::Bearer, name, secret }
            .fingerprint(&FingerprintKey::new([0; 32]))
    }

    /// Offers credentials of this number, from an address, with a user name.
    fn offer(
        verdicts: &mut Verdicts,
        number: usize,
        (host, name): (u8, &str),
        rank: Rank,
    ) -> Option<Vec<Fingerprint>> {
        let fingerprint = fingerprint(number);
        let source = [10, 0, 0, host].into();
        let claim = Claim { fingerprint, source, name: name.into(), rank };
        let displaced = verdicts.offer(claim, Verification::of_nobody(fingerprint)).ok()?;
        Some(displaced.into_iter().map(|waiters| waiters.fingerprint).collect())
    }

    /// The numbers in the order in which they are judged, one at a time.
    fn order(verdicts: &mut Verdicts, now_ms: u64) -> Vec<usize> {
        let mut order = Vec::new();
        while verdicts.begin(now_ms).is_some() {
            let begun = verdicts.running[0].fingerprint;
            order.extend((0..1000).find(|&number| fingerprint(number) == begun));
            verdicts.settle(begun).expect("it runs");
        }
        order
    }

    #[test]
    fn no_source_and_no_name_takes_all_places() {
        let mut verdicts = Verdicts::new(20);
        let mut taken = 0;
        for number in 0..10 {
            taken += offer(&mut verdicts, number, (1, &number.to_string()), CLEAN).iter().count();
        }
        assert_eq!(taken, PER_SOURCE);
        for number in 10..20 {
            taken += offer(&mut verdicts, number, (number as u8, "app"), CLEAN).iter().count();
        }
        assert_eq!(taken, PER_SOURCE + PER_NAME);
        assert!(offer(&mut verdicts, 20, (20, "other"), CLEAN).is_some());
        // Tokens have no name to share.
        for number in 21..27 {
            assert!(offer(&mut verdicts, number, (number as u8, ""), CLEAN).is_some());
        }
    }

    #[test]
    fn the_likelier_takes_the_place_of_the_least_likely() {
        let mut verdicts = Verdicts::new(3);
        let came_again = Rank { returns: 1, ..CLEAN };
        assert_eq!(offer(&mut verdicts, 0, (1, ""), came_again), Some(vec![]));
        assert_eq!(offer(&mut verdicts, 1, (2, ""), CLEAN), Some(vec![]));
        assert_eq!(offer(&mut verdicts, 2, (3, ""), CLEAN), Some(vec![]));
        assert_eq!(offer(&mut verdicts, 3, (4, ""), CLEAN), None);
        let trusted = Rank { is_trusted: true, ..CLEAN };
        assert_eq!(offer(&mut verdicts, 4, (5, ""), trusted), Some(vec![fingerprint(2)]));
        assert_eq!(order(&mut verdicts, 0), [4, 0, 1]);
    }

    #[test]
    fn every_fourth_is_the_one_that_waited_longest() {
        let mut verdicts = Verdicts::new(20);
        offer(&mut verdicts, 0, (1, ""), SUSPECT);
        for number in 1..8 {
            offer(&mut verdicts, number, (number as u8 + 1, ""), CLEAN);
        }
        assert_eq!(order(&mut verdicts, 0), [1, 2, 3, 0, 4, 5, 6, 7]);
    }

    #[test]
    fn sources_without_tries_are_served_slowly_and_others_meanwhile() {
        let mut verdicts = Verdicts::new(20);
        offer(&mut verdicts, 0, (1, ""), SUSPECT);
        offer(&mut verdicts, 1, (2, ""), SUSPECT);
        offer(&mut verdicts, 2, (3, ""), CLEAN);
        assert_eq!(order(&mut verdicts, 1000), [2, 0]);
        assert_eq!(verdicts.next_begin(), Some(1000 + SUSPECT_PAUSE_MS));
        assert_eq!(order(&mut verdicts, 1000 + SUSPECT_PAUSE_MS - 1), [0; 0]);
        assert_eq!(order(&mut verdicts, 1000 + SUSPECT_PAUSE_MS), [1]);
        assert_eq!(verdicts.next_begin(), None);
    }

    #[test]
    fn few_are_under_way_at_a_time_and_their_connections_are_told() {
        let mut verdicts = Verdicts::new(20);
        for number in 0..4 {
            offer(&mut verdicts, number, (number as u8, ""), CLEAN);
        }
        assert_eq!((0..9).filter_map(|_| verdicts.begin(0)).count(), RUNNING_MAX);
        let keys = [1, 2].map(|index| ConnectionKey { index, generation: 0 });
        verdicts.wait(fingerprint(0), keys[0]);
        verdicts.wait(fingerprint(3), keys[1]);
        assert_eq!(verdicts.awaited_of([10, 0, 0, 0].into()), 1);
        assert_eq!(verdicts.settle(fingerprint(0)).expect("it runs").keys, [keys[0]]);
        assert!(verdicts.settle(fingerprint(0)).is_none() && verdicts.begin(0).is_some());
        assert_eq!(verdicts.settle_early(fingerprint(3)).expect("it waits").keys, [keys[1]]);
    }

    #[test]
    fn a_verdict_of_another_shard_frees_no_place_at_the_verifier() {
        let mut verdicts = Verdicts::new(20);
        (0..9).for_each(|number| _ = offer(&mut verdicts, number, (number as u8, ""), CLEAN));
        while verdicts.begin(0).is_some() {}
        let key = ConnectionKey { index: 1, generation: 0 };
        verdicts.wait(fingerprint(0), key);
        let told = verdicts.settle_early(fingerprint(0)).expect("it is in progress");
        assert_eq!(told.keys, [key]);
        assert!(verdicts.begin(0).is_none(), "the verifier still has {RUNNING_MAX} of this shard");
        assert_eq!(verdicts.settle(fingerprint(0)).expect("it is in progress").keys, []);
        assert!(verdicts.begin(0).is_some());
    }
}
