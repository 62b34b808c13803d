//! When the key set of an issuer is fetched.

use std::sync::Arc;

use super::{ServiceAnswer, ServiceFailure};
use crate::message::KeysReport;
use crate::protocol::token::{KeySet, KeySource, read_key_set};

/// The shortest time between two fetches for unknown keys, in milliseconds. Anybody can present a token
/// with an unknown `kid`.
pub(super) const UNKNOWN_KEY_PAUSE_MS: u64 = 60_000;

/// The pause after the first failed fetch, in milliseconds. Each further failure doubles the pause.
const FIRST_PAUSE_MS: u64 = 1000;

/// The longest pause after a failed fetch, in milliseconds.
pub(super) const PAUSE_MS_MAX: u64 = 60_000;

/// The state of one source.
pub(super) struct KeyFetcher {
    keys: Option<Arc<KeySet>>,
    is_fetching: bool,
    // When the next fetch is due.
    next_ms: u64,
    // When an unknown key may cause a fetch again.
    unknown_after_ms: u64,
    // Fetches that failed since the last success.
    failures: u32,
    // The state of the random numbers.
    random: u64,
    /// Whether the last fetch failed.
    pub is_failing: bool,
}

impl KeyFetcher {
    /// Creates a fetcher whose first fetch is due at once.
    pub(super) fn new(random: u64) -> Self {
        Self {
            keys: None,
            is_fetching: false,
            next_ms: 0,
            unknown_after_ms: 0,
            failures: 0,
            random,
            is_failing: false,
        }
    }

    /// Whether a fetch is in progress. All shards get a report at its end.
    pub(super) fn is_fetching(&self) -> bool {
        self.is_fetching
    }

    /// Returns when the next fetch is due. `None` while one is in progress.
    pub(super) fn next_fetch_ms(&self) -> Option<u64> {
        (!self.is_fetching).then_some(self.next_ms)
    }

    /// Whether to begin a fetch because one is due.
    pub(super) fn handle_timeout(&mut self, now_ms: u64) -> bool {
        let is_due = !self.is_fetching && now_ms >= self.next_ms;
        self.is_fetching |= is_due;
        is_due
    }

    /// Whether to begin a fetch because a shard needs a key that is not among those it has. While there
    /// are no keys at all, fetches follow their own pauses. A shard that has not heard of the last fetch
    /// yet needs no other one.
    pub(super) fn handle_question(&mut self, now_ms: u64, known: Option<&Arc<KeySet>>) -> bool {
        let Some(keys) = &self.keys else { return self.handle_timeout(now_ms) };
        let has_them = known.is_some_and(|known| Arc::ptr_eq(known, keys));
        if !has_them || now_ms < self.unknown_after_ms {
            return false;
        }
        self.unknown_after_ms = now_ms + UNKNOWN_KEY_PAUSE_MS;
        self.is_fetching = true;
        true
    }

    /// Handles the end of a fetch. If it failed, the last good keys stay.
    pub(super) fn handle_answer(
        &mut self,
        now_ms: u64,
        source: &KeySource,
        answer: Result<ServiceAnswer, ServiceFailure>,
    ) -> Result<(), String> {
        self.is_fetching = false;
        match read(source, answer) {
            Ok(keys) => {
                self.failures = 0;
                self.keys = Some(Arc::new(keys));
                self.next_ms = now_ms + self.jittered(source.refresh_s * 1000);
                Ok(())
            }
            Err(why) => {
                let pause_ms = FIRST_PAUSE_MS << self.failures.min(6);
                self.failures += 1;
                self.next_ms = now_ms + self.jittered(pause_ms.min(PAUSE_MS_MAX));
                Err(why)
            }
        }
    }

    /// Returns the state for shards. `fetched` tells whether a fetch has just succeeded.
    pub(super) fn report(
        &self,
        now_ms: u64,
        source: Arc<KeySource>,
        fetched: Option<bool>,
    ) -> KeysReport {
        let quiet_until_ms = match self.keys {
            None => self.next_ms,
            Some(_) => self.unknown_after_ms,
        };
        let quiet_ms = quiet_until_ms.saturating_sub(now_ms);
        KeysReport { source, keys: self.keys.clone(), quiet_ms, fetched }
    }

    /// Returns a random time of three quarters of `ms` to `ms`.
    fn jittered(&mut self, ms: u64) -> u64 {
        // SplitMix64.
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        ms - mixed % (ms / 4 + 1)
    }
}

fn read(
    source: &KeySource,
    answer: Result<ServiceAnswer, ServiceFailure>,
) -> Result<KeySet, String> {
    let ServiceAnswer { status, body, .. } = answer.map_err(|failure| failure.to_string())?;
    if status != 200 {
        return Err(format!("answered with status {status}"));
    }
    read_key_set(&body, source.algorithm).map_err(|error| error.to_string())
}
