//! A fleet of back ends that starts, and restarts, over a topic in which many clients wait.

use std::time::{Duration, Instant};

use gridcast::address::{ClientId, NodeId, ShardAddress, ShardId};
use gridcast::message::{BackendId, ConnectionKey, Event, PopId, Terms};
use gridcast::protocol::frame::{Frame, Kind};
use gridcast::queue::topic::Topic;
use gridcast::queue::{Bounds, WhenFull};

/// A topic with messages of many clients, and the consumers that come and go.
pub struct Fleet {
    topic: Topic,
    consumers: Vec<BackendId>,
}

impl Fleet {
    /// Two waiting messages of each of so many clients.
    pub fn new(clients: u64, consumers: u32) -> Self {
        let node = NodeId::new(1).expect("1 is at most 1023");
        let bounds = Bounds { messages: 1 << 20, bytes: 1 << 30 };
        let mut topic = Topic::new(node, bounds, WhenFull::Hold, 1);
        let frame = Frame::message(Kind::Text, &[b'x'; 256]);
        for number in 0..2 * clients {
            let client = ClientId::from_value(number % clients);
            topic.push(0, ShardId(0), Event::new(client, frame.clone()));
        }
        let at = ShardAddress { node, shard: ShardId(0) };
        let id = |index| BackendId { at, connection: ConnectionKey { index, generation: 0 } };
        Self { topic, consumers: (0..consumers).map(id).collect() }
    }

    /// All consumers come one after the other, each takes one message, and all are gone one after the
    /// other. Gives how long the longest of these steps took.
    pub fn run(&mut self) -> Duration {
        let terms = Terms { pop: PopId(1), group: None, window_bytes: 1, unsettled_max: None };
        let mut longest = Duration::ZERO;
        for id in self.consumers.clone() {
            longest = longest.max(self.step(|topic| {
                topic.join(0, id, &terms).expect("there are fewer than may be");
                topic.start(0, id);
            }));
        }
        for id in self.consumers.clone() {
            longest = longest.max(self.step(|topic| topic.gone(id)));
        }
        longest
    }

    fn step(&mut self, change: impl FnOnce(&mut Topic)) -> Duration {
        let start = Instant::now();
        change(&mut self.topic);
        if self.topic.poll_unfinished() {
            self.topic.handle_turn(0);
        }
        while self.topic.poll_effect().is_some() {}
        start.elapsed()
    }
}
