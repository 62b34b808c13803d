//! The sliding window of a client that compresses with context takeover (RFC 7692, section 7.1.1.2).

/// The largest DEFLATE window, in bytes (RFC 1951, section 2).
pub(super) const HISTORY_BYTES_MAX: usize = 32 * 1024;

/// The last inflated bytes of a client's messages, which its next message may refer back to. Grows
/// with what the client sends, up to the negotiated window.
#[derive(Debug)]
pub struct History {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl History {
    /// Creates an empty history that keeps the last `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes: Vec::new(), bytes_max }
    }

    /// Returns the memory held, in bytes.
    pub fn held_bytes(&self) -> usize {
        size_of::<Self>() + self.bytes.capacity()
    }

    /// Returns the bytes that the next message may refer back to.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends an inflated message and drops the bytes that leave the window.
    pub(super) fn append(&mut self, message: &[u8]) {
        let message = &message[message.len().saturating_sub(self.bytes_max)..];
        let length = self.bytes.len() + message.len();
        self.bytes.drain(..length.saturating_sub(self.bytes_max));
        let needed = self.bytes.len() + message.len();
        if needed > self.bytes.capacity() {
            // Doubles like `Vec`, but never beyond the window.
            let capacity = needed.max(2 * self.bytes.capacity()).min(self.bytes_max);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_the_end_of_what_was_sent_and_takes_no_more_than_its_window() {
        for bytes_max in [256, 1000, HISTORY_BYTES_MAX] {
            let (mut history, mut sent) = (History::new(bytes_max), Vec::new());
            let own = history.held_bytes();
            for length in [0, 1, 100, 255, 256, 257, 999, 5, 40_000, 3, 32_768, 1, 70_000] {
                let message: Vec<u8> = (0..length).map(|at| (at * 7 + length) as u8).collect();
                history.append(&message);
                sent.extend_from_slice(&message);
                let end = &sent[sent.len().saturating_sub(bytes_max)..];
                assert_eq!(history.bytes(), end, "{bytes_max} {length}");
                assert!(history.held_bytes() <= own + bytes_max, "{bytes_max} {length}");
            }
        }
    }
}
