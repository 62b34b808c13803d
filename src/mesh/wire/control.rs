//! What is said on the control lane ⇄ bytes.

use super::fields::{Fields, put_address, put_list, put_text, put_u16, put_u64};
use super::{Control, FRAME_BYTES_MAX, Hello, WireError};
use crate::address::SHARDS_MAX;
use crate::mesh::link::Lane;

// Hello and Refused keep their numbers and form in every version: they are said before the two
// sides know which one both speak.
const HELLO: u8 = 1;
const REFUSED: u8 = 2;
const INTEREST: u8 = 3;
const INTEREST_KNOWN: u8 = 4;
const PING: u8 = 5;
const PONG: u8 = 6;
const RECEIVED: u8 = 7;

const MAGIC: [u8; 8] = *b"gridcast";

/// Shards, mesh and control.
const LANES_MAX: usize = 258;

/// Appends one frame of the control lane, its length included.
///
/// # Panics
/// An interest is over [`FRAME_BYTES_MAX`], which takes 16 million channels: whoever has so many
/// says it in parts, of which the first is whole.
pub fn put_control(out: &mut Vec<u8>, control: &Control) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    put_body(out, control);
    let length = out.len() - start - 4;
    assert!(length <= FRAME_BYTES_MAX, "what is said fits a frame");
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
            put_u64(out, *number);
            out.push((*is_whole).into());
            put_list(out, on, |out, hash| put_u64(out, *hash));
            put_list(out, off, |out, hash| put_u64(out, *hash));
        }
        Control::InterestKnown(number) => put_numbered(out, INTEREST_KNOWN, *number),
        Control::Ping(number) => put_numbered(out, PING, *number),
        Control::Pong(number, clients) => {
            put_numbered(out, PONG, *number);
            put_u64(out, *clients);
        }
        Control::Received(lane, number) => {
            out.push(RECEIVED);
            put_received(out, &(*lane, *number));
        }
    }
}

fn put_numbered(out: &mut Vec<u8>, kind: u8, number: u64) {
    out.push(kind);
    put_u64(out, number);
}

fn put_received(out: &mut Vec<u8>, (lane, number): &(Lane, u64)) {
    put_u16(out, lane.number());
    put_u64(out, *number);
}

fn put_hello(out: &mut Vec<u8>, hello: &Hello) {
    out.extend_from_slice(&MAGIC);
    put_u16(out, hello.versions.0);
    put_u16(out, hello.versions.1);
    put_u16(out, hello.node.number());
    put_u64(out, hello.incarnation);
    put_u16(out, hello.shards);
    put_address(out, hello.mesh);
    put_address(out, hello.api);
    put_text(out, &hello.software);
    put_u64(out, hello.held);
    put_u64(out, hello.offered);
    put_list(out, &hello.received, put_received);
}

/// Reads one frame of the control lane, its length already taken off.
///
/// # Errors
/// It is not one [`Control`], whole, that this version knows.
pub fn read_control(frame: &[u8]) -> Result<Control, WireError> {
    let mut fields = Fields::new(frame);
    let control = match fields.u8()? {
        // What follows is not looked at: a newer version may say more of itself behind what this
        // one knows, and must still be understood well enough to agree on a version, or to be told
        // why there is none.
        HELLO => return read_hello(&mut fields).map(Control::Hello),
        REFUSED => Control::Refused(fields.text()?.to_owned()),
        INTEREST => Control::Interest {
            number: fields.u64()?,
            is_whole: fields.flag()?,
            on: fields.list(FRAME_BYTES_MAX, Fields::u64)?,
            off: fields.list(FRAME_BYTES_MAX, Fields::u64)?,
        },
        INTEREST_KNOWN => Control::InterestKnown(fields.u64()?),
        PING => Control::Ping(fields.u64()?),
        PONG => Control::Pong(fields.u64()?, fields.u64()?),
        RECEIVED => Control::Received(fields.lane()?, fields.u64()?),
        kind => return Err(WireError::Unknown(kind)),
    };
    fields.end()?;
    Ok(control)
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
        versions: (fields.u16()?, fields.u16()?),
        node: fields.node()?,
        incarnation: fields.u64()?,
        shards: read_shards(fields)?,
        mesh: fields.address()?,
        api: fields.address()?,
        software: fields.text()?.to_owned(),
        held: fields.u64()?,
        offered: fields.u64()?,
        received: fields.list(LANES_MAX, |fields| Ok((fields.lane()?, fields.u64()?)))?,
    })
}
