//! Numbers for people: bytes, durations, counts.

/// Writes a number of bytes: `1.2 MiB`.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64;
    let mut unit = "";
    for next in UNITS {
        value /= 1024.0;
        unit = next;
        // Beyond this the value would be rounded to 1024, which is 1 of the next unit.
        if value < 1023.95 {
            break;
        }
    }
    format!("{value:.1} {unit}")
}

/// Writes a duration in the largest unit of which it has two or more, so that the error stays small:
/// `90 s`, `3 min`, `47 h`.
pub(super) fn duration_ms(ms: u64) -> String {
    const UNITS: [(&str, u64); 4] =
        [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000)];
    for (unit, length) in UNITS {
        if ms >= 2 * length {
            return format!("{} {unit}", ms / length);
        }
    }
    format!("{ms} ms")
}

/// Writes how long ago a time was. Times are in Unix milliseconds. Clocks differ: a time in the future is now.
pub(super) fn ago(then_ms: u64, now_ms: u64) -> String {
    ago_ms(now_ms.saturating_sub(then_ms))
}

/// Writes that something happened so many milliseconds ago: `just now`, `1 s ago`, `3 min ago`.
pub(super) fn ago_ms(ms: u64) -> String {
    match ms {
        0..1000 => "just now".to_owned(),
        1000..2000 => "1 s ago".to_owned(),
        ms => format!("{} ago", duration_ms(ms)),
    }
}

/// Writes a number with its thousands apart: `12,345`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_one_decimal() {
        for (number, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_258_291, "1.2 MiB"),
            (1_048_575, "1.0 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn a_duration_has_one_unit() {
        for (ms, text) in [
            (0, "0 ms"),
            (1_999, "1999 ms"),
            (2_000, "2 s"),
            (119_999, "119 s"),
            (180_000, "3 min"),
            (7_200_000, "2 h"),
            (172_800_000, "2 d"),
        ] {
            assert_eq!(duration_ms(ms), text);
        }
    }

    #[test]
    fn a_time_in_the_future_is_now() {
        assert_eq!(ago(2_000, 1_000), "just now");
        assert_eq!(ago(1_000, 1_500), "just now");
        assert_eq!(ago(1_000, 2_999), "1 s ago");
        assert_eq!(ago(0, 180_000), "3 min ago");
    }

    #[test]
    fn thousands_are_apart() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), text);
        }
    }
}
