//! Groups, leases, refusals, delays, dead messages and old messages.

use super::*;

const ACK_US: u64 = ACK_S_DEFAULT * 1_000_000;
const POLICY: Policy = Policy { ack_us: ACK_US, tries: 0, age_max_us: 0 };

fn grouped(messages: usize, when_full: WhenFull) -> Topic {
    topic(messages, when_full).with_groups(&["billing".into()])
}

fn consumes(topic: &mut Topic, index: u32, group: Option<&str>, unsettled_max: usize) {
    let group = group.map(Arc::from);
    let unsettled_max = Some(unsettled_max);
    let terms = Terms { pop: PopId(1), group, window_bytes: 1 << 16, unsettled_max };
    topic.join(0, consumer(index), &terms).expect("the group exists");
    topic.start(0, consumer(index));
}

/// The consumer, the message, its number and whether it is marked, of each delivery.
fn handed(topic: &mut Topic) -> Vec<(u32, u64, MessageNumber, bool)> {
    let delivery = |effect| match effect {
        Effect::Deliver(to, delivery) => {
            let message = number(&delivery.frame);
            Some((to.connection.index, message, delivery.number, delivery.is_redelivered))
        }
        _ => None,
    };
    effects(topic).into_iter().filter_map(delivery).collect()
}

fn short(handed: &[(u32, u64, MessageNumber, bool)]) -> Vec<(u32, u64, bool)> {
    handed.iter().map(|&(to, message, _, marked)| (to, message, marked)).collect()
}

#[test]
fn every_group_gets_every_message_and_its_room_is_free_after_the_last_group() {
    let mut topic = grouped(8, WhenFull::Hold);
    consumes(&mut topic, 1, None, 9);
    push(&mut topic, 1, 1);
    push(&mut topic, 1, 2);
    let first = handed(&mut topic);
    assert_eq!(short(&first), [(1, 1, false), (1, 2, false)]);
    topic.settled(0, consumer(1), &[first[0].2, first[1].2]);
    assert_eq!(topic.messages(), 2, "the other group has not settled them");
    consumes(&mut topic, 2, Some("billing"), 9);
    let second = handed(&mut topic);
    assert_eq!(short(&second), [(2, 1, false), (2, 2, false)]);
    topic.settled(0, consumer(2), &[second[1].2]);
    topic.check();
    assert_eq!(topic.messages(), 1);
    topic.settled(0, consumer(2), &[second[0].2]);
    topic.check();
    assert_eq!(topic.messages(), 0);
}

#[test]
fn a_report_counts_the_consumers_of_its_own_node_and_what_is_taken_is_in_flight() {
    let mut topic = grouped(8, WhenFull::Hold);
    let at = ShardAddress { node: NodeId::new(2).unwrap(), shard: ShardId(0) };
    let elsewhere = BackendId { at, ..consumer(1) };
    topic.join(0, elsewhere, &PLAIN).unwrap();
    consumes(&mut topic, 2, Some("billing"), 2);
    (1..=3).for_each(|message| push(&mut topic, 1, message));
    let taken = handed(&mut topic);
    topic.end_take(0, consumer(2), &[taken[0].2]);
    consumes(&mut topic, 3, Some("billing"), 1);
    let report = topic.report("t", 0);
    let figures = report.groups.iter().map(|group| {
        let name = group.name.as_deref();
        (name, group.backlog, group.in_flight, group.consumers)
    });
    let expected = [(None, 3, 0, 0), (Some("billing"), 3, 1, 1)];
    assert_eq!((figures.collect::<Vec<_>>(), report.consumers), (expected.into(), 1));
}

/// For how long each group has finished nothing, at a time in milliseconds.
fn stalled_ms(topic: &Topic, now_ms: u64) -> Vec<u64> {
    topic.report("t", now_ms * 1000).groups.iter().map(|group| group.stalled_ms).collect()
}

#[test]
fn a_report_tells_for_how_long_no_message_in_flight_was_finished() {
    let mut topic = grouped(8, WhenFull::Hold);
    consumes(&mut topic, 1, None, 9);
    consumes(&mut topic, 2, Some("billing"), 9);
    assert_eq!(stalled_ms(&topic, 5_000), [0, 0], "none is in flight");
    topic.push(5_000_000, FEEDER, event(1, 1));
    topic.push(6_000_000, FEEDER, event(2, 2));
    let first = handed(&mut topic);
    assert_eq!(stalled_ms(&topic, 8_000), [3_000, 3_000]);
    topic.settled(9_000_000, consumer(1), &[first[0].2]);
    assert_eq!(stalled_ms(&topic, 10_000), [1_000, 5_000], "one of two is finished");
    topic.settled(11_000_000, consumer(1), &[first[2].2]);
    assert_eq!(stalled_ms(&topic, 12_000), [0, 7_000]);
}

#[test]
fn a_message_that_comes_again_counts_as_unfinished_from_the_first_time() {
    let mut topic = topic(16, WhenFull::Hold);
    topic.set_policy(POLICY);
    consumes(&mut topic, 1, None, 9);
    push(&mut topic, 1, 1);
    handed(&mut topic);
    topic.handle_timeout(ACK_US);
    topic.handle_turn(ACK_US);
    let again = handed(&mut topic);
    assert_eq!(short(&again), [(1, 1, true)], "the only consumer gets it again");
    let ack_ms = ACK_US / 1000;
    assert_eq!(stalled_ms(&topic, ack_ms + 1_000), [ack_ms + 1_000]);
    // An acknowledgement ends that, for later messages too.
    topic.settled(ACK_US + 2_000_000, consumer(1), &[again[0].2]);
    topic.push(ACK_US + 3_000_000, FEEDER, event(1, 2));
    assert_eq!(stalled_ms(&topic, ack_ms + 4_000), [1_000]);
}

#[test]
fn a_message_that_was_taken_is_unfinished_until_it_is_acknowledged() {
    let mut topic = topic(16, WhenFull::Hold);
    consumes(&mut topic, 1, None, 9);
    (1..=2).for_each(|message| push(&mut topic, 1, message));
    let taken = handed(&mut topic);
    topic.end_take(2_000_000, consumer(1), &[taken[0].2, taken[1].2]);
    assert_eq!(stalled_ms(&topic, 5_000), [3_000]);
    assert_eq!(topic.settle_taken(6_000_000, &[(PopId(1), taken[0].2)], None), []);
    assert_eq!(stalled_ms(&topic, 8_000), [2_000]);
    topic.settle_taken(9_000_000, &[(PopId(1), taken[1].2)], None);
    assert_eq!(stalled_ms(&topic, 10_000), [0]);
}

#[test]
fn a_group_that_is_not_configured_is_refused() {
    let mut topic = grouped(8, WhenFull::Hold);
    let terms = Terms { group: Some("audit".into()), ..PLAIN };
    assert_eq!(topic.join(0, consumer(1), &terms), Err(JoinError::UnknownGroup));
    consumes(&mut topic, 1, Some("billing"), 1);
    assert_eq!(topic.join(0, consumer(1), &PLAIN), Err(JoinError::Repeated));
}

#[test]
fn a_full_topic_drops_its_oldest_from_all_groups() {
    let mut topic = grouped(4, WhenFull::DropOldest);
    (0..100).for_each(|message| push(&mut topic, message % 3, message));
    topic.check();
    assert!(topic.messages() <= 4 && topic.take_dropped() == 100 - topic.messages() as u64);
    consumes(&mut topic, 1, None, 9);
    consumes(&mut topic, 2, Some("billing"), 9);
    let handed = handed(&mut topic);
    let of = |index| handed.iter().filter(|h| h.0 == index).map(|h| h.1).collect::<Vec<_>>();
    assert_eq!(of(1), of(2));
    assert_eq!(of(1).last(), Some(&99));
}

#[test]
fn messages_of_a_left_group_are_written_before_those_of_the_next() {
    let mut topic = grouped(16, WhenFull::Hold);
    joined(&mut topic, 1, PLAIN);
    (0..3).for_each(|message| push(&mut topic, 1, message));
    assert_eq!(delivered(&mut topic).len(), 3);
    assert!(topic.leave(consumer(1)));
    let terms = Terms { pop: PopId(2), group: Some("billing".into()), ..PLAIN };
    joined(&mut topic, 1, terms);
    assert_eq!(delivered(&mut topic).len(), 3);
    topic.written(0, consumer(1), 4);
    topic.check();
    assert_eq!(topic.messages(), 2, "of one message both groups have got all");
    topic.written(0, consumer(1), 2);
    assert_eq!(topic.messages(), 0);
}

#[test]
fn a_message_that_is_not_acknowledged_in_time_goes_to_another_consumer_ahead_of_later_ones() {
    let mut topic = topic(16, WhenFull::Hold);
    topic.set_policy(POLICY);
    consumes(&mut topic, 1, None, 1);
    push(&mut topic, 1, 1);
    let first = handed(&mut topic);
    assert_eq!(short(&first), [(1, 1, false)]);
    consumes(&mut topic, 2, None, 9);
    push(&mut topic, 1, 2);
    topic.handle_timeout(ACK_US - 1);
    assert!(handed(&mut topic).is_empty(), "message 1 is with the first consumer");
    topic.handle_timeout(ACK_US);
    let found = effects(&mut topic);
    assert!(found.iter().any(|effect| matches!(
        effect,
        Effect::Expired(id, numbers) if *id == consumer(1) && *numbers == [first[0].2]
    )));
    let delivered = found.into_iter().filter_map(|effect| match effect {
        Effect::Deliver(to, delivery) => Some((to.connection.index, number(&delivery.frame))),
        _ => None,
    });
    assert_eq!(delivered.collect::<Vec<_>>(), [(2, 1), (2, 2)]);
    // The late acknowledgement does not settle what another consumer has.
    topic.settled(ACK_US, consumer(1), &[first[0].2]);
    assert_eq!(topic.messages(), 2);
}

#[test]
fn a_consumer_that_was_late_gets_messages_again() {
    let mut topic = topic(16, WhenFull::Hold);
    topic.set_policy(POLICY);
    consumes(&mut topic, 1, None, 1);
    push(&mut topic, 1, 1);
    assert_eq!(short(&handed(&mut topic)), [(1, 1, false)]);
    topic.handle_timeout(ACK_US);
    assert_eq!(short(&handed(&mut topic)), [(1, 1, true)], "there is no other");
}

#[test]
fn a_refused_message_holds_back_later_ones_of_its_client_until_its_delay_is_over() {
    let mut topic = topic(16, WhenFull::Hold);
    consumes(&mut topic, 1, None, 9);
    push(&mut topic, 1, 1);
    let first = handed(&mut topic);
    topic.refused(0, consumer(1), &[first[0].2], 1000);
    push(&mut topic, 1, 2);
    push(&mut topic, 2, 3);
    assert_eq!(short(&handed(&mut topic)), [(1, 3, false)]);
    topic.handle_timeout(999);
    assert!(handed(&mut topic).is_empty());
    assert!(topic.needs_checks());
    topic.handle_timeout(1000);
    assert_eq!(short(&handed(&mut topic)), [(1, 1, true), (1, 2, false)]);
}

#[test]
fn a_refused_message_without_a_delay_comes_again_at_once() {
    let mut topic = topic(16, WhenFull::Hold);
    consumes(&mut topic, 1, None, 1);
    push(&mut topic, 1, 1);
    push(&mut topic, 1, 2);
    let first = handed(&mut topic);
    topic.refused(0, consumer(1), &[first[0].2], 0);
    assert_eq!(short(&handed(&mut topic)), [(1, 1, true)]);
}

/// The messages for the dead topic, each with its tries and why it goes there.
fn buried(topic: &mut Topic) -> Vec<(u64, u16, &'static str)> {
    let dead = |effect| match effect {
        Effect::Bury { frame, tries, why, .. } => Some((number(&frame), tries, why)),
        _ => None,
    };
    effects(topic).into_iter().filter_map(dead).collect()
}

#[test]
fn a_message_that_was_handed_out_too_often_goes_to_the_dead_topic_and_the_next_goes_on() {
    let mut topic = topic(16, WhenFull::Hold);
    topic.set_policy(Policy { tries: 2, ..POLICY });
    consumes(&mut topic, 1, None, 1);
    push(&mut topic, 1, 1);
    push(&mut topic, 1, 2);
    let first = handed(&mut topic);
    topic.refused(0, consumer(1), &[first[0].2], 0);
    assert_eq!(short(&handed(&mut topic)), [(1, 1, true)]);
    topic.handle_timeout(ACK_US);
    assert_eq!(buried(&mut topic), [(1, 2, "not acknowledged")]);
    assert_eq!(topic.messages(), 2, "the dead topic has not taken it");
    topic.buried(true);
    topic.check();
    assert_eq!(topic.messages(), 1);
}

#[test]
fn messages_wait_while_the_dead_topic_is_full() {
    let mut topic = topic(16, WhenFull::Hold);
    topic.set_policy(Policy { tries: 1, ..POLICY });
    consumes(&mut topic, 1, None, 9);
    (1..=2).for_each(|message| push(&mut topic, message, message));
    let numbers: Vec<_> = handed(&mut topic).iter().map(|handed| handed.2).collect();
    topic.refused(0, consumer(1), &numbers, 0);
    assert_eq!(buried(&mut topic), [(1, 1, "nack")], "one at a time");
    topic.buried(false);
    assert_eq!((buried(&mut topic), topic.messages()), (vec![], 2));
    topic.handle_timeout(0);
    assert_eq!(buried(&mut topic), [(1, 1, "nack")]);
    topic.buried(true);
    assert_eq!(buried(&mut topic), [(2, 1, "nack")]);
    topic.buried(true);
    assert_eq!(topic.messages(), 0);
}

#[test]
fn a_full_topic_takes_no_message_without_credit() {
    let mut topic = topic(4, WhenFull::Hold);
    let taken = (0..9).filter(|&message| topic.offer(0, event(1, message))).count();
    topic.check();
    // The rest is lent to the shard that feeds the topic.
    assert_eq!((taken, topic.messages()), (3, 3));
}

#[test]
fn a_delayed_message_takes_room_at_once_and_comes_when_it_is_due() {
    let mut topic = topic(4, WhenFull::Hold);
    joined(&mut topic, 1, PLAIN);
    assert!(topic.offer_delayed(2000, event(1, 1)) && topic.offer_delayed(1000, event(1, 2)));
    assert!(topic.offer(0, event(1, 3)) && !topic.offer_delayed(1000, event(1, 4)));
    topic.handle_timeout(999);
    assert_eq!(delivered(&mut topic), [(1, 3)]);
    topic.written(999, consumer(1), 1);
    assert!(topic.needs_checks() && !topic.has_work(), "a shutdown does not wait for them");
    topic.handle_timeout(1000);
    assert_eq!(delivered(&mut topic), [(1, 2)]);
    topic.handle_timeout(2000);
    assert_eq!(delivered(&mut topic), [(1, 1)]);
    topic.written(2000, consumer(1), 2);
    assert_eq!(topic.messages(), 0);
}

#[test]
fn back_ends_and_feeders_get_room_in_turn() {
    let mut topic = topic(2, WhenFull::Hold);
    (0..2).for_each(|message| push(&mut topic, 1, message));
    assert!(topic.wait_for_room(8));
    topic.want_credit(FEEDER, 8);
    assert!(topic.has_waiting());
    joined(&mut topic, 1, Terms { window_bytes: 1, ..PLAIN });
    effects(&mut topic);
    let room = |topic: &mut Topic| -> Vec<&'static str> {
        topic.written(0, consumer(1), 1);
        let names = effects(topic).into_iter().filter_map(|effect| match effect {
            Effect::RoomForPush => Some("push"),
            Effect::Grant(FEEDER, _) => Some("feeder"),
            _ => None,
        });
        names.collect()
    };
    assert_eq!(room(&mut topic), ["push"]);
    topic.want_credit(FEEDER, 8);
    assert!(effects(&mut topic).is_empty(), "the room is kept until it is taken");
    assert!(topic.offer(0, event(2, 2)));
    topic.end_waiting();
    assert!(topic.wait_for_room(8));
    assert_eq!(room(&mut topic), ["feeder"], "the next push waits behind the feeder");
    topic.end_waiting();
    assert!(!topic.has_waiting());
}

#[test]
fn messages_that_wait_too_long_are_dropped_from_all_groups_and_counted() {
    let mut topic = grouped(16, WhenFull::Hold);
    topic.set_policy(Policy { age_max_us: 1000, ..POLICY });
    assert!(topic.needs_checks());
    topic.push(0, FEEDER, event(1, 1));
    topic.push(500, FEEDER, event(1, 2));
    topic.handle_timeout(999);
    assert_eq!((topic.take_aged(), topic.messages()), (0, 2));
    topic.handle_timeout(1000);
    topic.check();
    assert_eq!((topic.take_aged(), topic.messages()), (1, 1));
}
