//! A bounded queue of credentials that wait to be compared with a hash.
//!
//! A verification takes tens of milliseconds on the node's one verifier thread, and everybody who
//! reaches the API can ask for one. So the queue is short. When it is full, these rules decide who
//! has a place:
//!
//! 1. Sources that have attempts left and sources that have none ("suspects") do not compete: each
//!    group has places of its own. Suspects get at most five verifications a second, and at least
//!    every fourth.
//! 2. Credentials with a higher [`Rank`] displace those with a lower one.
//! 3. Among equal ranks, the pair of source and user name that holds the most places loses one.
//! 4. Among equal shares the [`TieBreak`] decides. Every second, each pair and each fingerprint
//!    gets a new value, derived from a secret key. Repeating a guess within a second, or choosing
//!    the moment, does not improve its odds.
//!
//! Queued credentials are verified in the order of their rank. Among equal ranks the pairs take
//! turns. Within a pair the greatest tie-break goes first.
//!
//! # The guarantee
//!
//! Right credentials look like a guess at the same user from the same source, until they are
//! verified. So no order can put them first. This order guarantees that no guess has better odds
//! than they have, however often and whenever the guess is presented:
//!
//! - From a source without attempts left, from which `n` distinct guesses at the same user are
//!   retried per second: a request is verified with a probability of about `5 / (n + 1)`. That
//!   makes `2 + n / 5` requests on average. Guesses that are presented once, or retried before the
//!   `Retry-After`, do not count. Several such sources share the five verifications a second
//!   equally.
//! - From a source with attempts left: at once, however many guesses come from suspects. If more
//!   than three other sources with attempts left guess at the same user, about `n / 30` requests on
//!   average. A pair that presented right credentials within the last hour is not affected by
//!   guesses.
//!
//! Each shard has a queue of its own, and a second connection may reach another shard. The figures
//! assume that a hash takes 30 ms and that no other shard uses the verifier.

use std::cmp::Reverse;
use std::net::IpAddr;

use crate::message::ConnectionKey;
use crate::protocol::credentials::Fingerprint;

use super::authenticator::Verification;

/// Verifications that a shard has in progress at a time: one is computed while the result of the
/// other is on its way back.
pub const RUNNING_MAX: usize = 2;

/// Credentials of one source that may wait.
const PER_SOURCE: usize = 4;

/// Credentials with the same user name that may wait.
const PER_NAME: usize = 4;

/// The shortest time between two verifications for suspects, in milliseconds.
const SUSPECT_PAUSE_MS: u64 = 200;

/// Each verification whose number is a multiple of this is for a suspect, if one may begin.
const SUSPECT_EVERY: u64 = 4;

/// Credentials of suspects that may wait: as many as are verified in a second.
const SUSPECTS_MAX: usize = 5;

/// Credentials to be verified, and what decides on their place in the queue.
#[derive(Debug)]
pub(super) struct Claim {
    /// The fingerprint of the credentials.
    pub fingerprint: Fingerprint,
    /// The address that presented them; see [`source_of`](super::failed_attempts::source_of).
    pub source: IpAddr,
    /// The user name; empty for a token.
    pub name: String,
    /// A keyed hash of the source and the user name.
    pub pair: u64,
    /// Compared first.
    pub rank: Rank,
    /// Compared last.
    pub tie_break: TieBreak,
}

/// The rank of a claim. The greatest goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// Whether the source has attempts left.
    pub has_attempts_left: bool,
    /// Whether right credentials with this user name came from this source within the last hour.
    pub is_trusted: bool,
    /// Whether the credentials were denied without a verification, and retried after the
    /// `Retry-After`.
    pub has_returned: bool,
}

/// Decides among claims of equal rank; changes every second. The greatest keeps its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TieBreak {
    /// A keyed hash of the pair and of the current second.
    pub of_pair: u64,
    /// A keyed hash of the fingerprint and of the current second.
    pub of_claim: u64,
}

/// The connections that wait for one verification.
#[derive(Debug)]
pub(super) struct Waiters {
    /// The fingerprint of the credentials.
    pub fingerprint: Fingerprint,
    /// The source that presented the credentials first.
    pub source: IpAddr,
    /// The pair of the claim; see [`Claim::pair`].
    pub pair: u64,
    /// The connections whose requests have these credentials.
    pub keys: Vec<ConnectionKey>,
    /// Whether the users were reloaded after the verification was queued. A negative result proves nothing.
    pub is_outdated: bool,
}

/// Tells whether a claim counts towards a bound.
type IsAlike<'a> = &'a dyn Fn(&Claim) -> bool;

/// A claim in the queue.
struct QueuedClaim {
    claim: Claim,
    verification: Verification,
    keys: Vec<ConnectionKey>,
    is_outdated: bool,
}

/// The verifications of one shard: waiting and in progress.
pub(super) struct VerificationQueue {
    places: usize,
    // Pairs take turns in this order. At most `places` of sources with attempts left, and
    // SUSPECTS_MAX of suspects.
    waiting: Vec<QueuedClaim>,
    // One entry per verification that the verifier has not answered: running.len() <= RUNNING_MAX.
    // So the verifier never holds more of this shard.
    running: Vec<Waiters>,
    // Verifications begun so far.
    begun: u64,
    // When the next verification for a suspect may begin.
    suspects_from_ms: u64,
}

impl VerificationQueue {
    /// Creates an empty queue with this many places for sources that have attempts left.
    pub(super) fn new(places: usize) -> Self {
        Self { places, waiting: Vec::new(), running: Vec::new(), begun: 0, suspects_from_ms: 0 }
    }

    /// Whether the verification of these credentials is waiting or in progress.
    pub(super) fn contains(&self, fingerprint: Fingerprint) -> bool {
        self.waiting.iter().any(|waiting| waiting.claim.fingerprint == fingerprint)
            || self.running.iter().any(|running| running.fingerprint == fingerprint)
    }

    /// Returns how many verifications of a source are waiting or in progress.
    pub(super) fn count_of_source(&self, source: IpAddr) -> usize {
        self.waiting.iter().filter(|waiting| waiting.claim.source == source).count()
            + self.running.iter().filter(|running| running.source == source).count()
    }

    /// Adds a claim; returns the waiters of the claims that lose their places to it.
    ///
    /// # Errors
    /// Gives the verification back if the queue is full and no other claim has to make room.
    pub(super) fn offer(
        &mut self,
        claim: Claim,
        verification: Verification,
    ) -> Result<Vec<Waiters>, Verification> {
        let has_attempts_left = claim.rank.has_attempts_left;
        let places = if has_attempts_left { self.places } else { self.places.min(SUSPECTS_MAX) };
        let bounds: [(usize, IsAlike<'_>); 3] = [
            (PER_SOURCE, &|other| other.source == claim.source),
            (PER_NAME, &|other| !claim.name.is_empty() && other.name == claim.name),
            (places, &|_| true),
        ];
        let mut losers: Vec<Fingerprint> = Vec::new();
        for (max, is_alike) in bounds {
            let stays = |other: &&Claim| {
                other.rank.has_attempts_left == has_attempts_left
                    && !losers.contains(&other.fingerprint)
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
        let loses = |waiting: &mut QueuedClaim| losers.contains(&waiting.claim.fingerprint);
        let displaced = self.waiting.extract_if(.., loses).map(QueuedClaim::waiters).collect();
        self.waiting.push(QueuedClaim {
            claim,
            verification,
            keys: Vec::new(),
            is_outdated: false,
        });
        Ok(displaced)
    }

    /// Adds a connection to those that wait for a verification. Ignored if there is no such
    /// verification.
    pub(super) fn wait(&mut self, fingerprint: Fingerprint, key: ConnectionKey) {
        let waiting = self.waiting.iter_mut().find(|w| w.claim.fingerprint == fingerprint);
        if let Some(waiting) = waiting {
            waiting.keys.push(key);
        } else if let Some(running) =
            self.running.iter_mut().find(|running| running.fingerprint == fingerprint)
        {
            running.keys.push(key);
        }
    }

    /// Takes the next verification out of the queue, if one may begin now.
    pub(super) fn begin(&mut self, now_ms: u64) -> Option<Verification> {
        if self.running.len() == RUNNING_MAX {
            return None;
        }
        let suspects_may = self.suspects_from_ms <= now_ms;
        let is_suspects_turn = (self.begun + 1).is_multiple_of(SUSPECT_EVERY);
        let ready = self.waiting.iter().enumerate();
        let ready = ready.filter(|(_, waiting)| suspects_may || waiting.has_attempts_left());
        let first = ready.max_by_key(|&(at, waiting)| {
            let goes_first = is_suspects_turn && !waiting.has_attempts_left();
            (goes_first, waiting.claim.rank, Reverse(at))
        })?;
        let (first, claim) = (first.0, &first.1.claim);
        let rivals =
            self.waiting.iter().enumerate().filter(|(_, other)| {
                (other.claim.pair, other.claim.rank) == (claim.pair, claim.rank)
            });
        let best = rivals.max_by_key(|(_, other)| other.claim.tie_break.of_claim);
        let at = best.map_or(first, |(at, _)| at);
        let next = self.waiting.remove(at);
        // The other claims of this pair move behind all other pairs.
        self.waiting.sort_by_key(|waiting| waiting.claim.pair == next.claim.pair);
        self.begun += 1;
        if !next.has_attempts_left() {
            self.suspects_from_ms = now_ms + SUSPECT_PAUSE_MS;
        }
        let (waiters, verification) = next.split();
        self.running.push(waiters);
        Some(verification)
    }

    /// Marks all verifications as those of an earlier configuration.
    pub(super) fn mark_outdated(&mut self) {
        self.waiting.iter_mut().for_each(|waiting| waiting.is_outdated = true);
        self.running.iter_mut().for_each(|running| running.is_outdated = true);
    }

    /// Returns when [`Self::begin`] has another verification, if only the time decides that.
    pub(super) fn next_begin(&self) -> Option<u64> {
        let is_held_back = !self.waiting.is_empty() && self.running.len() < RUNNING_MAX;
        is_held_back.then_some(self.suspects_from_ms)
    }

    /// Ends a verification that this shard began; returns who waited for its result.
    pub(super) fn settle(&mut self, fingerprint: Fingerprint) -> Option<Waiters> {
        let at = self.running.iter().position(|running| running.fingerprint == fingerprint)?;
        Some(self.running.swap_remove(at))
    }

    /// Applies the result of a verification that another shard began; returns who waited for it
    /// here. If this shard's own verification of these credentials is in progress, it stays so.
    pub(super) fn settle_early(&mut self, fingerprint: Fingerprint) -> Option<Waiters> {
        if let Some(running) = self.running.iter_mut().find(|r| r.fingerprint == fingerprint) {
            let keys = std::mem::take(&mut running.keys);
            return Some(Waiters { keys, ..*running });
        }
        let at = self.waiting.iter().position(|w| w.claim.fingerprint == fingerprint)?;
        Some(self.waiting.remove(at).waiters())
    }
}

impl QueuedClaim {
    fn has_attempts_left(&self) -> bool {
        self.claim.rank.has_attempts_left
    }

    fn split(self) -> (Waiters, Verification) {
        let Self { claim, verification, keys, is_outdated } = self;
        let Claim { fingerprint, source, pair, .. } = claim;
        (Waiters { fingerprint, source, pair, keys, is_outdated }, verification)
    }

    fn waiters(self) -> Waiters {
        self.split().0
    }
}

/// Returns the claim that loses its place to `newcomer`; `None` if the newcomer does not get in.
fn loser(holders: &[&Claim], newcomer: &Claim) -> Option<Fingerprint> {
    let all = || holders.iter().copied().chain([newcomer]);
    let share = |claim: &Claim| all().filter(|other| other.pair == claim.pair).count();
    let least = all().min_by_key(|claim| (claim.rank, Reverse(share(claim)), claim.tie_break))?;
    (least.fingerprint != newcomer.fingerprint).then_some(least.fingerprint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::credentials::{Credentials, FingerprintKey, Scheme};

    const CLEAN: Rank = Rank { has_attempts_left: true, is_trusted: false, has_returned: false };
    const SUSPECT: Rank = Rank { has_attempts_left: false, is_trusted: false, has_returned: true };

    fn fingerprint(number: usize) -> Fingerprint {
        let (name, secret) = (String::new(), number.to_string());
        Credentials { scheme: Scheme::Bearer, name, secret }
            .fingerprint(&FingerprintKey::new([0; 32]))
    }

    /// Offers the credentials with a number, from host `host`, with a user name. Returns the
    /// fingerprints of the displaced claims; `None` if the claim was not accepted.
    fn offer(
        queue: &mut VerificationQueue,
        number: usize,
        (host, name): (u8, &str),
        rank: Rank,
    ) -> Option<Vec<Fingerprint>> {
        let fingerprint = fingerprint(number);
        let source = [10, 0, 0, host].into();
        let pair = u64::from(host) << 32 | u64::from(name.as_bytes().first().copied().unwrap_or(0));
        let tie_break = TieBreak { of_pair: 0, of_claim: 1000 - number as u64 };
        let claim = Claim { fingerprint, source, name: name.into(), pair, rank, tie_break };
        let displaced = queue.offer(claim, Verification::of_nobody(fingerprint)).ok()?;
        Some(displaced.into_iter().map(|waiters| waiters.fingerprint).collect())
    }

    /// Runs all verifications one at a time; returns their numbers in that order.
    fn order(queue: &mut VerificationQueue, now_ms: u64) -> Vec<usize> {
        let mut order = Vec::new();
        while queue.begin(now_ms).is_some() {
            let begun = queue.running[0].fingerprint;
            order.extend((0..1000).find(|&number| fingerprint(number) == begun));
            queue.settle(begun).expect("it runs");
        }
        order
    }

    #[test]
    fn no_source_and_no_user_name_takes_all_places() {
        let mut queue = VerificationQueue::new(20);
        let mut taken = 0;
        for number in 0..10 {
            taken += offer(&mut queue, number, (1, &number.to_string()), CLEAN).iter().count();
        }
        assert_eq!(taken, PER_SOURCE);
        for number in 10..20 {
            taken += offer(&mut queue, number, (number as u8, "app"), CLEAN).iter().count();
        }
        assert_eq!(taken, PER_SOURCE + PER_NAME);
        assert!(offer(&mut queue, 20, (20, "other"), CLEAN).is_some());
        // Tokens have no user name, so the bound per name does not apply.
        for number in 21..27 {
            assert!(offer(&mut queue, number, (number as u8, ""), CLEAN).is_some());
        }
    }

    #[test]
    fn a_claim_of_a_higher_rank_displaces_the_one_of_the_lowest() {
        let mut queue = VerificationQueue::new(3);
        let came_again = Rank { has_returned: true, ..CLEAN };
        assert_eq!(offer(&mut queue, 0, (1, ""), came_again), Some(vec![]));
        assert_eq!(offer(&mut queue, 1, (2, ""), CLEAN), Some(vec![]));
        assert_eq!(offer(&mut queue, 2, (3, ""), CLEAN), Some(vec![]));
        assert_eq!(offer(&mut queue, 3, (4, ""), CLEAN), None);
        let trusted = Rank { is_trusted: true, ..CLEAN };
        assert_eq!(offer(&mut queue, 4, (5, ""), trusted), Some(vec![fingerprint(2)]));
        assert_eq!(order(&mut queue, 0), [4, 0, 1]);
    }

    #[test]
    fn every_fourth_verification_is_for_a_suspect_however_many_others_wait() {
        let mut queue = VerificationQueue::new(20);
        offer(&mut queue, 0, (1, ""), SUSPECT);
        for number in 1..8 {
            offer(&mut queue, number, (number as u8 + 1, ""), CLEAN);
        }
        assert_eq!(order(&mut queue, 0), [1, 2, 3, 0, 4, 5, 6, 7]);
    }

    #[test]
    fn sources_with_attempts_left_do_not_displace_suspects() {
        let mut queue = VerificationQueue::new(4);
        assert!(offer(&mut queue, 0, (1, "app"), SUSPECT).is_some());
        for number in 1..20 {
            let displaced = offer(&mut queue, number, (number as u8 + 1, "app"), CLEAN);
            assert!(displaced.is_none_or(|displaced| !displaced.contains(&fingerprint(0))));
        }
        assert!(order(&mut queue, 0).contains(&0));
    }

    #[test]
    fn the_pair_with_the_most_places_loses_one_to_another_source_or_name() {
        for (host, name) in [(1, "ops"), (2, "app")] {
            let mut queue = VerificationQueue::new(20);
            for number in 0..4 {
                assert_eq!(offer(&mut queue, number, (1, "app"), SUSPECT), Some(vec![]));
            }
            // The lowest tie-break of all.
            let displaced = offer(&mut queue, 999, (host, name), SUSPECT);
            assert_eq!(displaced, Some(vec![fingerprint(3)]));
            assert_eq!(offer(&mut queue, 998, (1, "app"), SUSPECT), None);
        }
    }

    #[test]
    fn suspects_are_verified_at_a_limited_rate_and_others_without_delay() {
        let mut queue = VerificationQueue::new(20);
        offer(&mut queue, 0, (1, ""), SUSPECT);
        offer(&mut queue, 1, (2, ""), SUSPECT);
        offer(&mut queue, 2, (3, ""), CLEAN);
        assert_eq!(order(&mut queue, 1000), [2, 0]);
        assert_eq!(queue.next_begin(), Some(1000 + SUSPECT_PAUSE_MS));
        assert_eq!(order(&mut queue, 1000 + SUSPECT_PAUSE_MS - 1), [0; 0]);
        assert_eq!(order(&mut queue, 1000 + SUSPECT_PAUSE_MS), [1]);
        assert_eq!(queue.next_begin(), None);
    }

    #[test]
    fn few_verifications_are_in_progress_and_their_connections_are_returned() {
        let mut queue = VerificationQueue::new(20);
        for number in 0..4 {
            offer(&mut queue, number, (number as u8, ""), CLEAN);
        }
        assert_eq!((0..9).filter_map(|_| queue.begin(0)).count(), RUNNING_MAX);
        let keys = [1, 2].map(|index| ConnectionKey { index, generation: 0 });
        queue.wait(fingerprint(0), keys[0]);
        queue.wait(fingerprint(3), keys[1]);
        assert_eq!(queue.count_of_source([10, 0, 0, 0].into()), 1);
        assert_eq!(queue.settle(fingerprint(0)).expect("it runs").keys, [keys[0]]);
        assert!(queue.settle(fingerprint(0)).is_none() && queue.begin(0).is_some());
        assert_eq!(queue.settle_early(fingerprint(3)).expect("it waits").keys, [keys[1]]);
    }

    #[test]
    fn a_result_of_another_shard_frees_no_place_at_the_verifier() {
        let mut queue = VerificationQueue::new(20);
        (0..9).for_each(|number| _ = offer(&mut queue, number, (number as u8, ""), CLEAN));
        while queue.begin(0).is_some() {}
        let key = ConnectionKey { index: 1, generation: 0 };
        queue.wait(fingerprint(0), key);
        let told = queue.settle_early(fingerprint(0)).expect("it is in progress");
        assert_eq!(told.keys, [key]);
        assert!(queue.begin(0).is_none(), "the verifier still has {RUNNING_MAX} of this shard");
        assert_eq!(queue.settle(fingerprint(0)).expect("it is in progress").keys, []);
        assert!(queue.begin(0).is_some());
    }
}
