//! Requests of the mesh to the transport, and reports of the transport.
//!
//! A link is one QUIC connection to another node that has proved to belong to the grid. Its
//! [`Hello`](super::wire::Hello) says which node it is.

use std::net::SocketAddr;

use bytes::Bytes;

use crate::address::ShardId;

/// One connection to a peer. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// Lanes of a link in each direction: one per possible shard, one of the mesh, one for control.
pub const LANES: usize = 258;

/// A stream of a link in one direction. Bytes of a lane arrive in order. Lanes do not wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Between the meshes: hello, interest, acknowledgements, pings.
    Control,
    /// Messages from a shard of the sender.
    Shard(ShardId),
    /// Messages from the sender's mesh.
    Mesh,
}

impl Lane {
    /// The lane's number on the wire: shards from 0, then the mesh, then control.
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

/// A report of the transport.
#[derive(Debug)]
pub enum LinkEvent {
    /// A link was established.
    Opened {
        /// The new link.
        link: LinkId,
        /// The peer's address on this connection.
        remote: SocketAddr,
        /// Whether this node dialled.
        is_dialled: bool,
    },
    /// Bytes of a lane, split anywhere.
    Received(LinkId, Lane, Bytes),
    /// A whole datagram.
    Datagram(LinkId, Bytes),
    /// A link was closed, and why. Comes once for each opened link, also after [`LinkEffect::Close`], and is
    /// the last event of the link. What had arrived on the control lane comes before it; what had
    /// arrived on other lanes may be lost.
    Closed(LinkId, String),
    /// Dialling this target failed, and why. For a name, one event for each address that failed.
    Unreachable(String, String),
    /// A handshake showed that the peer and this node do not belong together. Comes in addition to
    /// [`LinkEvent::Unreachable`] if this node dialled, and alone if the peer did.
    Refused(PeerRefusal),
}

/// Why a peer and this node do not belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerRefusal {
    /// One of the two does not prove that it belongs to the other's grid.
    Key,
    /// The two have no version of the mesh protocol in common.
    Version,
    /// The id of one of the two is in use.
    Id,
}

/// A request to the transport. An effect on a closed link does nothing.
#[derive(Debug)]
pub enum LinkEffect {
    /// Dial a target, `HOST:PORT`. Of a name's addresses the first 16 are dialled, except those with a
    /// dial in progress.
    Dial(String),
    /// Send bytes on a lane, behind those sent before.
    Send(LinkId, Lane, Bytes),
    /// Send a datagram. It may be lost, and always is if it has more than 1,100 bytes.
    Datagram(LinkId, Bytes),
    /// Close a link and tell the peer why, after what was sent on the control lane. No further event of
    /// the link is reported but [`LinkEvent::Closed`].
    Close(LinkId, String),
    /// End the node, which cannot be part of the grid, and say why.
    Fail(String),
}
