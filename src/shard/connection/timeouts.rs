//! Timeouts of connections: handshake, ping, idle, token expiry, slow messages.

use super::{Connections, Phase, Stage};
use crate::message::ConnectionKey;
use crate::protocol::close::{self};
use crate::protocol::frame::{Opcode, put_frame};
use crate::shard::timers::Timer;
use crate::shard::turn::{Step, Turn};

impl Connections {
    /// Sets the timer of a connection, in milliseconds on the shard's clock. The timer fires
    /// earlier if the token or the partly received message is due earlier.
    pub fn set_timer(&mut self, turn: &mut Turn, key: ConnectionKey, deadline_ms: u64) {
        if let Some(connection) = self.get(key) {
            let now = turn.now;
            let until = |unix_ms: u64| now.ms.saturating_add(unix_ms.saturating_sub(now.unix_ms));
            let token_due_ms = connection.expires_unix_ms().map(until);
            let message_due_ms = connection.message_due_ms(turn.settings.limits.idle_ms);
            let due_earlier = token_due_ms.into_iter().chain(message_due_ms);
            let deadline_ms = due_earlier.fold(deadline_ms, u64::min);
            connection.set_timer_tick(turn.timers.set(deadline_ms, Timer::Connection(key)));
        }
    }

    /// Handles the timer of a connection: closes it if a timeout has expired, or sends a ping.
    pub fn check_connection(&mut self, turn: &mut Turn, key: ConnectionKey, tick: u64) {
        let now_ms = turn.now.ms;
        let limits = turn.settings.limits.clone();
        let Some(connection) = self.get(key) else { return };
        if !connection.is_due_at(tick) || connection.phase == Phase::Closed {
            return;
        }
        if connection.phase == Phase::Open
            && connection.expires_unix_ms().is_some_and(|at_ms| at_ms <= turn.now.unix_ms)
        {
            turn.counters.expired += 1;
            return self.close_with(turn, key, close::TOKEN_EXPIRED);
        }
        if connection.message_due_ms(limits.idle_ms).is_some_and(|due_ms| due_ms <= now_ms) {
            turn.counters.limits.unfinished_message += 1;
            return self.close_with(turn, key, close::UNFINISHED);
        }
        let is_backpressured = connection.is_backpressured();
        // Without configured users, nobody needs credentials.
        let is_unauthenticated =
            connection.is_unauthenticated() && !turn.settings.api.users.is_empty();
        let silent_since = connection.silent_since_ms(now_ms);
        let deadline = match (&connection.stage, connection.phase) {
            (_, Phase::Flushing | Phase::Lingering)
            | (Stage::Unsubscribing(_) | Stage::Ending, _) => {
                return self.close(turn, key);
            }
            (Stage::Http(http), _) if !http.replies.is_empty() => match &http.parked {
                Some(parked) => parked.deadline_ms,
                None => now_ms + limits.answer_ms,
            },
            (Stage::Http(http), _) if is_unauthenticated => http.accepted_ms + limits.handshake_ms,
            (Stage::Http(http), _) if http.is_mid_request || !http.has_answered => {
                http.started_ms + limits.handshake_ms
            }
            (Stage::Http(_), _) => silent_since + limits.idle_ms,
            (_, _) if connection.is_pinged => silent_since + limits.idle_ms,
            (_, _) => silent_since + limits.ping_ms,
        };
        let is_websocket = matches!(connection.stage, Stage::Client(_) | Stage::Backend(_));
        if is_backpressured && is_websocket && connection.outbound.is_flushed() {
            // The peer may be gone: the kernel finds out by an unanswered ping.
            self.write_with(turn, key, |out| put_frame(out, Opcode::Ping, b""));
            return self.set_timer(turn, key, now_ms + limits.ping_ms);
        }
        if now_ms < deadline {
            return self.set_timer(turn, key, deadline);
        }
        match &connection.stage {
            Stage::Http(http) if http.parked.is_some() => turn.push_step(Step::ParkedTimedOut(key)),
            Stage::Http(http) if http.is_mid_request => self.refuse_slow_request(turn, key),
            Stage::Http(http) => {
                match http.has_answered && !is_unauthenticated {
                    true => turn.counters.limits.idle_ms += 1,
                    false => turn.counters.limits.handshake_ms += 1,
                }
                self.finish(turn, key);
            }
            _ if connection.is_pinged => self.close_silent(turn, key),
            _ => {
                connection.is_pinged = true;
                // A late ping leaves the peer as much time to answer as one sent on time.
                connection.last_received_ms =
                    silent_since.max(now_ms.saturating_sub(limits.ping_ms));
                let due_ms = connection.last_received_ms + limits.idle_ms;
                self.write_with(turn, key, |out| put_frame(out, Opcode::Ping, b""));
                // Check again when the next ping is due for a peer that answered at once.
                self.set_timer(turn, key, due_ms.min(now_ms + limits.ping_ms));
            }
        }
    }
}
