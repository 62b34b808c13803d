//! Why a link was lost or a handshake failed, in words for operators.

use quinn::{ConnectionError, TransportErrorCode};

use super::SILENCE_MAX_MS;
use crate::mesh::link::PeerRefusal;

// TLS alerts (RFC 8446, section 6) that have one meaning each within a grid.
const UNKNOWN_CA: u8 = 48;
const CERTIFICATE_REQUIRED: u8 = 116;
const NO_APPLICATION_PROTOCOL: u8 = 120;

/// Alerts about a peer's certificate: bad, unsupported, revoked, expired, unknown, of an unknown
/// authority, with a wrong signature, missing.
const CERTIFICATE_ALERTS: [u8; 8] = [42, 43, 44, 45, 46, UNKNOWN_CA, 51, CERTIFICATE_REQUIRED];

/// Characters of a reason that a peer gives.
const REASON_CHARS_MAX: usize = 300;

/// Why a connection was lost.
pub(super) fn why_lost(error: &ConnectionError) -> String {
    match error {
        ConnectionError::TransportError(error) => {
            why_broken(error.code).unwrap_or_else(|| error.to_string())
        }
        ConnectionError::ConnectionClosed(close) => why_broken(close.error_code)
            .unwrap_or_else(|| readable(&format!("the peer ended it: {close}"))),
        ConnectionError::ApplicationClosed(close) => {
            readable(&format!("the peer closed it: {}", String::from_utf8_lossy(&close.reason)))
        }
        ConnectionError::TimedOut => format!("no packet for {SILENCE_MAX_MS} ms"),
        ConnectionError::Reset => "the peer has restarted".into(),
        ConnectionError::LocallyClosed => "closed here".into(),
        error @ (ConnectionError::VersionMismatch | ConnectionError::CidsExhausted) => {
            error.to_string()
        }
    }
}

/// Whether a handshake that failed shows that the peer and this node do not belong together.
pub(super) fn refusal(error: &ConnectionError) -> Option<PeerRefusal> {
    let code = match error {
        ConnectionError::TransportError(error) => error.code,
        ConnectionError::ConnectionClosed(close) => close.error_code,
        _ => return None,
    };
    let is_any =
        |alerts: &[u8]| alerts.iter().any(|&alert| code == TransportErrorCode::crypto(alert));
    if is_any(&CERTIFICATE_ALERTS) {
        return Some(PeerRefusal::Key);
    }
    is_any(&[NO_APPLICATION_PROTOCOL]).then_some(PeerRefusal::Version)
}

/// The meaning of a code within a grid, whichever side sent it.
fn why_broken(code: TransportErrorCode) -> Option<String> {
    let alert = |alert| code == TransportErrorCode::crypto(alert);
    let why = match code {
        TransportErrorCode::CONNECTION_REFUSED => "the peer accepts no more links at present",
        _ if alert(UNKNOWN_CA) => {
            "the peer has another grid key (mesh.key) or authority (mesh.tls.ca)"
        }
        _ if alert(CERTIFICATE_REQUIRED) => {
            "the peer presents no certificate: it is not a node of a grid"
        }
        _ if alert(NO_APPLICATION_PROTOCOL) => "the peer is not a node of gridcast",
        _ => return None,
    };
    Some(why.into())
}

/// A peer's text, safe to print within one line.
fn readable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX).collect()
}
