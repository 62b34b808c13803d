//! Logs of the topics on disk whose home is this shard: changes for them, and their news.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashSet;

use super::home_topics::HomeTopics;
use crate::message::{FromLog, ToLog};
use crate::protocol::api::{Code, Fault};
use crate::shard::turn::Turn;

/// Topics with changes for their logs.
#[derive(Debug, Default)]
pub(super) struct ChangedLogs {
    // Each topic once.
    due: VecDeque<Arc<str>>,
    known: HashSet<Arc<str>>,
}

impl ChangedLogs {
    /// Notes that a topic has changes for its log.
    pub(super) fn note(&mut self, topic: &Arc<str>) {
        if self.known.insert(topic.clone()) {
            self.due.push_back(topic.clone());
        }
    }

    fn pop(&mut self) -> Option<Arc<str>> {
        let topic = self.due.pop_front()?;
        self.known.remove(&topic);
        Some(topic)
    }
}

impl HomeTopics {
    /// Returns the changes for the log of one topic, all that the turn has made.
    pub(in crate::shard) fn poll_log_changes(&mut self, turn: &Turn) -> Option<ToLog> {
        let topic = self.changed_logs.pop()?;
        let unix_start_us = self.outgoing.unix_start_us(turn.now);
        let changes = self.topic_mut(&topic)?.take_log_changes();
        Some(ToLog { topic, unix_start_us, changes })
    }

    /// Refuses back ends whose events were not stored in time. The events may be stored later.
    pub(super) fn refuse_late(&mut self, turn: &mut Turn, topic: &str) {
        let late = self.topic_mut(topic).map(|home| home.take_late(turn.now.ms));
        for requester in late.unwrap_or_default() {
            let why = "not stored in time: the disk is slow or full. The event may be stored later";
            turn.answer(requester, Err(Fault::new(Code::ConsumptionFailed, why)));
        }
    }

    /// Handles news of the log of a topic.
    pub(in crate::shard) fn handle_log(&mut self, turn: &mut Turn, message: FromLog) {
        let FromLog { topic, news } = message;
        let now_us = turn.now.us;
        let unix_start_us = self.outgoing.unix_start_us(turn.now);
        if !news.recovered.is_empty() {
            // Delayed events of an earlier run, which may be due.
            self.check_soon(turn.now.ms);
        }
        self.change(turn, &topic, |home| home.handle_news(now_us, unix_start_us, news));
    }
}
