//! The read-ahead of a paused connection: bytes received and not processed yet.

use std::mem;

use crate::protocol::scanner::{ControlFrames, ControlScanner};

/// Bytes received while reading is paused. An empty read-ahead has the size of one pointer.
#[derive(Debug, Default)]
pub struct ReadAhead(Option<Box<Unread>>);

#[derive(Debug, Default)]
struct Unread {
    bytes: Vec<u8>,
    // Number of processed bytes at the front: start < bytes.len().
    start: usize,
    // The scanner for control frames, created by the first scan.
    scanner: Option<ControlScanner>,
}

/// Bytes kept for a paused connection before the driver is told to stop receiving. A short pause
/// then costs nothing, and the end of the stream is still noticed.
pub(crate) const READ_AHEAD_BYTES_MAX: usize = 16 * 1024;

impl ReadAhead {
    /// Whether the read-ahead is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Returns the memory taken, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |held| held.bytes.capacity())
    }

    /// Appends bytes. [`READ_AHEAD_BYTES_MAX`] may be exceeded by what arrives before the driver
    /// has stopped receiving.
    pub fn push(&mut self, input: &[u8]) {
        if !input.is_empty() {
            let unread = &mut **self.0.get_or_insert_default();
            unread.drop_read();
            unread.bytes.extend_from_slice(input);
        }
    }

    /// Removes control frames and returns what they said. The first `frame_left` bytes belong to a
    /// partly read data frame. `None`: the frame boundary is unknown, so nothing is removed.
    pub fn scan(
        &mut self,
        frame_left: Option<u64>,
        may_deflate: bool,
        takes_close: bool,
    ) -> ControlFrames {
        let Some(unread) = &mut self.0 else { return ControlFrames::default() };
        unread.drop_read();
        let Unread { bytes, scanner, .. } = &mut **unread;
        if scanner.is_none() {
            *scanner = frame_left.map(ControlScanner::new);
        }
        let Some(scanner) = scanner else { return ControlFrames::default() };
        let heard = scanner.scan(bytes, may_deflate, takes_close);
        if bytes.is_empty() {
            self.0 = None;
        }
        heard
    }

    /// Returns the number of unprocessed bytes.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |held| held.bytes.len() - held.start)
    }

    /// Whether the limit is reached, so that receiving stops.
    pub fn is_full(&self) -> bool {
        self.len() >= READ_AHEAD_BYTES_MAX
    }

    /// Returns the unprocessed bytes. Parsing may overwrite them.
    pub fn unread(&mut self) -> &mut [u8] {
        self.0.as_mut().map_or(&mut [], |held| &mut held.bytes[held.start..])
    }

    /// Drops all but the last `left` bytes, which are still unprocessed.
    pub fn keep_last(mut self, left: usize) -> Self {
        self.0 = self.0.filter(|_| left > 0);
        if let Some(held) = &mut self.0 {
            held.start = held.bytes.len() - left;
        }
        self
    }
}

impl Unread {
    fn drop_read(&mut self) {
        let read = mem::take(&mut self.start);
        self.bytes.drain(..read);
        self.scanner = self.scanner.take().and_then(|scanner| scanner.forget(read));
    }
}
