//! Access control: authentication of requests to the API, and limits of addresses at the edges.
//!
//! - `authenticator.rs`: checks credentials, and remembers the results.
//! - `verification_queue.rs`: decides which credentials are compared with a slow hash next.
//! - `failed_attempts.rs`: finds addresses that guess. `recent.rs`: counts events within a time
//!   window.
//! - `addresses.rs`: limits the connections and handshakes of one address at an edge.

mod addresses;
mod authenticator;
mod failed_attempts;
mod recent;
mod verification_queue;

use std::collections::VecDeque;
use std::net::IpAddr;

use super::connection::{Awaited, Connections, Parked, Pause, Phase, Stage};
use super::connection::{HttpShape, RETRY_AFTER, Shape};
use super::settings::Settings;
use super::trail::{self, Entry};
use super::turn::{Step, Turn};
use crate::message::{ConnectionKey, LocalMessage};
use crate::protocol::credentials::{CHALLENGE, Credentials, Fingerprint, Scheme};
use crate::protocol::http::{KeptRequest, Request};
use authenticator::Authenticator;
use failed_attempts::source_of;
use verification_queue::Waiters;

pub(super) use addresses::Addresses;
pub use authenticator::{CredentialCheck, Denial, Grant, Verification};
pub use verification_queue::RUNNING_MAX;

/// Access to the API: checks credentials, keeps requests until their credentials are verified, and
/// knows the connections that have not authenticated.
pub struct ApiAccess {
    authenticator: Authenticator,
    // API connections in the order of their arrival, at most one entry per connection of this
    // shard. One that has authenticated or is closed is removed only when it reaches the front.
    unauthenticated: VecDeque<ConnectionKey>,
}

impl ApiAccess {
    /// Creates the part with no connections, for the users in `settings`.
    pub fn new(settings: &Settings) -> Self {
        Self { authenticator: Authenticator::new(settings), unauthenticated: VecDeque::new() }
    }

    /// Handles reloaded users.
    pub fn handle_settings(&mut self, settings: &Settings) {
        self.authenticator.handle_users(settings.api.users.clone());
    }

    /// Handles a new connection to the API.
    pub fn handle_arrival(&mut self, connections: &mut Connections, key: ConnectionKey) {
        self.forget_authenticated(connections);
        self.unauthenticated.push_back(key);
    }

    /// Returns when [`Self::poll_verification`] may have another verification, in milliseconds of
    /// the shard's clock. `None` if only a message can cause one.
    pub fn next_verification(&self) -> Option<u64> {
        self.authenticator.next_verification()
    }

    /// Returns the next verification to run on another thread. The message that
    /// [`Verification::run`] returns must be sent to this shard.
    pub fn poll_verification(&mut self, turn: &Turn) -> Option<Verification> {
        self.authenticator.begin_verification(turn.now.ms)
    }

    /// Closes the API connection that has been unauthenticated the longest, to make room for a new
    /// one. Returns false if there is none. A connection with an unanswered request is not closed.
    pub fn evict_unauthenticated(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
    ) -> bool {
        while let Some(key) = self.unauthenticated.pop_front() {
            let Some(connection) = connections.get(key) else { continue };
            let is_waiting = connection.replies().is_some_and(|replies| !replies.is_empty());
            if connection.is_unauthenticated() && connection.phase == Phase::Open && !is_waiting {
                let remote = connection.remote;
                let why = "unauthenticated, and limits.api_connections is reached";
                trail::note(turn.trail(key), Entry::Dropped(remote, why));
                connections.close(turn, key);
                return true;
            }
        }
        false
    }

    /// Removes connections that have authenticated or are closed from the front of the list.
    fn forget_authenticated(&mut self, connections: &mut Connections) {
        while let Some(&key) = self.unauthenticated.front() {
            if connections.get(key).is_some_and(|connection| connection.is_unauthenticated()) {
                return;
            }
            self.unauthenticated.pop_front();
        }
    }

    /// Checks the credentials of a request. Wrong credentials are counted for the peer's address.
    pub fn check_credentials(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        request: &Request<'_>,
    ) -> CredentialCheck {
        let Some(connection) = connections.get(key) else {
            return CredentialCheck::Decided(Err(Denial::Missing));
        };
        let remote = connection.remote.ip();
        let presented = || Credentials::of(request);
        let check = self.authenticator.check(turn.now.ms, remote, presented);
        if trail::is_read() && !matches!(check, CredentialCheck::Decided(Ok(_))) {
            trail_claim(turn, key, request);
        }
        if check == CredentialCheck::Decided(Err(Denial::Wrong)) {
            self.note_wrong(turn, remote);
        }
        check
    }

    /// Counts wrong credentials from an address, here and on the other shards.
    fn note_wrong(&mut self, turn: &mut Turn, remote: IpAddr) {
        let source = source_of(remote);
        if self.authenticator.note_wrong(turn.now.ms, source) {
            tracing::warn!(
                "ten wrong credentials came from {source} within a minute: further wrong ones are \
                 answered 429, right ones are let in"
            );
        }
        for shard in turn.other_shards() {
            turn.send_local(shard, LocalMessage::FailedAttempt(source));
        }
    }

    /// Denies the requests whose places in the queue went to credentials of a higher rank.
    fn deny_displaced(&mut self, turn: &mut Turn, connections: &mut Connections) {
        for Waiters { fingerprint, keys, .. } in self.authenticator.take_displaced(turn.now.ms) {
            for key in keys {
                if is_parked_with(connections, key, fingerprint) {
                    turn.push_step(Step::Admitted(key, Err(Denial::Busy)));
                }
            }
        }
    }

    /// Parks a request until its credentials are verified. Without `request`, the body stays
    /// unread. The answer keeps its place among the connection's answers, and the connection is
    /// paused.
    pub fn park(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        shape: HttpShape,
        request: Option<KeptRequest>,
        fingerprint: Fingerprint,
    ) {
        let Some(connection) = connections.get(key) else { return };
        let Stage::Http(http) = &mut connection.stage else { return };
        http.replies.reserve(Shape::Response(shape.clone()));
        http.started_ms = turn.now.ms;
        let deadline_ms = turn.now.ms + turn.settings.limits.answer_ms;
        let awaited = Awaited::Verification(fingerprint);
        http.parked = Some(Box::new(Parked { request, shape, awaited, deadline_ms }));
        self.authenticator.wait(fingerprint, key);
        trail::note(turn.trail(key), Entry::Verifying);
        connections.pause(key, Pause::Parked);
        connections.set_timer(turn, key, deadline_ms);
        self.deny_displaced(turn, connections);
    }

    /// Handles a result of the verifier: leaves [`Step::Admitted`] for each request that waits for
    /// it. The other shards of the node are told of verified credentials, and of failed attempts.
    pub fn handle_verification_done(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        fingerprint: Fingerprint,
        user: Option<usize>,
    ) {
        let settled = self.authenticator.settle(turn.now.ms, fingerprint, user, true);
        let Some(waiters) = settled else { return };
        // A reload may have removed the user in the meantime.
        let user = user.filter(|&user| turn.settings.api.users.get(user).is_some());
        match user {
            Some(user) => {
                for shard in turn.other_shards() {
                    turn.send_local(shard, LocalMessage::CredentialsVerified(fingerprint, user));
                }
            }
            None if waiters.is_outdated => {}
            None => self.note_wrong(turn, waiters.source),
        }
        self.admit_waiters(turn, connections, waiters, user);
    }

    /// Handles credentials that another shard of the node has verified: leaves [`Step::Admitted`]
    /// for each request that waits for the same result.
    pub fn handle_verified(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        fingerprint: Fingerprint,
        user: usize,
    ) {
        let user = Some(user);
        if let Some(waiters) = self.authenticator.settle(turn.now.ms, fingerprint, user, false) {
            self.admit_waiters(turn, connections, waiters, user);
        }
    }

    /// Leaves [`Step::Admitted`] for the requests that waited for a verification.
    fn admit_waiters(
        &self,
        turn: &mut Turn,
        connections: &mut Connections,
        waiters: Waiters,
        user: Option<usize>,
    ) {
        let Waiters { fingerprint, keys, is_outdated, .. } = waiters;
        for key in keys {
            if is_parked_with(connections, key, fingerprint)
                && let Some(connection) = connections.get(key)
            {
                let admitted = match user {
                    // The credentials may be those of a user that a reload has added.
                    None if is_outdated => Err(Denial::Busy),
                    user => self.authenticator.admit(user, connection.remote.ip()),
                };
                turn.push_step(Step::Admitted(key, admitted));
            }
        }
    }

    /// Denies a parked request whose verification was not finished in time.
    pub fn handle_verification_timeout(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
    ) {
        if let Some(Stage::Http(http)) = connections.get(key).map(|c| &c.stage)
            && let Some(parked) = &http.parked
            && let Awaited::Verification(credentials) = parked.awaited
        {
            self.authenticator.defer(turn.now.ms, credentials);
        }
        turn.push_step(Step::Admitted(key, Err(Denial::Busy)));
    }

    /// Answers a request that is denied, and counts the reason.
    pub fn deny(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        shape: &HttpShape,
        denial: Denial,
    ) {
        let (status, reason) = (denial.status(), denial.reason());
        turn.counters.unauthorised += 1;
        let mut shape = shape.clone();
        match denial {
            Denial::TooManyAttempts => turn.counters.limits.wrong_credentials += 1,
            Denial::Busy => turn.counters.limits.verifications += 1,
            Denial::Missing
            | Denial::Wrong
            | Denial::WrongAgain
            | Denial::Address
            | Denial::Role => {}
        }
        if denial == Denial::TooManyAttempts {
            // Closing the connection makes each further guess cost a new one.
            shape.exchange.keep_alive = false;
            if let Some(Stage::Http(http)) = connections.get(key).map(|c| &mut c.stage) {
                http.is_last = true;
            }
        }
        let headers: &[_] = match status {
            401 => &[("WWW-Authenticate", CHALLENGE)],
            // Exactly: credentials count as retried from then on.
            429 | 503 => &[(RETRY_AFTER, "1")],
            _ => &[],
        };
        connections.refuse(turn, key, &shape, status, headers, reason);
    }

    /// Counts wrong credentials that an address presented to another shard of this node.
    pub fn handle_failed_attempt(&mut self, turn: &Turn, source: IpAddr) {
        self.authenticator.note_wrong(turn.now.ms, source);
    }
}

/// Writes to the log which user's credentials are denied or verified. A name that no user has is
/// not shown: it may be a password in the wrong field.
fn trail_claim(turn: &Turn, key: ConnectionKey, request: &Request<'_>) {
    let claimed = Credentials::of(request);
    let Some(Credentials { scheme: Scheme::Basic, name, .. }) = claimed else { return };
    let is_known = turn.settings.api.users.iter().any(|(_, user)| user.name == name);
    let name = if is_known { &name[..] } else { "a name that no user has" };
    trail::note(turn.trail(key), Entry::Cause("user", name.as_bytes()));
}

/// Whether the connection has a request that waits for the verification of these credentials.
fn is_parked_with(
    connections: &mut Connections,
    key: ConnectionKey,
    fingerprint: Fingerprint,
) -> bool {
    let Some(connection) = connections.get(key) else { return false };
    let Stage::Http(http) = &connection.stage else { return false };
    http.parked.as_ref().is_some_and(|parked| parked.awaited == Awaited::Verification(fingerprint))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;
    use crate::address::ShardId;
    use crate::message::{FromNode, FromShard};
    use crate::protocol::credentials::{Roles, Secret, SecretHash, User};
    use crate::protocol::http::Exchange;
    use crate::shard::connection::Listener;
    use crate::shard::fixture;
    use crate::shard::turn::Action;

    /// The hash of `open sesame`, at the lowest cost.
    const HASH: &str = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ\
                        $hB+3w+XCqbeX/gTIqKvDd3rvONixo8T2Dgv6KiwCGcs";

    /// A node of two shards with one user.
    fn settings() -> Settings {
        let user = User {
            name: "reader".into(),
            scheme: Scheme::Basic,
            secret: Secret::Hashed(SecretHash::parse(HASH).expect("a hash")),
            roles: Roles::ALL,
            from: Default::default(),
            requests_per_s: 0,
        };
        let mut settings = fixture::settings();
        settings.shards = 2;
        settings.api.users = vec![user].into();
        settings
    }

    /// Parks a request of a new connection, with this password.
    fn park(
        access: &mut ApiAccess,
        turn: &mut Turn,
        connections: &mut Connections,
        password: &str,
    ) -> ConnectionKey {
        let key = fixture::accepted(turn, connections, Listener::Api);
        let header = format!("Basic {}", STANDARD.encode(format!("reader:{password}")));
        let presented = || Credentials::parse(header.as_bytes());
        let check = access.authenticator.check(turn.now.ms, fixture::REMOTE.ip(), presented);
        let CredentialCheck::Pending(fingerprint) = check else { panic!("{check:?}") };
        let exchange = Exchange::REFUSED;
        let shape = HttpShape { exchange, fault_status: false, allow_origin: None };
        access.park(turn, connections, key, shape, None, fingerprint);
        key
    }

    #[test]
    fn a_parked_request_goes_on_when_its_credentials_are_verified() {
        let settings = settings();
        let mut access = ApiAccess::new(&settings);
        let (mut turn, mut connections) = (fixture::turn(settings), Connections::default());
        let granted = Ok(Grant { user: Some(0), roles: Roles::ALL });
        for (password, expected) in [("open sesame", granted), ("sesame", Err(Denial::Wrong))] {
            let key = park(&mut access, &mut turn, &mut connections, password);
            assert!(connections.get(key).unwrap().is_paused_for(Pause::Parked));
            let verification = access.poll_verification(&turn).expect("one is queued");
            let FromNode::VerificationDone { credentials, user } = verification.run() else {
                panic!()
            };
            access.handle_verification_done(&mut turn, &mut connections, credentials, user);
            let steps = fixture::steps(&mut turn);
            let [Step::Admitted(admitted, result)] = steps[..] else { panic!("{steps:?}") };
            assert_eq!((admitted, result), (key, expected));
            // The other shard accepts right credentials too, and counts wrong ones.
            let told = fixture::messages(&mut turn);
            let [FromShard::Local(to, told)] = &told[..] else { panic!("{told:?}") };
            assert_eq!(*to, ShardId(1));
            match expected {
                Ok(_) => assert!(matches!(told, LocalMessage::CredentialsVerified(_, 0))),
                Err(_) => assert!(matches!(told, LocalMessage::FailedAttempt(_))),
            }
        }
    }

    #[test]
    fn what_was_verified_before_a_reload_is_granted_or_has_to_come_again() {
        let settings = settings();
        let [user, mut changed] = [0; 2].map(|_| settings.api.users.get(0).expect("one").clone());
        changed.secret = Secret::Plain("another".into());
        for (password, reloaded, expected) in [
            ("open sesame", user, Ok(Grant { user: Some(0), roles: Roles::ALL })),
            ("open sesame", changed.clone(), Err(Denial::Busy)),
            ("sesame", changed, Err(Denial::Busy)),
        ] {
            let mut access = ApiAccess::new(&settings);
            let mut turn = fixture::turn(settings.clone());
            let mut connections = Connections::default();
            park(&mut access, &mut turn, &mut connections, password);
            let verification = access.poll_verification(&turn).expect("one is queued");
            let users = settings.api.users.reloaded(&[reloaded]).expect("few users");
            let api = crate::shard::settings::ApiSettings { users, ..settings.api.clone() };
            turn.settings = std::sync::Arc::new(Settings { api, ..settings.clone() });
            access.handle_settings(&turn.settings);
            let FromNode::VerificationDone { credentials, user } = verification.run() else {
                panic!()
            };
            access.handle_verification_done(&mut turn, &mut connections, credentials, user);
            let steps = fixture::steps(&mut turn);
            let [Step::Admitted(_, result)] = steps[..] else { panic!("{steps:?}") };
            assert_eq!(result, expected);
            let told = fixture::messages(&mut turn);
            let is_counted = told
                .iter()
                .any(|told| matches!(told, FromShard::Local(_, LocalMessage::FailedAttempt(_))));
            assert!(!is_counted, "the credentials may be those of an added user");
        }
    }

    #[test]
    fn a_request_whose_verification_takes_too_long_is_denied_as_busy() {
        let settings = settings();
        let mut access = ApiAccess::new(&settings);
        let (mut turn, mut connections) = (fixture::turn(settings), Connections::default());
        let key = park(&mut access, &mut turn, &mut connections, "open sesame");
        access.handle_verification_timeout(&mut turn, &mut connections, key);
        let steps = fixture::steps(&mut turn);
        let [Step::Admitted(denied, Err(Denial::Busy))] = steps[..] else { panic!("{steps:?}") };
        assert_eq!(denied, key);
    }

    #[test]
    fn the_oldest_unauthenticated_connection_is_evicted_and_no_authenticated_one() {
        let settings = settings();
        let mut access = ApiAccess::new(&settings);
        let (mut turn, mut connections) = (fixture::turn(settings), Connections::default());
        let keys = [0; 3].map(|_| fixture::accepted(&mut turn, &mut connections, Listener::Api));
        keys.iter().for_each(|&key| access.handle_arrival(&mut connections, key));
        let Stage::Http(http) = &mut connections.get(keys[0]).unwrap().stage else { panic!() };
        http.is_authenticated = true;
        assert!(access.evict_unauthenticated(&mut turn, &mut connections));
        assert_eq!(turn.actions, [Action::Close(keys[1])]);
        assert!(access.evict_unauthenticated(&mut turn, &mut connections));
        assert!(!access.evict_unauthenticated(&mut turn, &mut connections));
        assert_eq!(turn.actions, [Action::Close(keys[1]), Action::Close(keys[2])]);
    }
}
