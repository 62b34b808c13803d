//! Messages of lists of administration ⇄ bytes.

use super::WireError;
use super::fields::{Fields, put_short_text, put_u64};
use crate::message::{ListAnswer, ListMessage, ListQuestion, ProcessFacts, ShardFigures};
use crate::protocol::api::{NodeStanding, PerSecond};

// Kinds of messages.
const ASK: u8 = 1;
const ANSWER: u8 = 2;

// Kinds of questions, and of their answers.
const FIGURES: u8 = 1;

// States of a node by its own account.
const UP: u8 = 1;
const LAME_DUCK: u8 = 2;
const DRAINING: u8 = 3;

pub(super) fn put_list_message(out: &mut Vec<u8>, message: &ListMessage) {
    match message {
        ListMessage::Ask(ListQuestion::Figures) => out.extend_from_slice(&[ASK, FIGURES]),
        ListMessage::Answer(ListAnswer::Figures(figures)) => {
            out.extend_from_slice(&[ANSWER, FIGURES]);
            put_figures(out, figures);
        }
    }
}

pub(super) fn read_list_message(fields: &mut Fields<'_>) -> Result<ListMessage, WireError> {
    Ok(match (fields.u8()?, fields.u8()?) {
        (ASK, FIGURES) => ListMessage::Ask(ListQuestion::Figures),
        (ANSWER, FIGURES) => {
            ListMessage::Answer(ListAnswer::Figures(Box::new(read_figures(fields)?)))
        }
        (ASK | ANSWER, kind) | (kind, _) => return Err(WireError::Unknown(kind)),
    })
}

fn put_figures(out: &mut Vec<u8>, figures: &ShardFigures) {
    put_u64(out, figures.clients);
    put_u64(out, figures.backends);
    put_u64(out, figures.received.0);
    put_u64(out, figures.delivered.0);
    out.push(figures.process.is_some().into());
    if let Some(process) = &figures.process {
        out.push(match process.state {
            NodeStanding::Draining => DRAINING,
            NodeStanding::LameDuck => LAME_DUCK,
            // A node that answers is at least up.
            _ => UP,
        });
        put_u64(out, process.uptime_ms);
        put_short_text(out, &process.driver);
        put_u64(out, process.memory_bytes);
        put_u64(out, process.memory_limit_bytes);
    }
}

fn read_figures(fields: &mut Fields<'_>) -> Result<ShardFigures, WireError> {
    Ok(ShardFigures {
        clients: fields.u64()?,
        backends: fields.u64()?,
        received: PerSecond(fields.u64()?),
        delivered: PerSecond(fields.u64()?),
        process: match fields.flag()? {
            true => Some(read_process(fields)?),
            false => None,
        },
    })
}

fn read_process(fields: &mut Fields<'_>) -> Result<ProcessFacts, WireError> {
    Ok(ProcessFacts {
        state: match fields.u8()? {
            UP => NodeStanding::Up,
            LAME_DUCK => NodeStanding::LameDuck,
            DRAINING => NodeStanding::Draining,
            state => return Err(WireError::Unknown(state)),
        },
        uptime_ms: fields.u64()?,
        driver: fields.short_text()?.into(),
        memory_bytes: fields.u64()?,
        memory_limit_bytes: fields.u64()?,
    })
}
