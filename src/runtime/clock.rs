//! The wall clock, which may jump forwards and backwards.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the current time in Unix milliseconds; 0 if the clock is set before 1970.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
