//! Credentials that wait to be compared with hashes, and whose comparison is next.
//!
//! A comparison takes tens of milliseconds on the one thread that makes them, and whoever can reach
//! the API can ask for one. So few credentials wait, and places are given in this order:
//!
//! 1. Sources with tries left and sources without ("suspects") do not compete: each group has places
//!    of its own. Suspects get at most five comparisons a second, and at least every fourth.
//! 2. Credentials with a higher [`Rank`] displace those with a lower one.
//! 3. Among equal ranks, whichever pair of source and user name holds the most places gives one up.
//! 4. Among equal shares the [`Lot`] decides. Each pair and each fingerprint has a new lot every
//!    second, from a secret key. Presenting a guess more often within a second, or at a chosen moment,
//!    does not improve it.
//!
//! Those that hold a place are judged by rank. Among equal ranks the pairs take turns, and of a pair's
//! credentials those with the best lot are judged.
//!
//! # The bound
//!
//! Before they are judged, right credentials cannot be told from a guess at the same user from the
//! same source that comes as often. So no order can put them first. What this order promises is that
//! no guess has better odds, however often and whenever it is presented:
//!
//! - From a source without tries, at which `n` distinct guesses at the same user are presented a
//!   second, each for the second time at least: each presentation is judged with a probability of
//!   about `5 / (n + 1)`, which makes `2 + n / 5` presentations on average. Guesses that are presented
//!   once, or again before the `Retry-After`, do not count. Sources without tries from which guesses
//!   come at the same time share the five comparisons a second equally.
//! - From a source with tries: at once, however many guesses come from sources without. While more
//!   than three others with tries left guess at the same user, about `n / 30` presentations on
//!   average; nothing counts where right credentials of the user came from that source within the hour.
//!
//! Each shard counts for itself, and a second connection may reach another shard. The figures are for
//! hashes that take 30 ms, and a verifier that no other shard keeps busy.

use std::cmp::Reverse;
use std::net::IpAddr;

use crate::message::ConnectionKey;
use crate::protocol::credentials::Fingerprint;

use super::credentials::Verification;

/// Comparisons that a shard has under way at a time: one is made while the verdict on the other
/// travels.
pub const RUNNING_MAX: usize = 2;

/// Credentials of one source that may wait.
const PER_SOURCE: usize = 4;

/// Credentials with one user name that may wait.
const PER_NAME: usize = 4;

/// How often a shard begins a comparison for a source without tries left, at most, in milliseconds.
const SUSPECT_PAUSE_MS: u64 = 200;

/// Every so many comparisons one of a source without tries goes first, if one may.
const SUSPECT_EVERY: u64 = 4;

/// Credentials of sources without tries that may wait: as many as are judged in a second.
const SUSPECTS_MAX: usize = 5;

/// Whose credentials wait, and what is known of them.
#[derive(Debug)]
pub struct Claim {
    /// What they are known by.
    pub fingerprint: Fingerprint,
    /// Where they came from.
    pub source: IpAddr,
    /// The user name; empty for a token.
    pub name: String,
    /// The source and the user name, as one number.
    pub pair: u64,
    /// What decides first on who keeps a place.
    pub rank: Rank,
    /// What decides last.
    pub lot: Lot,
}

/// The order of claims: the greatest goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// The source has tries left.
    pub has_tries: bool,
    /// Right credentials with this user name came from this source of late.
    pub is_trusted: bool,
    /// They were turned away before, unjudged, and have come again as they were told to.
    pub has_returned: bool,
}

/// Chances within this second: the greatest keeps a place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lot {
    /// Of the source and the user name.
    pub of_pair: u64,
    /// Of the credentials.
    pub of_claim: u64,
}

/// Those who wait for one verdict.
#[derive(Debug)]
pub struct Waiters {
    /// What the verdict is on.
    pub fingerprint: Fingerprint,
    /// Where the credentials came from first.
    pub source: IpAddr,
    /// See [`Claim::pair`].
    pub pair: u64,
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
    // In the order in which it is their turn: at most `places` with tries, and SUSPECTS_MAX without.
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
    /// There is no place for it, and no claim that has to give one up.
    pub fn offer(
        &mut self,
        claim: Claim,
        verification: Verification,
    ) -> Result<Vec<Waiters>, Verification> {
        let has_tries = claim.rank.has_tries;
        let places = if has_tries { self.places } else { self.places.min(SUSPECTS_MAX) };
        let bounds: [(usize, IsAlike<'_>); 3] = [
            (PER_SOURCE, &|other| other.source == claim.source),
            (PER_NAME, &|other| !claim.name.is_empty() && other.name == claim.name),
            (places, &|_| true),
        ];
        let mut losers: Vec<Fingerprint> = Vec::new();
        for (max, is_alike) in bounds {
            let stays = |other: &&Claim| {
                other.rank.has_tries == has_tries && !losers.contains(&other.fingerprint)
            };
            let claims = self.waiting.iter().map(|waiting| &waiting.claim);
            let alike: Vec<&Claim> = claims.filter(stays).filter(|c| is_alike(c)).collect();
            if alike.len() < max {
                continue;
            }
            match loser(&alike, &claim) {
                Some(fingerprint) => losers.push(fingerprint),
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
        let suspects_may = self.suspects_from_ms <= now_ms;
        let is_suspects_turn = (self.begun + 1).is_multiple_of(SUSPECT_EVERY);
        let ready = self.waiting.iter().enumerate();
        let ready = ready.filter(|(_, waiting)| suspects_may || waiting.has_tries());
        let first = ready.max_by_key(|&(at, waiting)| {
            let goes_first = is_suspects_turn && !waiting.has_tries();
            (goes_first, waiting.claim.rank, Reverse(at))
        })?;
        let (first, claim) = (first.0, &first.1.claim);
        let rivals =
            self.waiting.iter().enumerate().filter(|(_, other)| {
                (other.claim.pair, other.claim.rank) == (claim.pair, claim.rank)
            });
        let best = rivals.max_by_key(|(_, other)| other.claim.lot.of_claim);
        let at = best.map_or(first, |(at, _)| at);
        let next = self.waiting.remove(at);
        // The others of its pair go behind all other pairs.
        self.waiting.sort_by_key(|waiting| waiting.claim.pair == next.claim.pair);
        self.begun += 1;
        if !next.has_tries() {
            self.suspects_from_ms = now_ms + SUSPECT_PAUSE_MS;
        }
        let Waiting { claim: Claim { fingerprint, source, pair, .. }, verification, keys } = next;
        self.running.push(Waiters { fingerprint, source, pair, keys });
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
        let Claim { fingerprint, source, pair, .. } = self.claim;
        Waiters { fingerprint, source, pair, keys: self.keys }
    }
}

/// Which of those that have all places loses its own to a newcomer; `None`: the newcomer stays out.
fn loser(holders: &[&Claim], newcomer: &Claim) -> Option<Fingerprint> {
    let all = || holders.iter().copied().chain([newcomer]);
    let share = |claim: &Claim| all().filter(|other| other.pair == claim.pair).count();
    let least = all().min_by_key(|claim| (claim.rank, Reverse(share(claim)), claim.lot))?;
    (least.fingerprint != newcomer.fingerprint).then_some(least.fingerprint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::credentials::{Credentials, FingerprintKey, Scheme};

    const CLEAN: Rank = Rank { has_tries: true, is_trusted: false, has_returned: false };
    const SUSPECT: Rank = Rank { has_tries: false, is_trusted: false, has_returned: true };

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
        let pair = u64::from(host) << 32 | u64::from(name.as_bytes().first().copied().unwrap_or(0));
        let lot = Lot { of_pair: 0, of_claim: 1000 - number as u64 };
        let claim = Claim { fingerprint, source, name: name.into(), pair, rank, lot };
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
        let came_again = Rank { has_returned: true, ..CLEAN };
        assert_eq!(offer(&mut verdicts, 0, (1, ""), came_again), Some(vec![]));
        assert_eq!(offer(&mut verdicts, 1, (2, ""), CLEAN), Some(vec![]));
        assert_eq!(offer(&mut verdicts, 2, (3, ""), CLEAN), Some(vec![]));
        assert_eq!(offer(&mut verdicts, 3, (4, ""), CLEAN), None);
        let trusted = Rank { is_trusted: true, ..CLEAN };
        assert_eq!(offer(&mut verdicts, 4, (5, ""), trusted), Some(vec![fingerprint(2)]));
        assert_eq!(order(&mut verdicts, 0), [4, 0, 1]);
    }

    #[test]
    fn a_source_without_tries_goes_before_a_crowd_that_has_some_every_fourth_time() {
        let mut verdicts = Verdicts::new(20);
        offer(&mut verdicts, 0, (1, ""), SUSPECT);
        for number in 1..8 {
            offer(&mut verdicts, number, (number as u8 + 1, ""), CLEAN);
        }
        assert_eq!(order(&mut verdicts, 0), [1, 2, 3, 0, 4, 5, 6, 7]);
    }

    #[test]
    fn a_crowd_that_has_tries_takes_no_place_of_a_source_without() {
        let mut verdicts = Verdicts::new(4);
        assert!(offer(&mut verdicts, 0, (1, "app"), SUSPECT).is_some());
        for number in 1..20 {
            let displaced = offer(&mut verdicts, number, (number as u8 + 1, "app"), CLEAN);
            assert!(displaced.is_none_or(|displaced| !displaced.contains(&fingerprint(0))));
        }
        assert!(order(&mut verdicts, 0).contains(&0));
    }

    #[test]
    fn who_holds_most_places_gives_one_up_to_another_source_or_name() {
        for (host, name) in [(1, "ops"), (2, "app")] {
            let mut verdicts = Verdicts::new(20);
            for number in 0..4 {
                assert_eq!(offer(&mut verdicts, number, (1, "app"), SUSPECT), Some(vec![]));
            }
            // The worst lot of all.
            let displaced = offer(&mut verdicts, 999, (host, name), SUSPECT);
            assert_eq!(displaced, Some(vec![fingerprint(3)]));
            assert_eq!(offer(&mut verdicts, 998, (1, "app"), SUSPECT), None);
        }
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
