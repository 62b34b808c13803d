//! The `Date` header of responses (RFC 9110, section 6.6.1).

use std::io::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use httpdate::HttpDate;

/// A time in the format of HTTP, such as `Sun, 06 Nov 1994 08:49:37 GMT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Date([u8; 29]);

/// The last second with a four-digit year: 9999-12-31T23:59:59Z.
const LAST_SECOND: u64 = 253_402_300_799;

impl Date {
    /// Formats a time, given in Unix milliseconds, rounded down to a second.
    pub fn at(unix_ms: u64) -> Self {
        let since_epoch = Duration::from_secs((unix_ms / 1000).min(LAST_SECOND));
        let mut text = [0; 29];
        write!(&mut text[..], "{}", HttpDate::from(UNIX_EPOCH + since_epoch))
            .expect("a date has 29 characters");
        Self(text)
    }

    /// Appends the `Date` header.
    pub(in super::super) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"Date: ");
        out.extend_from_slice(&self.0);
        out.extend_from_slice(b"\r\n");
    }
}

/// A cache of the current date, which is formatted once a second.
#[derive(Debug, Default)]
pub struct Calendar {
    formatted: Option<(u64, Date)>,
}

impl Calendar {
    /// Returns the date for a response written at this time.
    pub fn date(&mut self, unix_ms: u64) -> Date {
        let second = unix_ms / 1000;
        match self.formatted {
            Some((formatted, date)) if formatted == second => date,
            _ => self.formatted.insert((second, Date::at(unix_ms))).1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_written_as_http_asks() {
        for (unix_ms, expected) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777_999, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_400_000, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (u64::MAX, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            let mut out = Vec::new();
            Date::at(unix_ms).put(&mut out);
            assert_eq!(String::from_utf8_lossy(&out), format!("Date: {expected}\r\n"));
        }
    }

    #[test]
    fn a_calendar_follows_the_clock_forwards_and_back() {
        let mut calendar = Calendar::default();
        for unix_ms in [1_000, 1_999, 2_000, 90_000, 1_500] {
            assert_eq!(calendar.date(unix_ms), Date::at(unix_ms));
        }
    }
}
