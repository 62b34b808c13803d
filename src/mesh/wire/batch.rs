//! Batches of messages ⇄ bytes, on the lanes of shards and of the mesh.

use std::sync::Arc;

use super::fields::{
    Fields, put_backend, put_bytes, put_list, put_long_text, put_names, put_remote, put_shard,
    put_short_text, put_text, put_u16, put_u32, put_u64, read_name,
};
use super::function::{put_function, read_function};
use super::list::{put_list_message, read_list_message};
use super::presence::{put_presence_message, read_presence_message};
use super::tap::{put_from_tapper, put_to_tapper, read_tap_message};
use super::topic::{
    put_from_consumer, put_taken, put_to_consumer, read_settle, read_taken, read_topic_message,
};
use super::{AddressedMessage, FRAME_BYTES_MAX, MeshMessage, WireError};
use crate::address::Incarnation;
use crate::mesh::link::Lane;
use crate::mesh::numbers::BatchNumber;
use crate::message::{
    ClientCommand, ClientReply, GridMessage, LastWillsMessage, Publish, REGISTERED_PER_MESSAGE_MAX,
    Requester, StaleTaken, Ticket, UserAction, UserCommand, WatcherEpoch,
};
use crate::protocol::api::{
    Code, EXCLUDED_MAX, Fault, Info, Tally, UNSETTLED_MAX, USERS_PER_CALL_MAX,
};
use crate::protocol::frame::Frame;

/// Bytes of a batch's length and number.
const HEAD_BYTES: usize = 12;

// Kinds of messages.
const ASK: u8 = 1;
const ANSWER: u8 = 2;
const TOPIC: u8 = 3;
const LAST_WILLS: u8 = 4;
const LIST: u8 = 5;
const TAP: u8 = 6;
const CALLER: u8 = 7;
const SETTLE: u8 = 8;
const SETTLED_TAKEN: u8 = 9;
const PRESENCE: u8 = 10;

// Kinds of commands.
const SEND: u8 = 1;
const PUBLISH: u8 = 2;
const CALL: u8 = 3;
const PUBLISH_EXCEPT: u8 = 4;
const SEND_TO_USERS: u8 = 5;
const CALL_USERS: u8 = 6;

// Kinds of answers.
const PUBLISHED: u8 = 1;
const DONE: u8 = 2;
const CONTEXT: u8 = 3;
const OF_CLIENT: u8 = 4;
const FAULT: u8 = 5;

// Kinds of messages about the clients of a shard.
const BEGIN: u8 = 1;
const REGISTER: u8 = 2;
const UNREGISTER: u8 = 3;
const CLAIM: u8 = 4;

/// Begins a batch in an empty buffer.
pub fn begin_batch(out: &mut Vec<u8>) {
    assert!(out.is_empty(), "a batch has a buffer of its own");
    out.extend_from_slice(&[0; HEAD_BYTES]);
}

/// Completes the batch in a buffer, with its number on its lane.
///
/// # Panics
/// The batch is over [`FRAME_BYTES_MAX`].
pub fn end_batch(out: &mut [u8], number: BatchNumber) {
    let length = out.len() - 4;
    assert!(length <= FRAME_BYTES_MAX, "a batch fits a frame");
    out[..4].copy_from_slice(&(length as u32).to_le_bytes());
    out[4..HEAD_BYTES].copy_from_slice(&number.0.to_le_bytes());
}

/// Appends a message to a batch.
pub fn put_message(out: &mut Vec<u8>, message: &AddressedMessage) {
    match message {
        AddressedMessage::Shard(to, message) => {
            put_u16(out, Lane::Shard(*to).number());
            put_grid_message(out, message);
        }
        AddressedMessage::Mesh(message) => {
            put_u16(out, Lane::Mesh.number());
            put_mesh_message(out, message);
        }
    }
}

/// The number of the batch in a frame, which is without its length.
///
/// # Errors
/// The frame is too short.
pub fn batch_number(frame: &[u8]) -> Result<BatchNumber, WireError> {
    Fields::new(frame).u64().map(BatchNumber)
}

/// The messages of the batch in a frame. An error is the last item, since the boundary of the next message
/// is unknown.
pub fn messages(frame: &[u8]) -> impl Iterator<Item = Result<AddressedMessage, WireError>> {
    let mut fields = Fields::new(frame);
    let mut rest = fields.u64().map(|_| fields);
    std::iter::from_fn(move || {
        let message = match &mut rest {
            Ok(fields) if fields.is_empty() => return None,
            Ok(fields) => read_addressed(fields),
            Err(error) => Err(*error),
        };
        if message.is_err() {
            rest = Ok(Fields::default());
        }
        Some(message)
    })
}

fn read_addressed(fields: &mut Fields<'_>) -> Result<AddressedMessage, WireError> {
    Ok(match fields.lane()? {
        Lane::Shard(shard) => AddressedMessage::Shard(shard, read_grid_message(fields)?),
        Lane::Mesh => AddressedMessage::Mesh(read_mesh_message(fields)?),
        Lane::Control => return Err(WireError::OutOfBounds),
    })
}

fn put_mesh_message(out: &mut Vec<u8>, message: &MeshMessage) {
    match message {
        MeshMessage::Publish(requester, Publish { channel, frame, excluded }) => {
            put_requester(out, *requester);
            out.push(if excluded.is_none() { PUBLISH } else { PUBLISH_EXCEPT });
            put_short_text(out, channel);
            put_bytes(out, frame.bytes());
            if let Some(excluded) = excluded {
                put_list(out, excluded, |out, client| put_u64(out, client.value()));
            }
        }
        MeshMessage::ForUsers(requester, command) => {
            put_requester(out, *requester);
            put_user_command(out, command);
        }
        MeshMessage::Published(ticket, tally) => {
            put_answered(out, *ticket);
            out.push(PUBLISHED);
            put_u64(out, tally.delivered);
            put_u64(out, tally.failed);
        }
    }
}

fn read_mesh_message(fields: &mut Fields<'_>) -> Result<MeshMessage, WireError> {
    match fields.u8()? {
        ASK => {
            let requester = read_requester(fields)?;
            match fields.u8()? {
                kind @ (PUBLISH | PUBLISH_EXCEPT) => {
                    let channel = fields.name()?.into();
                    let frame = read_frame(fields)?;
                    let excluded = match kind {
                        PUBLISH_EXCEPT => {
                            Some(Arc::new(fields.list(EXCLUDED_MAX, Fields::client)?))
                        }
                        _ => None,
                    };
                    Ok(MeshMessage::Publish(requester, Publish { channel, frame, excluded }))
                }
                kind @ (SEND_TO_USERS | CALL_USERS) => {
                    let command = read_user_command(fields, kind)?;
                    Ok(MeshMessage::ForUsers(requester, Arc::new(command)))
                }
                kind => Err(WireError::Unknown(kind)),
            }
        }
        ANSWER => {
            let ticket = Ticket(fields.u64()?);
            match fields.u8()? {
                PUBLISHED => {
                    let tally = Tally { delivered: fields.u64()?, failed: fields.u64()? };
                    Ok(MeshMessage::Published(ticket, tally))
                }
                kind => Err(WireError::Unknown(kind)),
            }
        }
        kind => Err(WireError::Unknown(kind)),
    }
}

fn put_user_command(out: &mut Vec<u8>, command: &UserCommand) {
    let UserCommand { users, action } = command;
    out.push(match action {
        UserAction::Send(_) => SEND_TO_USERS,
        UserAction::Call(_) => CALL_USERS,
    });
    put_names(out, users);
    match action {
        UserAction::Send(frame) => put_bytes(out, frame.bytes()),
        UserAction::Call(function) => put_function(out, function),
    }
}

fn read_user_command(fields: &mut Fields<'_>, kind: u8) -> Result<UserCommand, WireError> {
    let users = fields.list(USERS_PER_CALL_MAX, read_name)?;
    let action = match kind {
        SEND_TO_USERS => UserAction::Send(read_frame(fields)?),
        _ => UserAction::Call(read_function(fields)?),
    };
    Ok(UserCommand { users, action })
}

fn put_requester(out: &mut Vec<u8>, requester: Requester) {
    out.push(ASK);
    put_u64(out, requester.ticket.0);
    put_backend(out, requester.backend);
}

fn read_requester(fields: &mut Fields<'_>) -> Result<Requester, WireError> {
    Ok(Requester { ticket: Ticket(fields.u64()?), backend: fields.backend()? })
}

fn put_answered(out: &mut Vec<u8>, ticket: Ticket) {
    out.push(ANSWER);
    put_u64(out, ticket.0);
}

fn put_grid_message(out: &mut Vec<u8>, message: &GridMessage) {
    match message {
        GridMessage::Ask { ticket, backend, command } => {
            put_requester(out, Requester { ticket: *ticket, backend: *backend });
            put_command(out, command);
        }
        GridMessage::Answer(ticket, answer) => {
            put_answered(out, *ticket);
            put_answer(out, answer);
        }
        GridMessage::FromConsumer { topic, consumer, message } => {
            out.push(TOPIC);
            put_short_text(out, topic);
            put_from_consumer(out, *consumer, message);
        }
        GridMessage::ToConsumer { topic, consumer, message } => {
            out.push(TOPIC);
            put_short_text(out, topic);
            put_to_consumer(out, *consumer, message);
        }
        GridMessage::Settle(ticket, settle) => {
            out.push(SETTLE);
            put_u64(out, ticket.0);
            put_short_text(out, &settle.topic);
            put_list(out, &settle.events, put_taken);
            // Longer than any delay: the events are acknowledged.
            put_u32(out, settle.after_ms.unwrap_or(u32::MAX));
        }
        GridMessage::Settled(ticket, stale) => {
            out.push(SETTLED_TAKEN);
            put_u64(out, ticket.0);
            put_short_text(out, &stale.topic);
            put_list(out, &stale.events, put_taken);
        }
        GridMessage::LastWills(shard, message) => {
            out.push(LAST_WILLS);
            put_shard(out, *shard);
            put_last_wills_message(out, message);
        }
        GridMessage::List(ticket, message) => {
            out.push(LIST);
            put_u64(out, ticket.0);
            put_list_message(out, message);
        }
        GridMessage::FromTapper(tapper, message) => {
            out.push(TAP);
            put_from_tapper(out, *tapper, message);
        }
        GridMessage::ToTapper(tapper, message) => {
            out.push(TAP);
            put_to_tapper(out, *tapper, message);
        }
        GridMessage::Presence(message) => {
            out.push(PRESENCE);
            put_presence_message(out, message);
        }
        GridMessage::Caller(Requester { ticket, backend }, user) => {
            out.push(CALLER);
            put_u64(out, ticket.0);
            put_backend(out, *backend);
            put_short_text(out, user);
        }
    }
}

fn read_grid_message(fields: &mut Fields<'_>) -> Result<GridMessage, WireError> {
    Ok(match fields.u8()? {
        ASK => {
            let Requester { ticket, backend } = read_requester(fields)?;
            GridMessage::Ask { ticket, backend, command: read_command(fields)? }
        }
        ANSWER => GridMessage::Answer(Ticket(fields.u64()?), read_answer(fields)?),
        TOPIC => read_topic_message(fields)?,
        SETTLE => GridMessage::Settle(Ticket(fields.u64()?), Box::new(read_settle(fields)?)),
        SETTLED_TAKEN => {
            let ticket = Ticket(fields.u64()?);
            let topic = fields.name()?.into();
            let events = fields.list(UNSETTLED_MAX, read_taken)?;
            GridMessage::Settled(ticket, Box::new(StaleTaken { topic, events }))
        }
        LAST_WILLS => GridMessage::LastWills(fields.shard()?, read_last_wills_message(fields)?),
        LIST => GridMessage::List(Ticket(fields.u64()?), read_list_message(fields)?),
        PRESENCE => GridMessage::Presence(Box::new(read_presence_message(fields)?)),
        TAP => read_tap_message(fields)?,
        CALLER => GridMessage::Caller(read_requester(fields)?, fields.short_text()?.into()),
        kind => return Err(WireError::Unknown(kind)),
    })
}

fn put_command(out: &mut Vec<u8>, command: &ClientCommand) {
    match command {
        ClientCommand::Send(client, frame) => {
            out.push(SEND);
            put_u64(out, client.value());
            put_bytes(out, frame.bytes());
        }
        ClientCommand::Call(client, function) => {
            out.push(CALL);
            put_u64(out, client.value());
            put_function(out, function);
        }
    }
}

fn read_command(fields: &mut Fields<'_>) -> Result<ClientCommand, WireError> {
    Ok(match fields.u8()? {
        SEND => ClientCommand::Send(fields.client()?, read_frame(fields)?),
        CALL => ClientCommand::Call(fields.client()?, read_function(fields)?),
        kind => return Err(WireError::Unknown(kind)),
    })
}

pub(super) fn read_frame(fields: &mut Fields<'_>) -> Result<Frame, WireError> {
    fields.bytes().map(Frame::from_encoded)
}

fn put_answer(out: &mut Vec<u8>, answer: &Result<ClientReply, Fault>) {
    match answer {
        Ok(ClientReply::Done) => out.push(DONE),
        Ok(ClientReply::Context(json)) => {
            out.push(CONTEXT);
            put_long_text(out, json);
        }
        Ok(ClientReply::Info(info)) => {
            out.push(OF_CLIENT);
            put_info(out, info);
        }
        Err(fault) => {
            out.push(FAULT);
            put_u16(out, fault.code.number() as u16);
            put_text(out, &fault.message);
        }
    }
}

fn read_answer(fields: &mut Fields<'_>) -> Result<Result<ClientReply, Fault>, WireError> {
    Ok(match fields.u8()? {
        DONE => Ok(ClientReply::Done),
        CONTEXT => Ok(ClientReply::Context(fields.long_text()?.to_owned())),
        OF_CLIENT => Ok(ClientReply::Info(Box::new(read_info(fields)?))),
        FAULT => Err(read_fault(fields)?),
        kind => return Err(WireError::Unknown(kind)),
    })
}

fn read_fault(fields: &mut Fields<'_>) -> Result<Fault, WireError> {
    let code = Code::from_number(fields.u16()?.into()).ok_or(WireError::OutOfBounds)?;
    Ok(Fault::new(code, fields.text()?.to_owned()))
}

fn put_info(out: &mut Vec<u8>, info: &Info) {
    put_u16(out, info.node.number());
    put_remote(out, info.remote);
    put_u64(out, info.since_ms);
    put_names(out, &info.channels);
    put_u64(out, info.buffered);
}

fn read_info(fields: &mut Fields<'_>) -> Result<Info, WireError> {
    Ok(Info {
        node: fields.node()?,
        remote: fields.remote()?,
        since_ms: fields.u64()?,
        // The other node's configuration limits the channels, so only the frame's length does here.
        channels: fields.list(FRAME_BYTES_MAX, read_name)?,
        buffered: fields.u64()?,
    })
}

fn put_last_wills_message(out: &mut Vec<u8>, message: &LastWillsMessage) {
    match message {
        LastWillsMessage::Begin(epoch) => {
            out.push(BEGIN);
            put_u64(out, epoch.0);
        }
        LastWillsMessage::Register(topic, clients) => {
            out.push(REGISTER);
            put_short_text(out, topic);
            put_list(out, clients, |out, client| put_u64(out, client.value()));
        }
        LastWillsMessage::Unregister(topic, client) => {
            out.push(UNREGISTER);
            put_short_text(out, topic);
            put_u64(out, client.value());
        }
        LastWillsMessage::Claim { incarnation, epoch } => {
            out.push(CLAIM);
            put_u64(out, incarnation.0);
            put_u64(out, epoch.0);
        }
    }
}

fn read_last_wills_message(fields: &mut Fields<'_>) -> Result<LastWillsMessage, WireError> {
    Ok(match fields.u8()? {
        BEGIN => LastWillsMessage::Begin(WatcherEpoch(fields.u64()?)),
        REGISTER => LastWillsMessage::Register(
            fields.name()?.into(),
            fields.list(REGISTERED_PER_MESSAGE_MAX, Fields::client)?,
        ),
        UNREGISTER => LastWillsMessage::Unregister(fields.name()?.into(), fields.client()?),
        CLAIM => LastWillsMessage::Claim {
            incarnation: Incarnation(fields.u64()?),
            epoch: WatcherEpoch(fields.u64()?),
        },
        kind => return Err(WireError::Unknown(kind)),
    })
}
