//! Who may use the API, and what for.
//!
//! Plain secrets are compared at once, by fingerprint. A hash takes tens of milliseconds, too long
//! for a shard's turn: a [`Verification`] goes out, the connection waits, and a verdict comes back.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use subtle::ConstantTimeEq;

use super::Shard;
use super::connection::{Connection, Parked, Pause, Stage};
use super::replies::{HttpShape, Shape};
use super::settings::Settings;
use super::tries::FailedTries;
use crate::message::{ConnectionKey, Message};
use crate::protocol::api::{Call, Code, Fault};
use crate::protocol::credentials::{
    CHALLENGE, Credentials, Fingerprint, FingerprintKey, Roles, Scheme, Secret, SecretHash, User,
};
use crate::protocol::http::Request;

/// Verifications of a node that wait for their verdicts, at most: one thread makes them in about
/// the time that a call may take. Beyond it credentials that are not known yet get 503.
pub const VERIFICATIONS_MAX: usize = 32;

/// How long credentials that proved right against a hash need not prove it again.
const PROVEN_MS: u64 = 300_000;

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
    /// Its user may not come from this address.
    Address,
    /// Its user has not the role.
    Role,
    /// Its address has presented wrong ones too often.
    TooManyTries,
    /// Too many others wait for verdicts.
    Busy,
}

impl Refusal {
    fn explained(self) -> (u16, &'static str) {
        match self {
            Self::Missing => (401, "this needs the credentials of a user: Basic or Bearer"),
            Self::Wrong => (401, "these are no user's credentials"),
            Self::Address => (403, "this user may not come from this address; see api.user.from"),
            Self::Role => (403, "this user's roles do not allow it; see api.user.roles"),
            Self::TooManyTries => (429, "too many wrong credentials; try again in a minute"),
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
    // Those that were compared with hashes and when that is to be forgotten. At most one per user:
    // wrong ones are not remembered.
    proven: HashMap<Fingerprint, (usize, u64)>,
    waiting: HashMap<Fingerprint, Vec<ConnectionKey>>,
    waiting_max: usize,
    verifications: VecDeque<Verification>,
    tries: FailedTries,
}

impl Access {
    /// Nobody has come yet.
    pub fn new(settings: &Settings) -> Self {
        let (users, key) = (settings.api.users.clone(), settings.api.fingerprint_key.clone());
        Self::of(users, key, (VERIFICATIONS_MAX / settings.shards).max(1))
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
            waiting: HashMap::new(),
            waiting_max,
            verifications: VecDeque::new(),
            tries: FailedTries::default(),
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
        if self.tries.are_spent(now_ms, remote) {
            return Admission::Known(Err(Refusal::TooManyTries));
        }
        let fingerprint = credentials.fingerprint(&self.key);
        match self.known(now_ms, &fingerprint) {
            Some(user) => Admission::Known(self.admit(Some(user), remote)),
            None => self.verify(fingerprint, credentials),
        }
    }

    /// The user with these credentials, if that takes no hash to know. All plain ones are compared,
    /// so that the time tells nothing.
    fn known(&mut self, now_ms: u64, fingerprint: &Fingerprint) -> Option<usize> {
        let plain = self.plain.iter().fold(None, |found, (known, user)| {
            if known.ct_eq(fingerprint).into() { Some(*user) } else { found }
        });
        let proven = self.proven.get(fingerprint).filter(|&&(_, until_ms)| now_ms < until_ms);
        plain.or(proven.map(|&(user, _)| user))
    }

    /// Asks for a verdict, unless somebody waits for the same one already.
    fn verify(&mut self, fingerprint: Fingerprint, credentials: Credentials) -> Admission {
        let candidates = self.candidates(&credentials);
        if candidates.is_empty() {
            return Admission::Known(Err(Refusal::Wrong));
        }
        let is_full = self.waiting.len() == self.waiting_max;
        match self.waiting.entry(fingerprint) {
            Entry::Occupied(_) => {}
            Entry::Vacant(_) if is_full => return Admission::Known(Err(Refusal::Busy)),
            Entry::Vacant(place) => {
                place.insert(Vec::new());
                let secret = credentials.secret;
                self.verifications.push_back(Verification { fingerprint, secret, candidates });
            }
        }
        Admission::Unknown(fingerprint)
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

    /// A verdict is here; gives who waits for it.
    fn settle(
        &mut self,
        now_ms: u64,
        fingerprint: Fingerprint,
        user: Option<usize>,
    ) -> Vec<ConnectionKey> {
        if let Some(user) = user {
            self.proven.retain(|_, &mut (known, _)| known != user);
            self.proven.insert(fingerprint, (user, now_ms + PROVEN_MS));
        }
        self.waiting.remove(&fingerprint).unwrap_or_default()
    }
}

impl Shard {
    /// The next comparison with hashes that somebody is to make elsewhere, and whose
    /// [`Verification::run`] is to come back as a message.
    pub fn poll_verification(&mut self) -> Option<Verification> {
        self.access.verifications.pop_front()
    }

    /// Answers a request of a back end if its user may; or keeps it until that is known.
    pub(super) fn handle_unproven(
        &mut self,
        key: ConnectionKey,
        shape: HttpShape,
        request: Request<'_>,
    ) {
        let Some(connection) = self.connections.get(key) else { return };
        let remote = connection.remote.ip();
        let authorization = || request.only_header("authorization");
        match self.access.check(self.now.ms, remote, authorization) {
            Admission::Known(Ok(grant)) => self.handle_granted(key, shape, grant, request),
            Admission::Known(Err(refusal)) => self.refuse_access(key, &shape, refusal),
            Admission::Unknown(fingerprint) => self.park(key, shape, &request, fingerprint),
        }
    }

    /// Keeps a request until the verdict on its credentials is here. Its answer has its place
    /// already; the connection is read on behind it.
    fn park(
        &mut self,
        key: ConnectionKey,
        shape: HttpShape,
        request: &Request<'_>,
        fingerprint: Fingerprint,
    ) {
        let Some(connection) = self.connections.get(key) else { return };
        let Stage::Http(http) = &mut connection.stage else { return };
        http.replies.wait(Shape::Response(shape.clone()));
        let parked = Parked { request: request.keep(), shape, credentials: fingerprint };
        http.parked = Some(Box::new(parked));
        self.access.waiting.entry(fingerprint).or_default().push(key);
        self.pause(key, Pause::Verdict);
        self.set_timer(key, self.now.ms + self.settings.limits.answer_ms);
    }

    /// Goes on with the requests that waited for this verdict.
    pub(super) fn handle_verdict(&mut self, fingerprint: Fingerprint, user: Option<usize>) {
        for key in self.access.settle(self.now.ms, fingerprint, user) {
            let Some(connection) = self.connections.get(key) else { continue };
            let Stage::Http(http) = &connection.stage else { continue };
            if http.parked.as_ref().is_some_and(|parked| parked.credentials == fingerprint) {
                let admitted = self.access.admit(user, connection.remote.ip());
                self.answer_parked(key, admitted);
            }
        }
    }

    /// The verdict that a request waits for did not come in time.
    pub(super) fn give_up_verdict(&mut self, key: ConnectionKey) {
        self.answer_parked(key, Err(Refusal::Busy));
    }

    fn answer_parked(&mut self, key: ConnectionKey, admitted: Result<Grant, Refusal>) {
        let Some(connection) = self.connections.get(key) else { return };
        let Stage::Http(http) = &mut connection.stage else { return };
        let Some(mut parked) = http.parked.take() else { return };
        http.replies.give_up_last();
        let shape = parked.shape;
        match admitted {
            Ok(grant) => self.handle_granted(key, shape, grant, parked.request.lend()),
            Err(refusal) => self.refuse_access(key, &shape, refusal),
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
        match refusal {
            Refusal::TooManyTries => self.counters.limits.wrong_credentials += 1,
            Refusal::Busy => self.counters.limits.verifications += 1,
            Refusal::Missing | Refusal::Wrong | Refusal::Address | Refusal::Role => {}
        }
        if refusal == Refusal::Wrong
            && let Some(address) = self.connections.get(key).map(|c| c.remote.ip())
        {
            self.note_failed_try(address);
            for shard in self.other_shards() {
                self.outbox.push_back((self.beside(shard), Message::FailedTry(address)));
            }
        }
        let headers: &[_] = match status {
            401 => &[("WWW-Authenticate", CHALLENGE)],
            429 => &[("Retry-After", "60")],
            503 => &[("Retry-After", "1")],
            _ => &[],
        };
        self.refuse(key, shape, status, headers, why);
    }

    /// An address presented wrong credentials, here or on another shard.
    pub(super) fn note_failed_try(&mut self, address: IpAddr) {
        self.access.tries.note(self.now.ms, address);
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
        let verification = access.verifications.pop_front().expect("one was asked for");
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
        assert!(access.verifications.is_empty());
    }

    #[test]
    fn a_hash_is_verified_once_and_then_known_for_a_while() {
        let mut access = access(vec![user("reader", Scheme::Basic, HASH)]);
        let right = basic("reader", "open sesame");
        assert!(matches!(check(&mut access, 0, &right), Unknown(_)));
        assert!(matches!(check(&mut access, 0, &right), Unknown(_)), "the same verdict is awaited");
        assert_eq!(verdict(&mut access, 10), Some(0));
        assert!(access.verifications.is_empty() && access.waiting.is_empty());
        assert_eq!(check(&mut access, 10 + PROVEN_MS - 1, &right), Known(Ok(READER)));
        assert!(matches!(check(&mut access, 10 + PROVEN_MS, &right), Unknown(_)));
    }

    #[test]
    fn wrong_credentials_are_verified_again_and_never_remembered() {
        let mut access = access(vec![user("reader", Scheme::Basic, HASH)]);
        for _ in 0..2 {
            assert!(matches!(check(&mut access, 0, &basic("reader", "sesame")), Unknown(_)));
            assert_eq!(verdict(&mut access, 0), None);
        }
        assert!(access.proven.is_empty());
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
        assert_eq!(access.verify(fingerprint, credentials), Unknown(fingerprint));
        assert_eq!(verdict(&mut access, 0), Some(1));
    }

    #[test]
    fn more_verifications_than_there_may_be_are_refused() {
        let mut access = access(vec![user("reader", Scheme::Basic, HASH)]);
        assert!(matches!(check(&mut access, 0, &basic("reader", "1")), Unknown(_)));
        assert!(matches!(check(&mut access, 0, &basic("reader", "2")), Unknown(_)));
        assert_eq!(check(&mut access, 0, &basic("reader", "3")), Known(Err(Refusal::Busy)));
        verdict(&mut access, 0);
        assert!(matches!(check(&mut access, 0, &basic("reader", "3")), Unknown(_)));
    }

    #[test]
    fn after_too_many_tries_right_credentials_are_not_looked_at() {
        let mut access = access(vec![user("reader", Scheme::Basic, "plain")]);
        (0..10).for_each(|_| access.tries.note(0, remote()));
        let right = basic("reader", "plain");
        assert_eq!(check(&mut access, 0, &right), Known(Err(Refusal::TooManyTries)));
        assert_eq!(check(&mut access, 60_000, &right), Known(Ok(READER)));
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
