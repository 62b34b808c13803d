//! Events that were handed out too often, on their way from their topic to its dead topic.
//!
//! An event stays in its topic until the dead topic has answered. A dead topic on disk answers once the event is stored
//! there. So a crash in between leaves the event in both topics, never in none.

use std::sync::Arc;

use super::HomeTopics;
use crate::address::placement::home_of_topic;
use crate::address::{ClientId, ShardId};
use crate::message::{Event, LocalMessage};
use crate::protocol::api::{self, Death};
use crate::protocol::frame::Frame;
use crate::queue::topic::Burial;
use crate::shard::turn::Turn;

impl HomeTopics {
    /// Takes an event that was handed out too often in another topic, if the dead topic has room. An event that
    /// can never fit is dropped.
    pub(in crate::shard) fn handle_bury(
        &mut self,
        turn: &mut Turn,
        asker: ShardId,
        to: &Arc<str>,
        from: Arc<str>,
        client: ClientId,
        frame: Frame,
    ) {
        let burial = Burial { asker, from };
        if frame.bytes().len() > turn.settings.queue.event_bytes_max(to) {
            turn.counters.oversized += 1;
            return tell_asker(turn, burial, true);
        }
        if !self.ensure(turn, to) {
            return tell_asker(turn, burial, false);
        }
        let event = Event::new(client, frame);
        let now_us = turn.now.us;
        let mut answered = None;
        self.change(turn, to, |home| answered = home.offer_dead(now_us, event, burial.clone()));
        if let Some(was_taken) = answered {
            answer(turn, burial, was_taken);
        }
    }

    /// Handles the answer of a dead topic.
    pub(in crate::shard) fn handle_buried(
        &mut self,
        turn: &mut Turn,
        topic: &Arc<str>,
        was_taken: bool,
    ) {
        self.change(turn, topic, |home| home.buried(was_taken));
    }
}

/// Sends an event to its dead topic.
pub(super) fn bury(
    turn: &mut Turn,
    death: Death<'_>,
    from: &Arc<str>,
    to: Arc<str>,
    client: ClientId,
    frame: &Frame,
) {
    let (mut out, mut scratch) = (Vec::new(), std::mem::take(&mut turn.scratch));
    api::put_dead(&mut out, &mut scratch, frame, &to, death);
    turn.scratch = scratch;
    let (from, frame) = (from.clone(), Frame::from_encoded(&out));
    let home = home_of_topic(&to, turn.settings.shards);
    turn.send_local(home, LocalMessage::Bury { to, from, client, frame });
}

/// Answers whether a dead topic has taken an event.
pub(super) fn answer(turn: &mut Turn, burial: Burial, was_taken: bool) {
    turn.counters.dead += u64::from(was_taken);
    tell_asker(turn, burial, was_taken);
}

fn tell_asker(turn: &mut Turn, burial: Burial, was_taken: bool) {
    turn.send_local(burial.asker, LocalMessage::Buried(burial.from, was_taken));
}
