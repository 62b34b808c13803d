//! Random bytes of the system.

use rustix::rand::{GetRandomFlags, getrandom};

/// Returns random bytes. The system has them from the moment that it runs commands.
pub(super) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        // Interrupted at most by a signal: requests up to 256 bytes are not cut short.
        if let Ok(more) = getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            filled += more;
        }
    }
    bytes
}

/// Returns a random number from 0 to 1, 1 excluded.
pub(super) fn random_fraction() -> f64 {
    f64::from(u32::from_le_bytes(random_bytes())) / 2f64.powi(32)
}
