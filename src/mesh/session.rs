//! What two nodes have said to each other, whatever becomes of the links between them: batches are
//! numbered per lane, kept until the other has them, and sent again on the next link. So messages
//! arrive once and in order, or the session ends and both sides know.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::link::Lane;
use super::wire;
use crate::message::Message;

/// Bytes kept for one node at which no more calls for it are taken: they fail at once.
const KEPT_BYTES: usize = 16 << 20;

/// Bytes kept for one node, all that nothing can refuse included (answers, events of topics; their
/// own bounds hold them far below this): beyond it the session ends.
const KEPT_BYTES_MAX: usize = 256 << 20;

/// Bytes of letters gathered in one turn before they make a batch.
const BATCH_BYTES: usize = 64 << 10;

/// One node's end of a session.
#[derive(Debug, Default)]
pub struct Session {
    outgoing: BTreeMap<Lane, Outgoing>,
    incoming: BTreeMap<Lane, Incoming>,
    kept_bytes: usize,
    // Lanes with letters that are not in a batch yet.
    touched: Vec<Lane>,
    // Lanes with batches that were not acknowledged yet.
    unacknowledged: Vec<Lane>,
    ready: VecDeque<(Lane, Bytes)>,
    traffic: Traffic,
}

/// What was said in a session, in both directions, what was said again left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// Batches made for the other node.
    pub sent_batches: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Batches that came.
    pub received_batches: u64,
    /// Their bytes.
    pub received_bytes: u64,
}

#[derive(Debug, Default)]
struct Outgoing {
    last: u64,
    gathered: Vec<u8>,
    kept: VecDeque<(u64, Bytes)>,
}

#[derive(Debug, Default)]
struct Incoming {
    last: u64,
    is_unacknowledged: bool,
}

/// What a batch that came is.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The next one.
    Next,
    /// One that came before, on another link.
    Repeated,
    /// Others are missing before it: the peer is at fault.
    Gap,
}

impl Session {
    /// Whether a call may be sent: not while too much waits for the other node.
    pub fn takes_calls(&self) -> bool {
        self.kept_bytes < KEPT_BYTES
    }

    /// Whether so much waits that the session has to end.
    pub fn is_over_full(&self) -> bool {
        self.kept_bytes > KEPT_BYTES_MAX
    }

    /// Bytes that the other node is not known to have.
    pub fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// What was said so far.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Adds a message; it goes with the next [`Self::flush`].
    pub fn push(&mut self, lane: Lane, to: wire::To, message: &Message) {
        let outgoing = self.outgoing.entry(lane).or_default();
        if outgoing.gathered.is_empty() {
            wire::begin_batch(&mut outgoing.gathered);
            self.touched.push(lane);
        }
        let is_for_others = wire::put_letter(&mut outgoing.gathered, to, message);
        debug_assert!(is_for_others, "what a node says to itself stays with it");
        if outgoing.gathered.len() >= BATCH_BYTES {
            self.close_batch(lane);
        }
    }

    /// Makes batches of what has gathered.
    pub fn flush(&mut self) {
        for lane in std::mem::take(&mut self.touched) {
            self.close_batch(lane);
        }
    }

    fn close_batch(&mut self, lane: Lane) {
        let Some(outgoing) = self.outgoing.get_mut(&lane) else { return };
        if outgoing.gathered.is_empty() {
            return;
        }
        outgoing.last += 1;
        let mut batch = std::mem::take(&mut outgoing.gathered);
        wire::end_batch(&mut batch, outgoing.last);
        let batch = Bytes::from(batch);
        self.kept_bytes += batch.len();
        self.traffic.sent_batches += 1;
        self.traffic.sent_bytes += batch.len() as u64;
        outgoing.kept.push_back((outgoing.last, batch.clone()));
        self.ready.push_back((lane, batch));
    }

    /// The next batch to be sent on the link; without one, it is kept all the same.
    pub fn poll_batch(&mut self) -> Option<(Lane, Bytes)> {
        self.ready.pop_front()
    }

    /// There is a new link, and the other node has got so much of each lane: sends the rest again.
    pub fn resume(&mut self, received: &[(Lane, u64)]) {
        for &(lane, number) in received {
            self.acknowledged(lane, number);
        }
        self.ready.clear();
        for (&lane, outgoing) in &self.outgoing {
            let kept = outgoing.kept.iter().map(|(_, batch)| (lane, batch.clone()));
            self.ready.extend(kept);
        }
    }

    /// The other node has all batches of a lane up to this number.
    pub fn acknowledged(&mut self, lane: Lane, number: u64) {
        let Some(outgoing) = self.outgoing.get_mut(&lane) else { return };
        while outgoing.kept.front().is_some_and(|(kept, _)| *kept <= number)
            && let Some((_, batch)) = outgoing.kept.pop_front()
        {
            self.kept_bytes -= batch.len();
        }
    }

    /// A batch of so many bytes has come.
    pub fn arrived(&mut self, lane: Lane, number: u64, bytes: usize) -> Arrival {
        let incoming = self.incoming.entry(lane).or_default();
        if number > incoming.last + 1 {
            return Arrival::Gap;
        }
        if !incoming.is_unacknowledged {
            incoming.is_unacknowledged = true;
            self.unacknowledged.push(lane);
        }
        if number <= incoming.last {
            return Arrival::Repeated;
        }
        incoming.last = number;
        self.traffic.received_batches += 1;
        self.traffic.received_bytes += bytes as u64;
        Arrival::Next
    }

    /// The next acknowledgement to be sent.
    pub fn poll_acknowledgement(&mut self) -> Option<(Lane, u64)> {
        let lane = self.unacknowledged.pop()?;
        let incoming = self.incoming.get_mut(&lane)?;
        incoming.is_unacknowledged = false;
        Some((lane, incoming.last))
    }

    /// What has come of each lane.
    pub fn received(&self) -> Vec<(Lane, u64)> {
        self.incoming.iter().map(|(&lane, incoming)| (lane, incoming.last)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::ShardId;
    use crate::message::{Answer, Ticket};
    use crate::protocol::api::Reply;

    const LANE: Lane = Lane::Shard(ShardId(3));

    fn say(session: &mut Session, number: u64) {
        let message = Message::Answer(Ticket(number), Answer::Done(Ok(Reply::Done)));
        session.push(LANE, wire::To::Mesh, &message);
        session.flush();
    }

    fn batches(session: &mut Session) -> Vec<Bytes> {
        std::iter::from_fn(|| session.poll_batch()).map(|(_, batch)| batch).collect()
    }

    #[test]
    fn what_was_not_acknowledged_is_sent_again_on_the_next_link() {
        let mut session = Session::default();
        (1..=3).for_each(|number| say(&mut session, number));
        let sent = batches(&mut session);
        session.acknowledged(LANE, 1);
        session.resume(&[(LANE, 2)]);
        assert_eq!(batches(&mut session), sent[2..]);
        session.acknowledged(LANE, 3);
        assert_eq!(session.kept_bytes, 0);
        session.resume(&[]);
        assert_eq!(batches(&mut session).len(), 0);
    }

    #[test]
    fn a_batch_counts_once_and_a_missing_one_is_seen() {
        let mut session = Session::default();
        let arrivals = [1, 2, 2, 1, 3, 5].map(|number| session.arrived(LANE, number, 10));
        use Arrival::{Gap, Next, Repeated};
        assert_eq!(arrivals, [Next, Next, Repeated, Repeated, Next, Gap]);
        assert_eq!(session.poll_acknowledgement(), Some((LANE, 3)));
        assert_eq!(session.poll_acknowledgement(), None);
    }
}
