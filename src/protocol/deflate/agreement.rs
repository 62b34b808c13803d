//! What a client's offer of compression comes to in the handshake (RFC 7692, section 7.1).

use std::fmt;

use super::Window;
use super::history::HISTORY_BYTES_MAX;
use crate::protocol::extension::Extension;

/// An offer that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// What the client gets is compressed within this.
    pub window: Window,
    /// Bytes to which a message of the client may refer back. 0: each stands alone.
    pub history_bytes: usize,
    // The client asked for a limit: the answer has to name one.
    names_window: bool,
}

impl Agreement {
    /// Takes the first offer that is one of permessage-deflate and can be kept (RFC 7692, section
    /// 5.1).
    ///
    /// A server may ask for messages that stand alone of a client that did not offer them (section
    /// 7.1.1.2). All browsers comply, and are asked. Netty's client, whose offer is the same to the
    /// letter, ends the connection instead, so nobody else is.
    pub fn of<'o>(
        mut offers: impl Iterator<Item = Extension<'o>>,
        is_browser: bool,
    ) -> Option<Self> {
        let mut agreement = offers.find_map(|offer| Self::of_one(&offer))?;
        if is_browser {
            agreement.history_bytes = 0;
        }
        Some(agreement)
    }

    /// Declines what has an unknown parameter, a bad value or a parameter twice (section 7.1), and
    /// a window of 256 bytes, which zlib cannot keep to.
    fn of_one(offer: &Extension<'_>) -> Option<Self> {
        if offer.name != "permessage-deflate" {
            return None;
        }
        let mut agreement =
            Self { window: Window::Large, history_bytes: HISTORY_BYTES_MAX, names_window: false };
        let mut seen = Vec::new();
        for (name, value) in &offer.parameters {
            match (*name, value.as_deref()) {
                // Either way each of our messages stands alone.
                ("server_no_context_takeover", None) => {}
                ("client_no_context_takeover", None) => agreement.history_bytes = 0,
                // Not answered: some versions of Netty offer it and cannot compress so.
                ("client_max_window_bits", None) => {}
                ("client_max_window_bits", Some(value)) => {
                    // zlib makes 9 of 8.
                    let bytes = 1 << window_bits(value)?.max(9);
                    agreement.history_bytes = agreement.history_bytes.min(bytes);
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
        Some(agreement)
    }
}

/// 8 to 15, in decimal without a leading zero (RFC 7692, section 7.1.2).
fn window_bits(value: &str) -> Option<u8> {
    match value {
        "8" | "9" | "10" | "11" | "12" | "13" | "14" | "15" => value.parse().ok(),
        _ => None,
    }
}

/// The value of `Sec-WebSocket-Extensions` in the answer.
impl fmt::Display for Agreement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("permessage-deflate; server_no_context_takeover")?;
        if self.history_bytes == 0 {
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
            assert_eq!(agreed.history_bytes, history_bytes, "{offers}");
            assert_eq!(agreed.to_string().contains(asked), history_bytes == 0, "{offers}");
            let agreed = agreement(offers, true).expect("it is taken");
            assert_eq!(agreed.history_bytes, 0, "{offers}");
            assert!(agreed.to_string().contains(asked), "{offers}");
        }
    }

    /// What Netty's client makes of an answer (PerMessageDeflateClientExtensionHandshaker, 4.1), as it
    /// is configured by default: it offered neither that its messages stand alone nor a window.
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
        // Where it has a zlib with windows, and where it has none.
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
