//! Messages from clients: decoded, then echoed, sent to the topic of the route, or discarded. Those of devices
//! that make calls are passed on to `device.rs`.

use std::sync::Arc;

use super::Clients;
use super::renewal::{TOKEN_CALL_SHOWN, offers_token};
use crate::address::ClientId;
use crate::message::{ConnectionKey, Event};
use crate::protocol::api::{self, TapEvent};
use crate::protocol::assembler::{Payload, Received};
use crate::protocol::close;
use crate::protocol::deflate::{DEFLATED_MAX, INFLATED_PER_CALL};
use crate::protocol::frame::{Frame, Kind, Opcode, put_frame};
use crate::shard::connection::{Connection, Connections, FramePause, Pause, Phase, Stage};
use crate::shard::settings::RouteSettings;
use crate::shard::timers::Timer;
use crate::shard::trail::By;
use crate::shard::turn::{ClientEvent, Step, Turn};
use crate::shard::work;

impl Clients {
    /// Reads one message or control frame of a client.
    pub(crate) fn read(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        input: &mut &mut [u8],
    ) {
        let Some(connection) = connections.get(key) else { return };
        let Some(route) = connection.route(&turn.settings).cloned() else { return };
        let Stage::Client(client) = &mut connection.stage else { return };
        match client.frame_pause(&route, turn.now.ms) {
            None => {}
            Some(FramePause::Hold) => return connections.pause(key, Pause::Hold),
            Some(FramePause::Rate { ready_ms }) => {
                return pause_for_rate(turn, connections, key, ready_ms);
            }
        }
        let inflater = connection.form.window().map(|_| &mut self.inflater);
        connection.is_inflating = false;
        match client.assembler.read(input, route.message_bytes, inflater) {
            Ok(None) => client.assembler.note_unfinished(turn.now.ms),
            Ok(Some(Received::Message(kind, payload))) => {
                self.take_message(turn, connections, key, &route, kind, payload);
            }
            Ok(Some(Received::Ping(payload))) => {
                client.assembler.note_unfinished(turn.now.ms);
                connections.write_with(turn, key, |out| put_frame(out, Opcode::Pong, &payload));
                connections.pause_if_congested(turn, key);
            }
            Ok(Some(Received::Pong)) => client.assembler.note_unfinished(turn.now.ms),
            Ok(Some(Received::Inflating)) => {
                connection.is_inflating = true;
                turn.work.spend(work::of_bytes(INFLATED_PER_CALL));
                turn.work.end_slice();
            }
            Ok(Some(Received::Close(closed))) => {
                connections.close_after_answers(turn, key, closed, By::Peer);
            }
            Err(violation) => connections.close_for_violation(turn, key, violation),
        }
    }

    fn take_message(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        route: &RouteSettings,
        kind: Kind,
        mut payload: Payload<'_>,
    ) {
        turn.counters.client_messages += 1;
        turn.work.spend(work::of_bytes(payload.len()));
        let Some(connection) = connections.get(key) else { return };
        if connection.is_observed() {
            let has_token =
                connection.form.is_enveloped() && offers_token(&mut self.parser, &payload);
            let shown = if has_token { TOKEN_CALL_SHOWN } else { &payload[..] };
            turn.observe_message(connection, TapEvent::In(kind, shown));
        }
        let Stage::Client(client) = &mut connection.stage else { return };
        if let Some(rate) = route.messages {
            rate.take(&mut client.messages, turn.now.ms);
        }
        if connection.form.is_enveloped() {
            return self.take_call(turn, connections, key, route, (kind, &mut payload));
        }
        if route.echo {
            self.echo(turn, connection, kind, &payload);
            connections.queue_write(key);
            return connections.pause_if_congested(turn, key);
        }
        client.has_spoken = true;
        let Some(topic) = route.topic.as_ref().filter(|_| route.tells_message) else {
            turn.counters.discarded += 1;
            return;
        };
        let (id, context) = (client.id, &client.context);
        let frame = turn
            .encode_event(topic, id, |out| api::put_message(out, kind, &payload, context.json()));
        push_or_close(turn, connections, key, topic, id, frame);
    }

    fn echo(&mut self, turn: &mut Turn, connection: &mut Connection, kind: Kind, payload: &[u8]) {
        if connection.is_broken || connection.phase != Phase::Open {
            return;
        }
        let body = self.deflater.body(connection.form.window(), kind, payload);
        connection.outbound.push_with(&mut turn.buffer_pool, |out| body.put(out));
        turn.counters.note_compression(payload.len() - body.bytes.len());
        if connection.is_observed() {
            turn.observe_message(connection, TapEvent::Out(kind, payload));
        }
        turn.work.spend(match connection.form.window() {
            Some(_) if payload.len() <= DEFLATED_MAX => work::of_deflating(payload.len()),
            _ => work::of_bytes(payload.len()),
        });
    }
}

/// Pushes an event of a connected client for its topic. Closes the client if the event was too long
/// to be encoded.
pub(super) fn push_or_close(
    turn: &mut Turn,
    connections: &mut Connections,
    key: ConnectionKey,
    topic: &Arc<str>,
    client: ClientId,
    frame: Option<Frame>,
) {
    match frame {
        Some(frame) => push_event(turn, key, topic, Event::new(client, frame)),
        None => connections.close_with(turn, key, close::TOO_LARGE),
    }
}

/// Pushes an event of a connected client for its topic.
pub(super) fn push_event(turn: &mut Turn, key: ConnectionKey, topic: &Arc<str>, event: Event) {
    let fed = ClientEvent { topic: topic.clone(), event, from: Some(key) };
    turn.push_step(Step::Event(fed));
}

/// Pauses a client that has used up its message rate. The resume timer is separate from the idle
/// timer, which stays set. There is at most one resume timer per client.
fn pause_for_rate(
    turn: &mut Turn,
    connections: &mut Connections,
    key: ConnectionKey,
    ready_ms: u64,
) {
    turn.counters.limits.messages_per_s += 1;
    connections.pause(key, Pause::Rate);
    turn.timers.set(ready_ms, Timer::Rate(key));
}
