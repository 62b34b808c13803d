//! From one to another: between shards, and through a topic.

use gridcast::address::{ClientId, NodeId, ShardAddress, ShardId};
use gridcast::message::{
    BackendId, ConnectionKey, Event, FromShard, LocalMessage, PopId, Terms, Ticket,
};
use gridcast::protocol::api::Tally;
use gridcast::protocol::frame::{Frame, Kind};
use gridcast::queue::topic::{Effect, Topic};
use gridcast::queue::{Bounds, WhenFull};
use gridcast::runtime::{Port, bus};

fn shard(number: u8) -> ShardAddress {
    ShardAddress { node: NodeId::new(1).expect("1 is at most 1023"), shard: ShardId(number) }
}

fn answer(to: ShardId, number: u64) -> FromShard {
    FromShard::Local(to, LocalMessage::Published(Ticket(number), Tally::default()))
}

/// Shards' ends of the bus, on one thread: what a message costs both of its ends, not how long it
/// takes a core that sleeps to wake.
pub struct Hop {
    sender: Port,
    receivers: Vec<Port>,
}

impl Hop {
    /// On a node of so many shards, up to 256.
    pub fn new(shards: usize) -> Self {
        let (mut ports, ..) = bus(shards, false).expect("a descriptor for each");
        let receivers = ports.split_off(1);
        Self { sender: ports.pop().expect("the first"), receivers }
    }

    /// So many messages from the first to the second, in one turn of each.
    pub fn run(&mut self, count: usize) {
        for number in 0..count {
            self.sender.post(answer(ShardId(1), number as u64));
        }
        self.sender.flush();
        let mut received = 0;
        self.receivers[0].receive(|_| received += 1);
        assert_eq!(received, count);
    }

    /// A question from the first to each other, and their answers, in one turn of each.
    pub fn ask_all(&mut self) {
        for number in 1..=self.receivers.len() {
            self.sender.post(answer(ShardId(number as u8), 1));
        }
        self.sender.flush();
        for receiver in &mut self.receivers {
            receiver.receive(|_| {});
            receiver.post(answer(ShardId(0), 2));
            receiver.flush();
        }
        let mut received = 0;
        self.sender.receive(|_| received += 1);
        assert_eq!(received, self.receivers.len());
    }
}

/// A topic with one consumer that has always written what it got.
pub struct Passing {
    topic: Topic,
    consumer: BackendId,
    frame: Frame,
    clients: u64,
    next: u64,
}

impl Passing {
    /// Messages of so many clients in turn.
    pub fn new(clients: u64) -> Self {
        let bounds = Bounds { messages: 65_536, bytes: 64 << 20 };
        let mut topic = Topic::new(shard(0).node, bounds, WhenFull::Hold, 1);
        let connection = ConnectionKey { index: 0, generation: 0 };
        let consumer = BackendId { at: shard(0), connection };
        let terms =
            Terms { pop: PopId(1), group: None, window_bytes: 1 << 20, unsettled_max: None };
        topic.join(0, consumer, &terms).expect("it is the first");
        topic.start(0, consumer);
        let frame = Frame::message(Kind::Text, &[b'x'; 256]);
        Self { topic, consumer, frame, clients, next: 0 }
    }

    /// One message in, to the consumer, and done with.
    pub fn run(&mut self) {
        self.next += 1;
        let client = ClientId::from_value(self.next % self.clients);
        let event = Event::new(client, self.frame.clone());
        self.topic.push(self.next, ShardId(0), event);
        let mut delivered = 0;
        while let Some(effect) = self.topic.poll_effect() {
            delivered += u32::from(matches!(effect, Effect::Deliver(..)));
        }
        assert_eq!(delivered, 1);
        self.topic.written(self.next, self.consumer, 1);
    }
}
