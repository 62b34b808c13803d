//! Negotiation of permessage-deflate in the handshake (RFC 7692, section 7.1).

use std::fmt;
use std::num::NonZeroUsize;

use super::Window;
use super::history::HISTORY_BYTES_MAX;
use crate::protocol::extension::Extension;

/// The compression parameters that both sides agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// The window that the server compresses with.
    pub window: Window,
    /// How far back a message of the client may refer, in bytes. `None`: the client compresses each
    /// message independently.
    pub history_bytes: Option<NonZeroUsize>,
    // The client asked for a limit of the server's window, so the response must state one.
    names_window: bool,
}

impl Agreement {
    /// Accepts the first permessage-deflate offer that the server can satisfy (RFC 7692, section 5.1).
    ///
    /// A server may request `client_no_context_takeover` from a client that did not offer it (section
    /// 7.1.1.2). All browsers comply, so they are asked. Netty's client sends the same offer but fails
    /// the handshake when asked, so other clients are not asked.
    pub fn of<'o>(
        mut offers: impl Iterator<Item = Extension<'o>>,
        is_browser: bool,
    ) -> Option<Self> {
        let mut agreement = offers.find_map(|offer| Self::of_one(&offer))?;
        if is_browser {
            agreement.history_bytes = None;
        }
        Some(agreement)
    }

    /// Declines an offer with an unknown parameter, a bad value or a repeated parameter (section 7.1),
    /// or with a server window of 256 bytes, which zlib does not support.
    fn of_one(offer: &Extension<'_>) -> Option<Self> {
        if offer.name != "permessage-deflate" {
            return None;
        }
        let mut agreement =
            Self { window: Window::Large, history_bytes: None, names_window: false };
        let (mut takes_over, mut history_bytes) = (true, HISTORY_BYTES_MAX);
        let mut seen = Vec::new();
        for (name, value) in &offer.parameters {
            match (*name, value.as_deref()) {
                // The server never takes its context over, whether asked or not.
                ("server_no_context_takeover", None) => {}
                ("client_no_context_takeover", None) => takes_over = false,
                // Not answered: some versions of Netty offer it but cannot use a smaller window.
                ("client_max_window_bits", None) => {}
                ("client_max_window_bits", Some(value)) => {
                    // zlib uses 9 bits when asked for 8.
                    history_bytes = 1 << window_bits(value)?.max(9);
                }
                ("server_max_window_bits", Some(value)) => {
                    agreement.names_window = true;
                    agreement.window = match window_bits(value)? {
                        8 => return None,
                        15 => Window::Large,
                        _ => Window::Small,
                    };
                }
                _ => return None,
            }
            if seen.contains(&name) {
                return None;
            }
            seen.push(name);
        }
        agreement.history_bytes = NonZeroUsize::new(history_bytes).filter(|_| takes_over);
        Some(agreement)
    }
}

/// Parses a number of window bits: 8 to 15, in decimal without a leading zero (RFC 7692, section
/// 7.1.2).
fn window_bits(value: &str) -> Option<u8> {
    match value {
        "8" | "9" | "10" | "11" | "12" | "13" | "14" | "15" => value.parse().ok(),
        _ => None,
    }
}

/// Writes the value of `Sec-WebSocket-Extensions` for the response.
impl fmt::Display for Agreement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("permessage-deflate; server_no_context_takeover")?;
        if self.history_bytes.is_none() {
            formatter.write_str("; client_no_context_takeover")?;
        }
        match self.names_window {
            true => write!(formatter, "; server_max_window_bits={}", self.window.bits()),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agreement(offers: &str, is_browser: bool) -> Option<Agreement> {
        Agreement::of(Extension::list(offers.as_bytes()).flatten(), is_browser)
    }

    #[test]
    fn only_a_browser_is_asked_for_messages_that_stand_alone_without_having_offered_them() {
        let table = [
            ("permessage-deflate", 32_768),
            ("permessage-deflate; client_max_window_bits", 32_768),
            ("permessage-deflate; client_max_window_bits=15", 32_768),
            ("permessage-deflate; client_max_window_bits=10", 1024),
            ("permessage-deflate; client_max_window_bits=8", 512),
            ("permessage-deflate; client_no_context_takeover", 0),
            ("permessage-deflate; client_no_context_takeover; client_max_window_bits=10", 0),
            ("permessage-deflate; client_max_window_bits=10; client_no_context_takeover", 0),
        ];
        for (offers, history_bytes) in table {
            let asked = "; client_no_context_takeover";
            let agreed = agreement(offers, false).expect("it is taken");
            assert_eq!(agreed.history_bytes, NonZeroUsize::new(history_bytes), "{offers}");
            assert_eq!(agreed.to_string().contains(asked), history_bytes == 0, "{offers}");
            let agreed = agreement(offers, true).expect("it is taken");
            assert_eq!(agreed.history_bytes, None, "{offers}");
            assert!(agreed.to_string().contains(asked), "{offers}");
        }
    }

    /// Whether Netty's client accepts a response (PerMessageDeflateClientExtensionHandshaker, 4.1) in
    /// its default configuration, which offers neither `client_no_context_takeover` nor a window.
    fn is_taken_by_netty(answer: &str) -> bool {
        let mut parts = answer.split("; ");
        parts.next() == Some("permessage-deflate")
            && parts.all(|part| match part.split_once('=') {
                None => part == "server_no_context_takeover",
                Some((name, _)) => name == "server_max_window_bits",
            })
    }

    #[test]
    fn the_default_offers_of_netty_are_answered_so_that_it_goes_on() {
        // With a zlib that supports window sizes, and without one.
        for offer in ["permessage-deflate;client_max_window_bits", "permessage-deflate"] {
            let others = ",deflate-frame,x-webkit-deflate-frame";
            let agreed = agreement(&format!("{offer}{others}"), false).expect("it is taken");
            assert!(is_taken_by_netty(&agreed.to_string()), "{agreed}");
        }
    }

    #[test]
    fn the_first_offer_that_can_be_kept_is_taken() {
        let plain = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        let small = format!("{plain}; server_max_window_bits=9");
        let large = format!("{plain}; server_max_window_bits=15");
        let table = [
            ("permessage-deflate", Some(plain)),
            (" permessage-deflate ;\tclient_max_window_bits ", Some(plain)),
            ("permessage-deflate; client_max_window_bits=\"8\"", Some(plain)),
            (
                "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
                Some(plain),
            ),
            ("permessage-deflate; server_max_window_bits=15", Some(&large)),
            ("permessage-deflate; server_max_window_bits = \"14\"", Some(&small)),
            ("permessage-deflate; server_max_window_bits=9", Some(&small)),
            ("permessage-deflate; server_max_window_bits=8, permessage-deflate", Some(plain)),
            (
                "x-webkit-deflate-frame, permessage-deflate; unknown, permessage-deflate",
                Some(plain),
            ),
            ("permessage-deflate; server_max_window_bits=8", None),
            ("permessage-deflate; server_max_window_bits=16", None),
            ("permessage-deflate; server_max_window_bits=010", None),
            ("permessage-deflate; server_max_window_bits=\"10", None),
            ("permessage-deflate; server_max_window_bits", None),
            ("permessage-deflate; client_max_window_bits=7", None),
            ("permessage-deflate; client_max_window_bits=", None),
            ("permessage-deflate; client_max_window_bits; client_max_window_bits=10", None),
            ("permessage-deflate; server_no_context_takeover=1", None),
            ("permessage-deflate; server_no_context_takeover; server_no_context_takeover", None),
            ("permessage-deflate; unknown", None),
            ("permessage-deflate;", None),
            ("Permessage", None),
            ("", None),
        ];
        for (offers, expected) in table {
            let answer = agreement(offers, true).map(|agreement| agreement.to_string());
            assert_eq!(answer.as_deref(), expected, "{offers}");
        }
    }
}
