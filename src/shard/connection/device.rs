//! The state of a client that speaks the device protocol: the answers to its calls.

use smol_str::SmolStr;

use super::{Client, Connection, Connections, Pause, Replies, Stage};
use crate::message::{ConnectionKey, PushReceipt};
use crate::protocol::api::{Fault, Reply};
use crate::shard::turn::{Step, Turn};

/// The part of `WAITING_MAX` calls that a device may have unanswered: 128. Reading pauses there, and resumes at 64.
pub(super) const WAITING_PART: usize = 8;

/// A client that speaks the device protocol.
#[derive(Debug, Default)]
pub struct Device {
    /// Pending answers, in the order of the calls.
    pub replies: Replies,
    /// A `subscribe` that waits until all earlier calls are answered. Its answer has to come before the first message
    /// of the channels. The device is not read from meanwhile.
    pub parked: Option<Box<ParkedSubscribe>>,
    // Subscribes, the handshake included, that not every node knows of. Output is withheld meanwhile.
    unknown_subscribes: u32,
}

/// A `subscribe` that waits for the answers to earlier calls.
#[derive(Debug)]
pub struct ParkedSubscribe {
    /// The JSON text of the request's id.
    pub id: SmolStr,
    /// The channels, which the route allows.
    pub channels: Vec<Box<str>>,
    /// The channels for which the device gave a position.
    pub positioned: Vec<Box<str>>,
}

impl ParkedSubscribe {
    fn held_bytes(&self) -> usize {
        let names = self.channels.iter().chain(&self.positioned);
        names.map(|name| name.len() + 2 * size_of::<Box<str>>() + 24).sum::<usize>() + self.id.len()
    }
}

impl Device {
    /// Returns the memory taken by pending answers and by a parked subscribe, in bytes.
    pub fn held_bytes(&self) -> usize {
        let parked = self.parked.as_ref().map_or(0, |parked| parked.held_bytes());
        size_of::<Self>() + self.replies.held_bytes() + parked
    }

    /// Whether no further call may be read: at least `calls` are unanswered, their answers take more than `bytes_max`,
    /// or a subscribe waits for them.
    pub(super) fn is_busy(&self, calls: usize, bytes_max: usize) -> bool {
        self.parked.is_some()
            || self.replies.len() + self.unknown_subscribes as usize >= calls.div_ceil(WAITING_PART)
            || self.replies.held_bytes() > bytes_max
    }
}

impl Client {
    /// Reserves the place of an answer that follows when an event is stored. `None`: the client does not speak the
    /// device protocol, or has disconnected.
    pub fn reserve_receipt(&mut self, id: SmolStr) -> Option<PushReceipt> {
        let device = self.device.as_mut()?;
        Some(PushReceipt(device.replies.reserve(super::Shape::Message(id)) as u32))
    }
}

impl Connection {
    /// Ends the answers of a device that has disconnected. Its calls are still carried out.
    pub(super) fn forget_answers(&mut self) {
        if let Stage::Client(client) = &mut self.stage {
            client.device = None;
        }
    }
}

impl Connections {
    /// Writes the answer to a `push`, behind the pending answers of earlier calls.
    pub fn answer_push(
        &mut self,
        turn: &mut Turn,
        key: ConnectionKey,
        receipt: PushReceipt,
        answer: &Result<Reply, Fault>,
    ) {
        let date = turn.date();
        let Some(client) = self.get(key).and_then(Connection::client) else { return };
        let Some(device) = &mut client.device else { return };
        let number = device.replies.number_of(receipt.0);
        device.replies.fill(number, answer, None, date, &mut turn.scratch);
        turn.counters.faults += u64::from(answer.is_err());
        self.write_replies(turn, key);
    }

    /// Pushes the step that carries out a parked subscribe, since the earlier calls are answered.
    pub(super) fn resume_subscribe(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let client = self.get(key).and_then(Connection::client);
        let device = client.and_then(|client| client.device.as_ref());
        if device.is_some_and(|device| device.parked.is_some()) {
            turn.push_step(Step::SubscribeDue(key));
        }
    }

    /// Withholds the output of a client until [`Self::release_output`], which follows once every node knows of the
    /// client's new channels.
    pub fn withhold_output(&mut self, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        connection.outbound.withhold(true);
        if let Some(device) = connection.client().and_then(|client| client.device.as_mut()) {
            device.unknown_subscribes += 1;
        }
    }

    /// Releases the output of a client, unless another subscribe of the client withholds it.
    pub fn release_output(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        let device = connection.client().and_then(|client| client.device.as_mut());
        let left = device.map_or(0, |device| {
            device.unknown_subscribes = device.unknown_subscribes.saturating_sub(1);
            device.unknown_subscribes
        });
        connection.outbound.withhold(left > 0);
        self.queue_write(key);
        self.unpause_if_answered(turn, key);
    }

    /// Resumes reading if few enough calls are unanswered.
    pub fn unpause_if_answered(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let few = super::replies::WAITING_MIN + 1;
        if self.get(key).is_some_and(|connection| !connection.has_too_many_pending(few, 2)) {
            self.unpause(turn, key, Pause::Answers);
        }
    }
}
