//! Numbers that two nodes exchange, each with a type of its own.

use crate::address::Incarnation;

/// Low bits of a [`SessionId`] that count the offers of one run of a node. The bits above hold the
/// incarnation, in milliseconds.
///
/// A count with more bits runs into the numbers of later incarnations. These stay distinct as long as a run
/// makes fewer than 2^20 offers per millisecond.
const OFFERS_BITS: u32 = 20;

/// A session between two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId(pub u64);

impl SessionId {
    /// The session that a node offers as its `count`th.
    ///
    /// Both ends use the id that one of them has offered. Later offers of a node have larger ids.
    pub fn offered(incarnation: Incarnation, count: u64) -> Self {
        Self((incarnation.0 << OFFERS_BITS) + count)
    }
}

/// A batch of one lane. Each lane of a session counts its batches from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BatchNumber(pub u64);

impl BatchNumber {
    /// The number of the batch after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// An announcement of interest. Each node counts its announcements, starting with 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AnnouncementNumber(pub u64);

/// The keyed hash of a channel's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelHash(pub u64);
