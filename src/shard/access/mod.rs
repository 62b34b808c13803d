//! Who may use the API, and how many connections an address may have at an edge.
//!
//! - `credentials.rs`: what is known of users, and of who claimed to be one. `verdicts.rs`: whose
//!   credentials are verified next. `tries.rs`: who has guessed too often. `recent.rs`: what was seen of
//!   late.
//! - `addresses.rs`: what one address may do at an edge.

mod addresses;
mod credentials;
mod recent;
mod tries;
mod verdicts;

use std::collections::VecDeque;
use std::net::IpAddr;

use super::connection::{Connections, Parked, Pause, Phase, Stage};
use super::connection::{HttpShape, Shape};
use super::settings::Settings;
use super::trail::{self, Entry};
use super::turn::{Step, Turn};
use crate::message::{ConnectionKey, Message, Party};
use crate::protocol::credentials::{CHALLENGE, Credentials, Fingerprint, Scheme};
use crate::protocol::http::{KeptRequest, Request};
use credentials::Access;
use tries::source_of;
use verdicts::Waiters;

pub(super) use addresses::Addresses;
pub use credentials::{Admission, Grant, Refusal, Verification};
pub use verdicts::RUNNING_MAX;

/// The way into the API: who may come in, who waits for a verdict, and who has not shown who it is.
pub struct Doors {
    access: Access,
    // Connections of the API, in the order in which they came. Those that have shown who they are, or are
    // gone, are taken out when they are first.
    strangers: VecDeque<ConnectionKey>,
}

impl Doors {
    /// Nobody has come yet.
    pub fn new(settings: &Settings) -> Self {
        Self { access: Access::new(settings), strangers: VecDeque::new() }
    }

    /// A connection came to the API.
    pub fn handle_arrival(&mut self, connections: &mut Connections, key: ConnectionKey) {
        self.forget_known_callers(connections);
        self.strangers.push_back(key);
    }

    /// When [`Self::poll_verification`] gives another comparison, in milliseconds of the shard's clock.
    pub fn next_verification(&self) -> Option<u64> {
        self.access.next_verification()
    }

    /// The next comparison with hashes that somebody is to make elsewhere, and whose
    /// [`Verification::run`] is to come back as a message.
    pub fn poll_verification(&mut self, turn: &Turn) -> Option<Verification> {
        self.access.begin_verification(turn.now.ms)
    }

    /// Closes the connection of the API that has been there longest without showing who it is; false if
    /// there is none. So strangers keep nobody out who has credentials.
    pub fn evict_unauthenticated(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
    ) -> bool {
        while let Some(key) = self.strangers.pop_front() {
            let Some(connection) = connections.get(key) else { continue };
            let is_waiting = connection.replies().is_some_and(|replies| !replies.is_empty());
            if connection.is_unauthenticated() && connection.phase == Phase::Open && !is_waiting {
                let remote = connection.remote;
                let why = "no place for a stranger";
                trail::note(turn.trail(key), Entry::Dropped(remote, why));
                connections.close(turn, key);
                return true;
            }
        }
        false
    }

    /// Takes those out of the strangers, as far as they are first, that are none any more.
    fn forget_known_callers(&mut self, connections: &mut Connections) {
        while let Some(&key) = self.strangers.front() {
            if connections.get(key).is_some_and(|connection| connection.is_unauthenticated()) {
                return;
            }
            self.strangers.pop_front();
        }
    }

    /// What may be done with the credentials of a request. A wrong guess is counted.
    pub fn check_credentials(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        request: &Request<'_>,
    ) -> Admission {
        let Some(connection) = connections.get(key) else {
            return Admission::Known(Err(Refusal::Missing));
        };
        let remote = connection.remote.ip();
        let authorization = || request.only_header("authorization");
        let admission = self.access.check(turn.now.ms, remote, authorization);
        if trail::is_read() && !matches!(admission, Admission::Known(Ok(_))) {
            trail_claim(turn, key, request);
        }
        if admission == Admission::Known(Err(Refusal::Wrong)) {
            self.note_wrong(turn, remote);
        }
        admission
    }

    /// Counts a wrong guess, here and on the other shards.
    fn note_wrong(&mut self, turn: &mut Turn, remote: IpAddr) {
        let source = source_of(remote);
        if self.access.note_wrong(turn.now.ms, source) {
            tracing::warn!(
                "ten wrong credentials came from {source} within a minute: further wrong ones are \
                 answered 429, right ones are let in"
            );
        }
        for shard in turn.other_shards() {
            turn.send(turn.local_party(shard), Message::FailedTry(source));
        }
    }

    /// Answers those that others, likelier to be right, took the place of.
    fn turn_displaced_away(&mut self, turn: &mut Turn, connections: &mut Connections) {
        for Waiters { fingerprint, keys, .. } in self.access.take_displaced(turn.now.ms) {
            for key in keys {
                if is_parked_with(connections, key, fingerprint) {
                    turn.push_step(Step::Admitted(key, Err(Refusal::Busy)));
                }
            }
        }
    }

    /// Keeps a request, or has its body wait, until the verdict on its credentials is here. Its
    /// answer has its place already; the connection is paused behind it.
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
        let parked = Parked { request, shape, credentials: fingerprint };
        http.parked = Some(Box::new(parked));
        self.access.wait(fingerprint, key);
        trail::note(turn.trail(key), Entry::Verifying);
        connections.pause(key, Pause::Verdict);
        let deadline_ms = turn.now.ms + turn.settings.limits.answer_ms;
        connections.set_timer(turn, key, deadline_ms);
        self.turn_displaced_away(turn, connections);
    }

    /// Goes on with the requests that waited for this verdict. A verdict from this shard's own
    /// address is the verifier's answer; other shards pass on theirs.
    pub fn handle_verdict(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        from: Party,
        fingerprint: Fingerprint,
        user: Option<usize>,
    ) {
        let is_own = from == turn.own_party();
        let settled = self.access.settle(turn.now.ms, fingerprint, user, is_own);
        let Some(Waiters { source, keys, .. }) = settled else { return };
        match user {
            // The credentials are as good on the other shards.
            Some(_) if is_own => {
                for shard in turn.other_shards() {
                    let to = turn.local_party(shard);
                    turn.send(to, Message::Verdict(fingerprint, user));
                }
            }
            Some(_) => {}
            None => self.note_wrong(turn, source),
        }
        for key in keys {
            if is_parked_with(connections, key, fingerprint)
                && let Some(connection) = connections.get(key)
            {
                let admitted = self.access.admit(user, connection.remote.ip());
                turn.push_step(Step::Admitted(key, admitted));
            }
        }
    }

    /// The verdict that a request waits for did not come in time.
    pub fn give_up_verdict(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
    ) {
        if let Some(Stage::Http(http)) = connections.get(key).map(|c| &c.stage)
            && let Some(parked) = &http.parked
        {
            self.access.turn_away(turn.now.ms, parked.credentials);
        }
        turn.push_step(Step::Admitted(key, Err(Refusal::Busy)));
    }

    /// Answers a request that may not come in, and counts why.
    pub fn refuse_access(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        shape: &HttpShape,
        refusal: Refusal,
    ) {
        let (status, why) = refusal.explained();
        turn.counters.unauthorised += 1;
        let mut shape = shape.clone();
        match refusal {
            Refusal::TooManyTries => turn.counters.limits.wrong_credentials += 1,
            Refusal::Busy => turn.counters.limits.verifications += 1,
            Refusal::Missing
            | Refusal::Wrong
            | Refusal::WrongAgain
            | Refusal::Address
            | Refusal::Role => {}
        }
        if refusal == Refusal::TooManyTries {
            // Each further guess costs a connection.
            shape.exchange.keep_alive = false;
            if let Some(Stage::Http(http)) = connections.get(key).map(|c| &mut c.stage) {
                http.is_last = true;
            }
        }
        let headers: &[_] = match status {
            401 => &[("WWW-Authenticate", CHALLENGE)],
            429 | 503 => &[("Retry-After", "1")],
            _ => &[],
        };
        connections.refuse(turn, key, &shape, status, headers, why);
    }

    /// A source presented wrong credentials to another shard, which has logged its last try.
    pub fn handle_failed_try(&mut self, turn: &Turn, source: IpAddr) {
        self.access.note_wrong(turn.now.ms, source);
    }
}

/// Notes whose credentials are refused or verified: the name of a user, and no other, which could be a
/// password in the wrong field.
fn trail_claim(turn: &Turn, key: ConnectionKey, request: &Request<'_>) {
    let claimed = request.only_header("authorization").and_then(Credentials::parse);
    let Some(Credentials { scheme: Scheme::Basic, name, .. }) = claimed else { return };
    let is_known = turn.settings.api.users.iter().any(|user| user.name == name);
    let name = if is_known { &name[..] } else { "a name that no user has" };
    trail::note(turn.trail(key), Entry::Cause("user", name.as_bytes()));
}

/// Whether a request waits there for the verdict on these credentials.
fn is_parked_with(
    connections: &mut Connections,
    key: ConnectionKey,
    fingerprint: Fingerprint,
) -> bool {
    let Some(connection) = connections.get(key) else { return false };
    let Stage::Http(http) = &connection.stage else { return false };
    http.parked.as_ref().is_some_and(|parked| parked.credentials == fingerprint)
}
