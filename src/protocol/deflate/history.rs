//! What compressed messages of a client refer back to (RFC 7692, section 7.1.1.2).

/// The largest window of DEFLATE.
pub(super) const HISTORY_BYTES_MAX: usize = 32 * 1024;

/// What a client's compressed messages became last: the next one may refer back to it. Grows with what
/// the client sends, up to the window that was agreed on.
#[derive(Debug)]
pub struct History {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl History {
    /// Nothing was sent yet.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes: Vec::new(), bytes_max }
    }

    /// Memory that is held.
    pub fn held_bytes(&self) -> usize {
        size_of::<Self>() + self.bytes.capacity()
    }

    /// The bytes that the next message may refer back to.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Adds a message.
    pub(super) fn note(&mut self, message: &[u8]) {
        let message = &message[message.len().saturating_sub(self.bytes_max)..];
        let length = self.bytes.len() + message.len();
        self.bytes.drain(..length.saturating_sub(self.bytes_max));
        let needed = self.bytes.len() + message.len();
        if needed > self.bytes.capacity() {
            // Doubled as a vector would be, but no further than the window.
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
                history.note(&message);
                sent.extend_from_slice(&message);
                let end = &sent[sent.len().saturating_sub(bytes_max)..];
                assert_eq!(history.bytes(), end, "{bytes_max} {length}");
                assert!(history.held_bytes() <= own + bytes_max, "{bytes_max} {length}");
            }
        }
    }
}
