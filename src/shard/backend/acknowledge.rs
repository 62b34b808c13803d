//! Consumers that acknowledge events, or refuse them. Each event carries a tag. A consumer has at most a window of
//! unacknowledged events; when it ends, they are redelivered to other consumers.

use std::collections::{BTreeMap, VecDeque};

use hashbrown::HashSet;

use super::Backends;
use super::calls::Caller;
use super::consumers::TopicHome;
use crate::address::NodeId;
use crate::message::{ConnectionKey, Delivery, FromConsumer, MessageNumber};
use crate::protocol::api::{self, Code, Fault, Reply, Tags};
use crate::protocol::frame::QUEUED_FRAME_BYTES;
use crate::shard::connection::{Connection, Connections, Shape};
use crate::shard::turn::Turn;

/// The unacknowledged events of one consumer.
#[derive(Debug)]
pub struct Unsettled {
    // The number of events that the consumer may have unacknowledged.
    window: usize,
    next_tag: u64,
    // When the consumer last settled an event, or got one while it had none, on the shard's clock in milliseconds.
    progress_ms: u64,
    // Events that were sent to the consumer, in the order of their tags: at most `window`.
    tagged: VecDeque<Tagged>,
    // Events beyond the window. Bounded, since each topic delivers at most a window of its own.
    waiting: VecDeque<WaitingDelivery>,
}

/// An event that was sent to the consumer.
#[derive(Debug)]
struct Tagged {
    tag: u64,
    // None: the home's node has become unreachable, and redelivers the event itself.
    home: Option<TopicHome>,
    // The number of the event in the topic.
    number: MessageNumber,
}

/// An event that waits for room in the window.
#[derive(Debug)]
struct WaitingDelivery {
    home: TopicHome,
    delivery: Delivery,
}

/// The verdict of a consumer on events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The events are processed.
    Settled,
    /// The events are to be delivered again, after this time.
    Refused {
        /// The time in milliseconds.
        after_ms: u32,
    },
}

impl Unsettled {
    /// Creates an empty record for a consumer with this window.
    pub fn new(window: usize) -> Self {
        Self {
            window,
            next_tag: 1,
            progress_ms: 0,
            tagged: VecDeque::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Returns the memory that the events take: the frames of waiting events, and the records of
    /// sent ones.
    pub fn held_bytes(&self) -> usize {
        let waiting = self.waiting.iter();
        let frames: usize =
            waiting.map(|waiting| waiting.delivery.frame.bytes().len() + QUEUED_FRAME_BYTES).sum();
        frames + self.tagged.capacity() * size_of::<Tagged>()
    }

    /// Returns the number of events that were sent to the consumer or wait for room in its window.
    pub fn count(&self) -> usize {
        self.tagged.len() + self.waiting.len()
    }

    /// Returns for how long the consumer has settled none of its events, in milliseconds. 0: it has none.
    pub fn stalled_ms(&self, now_ms: u64) -> u64 {
        if self.tagged.is_empty() { 0 } else { now_ms.saturating_sub(self.progress_ms) }
    }

    /// Returns the number of events that the consumer may have unacknowledged.
    pub fn window(&self) -> usize {
        self.window
    }

    /// Forgets where events of an unreachable node came from: that node redelivers them itself.
    pub fn forget_node(&mut self, node: NodeId) {
        self.waiting.retain(|waiting| waiting.home.node != node);
        for tagged in &mut self.tagged {
            tagged.home.take_if(|home| home.node == node);
        }
    }

    /// Forgets events that were not acknowledged in time: their home delivers them again.
    fn expire(&mut self, home: &TopicHome, numbers: &[MessageNumber]) {
        let numbers: HashSet<MessageNumber> = numbers.iter().copied().collect();
        let is_kept =
            |from: &TopicHome, number: &MessageNumber| !numbers.contains(number) || from != home;
        self.waiting.retain(|waiting| is_kept(&waiting.home, &waiting.delivery.number));
        self.tagged
            .retain(|tagged| tagged.home.as_ref().is_none_or(|from| is_kept(from, &tagged.number)));
    }

    /// Adds an event, which waits for room in the window.
    fn wait(&mut self, home: TopicHome, delivery: Delivery) {
        self.waiting.push_back(WaitingDelivery { home, delivery });
    }

    /// Tags the next waiting event and returns it with its tag; `None` if the window is full.
    fn poll_next(&mut self, now_ms: u64) -> Option<(u64, Delivery)> {
        if self.tagged.len() >= self.window {
            return None;
        }
        let WaitingDelivery { home, delivery } = self.waiting.pop_front()?;
        if self.tagged.is_empty() {
            self.progress_ms = now_ms;
        }
        let tag = self.next_tag;
        self.next_tag += 1;
        self.tagged.push_back(Tagged { tag, home: Some(home), number: delivery.number });
        Some((tag, delivery))
    }

    /// Removes and returns the events that an acknowledgement covers.
    fn settle(&mut self, now_ms: u64, tags: &Tags) -> Vec<Tagged> {
        let settled: Vec<Tagged> = match tags {
            Tags::One(tag) => self.settle_one(*tag).into_iter().collect(),
            // Taken events belong to no connection.
            Tags::Taken(_) => Vec::new(),
            Tags::Each(tags) => tags.iter().filter_map(|&tag| self.settle_one(tag)).collect(),
            Tags::UpTo(tag) => {
                let count = self.tagged.partition_point(|tagged| tagged.tag <= *tag);
                self.tagged.drain(..count).collect()
            }
        };
        if !settled.is_empty() {
            self.progress_ms = now_ms;
        }
        settled
    }

    fn settle_one(&mut self, tag: u64) -> Option<Tagged> {
        let place = self.tagged.binary_search_by_key(&tag, |tagged| tagged.tag);
        place.ok().and_then(|place| self.tagged.remove(place))
    }
}

impl Backends {
    /// Delivers an event to a back end that acknowledges. It waits here while the window is full.
    pub(super) fn deliver_tagged(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        home: TopicHome,
        delivery: Delivery,
    ) {
        if let Some(unsettled) = unsettled(connections, key) {
            unsettled.wait(home, delivery);
            write_tagged(turn, connections, key);
        }
    }

    /// Handles the news that events were not acknowledged in time. Others get their places in the window.
    pub(crate) fn handle_expired(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        home: &TopicHome,
        numbers: &[MessageNumber],
    ) {
        match unsettled(connections, key) {
            Some(unsettled) => {
                unsettled.expire(home, numbers);
                write_tagged(turn, connections, key);
            }
            None => self.expire_of_take(key, home, numbers),
        }
    }

    /// Carries out `queue.ack` and `queue.nack`.
    pub(crate) fn call_ack(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        caller: Caller,
        tags: Tags,
        verdict: Verdict,
    ) {
        let tags = match tags {
            Tags::Taken(tags) => {
                return self.call_settle(turn, connections, caller, tags, verdict);
            }
            tags => tags,
        };
        let Caller { key, shape } = caller;
        if matches!(shape, Shape::Response(_)) {
            let why =
                "g: over HTTP expected the tag of a taken event, a string, or an array of tags";
            return connections.reply(
                turn,
                key,
                &shape,
                &Err(Fault::new(Code::InvalidArgument, why)),
            );
        }
        let Some(unsettled) = unsettled(connections, key) else {
            let why = "this connection does not consume with \"a\":true";
            let fault = Fault::new(Code::CancelFailed, why);
            return connections.reply(turn, key, &shape, &Err(fault));
        };
        let settled = unsettled.settle(turn.now.ms, &tags);
        if settled.is_empty() {
            let why = "g: no event with this tag is unsettled";
            let fault = Fault::new(Code::InvalidArgument, why);
            return connections.reply(turn, key, &shape, &Err(fault));
        }
        // The answer is written before the events that now fit the window.
        connections.reply(turn, key, &shape, &Ok(Reply::Done));
        tell_settled(turn, key, settled, verdict);
        write_tagged(turn, connections, key);
    }
}

fn unsettled(connections: &mut Connections, key: ConnectionKey) -> Option<&mut Unsettled> {
    connections.get(key).and_then(Connection::backend)?.unsettled.as_mut()
}

/// Writes waiting events to a back end until its window is full.
fn write_tagged(turn: &mut Turn, connections: &mut Connections, key: ConnectionKey) {
    let now_ms = turn.now.ms;
    let next = |unsettled: &mut Unsettled| unsettled.poll_next(now_ms);
    while let Some((tag, delivery)) = unsettled(connections, key).and_then(next) {
        let mut scratch = std::mem::take(&mut turn.scratch);
        let Delivery { is_redelivered, frame, .. } = delivery;
        connections.write_with(turn, key, |out| {
            api::put_tagged(out, &mut scratch, &frame, tag, is_redelivered);
        });
        turn.scratch = scratch;
        turn.counters.events += 1;
        connections.record_backend_output(key);
    }
}

/// Tells the home of each topic which of its events were acknowledged, or refused.
fn tell_settled(turn: &mut Turn, key: ConnectionKey, settled: Vec<Tagged>, verdict: Verdict) {
    let backend = turn.backend_id(key);
    let mut by_home: BTreeMap<TopicHome, Vec<MessageNumber>> = BTreeMap::new();
    for Tagged { home, number, .. } in settled {
        if let Some(home) = home {
            by_home.entry(home).or_default().push(number);
        }
    }
    for (TopicHome { node, topic }, numbers) in by_home {
        let message = match verdict {
            Verdict::Settled => FromConsumer::Settled(numbers),
            Verdict::Refused { after_ms } => FromConsumer::Refused { numbers, after_ms },
        };
        turn.send_to_home(node, &topic, backend, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::PopId;
    use crate::protocol::frame::Frame;

    fn unsettled() -> Unsettled {
        let mut unsettled = Unsettled::new(3);
        for number in 0..6 {
            let frame = Frame::from_encoded(b"");
            let delivery = Delivery {
                number: MessageNumber(number),
                pop: PopId(1),
                is_acknowledged: true,
                is_redelivered: false,
                frame,
            };
            let home = TopicHome { node: NodeId::new(1).unwrap(), topic: "t".into() };
            unsettled.wait(home, delivery);
        }
        unsettled
    }

    fn sent(unsettled: &mut Unsettled) -> Vec<u64> {
        std::iter::from_fn(|| unsettled.poll_next(10)).map(|(tag, _)| tag).collect()
    }

    fn settled(unsettled: &mut Unsettled, tags: Tags) -> Vec<u64> {
        unsettled.settle(15, &tags).into_iter().map(|tagged| tagged.number.0).collect()
    }

    #[test]
    fn tags_count_up_and_the_window_bounds_them() {
        let mut unsettled = unsettled();
        assert_eq!(sent(&mut unsettled), [1, 2, 3]);
        assert_eq!(settled(&mut unsettled, Tags::One(2)), [1]);
        assert_eq!(sent(&mut unsettled), [4]);
        assert_eq!(settled(&mut unsettled, Tags::One(2)), [0u64; 0]);
        assert_eq!(settled(&mut unsettled, Tags::UpTo(3)), [0, 2]);
        assert_eq!(sent(&mut unsettled), [5, 6]);
        assert_eq!(settled(&mut unsettled, Tags::UpTo(u64::MAX)), [3, 4, 5]);
        assert_eq!(settled(&mut unsettled, Tags::UpTo(u64::MAX)), [0u64; 0]);
    }
}
