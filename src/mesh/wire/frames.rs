//! Received pieces of a lane → frames.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use super::{FRAME_BYTES_MAX, WireError};

/// Bytes of the length before a frame.
const LENGTH_BYTES: usize = 4;

/// Assembles the frames of one lane.
#[derive(Debug, Default)]
pub struct FrameReader {
    // Pieces that were not read. Their bound is what is pushed before frames are read.
    chunks: VecDeque<Bytes>,
    // The start of an incomplete frame, including its length: up to FRAME_BYTES_MAX. Grows with received
    // data, since the rest may never come.
    partial: BytesMut,
}

impl FrameReader {
    /// Adds the next piece.
    pub fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.chunks.push_back(bytes);
        }
    }

    /// The next whole frame, without its length. Shares memory with a pushed piece, or is a copy if the
    /// frame came in several.
    ///
    /// # Errors
    /// The frame is over [`FRAME_BYTES_MAX`]. Nothing can be read after that.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, WireError> {
        while let Some(chunk) = self.chunks.front_mut() {
            let begun: &[u8] = if self.partial.is_empty() { chunk } else { &self.partial };
            let missing = size(begun)? - self.partial.len();
            let piece = chunk.split_to(missing.min(chunk.len()));
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
            if let Some(mut frame) = self.add(piece)? {
                frame.advance(LENGTH_BYTES);
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    /// Adds the next part of a frame, at most what is missing of it. Returns the frame if it is complete.
    fn add(&mut self, piece: Bytes) -> Result<Option<Bytes>, WireError> {
        if self.partial.is_empty() && piece.len() == size(&piece)? {
            return Ok(Some(piece));
        }
        self.partial.extend_from_slice(&piece);
        let is_whole = self.partial.len() == size(&self.partial)?;
        Ok(is_whole.then(|| std::mem::take(&mut self.partial).freeze()))
    }
}

/// The bytes of the frame that starts like this, including its length; of the length alone while that is
/// incomplete.
fn size(begun: &[u8]) -> Result<usize, WireError> {
    let length = begun.first_chunk().map_or(0, |&length| u32::from_le_bytes(length) as usize);
    if length > FRAME_BYTES_MAX { Err(WireError::TooLarge) } else { Ok(LENGTH_BYTES + length) }
}

#[cfg(test)]
impl FrameReader {
    /// Bytes that the reader holds memory for.
    pub(super) fn memory_bytes(&self) -> usize {
        self.partial.capacity() + self.chunks.iter().map(Bytes::len).sum::<usize>()
    }
}
