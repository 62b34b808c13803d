//! Bytes of a lane, cut anywhere → its frames.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use super::{FRAME_BYTES_MAX, WireError};

/// The length in front of a frame.
const LENGTH_BYTES: usize = 4;

/// Puts the frames of one lane together.
#[derive(Debug, Default)]
pub struct FrameReader {
    // What came and was not looked at. As much as is pushed before frames are asked for.
    chunks: VecDeque<Bytes>,
    // The beginning of a frame that was cut, length included: up to FRAME_BYTES_MAX. It grows with
    // what comes, since a length may announce what never does.
    partial: BytesMut,
}

impl FrameReader {
    /// What came next.
    pub fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.chunks.push_back(bytes);
        }
    }

    /// The next frame without its length, if it is all there: a part of what was pushed, or put
    /// together if it came in parts.
    ///
    /// # Errors
    /// It is over [`FRAME_BYTES_MAX`]. There is no way on.
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

    /// Adds what comes next of a frame, at most all that is missing. The frame, if that was it.
    fn add(&mut self, piece: Bytes) -> Result<Option<Bytes>, WireError> {
        if self.partial.is_empty() && piece.len() == size(&piece)? {
            return Ok(Some(piece));
        }
        self.partial.extend_from_slice(&piece);
        let is_whole = self.partial.len() == size(&self.partial)?;
        Ok(is_whole.then(|| std::mem::take(&mut self.partial).freeze()))
    }
}

/// The bytes of a frame that begins so, length included; of the length alone while it is cut.
fn size(begun: &[u8]) -> Result<usize, WireError> {
    let length = begun.first_chunk().map_or(0, |&length| u32::from_le_bytes(length) as usize);
    if length > FRAME_BYTES_MAX { Err(WireError::TooLarge) } else { Ok(LENGTH_BYTES + length) }
}

#[cfg(test)]
impl FrameReader {
    /// What it holds memory for.
    pub(super) fn memory_bytes(&self) -> usize {
        self.partial.capacity() + self.chunks.iter().map(Bytes::len).sum::<usize>()
    }
}
