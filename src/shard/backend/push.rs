//! Events of back ends for topics: `queue.push`.

use super::Backends;
use super::calls::{Caller, ask_home};
use super::pending::QuestionKind;
use crate::message::{LocalCommand, PushCommand};
use crate::protocol::api::{self, Code, Fault, PushedEvent};
use crate::protocol::frame::Frame;
use crate::shard::connection::Connections;
use crate::shard::memory::Shortage;
use crate::shard::turn::Turn;

impl Backends {
    /// Carries out `queue.push`: asks the home of the topic on this node.
    pub(crate) fn call_push(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        caller: Caller,
        event: &PushedEvent<'_>,
    ) {
        let frame = match encode(turn, event) {
            Ok(frame) => frame,
            Err(fault) => return connections.reply(turn, caller.key, &caller.shape, &Err(fault)),
        };
        let push = PushCommand {
            topic: event.topic.into(),
            key: event.key.map(Box::from),
            frame,
            after_ms: event.after_ms,
        };
        let requester = self.open_question(turn, connections, caller, QuestionKind::Push, 1);
        if let Some(requester) = requester {
            ask_home(turn, requester, event.topic, LocalCommand::Push(Box::new(push)));
        }
    }
}

/// Encodes an event.
///
/// # Errors
/// Memory is short, or the event can never fit its topic.
fn encode(turn: &mut Turn, event: &PushedEvent<'_>) -> Result<Frame, Fault> {
    if turn.is_short(Shortage::Holders) {
        return Err(Fault::new(Code::ConsumptionFailed, "the node is short of memory"));
    }
    let (mut out, mut scratch) = (Vec::new(), std::mem::take(&mut turn.scratch));
    api::put_pushed(&mut out, &mut scratch, turn.address.node, event);
    turn.scratch = scratch;
    let bytes_max = turn.settings.queue.event_bytes_max(event.topic);
    if out.len() > bytes_max {
        turn.counters.oversized += 1;
        let why = format!("d: the event takes {} bytes, the topic at most {bytes_max}", out.len());
        return Err(Fault::new(Code::TooLarge, why));
    }
    Ok(Frame::from_encoded(&out))
}
