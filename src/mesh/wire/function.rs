//! Functions of `conn.call` ⇄ bytes.

use super::WireError;
use super::fields::{
    Fields, put_list, put_long_text, put_names, put_short_text, put_u16, read_name,
};
use crate::protocol::api::{
    CHANNELS_PER_CALL_MAX, CLOSE_REASON_BYTES_MAX, CONTEXT_KEYS_MAX, ContextEntry, Function,
};
use crate::protocol::close;

// Functions.
const SET_CONTEXT_VALUE: u8 = 1;
const SET_CONTEXT: u8 = 2;
const SUBSCRIBE: u8 = 3;
const UNSUBSCRIBE: u8 = 4;
const CLOSE: u8 = 5;
const GET_CONTEXT: u8 = 6;
const INFO: u8 = 7;

/// Appends a function and its arguments.
pub(super) fn put_function(out: &mut Vec<u8>, function: &Function) {
    match function {
        Function::SetContextValue(key, value) => {
            out.push(SET_CONTEXT_VALUE);
            put_short_text(out, key);
            put_long_text(out, value);
        }
        Function::SetContext(entries) => {
            out.push(SET_CONTEXT);
            put_list(out, entries, |out, (key, value)| {
                put_short_text(out, key);
                put_long_text(out, value);
            });
        }
        Function::Subscribe(channels) => {
            out.push(SUBSCRIBE);
            put_names(out, channels);
        }
        Function::Unsubscribe(channels) => {
            out.push(UNSUBSCRIBE);
            put_names(out, channels);
        }
        Function::Close(code, reason) => {
            out.push(CLOSE);
            put_u16(out, *code);
            put_short_text(out, reason);
        }
        Function::GetContext => out.push(GET_CONTEXT),
        Function::Info => out.push(INFO),
    }
}

/// Reads a function and its arguments.
pub(super) fn read_function(fields: &mut Fields<'_>) -> Result<Function, WireError> {
    Ok(match fields.u8()? {
        SET_CONTEXT_VALUE => Function::SetContextValue(fields.name()?.into(), read_json(fields)?),
        SET_CONTEXT => Function::SetContext(fields.list(CONTEXT_KEYS_MAX, read_entry)?),
        SUBSCRIBE => Function::Subscribe(fields.list(CHANNELS_PER_CALL_MAX, read_name)?),
        UNSUBSCRIBE => Function::Unsubscribe(fields.list(CHANNELS_PER_CALL_MAX, read_name)?),
        CLOSE => read_close(fields)?,
        GET_CONTEXT => Function::GetContext,
        INFO => Function::Info,
        kind => return Err(WireError::Unknown(kind)),
    })
}

/// Reads a key, which may be empty as in the API, and its value.
fn read_entry(fields: &mut Fields<'_>) -> Result<ContextEntry, WireError> {
    Ok((fields.short_text()?.into(), read_json(fields)?))
}

fn read_json(fields: &mut Fields<'_>) -> Result<Box<str>, WireError> {
    fields.long_text().map(Box::from)
}

/// Reads the arguments of a close. Not every code and length is allowed in a close frame.
fn read_close(fields: &mut Fields<'_>) -> Result<Function, WireError> {
    let (code, reason) = (fields.u16()?, fields.short_text()?);
    if !close::may_be_asked(code) || reason.len() > CLOSE_REASON_BYTES_MAX {
        return Err(WireError::OutOfBounds);
    }
    Ok(Function::Close(code, reason.into()))
}
