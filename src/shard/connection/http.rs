//! The state of HTTP requests on a connection: partly received, begun, refused.

use super::replies::{HttpShape, RETRY_AFTER};
use super::{Connections, Listener, Stage};
use crate::message::ConnectionKey;
use crate::protocol::api::{self, Code, Fault};
use crate::protocol::http::{Exchange, HttpError, Request, RequestReader};
use crate::protocol::upgrade::UpgradeError;
use crate::shard::trail::{self, Entry};
use crate::shard::turn::Turn;
use crate::shard::work;

/// The longest time that a refused peer is asked to wait, in seconds.
const RETRY_AFTER_S_MAX: u64 = 10;

impl Connections {
    /// Puts back the parser with a partly received request.
    pub fn keep_reader(&mut self, key: ConnectionKey, reader: RequestReader) {
        if let Some(Stage::Http(http)) = self.get(key).map(|c| &mut c.stage) {
            http.reader = reader;
        }
    }

    /// Notes that a request is partly received, and starts its timeout.
    pub fn note_partial_request(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let now_ms = turn.now.ms;
        let Some(connection) = self.get(key) else { return };
        let Stage::Http(http) = &mut connection.stage else { return };
        if !http.is_mid_request {
            http.is_mid_request = true;
            http.started_ms = now_ms;
            let deadline_ms = now_ms + turn.settings.limits.handshake_ms;
            self.set_timer(turn, key, deadline_ms);
        }
    }

    /// Answers with an error status and the API's JSON envelope. A refusal that a later try can cure,
    /// with the status 429 or 503, says when to try again; `headers` may say it more exactly.
    pub fn refuse(
        &mut self,
        turn: &mut Turn,
        key: ConnectionKey,
        shape: &HttpShape,
        status: u16,
        headers: &[(&str, &str)],
        why: &str,
    ) {
        turn.counters.http_refused += 1;
        if let Some(connection) = self.get(key) {
            let (listener, remote) = (connection.listener, connection.remote);
            trail::note(turn.trail(key), Entry::Refused { remote, status, reason: why });
            if turn.taps.is_active() {
                turn.tap_refusal(key, listener, remote, Some(status), why);
            }
        }
        turn.work.spend(work::REFUSAL);
        turn.work.end_slice();
        let mut body = Vec::new();
        api::put_answer(&mut body, &Err(Fault::new(code_of(status), why.to_owned())), None);
        let mut seconds = itoa::Buffer::new();
        let mut headers = headers.to_vec();
        if is_curable(status) && headers.iter().all(|(name, _)| *name != RETRY_AFTER) {
            headers.push((RETRY_AFTER, seconds.format(retry_after_s(turn.now.us, key))));
        }
        let date = turn.date();
        self.reply_bytes(turn, key, |out| {
            shape.put(out, date, (status, "application/json"), &headers, &body);
        });
    }

    /// Refuses a request that was not received in time.
    pub fn refuse_slow_request(&mut self, turn: &mut Turn, key: ConnectionKey) {
        turn.counters.limits.handshake_ms += 1;
        self.refuse_and_close(turn, key, 408, "the request did not come in time");
    }

    /// Refuses a request and closes the connection, because the start of the next request is
    /// unknown.
    pub fn refuse_and_close(
        &mut self,
        turn: &mut Turn,
        key: ConnectionKey,
        status: u16,
        why: &str,
    ) {
        self.refuse(turn, key, &HttpShape::of_refusal(), status, &[], why);
        self.close_after_answer(turn, key);
    }

    /// Closes the connection after the answer to its last request. Further input is received and
    /// discarded for a while, so that a reset does not destroy the answer (RFC 9112, section 9.6).
    pub fn close_after_answer(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        let Stage::Http(http) = &mut connection.stage else { return };
        http.is_last = true;
        if http.replies.is_empty() {
            self.finish(turn, key);
        }
    }

    /// Notes that a whole request has arrived and is answered next. Turns keep-alive off where the
    /// connection is to close after the answer.
    pub fn begin_request(
        &mut self,
        turn: &mut Turn,
        key: ConnectionKey,
        request: &mut Request<'_>,
    ) {
        turn.counters.http_requests += 1;
        turn.work.spend(work::REQUEST);
        let Some(connection) = self.get(key) else { return };
        connection.record_request();
        let is_edge = connection.listener != Listener::Api;
        let Stage::Http(http) = &mut connection.stage else { return };
        // With a limit on handshakes, each handshake needs a connection of its own. When the node
        // is short of memory, refused clients must not keep their connections.
        let ends = is_edge
            && (turn.settings.limits.addresses.handshakes.is_some() || turn.refuses_arrivals());
        request.keep_alive &= !ends && !http.is_draining;
        http.is_mid_request = false;
        http.started_ms = turn.now.ms;
        http.has_answered = true;
        http.is_last = !request.keep_alive;
        if is_edge && turn.taps.is_active() {
            turn.taps.note_request(key, request.path);
        }
        if !std::mem::take(&mut http.is_head_accepted) {
            let (method, path) = (request.method.name(), request.path);
            trail::note(turn.trail(key), Entry::Requested(method, path));
        }
    }

    /// Notes that a request is answered before its body has arrived. The connection closes after
    /// the answer, because the start of the next request is unknown.
    pub fn answer_at_head(&mut self, turn: &mut Turn, key: ConnectionKey, shape: &mut HttpShape) {
        turn.counters.http_requests += 1;
        turn.work.spend(work::REQUEST);
        shape.exchange.keep_alive = false;
        let Some(connection) = self.get(key) else { return };
        connection.record_request();
        if let Stage::Http(http) = &mut connection.stage {
            http.is_mid_request = false;
            http.started_ms = turn.now.ms;
            http.has_answered = true;
            http.is_last = true;
        }
    }

    /// Refuses a request that is no valid WebSocket handshake.
    pub fn refuse_upgrade(
        &mut self,
        turn: &mut Turn,
        key: ConnectionKey,
        shape: &HttpShape,
        error: &UpgradeError,
    ) {
        let (status, headers) = (error.status(), error.headers());
        self.refuse(turn, key, shape, status, headers, &error.to_string());
    }

    /// Refuses input that is no valid request, and closes the connection.
    pub fn refuse_malformed(&mut self, turn: &mut Turn, key: ConnectionKey, error: HttpError) {
        count_refused(turn, error);
        self.refuse_and_close(turn, key, error.status(), &error.to_string());
    }
}

/// Whether a request that was refused with this status may be accepted later as it is.
fn is_curable(status: u16) -> bool {
    matches!(status, 429 | 503)
}

/// Returns the code in the body of a refusal.
fn code_of(status: u16) -> Code {
    match status {
        401 | 403 => Code::NotAuthorised,
        413 | 414 | 431 => Code::TooLarge,
        _ if is_curable(status) => Code::TooManyRequests,
        _ => Code::InvalidArgument,
    }
}

/// Returns after how many seconds a refused peer may try again: a random number, so that peers that are
/// refused together do not come back together.
fn retry_after_s(now_us: u64, key: ConnectionKey) -> u64 {
    // Multiplying by the golden ratio carries every bit into the high half.
    let seed = now_us ^ u64::from(key.index).rotate_left(32);
    1 + (seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) % RETRY_AFTER_S_MAX
}

fn count_refused(turn: &mut Turn, error: HttpError) {
    let limits = &mut turn.counters.limits;
    match error {
        HttpError::BodyTooLarge => limits.api_message_bytes += 1,
        HttpError::HeadTooLarge => limits.head_bytes += 1,
        HttpError::TooManyHeaders => limits.headers += 1,
        _ => {}
    }
}

impl HttpShape {
    /// Returns the response format that a request asks for.
    pub fn of(request: &Request<'_>) -> Self {
        let fault_status = request.header("x-error-mode").is_some_and(|mode| mode == b"status");
        Self { exchange: request.exchange(), fault_status, allow_origin: None }
    }

    /// Returns the response format for input that is no valid request.
    fn of_refusal() -> Self {
        Self { exchange: Exchange::REFUSED, fault_status: false, allow_origin: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_that_are_refused_together_come_back_spread_over_the_whole_time() {
        for now_us in [0, 1_000_000, 1_000_001] {
            let mut times = [0; RETRY_AFTER_S_MAX as usize];
            for index in 0..1000 {
                let seconds = retry_after_s(now_us, ConnectionKey { index, generation: 0 });
                times[seconds as usize - 1] += 1;
            }
            assert!(times.iter().all(|number| (50..=150).contains(number)), "{times:?}");
        }
    }
}
