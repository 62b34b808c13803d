//! Messages ⇄ bytes between nodes, versioned. A lane carries frames, each behind its length in 4
//! bytes; all numbers are little-endian and of fixed size, which is what takes the least time.
//!
//! - `frames.rs`: what comes in pieces → frames. `control.rs`: a frame of the control lane, which is
//!   one [`Control`]. `letter.rs`: a frame of any other lane, a batch of [`Letter`]s.
//! - `fields.rs`: what they are made of.
//!
//! Who gets this far has proved to know the grid's key, so the meaning of what a peer says is
//! trusted: that a [`Frame`](crate::protocol::frame::Frame) holds whole server frames, that JSON is
//! JSON. Its form is not, since a peer may be of another version or
//! broken: every length, number, name and text is checked, nothing panics, and no more memory is
//! taken than a small multiple of what has come.

mod control;
mod fields;
mod frames;
mod letter;

use std::fmt;
use std::net::SocketAddr;

use crate::address::{NodeId, ShardId};
use crate::message::Message;

use super::link::Lane;

pub use control::{put_control, read_control};
pub use frames::FrameReader;
pub use letter::{batch_number, begin_batch, end_batch, letters, put_letter};

/// The versions of this format that this node speaks: its own, and the one before where it still
/// does.
pub const VERSIONS: (u16, u16) = (1, 1);

/// The longest frame, in bytes without its length. The largest message is the event of 16 MiB of
/// text from a client, and JSON may write six bytes for one: 96 MiB, and the same again does not
/// fit. Who puts letters into a batch ends it long before: it may be as full as 16 MiB when the
/// largest is added.
pub const FRAME_BYTES_MAX: usize = 128 << 20;

/// The longest text for people: a fault, a refusal, a version. Longer ones are cut.
pub const TEXT_BYTES_MAX: usize = 1024;

/// What the meshes of two nodes say to each other on the control lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// The first words on a link, from each side.
    Hello(Hello),
    /// Instead of going on: why, in words for the log. The link is closed after it.
    Refused(String),
    /// Hashes of channels that the sender has subscribers of from now on, or has not any more.
    Interest {
        /// Counts these; 0 says that more of the whole is to come.
        number: u64,
        /// What was said before holds no more: this begins the whole.
        is_whole: bool,
        /// Channels that have subscribers.
        on: Vec<u64>,
        /// Channels that have none any more.
        off: Vec<u64>,
    },
    /// All [`Control::Interest`] up to this number is known.
    InterestKnown(u64),
    /// Asks for [`Control::Pong`] with this number, at once.
    Ping(u64),
    /// The answer, and how many clients the node has.
    Pong(u64, u64),
    /// Of this lane all batches up to this number have come.
    Received(Lane, u64),
}

/// Who a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The versions that it speaks, from and to.
    pub versions: (u16, u16),
    /// Its id.
    pub node: NodeId,
    /// When it started, in Unix milliseconds: which of those that had this id it is.
    pub incarnation: u64,
    /// How many shards it has.
    pub shards: u16,
    /// Where it is dialled.
    pub mesh: SocketAddr,
    /// Where back ends reach it.
    pub api: SocketAddr,
    /// Its software's version, for people.
    pub software: String,
    /// The session that it goes on with, 0: none.
    pub held: u64,
    /// The session that begins if the two do not hold the same and this side dialled.
    pub offered: u64,
    /// Of the held session: the last batch of each lane that it has got.
    pub received: Vec<(Lane, u64)>,
}

/// Whom a message between nodes is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// A shard of the receiving node.
    Shard(ShardId),
    /// Its mesh.
    Mesh,
}

/// A message with its receiver.
pub type Letter = (To, Message);

/// What is wrong with bytes of a peer. It speaks another language, or there is a bug: the link is
/// closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// It ends in the middle of something.
    Truncated,
    /// It goes on behind its end.
    Trailing,
    /// A frame is over [`FRAME_BYTES_MAX`].
    TooLarge,
    /// A kind of thing, by its number, that this version does not know.
    Unknown(u8),
    /// A number, length or count is outside its bounds.
    OutOfBounds,
    /// A text is not UTF-8.
    NotUtf8,
    /// A hello does not begin as one.
    NotAHello,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "it ends in the middle of something",
            Self::Trailing => "it goes on behind its end",
            Self::TooLarge => "a frame is over 128 MiB",
            Self::Unknown(kind) => return write!(f, "this version knows no kind {kind} of this"),
            Self::OutOfBounds => "a number, length or count is out of bounds",
            Self::NotUtf8 => "a text is not UTF-8",
            Self::NotAHello => "the first words are not those of a gridcast node",
        })
    }
}

#[cfg(test)]
mod tests;
