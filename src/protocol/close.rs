//! The table of WebSocket close codes: what gridcast sends, and what it takes from a peer.

/// Why gridcast closes a connection, as the peer is told (RFC 6455, section 7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The close code.
    pub code: u16,
    /// Words for a human, at most 123 bytes.
    pub text: &'static str,
}

const fn reason(code: u16, text: &'static str) -> Reason {
    Reason { code, text }
}

/// The node is going down; reconnect, to another node if there is one.
pub const GOING_AWAY: Reason = reason(1001, "server is shutting down");
/// The peer broke the framing rules.
pub const PROTOCOL_ERROR: Reason = reason(1002, "protocol error");
/// A text message was not UTF-8.
pub const INVALID_UTF8: Reason = reason(1007, "text is not valid UTF-8");
/// A compressed message was not.
pub const INVALID_DEFLATE: Reason = reason(1007, "compressed message is not valid DEFLATE");
/// A message was over the limit.
pub const TOO_LARGE: Reason = reason(1009, "message too large");
/// The peer did not answer a ping in time.
pub const IDLE: Reason = reason(1001, "no answer to ping");
/// A message was begun and not finished for too long.
pub const UNFINISHED: Reason = reason(1008, "message not finished in time");
/// The peer reads slower than it is sent to; reconnect.
pub const SLOW_CLIENT: Reason = reason(1013, "reading too slowly");
/// The node is short of memory, and the peer holds much of it; reconnect later.
pub const MEMORY: Reason = reason(1013, "short of memory, try again later");
/// The topic that the client feeds is full; reconnect later.
pub const TOPIC_FULL: Reason = reason(1013, "topic is full, try again later");

/// The token by which the client came in has expired; reconnect with a new one.
pub const TOKEN_EXPIRED: Reason = reason(1008, "token expired");

/// What the peer's close frame said; the code is `None` if it carried none.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Closed {
    /// The close code.
    pub code: Option<u16>,
    /// The peer's words, at most 123 bytes.
    pub reason: String,
}

impl Closed {
    /// The code by which it is reported: 1005 if it carried none (RFC 6455, section 7.1.5).
    pub fn event_code(&self) -> u16 {
        self.code.unwrap_or(1005)
    }
}

/// Whether a peer may send this code (RFC 6455, section 7.4, and the IANA registry: 1004 to 1006
/// and 1015 never travel, 1016 to 2999 are not assigned).
pub fn may_be_received(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Whether a back end may ask for this code: a normal end, going away, policy, try again later, or
/// one of the application's own.
pub fn may_be_asked(code: u16) -> bool {
    matches!(code, 1000 | 1001 | 1008 | 1011..=1013 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_and_unassigned_codes_may_not_be_received() {
        let bad = [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, u16::MAX];
        assert!(bad.iter().all(|&code| !may_be_received(code)));
        let good = [1000, 1001, 1002, 1003, 1007, 1011, 1014, 3000, 3999, 4000, 4999];
        assert!(good.iter().all(|&code| may_be_received(code)));
    }

    #[test]
    fn what_gridcast_sends_may_be_received() {
        for sent in [GOING_AWAY, PROTOCOL_ERROR, INVALID_UTF8, TOO_LARGE, IDLE, SLOW_CLIENT] {
            assert!(may_be_received(sent.code) && sent.text.len() <= 123);
        }
    }
}
