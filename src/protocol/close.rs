//! WebSocket close codes: those that gridcast sends, and those that it accepts from a peer.

/// The code and text with which gridcast closes a connection (RFC 6455, section 7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The close code.
    pub code: u16,
    /// An explanation for people, at most 123 bytes.
    pub text: &'static str,
}

const fn reason(code: u16, text: &'static str) -> Reason {
    Reason { code, text }
}

/// The node is shutting down. The peer should reconnect, to another node if there is one.
pub const GOING_AWAY: Reason = reason(1001, "server is shutting down");
/// The route of the client was removed from the configuration. The peer should reconnect elsewhere.
pub const ROUTE_REMOVED: Reason = reason(1001, "this route was removed");
/// The user of the back end was removed, or may do less than before.
pub const USER_CHANGED: Reason = reason(1008, "the rights of this user have changed");
/// The peer violated the WebSocket framing rules.
pub const PROTOCOL_ERROR: Reason = reason(1002, "protocol error");
/// A text message was not valid UTF-8.
pub const INVALID_UTF8: Reason = reason(1007, "text is not valid UTF-8");
/// A compressed message was not valid DEFLATE.
pub const INVALID_DEFLATE: Reason = reason(1007, "compressed message is not valid DEFLATE");
/// A message exceeded the size limit of its route.
pub const TOO_LARGE: Reason = reason(1009, "message too large");
/// The peer did not answer a ping in time.
pub const IDLE: Reason = reason(1001, "no answer to ping");
/// The peer began a message and did not finish it in time.
pub const UNFINISHED: Reason = reason(1008, "message not finished in time");
/// The peer reads more slowly than messages arrive for it. The peer should reconnect.
pub const SLOW_CLIENT: Reason = reason(1013, "reading too slowly");
/// The node is short of memory, and this connection holds much of it. The peer should reconnect later.
pub const MEMORY: Reason = reason(1013, "short of memory, try again later");
/// The topic that the client sends to is full. The peer should reconnect later.
pub const TOPIC_FULL: Reason = reason(1013, "topic is full, try again later");
/// The client's token has expired. The peer should reconnect with a new one.
pub const TOKEN_EXPIRED: Reason = reason(1008, "token expired");

/// The content of a peer's close frame.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Closed {
    /// The close code, if the frame carried one.
    pub code: Option<u16>,
    /// The peer's explanation, at most 123 bytes.
    pub reason: String,
}

impl Closed {
    /// Returns the code that the close event reports: 1005 if the frame carried none (RFC 6455, section
    /// 7.1.5).
    pub fn event_code(&self) -> u16 {
        self.code.unwrap_or(1005)
    }
}

/// Whether a peer may send this code (RFC 6455, section 7.4, and the IANA registry). Codes 1004 to
/// 1006 and 1015 must not appear in a frame; 1016 to 2999 are not assigned.
pub fn may_be_received(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Whether a back end may close a client with this code: normal closure, going away, policy violation,
/// a server-side error or restart (1011 to 1013), or a private code.
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
