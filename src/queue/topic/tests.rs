//! The promises of a topic, with few consumers, clients and messages.

mod crashes;
mod disk;
mod groups;
mod sinks;

use super::*;
use crate::address::ShardAddress;
use crate::protocol::frame::Frame;

const NODE: NodeId = NodeId::new(1).unwrap();

const FEEDER: ShardId = ShardId(0);
const PLAIN: Terms =
    Terms { pop: PopId(1), group: None, window_bytes: 1 << 16, unsettled_max: None };
const ACKNOWLEDGED: Terms =
    Terms { pop: PopId(1), group: None, window_bytes: 1 << 16, unsettled_max: Some(2) };

fn topic(messages: usize, when_full: WhenFull) -> Topic {
    Topic::new(NODE, Bounds { messages, bytes: 1 << 20 }, when_full, 1)
}

fn consumer(index: u32) -> BackendId {
    let connection = crate::message::ConnectionKey { index, generation: 0 };
    BackendId { at: ShardAddress { node: NODE, shard: ShardId(0) }, connection }
}

fn frame(number: u64) -> Frame {
    Frame::from_encoded(&number.to_be_bytes())
}

fn number(frame: &Frame) -> u64 {
    u64::from_be_bytes(frame.bytes().try_into().unwrap())
}

/// Runs turns until nothing is left to do, and returns the effects.
fn effects(topic: &mut Topic) -> Vec<Effect> {
    while topic.poll_unfinished() {
        topic.handle_turn(0);
    }
    topic.check();
    std::iter::from_fn(|| topic.poll_effect()).collect()
}

/// The deliveries among the effects.
fn delivered(topic: &mut Topic) -> Vec<(u32, u64)> {
    let mut out = Vec::new();
    for effect in effects(topic) {
        if let Effect::Deliver(to, delivery) = effect {
            out.push((to.connection.index, number(&delivery.frame)));
        }
    }
    out
}

fn push(topic: &mut Topic, client: u64, message: u64) {
    if topic.held.room.wanted_by(FEEDER).messages > 0 {
        topic.want_credit(FEEDER, 8);
    }
    topic.push(0, FEEDER, event(client, message));
}

fn event(client: u64, message: u64) -> Event {
    let client = ClientId::from_value(client);
    Event::new(client, frame(message))
}

#[test]
fn a_request_that_crossed_a_grant_is_granted_no_more() {
    let bounds = Bounds { messages: 8, bytes: 1 << 20 };
    let mut topic = Topic::new(NODE, bounds, WhenFull::Hold, 2);
    topic.want_credit(FEEDER, 8);
    assert!(topic.poll_effect().is_none());
    topic.push(0, FEEDER, event(1, 1));
    topic.want_credit(FEEDER, 8);
    assert!(matches!(topic.poll_effect(), Some(Effect::Grant(FEEDER, _))));
}

#[test]
fn the_oldest_is_dropped_and_the_newest_stay() {
    let mut topic = topic(4, WhenFull::DropOldest);
    for message in 0..100 {
        push(&mut topic, message % 3, message);
    }
    topic.join(0, consumer(1), &PLAIN).unwrap();
    topic.start(0, consumer(1));
    assert_eq!(delivered(&mut topic), [(1, 96), (1, 97)]);
    topic.written(0, consumer(1), 2);
    assert_eq!(delivered(&mut topic), [(1, 98), (1, 99)]);
    assert_eq!((topic.take_dropped(), topic.take_dropped()), (96, 0));
}

fn joined(topic: &mut Topic, index: u32, terms: Terms) {
    topic.join(0, consumer(index), &terms).unwrap();
    topic.start(0, consumer(index));
}

#[test]
fn waits_count_from_the_arrival_of_messages() {
    let mut topic = topic(100, WhenFull::Hold);
    joined(&mut topic, 1, PLAIN);
    (0..3).for_each(|message| push(&mut topic, message, message));
    topic.written(70, consumer(1), 2);
    assert_eq!((topic.waits().count(), topic.waits().sum_us()), (2, 140));
    // A requeued message has waited since its arrival.
    topic.gone(consumer(1));
    joined(&mut topic, 2, ACKNOWLEDGED);
    delivered(&mut topic);
    topic.settled(100, consumer(2), &[MessageNumber(2)]);
    assert_eq!((topic.waits().count(), topic.waits().sum_us()), (3, 240));
}

#[test]
fn no_more_messages_than_the_window_are_unacknowledged() {
    let mut topic = topic(100, WhenFull::Hold);
    joined(&mut topic, 1, ACKNOWLEDGED);
    (0..5).for_each(|message| push(&mut topic, message, message));
    assert_eq!(delivered(&mut topic), [(1, 0), (1, 1)]);
    topic.settled(0, consumer(1), &[MessageNumber(1)]);
    assert_eq!(delivered(&mut topic), [(1, 2)]);
    topic.settled(0, consumer(1), &[MessageNumber(1), MessageNumber(77)]);
    assert_eq!(delivered(&mut topic), []);
    topic.settled(0, consumer(1), &[MessageNumber(0), MessageNumber(2)]);
    assert_eq!(delivered(&mut topic), [(1, 3), (1, 4)]);
    topic.settled(0, consumer(1), &[MessageNumber(3), MessageNumber(4)]);
    assert_eq!(topic.messages(), 0);
}

#[test]
fn unsettled_messages_go_to_another_consumer_and_are_marked() {
    let leaves = |topic: &mut Topic, id| assert!(topic.leave(id));
    for goes in [Topic::gone, leaves] {
        let mut topic = topic(100, WhenFull::Hold);
        joined(&mut topic, 1, ACKNOWLEDGED);
        (0..3).for_each(|message| push(&mut topic, 7, message));
        topic.settled(0, consumer(1), &[MessageNumber(0)]);
        delivered(&mut topic);
        joined(&mut topic, 2, ACKNOWLEDGED);
        goes(&mut topic, consumer(1));
        let mut marks = Vec::new();
        for effect in effects(&mut topic) {
            if let Effect::Deliver(to, Delivery { number, is_redelivered, .. }) = effect {
                marks.push((to.connection.index, number.0, is_redelivered));
            }
        }
        assert_eq!(marks, [(2, 1, true), (2, 2, true)]);
    }
}

#[test]
fn unwritten_messages_stay_with_a_consumer_that_returns_the_others() {
    let mut topic = topic(100, WhenFull::Hold);
    joined(&mut topic, 1, PLAIN);
    (0..2).for_each(|message| push(&mut topic, message, message));
    assert!(topic.leave(consumer(1)));
    joined(&mut topic, 1, Terms { pop: PopId(2), ..ACKNOWLEDGED });
    (2..4).for_each(|message| push(&mut topic, 1, message));
    topic.written(0, consumer(1), 1);
    assert_eq!(delivered(&mut topic), [(1, 0), (1, 1)], "the second may come back");
    assert!(topic.leave(consumer(1)));
    joined(&mut topic, 2, PLAIN);
    assert_eq!(delivered(&mut topic), [], "what came before of the client is not written");
    topic.written(0, consumer(1), 1);
    assert_eq!(delivered(&mut topic), [(2, 2), (2, 3)]);
}

#[test]
fn a_clients_messages_stay_in_order_when_their_consumer_dies() {
    let mut topic = topic(100, WhenFull::Hold);
    joined(&mut topic, 1, PLAIN);
    (0..4).for_each(|message| push(&mut topic, message % 2, message));
    topic.written(0, consumer(1), 1);
    delivered(&mut topic);
    topic.gone(consumer(1));
    push(&mut topic, 0, 4);
    joined(&mut topic, 2, PLAIN);
    assert_eq!(delivered(&mut topic), [(2, 1), (2, 2), (2, 3), (2, 4)]);
}

#[test]
fn a_stalled_consumer_is_replaced_and_finally_evicted() {
    let mut topic = topic(4000, WhenFull::Hold);
    joined(&mut topic, 1, PLAIN);
    joined(&mut topic, 2, PLAIN);
    for message in 0..3000 {
        push(&mut topic, message, message);
    }
    let second: Vec<_> = delivered(&mut topic).into_iter().filter(|(to, _)| *to == 2).collect();
    topic.written(STALLED_US / 2, consumer(2), second.len() as u32);
    let before = topic.messages();
    topic.handle_timeout(STALLED_US * 11 / 10);
    let taken = delivered(&mut topic);
    assert!(!taken.is_empty() && taken.iter().all(|(to, _)| *to == 2), "{before}");
    topic.handle_timeout(EVICTION_US);
    let evicted = std::iter::from_fn(|| topic.poll_effect())
        .any(|effect| matches!(effect, Effect::Evict(id) if id == consumer(1)));
    assert!(evicted);
}

#[test]
fn returning_earlier_messages_does_not_get_a_consumer_evicted() {
    let mut topic = topic(10, WhenFull::Hold);
    joined(&mut topic, 1, PLAIN);
    push(&mut topic, 1, 0);
    joined(&mut topic, 2, PLAIN);
    assert!(topic.leave(consumer(1)));
    joined(&mut topic, 1, Terms { pop: PopId(2), ..PLAIN });
    push(&mut topic, 1, 1);
    assert_eq!(delivered(&mut topic), [(1, 0)], "the first may come back, and goes before");
    topic.handle_timeout(STALLED_US);
    topic.returned(STALLED_US, consumer(1), MessageNumber(0), PopId(1));
    assert_eq!(delivered(&mut topic), [(2, 0), (2, 1)]);
    topic.handle_timeout(STALLED_US + EVICTION_US);
    assert!(topic.poll_effect().is_none(), "it has nothing that it does not take");
}

#[test]
fn no_consumer_is_evicted_while_all_are_stalled() {
    let mut topic = topic(64, WhenFull::Hold);
    let full = Terms { pop: PopId(1), group: None, window_bytes: 1, unsettled_max: None };
    (1..=2).for_each(|index| joined(&mut topic, index, full.clone()));
    (0..16).for_each(|message| push(&mut topic, message, message));
    [STALLED_US, EVICTION_US].iter().for_each(|&now_us| topic.handle_timeout(now_us));
    let mut effects = std::iter::from_fn(|| topic.poll_effect());
    assert!(!effects.any(|effect| matches!(effect, Effect::Evict(_))));
}

#[test]
fn a_consumer_that_returns_a_current_message_is_handed_nothing_before_its_next_pop() {
    let mut topic = topic(10, WhenFull::Hold);
    joined(&mut topic, 1, Terms { pop: PopId(1), ..PLAIN });
    (0..2).for_each(|message| push(&mut topic, 1, message));
    assert_eq!(delivered(&mut topic), [(1, 0), (1, 1)]);
    topic.returned(0, consumer(1), MessageNumber(0), PopId(1));
    topic.returned(0, consumer(1), MessageNumber(1), PopId(1));
    assert_eq!(delivered(&mut topic), [], "it has cancelled, and would give it back again");
    assert!(topic.leave(consumer(1)), "it was one until now");
    joined(&mut topic, 1, Terms { pop: PopId(2), ..PLAIN });
    assert_eq!(delivered(&mut topic), [(1, 0), (1, 1)]);
}

#[test]
fn a_lane_moves_to_another_consumer_only_when_none_of_it_is_in_flight() {
    let mut topic = topic(100, WhenFull::Hold);
    joined(&mut topic, 1, PLAIN);
    (0..20).for_each(|message| push(&mut topic, message, message));
    assert_eq!(delivered(&mut topic).len(), 20);
    joined(&mut topic, 2, PLAIN);
    (20..40).for_each(|message| push(&mut topic, message % 20, message));
    let stayed = delivered(&mut topic);
    assert!(stayed.iter().all(|(to, _)| *to == 1), "the first has a message of each client");
    topic.written(0, consumer(1), 20);
    let moved = delivered(&mut topic);
    assert!(!moved.is_empty() && moved.iter().all(|(to, _)| *to == 2), "{moved:?}");
    assert_eq!(stayed.len() + moved.len(), 20, "all are handed out");
}

#[test]
fn a_new_consumer_takes_its_share_of_the_clients_and_the_others_stay() {
    let mut topic = topic(1 << 16, WhenFull::Hold);
    let owners = |topic: &mut Topic| -> Vec<u32> {
        (0..4000).for_each(|client| push(topic, client, client));
        let mut owners = vec![0; 4000];
        for (to, client) in delivered(topic) {
            owners[client as usize] = to;
        }
        (1..=11).for_each(|index| topic.written(0, consumer(index), u32::MAX));
        owners
    };
    let wide = Terms { pop: PopId(1), group: None, window_bytes: 1 << 20, unsettled_max: None };
    (1..=10).for_each(|index| joined(&mut topic, index, wide.clone()));
    let before = owners(&mut topic);
    assert_eq!(owners(&mut topic), before, "the set is the same");
    joined(&mut topic, 11, wide);
    let after = owners(&mut topic);
    let moved: Vec<u32> =
        before.iter().zip(&after).filter(|(old, new)| old != new).map(|(_, new)| *new).collect();
    assert!(moved.iter().all(|&to| to == 11), "only the new one got clients");
    assert!((250..500).contains(&moved.len()), "{} of 4000 moved", moved.len());
    topic.gone(consumer(11));
    delivered(&mut topic);
    let again = owners(&mut topic);
    let stayed = after.iter().zip(&again).filter(|(old, _)| **old != 11);
    assert!(stayed.clone().count() > 3000 && { stayed }.all(|(old, new)| old == new));
}

#[test]
fn moving_many_messages_takes_several_turns() {
    let mut topic = topic(1 << 16, WhenFull::Hold);
    (0..10_000).for_each(|message| push(&mut topic, message % 5000, message));
    let wide = Terms { pop: PopId(1), group: None, window_bytes: 1 << 20, unsettled_max: None };
    (1..=100).for_each(|index| joined(&mut topic, index, wide.clone()));
    let of_a_turn = |topic: &mut Topic| {
        let asks = topic.poll_unfinished();
        if asks {
            topic.handle_turn(0);
        }
        topic.check();
        let effects = std::iter::from_fn(|| topic.poll_effect());
        asks.then(|| effects.filter(|effect| matches!(effect, Effect::Deliver(..))).count())
    };
    let turns: Vec<usize> = std::iter::from_fn(|| of_a_turn(&mut topic)).collect();
    assert!(turns.iter().all(|&handed| handed <= MOVED_PER_TURN), "{turns:?}");
    assert_eq!(turns.iter().sum::<usize>(), 10_000);
    topic.node_gone(NODE);
    let turns: Vec<usize> = std::iter::from_fn(|| of_a_turn(&mut topic)).collect();
    assert_eq!(turns.len(), 10, "what comes back does so in slices, too");
    joined(
        &mut topic,
        200,
        Terms { pop: PopId(1), group: None, window_bytes: 1 << 30, unsettled_max: Some(1 << 16) },
    );
    assert_eq!(delivered(&mut topic).len(), 10_000, "and none of it is lost");
}
