//! The wall clock, which may be set, and step back.

use std::time::{SystemTime, UNIX_EPOCH};

/// What the clock says, in Unix milliseconds; 0 before 1970.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
