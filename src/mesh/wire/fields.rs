//! The fields of the wire format: numbers, names, texts, ids, addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use super::WireError;
use crate::address::remote::Remote;
use crate::address::{ClientId, NodeId, ShardAddress, ShardId};
use crate::mesh::link::Lane;
use crate::message::{BackendId, ConnectionKey};
use crate::protocol::api::NAME_BYTES_MAX;

// The length of a name is one byte.
const _: () = assert!(NAME_BYTES_MAX == u8::MAX as usize);

const IP_V4: u8 = 4;
const IP_V6: u8 = 6;

/// The rest of a frame, read field by field.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks that no data is left.
    pub(super) fn end(&self) -> Result<(), WireError> {
        if self.0.is_empty() { Ok(()) } else { Err(WireError::Trailing) }
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (array, rest) = self.0.split_first_chunk().ok_or(WireError::Truncated)?;
        self.0 = rest;
        Ok(*array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, WireError> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn flag(&mut self) -> Result<bool, WireError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError::OutOfBounds),
        }
    }

    /// Bytes, preceded by their length.
    pub(super) fn bytes(&mut self) -> Result<&'a [u8], WireError> {
        let length = self.u32()? as usize;
        self.take(length)
    }

    /// Text of any length, such as JSON.
    pub(super) fn long_text(&mut self) -> Result<&'a str, WireError> {
        text(self.bytes()?)
    }

    /// A text for people, of at most [`TEXT_BYTES_MAX`](super::TEXT_BYTES_MAX) bytes.
    pub(super) fn text(&mut self) -> Result<&'a str, WireError> {
        match self.long_text()? {
            text if text.len() <= super::TEXT_BYTES_MAX => Ok(text),
            _ => Err(WireError::OutOfBounds),
        }
    }

    /// Text of 0 to 255 bytes.
    pub(super) fn short_text(&mut self) -> Result<&'a str, WireError> {
        let length = self.u8()?;
        text(self.take(length.into())?)
    }

    /// The name of a channel or topic: text of 1 to 255 bytes.
    pub(super) fn name(&mut self) -> Result<&'a str, WireError> {
        match self.short_text()? {
            "" => Err(WireError::OutOfBounds),
            name => Ok(name),
        }
    }

    /// A list of at most `max` items, preceded by their number. The list grows as items are read, so that
    /// a number alone takes no memory.
    pub(super) fn list<T>(
        &mut self,
        max: usize,
        read: impl Fn(&mut Self) -> Result<T, WireError>,
    ) -> Result<Vec<T>, WireError> {
        let count = self.u32()?;
        if count as usize > max {
            return Err(WireError::OutOfBounds);
        }
        (0..count).map(|_| read(self)).collect()
    }

    pub(super) fn client(&mut self) -> Result<ClientId, WireError> {
        self.u64().map(ClientId::from_value)
    }

    pub(super) fn node(&mut self) -> Result<NodeId, WireError> {
        NodeId::new(self.u16()?).ok_or(WireError::OutOfBounds)
    }

    pub(super) fn lane(&mut self) -> Result<Lane, WireError> {
        Lane::from_number(self.u16()?).ok_or(WireError::OutOfBounds)
    }

    pub(super) fn shard(&mut self) -> Result<ShardAddress, WireError> {
        Ok(ShardAddress { node: self.node()?, shard: ShardId(self.u8()?) })
    }

    pub(super) fn backend(&mut self) -> Result<BackendId, WireError> {
        let at = self.shard()?;
        let connection = ConnectionKey { index: self.u32()?, generation: self.u32()? };
        match connection.generation {
            ..=ConnectionKey::GENERATION_MAX => Ok(BackendId { at, connection }),
            _ => Err(WireError::OutOfBounds),
        }
    }

    pub(super) fn address(&mut self) -> Result<SocketAddr, WireError> {
        match self.u8()? {
            IP_V4 => {
                let ip = Ipv4Addr::from(self.array::<4>()?);
                Ok(SocketAddr::new(IpAddr::V4(ip), self.u16()?))
            }
            IP_V6 => {
                let ip = Ipv6Addr::from(self.array::<16>()?);
                let (port, flow, scope) = (self.u16()?, self.u32()?, self.u32()?);
                Ok(SocketAddrV6::new(ip, port, flow, scope).into())
            }
            kind => Err(WireError::Unknown(kind)),
        }
    }

    /// Reads what [`put_remote`] has written.
    pub(super) fn remote(&mut self) -> Result<Remote, WireError> {
        let address = self.address()?;
        Ok(match (address.ip(), address.port()) {
            (ip, 0) if ip.is_unspecified() => Remote::Unix,
            (ip, port) => Remote::Ip(ip, Some(port).filter(|port| *port != 0)),
        })
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(WireError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }
}

fn text(bytes: &[u8]) -> Result<&str, WireError> {
    std::str::from_utf8(bytes).map_err(|_| WireError::NotUtf8)
}

pub(super) fn put_u16(out: &mut Vec<u8>, number: u16) {
    out.extend_from_slice(&number.to_le_bytes());
}

pub(super) fn put_u32(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_le_bytes());
}

pub(super) fn put_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_count(out, bytes.len());
    out.extend_from_slice(bytes);
}

pub(super) fn put_long_text(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, &text.as_bytes()[..text.floor_char_boundary(super::TEXT_BYTES_MAX)]);
}

pub(super) fn put_short_text(out: &mut Vec<u8>, text: &str) {
    // Names, keys and reasons of closes are checked where they enter the node.
    out.push(u8::try_from(text.len()).expect("a short text has at most 255 bytes"));
    out.extend_from_slice(text.as_bytes());
}

pub(super) fn put_list<T>(out: &mut Vec<u8>, items: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    put_count(out, items.len());
    for item in items {
        put(out, item);
    }
}

pub(super) fn put_names(out: &mut Vec<u8>, names: &[Box<str>]) {
    put_list(out, names, |out, name| put_short_text(out, name));
}

pub(super) fn read_name(fields: &mut Fields<'_>) -> Result<Box<str>, WireError> {
    fields.name().map(Box::from)
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    put_u32(out, u32::try_from(count).expect("a frame is shorter than 4 GiB"));
}

pub(super) fn put_backend(out: &mut Vec<u8>, backend: BackendId) {
    let BackendId { at, connection } = backend;
    put_shard(out, at);
    put_u32(out, connection.index);
    put_u32(out, connection.generation);
}

pub(super) fn put_shard(out: &mut Vec<u8>, shard: ShardAddress) {
    put_u16(out, shard.node.number());
    out.push(shard.shard.0);
}

pub(super) fn put_address(out: &mut Vec<u8>, address: SocketAddr) {
    match address {
        SocketAddr::V4(address) => {
            out.push(IP_V4);
            out.extend_from_slice(&address.ip().octets());
            put_u16(out, address.port());
        }
        SocketAddr::V6(address) => {
            out.push(IP_V6);
            out.extend_from_slice(&address.ip().octets());
            put_u16(out, address.port());
            put_u32(out, address.flowinfo());
            put_u32(out, address.scope_id());
        }
    }
}

/// Writes the address of a client. Port 0 stands for an unknown port, and `0.0.0.0:0` for a Unix socket,
/// so that nodes that know only IP addresses with ports can read all of them.
pub(super) fn put_remote(out: &mut Vec<u8>, remote: Remote) {
    put_address(
        out,
        match remote {
            Remote::Ip(ip, port) => SocketAddr::new(ip, port.unwrap_or(0)),
            Remote::Unix => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        },
    );
}
