//! Counts the wrong credentials that each address presented within the last minute.

use std::net::{IpAddr, Ipv6Addr};

use super::recent::Recent;

/// The number of failed attempts within one window that makes an address count as guessing.
pub(super) const FAILED_ATTEMPTS_MAX: usize = 10;

/// The length of a window. It begins with the first failed attempt of an address.
const WINDOW_MS: u64 = 60_000;

/// The number of addresses remembered. Beyond it the address whose window began first is forgotten.
const ADDRESSES_MAX: usize = 4096;

/// Failed attempts of each address within the last minute.
#[derive(Debug)]
pub(super) struct FailedAttempts(Recent<IpAddr>);

impl FailedAttempts {
    /// Creates a record without failed attempts.
    pub(super) fn new() -> Self {
        Self(Recent::new(WINDOW_MS, ADDRESSES_MAX))
    }

    /// Whether a source has no attempt left. Its `awaited` attempts, whose verification is not
    /// finished, count as failed.
    pub(super) fn are_exhausted(&mut self, now_ms: u64, source: IpAddr, awaited: usize) -> bool {
        usize::from(self.0.count(now_ms, source)) + awaited >= FAILED_ATTEMPTS_MAX
    }

    /// Counts a failed attempt; returns true if it was the last one that the source had left.
    pub(super) fn note(&mut self, now_ms: u64, source: IpAddr) -> bool {
        usize::from(self.0.note(now_ms, source)) == FAILED_ATTEMPTS_MAX
    }
}

/// Returns what is counted as one address: an IPv4 address, or the first 64 bits of an IPv6
/// address, since one host may use all addresses of its /64 network (RFC 4291, section 2.5.4).
pub(super) fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> IpAddr {
        source_of(text.parse().expect("an address"))
    }

    #[test]
    fn after_ten_failed_attempts_an_address_waits_for_the_end_of_its_window() {
        let mut failed_attempts = FailedAttempts::new();
        let (guesser, other) = (source("10.0.0.1"), source("10.0.0.2"));
        for n in 0..FAILED_ATTEMPTS_MAX {
            assert!(!failed_attempts.are_exhausted(1000 + n as u64, guesser, 0), "{n}");
            assert_eq!(
                failed_attempts.note(1000 + n as u64, guesser),
                n == FAILED_ATTEMPTS_MAX - 1
            );
        }
        assert!(
            failed_attempts.are_exhausted(60_999, guesser, 0)
                && !failed_attempts.are_exhausted(60_999, other, 0)
        );
        assert!(!failed_attempts.note(60_999, guesser), "only one attempt is the last");
        assert!(!failed_attempts.are_exhausted(61_000, guesser, 0));
    }

    #[test]
    fn attempts_whose_verification_is_not_finished_count_as_failed() {
        let mut failed_attempts = FailedAttempts::new();
        (0..8).for_each(|_| _ = failed_attempts.note(0, source("10.0.0.1")));
        assert!(!failed_attempts.are_exhausted(0, source("10.0.0.1"), 1));
        assert!(failed_attempts.are_exhausted(0, source("10.0.0.1"), 2));
    }

    #[test]
    fn addresses_of_one_host_are_one_source() {
        assert_eq!(source("::ffff:10.0.0.1"), source("10.0.0.1"));
        assert_eq!(source("fd00::1"), source("fd00::ffff"));
        assert_ne!(source("fd00::1"), source("fd00:0:0:1::"));
    }
}
