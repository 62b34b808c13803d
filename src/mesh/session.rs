//! A session between two nodes, which outlives the links between them.
//!
//! Batches are numbered per lane, kept until the other node has acknowledged them, and sent again on the
//! next link. So messages arrive once and in order, or the session ends and both nodes know.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::link::Lane;
use super::numbers::BatchNumber;
use super::wire::{self, AddressedMessage, Receipt};

/// Kept bytes from which on a session takes no calls. They fail at once.
const KEPT_BYTES: usize = 16 << 20;

/// Kept bytes beyond which a session ends. They include answers and events of topics, which are never
/// refused. Those have bounds of their own, far below this.
const KEPT_BYTES_MAX: usize = 256 << 20;

/// Bytes of batches in flight: sent on the current link, and not acknowledged. Further ones wait for
/// acknowledgements. A batch with more is sent when nothing else is in flight.
///
/// QUIC's window of a link is larger. If the other node takes no data for a while, its unread data therefore
/// leaves room for the control lane, so that its pings are still answered.
pub(super) const IN_FLIGHT_BYTES: usize = 24 << 20;

/// Bytes of messages gathered in a turn that make a batch before the turn ends.
const BATCH_BYTES: usize = 64 << 10;

/// This node's end of a session.
#[derive(Debug, Default)]
pub(super) struct Session {
    outgoing: BTreeMap<Lane, OutgoingLane>,
    incoming: BTreeMap<Lane, IncomingLane>,
    // Bytes of all kept batches. Messages that are still gathered are not included.
    kept_bytes: usize,
    // Lanes with gathered messages.
    gathering: Vec<Lane>,
    // Lanes with batches to acknowledge.
    unacknowledged: Vec<Lane>,
    // Batches to send on the link, and their bytes.
    ready: VecDeque<(Lane, Bytes)>,
    ready_bytes: usize,
    traffic: Traffic,
}

/// Counts of batches, and of their bytes, sent and received in a session. Repeated batches are not counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Traffic {
    /// Batches made for the other node.
    pub sent_batches: u64,
    /// Bytes of batches made for the other node.
    pub sent_bytes: u64,
    /// Batches received.
    pub received_batches: u64,
    /// Bytes of batches received.
    pub received_bytes: u64,
}

#[derive(Debug, Default)]
struct OutgoingLane {
    last: BatchNumber,
    // The batch that is being put together.
    gathered: Vec<u8>,
    // Batches that were not acknowledged, oldest first.
    kept: VecDeque<(BatchNumber, Bytes)>,
}

#[derive(Debug, Default)]
struct IncomingLane {
    last: BatchNumber,
    is_unacknowledged: bool,
}

/// How a batch fits behind those received before.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The next batch of its lane.
    Next,
    /// A batch that was received before, on another link.
    Repeated,
    /// A batch behind a missing one: the peer is at fault.
    Gap,
}

impl Session {
    /// Whether the session takes calls: fewer than [`KEPT_BYTES`] are unacknowledged.
    pub(super) fn takes_calls(&self) -> bool {
        self.kept_bytes < KEPT_BYTES
    }

    /// Whether the session has to end: more than [`KEPT_BYTES_MAX`] are unacknowledged.
    pub(super) fn is_over_full(&self) -> bool {
        self.kept_bytes > KEPT_BYTES_MAX
    }

    /// Bytes of batches that were not acknowledged.
    pub(super) fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// Returns the counts so far.
    pub(super) fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Adds a message to the lane's next batch, which [`Self::flush`] completes.
    pub(super) fn push(&mut self, lane: Lane, message: &AddressedMessage) {
        let outgoing = self.outgoing.entry(lane).or_default();
        if outgoing.gathered.is_empty() {
            wire::begin_batch(&mut outgoing.gathered);
            self.gathering.push(lane);
        }
        wire::put_message(&mut outgoing.gathered, message);
        if outgoing.gathered.len() >= BATCH_BYTES {
            self.complete_batch(lane);
        }
    }

    /// Completes the batches of all lanes.
    pub(super) fn flush(&mut self) {
        for lane in std::mem::take(&mut self.gathering) {
            self.complete_batch(lane);
        }
    }

    fn complete_batch(&mut self, lane: Lane) {
        let Some(outgoing) = self.outgoing.get_mut(&lane) else { return };
        if outgoing.gathered.is_empty() {
            return;
        }
        outgoing.last = outgoing.last.next();
        let mut batch = std::mem::take(&mut outgoing.gathered);
        wire::end_batch(&mut batch, outgoing.last);
        let batch = Bytes::from(batch);
        self.kept_bytes += batch.len();
        self.traffic.sent_batches += 1;
        self.traffic.sent_bytes += batch.len() as u64;
        outgoing.kept.push_back((outgoing.last, batch.clone()));
        self.ready_bytes += batch.len();
        self.ready.push_back((lane, batch));
    }

    /// The next batch to send on the link, unless too much is in flight. To be called again after an
    /// acknowledgement.
    pub(super) fn poll_batch(&mut self) -> Option<(Lane, Bytes)> {
        let (_, next) = self.ready.front()?;
        let in_flight = self.in_flight_bytes();
        if in_flight > 0 && in_flight + next.len() > IN_FLIGHT_BYTES {
            return None;
        }
        self.ready_bytes -= next.len();
        self.ready.pop_front()
    }

    /// Whether batches wait to be sent.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Bytes sent on the current link and not acknowledged.
    fn in_flight_bytes(&self) -> usize {
        // A faulty peer may acknowledge what was not sent yet.
        self.kept_bytes.saturating_sub(self.ready_bytes)
    }

    /// Continues on a new link: sends again the batches that the other node has not received, according to
    /// its hello.
    pub(super) fn resume(&mut self, received: &[Receipt]) {
        for &receipt in received {
            self.handle_acknowledgement(receipt);
        }
        self.ready.clear();
        for (&lane, outgoing) in &self.outgoing {
            let kept = outgoing.kept.iter().map(|(_, batch)| (lane, batch.clone()));
            self.ready.extend(kept);
        }
        // All that is kept is ready, and nothing is in flight on the new link.
        self.ready_bytes = self.kept_bytes;
    }

    /// Drops batches that the other node has.
    pub(super) fn handle_acknowledgement(&mut self, receipt: Receipt) {
        let Some(outgoing) = self.outgoing.get_mut(&receipt.lane) else { return };
        while outgoing.kept.front().is_some_and(|(kept, _)| *kept <= receipt.last)
            && let Some((_, batch)) = outgoing.kept.pop_front()
        {
            self.kept_bytes -= batch.len();
        }
    }

    /// Notes a received batch of this many bytes.
    pub(super) fn handle_batch(
        &mut self,
        lane: Lane,
        number: BatchNumber,
        bytes: usize,
    ) -> Arrival {
        let incoming = self.incoming.entry(lane).or_default();
        if number > incoming.last.next() {
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

    /// The next acknowledgement to send.
    pub(super) fn poll_acknowledgement(&mut self) -> Option<Receipt> {
        let lane = self.unacknowledged.pop()?;
        let incoming = self.incoming.get_mut(&lane)?;
        incoming.is_unacknowledged = false;
        Some(Receipt { lane, last: incoming.last })
    }

    /// Returns the receipt of each lane.
    pub(super) fn received(&self) -> Vec<Receipt> {
        self.incoming
            .iter()
            .map(|(&lane, incoming)| Receipt { lane, last: incoming.last })
            .collect()
    }

    /// Asserts the invariants. Costs a look at every batch that is kept.
    pub(super) fn check(&self) {
        let kept = self.outgoing.values().flat_map(|outgoing| &outgoing.kept);
        let bytes: usize = kept.map(|(_, batch)| batch.len()).sum();
        assert_eq!(bytes, self.kept_bytes, "bytes that are kept");
        for (lane, OutgoingLane { last, gathered, kept }) in &self.outgoing {
            // Kept batches are the last of their lane, without a gap: what is sent again continues
            // where the other node stopped.
            let numbers = kept.iter().map(|(number, _)| number.0);
            let first = last.0 + 1 - kept.len() as u64;
            assert!(numbers.eq(first..=last.0), "kept batches of {lane:?}");
            assert!(gathered.is_empty() || self.gathering.contains(lane), "{lane:?} is flushed");
        }
        let ready_bytes: usize = self.ready.iter().map(|(_, batch)| batch.len()).sum();
        assert_eq!(ready_bytes, self.ready_bytes, "bytes that are ready");
        for (lane, _) in &self.ready {
            assert!(self.outgoing.contains_key(lane), "a batch of {lane:?} that was never made");
        }
        for (lane, incoming) in &self.incoming {
            let listed = self.unacknowledged.iter().filter(|listed| *listed == lane).count();
            assert_eq!(listed, usize::from(incoming.is_unacknowledged), "{lane:?} is acknowledged");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::ShardId;
    use crate::message::{ClientReply, GridMessage, Ticket};

    const LANE: Lane = Lane::Shard(ShardId(3));

    fn receipt(last: u64) -> Receipt {
        Receipt { lane: LANE, last: BatchNumber(last) }
    }

    fn send(session: &mut Session, number: u64) {
        let answer = GridMessage::Answer(Ticket(number), Ok(ClientReply::Done));
        session.push(LANE, &AddressedMessage::Shard(ShardId(0), answer));
        session.check();
        session.flush();
        session.check();
    }

    fn batches(session: &mut Session) -> Vec<Bytes> {
        session.check();
        std::iter::from_fn(|| session.poll_batch()).map(|(_, batch)| batch).collect()
    }

    #[test]
    fn what_was_not_acknowledged_is_sent_again_on_the_next_link() {
        let mut session = Session::default();
        (1..=3).for_each(|number| send(&mut session, number));
        let sent = batches(&mut session);
        session.handle_acknowledgement(receipt(1));
        session.resume(&[receipt(2)]);
        assert_eq!(batches(&mut session), sent[2..]);
        session.handle_acknowledgement(receipt(3));
        assert_eq!(session.kept_bytes, 0);
        session.resume(&[]);
        assert_eq!(batches(&mut session).len(), 0);
    }

    #[test]
    fn no_more_than_the_limit_is_in_flight_and_acknowledgements_let_the_rest_follow() {
        let mut session = Session::default();
        let large = "x".repeat(1 << 20);
        let answer = |json| {
            let answer = GridMessage::Answer(Ticket(1), Ok(ClientReply::Context(json)));
            AddressedMessage::Shard(ShardId(0), answer)
        };
        for _ in 0..30 {
            session.push(LANE, &answer(large.clone()));
        }
        // 24 MiB have room for 23 batches of a little more than 1 MiB.
        assert_eq!(batches(&mut session).len(), 23);
        session.handle_acknowledgement(receipt(2));
        assert_eq!(batches(&mut session).len(), 2);
        // On the next link all begins anew.
        session.resume(&[receipt(2)]);
        assert_eq!(batches(&mut session).len(), 23);
        session.handle_acknowledgement(receipt(30));
        assert_eq!(batches(&mut session).len(), 5, "what a peer acknowledges too early is sent");
        session.push(LANE, &answer("x".repeat(IN_FLIGHT_BYTES)));
        assert_eq!(batches(&mut session).len(), 1, "a larger batch is sent alone");
        send(&mut session, 1);
        assert!(batches(&mut session).is_empty() && session.has_ready());
    }

    #[test]
    fn a_batch_counts_once_and_a_missing_one_is_noticed() {
        let mut session = Session::default();
        let arrivals =
            [1, 2, 2, 1, 3, 5].map(|number| session.handle_batch(LANE, BatchNumber(number), 10));
        use Arrival::{Gap, Next, Repeated};
        assert_eq!(arrivals, [Next, Next, Repeated, Repeated, Next, Gap]);
        session.check();
        assert_eq!(session.poll_acknowledgement(), Some(receipt(3)));
        assert_eq!(session.poll_acknowledgement(), None);
        session.check();
    }
}
