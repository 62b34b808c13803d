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
//!   again with the same, as a client does that has but one secret, is judged; a guesser has to come
//!   twice for each guess, and all such guesses together are at most five a second for each shard.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use subtle::ConstantTimeEq;

use super::Shard;
use super::connection::{Connection, Parked, Pause, Phase, Stage};
use super::recent::Recent;
use super::replies::{HttpShape, Shape};
use super::settings::Settings;
use super::trail::{self, Entry};
use super::tries::{FailedTries, source_of};
use super::verdicts::{Claim, Rank, Verdicts, Waiters};
use crate::message::{ConnectionKey, Message};
use crate::protocol::api::{Call, Code, Fault};
use crate::protocol::credentials::{
    CHALLENGE, Credentials, Fingerprint, FingerprintKey, Roles, Scheme, Secret, SecretHash, User,
};
use crate::protocol::http::{KeptRequest, Request};

pub use super::verdicts::RUNNING_MAX;

/// Credentials of a node that wait for their verdicts, at most: one thread judges them in about
/// the time that a call may take. Beyond it those that are likeliest to be right stay.
const VERIFICATIONS_MAX: usize = 32;

/// How long credentials that proved right against a hash are known after their last use.
const PROVEN_MS: u64 = 300_000;

/// How long credentials that proved wrong, or were turned away unjudged, are remembered, and how
/// many of each: 64 bytes each.
const REMEMBERED_MS: u64 = 60_000;
const REMEMBERED_MAX: usize = 4096;

/// How long an address that presented right credentials goes before others, and how many of them
/// are remembered.
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
    fn explained(self) -> (u16, &'static str) {
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
    pub(super) fn of_nobody(fingerprint: Fingerprint) -> Self {
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
    // Sources of those that proved right.
    trusted: Recent<IpAddr>,
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
        let rank = Rank {
            has_tries: !is_guessing,
            is_trusted: self.trusted.count(now_ms, source) > 0,
            returns: self.turned_away.count(now_ms, fingerprint),
        };
        let refusal = if is_guessing { Refusal::TooManyTries } else { Refusal::Busy };
        if is_guessing && rank.returns == 0 {
            self.turned_away.note(now_ms, fingerprint);
            return Admission::Known(Err(refusal));
        }
        let Credentials { name, secret, .. } = credentials;
        let claim = Claim { fingerprint, source, name, rank };
        match self.verdicts.offer(claim, Verification { fingerprint, secret, candidates }) {
            Ok(displaced) => {
                self.displaced.extend(displaced);
                Admission::Unknown(fingerprint)
            }
            Err(_) => {
                self.turned_away.note(now_ms, fingerprint);
                Admission::Known(Err(refusal))
            }
        }
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
    fn admit(&self, user: Option<usize>, remote: IpAddr) -> Result<Grant, Refusal> {
        let known = &self.users[user.ok_or(Refusal::Wrong)?];
        match known.may_come_from(remote) {
            true => Ok(Grant { user, roles: known.roles }),
            false => Err(Refusal::Address),
        }
    }

    /// A verdict is here; gives who waits for it. What another shard asked for counts here too.
    fn settle(
        &mut self,
        now_ms: u64,
        fingerprint: Fingerprint,
        user: Option<usize>,
    ) -> Option<Waiters> {
        let waiters = self.verdicts.settle(fingerprint);
        match user {
            Some(user) => {
                self.proven.retain(|_, &mut (known, _)| known != user);
                self.proven.insert(fingerprint, (user, now_ms + PROVEN_MS));
                if let Some(waiters) = &waiters {
                    self.trusted.note(now_ms, waiters.source);
                }
            }
            None => _ = self.refuted.note(now_ms, fingerprint),
        }
        waiters
    }

    /// When [`Shard::poll_verification`] has one again, if time alone decides that.
    pub fn next_verification(&self) -> Option<u64> {
        self.verdicts.next_begin()
    }
}

impl Shard {
    /// The next comparison with hashes that somebody is to make elsewhere, and whose
    /// [`Verification::run`] is to come back as a message.
    pub fn poll_verification(&mut self) -> Option<Verification> {
        self.access.verdicts.begin(self.now.ms)
    }

    /// Closes the connection of the API that has been there longest without showing who it is; false if
    /// there is none. So strangers keep nobody out who has credentials.
    pub fn evict_stranger(&mut self) -> bool {
        while let Some(key) = self.strangers.pop_front() {
            let Some(connection) = self.connections.get(key) else { continue };
            let is_waiting = connection.replies().is_some_and(|replies| !replies.is_empty());
            if connection.is_stranger() && connection.phase == Phase::Open && !is_waiting {
                let remote = connection.remote;
                let why = "no place for a stranger";
                trail::note(self.trail(key), Entry::Dropped(remote, why));
                self.close(key);
                return true;
            }
        }
        false
    }

    /// Takes those out of the strangers, as far as they are first, that are none any more.
    pub(super) fn forget_known_callers(&mut self) {
        while let Some(&key) = self.strangers.front() {
            if self.connections.get(key).is_some_and(|connection| connection.is_stranger()) {
                return;
            }
            self.strangers.pop_front();
        }
    }

    /// Answers a request of a back end if its user may; or keeps it until that is known.
    pub(super) fn handle_unproven(
        &mut self,
        key: ConnectionKey,
        shape: HttpShape,
        request: Request<'_>,
    ) {
        match self.check_credentials(key, &request) {
            Admission::Known(Ok(grant)) => self.handle_granted(key, shape, grant, request),
            Admission::Known(Err(refusal)) => self.refuse_access(key, &shape, refusal),
            Admission::Unknown(fingerprint) => {
                self.park(key, shape, Some(request.keep()), fingerprint);
            }
        }
    }

    /// What may be done with the credentials of a request. A wrong guess is counted.
    pub(super) fn check_credentials(
        &mut self,
        key: ConnectionKey,
        request: &Request<'_>,
    ) -> Admission {
        let Some(connection) = self.connections.get(key) else {
            return Admission::Known(Err(Refusal::Missing));
        };
        let remote = connection.remote.ip();
        let authorization = || request.only_header("authorization");
        let admission = self.access.check(self.now.ms, remote, authorization);
        if admission == Admission::Known(Err(Refusal::Wrong)) {
            self.note_wrong(remote);
        }
        admission
    }

    /// Counts a wrong guess, here and on the other shards.
    fn note_wrong(&mut self, remote: IpAddr) {
        let source = source_of(remote);
        if self.access.tries.note(self.now.ms, source) {
            tracing::warn!(
                "ten wrong credentials came from {source} within a minute: further wrong ones are \
                 answered 429, right ones are let in"
            );
        }
        for shard in self.other_shards() {
            self.outbox.push_back((self.beside(shard), Message::FailedTry(source)));
        }
    }

    /// Answers those that others, likelier to be right, took the place of.
    fn turn_displaced_away(&mut self) {
        for Waiters { fingerprint, keys, .. } in std::mem::take(&mut self.access.displaced) {
            self.access.turned_away.note(self.now.ms, fingerprint);
            for key in keys {
                if self.is_parked_with(key, fingerprint) {
                    self.answer_parked(key, Err(Refusal::Busy));
                }
            }
        }
    }

    fn is_parked_with(&mut self, key: ConnectionKey, fingerprint: Fingerprint) -> bool {
        let Some(connection) = self.connections.get(key) else { return false };
        let Stage::Http(http) = &connection.stage else { return false };
        http.parked.as_ref().is_some_and(|parked| parked.credentials == fingerprint)
    }

    /// Keeps a request, or has its body wait, until the verdict on its credentials is here. Its
    /// answer has its place already; the connection is paused behind it.
    pub(super) fn park(
        &mut self,
        key: ConnectionKey,
        shape: HttpShape,
        request: Option<KeptRequest>,
        fingerprint: Fingerprint,
    ) {
        let Some(connection) = self.connections.get(key) else { return };
        let Stage::Http(http) = &mut connection.stage else { return };
        http.replies.wait(Shape::Response(shape.clone()));
        http.started_ms = self.now.ms;
        let parked = Parked { request, shape, credentials: fingerprint };
        http.parked = Some(Box::new(parked));
        self.access.verdicts.wait(fingerprint, key);
        trail::note(self.trail(key), Entry::Verifying);
        self.pause(key, Pause::Verdict);
        self.set_timer(key, self.now.ms + self.settings.limits.answer_ms);
        self.turn_displaced_away();
    }

    /// Goes on with the requests that waited for this verdict.
    pub(super) fn handle_verdict(&mut self, fingerprint: Fingerprint, user: Option<usize>) {
        let settled = self.access.settle(self.now.ms, fingerprint, user);
        let Some(Waiters { source, keys, .. }) = settled else { return };
        match user {
            // They are as good on the other shards, whose word this is as well.
            Some(_) => {
                for shard in self.other_shards() {
                    let verdict = Message::Verdict(fingerprint, user);
                    self.outbox.push_back((self.beside(shard), verdict));
                }
            }
            None => self.note_wrong(source),
        }
        for key in keys {
            if self.is_parked_with(key, fingerprint)
                && let Some(connection) = self.connections.get(key)
            {
                let admitted = self.access.admit(user, connection.remote.ip());
                self.answer_parked(key, admitted);
            }
        }
    }

    /// The verdict that a request waits for did not come in time.
    pub(super) fn give_up_verdict(&mut self, key: ConnectionKey) {
        if let Some(Stage::Http(http)) = self.connections.get(key).map(|c| &c.stage)
            && let Some(parked) = &http.parked
        {
            self.access.turned_away.note(self.now.ms, parked.credentials);
        }
        self.answer_parked(key, Err(Refusal::Busy));
    }

    fn answer_parked(&mut self, key: ConnectionKey, admitted: Result<Grant, Refusal>) {
        let Some(connection) = self.connections.get(key) else { return };
        let Stage::Http(http) = &mut connection.stage else { return };
        let Some(parked) = http.parked.take() else { return };
        http.replies.give_up_last();
        let Parked { request, shape, .. } = *parked;
        match (admitted, request) {
            (Ok(grant), Some(mut request)) => {
                self.handle_granted(key, shape, grant, request.lend());
            }
            (Err(refusal), Some(_)) => self.refuse_access(key, &shape, refusal),
            (admitted, None) => self.settle_head(key, shape, admitted),
        }
        self.unpause(key, Pause::Verdict);
        self.write_replies(key);
        self.pause_if_unread(key);
    }

    pub(super) fn refuse_access(
        &mut self,
        key: ConnectionKey,
        shape: &HttpShape,
        refusal: Refusal,
    ) {
        let (status, why) = refusal.explained();
        self.counters.unauthorised += 1;
        let mut shape = shape.clone();
        match refusal {
            Refusal::TooManyTries => self.counters.limits.wrong_credentials += 1,
            Refusal::Busy => self.counters.limits.verifications += 1,
            Refusal::Missing
            | Refusal::Wrong
            | Refusal::WrongAgain
            | Refusal::Address
            | Refusal::Role => {}
        }
        if refusal == Refusal::TooManyTries {
            // Each further guess costs a connection.
            shape.exchange.keep_alive = false;
            if let Some(Stage::Http(http)) = self.connections.get(key).map(|c| &mut c.stage) {
                http.is_last = true;
            }
        }
        let headers: &[_] = match status {
            401 => &[("WWW-Authenticate", CHALLENGE)],
            429 | 503 => &[("Retry-After", "1")],
            _ => &[],
        };
        self.refuse(key, &shape, status, headers, why);
    }

    /// A source presented wrong credentials to another shard, which has logged its last try.
    pub(super) fn handle_failed_try(&mut self, source: IpAddr) {
        self.access.tries.note(self.now.ms, source);
    }

    /// A call over WebSocket, if the user of this connection may make it. One that settles events
    /// asks for nothing, and is not counted.
    pub(super) fn admit_call<'c>(
        &mut self,
        key: ConnectionKey,
        call: Result<Call<'c>, Fault>,
    ) -> Result<Call<'c>, Fault> {
        let backend = self.connections.get(key).and_then(Connection::backend);
        let grant = backend.map_or(Grant::default(), |backend| backend.grant);
        if !matches!(call, Ok(Call::Ack(_))) {
            self.take_call(grant)?;
        }
        let call = call?;
        check_role(grant.roles, &call)?;
        Ok(call)
    }

    /// Takes one call out of what a user may ask for.
    pub(super) fn take_call(&mut self, grant: Grant) -> Result<(), Fault> {
        let quota = grant.user.and_then(|user| self.settings.api.quotas.get(user));
        if quota.is_none_or(|quota| quota.take(self.now.ms)) {
            return Ok(());
        }
        self.counters.limits.requests_per_s += 1;
        Err(Fault::new(Code::TooManyRequests, "too many requests a second for this user"))
    }
}

/// Whether these roles allow a call.
fn check_role(roles: Roles, call: &Call<'_>) -> Result<(), Fault> {
    let (may, code) = match call {
        Call::Send(..) | Call::Publish(..) | Call::Call(..) => (roles.write, Code::NotAuthorised),
        Call::Pop(..) => (roles.read, Code::ConsumptionFailed),
        Call::Unpop | Call::Ack(_) => (roles.read, Code::NotAuthorised),
    };
    if may { Ok(()) } else { Err(Fault::new(code, Refusal::Role.explained().1)) }
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
        access.settle(now_ms, fingerprint, user);
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
        assert_eq!(check(&mut access, 0, &right), Known(Err(Refusal::Busy)));
        assert!(matches!(check(&mut access, 1000, &right), Unknown(_)));
        assert_eq!(access.displaced.len(), 1, "the last guess lost its place");
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
