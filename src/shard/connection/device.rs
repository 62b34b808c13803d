//! The state of a client that speaks the device protocol: the answers to its calls, its token, and the hint before a
//! close.

use std::num::NonZeroU64;

use smol_str::SmolStr;

use super::{Client, Connection, Connections, Pause, Phase, Replies, Stage};
use crate::address::ClientId;
use crate::address::placement::mix;
use crate::message::{ConnectionKey, PushReceipt};
use crate::protocol::api::{self, Fault, Reply, SubscribedChannel};
use crate::protocol::close;
use crate::protocol::frame::{Kind, Opcode, put_frame};
use crate::protocol::position::Position;
use crate::shard::trail::{self, Entry};
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
    /// The token of the device. `None`: the device has connected without one.
    pub token: Option<Box<HeldToken>>,
    /// A `subscribe` that waits for the homes of channels with history. The device is not read from meanwhile.
    pub recovering: Option<Box<RecoveringSubscribe>>,
    // Reasons to withhold the output: subscribes, the handshake included, that not every node knows of, and one that
    // waits for homes.
    unknown_subscribes: u32,
}

/// The facts about the token of a device that its renewal depends on.
#[derive(Debug, Default)]
pub struct HeldToken {
    /// The subject of the token. A new token has to have the same.
    pub subject: Option<Box<str>>,
    /// Until when the admission hook has let the device in, in Unix milliseconds. `None`: without an end.
    pub admitted_until_ms: Option<NonZeroU64>,
    /// The new token, while it is being checked.
    pub offered: Option<OfferedToken>,
}

/// A new token that a device has offered on its open connection.
#[derive(Debug)]
pub struct OfferedToken {
    /// The token.
    pub token: Box<str>,
    /// The place of the answer.
    pub receipt: PushReceipt,
}

/// How far the check of an offered token has got.
#[derive(Debug)]
pub enum TokenProgress {
    /// The token has just arrived.
    New,
    /// The fetch of the missing keys has ended. The token does not wait for keys again.
    KeysKnown,
    /// The token cannot be checked.
    Failed(Fault),
}

impl HeldToken {
    /// Returns the memory taken, in bytes.
    pub fn held_bytes(&self) -> usize {
        let offered = self.offered.as_ref().map(|offered| &offered.token);
        let texts = self.subject.iter().chain(offered).map(|text| text.len() + 24);
        size_of::<Self>() + texts.sum::<usize>()
    }
}

/// A `subscribe` that waits until the homes of channels with history have told what the device has missed.
#[derive(Debug)]
pub struct RecoveringSubscribe {
    /// The JSON text of the request's id.
    pub id: SmolStr,
    /// The channels of the answer.
    pub channels: Vec<SubscribedChannel>,
    /// The channels whose homes have not answered, as indices into `channels`.
    pub awaited: Vec<usize>,
    /// The place of the answer in the outbound queue.
    pub answer_place: usize,
}

/// A `subscribe` that waits for the answers to earlier calls.
#[derive(Debug)]
pub struct ParkedSubscribe {
    /// The JSON text of the request's id.
    pub id: SmolStr,
    /// The channels, which the route allows.
    pub channels: Vec<Box<str>>,
    /// The channels for which the device gave a position. `None`: the position is malformed.
    pub positioned: Vec<(Box<str>, Option<Position>)>,
}

impl ParkedSubscribe {
    fn held_bytes(&self) -> usize {
        let names = self.channels.iter().chain(self.positioned.iter().map(|(name, _)| name));
        let of_name = |name: &str| name.len() + 4 * size_of::<Box<str>>() + 24;
        names.map(|name| of_name(name)).sum::<usize>() + self.id.len()
    }
}

impl RecoveringSubscribe {
    fn held_bytes(&self) -> usize {
        let of_channel = |known: &SubscribedChannel| {
            known.channel.len() + size_of::<SubscribedChannel>() + size_of::<usize>() + 24
        };
        self.channels.iter().map(of_channel).sum::<usize>() + self.id.len() + size_of::<Self>()
    }
}

impl Device {
    /// Creates the state of a device that has connected with this token.
    pub fn new(token: Option<Box<HeldToken>>) -> Self {
        Self { token, ..Self::default() }
    }

    /// Returns the memory taken by pending answers, by a parked subscribe and by what is known of the token, in bytes.
    pub fn held_bytes(&self) -> usize {
        let parked = self.parked.as_ref().map_or(0, |parked| parked.held_bytes());
        let token = self.token.as_ref().map_or(0, |token| token.held_bytes());
        let recovering = self.recovering.as_ref().map_or(0, |recovering| recovering.held_bytes());
        size_of::<Self>() + self.replies.held_bytes() + parked + token + recovering
    }

    /// Whether no further call may be read: at least `calls` are unanswered, their answers take more than `bytes_max`,
    /// or a subscribe waits for them or for homes.
    pub(super) fn is_busy(&self, calls: usize, bytes_max: usize) -> bool {
        self.parked.is_some()
            || self.recovering.is_some()
            || self.replies.len() + self.unknown_subscribes as usize >= calls.div_ceil(WAITING_PART)
            || self.replies.held_bytes() > bytes_max
    }
}

impl Client {
    /// Reserves the place of an answer that follows later. `None`: the client does not speak the
    /// device protocol, or has disconnected.
    pub fn reserve_receipt(&mut self, id: SmolStr) -> Option<PushReceipt> {
        let device = self.device.as_mut()?;
        Some(PushReceipt(device.replies.reserve(super::Shape::Message(id)) as u32))
    }
}

impl Connection {
    /// Whether the client waits for the home of this channel, which tells what the client has missed.
    #[cold]
    pub fn recovers(&self, channel: &str) -> bool {
        let Stage::Client(client) = &self.stage else { return false };
        let recovering = client.device.as_ref().and_then(|device| device.recovering.as_ref());
        recovering.is_some_and(|recovering| {
            let mut awaited = recovering.awaited.iter();
            awaited.any(|&index| *recovering.channels[index].channel == *channel)
        })
    }

    /// Ends the answers of a device that has disconnected. Its calls are still carried out.
    pub(super) fn forget_answers(&mut self) {
        if let Stage::Client(client) = &mut self.stage {
            client.device = None;
        }
    }
}

impl Connections {
    /// Writes the answer to a call whose place was reserved, behind the pending answers of earlier calls.
    pub fn answer_later(
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
        if let Err(fault) = answer {
            turn.counters.faults += 1;
            trail::note(turn.trail(key), Entry::Failed(fault));
        }
        self.write_replies(turn, key);
    }

    /// Tells a device when to come back, before it is closed with this code: going away, or try again later. The hints
    /// spread the devices over the window of [`return_window_ms`].
    pub(super) fn hint_close(&mut self, turn: &mut Turn, key: ConnectionKey, code: u16) {
        // Connections are spread evenly over the shards.
        let clients = self.largest_len() * turn.settings.shards;
        let Some(connection) = self.get(key) else { return };
        let has_hint = code == close::GOING_AWAY.code || code == close::SLOW_CLIENT.code;
        if !has_hint || connection.phase != Phase::Open || !connection.form.is_enveloped() {
            return;
        }
        let Some(client) = connection.client() else { return };
        let after_ms = return_after_ms(client.id, clients);
        turn.scratch.clear();
        api::put_closing(&mut turn.scratch, code, after_ms);
        let hint = std::mem::take(&mut turn.scratch);
        self.write_with(turn, key, |out| put_frame(out, Opcode::Data(Kind::Text), &hint));
        turn.scratch = hint;
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

    /// Gives up the recovery of a device that is closed, with the messages that wait for the answer to its subscribe. Without
    /// the answer it would not learn of a gap before them, and would come back with a position behind the gap.
    pub(super) fn drop_recovery(&mut self, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        let device = connection.client().and_then(|client| client.device.as_mut());
        if let Some(recovering) = device.and_then(|device| device.recovering.take()) {
            connection.is_recovering = false;
            connection.outbound.drop_answer(recovering.answer_place);
        }
    }

    /// Resumes reading if few enough calls are unanswered.
    pub fn unpause_if_answered(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let few = super::replies::WAITING_MIN + 1;
        if self.get(key).is_some_and(|connection| !connection.has_too_many_pending(few, 2)) {
            self.unpause(turn, key, Pause::Answers);
        }
    }
}

/// The devices that should come back in a millisecond. Two cores carry out about as many TLS handshakes.
const RETURNS_PER_MS: u64 = 2;

/// The shortest and the longest window in which devices come back, in milliseconds.
const RETURN_WINDOW_MIN_MS: u64 = 1_000;
const RETURN_WINDOW_MAX_MS: u64 = 60_000;

/// Returns the window over which the devices of a node with this number of clients come back, in milliseconds.
fn return_window_ms(clients: usize) -> u64 {
    (clients as u64 / RETURNS_PER_MS).clamp(RETURN_WINDOW_MIN_MS, RETURN_WINDOW_MAX_MS)
}

/// Returns the place of a client in the window, in milliseconds. Depends on nothing else.
fn return_after_ms(client: ClientId, clients: usize) -> u64 {
    let window_ms = u128::from(return_window_ms(clients));
    ((u128::from(mix(client.value())) * window_ms) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::connection::MessageForm;
    use crate::shard::fixture;

    #[test]
    fn a_device_that_is_closed_while_it_recovers_is_told_of_the_close_alone() {
        let (mut turn, mut connections) =
            (fixture::turn(fixture::settings()), Connections::default());
        let key = fixture::client(&mut turn, &mut connections, ClientId::from_value(1));
        let connection = connections.get(key).unwrap();
        connection.form = MessageForm::Enveloped;
        connection.outbound.push_with(&mut turn.buffer_pool, |out| out.extend(b"before "));
        let answer_place = connection.outbound.reserve_answer(&mut turn.buffer_pool);
        let recovering =
            RecoveringSubscribe { id: "1".into(), channels: vec![], awaited: vec![], answer_place };
        let device = Device { recovering: Some(Box::new(recovering)), ..Device::default() };
        connection.client().unwrap().device = Some(Box::new(device));
        connections.withhold_output(key);
        // A live message behind a gap, of which the answer would tell.
        let connection = connections.get(key).unwrap();
        connection.outbound.push_with(&mut turn.buffer_pool, |out| out.extend(b"behind a gap"));
        connections.close_with(&mut turn, key, close::GOING_AWAY);
        // The homes answer.
        connections.release_output(&mut turn, key);
        let batch = connections.get(key).unwrap().outbound.take(0);
        let written: Vec<u8> = batch.iter().flat_map(|chunk| chunk.bytes().to_vec()).collect();
        let written = String::from_utf8_lossy(&written);
        assert!(written.starts_with("before "), "{written}");
        assert!(!written.contains("behind a gap"), "{written}");
        let (hint, text) = (r#"{"e":"closing","p":{"code":1001,"#, close::GOING_AWAY.text);
        assert!(written.contains(hint) && written.ends_with(text), "{written}");
    }

    #[test]
    fn the_window_grows_with_the_clients_within_its_bounds() {
        let windows = [0, 1, 2_000, 2_002, 15_000, 119_998, 120_000, 1_000_000, usize::MAX];
        let windows = windows.map(return_window_ms);
        assert_eq!(windows, [1000, 1000, 1000, 1001, 7500, 59_999, 60_000, 60_000, 60_000]);
    }

    #[test]
    fn the_hints_are_spread_evenly_over_the_window() {
        let mut by_tenth = [0; 10];
        // Ids of one shard that were made one after another.
        for id in 0..10_000u64 {
            let after_ms = return_after_ms(ClientId::from_value(1 << 40 | id), 40_000);
            by_tenth[(after_ms / 2_000) as usize] += 1;
        }
        assert!(by_tenth.iter().all(|count| (900..1100).contains(count)), "{by_tenth:?}");
    }
}
