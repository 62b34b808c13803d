//! What the messages carry: whose they are, their number, when they were sent, and filling.
//!
//! 8 hexadecimal digits of source, 8 of sequence number, 16 of nanoseconds, then `x` up to the
//! length wished for: nothing that JSON would have to escape.

use std::ops::Range;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// Length of a payload without filling, in bytes.
pub const BYTES_MIN: usize = 32;

const SOURCE: Range<usize> = 0..8;
const SEQUENCE: Range<usize> = 8..16;
const SENT: Range<usize> = 16..BYTES_MIN;

/// The head of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// Number of the sender.
    pub source: u32,
    /// Number of the message among those of its sender, from 0.
    pub sequence: u32,
    /// When it was due or the writing of its burst began, since an instant that this process chose.
    pub sent: Duration,
}

impl Payload {
    /// The message `sequence` of `source`, sent now.
    pub fn now(source: u32, sequence: u32) -> Self {
        Self::at(source, sequence, Instant::now())
    }

    /// The message `sequence` of `source`, which was to be sent at `due`.
    pub fn at(source: u32, sequence: u32, due: Instant) -> Self {
        Self { source, sequence, sent: due.saturating_duration_since(epoch()) }
    }

    /// The payload as `bytes` bytes of text; at least [`BYTES_MIN`].
    pub fn text(&self, bytes: usize) -> String {
        let mut text = Vec::with_capacity(bytes.max(BYTES_MIN));
        self.write(&mut text, bytes);
        String::from_utf8(text).expect("digits and x are text")
    }

    /// Makes that text the content of `text`.
    pub fn write(&self, text: &mut Vec<u8>, bytes: usize) {
        text.clear();
        text.extend_from_slice(&digits(u64::from(self.source) << 32 | u64::from(self.sequence)));
        // 2^64 nanoseconds are 584 years.
        text.extend_from_slice(&digits(self.sent.as_nanos() as u64));
        text.resize(bytes.max(BYTES_MIN), b'x');
    }

    /// Reads a payload of `bytes` bytes; `None` if it is not one that [`Payload::text`] wrote.
    pub fn parse(text: &str, bytes: usize) -> Option<Self> {
        let filling = text.as_bytes().get(BYTES_MIN..)?;
        if text.len() != bytes || filling.iter().any(|&byte| byte != b'x') {
            return None;
        }
        Some(Self {
            source: u32::from_str_radix(text.get(SOURCE)?, 16).ok()?,
            sequence: u32::from_str_radix(text.get(SEQUENCE)?, 16).ok()?,
            sent: Duration::from_nanos(u64::from_str_radix(text.get(SENT)?, 16).ok()?),
        })
    }

    /// Time since it was sent.
    pub fn age(&self) -> Duration {
        epoch().elapsed().saturating_sub(self.sent)
    }
}

/// A number in hexadecimal; what `write!` does, in a fraction of its time.
fn digits(number: u64) -> [u8; 16] {
    std::array::from_fn(|at| b"0123456789abcdef"[(number >> (60 - 4 * at)) as usize % 16])
}

/// Before the first message.
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
            assert_eq!(Payload::parse(&text, bytes), Some(payload));
        }
    }

    #[test]
    fn a_payload_begins_with_its_source_its_number_and_its_time_in_hexadecimal() {
        let sent = Duration::from_nanos(0x0123_4567_89ab_cdef);
        let payload = Payload { source: 0xfedc, sequence: 0x10, sent };
        assert_eq!(payload.text(35), "0000fedc000000100123456789abcdefxxx");
    }

    #[test]
    fn a_payload_that_was_altered_is_none() {
        let text = Payload::now(1, 2).text(64);
        let altered = text.replacen('x', "y", 1);
        for wrong in [&text[..63], altered.as_str(), "", &"x".repeat(64), &"é".repeat(32)] {
            assert_eq!(Payload::parse(wrong, 64), None, "{wrong}");
        }
    }
}
