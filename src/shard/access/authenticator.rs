//! Authenticates requests to the API.
//!
//! A plain secret is compared at once, by its fingerprint. A hashed secret takes tens of
//! milliseconds, too long for a shard's turn: the shard hands out a [`Verification`], the request
//! waits, and the result comes back as a message.
//!
//! # Guessing
//!
//! One address may be shared by a whole company, so wrong credentials never lock out right ones.
//! Credentials that are known to be right are accepted first, whatever their address has done.
//! Other credentials are limited once their address has presented ten wrong ones within a minute:
//!
//! - Plain secrets: each wrong guess is answered 429 and closes its connection. An address can
//!   still guess as often as it can connect, about ten thousand times a second. That is harmless
//!   for 16 random characters (2^95 values), but not for a word of a dictionary.
//! - Hashed secrets: the first request with these credentials is answered 429 without a
//!   verification. A client that repeats it a second later competes for at most five verifications
//!   a second of each shard, with the same odds as everybody else; see `verification_queue.rs`.

use std::net::IpAddr;

use hashbrown::HashMap;
use subtle::ConstantTimeEq;

use super::failed_attempts::{FailedAttempts, source_of};
use super::recent::Recent;
use super::verification_queue::{Claim, Rank, TieBreak, VerificationQueue, Waiters};
use crate::message::{ConnectionKey, FromNode};
use crate::protocol::credentials::{
    Credentials, Fingerprint, FingerprintKey, Roles, Scheme, Secret, SecretHash, User,
};
use crate::shard::settings::Settings;
use crate::shard::users::Users;

/// The number of credentials of a node that may wait for verification. The node's one verifier
/// thread gets through them in about the time that a call may take. Beyond it those with the
/// highest rank stay.
const VERIFICATIONS_MAX: usize = 32;

/// How long verified credentials are accepted without another verification, after their last use.
const PROVEN_MS: u64 = 300_000;

/// How long wrong credentials, and credentials that were deferred, are remembered.
const REMEMBERED_MS: u64 = 60_000;

/// How many wrong and how many deferred credentials are remembered, at about 100 bytes each. Beyond
/// it the oldest are forgotten: after three seconds of ten thousand guesses a second. By then a
/// client with the right credentials has retried.
const REMEMBERED_MAX: usize = 32_768;

/// How long after their deferral credentials count as retried: the `Retry-After`, less the time by
/// which a client's timer may be early.
const RETURN_MS: u64 = 900;

/// How long a pair of address and user name is trusted after right credentials.
const TRUSTED_MS: u64 = 3_600_000;

/// How many trusted pairs are remembered. Beyond it the oldest is forgotten.
const TRUSTED_MAX: usize = 1024;

/// The result of checking a request's credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialCheck {
    /// The request is granted or denied.
    Decided(Result<Grant, Denial>),
    /// The credentials with this fingerprint have to be verified first.
    Pending(Fingerprint),
}

/// The permission of an authenticated request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// The user's index in the settings; `None` if the settings have no users.
    pub user: Option<usize>,
    /// The roles that the user has.
    pub roles: Roles,
}

/// Why a request is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// There are no credentials, or they cannot be parsed.
    Missing,
    /// No user has these credentials.
    Wrong,
    /// No user has these credentials, and they were presented before. Not counted as another guess.
    WrongAgain,
    /// The user may not connect from this address.
    Address,
    /// The user lacks the role.
    Role,
    /// The credentials are wrong or not verified, and their address has presented wrong ones too
    /// often.
    TooManyAttempts,
    /// Too many other requests wait for verification.
    Busy,
}

impl Denial {
    /// Returns the status of the response.
    pub fn status(self) -> u16 {
        match self {
            Self::Missing | Self::Wrong | Self::WrongAgain => 401,
            Self::Address | Self::Role => 403,
            Self::TooManyAttempts => 429,
            Self::Busy => 503,
        }
    }

    /// Returns the error message of the response.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Missing => "this needs the credentials of a user: Basic or Bearer",
            Self::Wrong | Self::WrongAgain => "these are no user's credentials",
            Self::Address => "this user may not come from this address; see api.user.from",
            Self::Role => "this user's roles do not allow it; see api.user.roles",
            Self::TooManyAttempts => {
                "too many wrong credentials came from this address; right ones are let in at \
                       once or when they come again"
            }
            Self::Busy => "too many credentials wait to be verified; try again",
        }
    }
}

/// A secret and the hashes to compare it with. Run by the node's verifier thread.
pub struct Verification {
    fingerprint: Fingerprint,
    secret: String,
    candidates: Vec<Candidate>,
}

/// A hash that a secret is compared with.
struct Candidate {
    // The index of the hash's user in the settings. `None`: a decoy, compared so that an unknown
    // user name takes as long as a known one.
    user: Option<usize>,
    hash: SecretHash,
}

impl Candidate {
    fn new(user: Option<usize>, hash: &SecretHash) -> Self {
        Self { user, hash: hash.clone() }
    }
}

impl Verification {
    /// Creates a verification without hashes, whose credentials are wrong.
    #[cfg(test)]
    pub(crate) fn of_nobody(fingerprint: Fingerprint) -> Self {
        Self { fingerprint, secret: String::new(), candidates: Vec::new() }
    }

    /// Compares the secret with each hash. Takes tens of milliseconds per hash. The returned
    /// message is for the shard that handed the verification out.
    pub fn run(self) -> FromNode {
        let is_right = |candidate: &&Candidate| candidate.hash.matches(&self.secret);
        let user = self.candidates.iter().find(is_right).and_then(|candidate| candidate.user);
        FromNode::VerificationDone { credentials: self.fingerprint, user }
    }
}

/// The API's users, and the credentials that were presented to a shard.
pub(super) struct Authenticator {
    users: Users,
    key: FingerprintKey,
    // Users with a plain secret: the fingerprint of their credentials, and their index in `users`.
    plain: Vec<(Fingerprint, usize)>,
    // Credentials that were verified: at most one entry per user.
    proven: HashMap<Fingerprint, Proven>,
    // Credentials that were wrong: at most REMEMBERED_MAX.
    refuted: Recent<Fingerprint>,
    // Credentials that were denied without a verification: at most REMEMBERED_MAX.
    deferred: Recent<Fingerprint>,
    // Pairs of source and user name (`Claim::pair`) with right credentials: at most TRUSTED_MAX.
    trusted: Recent<u64>,
    queue: VerificationQueue,
    // Requests that lost their places in `queue`. Taken out after each check that may add some.
    displaced: Vec<Waiters>,
    failed_attempts: FailedAttempts,
}

/// The user of verified credentials.
#[derive(Debug)]
struct Proven {
    user: usize,
    until_ms: u64,
}

/// Returns the fingerprints of the credentials of users with a plain secret.
fn plain(users: &Users, key: &FingerprintKey) -> Vec<(Fingerprint, usize)> {
    let plain = |(index, user): (usize, &User)| {
        let Secret::Plain(secret) = &user.secret else { return None };
        let name = match user.scheme {
            Scheme::Basic => user.name.clone(),
            Scheme::Bearer => String::new(),
        };
        let credentials = Credentials { scheme: user.scheme, name, secret: secret.to_string() };
        Some((credentials.fingerprint(key), index))
    };
    users.iter().filter_map(plain).collect()
}

impl Authenticator {
    /// Creates an authenticator for the users in `settings`.
    pub(super) fn new(settings: &Settings) -> Self {
        let (users, key) = (settings.api.users.clone(), settings.api.fingerprint_key.clone());
        Self::of(users, key, (VERIFICATIONS_MAX / settings.shards).max(2))
    }

    /// Handles reloaded users. Credentials that are verified at present count if they prove to be right, and
    /// otherwise have to be presented again: they may be those of a user that was added.
    pub(super) fn handle_users(&mut self, users: Users) {
        self.plain = plain(&users, &self.key);
        self.proven.retain(|_, proven| users.get(proven.user).is_some());
        self.refuted = Recent::new(REMEMBERED_MS, REMEMBERED_MAX);
        self.queue.mark_outdated();
        self.users = users;
    }

    fn of(users: Users, key: FingerprintKey, waiting_max: usize) -> Self {
        Self {
            plain: plain(&users, &key),
            users,
            key,
            proven: HashMap::new(),
            refuted: Recent::new(REMEMBERED_MS, REMEMBERED_MAX),
            deferred: Recent::new(REMEMBERED_MS, REMEMBERED_MAX),
            trusted: Recent::new(TRUSTED_MS, TRUSTED_MAX),
            queue: VerificationQueue::new(waiting_max),
            displaced: Vec::new(),
            failed_attempts: FailedAttempts::new(),
        }
    }

    /// Checks the credentials of a request from `remote`. `presented` parses them; it is not called
    /// if the settings have no users.
    pub(super) fn check(
        &mut self,
        now_ms: u64,
        remote: IpAddr,
        presented: impl FnOnce() -> Option<Credentials>,
    ) -> CredentialCheck {
        if self.users.is_empty() {
            return CredentialCheck::Decided(Ok(Grant { user: None, roles: Roles::ALL }));
        }
        let Some(credentials) = presented() else {
            return CredentialCheck::Decided(Err(Denial::Missing));
        };
        let fingerprint = credentials.fingerprint(&self.key);
        match self.known(now_ms, &fingerprint) {
            Some(user) => CredentialCheck::Decided(self.admit(Some(user), remote)),
            None => self.check_unknown(now_ms, source_of(remote), fingerprint, credentials),
        }
    }

    /// Returns the user with these credentials if no hash has to be computed. Compares all plain
    /// secrets in constant time, so that the duration reveals nothing.
    fn known(&mut self, now_ms: u64, fingerprint: &Fingerprint) -> Option<usize> {
        let plain = self.plain.iter().fold(None, |found, (known, user)| {
            if known.ct_eq(fingerprint).into() { Some(*user) } else { found }
        });
        let proven = self.proven.get_mut(fingerprint).filter(|proven| now_ms < proven.until_ms);
        let proven = proven.map(|proven| {
            proven.until_ms = now_ms + PROVEN_MS;
            proven.user
        });
        plain.or(proven)
    }

    /// Checks credentials that are not known to be right: denies them, or queues their
    /// verification.
    fn check_unknown(
        &mut self,
        now_ms: u64,
        source: IpAddr,
        fingerprint: Fingerprint,
        credentials: Credentials,
    ) -> CredentialCheck {
        if self.queue.contains(fingerprint) {
            return CredentialCheck::Pending(fingerprint);
        }
        let awaited = self.queue.count_of_source(source);
        let is_guessing = self.failed_attempts.are_exhausted(now_ms, source, awaited);
        let is_repeat = self.refuted.count(now_ms, fingerprint) > 0;
        let candidates = self.candidates(&credentials);
        if is_repeat || candidates.is_empty() {
            self.refuted.note(now_ms, fingerprint);
            return CredentialCheck::Decided(Err(match (is_guessing, is_repeat) {
                (true, _) => Denial::TooManyAttempts,
                (false, true) => Denial::WrongAgain,
                (false, false) => Denial::Wrong,
            }));
        }
        let Credentials { name, secret, .. } = credentials;
        let claim = self.claim(now_ms, fingerprint, source, name, !is_guessing);
        let denial = if is_guessing { Denial::TooManyAttempts } else { Denial::Busy };
        if is_guessing && !claim.rank.has_returned {
            self.defer(now_ms, fingerprint);
            return CredentialCheck::Decided(Err(denial));
        }
        match self.queue.offer(claim, Verification { fingerprint, secret, candidates }) {
            Ok(displaced) => {
                self.displaced.extend(displaced);
                CredentialCheck::Pending(fingerprint)
            }
            Err(_) => {
                self.defer(now_ms, fingerprint);
                CredentialCheck::Decided(Err(denial))
            }
        }
    }

    /// Builds the claim that decides when these credentials are verified.
    fn claim(
        &mut self,
        now_ms: u64,
        fingerprint: Fingerprint,
        source: IpAddr,
        name: String,
        has_attempts_left: bool,
    ) -> Claim {
        let pair = self.key.lot(&[source.to_string().as_bytes(), name.as_bytes()]);
        let own = self.key.lot(&[fingerprint.as_bytes()]);
        // Each pair and each fingerprint begins its seconds at a moment of its own. If all
        // tie-breaks changed at once, a client could improve its odds by the moment of its request.
        let second = |whose: u64| ((now_ms + whose % 1000) / 1000).to_le_bytes();
        let deferred = self.deferred.since(now_ms, fingerprint);
        let rank = Rank {
            has_attempts_left,
            // Without attempts left the pair proves nothing: the guesses come from this source too.
            is_trusted: has_attempts_left && self.trusted.count(now_ms, pair) > 0,
            has_returned: deferred.is_some_and(|first_ms| first_ms + RETURN_MS <= now_ms),
        };
        let tie_break = TieBreak {
            of_pair: self.key.lot(&[&pair.to_le_bytes(), &second(pair)]),
            of_claim: self.key.lot(&[&own.to_le_bytes(), &second(own)]),
        };
        Claim { fingerprint, source, name, pair, rank, tie_break }
    }

    /// Returns the hashes to compare credentials with. If any user has a hashed password, an
    /// unknown name gets a decoy: the duration does not reveal which users exist.
    fn candidates(&self, credentials: &Credentials) -> Vec<Candidate> {
        let hashed = self.users.iter().filter_map(|(at, user)| match &user.secret {
            Secret::Hashed(hash) if user.scheme == credentials.scheme => Some((at, user, hash)),
            _ => None,
        });
        let mut hashed = hashed.peekable();
        if credentials.scheme == Scheme::Bearer {
            return hashed.map(|(at, _, hash)| Candidate::new(Some(at), hash)).collect();
        }
        let decoy = hashed.peek().map(|(_, _, hash)| Candidate::new(None, hash));
        let named = hashed.find(|(_, user, _)| user.name == credentials.name);
        named.map(|(at, _, hash)| Candidate::new(Some(at), hash)).or(decoy).into_iter().collect()
    }

    /// Grants or denies a request from `remote` with the credentials of a user. `None`: of no user.
    pub(super) fn admit(&self, user: Option<usize>, remote: IpAddr) -> Result<Grant, Denial> {
        let known = user.and_then(|user| self.users.get(user)).ok_or(Denial::Wrong)?;
        match known.may_come_from(remote) {
            true => Ok(Grant { user, roles: known.roles }),
            false => Err(Denial::Address),
        }
    }

    /// Records the result of a verification; returns the requests that wait for it. `is_own`: this
    /// shard asked for the verification, not another one of the node.
    pub(super) fn settle(
        &mut self,
        now_ms: u64,
        fingerprint: Fingerprint,
        user: Option<usize>,
        is_own: bool,
    ) -> Option<Waiters> {
        let waiters = match is_own {
            true => self.queue.settle(fingerprint),
            false => self.queue.settle_early(fingerprint),
        };
        match user.filter(|&user| self.users.get(user).is_some()) {
            Some(user) => {
                self.proven.retain(|_, known| known.user != user);
                self.proven.insert(fingerprint, Proven { user, until_ms: now_ms + PROVEN_MS });
                if let Some(waiters) = &waiters {
                    self.trusted.note(now_ms, waiters.pair);
                }
            }
            None if waiters.as_ref().is_none_or(|waiters| waiters.is_outdated) => {}
            None => _ = self.refuted.note(now_ms, fingerprint),
        }
        waiters
    }

    /// Returns the next verification to run, if one may begin now.
    pub(super) fn begin_verification(&mut self, now_ms: u64) -> Option<Verification> {
        self.queue.begin(now_ms)
    }

    /// Returns when [`Self::begin_verification`] has another one, if only the time decides that.
    pub(super) fn next_verification(&self) -> Option<u64> {
        self.queue.next_begin()
    }

    /// Adds a connection to those that wait for the verification of these credentials.
    pub(super) fn wait(&mut self, fingerprint: Fingerprint, key: ConnectionKey) {
        self.queue.wait(fingerprint, key);
    }

    /// Takes out the requests that lost their places in the queue, and remembers them as deferred.
    pub(super) fn take_displaced(&mut self, now_ms: u64) -> Vec<Waiters> {
        let displaced = std::mem::take(&mut self.displaced);
        for waiters in &displaced {
            self.defer(now_ms, waiters.fingerprint);
        }
        displaced
    }

    /// Remembers that credentials were denied without a verification. Their rank is higher when
    /// retried.
    pub(super) fn defer(&mut self, now_ms: u64, fingerprint: Fingerprint) {
        self.deferred.note(now_ms, fingerprint);
    }

    /// Counts wrong credentials from a source; returns true if it has no attempt left now.
    pub(super) fn note_wrong(&mut self, now_ms: u64, source: IpAddr) -> bool {
        self.failed_attempts.note(now_ms, source)
    }
}

#[cfg(test)]
mod tests;
