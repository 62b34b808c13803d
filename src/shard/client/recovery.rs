//! The recovery of devices: what they have missed in channels with history.
//!
//! A device is subscribed at once, and the homes of its channels are asked what it has missed. Until a home has answered,
//! the device gets no live message of the channel: those that come meanwhile are in the answer. Later ones come behind the
//! answer, because a home's messages to a shard keep their order. The output of the device is withheld until all homes have
//! answered, so that the answer to its `subscribe` comes first.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use smol_str::SmolStr;

use super::Clients;
use crate::address::placement::home_of_channel;
use crate::message::{ConnectionKey, LocalMessage, RecoveryAnswer, RecoveryQuestion};
use crate::protocol::api::{
    self, ChannelRecovery, MessageOrigin, Reply, SubscribedChannel, TapEvent,
};
use crate::protocol::frame::{Frame, Kind};
use crate::protocol::position::Position;
use crate::shard::connection::{
    Connection, Connections, Device, Pause, Phase, RecoveringSubscribe, Shape,
};
use crate::shard::turn::Turn;
use crate::shard::work;

/// The part of the outbound queue that missed messages may take. The rest is for live ones.
const MISSED_PART: usize = 2;

impl Clients {
    /// Returns the channels with history that a client is not subscribed to yet.
    pub(super) fn channels_to_recover(
        &self,
        turn: &Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        channels: &[Box<str>],
    ) -> HashSet<Box<str>> {
        let settings = &turn.settings.channels;
        let client = connections.get(key).and_then(Connection::client);
        let Some(client) = client.filter(|_| !settings.rules.is_empty()) else {
            return HashSet::new();
        };
        let is_new = |channel: &str| {
            settings.history_of(channel).is_some() && !self.is_subscribed(client, channel)
        };
        channels.iter().filter(|channel| is_new(channel)).cloned().collect()
    }

    /// Takes the answer of a channel's home: the device gets what it has missed in the channel. With the last answer, it
    /// gets the answer to its subscribe.
    pub(crate) fn handle_recovery(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        answer: RecoveryAnswer,
    ) {
        let RecoveryAnswer { connection: key, channel, position, missed } = answer;
        let Some(mut recovering) =
            device(connections, key).and_then(|device| device.recovering.take())
        else {
            // The device has disconnected. Its last output is withheld no longer.
            return connections.release_output(turn, key);
        };
        let is_answered = |&index: &usize| *recovering.channels[index].channel == *channel;
        if let Some(at) = recovering.awaited.iter().position(is_answered) {
            let known = &mut recovering.channels[recovering.awaited.swap_remove(at)];
            known.position = Some(position);
            if known.recovery.is_some() {
                let missed =
                    missed.filter(|_| self.is_still_subscribed(connections, key, &channel));
                let count = missed.as_ref().map(Vec::len);
                let is_delivered = missed.is_some_and(|missed| {
                    self.deliver_missed(turn, connections, key, &channel, missed)
                });
                known.recovery = match count.filter(|_| is_delivered) {
                    Some(count) => Some(ChannelRecovery::Complete(count)),
                    None => Some(ChannelRecovery::Incomplete),
                };
                turn.counters.recoveries += u64::from(is_delivered);
                turn.counters.recoveries_incomplete += u64::from(!is_delivered);
            }
        }
        match recovering.awaited.is_empty() {
            true => end_recovery(turn, connections, key, *recovering),
            false => {
                if let Some(device) = device(connections, key) {
                    device.recovering = Some(recovering);
                }
            }
        }
    }

    /// Closes a device whose messages cannot be recovered in order, because too much waits behind a large publish.
    pub(crate) fn refuse_recovery(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        answer: &RecoveryAnswer,
    ) {
        turn.counters.limits.calls_waiting += 1;
        if device(connections, answer.connection).is_some() {
            connections.close_slow(turn, answer.connection);
        }
        connections.release_output(turn, answer.connection);
    }

    fn is_still_subscribed(
        &self,
        connections: &mut Connections,
        key: ConnectionKey,
        channel: &str,
    ) -> bool {
        let client = connections.get(key).and_then(Connection::client);
        client.is_some_and(|client| self.is_subscribed(client, channel))
    }

    /// Queues missed messages for a device. Returns false, and queues none, if they are too large together.
    fn deliver_missed(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        channel: &str,
        missed: Vec<(Position, Frame)>,
    ) -> bool {
        let Some(connection) = connections.get(key) else { return false };
        let form = connection.form;
        let bytes_max =
            (connection.outbound_max() / MISSED_PART).saturating_sub(connection.outbound.charge());
        let (mut out, mut compressed, mut saved_bytes) = (Vec::new(), 0, 0);
        let mut enveloped_bytes = 0;
        let work_of = |bytes: usize| match form.window() {
            Some(_) => work::of_deflating(bytes),
            None => work::of_bytes(bytes),
        };
        for (position, frame) in &missed {
            self.envelope.clear();
            let origin = MessageOrigin { channel: Some(channel), position: Some(*position) };
            api::put_device_message(&mut self.envelope, origin, frame.kind(), frame.payload());
            enveloped_bytes += self.envelope.len();
            let body = self.deflater.body(form.window(), Kind::Text, &self.envelope);
            let saved = self.envelope.len() - body.bytes.len();
            (compressed, saved_bytes) = (compressed + u64::from(saved > 0), saved_bytes + saved);
            body.put(&mut out);
            if out.len() > bytes_max {
                turn.work.spend(work_of(enveloped_bytes));
                return false;
            }
        }
        turn.counters.compressions += compressed;
        turn.counters.note_compressed(compressed, saved_bytes);
        turn.counters.recovered += missed.len() as u64;
        turn.work.spend(work_of(enveloped_bytes));
        if connection.is_observed() {
            for (_, frame) in &missed {
                turn.observe_message(connection, TapEvent::Out(frame.kind(), frame.payload()));
            }
        }
        connection.outbound.push_with(&mut turn.buffer_pool, |queued| match queued.is_empty() {
            true => *queued = out,
            false => queued.extend_from_slice(&out),
        });
        true
    }
}

/// Asks the homes of these channels what a device has missed. The device is subscribed already.
pub(super) fn begin_recovery(
    turn: &mut Turn,
    connections: &mut Connections,
    key: ConnectionKey,
    id: SmolStr,
    channels: Vec<SubscribedChannel>,
    new: &HashSet<Box<str>>,
    positioned: &[(Box<str>, Option<Position>)],
) {
    let Some(connection) = connections.get(key) else { return };
    let is_new = |known: &SubscribedChannel| new.contains(&known.channel);
    let awaited: Vec<usize> =
        (0..channels.len()).filter(|&index| is_new(&channels[index])).collect();
    let bytes_max = connection.outbound_max() / MISSED_PART;
    // Of a channel that is given twice the last position counts, as with any key of JSON.
    let positioned: HashMap<&str, Option<Position>> =
        positioned.iter().map(|(name, position)| (&**name, *position)).collect();
    for known in channels.iter().filter(|known| is_new(known)) {
        let question = RecoveryQuestion {
            connection: key,
            channel: Arc::from(&*known.channel),
            since: positioned.get(&*known.channel).copied().flatten(),
            bytes_max,
        };
        let home = home_of_channel(&known.channel, turn.settings.shards);
        turn.send_local(home, LocalMessage::Recover(Box::new(question)));
    }
    let answer_place = connection.outbound.reserve_answer(&mut turn.buffer_pool);
    connection.is_recovering = true;
    let recovering = RecoveringSubscribe { id, channels, awaited, answer_place };
    if let Some(device) = device(connections, key) {
        device.recovering = Some(Box::new(recovering));
    }
    connections.withhold_output(key);
    connections.pause(key, Pause::Answers);
}

/// Writes the answer to a subscribe whose channels have been recovered, ahead of the messages.
fn end_recovery(
    turn: &mut Turn,
    connections: &mut Connections,
    key: ConnectionKey,
    recovering: RecoveringSubscribe,
) {
    let RecoveringSubscribe { id, channels, answer_place, .. } = recovering;
    let mut scratch = std::mem::take(&mut turn.scratch);
    let (mut answer, date) = (Vec::new(), turn.date());
    let reply = Ok(Reply::Subscribed(channels));
    Shape::Message(id).put(&mut answer, &mut scratch, date, &reply);
    turn.scratch = scratch;
    let Some(connection) = connections.get(key) else { return };
    connection.is_recovering = false;
    if connection.phase == Phase::Open {
        connection.outbound.fill_answer(answer_place, &answer);
    }
    connections.release_output(turn, key);
}

fn device(connections: &mut Connections, key: ConnectionKey) -> Option<&mut Device> {
    connections.get(key)?.client()?.device.as_deref_mut()
}
