//! Positions in the history of a channel. A position is opaque to devices and back ends.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

/// The reign of one home over a channel. Unique among all reigns of all channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub u64);

/// The number of a message in the history of a channel. The first message of a history has number 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial(pub u64);

impl Serial {
    /// The number that follows.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The place behind a message in the history of a channel. As text: 22 characters of URL-safe base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// The reign in which the message got its number.
    pub epoch: Epoch,
    /// The number of the message. One less than the first number of a reign: the place before its first message.
    pub serial: Serial,
}

/// The length of a position as text, in bytes.
pub const POSITION_TEXT_BYTES: usize = 22;

impl Position {
    /// Returns the position as text: letters, digits, `-` and `_`.
    pub fn text(&self) -> [u8; POSITION_TEXT_BYTES] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.epoch.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.serial.0.to_be_bytes());
        let mut text = [0; POSITION_TEXT_BYTES];
        let length = BASE64_URL_SAFE_NO_PAD.encode_slice(bytes, &mut text);
        debug_assert_eq!(length, Ok(POSITION_TEXT_BYTES));
        text
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.text()).expect("base64 is ASCII"))
    }
}

impl FromStr for Position {
    type Err = ();

    /// Reads exactly what [`Display`](fmt::Display) writes.
    fn from_str(text: &str) -> Result<Self, ()> {
        if text.len() != POSITION_TEXT_BYTES {
            return Err(());
        }
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| ())?;
        let bytes: [u8; 16] = bytes.try_into().map_err(|_| ())?;
        let number = u128::from_be_bytes(bytes);
        Ok(Self { epoch: Epoch((number >> 64) as u64), serial: Serial(number as u64) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_it_was_written() {
        for (epoch, serial) in [(0, 0), (1, 2), (u64::MAX, u64::MAX), (1 << 63, 77)] {
            let position = Position { epoch: Epoch(epoch), serial: Serial(serial) };
            let text = position.to_string();
            assert_eq!((text.len(), text.parse()), (POSITION_TEXT_BYTES, Ok(position)));
        }
    }

    #[test]
    fn a_text_that_is_no_position_is_refused() {
        let good = Position { epoch: Epoch(1), serial: Serial(2) }.to_string();
        let bad =
            ["", "7", &good[1..], &format!("{good}A"), &good.replace('A', "+"), "日本語日本語日本"];
        for text in bad {
            assert_eq!(text.parse::<Position>(), Err(()), "{text}");
        }
        // The last character has two bits, so that four texts would be the same bytes.
        assert_eq!(format!("{}h", &good[..21]).parse::<Position>(), Err(()));
    }
}
