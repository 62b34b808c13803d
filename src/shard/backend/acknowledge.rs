//! Consumers that acknowledge: each event carries a tag, a bounded number is without an
//! acknowledgement, and what is left unsettled goes to others.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::Backends;
use super::calls::Caller;
use crate::address::NodeId;
use crate::message::{ConnectionKey, Delivery, TopicMessage};
use crate::protocol::api::{self, Code, Fault, Reply, Tags};
use crate::protocol::frame::QUEUED_FRAME_BYTES;
use crate::shard::connection::{Connection, Connections};
use crate::shard::turn::Turn;

/// The events of one consumer that acknowledges.
#[derive(Debug)]
pub struct Unsettled {
    // How many may be with it.
    window: usize,
    next_tag: u64,
    // With it, in the order of their tags: at most `window`.
    tagged: VecDeque<Tagged>,
    // Given to this shard beyond the window: each topic gives up to a window of its own.
    waiting: VecDeque<(NodeId, Arc<str>, Delivery)>,
}

#[derive(Debug)]
struct Tagged {
    tag: u64,
    // Where it is from; None: that node is out of reach, and gives it to others.
    home: Option<NodeId>,
    topic: Arc<str>,
    // Its number in the topic.
    number: u64,
}

impl Unsettled {
    /// None yet, and at most `window` at a time.
    pub fn new(window: usize) -> Self {
        Self { window, next_tag: 1, tagged: VecDeque::new(), waiting: VecDeque::new() }
    }

    /// Memory that they take: the frames of those that wait, and what is remembered of the others.
    pub fn held_bytes(&self) -> usize {
        let waiting = self.waiting.iter();
        let frames: usize =
            waiting.map(|(.., delivery)| delivery.frame.bytes().len() + QUEUED_FRAME_BYTES).sum();
        frames + self.tagged.capacity() * size_of::<Tagged>()
    }

    /// How many may be with its consumer.
    pub fn window(&self) -> usize {
        self.window
    }

    /// That node is out of reach: what it gave it gives to others.
    pub fn forget_node(&mut self, node: NodeId) {
        self.waiting.retain(|(home, ..)| *home != node);
        for tagged in self.tagged.iter_mut().filter(|tagged| tagged.home == Some(node)) {
            tagged.home = None;
        }
    }

    /// Takes an event that may not go yet.
    fn wait(&mut self, home: NodeId, topic: Arc<str>, delivery: Delivery) {
        self.waiting.push_back((home, topic, delivery));
    }

    /// The next event that may go, with its tag.
    fn poll_next(&mut self) -> Option<(u64, Delivery)> {
        if self.tagged.len() >= self.window {
            return None;
        }
        let (home, topic, delivery) = self.waiting.pop_front()?;
        let tag = self.next_tag;
        self.next_tag += 1;
        self.tagged.push_back(Tagged { tag, home: Some(home), topic, number: delivery.number });
        Some((tag, delivery))
    }

    /// Takes out what is acknowledged.
    fn settle(&mut self, tags: Tags) -> Vec<Tagged> {
        match tags {
            Tags::One(tag) => {
                let place = self.tagged.binary_search_by_key(&tag, |tagged| tagged.tag);
                place.ok().and_then(|place| self.tagged.remove(place)).into_iter().collect()
            }
            Tags::UpTo(tag) => {
                let count = self.tagged.partition_point(|tagged| tagged.tag <= tag);
                self.tagged.drain(..count).collect()
            }
        }
    }
}

impl Backends {
    /// An event for a back end that acknowledges: it goes when there is room in its window.
    pub(super) fn deliver_tagged(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        (home, topic): (NodeId, Arc<str>),
        delivery: Delivery,
    ) {
        if let Some(unsettled) = unsettled(connections, key) {
            unsettled.wait(home, topic, delivery);
            write_tagged(turn, connections, key);
        }
    }

    /// `queue.ack`.
    pub fn call_ack(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        Caller { key, shape }: Caller,
        tags: Tags,
    ) {
        let Some(unsettled) = unsettled(connections, key) else {
            let why = "this connection does not consume with \"a\":true";
            let fault = Fault::new(Code::CancelFailed, why);
            return connections.reply(turn, key, &shape, &Err(fault));
        };
        let settled = unsettled.settle(tags);
        if settled.is_empty() {
            let why = "g: no event with this tag is unsettled";
            let fault = Fault::new(Code::InvalidArgument, why);
            return connections.reply(turn, key, &shape, &Err(fault));
        }
        // The answer goes before the events that there is room for now.
        connections.reply(turn, key, &shape, &Ok(Reply::Done));
        tell_settled(turn, key, settled);
        write_tagged(turn, connections, key);
    }
}

fn unsettled(connections: &mut Connections, key: ConnectionKey) -> Option<&mut Unsettled> {
    connections.get(key).and_then(Connection::backend)?.unsettled.as_mut()
}

/// Writes the events that there is room for in a back end's window.
fn write_tagged(turn: &mut Turn, connections: &mut Connections, key: ConnectionKey) {
    while let Some((tag, delivery)) = unsettled(connections, key).and_then(Unsettled::poll_next) {
        let mut scratch = std::mem::take(&mut turn.scratch);
        let Delivery { is_redelivered, frame, .. } = delivery;
        connections.write_with(turn, key, |out| {
            api::put_tagged(out, &mut scratch, &frame, tag, is_redelivered);
        });
        turn.scratch = scratch;
        turn.counters.events += 1;
    }
}

/// Tells each topic which of its events were acknowledged.
fn tell_settled(turn: &mut Turn, key: ConnectionKey, settled: Vec<Tagged>) {
    let backend = turn.backend_id(key);
    let mut of_homes: BTreeMap<(NodeId, Arc<str>), Vec<u64>> = BTreeMap::new();
    for Tagged { home, topic, number, .. } in settled {
        if let Some(node) = home {
            of_homes.entry((node, topic)).or_default().push(number);
        }
    }
    for ((node, topic), numbers) in of_homes {
        turn.send_to_home(node, &topic, TopicMessage::Settled(backend, numbers));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::frame::Frame;

    fn unsettled() -> Unsettled {
        let mut unsettled = Unsettled::new(3);
        for number in 0..6 {
            let frame = Frame::from_encoded(b"");
            let delivery =
                Delivery { number, pop: 1, is_acknowledged: true, is_redelivered: false, frame };
            unsettled.wait(NodeId::new(1).unwrap(), "t".into(), delivery);
        }
        unsettled
    }

    fn sent(unsettled: &mut Unsettled) -> Vec<u64> {
        std::iter::from_fn(|| unsettled.poll_next()).map(|(tag, _)| tag).collect()
    }

    fn settled(unsettled: &mut Unsettled, tags: Tags) -> Vec<u64> {
        unsettled.settle(tags).into_iter().map(|tagged| tagged.number).collect()
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
