//! Messages of the control lane ⇄ bytes.

use super::fields::{Fields, put_address, put_list, put_text, put_u16, put_u64};
use super::{Control, FRAME_BYTES_MAX, Hello, Receipt, Versions, WireError};
use crate::address::{Incarnation, SHARDS_MAX};
use crate::mesh::link::LANES;
use crate::mesh::numbers::{AnnouncementNumber, BatchNumber, ChannelHash, SessionId};

// Hello and Refused keep their numbers and form in every version: they are sent before the two sides
// know which versions they have in common.
const HELLO: u8 = 1;
const REFUSED: u8 = 2;
const INTEREST: u8 = 3;
const INTEREST_KNOWN: u8 = 4;
const PING: u8 = 5;
const PONG: u8 = 6;
const RECEIVED: u8 = 7;

const MAGIC: [u8; 8] = *b"gridcast";

// In place of a session or an announcement: there is none.
const NONE: u64 = 0;

/// Appends one frame of the control lane, including its length.
///
/// # Panics
/// The frame is over [`FRAME_BYTES_MAX`], as an interest of 16 million channels would be. Such an
/// interest is announced in parts.
pub fn put_control(out: &mut Vec<u8>, control: &Control) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    put_body(out, control);
    let length = out.len() - start - 4;
    assert!(length <= FRAME_BYTES_MAX, "a control message fits a frame");
    out[start..start + 4].copy_from_slice(&(length as u32).to_le_bytes());
}

fn put_body(out: &mut Vec<u8>, control: &Control) {
    match control {
        Control::Hello(hello) => {
            out.push(HELLO);
            put_hello(out, hello);
        }
        Control::Refused(why) => {
            out.push(REFUSED);
            put_text(out, why);
        }
        Control::Interest { number, is_whole, on, off } => {
            out.push(INTEREST);
            put_u64(out, number.map_or(NONE, |number| number.0));
            out.push((*is_whole).into());
            put_list(out, on, |out, channel| put_u64(out, channel.0));
            put_list(out, off, |out, channel| put_u64(out, channel.0));
        }
        Control::InterestKnown(number) => put_numbered(out, INTEREST_KNOWN, number.0),
        Control::Ping { sent_ms } => put_numbered(out, PING, *sent_ms),
        Control::Pong { sent_ms, clients } => {
            put_numbered(out, PONG, *sent_ms);
            put_u64(out, *clients);
        }
        Control::Received(receipt) => {
            out.push(RECEIVED);
            put_receipt(out, receipt);
        }
    }
}

fn put_numbered(out: &mut Vec<u8>, kind: u8, number: u64) {
    out.push(kind);
    put_u64(out, number);
}

fn put_receipt(out: &mut Vec<u8>, receipt: &Receipt) {
    put_u16(out, receipt.lane.number());
    put_u64(out, receipt.last.0);
}

fn put_hello(out: &mut Vec<u8>, hello: &Hello) {
    out.extend_from_slice(&MAGIC);
    put_u16(out, hello.versions.first);
    put_u16(out, hello.versions.last);
    put_u16(out, hello.node.number());
    put_u64(out, hello.incarnation.0);
    put_u16(out, hello.shards);
    put_address(out, hello.mesh);
    put_address(out, hello.api);
    put_text(out, &hello.software);
    put_u64(out, hello.held.map_or(NONE, |held| held.0));
    put_u64(out, hello.offered.0);
    put_list(out, &hello.received, put_receipt);
}

/// Reads one frame of the control lane, without its length.
///
/// # Errors
/// The frame is not exactly one [`Control`] of this version.
pub fn read_control(frame: &[u8]) -> Result<Control, WireError> {
    let mut fields = Fields::new(frame);
    let control = match fields.u8()? {
        // Trailing data is ignored: a newer version may add fields to its hello, and must still be
        // understood well enough to agree on a version, or to be refused with a reason.
        HELLO => return read_hello(&mut fields).map(Control::Hello),
        REFUSED => Control::Refused(fields.text()?.to_owned()),
        INTEREST => Control::Interest {
            number: read_optional(&mut fields)?.map(AnnouncementNumber),
            is_whole: fields.flag()?,
            on: fields.list(FRAME_BYTES_MAX, read_channel)?,
            off: fields.list(FRAME_BYTES_MAX, read_channel)?,
        },
        INTEREST_KNOWN => Control::InterestKnown(AnnouncementNumber(fields.u64()?)),
        PING => Control::Ping { sent_ms: fields.u64()? },
        PONG => Control::Pong { sent_ms: fields.u64()?, clients: fields.u64()? },
        RECEIVED => Control::Received(read_receipt(&mut fields)?),
        kind => return Err(WireError::Unknown(kind)),
    };
    fields.end()?;
    Ok(control)
}

fn read_optional(fields: &mut Fields<'_>) -> Result<Option<u64>, WireError> {
    Ok(Some(fields.u64()?).filter(|number| *number != NONE))
}

fn read_channel(fields: &mut Fields<'_>) -> Result<ChannelHash, WireError> {
    fields.u64().map(ChannelHash)
}

fn read_receipt(fields: &mut Fields<'_>) -> Result<Receipt, WireError> {
    Ok(Receipt { lane: fields.lane()?, last: BatchNumber(fields.u64()?) })
}

fn read_shards(fields: &mut Fields<'_>) -> Result<u16, WireError> {
    let shards = fields.u16()?;
    match (1..=SHARDS_MAX).contains(&usize::from(shards)) {
        true => Ok(shards),
        false => Err(WireError::OutOfBounds),
    }
}

fn read_hello(fields: &mut Fields<'_>) -> Result<Hello, WireError> {
    if fields.array()? != MAGIC {
        return Err(WireError::NotAHello);
    }
    Ok(Hello {
        versions: Versions { first: fields.u16()?, last: fields.u16()? },
        node: fields.node()?,
        incarnation: Incarnation(fields.u64()?),
        shards: read_shards(fields)?,
        mesh: fields.address()?,
        api: fields.address()?,
        software: fields.text()?.to_owned(),
        held: read_optional(fields)?.map(SessionId),
        offered: SessionId(fields.u64()?),
        received: fields.list(LANES, read_receipt)?,
    })
}
