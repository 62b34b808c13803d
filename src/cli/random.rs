//! Random bytes of the system.

use rustix::io::{Result, retry_on_intr};
use rustix::rand::{GetRandomFlags, getrandom};

/// Returns random bytes. The system has them from the moment that it runs commands.
///
/// # Errors
/// The system does not give any: a filter of system calls may forbid it.
pub(super) fn random_bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        filled += retry_on_intr(|| getrandom(&mut bytes[filled..], GetRandomFlags::empty()))?;
    }
    Ok(bytes)
}

/// Returns a random number from 0 to 1, 1 excluded. Without random bytes: the middle.
pub(super) fn random_fraction() -> f64 {
    random_bytes().map_or(0.5, |bytes| f64::from(u32::from_le_bytes(bytes)) / 2f64.powi(32))
}
