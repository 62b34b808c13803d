//! How often an address has presented wrong credentials of late.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr};

use hashbrown::HashMap;

/// Wrong credentials that one address may present per window. Beyond it none are looked at.
const TRIES_MAX: u8 = 10;

/// A window begins with the first of them.
const WINDOW_MS: u64 = 60_000;

/// Addresses remembered. When there are more, the one whose window began first is forgotten.
const ADDRESSES_MAX: usize = 4096;

/// The addresses that presented wrong credentials within the last minute.
#[derive(Debug, Default)]
pub struct FailedTries {
    counts: HashMap<IpAddr, u8>,
    // In the order in which their windows began, with that time: one entry per count.
    windows: VecDeque<(IpAddr, u64)>,
}

impl FailedTries {
    /// Whether this address has no try left.
    pub fn are_spent(&mut self, now_ms: u64, address: IpAddr) -> bool {
        self.forget_old(now_ms);
        self.counts.get(&source_of(address)).is_some_and(|&count| count >= TRIES_MAX)
    }

    /// Counts wrong credentials from this address.
    pub fn note(&mut self, now_ms: u64, address: IpAddr) {
        self.forget_old(now_ms);
        let source = source_of(address);
        if let Some(count) = self.counts.get_mut(&source) {
            *count = count.saturating_add(1);
            return;
        }
        if self.windows.len() == ADDRESSES_MAX {
            self.forget_first();
        }
        self.counts.insert(source, 1);
        self.windows.push_back((source, now_ms));
    }

    fn forget_old(&mut self, now_ms: u64) {
        while self.windows.front().is_some_and(|&(_, start_ms)| start_ms + WINDOW_MS <= now_ms) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((source, _)) = self.windows.pop_front() {
            self.counts.remove(&source);
        }
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

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn after_ten_failed_tries_an_address_waits_for_the_end_of_its_minute() {
        let mut tries = FailedTries::default();
        let (guesser, other) = (address("10.0.0.1"), address("10.0.0.2"));
        for n in 0..u64::from(TRIES_MAX) {
            assert!(!tries.are_spent(1000 + n, guesser), "{n}");
            tries.note(1000 + n, guesser);
        }
        assert!(tries.are_spent(60_999, guesser) && !tries.are_spent(60_999, other));
        assert!(tries.are_spent(60_999, address("::ffff:10.0.0.1")), "the same by another name");
        assert!(!tries.are_spent(61_000, guesser));
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_count_together() {
        let mut tries = FailedTries::default();
        for n in 0..TRIES_MAX {
            tries.note(0, address(&format!("fd00::{n}")));
        }
        assert!(tries.are_spent(0, address("fd00::ffff")));
        assert!(!tries.are_spent(0, address("fd00:0:0:1::")));
    }

    #[test]
    fn when_too_many_addresses_fail_the_first_is_forgotten() {
        let mut tries = FailedTries::default();
        let of = |n: u32| IpAddr::from(n.to_be_bytes());
        (0..TRIES_MAX).for_each(|_| tries.note(0, of(0)));
        for n in 1..ADDRESSES_MAX as u32 {
            tries.note(1, of(n));
        }
        assert!(tries.are_spent(1, of(0)));
        tries.note(1, of(u32::MAX));
        assert!(!tries.are_spent(1, of(0)));
        assert_eq!((tries.counts.len(), tries.windows.len()), (ADDRESSES_MAX, ADDRESSES_MAX));
    }
}
