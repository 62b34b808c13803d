//! Handshakes that wait: for the keys of an issuer, or for the decision of an admission hook. New tokens of devices that
//! wait for keys.
//!
//! A waiting handshake is parked like a request whose credentials are being verified: the connection
//! keeps the request, and is not read from. A message leaves for the bridge, and one comes back. Waiting
//! handshakes are bounded in number, bytes and time. A device that disconnects gives its place back. A new token of a
//! connected device waits in the same room. Its connection goes on.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::client::{Granted, KeyLookup, Need, Progress};
use super::connection::{
    Awaited, Connections, HttpShape, Parked, Pause, Shape, Stage, TokenProgress,
};
use super::timers::Timer;
use super::trail::{self, Entry};
use super::turn::{Step, Turn};
use crate::message::{
    AdmissionRequest, AdmissionVerdict, ConnectionKey, KeysReport, Ticket, ToBridge,
};
use crate::metrics::Durations;
use crate::protocol::admission::AdmissionHook;
use crate::protocol::api::{Code, Fault};
use crate::protocol::http::Request;
use crate::protocol::token::{KeySet, KeySource};

/// The most handshakes of a shard that wait, with the new tokens.
pub const WAITING_MAX: usize = 4096;

/// The most bytes of the handshakes and new tokens of a shard that wait.
const WAITING_BYTES_MAX: usize = 16 << 20;

/// How long a handshake or a new token waits for keys, in milliseconds. A fetch takes at most 5 seconds.
const KEYS_WAIT_MS: u64 = 6000;

/// Why a waiting handshake is refused: the status code and the explanation.
pub type Refusal = (u16, &'static str);

/// The waiting handshakes and new tokens of a shard, and the fetched keys.
#[derive(Default)]
pub struct Admissions {
    waiting: HashMap<ConnectionKey, WaitingHandshake>,
    waiting_bytes: usize,
    sources: HashMap<Arc<KeySource>, SourceState>,
    // Messages to the bridge. Emptied after each input.
    outbox: VecDeque<ToBridge>,
    // The number of the last question.
    last_ticket: u64,
    durations: Durations,
}

/// The keys of one source, as the bridge has told them.
#[derive(Default)]
struct SourceState {
    keys: Option<Arc<KeySet>>,
    // Whether the bridge was asked and has not answered yet.
    is_asked: bool,
    // Until when asking would not cause a fetch.
    quiet_until_ms: u64,
}

struct WaitingHandshake {
    bytes: usize,
    since_us: u64,
    awaits: Awaits,
}

enum Awaits {
    Keys(Arc<KeySource>),
    // The last field tells the bridge that the device is still there.
    Hook { ticket: Ticket, granted: Box<Granted>, _device: Arc<()> },
    // Keys, for a new token of a connected device. The deadline is on the shard's clock.
    KeysForToken { source: Arc<KeySource>, deadline_ms: u64 },
}

impl Awaits {
    /// Returns the source of the awaited keys.
    fn source(&self) -> Option<&Arc<KeySource>> {
        match self {
            Self::Keys(source) | Self::KeysForToken { source, .. } => Some(source),
            Self::Hook { .. } => None,
        }
    }

    fn is_for_token(&self) -> bool {
        matches!(self, Self::KeysForToken { .. })
    }
}

impl Admissions {
    /// Returns the number of handshakes and new tokens that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Returns how long admission hooks took to decide.
    pub fn durations(&self) -> Durations {
        self.durations
    }

    /// Returns the next message for the bridge.
    pub fn poll_message(&mut self) -> Option<ToBridge> {
        self.outbox.pop_front()
    }

    /// Returns the keys of a source, and whether to wait if a key is missing.
    pub fn lookup(&self, now_ms: u64, source: &Arc<KeySource>) -> KeyLookup<'_> {
        match self.sources.get(source) {
            None => KeyLookup { keys: None, may_wait: true },
            Some(state) => KeyLookup {
                keys: state.keys.as_deref(),
                may_wait: state.is_asked || now_ms >= state.quiet_until_ms,
            },
        }
    }

    /// Parks a handshake until what it needs has arrived. Refuses it if too many wait already.
    pub fn park(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        request: &Request<'_>,
        shape: &HttpShape,
        need: Need,
    ) {
        let request = request.keep();
        let bytes = request.held_bytes() + need.held_bytes();
        if self.waiting.len() >= WAITING_MAX || self.waiting_bytes + bytes > WAITING_BYTES_MAX {
            turn.counters.limits.waiting_handshakes += 1;
            return connections.refuse(turn, key, shape, TOO_MANY.0, &[], TOO_MANY.1);
        }
        let Some(connection) = connections.get(key) else { return };
        let Stage::Http(http) = &mut connection.stage else { return };
        let (what, wait_ms) = match &need {
            Need::Keys(_) => ("keys are fetched", KEYS_WAIT_MS),
            Need::Hook { hook, .. } => ("a back end decides", hook.service.timeout_ms),
        };
        let deadline_ms = turn.now.ms + wait_ms;
        http.replies.reserve(Shape::Response(shape.clone()));
        http.parked = Some(Box::new(Parked {
            request: Some(request),
            shape: shape.clone(),
            awaited: Awaited::Handshake,
            deadline_ms,
        }));
        trail::note(turn.trail(key), Entry::Waiting(what));
        connections.pause(key, Pause::Parked);
        connections.set_timer(turn, key, deadline_ms);
        let awaits = match need {
            Need::Keys(source) => {
                self.ask_for_keys(&source);
                Awaits::Keys(source)
            }
            Need::Hook { hook, granted, question } => {
                turn.counters.admissions += 1;
                self.ask(key, hook, granted, question)
            }
        };
        self.waiting_bytes += bytes;
        self.waiting.insert(key, WaitingHandshake { bytes, since_us: turn.now.us, awaits });
    }

    /// Parks a new token of a device until the keys of its issuer have arrived. Refuses it if too many wait already.
    /// `bytes` is the memory that the token takes.
    pub fn park_token(
        &mut self,
        turn: &mut Turn,
        key: ConnectionKey,
        source: Arc<KeySource>,
        bytes: usize,
    ) {
        if self.waiting.len() >= WAITING_MAX || self.waiting_bytes + bytes > WAITING_BYTES_MAX {
            turn.counters.limits.waiting_handshakes += 1;
            let fault = Fault::new(Code::TooManyRequests, "too many tokens wait to be checked");
            return turn.push_step(Step::TokenOffered(key, TokenProgress::Failed(fault)));
        }
        trail::note(turn.trail(key), Entry::Waiting("keys are fetched"));
        self.ask_for_keys(&source);
        let deadline_ms = turn.now.ms + KEYS_WAIT_MS;
        turn.timers.set(deadline_ms, Timer::Token(key));
        self.waiting_bytes += bytes;
        let awaits = Awaits::KeysForToken { source, deadline_ms };
        self.waiting.insert(key, WaitingHandshake { bytes, since_us: turn.now.us, awaits });
    }

    /// Gives up on a new token that has waited too long. Timers of earlier tokens are ignored.
    pub fn handle_token_timeout(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(waiting) = self.waiting.get(&key) else { return };
        let now_ms = turn.now.ms;
        if matches!(waiting.awaits, Awaits::KeysForToken { deadline_ms, .. } if deadline_ms <= now_ms)
        {
            self.forget(key);
            fail_token(turn, key, "the keys that verify tokens did not arrive in time");
        }
    }

    /// Asks for the keys of a source, unless the question is in progress.
    fn ask_for_keys(&mut self, source: &Arc<KeySource>) {
        let state = self.sources.entry(source.clone()).or_default();
        if !std::mem::replace(&mut state.is_asked, true) {
            let (source, known) = (source.clone(), state.keys.clone());
            self.outbox.push_back(ToBridge::FetchKeys { source, known });
        }
    }

    fn ask(
        &mut self,
        connection: ConnectionKey,
        hook: Arc<AdmissionHook>,
        granted: Box<Granted>,
        body: Vec<u8>,
    ) -> Awaits {
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        let device = Arc::new(());
        let request =
            AdmissionRequest { hook, connection, ticket, body, device: Arc::downgrade(&device) };
        self.outbox.push_back(ToBridge::Admit(request));
        Awaits::Hook { ticket, granted, _device: device }
    }

    /// Handles the keys of a source: the handshakes that wait for them go on.
    pub fn handle_keys(&mut self, turn: &mut Turn, report: KeysReport) {
        // All shards hear of each fetch. One of them counts it for the node.
        if turn.address.shard.0 == 0 {
            turn.counters.key_fetches += u64::from(report.fetched.is_some());
            turn.counters.key_fetches_failed += u64::from(report.fetched == Some(false));
        }
        let KeysReport { source, keys, quiet_ms, fetched } = report;
        // Keys that this shard had not heard of yet. Another key can still be fetched.
        let may_ask_again = fetched.is_none() && quiet_ms == 0;
        let awaits_these = |waiting: &WaitingHandshake| waiting.awaits.source() == Some(&source);
        let waiting = self.waiting.iter().filter(|(_, waiting)| awaits_these(waiting));
        let waiting: Vec<(ConnectionKey, bool)> =
            waiting.map(|(key, waiting)| (*key, waiting.awaits.is_for_token())).collect();
        let quiet_until_ms = turn.now.ms.saturating_add(quiet_ms);
        self.sources.insert(source, SourceState { keys, is_asked: false, quiet_until_ms });
        for (key, is_for_token) in waiting {
            self.forget(key);
            turn.push_step(match (is_for_token, may_ask_again) {
                (false, true) => Step::HandshakeSettled(key, Ok(Progress::New)),
                (false, false) => Step::HandshakeSettled(key, Ok(Progress::KeysKnown)),
                (true, true) => Step::TokenOffered(key, TokenProgress::New),
                (true, false) => Step::TokenOffered(key, TokenProgress::KeysKnown),
            });
        }
    }

    /// Handles the decision of an admission hook. A decision about an earlier request of the connection
    /// is ignored.
    pub fn handle_verdict(
        &mut self,
        turn: &mut Turn,
        key: ConnectionKey,
        decided: Ticket,
        verdict: AdmissionVerdict,
    ) {
        let is_awaited = |waiting: &WaitingHandshake| matches!(waiting.awaits, Awaits::Hook { ticket, .. } if ticket == decided);
        if !self.waiting.get(&key).is_some_and(is_awaited) {
            return;
        }
        let Some(WaitingHandshake { since_us, awaits: Awaits::Hook { granted, .. }, .. }) =
            self.forget(key)
        else {
            return;
        };
        self.durations.add(turn.now.us.saturating_sub(since_us));
        if turn.taps.is_active() {
            turn.taps.note_user(key, granted.context.user().as_deref());
        }
        let settled = match verdict {
            AdmissionVerdict::Granted(admission) => Ok(Progress::Admitted(granted, admission)),
            AdmissionVerdict::Refused(status) => {
                turn.counters.admissions_refused += 1;
                Err((status, "the back end does not admit this client"))
            }
            AdmissionVerdict::Failed => {
                turn.counters.admissions_failed += 1;
                Err((503, "the back end that admits clients does not answer properly"))
            }
            AdmissionVerdict::Full => {
                turn.counters.limits.waiting_handshakes += 1;
                Err(TOO_MANY)
            }
        };
        turn.push_step(Step::HandshakeSettled(key, settled));
    }

    /// Refuses a handshake that has waited too long. Returns false if the connection has none.
    pub fn handle_timeout(&mut self, turn: &mut Turn, key: ConnectionKey) -> bool {
        let Some(waiting) = self.forget(key) else { return false };
        let why = match waiting.awaits {
            Awaits::Keys(_) | Awaits::KeysForToken { .. } => {
                "the keys that verify tokens did not arrive in time"
            }
            Awaits::Hook { .. } => {
                turn.counters.admissions_failed += 1;
                "the back end that admits clients did not answer in time"
            }
        };
        turn.push_step(Step::HandshakeSettled(key, Err((503, why))));
        true
    }

    /// Refuses all waiting handshakes and new tokens, because the node shuts down.
    pub fn handle_drain(&mut self, turn: &mut Turn) {
        self.waiting_bytes = 0;
        for (key, waiting) in self.waiting.drain() {
            let why = "the server is shutting down";
            match waiting.awaits.is_for_token() {
                true => fail_token(turn, key, why),
                false => turn.push_step(Step::HandshakeSettled(key, Err((503, why)))),
            }
        }
    }

    /// Gives the place of a connection back. The bridge drops a question whose device has gone.
    pub fn handle_closed(&mut self, key: ConnectionKey) {
        if !self.waiting.is_empty() {
            self.forget(key);
        }
    }

    fn forget(&mut self, key: ConnectionKey) -> Option<WaitingHandshake> {
        let waiting = self.waiting.remove(&key)?;
        self.waiting_bytes -= waiting.bytes;
        Some(waiting)
    }
}

/// Pushes the step that answers a new token which cannot be checked.
fn fail_token(turn: &mut Turn, key: ConnectionKey, why: &'static str) {
    let fault = Fault::new(Code::ExecutionFailed, why);
    turn.push_step(Step::TokenOffered(key, TokenProgress::Failed(fault)));
}

/// A refusal for lack of room.
const TOO_MANY: Refusal = (503, "too many handshakes wait at this moment; try again later");

#[cfg(test)]
mod tests;
