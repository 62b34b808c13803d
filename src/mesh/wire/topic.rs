//! Messages between topics and their consumers ⇄ bytes.

use super::WireError;
use super::batch::read_frame;
use super::fields::{Fields, put_backend, put_bytes, put_list, put_short_text, put_u32, put_u64};
use crate::message::{
    BackendId, Delivery, FromConsumer, GridMessage, MessageNumber, PopId, SettleTaken, Terms,
    ToConsumer,
};
use crate::protocol::api::{NAME_BYTES_MAX, UNSETTLED_MAX};

// Kinds of messages about a topic.
const DELIVER: u8 = 1;
const EVICT: u8 = 2;
const WRITTEN: u8 = 3;
const SETTLED: u8 = 4;
const RETURNED: u8 = 5;
const CONSUME: u8 = 6;
const STOP_CONSUMING: u8 = 7;
const GONE: u8 = 8;
const REFUSED: u8 = 9;
const EXPIRED: u8 = 10;
const END_TAKE: u8 = 11;
const GIVE_BACK: u8 = 12;

// Flags of a delivery.
const IS_ACKNOWLEDGED: u8 = 1;
const IS_REDELIVERED: u8 = 2;

/// Writes a message of a consumer to a topic, behind the name of the topic.
pub(super) fn put_from_consumer(out: &mut Vec<u8>, consumer: BackendId, message: &FromConsumer) {
    match message {
        FromConsumer::Written(count) => {
            put_about(out, WRITTEN, consumer);
            put_u32(out, *count);
        }
        FromConsumer::Settled(numbers) => {
            put_about(out, SETTLED, consumer);
            put_list(out, numbers, |out, number| put_u64(out, number.0));
        }
        FromConsumer::Refused { numbers, after_ms } => {
            put_about(out, REFUSED, consumer);
            put_list(out, numbers, |out, number| put_u64(out, number.0));
            put_u32(out, *after_ms);
        }
        FromConsumer::Returned { number, pop } => {
            put_about(out, RETURNED, consumer);
            put_u64(out, number.0);
            put_u64(out, pop.0);
        }
        FromConsumer::Consume(terms) => {
            put_about(out, CONSUME, consumer);
            put_terms(out, terms);
        }
        FromConsumer::StopConsuming => put_about(out, STOP_CONSUMING, consumer),
        FromConsumer::EndTake { kept } => {
            put_about(out, END_TAKE, consumer);
            put_list(out, kept, |out, number| put_u64(out, number.0));
        }
        FromConsumer::GiveBack { pop, numbers } => {
            put_about(out, GIVE_BACK, consumer);
            put_u64(out, pop.0);
            put_list(out, numbers, |out, number| put_u64(out, number.0));
        }
        FromConsumer::Gone => put_about(out, GONE, consumer),
    }
}

/// Writes a message of a topic to a consumer, behind the name of the topic.
pub(super) fn put_to_consumer(out: &mut Vec<u8>, consumer: BackendId, message: &ToConsumer) {
    match message {
        ToConsumer::Deliver(delivery) => {
            put_about(out, DELIVER, consumer);
            put_delivery(out, delivery);
        }
        ToConsumer::Expired(numbers) => {
            put_about(out, EXPIRED, consumer);
            put_list(out, numbers, |out, number| put_u64(out, number.0));
        }
        ToConsumer::Evict => put_about(out, EVICT, consumer),
    }
}

fn put_about(out: &mut Vec<u8>, kind: u8, backend: BackendId) {
    out.push(kind);
    put_backend(out, backend);
}

/// Reads a message between a topic and a consumer, with the name of the topic.
pub(super) fn read_topic_message(fields: &mut Fields<'_>) -> Result<GridMessage, WireError> {
    let topic = fields.name()?.into();
    let (kind, consumer) = (fields.u8()?, fields.backend()?);
    let message = match kind {
        DELIVER => {
            let message = ToConsumer::Deliver(read_delivery(fields)?);
            return Ok(GridMessage::ToConsumer { topic, consumer, message });
        }
        EVICT => {
            let message = ToConsumer::Evict;
            return Ok(GridMessage::ToConsumer { topic, consumer, message });
        }
        EXPIRED => {
            let message = ToConsumer::Expired(fields.list(UNSETTLED_MAX, read_number)?);
            return Ok(GridMessage::ToConsumer { topic, consumer, message });
        }
        REFUSED => FromConsumer::Refused {
            numbers: fields.list(UNSETTLED_MAX, read_number)?,
            after_ms: fields.u32()?,
        },
        WRITTEN => FromConsumer::Written(fields.u32()?),
        SETTLED => FromConsumer::Settled(fields.list(UNSETTLED_MAX, read_number)?),
        RETURNED => {
            FromConsumer::Returned { number: read_number(fields)?, pop: PopId(fields.u64()?) }
        }
        CONSUME => FromConsumer::Consume(Box::new(read_terms(fields)?)),
        STOP_CONSUMING => FromConsumer::StopConsuming,
        END_TAKE => FromConsumer::EndTake { kept: fields.list(UNSETTLED_MAX, read_number)? },
        GIVE_BACK => FromConsumer::GiveBack {
            pop: PopId(fields.u64()?),
            numbers: fields.list(UNSETTLED_MAX, read_number)?,
        },
        GONE => FromConsumer::Gone,
        kind => return Err(WireError::Unknown(kind)),
    };
    Ok(GridMessage::FromConsumer { topic, consumer, message })
}

/// Writes the take and the number of an event.
pub(super) fn put_taken(out: &mut Vec<u8>, (pop, number): &(PopId, MessageNumber)) {
    put_u64(out, pop.0);
    put_u64(out, number.0);
}

/// Reads the take and the number of an event.
pub(super) fn read_taken(fields: &mut Fields<'_>) -> Result<(PopId, MessageNumber), WireError> {
    Ok((PopId(fields.u64()?), read_number(fields)?))
}

/// Reads the events of a topic that a back end settles.
pub(super) fn read_settle(fields: &mut Fields<'_>) -> Result<SettleTaken, WireError> {
    let topic = fields.name()?.into();
    let events = fields.list(UNSETTLED_MAX, read_taken)?;
    let after_ms = match fields.u32()? {
        u32::MAX => None,
        after_ms => Some(after_ms),
    };
    Ok(SettleTaken { topic, events, after_ms })
}

fn put_delivery(out: &mut Vec<u8>, delivery: &Delivery) {
    put_u64(out, delivery.number.0);
    put_u64(out, delivery.pop.0);
    let acknowledged = if delivery.is_acknowledged { IS_ACKNOWLEDGED } else { 0 };
    let redelivered = if delivery.is_redelivered { IS_REDELIVERED } else { 0 };
    out.push(acknowledged | redelivered);
    put_bytes(out, delivery.frame.bytes());
}

fn read_number(fields: &mut Fields<'_>) -> Result<MessageNumber, WireError> {
    fields.u64().map(MessageNumber)
}

fn read_delivery(fields: &mut Fields<'_>) -> Result<Delivery, WireError> {
    let (number, pop) = (read_number(fields)?, PopId(fields.u64()?));
    let flags = fields.u8()?;
    if flags & !(IS_ACKNOWLEDGED | IS_REDELIVERED) != 0 {
        return Err(WireError::OutOfBounds);
    }
    Ok(Delivery {
        number,
        pop,
        is_acknowledged: flags & IS_ACKNOWLEDGED != 0,
        is_redelivered: flags & IS_REDELIVERED != 0,
        frame: read_frame(fields)?,
    })
}

fn put_terms(out: &mut Vec<u8>, terms: &Terms) {
    put_u64(out, terms.pop.0);
    put_u64(out, terms.window_bytes as u64);
    // 0: the consumer does not acknowledge. Otherwise the number is at least 1.
    put_u32(out, terms.unsettled_max.unwrap_or(0) as u32);
    // Empty: the default group. No group has an empty name.
    put_short_text(out, terms.group.as_deref().unwrap_or_default());
}

fn read_terms(fields: &mut Fields<'_>) -> Result<Terms, WireError> {
    let pop = PopId(fields.u64()?);
    let (window_bytes, unsettled_max) = (fields.u64()?, fields.u32()? as usize);
    if unsettled_max > UNSETTLED_MAX {
        return Err(WireError::OutOfBounds);
    }
    let group = fields.short_text()?;
    if group.len() > NAME_BYTES_MAX {
        return Err(WireError::OutOfBounds);
    }
    Ok(Terms {
        pop,
        group: (!group.is_empty()).then(|| group.into()),
        window_bytes: usize::try_from(window_bytes).map_err(|_| WireError::OutOfBounds)?,
        unsettled_max: (unsettled_max > 0).then_some(unsettled_max),
    })
}
