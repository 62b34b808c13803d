//! Sessions between nodes: what is sent arrives in order, until the session breaks.

use std::collections::VecDeque;
use std::sync::Arc;

use gridcast::address::{Incarnation, NodeId};
use gridcast::message::ChannelMessage;

use crate::faults::Life;
use crate::world::{World, node_id};

/// One end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Is told of the session at this time.
    Coming(u64),
    Up,
    /// Is told of the session's end at this time.
    Going(u64),
    Gone,
}

/// A session between two nodes.
pub struct Session {
    pub ends: [End; 2],
    pub is_broken: bool,
    // By sender.
    pub in_flight: [VecDeque<(Arc<str>, ChannelMessage)>; 2],
}

impl World {
    /// Breaks a session. Of what is in flight some arrives. Both ends hear of it some time later.
    pub fn break_session(&mut self, pair: (usize, usize), within_ms: usize) {
        let Some(session) = self.sessions.get_mut(&pair) else { return };
        if std::mem::replace(&mut session.is_broken, true) {
            return;
        }
        for side in 0..2 {
            let kept = self.random.below(session.in_flight[side].len() + 1);
            session.in_flight[side].truncate(kept);
            session.ends[side] = match session.ends[side] {
                End::Up => End::Going(self.now_ms + self.random.below(within_ms) as u64),
                _ => End::Gone,
            };
        }
    }

    /// A node that was started again dials the others, which end their sessions with its earlier run then.
    pub fn hasten_ends(&mut self, node: usize) {
        for (pair, session) in &mut self.sessions {
            if pair.0 != node && pair.1 != node {
                continue;
            }
            for end in &mut session.ends {
                if let End::Going(at_ms) = end {
                    *at_ms = (*at_ms).min(self.now_ms + self.random.below(1500) as u64);
                }
            }
        }
    }

    /// Begins sessions, and tells nodes of those that have begun or ended.
    pub fn change_sessions(&mut self) {
        let count = self.nodes.len();
        for pair in (0..count).flat_map(|one| (one + 1..count).map(move |two| (one, two))) {
            let lives = [self.nodes[pair.0].life, self.nodes[pair.1].life];
            let Some(session) = self.sessions.get_mut(&pair) else {
                let may_begin = lives == [Life::Up; 2] && !self.cuts.contains_key(&pair);
                if may_begin && self.random.one_in(10) {
                    let ends =
                        [0; 2].map(|_| End::Coming(self.now_ms + self.random.below(100) as u64));
                    let in_flight = Default::default();
                    self.sessions.insert(pair, Session { ends, is_broken: false, in_flight });
                }
                continue;
            };
            if session.ends == [End::Gone; 2] {
                self.sessions.remove(&pair);
                continue;
            }
            for (side, life) in lives.into_iter().enumerate() {
                if life.runs() {
                    self.change_end(pair, side);
                }
            }
        }
    }

    fn change_end(&mut self, pair: (usize, usize), side: usize) {
        let nodes = [pair.0, pair.1];
        let (own, other, now_ms) = (nodes[side], nodes[1 - side], self.now_ms);
        let Some(session) = self.sessions.get_mut(&pair) else { return };
        match session.ends[side] {
            End::Coming(at_ms) if at_ms <= now_ms => {
                session.ends[side] = End::Up;
                self.tell(|| format!("{own} reaches {other}"));
                let incarnation = Incarnation(self.nodes[other].incarnation);
                let channels = &mut self.nodes[own].channels;
                channels.handle_node_up(now_ms, node_id(other), incarnation);
            }
            End::Going(at_ms) if at_ms <= now_ms => {
                session.ends[side] = End::Gone;
                self.tell(|| format!("{own} has lost {other}"));
                self.nodes[own].channels.handle_node_down(now_ms, node_id(other));
            }
            _ => return,
        }
        self.take_outputs(own);
    }

    /// Sends a message, if the sender knows of a session that is not broken.
    pub fn send(&mut self, from: usize, to: NodeId, name: Arc<str>, message: ChannelMessage) {
        self.tell(|| format!("{from} to {}, {name}: {message:?}", to.number() - 1));
        let to = usize::from(to.number()) - 1;
        let side = usize::from(from > to);
        if let Some(session) = self.sessions.get_mut(&(from.min(to), from.max(to)))
            && !session.is_broken
            && session.ends[side] == End::Up
        {
            session.in_flight[side].push_back((name, message));
        }
    }

    /// Delivers some messages of one session, if the receiver runs and knows of the session.
    pub fn deliver_some(&mut self) {
        let count = self.nodes.len();
        let (from, to) = (self.random.below(count), self.random.below(count));
        let pair = (from.min(to), from.max(to));
        if from == to || !self.nodes[to].life.runs() {
            return;
        }
        let (sender, receiver) = (usize::from(from > to), usize::from(to > from));
        for _ in 0..1 + self.random.below(6) {
            let Some(session) = self.sessions.get_mut(&pair) else { return };
            if !matches!(session.ends[receiver], End::Up | End::Going(_)) {
                return;
            }
            let Some((name, message)) = session.in_flight[sender].pop_front() else { return };
            let channels = &mut self.nodes[to].channels;
            channels.handle_message(self.now_ms, node_id(from), &name, &self.policy, message);
            self.take_outputs(to);
        }
    }
}
