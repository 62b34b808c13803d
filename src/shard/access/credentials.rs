//! Who may use the API, and what for.
//!
//! Plain secrets are compared at once, by fingerprint. A hash takes tens of milliseconds, too long
//! for a shard's turn: a [`Verification`] goes out, the connection waits, and a verdict comes back.
//!
//! # Guessing
//!
//! Right credentials are never refused because of somebody else's wrong ones, since a whole company
//! may share one address. What is known to be right is let in first of all, whatever the address has
//! done. Only then does it count that an address has presented ten wrong ones within a minute:
//!
//! - Each wrong guess at a plain secret is answered 429 and costs its connection. An address can
//!   guess as often as it can connect, some ten thousand times a second: nothing against 16 random
//!   characters (2^95), too often for a word.
//! - Credentials that a hash would have to judge are turned away with 429 once, unjudged. Who comes
//!   again with the same a second later competes for at most five comparisons a second of each shard,
//!   with the same odds as every other: see `verdicts.rs` for the order and its bound.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use subtle::ConstantTimeEq;

use super::recent::Recent;
use super::tries::{FailedTries, source_of};
use super::verdicts::{Claim, Lot, Rank, Verdicts, Waiters};
use crate::message::{ConnectionKey, Message};
use crate::protocol::credentials::{
    Credentials, Fingerprint, FingerprintKey, Roles, Scheme, Secret, SecretHash, User,
};
use crate::shard::settings::Settings;

/// Credentials of a node that wait for their verdicts, at most: one thread judges them in about
/// the time that a call may take. Beyond it those that are likeliest to be right stay.
const VERIFICATIONS_MAX: usize = 32;

/// How long credentials that proved right against a hash are known after their last use.
const PROVEN_MS: u64 = 300_000;

/// How long credentials that proved wrong, or were turned away unjudged, are remembered, and how
/// many of each, about 100 bytes each: ten thousand guesses a second make a shard forget them after
/// three seconds, when who has the right ones has come again.
const REMEMBERED_MS: u64 = 60_000;
const REMEMBERED_MAX: usize = 32_768;

/// How long after credentials were turned away they count as presented again: the `Retry-After`,
/// less what a timer may be early.
const RETURN_MS: u64 = 900;

/// How long a user name at an address from which right credentials of it came goes before others,
/// and how many such pairs are remembered.
const TRUSTED_MS: u64 = 3_600_000;
const TRUSTED_MAX: usize = 1024;

/// What comes of a request's credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may do what is granted, or nothing.
    Known(Result<Grant, Refusal>),
    /// That is known when the verdict on these credentials is.
    Unknown(Fingerprint),
}

/// Who may come in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// The user's place in the settings; `None`: there are no users.
    pub user: Option<usize>,
    /// What it may do.
    pub roles: Roles,
}

/// Why a request may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No credentials, or none that could be read.
    Missing,
    /// Those of nobody.
    Wrong,
    /// Those of nobody, presented again: no new guess.
    WrongAgain,
    /// Its user may not come from this address.
    Address,
    /// Its user has not the role.
    Role,
    /// Wrong, or not judged yet, from an address that has presented wrong ones too often.
    TooManyTries,
    /// Too many others wait for verdicts.
    Busy,
}

impl Refusal {
    /// The status to answer with, and words.
    pub fn explained(self) -> (u16, &'static str) {
        match self {
            Self::Missing => (401, "this needs the credentials of a user: Basic or Bearer"),
            Self::Wrong | Self::WrongAgain => (401, "these are no user's credentials"),
            Self::Address => (403, "this user may not come from this address; see api.user.from"),
            Self::Role => (403, "this user's roles do not allow it; see api.user.roles"),
            Self::TooManyTries => (
                429,
                "too many wrong credentials came from this address; right ones are let in at \
                       once or when they come again",
            ),
            Self::Busy => (503, "too many credentials wait to be verified; try again"),
        }
    }
}

/// Secrets to be compared with hashes: for the one thread that has the time.
pub struct Verification {
    fingerprint: Fingerprint,
    secret: String,
    // No user: a hash that is checked for the time that it takes.
    candidates: Vec<(Option<usize>, SecretHash)>,
}

impl Verification {
    #[cfg(test)]
    pub(crate) fn of_nobody(fingerprint: Fingerprint) -> Self {
        Self { fingerprint, secret: String::new(), candidates: Vec::new() }
    }

    /// Compares; takes tens of milliseconds for each candidate. The answer is for the shard that
    /// asked.
    pub fn run(self) -> Message {
        let is_right = |(_, hash): &&(_, SecretHash)| hash.matches(&self.secret);
        let user = self.candidates.iter().find(is_right).and_then(|(user, _)| *user);
        Message::Verdict(self.fingerprint, user)
    }
}

/// What a shard knows of the API's users and of who claimed to be one.
pub struct Access {
    users: Arc<[User]>,
    key: FingerprintKey,
    // The credentials of those with plain secrets.
    plain: Vec<(Fingerprint, usize)>,
    // Those that proved right against a hash, and when that is to be forgotten: at most one per user.
    proven: HashMap<Fingerprint, (usize, u64)>,
    // Those that proved wrong, and those that were turned away unjudged.
    refuted: Recent<Fingerprint>,
    turned_away: Recent<Fingerprint>,
    // Sources and user names of those that proved right, as `Claim::pair`.
    trusted: Recent<u64>,
    verdicts: Verdicts,
    // Those that lost their places among the verdicts.
    displaced: Vec<Waiters>,
    tries: FailedTries,
}

impl Access {
    /// Nobody has come yet.
    pub fn new(settings: &Settings) -> Self {
        let (users, key) = (settings.api.users.clone(), settings.api.fingerprint_key.clone());
        Self::of(users, key, (VERIFICATIONS_MAX / settings.shards).max(2))
    }

    fn of(users: Arc<[User]>, key: FingerprintKey, waiting_max: usize) -> Self {
        let plain = |(at, user): (usize, &User)| {
            let Secret::Plain(secret) = &user.secret else { return None };
            let name = match user.scheme {
                Scheme::Basic => user.name.clone(),
                Scheme::Bearer => String::new(),
            };
            let credentials = Credentials { scheme: user.scheme, name, secret: secret.to_string() };
            Some((credentials.fingerprint(&key), at))
        };
        Self {
            plain: users.iter().enumerate().filter_map(plain).collect(),
            users,
            key,
            proven: HashMap::new(),
            refuted: Recent::new(REMEMBERED_MS, REMEMBERED_MAX),
            turned_away: Recent::new(REMEMBERED_MS, REMEMBERED_MAX),
            trusted: Recent::new(TRUSTED_MS, TRUSTED_MAX),
            verdicts: Verdicts::new(waiting_max),
            displaced: Vec::new(),
            tries: FailedTries::new(),
        }
    }

    /// Judges the credentials of a request from `remote`. `authorization` finds the header's value,
    /// which is not looked for if nobody needs any.
    pub fn check<'r>(
        &mut self,
        now_ms: u64,
        remote: IpAddr,
        authorization: impl FnOnce() -> Option<&'r [u8]>,
    ) -> Admission {
        if self.users.is_empty() {
            return Admission::Known(Ok(Grant { user: None, roles: Roles::ALL }));
        }
        let Some(credentials) = authorization().and_then(Credentials::parse) else {
            return Admission::Known(Err(Refusal::Missing));
        };
        let fingerprint = credentials.fingerprint(&self.key);
        match self.known(now_ms, &fingerprint) {
            Some(user) => Admission::Known(self.admit(Some(user), remote)),
            None => self.judge(now_ms, source_of(remote), fingerprint, credentials),
        }
    }

    /// The user with these credentials, if that takes no hash to know. All plain ones are compared,
    /// so that the time tells nothing.
    fn known(&mut self, now_ms: u64, fingerprint: &Fingerprint) -> Option<usize> {
        let plain = self.plain.iter().fold(None, |found, (known, user)| {
            if known.ct_eq(fingerprint).into() { Some(*user) } else { found }
        });
        let proven = self.proven.get_mut(fingerprint).filter(|(_, until_ms)| now_ms < *until_ms);
        let proven = proven.map(|(user, until_ms)| {
            *until_ms = now_ms + PROVEN_MS;
            *user
        });
        plain.or(proven)
    }

    /// Refuses credentials that are not known to be right, or has them wait for a verdict.
    fn judge(
        &mut self,
        now_ms: u64,
        source: IpAddr,
        fingerprint: Fingerprint,
        credentials: Credentials,
    ) -> Admission {
        if self.verdicts.are_awaited(fingerprint) {
            return Admission::Unknown(fingerprint);
        }
        let awaited = self.verdicts.awaited_of(source);
        let is_guessing = self.tries.are_spent(now_ms, source, awaited);
        let is_repeat = self.refuted.count(now_ms, fingerprint) > 0;
        let candidates = self.candidates(&credentials);
        if is_repeat || candidates.is_empty() {
            self.refuted.note(now_ms, fingerprint);
            return Admission::Known(Err(match (is_guessing, is_repeat) {
                (true, _) => Refusal::TooManyTries,
                (false, true) => Refusal::WrongAgain,
                (false, false) => Refusal::Wrong,
            }));
        }
        let Credentials { name, secret, .. } = credentials;
        let claim = self.claim(now_ms, fingerprint, source, name, !is_guessing);
        let refusal = if is_guessing { Refusal::TooManyTries } else { Refusal::Busy };
        if is_guessing && !claim.rank.has_returned {
            self.turn_away(now_ms, fingerprint);
            return Admission::Known(Err(refusal));
        }
        match self.verdicts.offer(claim, Verification { fingerprint, secret, candidates }) {
            Ok(displaced) => {
                self.displaced.extend(displaced);
                Admission::Unknown(fingerprint)
            }
            Err(_) => {
                self.turn_away(now_ms, fingerprint);
                Admission::Known(Err(refusal))
            }
        }
    }

    /// What decides when these credentials are judged.
    fn claim(
        &mut self,
        now_ms: u64,
        fingerprint: Fingerprint,
        source: IpAddr,
        name: String,
        has_tries: bool,
    ) -> Claim {
        let pair = self.key.lot(&[source.to_string().as_bytes(), name.as_bytes()]);
        let own = self.key.lot(&[fingerprint.as_bytes()]);
        // Each begins its seconds at a moment of its own. If all drew new lots at once, it would
        // matter when in a second somebody comes.
        let second = |whose: u64| ((now_ms + whose % 1000) / 1000).to_le_bytes();
        let turned_away = self.turned_away.since(now_ms, fingerprint);
        let rank = Rank {
            has_tries,
            // Without tries it proves nothing: whoever guesses there comes from the same source.
            is_trusted: has_tries && self.trusted.count(now_ms, pair) > 0,
            has_returned: turned_away.is_some_and(|first_ms| first_ms + RETURN_MS <= now_ms),
        };
        let lot = Lot {
            of_pair: self.key.lot(&[&pair.to_le_bytes(), &second(pair)]),
            of_claim: self.key.lot(&[&own.to_le_bytes(), &second(own)]),
        };
        Claim { fingerprint, source, name, pair, rank, lot }
    }

    /// The hashes that credentials are to be compared with. If passwords are hashed, any name gets
    /// one: the time does not tell whether there is such a user.
    fn candidates(&self, credentials: &Credentials) -> Vec<(Option<usize>, SecretHash)> {
        let hashed = self.users.iter().enumerate().filter_map(|(at, user)| match &user.secret {
            Secret::Hashed(hash) if user.scheme == credentials.scheme => Some((at, user, hash)),
            _ => None,
        });
        let mut hashed = hashed.peekable();
        if credentials.scheme == Scheme::Bearer {
            return hashed.map(|(at, _, hash)| (Some(at), hash.clone())).collect();
        }
        let decoy = hashed.peek().map(|(_, _, hash)| (None, (*hash).clone()));
        let named = hashed.find(|(_, user, _)| user.name == credentials.name);
        named.map(|(at, _, hash)| (Some(at), hash.clone())).or(decoy).into_iter().collect()
    }

    /// What a request from `remote` may do with the credentials of this user.
    pub fn admit(&self, user: Option<usize>, remote: IpAddr) -> Result<Grant, Refusal> {
        let known = &self.users[user.ok_or(Refusal::Wrong)?];
        match known.may_come_from(remote) {
            true => Ok(Grant { user, roles: known.roles }),
            false => Err(Refusal::Address),
        }
    }

    /// Takes in a verdict; gives who waits for it. With `is_own`, this shard asked for it; what
    /// another shard asked for counts here too.
    pub fn settle(
        &mut self,
        now_ms: u64,
        fingerprint: Fingerprint,
        user: Option<usize>,
        is_own: bool,
    ) -> Option<Waiters> {
        let waiters = match is_own {
            true => self.verdicts.settle(fingerprint),
            false => self.verdicts.settle_early(fingerprint),
        };
        match user {
            Some(user) => {
                self.proven.retain(|_, &mut (known, _)| known != user);
                self.proven.insert(fingerprint, (user, now_ms + PROVEN_MS));
                if let Some(waiters) = &waiters {
                    self.trusted.note(now_ms, waiters.pair);
                }
            }
            None => _ = self.refuted.note(now_ms, fingerprint),
        }
        waiters
    }

    /// The next comparison to be made elsewhere.
    pub fn begin_verification(&mut self, now_ms: u64) -> Option<Verification> {
        self.verdicts.begin(now_ms)
    }

    /// When [`Self::begin_verification`] has one again, if time alone decides that.
    pub fn next_verification(&self) -> Option<u64> {
        self.verdicts.next_begin()
    }

    /// A connection waits for the verdict on these credentials, which is awaited.
    pub fn wait(&mut self, fingerprint: Fingerprint, key: ConnectionKey) {
        self.verdicts.wait(fingerprint, key);
    }

    /// Those that lost their places among the verdicts to others, likelier to be right.
    pub fn take_displaced(&mut self, now_ms: u64) -> Vec<Waiters> {
        let displaced = std::mem::take(&mut self.displaced);
        for waiters in &displaced {
            self.turn_away(now_ms, waiters.fingerprint);
        }
        displaced
    }

    /// These credentials were turned away unjudged: they go before others when they come again.
    pub fn turn_away(&mut self, now_ms: u64, fingerprint: Fingerprint) {
        self.turned_away.note(now_ms, fingerprint);
    }

    /// Wrong credentials came from this source; true if they were its last try.
    pub fn note_wrong(&mut self, now_ms: u64, source: IpAddr) -> bool {
        self.tries.note(now_ms, source)
    }
}

#[cfg(test)]
mod tests {
    use super::Admission::{Known, Unknown};
    use super::*;

    /// The hash of `open sesame`, at the least cost there is.
    const HASH: &str = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ\
                        $hB+3w+XCqbeX/gTIqKvDd3rvONixo8T2Dgv6KiwCGcs";

    fn user(name: &str, scheme: Scheme, secret: &str) -> User {
        let secret = match SecretHash::parse(secret) {
            Some(hash) => Secret::Hashed(hash),
            None => Secret::Plain(secret.into()),
        };
        let roles = Roles { read: name == "reader", write: name == "writer" };
        User { name: name.into(), scheme, secret, roles, from: Vec::new(), requests_per_s: 0 }
    }

    fn access(users: Vec<User>) -> Access {
        Access::of(users.into(), FingerprintKey::new([7; 32]), 2)
    }

    fn remote() -> IpAddr {
        [10, 0, 0, 1].into()
    }

    fn basic(name: &str, password: &str) -> String {
        use base64::Engine as _;
        let pair = format!("{name}:{password}");
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
    }

    fn check(access: &mut Access, now_ms: u64, authorization: &str) -> Admission {
        access.check(now_ms, remote(), || Some(authorization.as_bytes()))
    }

    /// Runs the next verification and settles it; whose credentials they were.
    fn verdict(access: &mut Access, now_ms: u64) -> Option<usize> {
        let verification = access.verdicts.begin(now_ms).expect("one was asked for");
        let Message::Verdict(fingerprint, user) = verification.run() else { panic!("a verdict") };
        access.settle(now_ms, fingerprint, user, true);
        user
    }

    const READER: Grant = Grant { user: Some(0), roles: Roles { read: true, write: false } };
    const WRITER: Grant = Grant { user: Some(1), roles: Roles { read: false, write: true } };

    #[test]
    fn without_users_everybody_may_do_everything() {
        let mut access = access(Vec::new());
        let all = Grant { user: None, roles: Roles::ALL };
        assert_eq!(access.check(0, remote(), || None), Known(Ok(all)));
        assert_eq!(check(&mut access, 0, "Bearer x"), Known(Ok(all)));
    }

    #[test]
    fn plain_secrets_are_judged_at_once() {
        let mut access = access(vec![
            user("reader", Scheme::Basic, "open sesame"),
            user("writer", Scheme::Bearer, "open-sesame"),
        ]);
        assert_eq!(check(&mut access, 0, &basic("reader", "open sesame")), Known(Ok(READER)));
        assert_eq!(check(&mut access, 0, "Bearer open-sesame"), Known(Ok(WRITER)));
        for wrong in ["Bearer open-sesam", &basic("writer", "open-sesame"), &basic("reader", "")] {
            assert_eq!(check(&mut access, 0, wrong), Known(Err(Refusal::Wrong)), "{wrong}");
        }
        assert_eq!(access.check(0, remote(), || None), Known(Err(Refusal::Missing)));
        assert!(access.verdicts.begin(0).is_none());
    }

    #[test]
    fn a_hash_is_verified_once_and_then_known_for_a_while() {
        let mut access = access(vec![user("reader", Scheme::Basic, HASH)]);
        let right = basic("reader", "open sesame");
        assert!(matches!(check(&mut access, 0, &right), Unknown(_)));
        assert!(matches!(check(&mut access, 0, &right), Unknown(_)), "the same verdict is awaited");
        assert_eq!(verdict(&mut access, 10), Some(0));
        assert!(access.verdicts.begin(10).is_none());
        assert_eq!(check(&mut access, 10 + PROVEN_MS - 1, &right), Known(Ok(READER)));
        // Each use counts.
        assert_eq!(check(&mut access, 8 + 2 * PROVEN_MS, &right), Known(Ok(READER)));
        assert!(matches!(check(&mut access, 8 + 3 * PROVEN_MS, &right), Unknown(_)));
    }

    #[test]
    fn wrong_credentials_are_refused_without_a_hash_when_they_come_again() {
        let mut access = access(vec![user("reader", Scheme::Basic, HASH)]);
        let wrong = basic("reader", "sesame");
        assert!(matches!(check(&mut access, 0, &wrong), Unknown(_)));
        assert_eq!(verdict(&mut access, 0), None);
        let again = Known(Err(Refusal::WrongAgain));
        assert_eq!(check(&mut access, REMEMBERED_MS - 1, &wrong), again);
        assert!(access.proven.is_empty() && access.verdicts.begin(0).is_none());
        assert!(matches!(check(&mut access, REMEMBERED_MS, &wrong), Unknown(_)));
    }

    #[test]
    fn a_name_that_nobody_has_takes_a_hash_too_and_never_comes_in() {
        let plain = user("writer", Scheme::Basic, "plain");
        let mut access = access(vec![user("reader", Scheme::Basic, HASH), plain]);
        for name in ["nobody", "writer"] {
            assert!(matches!(check(&mut access, 0, &basic(name, "open sesame")), Unknown(_)));
            assert_eq!(verdict(&mut access, 0), None, "the right password of another");
        }
        assert_eq!(check(&mut access, 0, &basic("writer", "plain")), Known(Ok(WRITER)));
    }

    #[test]
    fn a_token_is_compared_with_every_hash_of_a_token() {
        let mut access = access(vec![
            user("a", Scheme::Bearer, &HASH.replace("c29tZXNhbHQ", "c29tZXNhbHU")),
            user("writer", Scheme::Bearer, HASH),
        ]);
        let credentials = Credentials {
            scheme: Scheme::Bearer,
            name: String::new(),
            secret: "open sesame".into(),
        };
        let fingerprint = credentials.fingerprint(&access.key);
        let judged = access.judge(0, remote(), fingerprint, credentials);
        assert_eq!(judged, Unknown(fingerprint));
        assert_eq!(verdict(&mut access, 0), Some(1));
    }

    #[test]
    fn who_was_turned_away_and_comes_again_goes_before_those_who_come_first() {
        let mut access = access(vec![user("reader", Scheme::Basic, HASH)]);
        for guess in ["1", "2"] {
            assert!(matches!(check(&mut access, 0, &basic("reader", guess)), Unknown(_)));
        }
        let right = basic("reader", "open sesame");
        let credentials = Credentials::parse(right.as_bytes()).expect("they are written so");
        let fingerprint = credentials.fingerprint(&access.key);
        access.turn_away(0, fingerprint);
        assert!(matches!(check(&mut access, 1000, &right), Unknown(_)));
        assert_eq!(access.displaced.len(), 1, "a guess lost its place");
        assert_eq!(verdict(&mut access, 1000), Some(0));
        assert_eq!(check(&mut access, 1000, &right), Known(Ok(READER)));
    }

    /// Presents wrong credentials until the source has no try left.
    fn spend_tries(access: &mut Access) {
        (0..10).for_each(|_| _ = access.tries.note(0, remote()));
    }

    #[test]
    fn after_too_many_tries_right_credentials_that_are_known_are_let_in() {
        let plain = user("reader", Scheme::Basic, "plain");
        let mut access = access(vec![plain, user("writer", Scheme::Basic, HASH)]);
        let right = basic("writer", "open sesame");
        assert!(matches!(check(&mut access, 0, &right), Unknown(_)));
        verdict(&mut access, 0);
        spend_tries(&mut access);
        assert_eq!(check(&mut access, 0, &basic("reader", "plain")), Known(Ok(READER)));
        assert_eq!(check(&mut access, 0, &right), Known(Ok(WRITER)));
        let wrong = basic("nobody", "plain");
        assert_eq!(check(&mut access, 0, &wrong), Known(Err(Refusal::TooManyTries)));
    }

    #[test]
    fn after_too_many_tries_a_hash_is_taken_for_those_who_come_again_alone() {
        let mut access = access(vec![user("reader", Scheme::Basic, HASH)]);
        spend_tries(&mut access);
        let too_many = Known(Err(Refusal::TooManyTries));
        for guess in 0..100 {
            assert_eq!(check(&mut access, 0, &basic("reader", &guess.to_string())), too_many);
        }
        assert!(access.verdicts.begin(0).is_none(), "no guess has cost a hash");
        let right = basic("reader", "open sesame");
        assert_eq!(check(&mut access, 0, &right), too_many);
        assert!(matches!(check(&mut access, 1000, &right), Unknown(_)));
        assert_eq!(verdict(&mut access, 1000), Some(0));
        assert_eq!(check(&mut access, 1000, &right), Known(Ok(READER)));
    }

    /// Guesses that somebody has prepared, and the right credentials among them.
    #[derive(Clone, Copy)]
    struct Guessing {
        stock: usize,
        source: fn(usize) -> [u8; 4],
        // The right ones come from an address without tries left.
        is_suspect: bool,
        // Made every 200 ms.
        hashes: usize,
    }

    /// How often right credentials are presented, once a second, until they are judged. The guesser
    /// keeps a stock of guesses that were turned away hundreds of times, presents each of them every
    /// 200 ms, last before comparisons begin, and replaces each that is judged.
    fn presentations(seed: u8, guessing: Guessing) -> usize {
        let Guessing { stock, source, is_suspect, hashes } = guessing;
        let users = vec![user("reader", Scheme::Basic, HASH)];
        let key = FingerprintKey::new([seed; 32]);
        let mut access = Access::of(users.into(), key.clone(), VERIFICATIONS_MAX);
        if is_suspect {
            spend_tries(&mut access);
        }
        let credentials = |secret: String| {
            let credentials = Credentials { scheme: Scheme::Basic, name: "reader".into(), secret };
            (credentials.fingerprint(&key), credentials)
        };
        let prepared: Vec<_> = (0..900).map(|n| credentials(format!("guess {n}"))).collect();
        let guess = |number: usize| prepared[number].clone();
        let (right, _) = credentials("open sesame".into());
        for (fingerprint, _) in &prepared {
            (0..255).for_each(|_| access.turn_away(1, *fingerprint));
        }
        let mut guesses: Vec<usize> = (0..stock).collect();
        let mut fresh = stock..900;
        for step in 0..290 {
            let now_ms = 1000 + 200 * step as u64;
            if step % 5 == 2 {
                let (fingerprint, credentials) = credentials("open sesame".into());
                access.judge(now_ms, remote(), fingerprint, credentials);
            }
            for &number in &guesses {
                let (fingerprint, credentials) = guess(number);
                access.judge(now_ms, source(number).into(), fingerprint, credentials);
            }
            access.take_displaced(now_ms);
            for _ in 0..hashes {
                let Some(verification) = access.begin_verification(now_ms) else { break };
                let judged = verification.fingerprint;
                if judged == right {
                    return step / 5 + 1;
                }
                access.settle(now_ms, judged, None, true);
                for number in &mut guesses {
                    if prepared[*number].0 == judged {
                        *number = fresh.next().expect("there are enough");
                    }
                }
            }
        }
        panic!("right credentials are not judged in {} presentations", 290 / 5);
    }

    #[test]
    fn whoever_presents_prepared_guesses_again_and_again_has_no_better_odds() {
        let here: fn(usize) -> [u8; 4] = |_| [10, 0, 0, 1];
        let everywhere: fn(usize) -> [u8; 4] = |n| [172, 16, (n >> 8) as u8, n as u8];
        let few = Guessing { stock: 3, source: here, is_suspect: true, hashes: 1 };
        let elsewhere = Guessing { stock: 20, source: everywhere, is_suspect: true, hashes: 4 };
        // 2 + n / 5, where n counts the five a second that are replaced too; where there are tries left,
        // 2 + n / 20, since 20 comparisons a second are made here.
        for (guessing, average_max) in [
            (few, 4),
            (Guessing { stock: 20, ..few }, 8),
            (elsewhere, 3),
            (Guessing { stock: 100, is_suspect: false, ..elsewhere }, 9),
        ] {
            let all = (0..15).map(|seed| presentations(seed, guessing)).sum::<usize>();
            let stock = guessing.stock;
            assert!(all <= 15 * average_max, "{all} presentations of 15 with {stock} guesses");
        }
    }

    #[test]
    fn tries_count_when_they_are_taken_not_when_they_are_judged() {
        let mut access = access(vec![user("reader", Scheme::Basic, HASH)]);
        (0..9).for_each(|_| _ = access.tries.note(0, remote()));
        assert!(matches!(check(&mut access, 0, &basic("reader", "1")), Unknown(_)));
        let too_many = Known(Err(Refusal::TooManyTries));
        assert_eq!(check(&mut access, 0, &basic("reader", "2")), too_many);
    }

    #[test]
    fn a_user_from_elsewhere_is_refused_only_with_the_right_secret() {
        let mut elsewhere = user("reader", Scheme::Basic, "plain");
        elsewhere.from = vec!["192.168.0.0/16".parse().expect("a range")];
        let mut access = access(vec![elsewhere]);
        let (right, wrong) = (basic("reader", "plain"), basic("reader", "plan"));
        assert_eq!(check(&mut access, 0, &right), Known(Err(Refusal::Address)));
        assert_eq!(check(&mut access, 0, &wrong), Known(Err(Refusal::Wrong)));
    }
}
