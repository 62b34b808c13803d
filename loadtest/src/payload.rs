//! The payload of messages: source, sequence number, time of sending, and padding.
//!
//! 8 hexadecimal digits of source, 8 of sequence number, 16 of nanoseconds, then `x` up to the requested
//! length. JSON need not escape any of it.

use std::ops::Range;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// The length of a payload without padding, in bytes.
pub const BYTES_MIN: usize = 32;

/// A payload without its padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// The number of the sender.
    pub source: u32,
    /// The number of the message at its sender, from 0.
    pub sequence: u32,
    /// When the message was due, or the writing of its burst began, since a fixed instant of this process.
    pub sent: Duration,
}

impl Payload {
    /// The message `sequence` of `source`, sent now.
    pub fn now(source: u32, sequence: u32) -> Self {
        Self::at(source, sequence, Instant::now())
    }

    /// The message `sequence` of `source`, due at `due`.
    pub fn at(source: u32, sequence: u32, due: Instant) -> Self {
        Self { source, sequence, sent: due.saturating_duration_since(epoch()) }
    }

    /// The payload as text of `bytes` bytes, at least [`BYTES_MIN`].
    pub fn text(&self, bytes: usize) -> String {
        let mut text = Vec::with_capacity(bytes.max(BYTES_MIN));
        self.write(&mut text, bytes);
        String::from_utf8(text).expect("digits and x are text")
    }

    /// Replaces the content of `text` by the payload.
    pub fn write(&self, text: &mut Vec<u8>, bytes: usize) {
        text.clear();
        text.extend_from_slice(&digits(u64::from(self.source) << 32 | u64::from(self.sequence)));
        // 2^64 nanoseconds are 584 years.
        text.extend_from_slice(&digits(self.sent.as_nanos() as u64));
        text.resize(bytes.max(BYTES_MIN), b'x');
    }

    /// Reads a payload of `bytes` bytes. `None`: [`Payload::write`] has not written it.
    pub fn parse(text: &[u8], bytes: usize) -> Option<Self> {
        let (head, filling) = text.split_first_chunk()?;
        if text.len() != bytes || !is_filling(filling) {
            return None;
        }
        let values = values(*head)?;
        let number = |digits: Range<usize>| {
            values[digits].iter().fold(0_u32, |number, &value| number << 4 | u32::from(value))
        };
        let (high, low) = (number(16..24), number(24..32));
        let sent = Duration::from_nanos(u64::from(high) << 32 | u64::from(low));
        Some(Self { source: number(0..8), sequence: number(8..16), sent })
    }

    /// The time from sending to `received`.
    pub fn age_at(&self, received: Instant) -> Duration {
        received.saturating_duration_since(epoch()).saturating_sub(self.sent)
    }
}

/// Writes a number in hexadecimal, like `write!` in a fraction of its time.
fn digits(number: u64) -> [u8; 16] {
    std::array::from_fn(|at| b"0123456789abcdef"[(number >> (60 - 4 * at)) as usize % 16])
}

/// The number that `digits` represent, if all are hexadecimal digits. Checking all of them is faster than
/// stopping at the first that is not.
fn values(mut digits: [u8; BYTES_MIN]) -> Option<[u8; BYTES_MIN]> {
    for digit in &mut digits {
        *digit = match *digit {
            digit @ b'0'..=b'9' => digit - b'0',
            digit @ b'a'..=b'f' => digit - b'a' + 10,
            _ => u8::MAX,
        };
    }
    (digits.iter().fold(0, |all, value| all | value) < 16).then_some(digits)
}

/// Checks the padding in words of 16 bytes, which is faster than byte by byte.
fn is_filling(bytes: &[u8]) -> bool {
    let (words, tail) = bytes.as_chunks::<16>();
    words.iter().all(|word| *word == [b'x'; 16]) && tail.iter().all(|&byte| byte == b'x')
}

/// The instant from which payloads count: before the first message.
fn epoch() -> Instant {
    static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);
    *EPOCH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_reads_back_as_it_was_written() {
        for bytes in [BYTES_MIN, BYTES_MIN + 1, 128, 16_384] {
            let payload = Payload::now(7, u32::MAX);
            let text = payload.text(bytes);
            assert_eq!(text.len(), bytes);
            assert_eq!(Payload::parse(text.as_bytes(), bytes), Some(payload));
        }
    }

    #[test]
    fn a_payload_begins_with_its_source_its_number_and_its_time_in_hexadecimal() {
        let sent = Duration::from_nanos(0x0123_4567_89ab_cdef);
        let payload = Payload { source: 0xfedc, sequence: 0x10, sent };
        let text = "0000fedc000000100123456789abcdefxxx";
        assert_eq!(payload.text(35), text);
        assert_eq!(Payload::parse(text.as_bytes(), 35), Some(payload));
    }

    #[test]
    fn a_payload_that_was_altered_is_none() {
        // Padding of whole words and of parts of them, with every byte altered in turn.
        let text = Payload::now(1, 2).text(70).into_bytes();
        for at in 0..70 {
            for byte in *b"/:`gGF+ \x80\xff" {
                let mut altered = text.clone();
                altered[at] = byte;
                assert_eq!(Payload::parse(&altered, 70), None, "{altered:?}");
            }
        }
        for wrong in [&text[..69], &[&text[..], b"x"].concat(), b"", &[b'x'; 70]] {
            assert_eq!(Payload::parse(wrong, 70), None, "{wrong:?}");
        }
    }

    #[test]
    fn an_age_is_that_of_the_instant_at_which_it_was_read() {
        let (sent, age) = (Instant::now(), Duration::from_millis(5));
        let payload = Payload::at(0, 0, sent);
        assert_eq!(payload.age_at(sent + age), age);
        assert_eq!(payload.age_at(sent - age), Duration::ZERO);
    }
}
