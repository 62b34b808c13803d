//! The calls of devices that speak the device protocol.
//!
//! Calls take effect and are answered in their order. A `push` is answered when its event is stored, a `subscribe`
//! when every node knows of it: until then the output of the device is withheld, so that a message of the channels
//! comes after the answer. A `subscribe` behind a `push` without an answer waits for that answer. A `subscribe` to channels
//! with history is answered when their homes have told what was missed: see `recovery.rs`.

use smol_str::SmolStr;

use super::Clients;
use super::messages::push_event;
use super::recovery::begin_recovery;
use super::renewal::offer_token;
use crate::address::ClientId;
use crate::message::{ConnectionKey, Event, EventNotice, PushReceipt};
use crate::protocol::api::{
    self, ChannelRecovery, Code, Content, DeviceCall, DeviceRequest, Fault, Reply,
    SubscribedChannel, WantedChannels,
};
use crate::protocol::frame::{Kind, Opcode, put_frame};
use crate::protocol::position::Position;
use crate::shard::connection::{Connections, ParkedSubscribe, Phase, Shape};
use crate::shard::settings::RouteSettings;
use crate::shard::turn::{Step, Turn};
use crate::shard::work;

impl Clients {
    /// Carries out a call of a device. `payload` is overwritten.
    pub(super) fn take_call(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        route: &RouteSettings,
        (kind, payload): (Kind, &mut [u8]),
    ) {
        if kind == Kind::Text && *payload == *b"ping" {
            connections.reply_bytes(turn, key, |out| {
                put_frame(out, Opcode::Data(Kind::Text), b"pong");
            });
            return connections.pause_if_congested(turn, key);
        }
        // The parser stays borrowed during the call, because the call refers to its buffers.
        let mut parser = std::mem::take(&mut self.parser);
        let DeviceRequest { id, call } = parser.device_request(payload);
        let id = SmolStr::from(id);
        let answer = match call {
            Err(fault) => Some(Err(fault)),
            Ok(DeviceCall::Push(content)) => {
                push(turn, connections, key, route, &id, &content).err().map(Err)
            }
            Ok(DeviceCall::Subscribe(wanted)) => {
                self.call_subscribe(turn, connections, key, route, &id, &wanted).err().map(Err)
            }
            Ok(DeviceCall::Unsubscribe(channels)) => {
                turn.work.spend(work::of_channels(channels.len()));
                self.unsubscribe(turn, connections, key, &channels);
                self.note_changed(turn, key);
                Some(Ok(Reply::Done))
            }
            Ok(DeviceCall::Token(token)) => {
                offer_token(turn, connections, key, route, &id, token).err().map(Err)
            }
        };
        self.parser = parser;
        if let Some(answer) = answer {
            connections.reply(turn, key, &Shape::Message(id), &answer);
        }
        connections.pause_if_congested(turn, key);
    }

    pub(super) fn note_changed(&self, turn: &mut Turn, key: ConnectionKey) {
        if turn.taps.is_active() {
            turn.push_step(Step::ClientChanged(key));
        }
    }

    /// Subscribes a device, or parks the call until the earlier ones are answered.
    ///
    /// # Errors
    /// The route does not allow one of the channels, or there would be too many.
    fn call_subscribe(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        route: &RouteSettings,
        id: &SmolStr,
        wanted: &WantedChannels<'_>,
    ) -> Result<(), Fault> {
        let WantedChannels { channels, positioned } = wanted;
        if let Some(channel) = channels.iter().find(|channel| !route.allows(channel)) {
            let why = format!("c: this route does not allow the channel {channel:?}");
            return Err(Fault::new(Code::NotAuthorised, why));
        }
        let positioned = positioned.iter().map(|&(name, text)| (name.into(), text.parse().ok()));
        let parked = ParkedSubscribe {
            id: id.clone(),
            channels: channels.iter().map(|&name| name.into()).collect(),
            positioned: positioned.collect(),
        };
        let Some(connection) = connections.get(key) else { return Ok(()) };
        // Messages of the channels would reach nobody.
        let is_open = connection.phase == Phase::Open;
        let device = connection.client().and_then(|client| client.device.as_mut());
        let Some(device) = device.filter(|_| is_open) else { return Ok(()) };
        if !device.replies.is_empty() {
            device.parked = Some(Box::new(parked));
            return Ok(());
        }
        self.subscribe_device(turn, connections, key, parked)
    }

    /// Carries out the parked subscribe of a device, whose earlier calls are answered.
    pub(crate) fn continue_subscribe(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
    ) {
        let client = connections.get(key).and_then(|connection| connection.client());
        let device = client.and_then(|client| client.device.as_mut());
        let Some(parked) = device.and_then(|device| device.parked.take()) else { return };
        let id = parked.id.clone();
        if let Err(fault) = self.subscribe_device(turn, connections, key, *parked) {
            connections.reply(turn, key, &Shape::Message(id), &Err(fault));
        }
        connections.unpause_if_answered(turn, key);
    }

    fn subscribe_device(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        ParkedSubscribe { id, channels, positioned }: ParkedSubscribe,
    ) -> Result<(), Fault> {
        turn.work.spend(work::of_channels(channels.len()));
        let new = self.channels_to_recover(turn, connections, key, &channels);
        self.subscribe(turn, connections, key, &channels)?;
        self.note_changed(turn, key);
        let subscribed = subscribed_channels(&channels, &positioned);
        self.withhold_until_known(connections, key, &channels);
        match new.is_empty() {
            true => {
                let answer = Ok(Reply::Subscribed(subscribed));
                connections.reply(turn, key, &Shape::Message(id), &answer);
            }
            false => begin_recovery(turn, connections, key, id, subscribed, &new, &positioned),
        }
        Ok(())
    }

    /// Answers the `push` of a device: its event is stored.
    pub(crate) fn handle_stored(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        client: ClientId,
        receipt: PushReceipt,
    ) {
        // The client may have gone.
        if let Some(&key) = self.by_id.get(&client) {
            connections.answer_later(turn, key, receipt, &Ok(Reply::Done));
        }
    }
}

/// Puts a message of a device into the topic of its route. The answer follows once the event is stored.
///
/// # Errors
/// The route has no topic for messages, or the event is too long for the topic.
fn push(
    turn: &mut Turn,
    connections: &mut Connections,
    key: ConnectionKey,
    route: &RouteSettings,
    id: &SmolStr,
    content: &Content<'_>,
) -> Result<(), Fault> {
    let Some(topic) = route.topic.as_ref().filter(|_| route.tells_message) else {
        let why = "this route has no topic that takes messages";
        return Err(Fault::new(Code::ConsumptionFailed, why));
    };
    let Some(client) = connections.get(key).and_then(|connection| connection.client()) else {
        return Ok(());
    };
    client.has_spoken = true;
    let (client_id, context) = (client.id, &client.context);
    let frame = turn.encode_event(topic, client_id, |out| {
        api::put_message(out, content.kind, &content.bytes, context.json());
    });
    let Some(frame) = frame else {
        let why = "d: the event would be too long for the topic of this route";
        return Err(Fault::new(Code::TooLarge, why));
    };
    let receipt = client.reserve_receipt(id.clone());
    let notice = receipt.map_or(EventNotice::Nothing, EventNotice::Stored);
    push_event(turn, key, topic, Event { client: client_id, frame, notice });
    Ok(())
}

/// Returns the channels of a subscribe, each once. Nothing is recovered yet.
fn subscribed_channels(
    channels: &[Box<str>],
    positioned: &[(Box<str>, Option<Position>)],
) -> Vec<SubscribedChannel> {
    let mut seen = hashbrown::HashSet::with_capacity(channels.len());
    let positioned: hashbrown::HashSet<&str> = positioned.iter().map(|(name, _)| &**name).collect();
    let distinct = channels.iter().filter(|channel| seen.insert(&***channel));
    let subscribed = distinct.map(|channel| SubscribedChannel {
        channel: channel.clone(),
        recovery: positioned.contains(&**channel).then_some(ChannelRecovery::Incomplete),
        position: None,
    });
    subscribed.collect()
}
