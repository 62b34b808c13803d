//! Puts answers in the order of their requests, whatever the order in which they become known.

use std::collections::VecDeque;

use smol_str::SmolStr;

use super::parked_call::ParkedCall;
use crate::message::{BridgeCallId, PopId};
use crate::protocol::api::{self, Fault, Reply};
use crate::protocol::frame::{Kind, Opcode, put_frame};
use crate::protocol::http::{Date, Exchange, Response};
use crate::shard::backend::TakeKey;

/// Maximum number of pending answers of one connection. Reading pauses there, and resumes at
/// [`WAITING_MIN`].
pub(crate) const WAITING_MAX: usize = 1024;

/// Number of pending answers at which reading resumes after [`WAITING_MAX`] was reached.
pub(super) const WAITING_MIN: usize = 512;

/// The header that says after how many seconds to try again.
pub(in crate::shard) const RETRY_AFTER: &str = "Retry-After";

/// The format of an answer.
#[derive(Debug)]
pub enum Shape {
    /// A WebSocket message. Holds the JSON text of the request's id.
    Message(SmolStr),
    /// An HTTP response.
    Response(HttpShape),
    /// A message to the bridge, which has made the call.
    Bridge(BridgeCallId),
}

/// The properties of a request that determine the form of its HTTP response.
#[derive(Clone, Debug)]
pub struct HttpShape {
    /// The version, the method and keep-alive, as the request determines them.
    pub exchange: Exchange,
    /// Whether a fault sets the status code too (`X-Error-Mode: status`).
    pub fault_status: bool,
    /// The origin, other than our own, whose pages may read the response in a browser.
    pub allow_origin: Option<Box<str>>,
}

impl Shape {
    /// Returns the memory taken beyond the size of the type, in bytes.
    fn held_bytes(&self) -> usize {
        match self {
            // A short id is stored inline, so counting its length is slightly too much.
            Self::Message(id) => id.len(),
            Self::Response(shape) => shape.allow_origin.as_ref().map_or(0, |origin| origin.len()),
            Self::Bridge(_) => 0,
        }
    }

    /// Appends the answer in this format.
    pub fn put(
        &self,
        out: &mut Vec<u8>,
        scratch: &mut Vec<u8>,
        date: Date,
        answer: &Result<Reply, Fault>,
    ) {
        match self {
            Self::Message(id) => put_message(out, scratch, answer, id),
            Self::Response(shape) => shape.put_answer(out, scratch, date, answer),
            // Not written to a connection. See `Turn::answer_bridge`.
            Self::Bridge(_) => {}
        }
    }
}

/// Appends an answer as a WebSocket message.
pub(super) fn put_message(
    out: &mut Vec<u8>,
    scratch: &mut Vec<u8>,
    answer: &Result<Reply, Fault>,
    id: &str,
) {
    scratch.clear();
    api::put_answer(scratch, answer, Some(id));
    put_frame(out, Opcode::Data(Kind::Text), scratch);
}

impl HttpShape {
    /// Appends an answer as an HTTP response.
    pub fn put_answer(
        &self,
        out: &mut Vec<u8>,
        body: &mut Vec<u8>,
        date: Date,
        answer: &Result<Reply, Fault>,
    ) {
        if let Ok(Reply::Page(content_type, text)) = answer {
            return self.put(out, date, (200, content_type), &[], text.as_bytes());
        }
        body.clear();
        api::put_answer(body, answer, None);
        let status = match answer {
            Err(fault) if self.fault_status => fault.code.http_status(),
            _ => 200,
        };
        // Quotas count by the second, and other calls are answered within two.
        let headers: &[_] = if status == 429 { &[(RETRY_AFTER, "1")] } else { &[] };
        self.put(out, date, (status, "application/json"), headers, body);
    }

    /// Appends an HTTP response with this status and body.
    pub fn put(
        &self,
        out: &mut Vec<u8>,
        date: Date,
        (status, content_type): (u16, &str),
        headers: &[(&str, &str)],
        body: &[u8],
    ) {
        let Some(origin) = &self.allow_origin else {
            return Response { status, content_type, headers, body }.write(
                out,
                self.exchange,
                date,
            );
        };
        let mut headers = headers.to_vec();
        headers.extend([("Access-Control-Allow-Origin", &origin[..]), ("Vary", "Origin")]);
        let response = Response { status, content_type, headers: &headers, body };
        response.write(out, self.exchange, date);
    }
}

/// The pending answers of a connection, as a queue of slots. Nothing is allocated while every
/// answer is known at once. Reading pauses at [`WAITING_MAX`] slots, or when they take too much
/// memory.
#[derive(Debug, Default)]
pub struct Replies {
    slots: VecDeque<AnswerSlot>,
    // The number of the slot at the front.
    first: u64,
    // The number that follows the last call of a client's function.
    after_function: u64,
    // The numbers that follow the last publish through homes of channels, and the last other call of other shards.
    after_placed: u64,
    after_direct: u64,
    // The call that waits until all earlier ones are answered.
    parked: Option<Box<ParkedCall>>,
    // Memory taken by the slots, in bytes.
    held_bytes: usize,
}

#[derive(Debug)]
enum AnswerSlot {
    Waiting(Shape),
    Ready(ReadyAnswer),
}

impl AnswerSlot {
    /// Returns the memory taken by the slot, in bytes.
    fn held_bytes(&self) -> usize {
        // A queue that grows by doubling has up to twice the capacity that it needs.
        2 * size_of::<Self>()
            + match self {
                Self::Waiting(shape) => shape.held_bytes(),
                Self::Ready(ready) => ready.bytes.capacity(),
            }
    }
}

/// An encoded answer, to be written when all earlier ones are.
#[derive(Debug)]
pub struct ReadyAnswer {
    /// The encoded answer.
    pub bytes: Vec<u8>,
    /// The step that follows the answer once it is queued.
    pub follow_up: Option<FollowUp>,
}

/// A step that must not happen before an answer is queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FollowUp {
    /// Events of topics, by the `queue.pop` with this number.
    Pop(PopId),
    /// The write of the events that were taken over HTTP.
    Take(TakeKey),
    /// Events of a tap.
    Tap,
}

impl Replies {
    /// Whether no answer is pending, so that the next one may be written at once.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Returns the number of requests that wait for an answer, or for an earlier one.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Returns the memory taken by request ids and by answers that wait for earlier ones, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes + self.parked.as_ref().map_or(0, |parked| parked.held_bytes())
    }

    fn push(&mut self, slot: AnswerSlot) {
        self.held_bytes += slot.held_bytes();
        self.slots.push_back(slot);
    }

    /// Reserves a slot for an answer, and returns its number.
    pub fn reserve(&mut self, shape: Shape) -> u64 {
        self.push(AnswerSlot::Waiting(shape));
        self.first + self.slots.len() as u64 - 1
    }

    /// Returns the number of a reserved slot from its low 32 bits.
    pub fn number_of(&self, low: u32) -> u64 {
        self.first + u64::from(low.wrapping_sub(self.first as u32))
    }

    /// Marks the last slot as that of a call of a client's function.
    pub fn note_function(&mut self) {
        self.after_function = self.first + self.slots.len() as u64;
    }

    /// Whether a call of a client's function is pending. The function may change subscriptions
    /// before a later command arrives at the same shard.
    pub fn has_function(&self) -> bool {
        self.first < self.after_function
    }

    /// Notes the way of the call with the last slot: through homes of channels, or not.
    pub fn note_way(&mut self, is_placed: bool) {
        let after = self.first + self.slots.len() as u64;
        match is_placed {
            true => self.after_placed = after,
            false => self.after_direct = after,
        }
    }

    /// Whether a publish through homes of channels is pending.
    pub fn has_placed_publish(&self) -> bool {
        self.first < self.after_placed
    }

    /// Whether a call of other shards is pending that does not go through homes of channels.
    pub fn has_direct_call(&self) -> bool {
        self.first < self.after_direct
    }

    /// Parks a call until all earlier ones are answered. The connection is not read from meanwhile.
    pub fn park(&mut self, call: ParkedCall) {
        debug_assert!(self.parked.is_none(), "a connection with a parked call is not read from");
        self.parked = Some(Box::new(call));
    }

    /// Whether a call is parked.
    pub fn has_parked(&self) -> bool {
        self.parked.is_some()
    }

    /// Takes out the parked call.
    pub fn take_parked(&mut self) -> Option<Box<ParkedCall>> {
        self.parked.take()
    }

    /// Removes the slot reserved last, which must still be waiting.
    pub fn cancel_last(&mut self) {
        if let Some(slot) = self.slots.pop_back() {
            self.held_bytes -= slot.held_bytes();
        }
    }

    /// Appends a known answer behind the pending ones.
    pub fn push_ready(&mut self, bytes: Vec<u8>) {
        self.push(AnswerSlot::Ready(ReadyAnswer { bytes, follow_up: None }));
    }

    /// Fills a reserved slot with its answer.
    pub fn fill(
        &mut self,
        number: u64,
        answer: &Result<Reply, Fault>,
        follow_up: Option<FollowUp>,
        date: Date,
        scratch: &mut Vec<u8>,
    ) {
        let Some(slot) = self.slots.get_mut((number - self.first) as usize) else { return };
        if let AnswerSlot::Waiting(shape) = slot {
            let mut bytes = Vec::new();
            shape.put(&mut bytes, scratch, date, answer);
            self.held_bytes -= slot.held_bytes();
            *slot = AnswerSlot::Ready(ReadyAnswer { bytes, follow_up });
            self.held_bytes += slot.held_bytes();
        }
    }

    /// Returns the next answer that can be written.
    pub fn poll_ready(&mut self) -> Option<ReadyAnswer> {
        if !matches!(self.slots.front()?, AnswerSlot::Ready(_)) {
            return None;
        }
        let slot = self.slots.pop_front()?;
        self.first += 1;
        self.held_bytes -= slot.held_bytes();
        match slot {
            AnswerSlot::Ready(ready) => Some(ready),
            AnswerSlot::Waiting(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_answers_are_counted_while_they_are_kept() {
        let mut replies = Replies::default();
        let mut scratch = Vec::new();
        let id = "1".repeat(1000);
        let number = replies.reserve(Shape::Message(id.clone().into()));
        assert!((1000..1200).contains(&replies.held_bytes()), "{}", replies.held_bytes());
        replies.push_ready(vec![0; 5000]);
        replies.reserve(Shape::Message("2".into()));
        replies.cancel_last();
        assert!((6000..6400).contains(&replies.held_bytes()), "{}", replies.held_bytes());
        assert!(replies.poll_ready().is_none());
        replies.fill(number, &Ok(Reply::Done), None, Date::at(0), &mut scratch);
        assert!(replies.held_bytes() > 6000);
        assert!(replies.poll_ready().is_some() && replies.poll_ready().is_some());
        assert_eq!((replies.held_bytes(), replies.len()), (0, 0));
    }
}
