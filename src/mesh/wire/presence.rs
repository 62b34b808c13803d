//! Messages about presence ⇄ bytes.

use std::sync::Arc;

use super::WireError;
use super::fields::{Fields, put_list, put_short_text};
use crate::message::{
    Beginning, MEMBERS_PER_MESSAGE_MAX, PresenceMessage, PresenceNews, PresentMember,
};

// Kinds of news.
const NEW: u8 = 1;
const MOVED: u8 = 2;
const LOST: u8 = 3;
const KNOWN: u8 = 4;
const PRESENT: u8 = 5;
const ABSENT: u8 = 6;
const END: u8 = 7;
const WERE_THERE: u8 = 8;
const JOINED: u8 = 9;
const LEFT: u8 = 10;
const GUARD: u8 = 11;
const UNGUARD: u8 = 12;

/// Writes a message about presence.
pub(super) fn put_presence_message(out: &mut Vec<u8>, message: &PresenceMessage) {
    put_short_text(out, &message.channel);
    let mut put_users = |kind, users: &[Arc<str>]| {
        out.push(kind);
        put_list(out, users, |out, user| put_short_text(out, user));
    };
    match &message.news {
        PresenceNews::Known(users) => put_users(KNOWN, users),
        PresenceNews::WereThere(users) => put_users(WERE_THERE, users),
        PresenceNews::Joined(users) => put_users(JOINED, users),
        PresenceNews::Begin(Beginning::New) => out.push(NEW),
        PresenceNews::Begin(Beginning::Moved) => out.push(MOVED),
        PresenceNews::Begin(Beginning::Lost) => out.push(LOST),
        PresenceNews::Present(members) => {
            out.push(PRESENT);
            put_list(out, members, put_member);
        }
        PresenceNews::Absent(member) => {
            out.push(ABSENT);
            put_member(out, member);
        }
        PresenceNews::Left(user) => {
            out.push(LEFT);
            put_short_text(out, user);
        }
        PresenceNews::End => out.push(END),
        PresenceNews::Guard => out.push(GUARD),
        PresenceNews::Unguard => out.push(UNGUARD),
    }
}

/// Reads what [`put_presence_message`] has written.
pub(super) fn read_presence_message(fields: &mut Fields<'_>) -> Result<PresenceMessage, WireError> {
    let channel = fields.name()?.into();
    let users = |fields: &mut Fields<'_>| fields.list(MEMBERS_PER_MESSAGE_MAX, read_user);
    let news = match fields.u8()? {
        NEW => PresenceNews::Begin(Beginning::New),
        MOVED => PresenceNews::Begin(Beginning::Moved),
        LOST => PresenceNews::Begin(Beginning::Lost),
        KNOWN => PresenceNews::Known(users(fields)?),
        PRESENT => PresenceNews::Present(fields.list(MEMBERS_PER_MESSAGE_MAX, read_member)?),
        ABSENT => PresenceNews::Absent(read_member(fields)?),
        END => PresenceNews::End,
        WERE_THERE => PresenceNews::WereThere(users(fields)?),
        JOINED => PresenceNews::Joined(users(fields)?),
        LEFT => PresenceNews::Left(read_user(fields)?),
        GUARD => PresenceNews::Guard,
        UNGUARD => PresenceNews::Unguard,
        kind => return Err(WireError::Unknown(kind)),
    };
    Ok(PresenceMessage { channel, news })
}

fn read_user(fields: &mut Fields<'_>) -> Result<Arc<str>, WireError> {
    fields.name().map(Arc::from)
}

// No user has an empty name.
fn put_member(out: &mut Vec<u8>, member: &PresentMember) {
    put_short_text(out, member.as_deref().unwrap_or_default());
}

fn read_member(fields: &mut Fields<'_>) -> Result<PresentMember, WireError> {
    let name = fields.short_text()?;
    Ok((!name.is_empty()).then(|| name.into()))
}
