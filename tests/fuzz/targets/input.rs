//! The fuzzer's bytes as a target takes them.

/// Bytes taken from the front; what is missing reads as zero.
pub struct Input<'d>(pub &'d [u8]);

impl<'d> Input<'d> {
    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// The next so many bytes, or fewer if there are no more.
    pub fn take(&mut self, count: usize) -> &'d [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Lengths for [`pieces`]: one byte says how many follow, `0` to `7`. As text: `3ABC`.
    pub fn lengths(&mut self) -> Vec<usize> {
        let count = self.byte() & 7;
        self.take(count.into()).iter().map(|&byte| usize::from(byte & 63) + 1).collect()
    }
}

/// `bytes` in pieces of these lengths, over and over; whole if there are none.
pub fn pieces<'b>(bytes: &'b [u8], lengths: &[usize]) -> Vec<&'b [u8]> {
    let mut lengths = lengths.iter().cycle();
    let mut rest = Input(bytes);
    let mut pieces = Vec::new();
    while !rest.0.is_empty() {
        pieces.push(rest.take(lengths.next().copied().unwrap_or(usize::MAX)));
    }
    pieces
}
