//! Decodes a request body in place, with a length or chunked (RFC 9112, sections 6 and 7.1).

use super::{
    HttpError, RequestLimits,
    lines::{LineScan, is_control},
};

/// The decoder of one body.
#[derive(Debug)]
pub(super) enum BodyDecoder {
    Length { left: usize },
    Chunked(Chunks),
}

/// The outcome of decoding some bytes: `data <= taken`, and the decoded data is at their front.
#[derive(Debug)]
pub(super) struct Decoded {
    /// Bytes consumed.
    pub(super) taken: usize,
    /// Bytes of decoded data.
    pub(super) data: usize,
    /// Whether the body is complete.
    pub(super) whole: bool,
}

impl BodyDecoder {
    pub(super) const fn with_length(left: usize) -> Self {
        Self::Length { left }
    }

    pub(super) const fn chunked() -> Self {
        Self::Chunked(Chunks { stage: ChunkStage::Size, left: 0, line_bytes: 0, body_bytes: 0 })
    }

    /// Consumes bytes of the body from the front of `bytes`: all of them, unless the body ends there.
    pub(super) fn decode(
        &mut self,
        bytes: &mut [u8],
        limits: &RequestLimits,
    ) -> Result<Decoded, HttpError> {
        match self {
            Self::Length { left } => {
                let taken = bytes.len().min(*left);
                *left -= taken;
                Ok(Decoded { taken, data: taken, whole: *left == 0 })
            }
            Self::Chunked(chunks) => chunks.decode(bytes, limits),
        }
    }
}

/// The decoder of the chunked transfer coding.
#[derive(Debug)]
pub(super) struct Chunks {
    stage: ChunkStage,
    /// Bytes of the current chunk that have not arrived yet. While its size line is read: the size so
    /// far.
    left: usize,
    /// Bytes read of the current chunk's size line.
    line_bytes: usize,
    /// Bytes of all chunks announced so far: at most [`RequestLimits::body_bytes`].
    body_bytes: usize,
}

#[derive(Debug)]
enum ChunkStage {
    Size,
    /// White space between the size and an extension, which RFC 9112, section 7.1.1, permits.
    Padding,
    Extension,
    SizeEnd,
    Data,
    DataCarriageReturn,
    DataLineFeed,
    Trailers(LineScan),
}

impl Chunks {
    /// The most hexadecimal digits of a chunk size, including leading zeros: those of 64 bits.
    const SIZE_DIGITS_MAX: usize = 16;
    /// The longest size line, in bytes, including CR LF and extensions. Extensions are ignored.
    const LINE_BYTES_MAX: usize = 256;

    fn decode(&mut self, bytes: &mut [u8], limits: &RequestLimits) -> Result<Decoded, HttpError> {
        let (mut taken, mut data) = (0, 0);
        while taken < bytes.len() {
            match &mut self.stage {
                ChunkStage::Data => {
                    let count = self.left.min(bytes.len() - taken);
                    bytes.copy_within(taken..taken + count, data);
                    taken += count;
                    data += count;
                    self.left -= count;
                    if self.left == 0 {
                        self.stage = ChunkStage::DataCarriageReturn;
                    }
                }
                // Trailers are checked and dropped: a server must not merge them into the headers
                // (RFC 9110, section 6.5.1).
                ChunkStage::Trailers(scan) => {
                    let end = scan.feed(&bytes[taken..], limits)?;
                    let taken = end.map_or(bytes.len(), |end| taken + end);
                    return Ok(Decoded { taken, data, whole: end.is_some() });
                }
                _ => {
                    self.frame_byte(bytes[taken], limits)?;
                    taken += 1;
                }
            }
        }
        Ok(Decoded { taken, data, whole: false })
    }

    fn frame_byte(&mut self, byte: u8, limits: &RequestLimits) -> Result<(), HttpError> {
        use ChunkStage::*;
        if self.line_bytes == Self::LINE_BYTES_MAX {
            return Err(HttpError::Chunk);
        }
        self.line_bytes += 1;
        let has_size = self.line_bytes > 1;
        self.stage = match (&self.stage, byte) {
            (Size, _) if byte.is_ascii_hexdigit() && self.line_bytes <= Self::SIZE_DIGITS_MAX => {
                self.left = self.left.saturating_mul(16).saturating_add(hex_value(byte));
                Size
            }
            (Size | Extension, b'\r') if has_size => SizeEnd,
            (Size | Padding, b' ' | b'\t') if has_size => Padding,
            (Size | Padding, b';') if has_size => Extension,
            (Extension, _) if !is_control(byte) => Extension,
            (SizeEnd, b'\n') => self.begin_chunk(limits)?,
            (DataCarriageReturn, b'\r') => DataLineFeed,
            (DataLineFeed, b'\n') => {
                (self.left, self.line_bytes) = (0, 0);
                Size
            }
            _ => return Err(HttpError::Chunk),
        };
        Ok(())
    }

    /// Begins the chunk whose size line was read. A body over the limit is refused before any of the
    /// chunk is stored.
    fn begin_chunk(&mut self, limits: &RequestLimits) -> Result<ChunkStage, HttpError> {
        self.line_bytes = 0;
        if self.left == 0 {
            return Ok(ChunkStage::Trailers(LineScan::trailers()));
        }
        if self.left > limits.body_bytes.saturating_sub(self.body_bytes) {
            return Err(HttpError::BodyTooLarge);
        }
        self.body_bytes += self.left;
        Ok(ChunkStage::Data)
    }
}

fn hex_value(digit: u8) -> usize {
    char::from(digit).to_digit(16).expect("the caller checked that it is a hex digit") as usize
}
