//! How often an address has presented wrong credentials of late.

use std::net::{IpAddr, Ipv6Addr};

use super::recent::Recent;

/// Wrong credentials of one address within a window after which it counts as guessing.
pub const TRIES_MAX: usize = 10;

/// A window begins with the first of them.
const WINDOW_MS: u64 = 60_000;

/// Addresses remembered. When there are more, the one whose window began first is forgotten.
const ADDRESSES_MAX: usize = 4096;

/// The addresses that presented wrong credentials within the last minute.
#[derive(Debug)]
pub struct FailedTries(Recent<IpAddr>);

impl FailedTries {
    /// Nobody has failed yet.
    pub fn new() -> Self {
        Self(Recent::new(WINDOW_MS, ADDRESSES_MAX))
    }

    /// Whether this source has no try left, while the verdicts on so many of its tries are awaited.
    pub fn are_spent(&mut self, now_ms: u64, source: IpAddr, awaited: usize) -> bool {
        usize::from(self.0.count(now_ms, source)) + awaited >= TRIES_MAX
    }

    /// Counts wrong credentials from this source; true if they were its last try.
    pub fn note(&mut self, now_ms: u64, source: IpAddr) -> bool {
        usize::from(self.0.note(now_ms, source)) == TRIES_MAX
    }
}

/// What counts as one address: of IPv6 the first 64 bits, since one host has all of the rest
/// (RFC 4291, section 2.5.4).
pub fn source_of(address: IpAddr) -> IpAddr {
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
    fn after_ten_failed_tries_an_address_waits_for_the_end_of_its_minute() {
        let mut tries = FailedTries::new();
        let (guesser, other) = (source("10.0.0.1"), source("10.0.0.2"));
        for n in 0..TRIES_MAX {
            assert!(!tries.are_spent(1000 + n as u64, guesser, 0), "{n}");
            assert_eq!(tries.note(1000 + n as u64, guesser), n == TRIES_MAX - 1);
        }
        assert!(tries.are_spent(60_999, guesser, 0) && !tries.are_spent(60_999, other, 0));
        assert!(!tries.note(60_999, guesser), "only one try is the last");
        assert!(!tries.are_spent(61_000, guesser, 0));
    }

    #[test]
    fn tries_whose_verdicts_are_awaited_count() {
        let mut tries = FailedTries::new();
        (0..8).for_each(|_| _ = tries.note(0, source("10.0.0.1")));
        assert!(!tries.are_spent(0, source("10.0.0.1"), 1));
        assert!(tries.are_spent(0, source("10.0.0.1"), 2));
    }

    #[test]
    fn one_host_is_one_source_whatever_it_calls_itself() {
        assert_eq!(source("::ffff:10.0.0.1"), source("10.0.0.1"));
        assert_eq!(source("fd00::1"), source("fd00::ffff"));
        assert_ne!(source("fd00::1"), source("fd00:0:0:1::"));
    }
}
