//! Requests and calls of back ends before [`Access`](super::access::Access): let in, refused, or kept
//! until a verdict on their credentials is here.

use std::net::IpAddr;

use super::Shard;
use super::access::{Admission, Grant, Refusal, Verification};
use super::connection::{Connection, Parked, Pause, Phase, Stage};
use super::replies::{HttpShape, Shape};
use super::trail::{self, Entry};
use super::tries::source_of;
use super::verdicts::Waiters;
use crate::message::{ConnectionKey, Message, Party};
use crate::protocol::api::{Call, Code, Fault};
use crate::protocol::credentials::{CHALLENGE, Credentials, Fingerprint, Roles, Scheme};
use crate::protocol::http::{KeptRequest, Request};

impl Shard {
    /// The next comparison with hashes that somebody is to make elsewhere, and whose
    /// [`Verification::run`] is to come back as a message.
    pub fn poll_verification(&mut self) -> Option<Verification> {
        self.access.begin_verification(self.turn.now.ms)
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
                trail::note(self.turn.trail(key), Entry::Dropped(remote, why));
                self.connections.close(&mut self.turn, key);
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
        let admission = self.access.check(self.turn.now.ms, remote, authorization);
        if trail::is_read() && !matches!(admission, Admission::Known(Ok(_))) {
            self.trail_claim(key, request);
        }
        if admission == Admission::Known(Err(Refusal::Wrong)) {
            self.note_wrong(remote);
        }
        admission
    }

    /// Notes whose credentials are refused or verified: the name of a user, and no other, which could be a
    /// password in the wrong field.
    fn trail_claim(&self, key: ConnectionKey, request: &Request<'_>) {
        let claimed = request.only_header("authorization").and_then(Credentials::parse);
        let Some(Credentials { scheme: Scheme::Basic, name, .. }) = claimed else { return };
        let is_known = self.turn.settings.api.users.iter().any(|user| user.name == name);
        let name = if is_known { &name[..] } else { "a name that no user has" };
        trail::note(self.turn.trail(key), Entry::Cause("user", name.as_bytes()));
    }

    /// Counts a wrong guess, here and on the other shards.
    fn note_wrong(&mut self, remote: IpAddr) {
        let source = source_of(remote);
        if self.access.note_wrong(self.turn.now.ms, source) {
            tracing::warn!(
                "ten wrong credentials came from {source} within a minute: further wrong ones are \
                 answered 429, right ones are let in"
            );
        }
        for shard in self.turn.other_shards() {
            self.turn.tell(self.turn.beside(shard), Message::FailedTry(source));
        }
    }

    /// Answers those that others, likelier to be right, took the place of.
    fn turn_displaced_away(&mut self) {
        for Waiters { fingerprint, keys, .. } in self.access.take_displaced(self.turn.now.ms) {
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
        http.started_ms = self.turn.now.ms;
        let parked = Parked { request, shape, credentials: fingerprint };
        http.parked = Some(Box::new(parked));
        self.access.wait(fingerprint, key);
        trail::note(self.turn.trail(key), Entry::Verifying);
        self.connections.pause(key, Pause::Verdict);
        let deadline_ms = self.turn.now.ms + self.turn.settings.limits.answer_ms;
        self.connections.set_timer(&mut self.turn, key, deadline_ms);
        self.turn_displaced_away();
    }

    /// Goes on with the requests that waited for this verdict. A verdict from this shard's own
    /// address is the verifier's answer; other shards pass on theirs.
    pub(super) fn handle_verdict(
        &mut self,
        from: Party,
        fingerprint: Fingerprint,
        user: Option<usize>,
    ) {
        let is_own = from == Party::Shard(self.turn.address);
        let settled = self.access.settle(self.turn.now.ms, fingerprint, user, is_own);
        let Some(Waiters { source, keys, .. }) = settled else { return };
        match user {
            // The credentials are as good on the other shards.
            Some(_) if is_own => {
                for shard in self.turn.other_shards() {
                    let to = self.turn.beside(shard);
                    self.turn.tell(to, Message::Verdict(fingerprint, user));
                }
            }
            Some(_) => {}
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
            self.access.turn_away(self.turn.now.ms, parked.credentials);
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
        self.connections.unpause(&mut self.turn, key, Pause::Verdict);
        self.connections.write_replies(&mut self.turn, key);
        self.connections.pause_if_unread(&mut self.turn, key);
    }

    pub(super) fn refuse_access(
        &mut self,
        key: ConnectionKey,
        shape: &HttpShape,
        refusal: Refusal,
    ) {
        let (status, why) = refusal.explained();
        self.turn.counters.unauthorised += 1;
        let mut shape = shape.clone();
        match refusal {
            Refusal::TooManyTries => self.turn.counters.limits.wrong_credentials += 1,
            Refusal::Busy => self.turn.counters.limits.verifications += 1,
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
        self.connections.refuse(&mut self.turn, key, &shape, status, headers, why);
    }

    /// A source presented wrong credentials to another shard, which has logged its last try.
    pub(super) fn handle_failed_try(&mut self, source: IpAddr) {
        self.access.note_wrong(self.turn.now.ms, source);
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
        let quota = grant.user.and_then(|user| self.turn.state.quotas.get(user));
        if quota.is_none_or(|quota| quota.take(self.turn.now.ms)) {
            return Ok(());
        }
        self.turn.counters.limits.requests_per_s += 1;
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
