//! Decodes a body, with a length or chunked (RFC 9112 sections 6 and 7.1), in the buffer it came in.

use super::{
    HttpError, Limits,
    lines::{LineScan, is_control},
};

/// What is still to come of a body.
#[derive(Debug)]
pub(super) enum Body {
    Length { left: usize },
    Chunked(Chunks),
}

/// What became of some bytes. `data <= taken`, and the data is at their front.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) taken: usize,
    pub(super) data: usize,
    pub(super) whole: bool,
}

impl Body {
    pub(super) const fn with_length(left: usize) -> Self {
        Self::Length { left }
    }

    pub(super) const fn chunked() -> Self {
        Self::Chunked(Chunks { stage: ChunkStage::Size, left: 0, line_bytes: 0, body_bytes: 0 })
    }

    /// Takes what belongs to the body from the front of `bytes`: all of them unless it ends there.
    pub(super) fn decode(
        &mut self,
        bytes: &mut [u8],
        limits: &Limits,
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

#[derive(Debug)]
pub(super) struct Chunks {
    stage: ChunkStage,
    /// Bytes of the present chunk that are still to come; in its first line, as far as that is read.
    left: usize,
    /// Bytes of the present chunk's first line.
    line_bytes: usize,
    /// Bytes of all chunks announced so far: at most [`Limits::body_bytes`].
    body_bytes: usize,
}

#[derive(Debug)]
enum ChunkStage {
    Size,
    /// White space between the size and an extension, which RFC 9112 section 7.1.1 has us bear.
    Padding,
    Extension,
    SizeEnd,
    Data,
    DataCarriageReturn,
    DataLineFeed,
    Trailers(LineScan),
}

impl Chunks {
    /// As many digits as 64 bits take, zeros in front counted.
    const SIZE_DIGITS_MAX: usize = 16;
    /// With the extensions, which nobody here understands, and CR LF.
    const LINE_BYTES_MAX: usize = 256;

    fn decode(&mut self, bytes: &mut [u8], limits: &Limits) -> Result<Decoded, HttpError> {
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
                // They are checked and dropped: nothing here may rely on them (RFC 9110 section 6.5.1).
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

    fn frame_byte(&mut self, byte: u8, limits: &Limits) -> Result<(), HttpError> {
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

    /// The first line of a chunk is read; its size is refused before a byte of it is kept.
    fn begin_chunk(&mut self, limits: &Limits) -> Result<ChunkStage, HttpError> {
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
    char::from(digit).to_digit(16).expect("only a hex digit is asked for") as usize
}
