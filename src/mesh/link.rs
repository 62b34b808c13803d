//! What the mesh has the transport do, and what it hears from it. A link is one QUIC connection to
//! another node that proved to know the grid's key; which node that is, its first words say.

use std::net::SocketAddr;

use bytes::Bytes;

use crate::address::ShardId;

/// One connection to a peer, for as long as it lives; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// How many lanes there may be in each direction.
pub const LANES: usize = 258;

/// A stream of a link, one in each direction. What is sent on a lane arrives in order; a lane does
/// not wait for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Between the meshes: who they are, interest, acknowledgements, signs of life.
    Control,
    /// Messages from that shard of the sender.
    Shard(ShardId),
    /// Messages from the sender's mesh.
    Mesh,
}

impl Lane {
    /// Its number on the wire: shards from 0, then the mesh's and the control lane.
    pub fn number(self) -> u16 {
        match self {
            Self::Shard(shard) => u16::from(shard.0),
            Self::Mesh => 256,
            Self::Control => 257,
        }
    }

    /// The lane with this number, if there is one.
    pub fn from_number(number: u16) -> Option<Self> {
        match number {
            0..=255 => Some(Self::Shard(ShardId(number as u8))),
            256 => Some(Self::Mesh),
            257 => Some(Self::Control),
            _ => None,
        }
    }
}

/// What the transport tells.
#[derive(Debug)]
pub enum Event {
    /// There is a link: we dialled, or were dialled.
    Opened {
        /// Its name from now on.
        link: LinkId,
        /// The peer's address on this connection.
        remote: SocketAddr,
        /// We dialled.
        is_dialled: bool,
    },
    /// Bytes of a lane, cut anywhere.
    Received(LinkId, Lane, Bytes),
    /// A datagram, whole.
    Datagram(LinkId, Bytes),
    /// A link is gone, and why. Nothing more is heard of it. Comes once for each that was opened,
    /// also after [`Effect::Close`]; what had come on its control lane comes before it, what had come
    /// on others may not.
    Closed(LinkId, String),
    /// Dialling this target failed, and why in words that help; of a name, once for each of its
    /// addresses that failed.
    Unreachable(String, String),
    /// A handshake showed that the peer and this node do not belong together. Comes beside
    /// [`Event::Unreachable`] where this node dialled, and alone where the peer did.
    Refused(Refusal),
}

/// Why a peer and this node do not come together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// One of the two does not prove that it belongs to the other's grid.
    Key,
    /// They have no version of the mesh protocol in common.
    Version,
    /// The id of one of them is in use.
    Id,
}

/// What the transport is to do. For a link that is gone: nothing.
#[derive(Debug)]
pub enum Effect {
    /// Dial a target, `HOST:PORT`; a name may stand for several addresses, of which the first 16 are
    /// dialled, but not those to which a dial is under way already.
    Dial(String),
    /// Send bytes on a lane, behind what was sent on it before.
    Send(LinkId, Lane, Bytes),
    /// Send a datagram: it may be lost, and is if it has more than 1,100 bytes.
    Datagram(LinkId, Bytes),
    /// Close a link, and tell the peer why, after what was sent on the control lane. Until it is
    /// [`Event::Closed`] nothing more is heard of it.
    Close(LinkId, String),
    /// End the node: it cannot be part of the grid, and this is why.
    Fail(String),
}
