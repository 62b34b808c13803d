//! Messages about taps ⇄ bytes.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::WireError;
use super::fields::{
    Fields, put_address, put_backend, put_bytes, put_short_text, put_u16, put_u32, put_u64,
};
use crate::message::{BackendId, FromTapper, GridMessage, Ticket, ToTapper};
use crate::protocol::api::{TAP_EVENTS_PER_S_MAX, TAP_FRAME_BYTES_MAX, Tap, TapTarget};
use crate::protocol::frame::Frame;

// Kinds of messages about a tap.
const START: u8 = 1;
const STOP: u8 = 2;
const TAKEN: u8 = 3;
const STARTED: u8 = 4;
const EVENT: u8 = 5;
const LOST: u8 = 6;

// Kinds of targets.
const CLIENT: u8 = 1;
const USER: u8 = 2;
const CHANNEL: u8 = 3;
const TOPIC: u8 = 4;
const ADDRESS: u8 = 5;

/// Reads what [`put_from_tapper`] or [`put_to_tapper`] has written.
pub(super) fn read_tap_message(fields: &mut Fields<'_>) -> Result<GridMessage, WireError> {
    let tapper = fields.backend()?;
    let from = |message| GridMessage::FromTapper(tapper, message);
    let to = |message| GridMessage::ToTapper(tapper, message);
    Ok(match fields.u8()? {
        START => from(FromTapper::Start(Ticket(fields.u64()?), Box::new(read_tap(fields)?))),
        STOP => from(FromTapper::Stop),
        TAKEN => from(FromTapper::Taken(fields.u32()?)),
        STARTED => {
            to(ToTapper::Started { ticket: Ticket(fields.u64()?), is_watching: fields.flag()? })
        }
        EVENT => to(ToTapper::Event(read_event(fields)?)),
        LOST => to(ToTapper::Lost(fields.u64()?)),
        kind => return Err(WireError::Unknown(kind)),
    })
}

/// Writes a message of the shard of a tapper.
pub(super) fn put_from_tapper(out: &mut Vec<u8>, tapper: BackendId, message: &FromTapper) {
    put_backend(out, tapper);
    match message {
        FromTapper::Start(ticket, tap) => {
            out.push(START);
            put_u64(out, ticket.0);
            put_target(out, &tap.target);
            put_u16(out, tap.max_per_s);
        }
        FromTapper::Stop => out.push(STOP),
        FromTapper::Taken(count) => {
            out.push(TAKEN);
            put_u32(out, *count);
        }
    }
}

/// Writes a message to the shard of a tapper.
pub(super) fn put_to_tapper(out: &mut Vec<u8>, tapper: BackendId, message: &ToTapper) {
    put_backend(out, tapper);
    match message {
        ToTapper::Started { ticket, is_watching } => {
            out.push(STARTED);
            put_u64(out, ticket.0);
            out.push((*is_watching).into());
        }
        ToTapper::Event(frame) => {
            out.push(EVENT);
            put_bytes(out, frame.bytes());
        }
        ToTapper::Lost(count) => {
            out.push(LOST);
            put_u64(out, *count);
        }
    }
}

fn put_target(out: &mut Vec<u8>, target: &TapTarget) {
    let mut put_name = |kind, name: &str| {
        out.push(kind);
        put_short_text(out, name);
    };
    match target {
        TapTarget::User(user) => put_name(USER, user),
        TapTarget::Channel(channel) => put_name(CHANNEL, channel),
        TapTarget::Topic(topic) => put_name(TOPIC, topic),
        TapTarget::Client(client) => {
            out.push(CLIENT);
            put_u64(out, client.value());
        }
        TapTarget::Address(network) => {
            out.push(ADDRESS);
            put_network(out, *network);
        }
    }
}

/// Writes a network as its address, with the length of its prefix in place of a port.
fn put_network(out: &mut Vec<u8>, network: IpNet) {
    put_address(out, SocketAddr::new(network.addr(), network.prefix_len().into()));
}

fn read_tap(fields: &mut Fields<'_>) -> Result<Tap, WireError> {
    let target = match fields.u8()? {
        CLIENT => TapTarget::Client(fields.client()?),
        USER => TapTarget::User(fields.name()?.into()),
        CHANNEL => TapTarget::Channel(fields.name()?.into()),
        TOPIC => TapTarget::Topic(fields.name()?.into()),
        ADDRESS => TapTarget::Address(read_network(fields)?),
        kind => return Err(WireError::Unknown(kind)),
    };
    match fields.u16()? {
        max_per_s @ 1..=TAP_EVENTS_PER_S_MAX => Ok(Tap { target, max_per_s }),
        _ => Err(WireError::OutOfBounds),
    }
}

fn read_network(fields: &mut Fields<'_>) -> Result<IpNet, WireError> {
    let address = fields.address()?;
    let is_plain = match address {
        SocketAddr::V4(_) => true,
        SocketAddr::V6(address) => address.flowinfo() == 0 && address.scope_id() == 0,
    };
    let length = u8::try_from(address.port()).ok().filter(|_| is_plain);
    let network = |ip: IpAddr, length| IpNet::new(ip, length).ok();
    length.and_then(|length| network(address.ip(), length)).ok_or(WireError::OutOfBounds)
}

fn read_event(fields: &mut Fields<'_>) -> Result<Frame, WireError> {
    match fields.bytes()? {
        bytes if bytes.len() <= TAP_FRAME_BYTES_MAX => Ok(Frame::from_encoded(bytes)),
        _ => Err(WireError::OutOfBounds),
    }
}
