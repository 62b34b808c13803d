//! Properties over random inputs: a topic against a plain model of it, and what is written read
//! again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gridcast::address::{ClientId, NodeId, ShardAddress, ShardId};
use gridcast::message::{
    BackendId, ConnectionKey, Credit, Delivery, Event, EventNotice, MessageNumber, PopId,
    PushReceipt, Terms,
};
use gridcast::protocol::api;
use gridcast::protocol::assembler::{Assembler, Received};
use gridcast::protocol::deflate::{Deflater, Inflater, Window};
use gridcast::protocol::frame::{Frame, Kind};
use gridcast::queue::room::Room;
use gridcast::queue::topic::{Effect, JoinError, Topic};
use gridcast::queue::{Bounds, WhenFull};
use proptest::collection::vec;
use proptest::prelude::*;

const NODE: NodeId = NodeId::new(1).unwrap();
use simd_json::prelude::*;

const SHARDS: usize = 2;
const WINDOW_BYTES: usize = 64;
const UNSETTLED_MAX: usize = 2;

/// An event in the life of a topic, with the numbers of shards, clients and consumers.
#[derive(Clone, Debug)]
enum Step {
    Push { shard: usize, client: u64, bytes: usize },
    Join { id: u32, acknowledges: bool },
    Start(u32),
    Written(u32, u32),
    Settled(u32, usize),
    Leave(u32),
    Gone(u32),
    Pass(u64),
    // Only in tests whose bounds change.
    Bounds(Bounds, WhenFull),
    Recalled(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let consumer = 0..4u32;
    prop_oneof![
        8 => (0..SHARDS, 0..5u64, 8..40usize)
            .prop_map(|(shard, client, bytes)| Step::Push { shard, client, bytes }),
        2 => (consumer.clone(), any::<bool>())
            .prop_map(|(id, acknowledges)| Step::Join { id, acknowledges }),
        3 => consumer.clone().prop_map(Step::Start),
        6 => (consumer.clone(), 1..4u32).prop_map(|(id, count)| Step::Written(id, count)),
        6 => (consumer.clone(), 0..3usize).prop_map(|(id, place)| Step::Settled(id, place)),
        1 => consumer.clone().prop_map(Step::Leave),
        1 => consumer.prop_map(Step::Gone),
        2 => (1..4000u64).prop_map(Step::Pass),
    ]
}

/// Steps among which a reload changes the bounds, and shards hear later that credit is recalled.
fn step_with_reloads() -> impl Strategy<Value = Step> {
    let bounds =
        (bounds(), when_full()).prop_map(|(bounds, when_full)| Step::Bounds(bounds, when_full));
    prop_oneof![20 => step(), 1 => bounds, 3 => (0..SHARDS).prop_map(Step::Recalled)]
}

fn bounds() -> impl Strategy<Value = Bounds> {
    let bytes = prop_oneof![40..80usize, 80..1200usize];
    (1..24usize, bytes).prop_map(|(messages, bytes)| Bounds { messages, bytes })
}

fn when_full() -> impl Strategy<Value = WhenFull> {
    prop_oneof![Just(WhenFull::Hold), Just(WhenFull::DropOldest), Just(WhenFull::Close)]
}

/// One message as its frame tells it: a number that grows in the order of pushes, and its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pushed {
    number: u64,
    client: u64,
    bytes: usize,
}

impl Pushed {
    fn frame(self) -> Frame {
        let mut bytes = [self.number.to_be_bytes(), self.client.to_be_bytes()].concat();
        bytes.resize(self.bytes, 0);
        Frame::from_encoded(&bytes)
    }

    fn is_watched(self) -> bool {
        self.number.is_multiple_of(3)
    }

    fn of(frame: &Frame) -> Self {
        let bytes = frame.bytes();
        let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
        Self { number: number(0), client: number(8), bytes: bytes.len() }
    }
}

/// A consumer as the topic should see it.
#[derive(Debug, Default)]
struct Handed {
    acknowledges: bool,
    messages: VecDeque<(Pushed, Delivery)>,
}

/// A topic and all that is known of it from outside.
struct Model {
    topic: Topic,
    bounds: Bounds,
    // What may be held and lent: the bounds, or what was held and lent when they shrank, as far as it is left.
    allowed: Bounds,
    when_full: WhenFull,
    now_ms: u64,
    next_number: u64,
    credits: [Credit; SHARDS],
    // What each shard may keep, since credit was recalled and it has not heard of it.
    recalled: [Option<Credit>; SHARDS],
    // A shard whose push found no credit waits with it until there is some.
    wanting: [Option<(u64, usize)>; SHARDS],
    waiting: Vec<Pushed>,
    handed: BTreeMap<u32, Handed>,
    // Watched ones that have left, and the topic is to say so.
    departed: Vec<ClientId>,
    // Those for which a receipt is wanted that has not come: the client, and the receipt.
    unconfirmed: Vec<(ClientId, PushReceipt)>,
    // The numbers of those that a consumer which acknowledges left behind.
    left: BTreeSet<u64>,
    // Whether the bounds may have changed.
    was_reloaded: bool,
}

impl Model {
    fn new(bounds: Bounds, when_full: WhenFull) -> Self {
        Self {
            topic: Topic::new(NODE, bounds, when_full, SHARDS),
            bounds,
            allowed: bounds,
            when_full,
            now_ms: 0,
            next_number: 0,
            credits: [Room::share(bounds, SHARDS); SHARDS],
            recalled: [None; SHARDS],
            wanting: [None; SHARDS],
            waiting: Vec::new(),
            handed: BTreeMap::new(),
            departed: Vec::new(),
            unconfirmed: Vec::new(),
            left: BTreeSet::new(),
            was_reloaded: false,
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Push { shard, client, bytes } => self.offer(shard, client, bytes + 16),
            Step::Join { id, acknowledges } => self.join(id, acknowledges),
            Step::Start(id) => self.topic.start(self.now_ms, consumer(id)),
            Step::Written(id, count) => self.written(id, count),
            Step::Settled(id, place) => self.settled(id, place),
            Step::Leave(id) => self.leave(id),
            Step::Gone(id) => self.gone(id),
            Step::Pass(ms) => {
                self.now_ms += ms;
                self.topic.handle_timeout(self.now_ms);
            }
            Step::Bounds(bounds, when_full) => self.set_bounds(bounds, when_full),
            Step::Recalled(shard) => self.hear_recall(shard),
        }
        self.follow();
    }

    /// A shard has a message: it goes in, or the shard asks for room.
    fn offer(&mut self, shard: usize, client: u64, bytes: usize) {
        if self.wanting[shard].is_some() || bytes > self.bounds.bytes / 4 * 3 {
            return;
        }
        let credit = self.credits[shard];
        if credit.messages > 0 && credit.bytes >= bytes {
            return self.push(shard, client, bytes);
        }
        self.wanting[shard] = Some((client, bytes));
        self.topic.want_credit(ShardId(shard as u8), bytes);
        self.drop_oldest();
    }

    fn set_bounds(&mut self, bounds: Bounds, when_full: WhenFull) {
        (self.bounds, self.when_full) = (bounds, when_full);
        let in_use = self.in_use();
        self.allowed = Bounds {
            messages: bounds.messages.max(in_use.messages),
            bytes: bounds.bytes.max(in_use.bytes),
        };
        self.topic.set_bounds(bounds, when_full);
    }

    /// A shard returns the credit that was recalled, and asks again for what it lacks.
    fn hear_recall(&mut self, shard: usize) {
        let Some(most) = self.recalled[shard].take() else { return };
        let credit = &mut self.credits[shard];
        let returned = Credit {
            messages: credit.messages.saturating_sub(most.messages),
            bytes: credit.bytes.saturating_sub(most.bytes),
        };
        credit.messages -= returned.messages;
        credit.bytes -= returned.bytes;
        if returned == Credit::default() {
            return;
        }
        self.topic.returned_credit(ShardId(shard as u8), returned);
        if let Some((_, bytes)) = self.wanting[shard] {
            self.topic.want_credit(ShardId(shard as u8), bytes);
            self.drop_oldest();
        }
    }

    fn push(&mut self, shard: usize, client: u64, bytes: usize) {
        self.credits[shard].messages -= 1;
        self.credits[shard].bytes -= bytes;
        let message = Pushed { number: self.next_number, client, bytes };
        self.next_number += 1;
        self.waiting.push(message);
        let (client, frame) = (ClientId::from_value(client), message.frame());
        let receipt = PushReceipt(message.number as u32);
        let notice = match message.number % 3 {
            0 => EventNotice::Left,
            1 => EventNotice::Stored(receipt),
            _ => EventNotice::Nothing,
        };
        if let EventNotice::Stored(receipt) = notice {
            self.unconfirmed.push((client, receipt));
        }
        let event = Event { client, frame, notice };
        self.topic.push(self.now_ms, ShardId(shard as u8), event);
    }

    /// Checks that the dropped messages are the oldest that no consumer has.
    fn drop_oldest(&mut self) {
        let dropped = self.topic.take_dropped() as usize;
        assert!(dropped == 0 || self.when_full == WhenFull::DropOldest);
        self.waiting.sort_unstable();
        let dropped = self.waiting.drain(..dropped).collect::<Vec<_>>();
        dropped.into_iter().for_each(|message| self.depart(message));
    }

    fn depart(&mut self, message: Pushed) {
        if message.is_watched() {
            self.departed.push(ClientId::from_value(message.client));
        }
    }

    fn join(&mut self, id: u32, acknowledges: bool) {
        let unsettled_max = acknowledges.then_some(UNSETTLED_MAX);
        let terms = Terms { pop: PopId(1), group: None, window_bytes: WINDOW_BYTES, unsettled_max };
        match self.topic.join(self.now_ms, consumer(id), &terms) {
            Ok(()) => self.handed.entry(id).or_default().acknowledges = acknowledges,
            Err(error) => assert!(error == JoinError::Repeated && self.handed.contains_key(&id)),
        }
    }

    /// The socket took some of what needs no acknowledgement.
    fn written(&mut self, id: u32, count: u32) {
        let Some(handed) = self.handed.get_mut(&id) else { return };
        let plain = |(_, delivery): &&(Pushed, Delivery)| !delivery.is_acknowledged;
        let count = handed.messages.iter().take_while(plain).take(count as usize).count();
        let written: Vec<_> = handed.messages.drain(..count).collect();
        written.into_iter().for_each(|(message, _)| self.depart(message));
        self.topic.written(self.now_ms, consumer(id), count as u32);
    }

    fn settled(&mut self, id: u32, place: usize) {
        let Some(handed) = self.handed.get_mut(&id) else { return };
        let Some((message, delivery)) = handed.messages.get(place) else { return };
        if delivery.is_acknowledged {
            let (message, number) = (*message, delivery.number);
            handed.messages.remove(place);
            self.depart(message);
            self.topic.settled(
                self.now_ms,
                consumer(id),
                &[number, number, MessageNumber(u64::MAX)],
            );
        }
    }

    /// A consumer stops consuming: unwritten messages stay with it, unacknowledged ones return to the topic.
    fn leave(&mut self, id: u32) {
        let has_left = self.topic.leave(consumer(id));
        if has_left && self.handed.get(&id).is_some_and(|handed| handed.acknowledges) {
            self.give_back(id);
        }
    }

    /// A consumer is gone: its unwritten messages return to the topic.
    fn gone(&mut self, id: u32) {
        self.give_back(id);
        self.topic.gone(consumer(id));
    }

    fn give_back(&mut self, id: u32) {
        let Handed { acknowledges, messages } = self.handed.remove(&id).unwrap_or_default();
        let messages = messages.into_iter().map(|(message, _)| message);
        if acknowledges {
            self.left.extend(messages.clone().map(|message| message.number));
        }
        self.waiting.extend(messages);
    }

    /// Does what the topic wants done, and looks whether all is as it should be.
    fn follow(&mut self) {
        self.topic.check();
        while let Some(effect) = self.poll_effect() {
            match effect {
                Effect::Deliver(to, delivery) => self.deliver(to.connection.index, delivery),
                Effect::Grant(shard, credit) => self.grant(shard.index(), credit),
                // It is closed, as its shard would.
                Effect::Evict(id) => {
                    assert!(self.handed.len() > 1, "another would take");
                    self.gone(id.connection.index);
                }
                Effect::EventLeft(client) => {
                    let place = self.departed.iter().position(|departed| *departed == client);
                    self.departed
                        .swap_remove(place.expect("what has not left is not said to have"));
                }
                Effect::EventStored(client, receipt) => {
                    assert_eq!(self.unconfirmed, [(client, receipt)], "at once, and once");
                    self.unconfirmed.clear();
                }
                Effect::Expired(..) | Effect::Bury { .. } => panic!("there are no leases"),
                Effect::RoomForPush | Effect::Stored(_) | Effect::DeadStored(_) => {
                    panic!("no back end pushes")
                }
                Effect::Recall(shard, most) => self.recalled[shard.index()] = Some(most),
                Effect::Refuse(shard) => {
                    assert_eq!(self.when_full, WhenFull::Close);
                    assert!(
                        self.wanting[shard.index()].take().is_some(),
                        "only who asks is refused"
                    );
                }
            }
        }
        assert!(self.unconfirmed.is_empty(), "each receipt comes at once");
        self.topic.check();
        self.check();
    }

    fn poll_effect(&mut self) -> Option<Effect> {
        loop {
            if let Some(effect) = self.topic.poll_effect() {
                return Some(effect);
            }
            if !self.topic.poll_unfinished() {
                return None;
            }
            self.topic.handle_turn(self.now_ms);
            self.drop_oldest();
        }
    }

    fn deliver(&mut self, to: u32, delivery: Delivery) {
        let message = Pushed::of(&delivery.frame);
        let at = self.waiting.iter().position(|waiting| *waiting == message);
        self.waiting.swap_remove(at.expect("a message is given once, and only if it was pushed"));
        let is_earlier = |other: &Pushed| other.client == message.client && *other < message;
        assert!(!self.waiting.iter().any(is_earlier), "an earlier one of its client still waits");
        for (&id, handed) in &self.handed {
            let has = handed.messages.iter().any(|(other, _)| other.client == message.client);
            assert!(id == to || !has, "{id} has some of this client's");
        }
        assert_eq!(delivery.is_redelivered, self.left.contains(&message.number));
        let handed = self.handed.get_mut(&to).expect("only consumers get messages");
        assert_eq!(delivery.is_acknowledged, handed.acknowledges);
        assert!(handed.messages.iter().map(|(m, _)| m.bytes).sum::<usize>() < WINDOW_BYTES);
        assert!(!handed.acknowledges || handed.messages.len() < UNSETTLED_MAX);
        handed.messages.push_back((message, delivery));
    }

    fn grant(&mut self, shard: usize, credit: Credit) {
        self.credits[shard].messages += credit.messages;
        self.credits[shard].bytes += credit.bytes;
        // An empty topic takes a message that its bounds do not allow any more.
        if self.was_reloaded && self.topic.messages() == 0 {
            self.allowed.bytes = self.allowed.bytes.max(self.in_use().bytes);
        }
        let Credit { messages, bytes: credit_bytes } = self.credits[shard];
        if let Some((client, bytes)) = self.wanting[shard] {
            let covers = messages > 0 && credit_bytes >= bytes;
            // Otherwise the topic counted on credit that the shard has returned by now, and is asked again.
            assert!(covers || self.was_reloaded);
            if covers {
                self.wanting[shard] = None;
                self.push(shard, client, bytes);
            }
        }
    }

    /// Returns the credit that is held and lent.
    fn in_use(&self) -> Credit {
        let handed = self.handed.values().flat_map(|handed| &handed.messages);
        let held = || self.waiting.iter().chain(handed.clone().map(|(message, _)| message));
        let lent = |of: fn(&Credit) -> usize| self.credits.iter().map(of).sum::<usize>();
        Credit {
            messages: held().count() + lent(|credit| credit.messages),
            bytes: held().map(|message| message.bytes).sum::<usize>() + lent(|credit| credit.bytes),
        }
    }

    fn check(&mut self) {
        assert!(self.departed.is_empty(), "the topic says what has left");
        let handed = self.handed.values().map(|handed| handed.messages.len());
        let held = self.waiting.len() + handed.sum::<usize>();
        assert_eq!(self.topic.messages(), held, "nothing is lost or doubled");
        let Credit { messages, bytes } = self.in_use();
        assert!(messages <= self.allowed.messages && bytes <= self.allowed.bytes);
        self.allowed.messages = self.bounds.messages.max(messages);
        self.allowed.bytes = self.bounds.bytes.max(bytes);
    }

    /// All consumers go, and one that reads comes: it gets all that is left, and there is room
    /// for whoever asked.
    fn end(mut self) {
        (0..SHARDS).for_each(|shard| self.take(Step::Recalled(shard)));
        (0..4).for_each(|id| self.take(Step::Gone(id)));
        self.take(Step::Join { id: 9, acknowledges: false });
        self.take(Step::Start(9));
        while !self.handed[&9].messages.is_empty() {
            self.take(Step::Written(9, 1));
        }
        assert_eq!((self.topic.messages(), self.wanting), (0, [None; SHARDS]));
        // Once shards have pushed and heard what is recalled, the topic is within its bounds.
        (0..SHARDS).for_each(|shard| self.take(Step::Push { shard, client: 0, bytes: 8 }));
        (0..SHARDS).for_each(|shard| self.take(Step::Recalled(shard)));
        while !self.handed[&9].messages.is_empty() {
            self.take(Step::Written(9, 1));
        }
        let Credit { messages, bytes } = self.in_use();
        assert!(messages <= self.bounds.messages && bytes <= self.bounds.bytes);
        self.take(Step::Leave(9));
        assert_eq!(self.topic.messages(), 0);
    }
}

fn consumer(index: u32) -> BackendId {
    BackendId {
        at: ShardAddress { node: NODE, shard: ShardId(0) },
        connection: ConnectionKey { index, generation: 0 },
    }
}

/// The bytes of a server's frame as a client would send them.
fn masked(frame: &Frame, mask: [u8; 4]) -> Vec<u8> {
    let bytes = frame.bytes();
    let head_bytes = match bytes[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    let (head, payload) = bytes.split_at(head_bytes);
    let payload = payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key);
    let mut out = head.to_vec();
    out[1] |= 0x80;
    out.extend(mask);
    out.extend(payload);
    out
}

proptest! {
    #[test]
    fn a_topic_does_what_a_plain_model_of_it_does(
        (messages, bytes) in (1..24usize, 200..1200usize),
        when_full in when_full(),
        steps in vec(step(), 0..200),
    ) {
        let mut model = Model::new(Bounds { messages, bytes }, when_full);
        for step in steps {
            model.take(step);
        }
        model.end();
    }

    #[test]
    fn a_topic_whose_bounds_change_loses_nothing_and_is_soon_within_them(
        (bounds, when_full) in (bounds(), when_full()),
        before_the_first_message in proptest::option::of((bounds(), when_full())),
        steps in vec(step_with_reloads(), 0..100),
    ) {
        let mut model = Model::new(bounds, when_full);
        model.was_reloaded = true;
        if let Some((bounds, when_full)) = before_the_first_message {
            model.take(Step::Bounds(bounds, when_full));
        }
        for step in steps {
            model.take(step);
        }
        model.end();
    }

    #[test]
    fn a_message_that_is_encoded_compressed_masked_and_cut_is_read_again(
        text in ".{0,40}|[ab]{60,200}",
        bytes in prop_oneof![
            vec(any::<u8>(), 0..300),
            (any::<u8>(), 65_530..65_540usize).prop_map(|(byte, length)| vec![byte; length]),
        ],
        mask in any::<[u8; 4]>(),
        cut in any::<prop::sample::Index>(),
    ) {
        for (kind, data) in [(Kind::Text, text.as_bytes()), (Kind::Binary, &bytes[..])] {
            for window in [None, Some(Window::Small), Some(Window::Large)] {
                let frame = Frame::of(&Deflater::default().body(window, kind, data));
                let mut sent = masked(&frame, mask);
                let cut = cut.index(sent.len());
                let (mut first, mut second) = sent.split_at_mut(cut);
                let mut assembler = Assembler::default();
                let mut inflater = window.map(|_| Inflater::default());
                let read = assembler.read(&mut first, 1 << 17, inflater.as_mut());
                prop_assert!(read.unwrap().is_none());
                let received = assembler.read(&mut second, 1 << 17, inflater.as_mut()).unwrap();
                let Some(Received::Message(read, payload)) = received else {
                    panic!("not a message: {received:?}")
                };
                prop_assert_eq!((read, &payload[..]), (kind, data));
            }
        }
    }

    #[test]
    fn what_a_client_sends_is_read_by_back_ends_as_it_was(
        text in any::<String>(),
        bytes in vec(any::<u8>(), 0..200),
    ) {
        let data_of = |kind, data: &[u8]| {
            let mut json = Vec::new();
            api::put_message(&mut json, kind, data, Some("{\"a\":[1]}"));
            let value = simd_json::to_owned_value(&mut json).expect("it is JSON");
            assert_eq!(value["context"]["a"][0], 1);
            assert_eq!(value["frame"]["finish"], true);
            value["frame"]["data"].as_str().expect("data is a string").to_owned()
        };
        prop_assert_eq!(data_of(Kind::Text, text.as_bytes()), text);
        let binary = data_of(Kind::Binary, &bytes);
        prop_assert_eq!(STANDARD.decode(binary).expect("it is base64"), bytes);
    }
}
