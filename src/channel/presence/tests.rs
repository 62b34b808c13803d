use std::collections::{BTreeMap, BTreeSet};

use super::PresenceChange::{Joined, Left, Occupied, Vacated};
use super::*;
use crate::address::ShardId;

const GRACE_MS: u64 = 3000;

fn shard(node: u16, shard: u8) -> ShardAddress {
    ShardAddress { node: NodeId::new(node).expect("a small number"), shard: ShardId(shard) }
}

fn report(user: Option<&str>, clients: u32) -> PresenceReport {
    let user = user.map(Arc::from);
    PresenceReport { channel: "room".into(), user, clients, grace_ms: GRACE_MS, was_told: false }
}

fn changes(presence: &mut Presence) -> Vec<PresenceChange> {
    presence.check();
    std::iter::from_fn(|| presence.poll_change()).collect()
}

/// The changes after all graces until this time are over.
fn changes_at(presence: &mut Presence, now_ms: u64) -> Vec<PresenceChange> {
    while presence.expire(now_ms, 1) {}
    changes(presence)
}

fn joined(user: &str) -> PresenceChange {
    Joined("room".into(), user.into())
}

fn left(user: &str) -> PresenceChange {
    Left("room".into(), user.into())
}

#[test]
fn a_user_joins_with_the_first_client_and_leaves_after_the_last_has_been_gone_for_the_grace() {
    let mut presence = Presence::new(1000);
    let mut tell = |node, clients, now_ms| {
        let report = report(Some("ada"), clients);
        presence.report(shard(node, 0), report, now_ms).expect("there is room");
        changes_at(&mut presence, now_ms)
    };
    assert_eq!(tell(1, 1, 0), [Occupied("room".into()), joined("ada")]);
    for (node, clients, now_ms) in [(1, 2, 1), (2, 1, 2), (1, 0, 3), (1, 0, 4), (2, 0, 5)] {
        assert_eq!(tell(node, clients, now_ms), []);
    }
    // Back in time, and gone again.
    assert_eq!((tell(2, 1, 3004), tell(2, 0, 3010)), (vec![], vec![]));
    assert_eq!(presence.next_expiry(), Some(6010));
    assert_eq!(changes_at(&mut presence, 6009), []);
    assert_eq!(presence.users("room").count(), 1);
    assert_eq!(changes_at(&mut presence, 6010), [left("ada"), Vacated("room".into())]);
    assert_eq!((presence.next_expiry(), presence.users("room").count()), (None, 0));
}

#[test]
fn clients_without_a_user_occupy_a_channel_and_join_nothing() {
    let mut presence = Presence::new(1000);
    presence.report(shard(1, 0), report(None, 3), 0).expect("there is room");
    presence.report(shard(1, 0), report(Some("ada"), 1), 0).expect("there is room");
    assert_eq!(changes(&mut presence), [Occupied("room".into()), joined("ada")]);
    presence.report(shard(1, 0), report(Some("ada"), 0), 0).expect("there is room");
    assert_eq!(changes_at(&mut presence, GRACE_MS), [left("ada")]);
    presence.report(shard(1, 0), report(None, 0), GRACE_MS).expect("there is room");
    assert_eq!(changes_at(&mut presence, 2 * GRACE_MS), [Vacated("room".into())]);
}

#[test]
fn the_users_of_a_lost_node_leave_unless_they_are_elsewhere_too_or_come_back() {
    let mut presence = Presence::new(1000);
    for (node, user) in [(1, "ada"), (2, "ada"), (2, "bob"), (2, "eve")] {
        presence.report(shard(node, 0), report(Some(user), 1), 0).expect("there is room");
    }
    changes(&mut presence);
    presence.handle_node_lost(NodeId::new(2).expect("a small number"), 1000);
    presence.report(shard(1, 1), report(Some("eve"), 1), 2000).expect("there is room");
    assert_eq!(changes_at(&mut presence, 1000 + GRACE_MS), [left("bob")]);
}

#[test]
fn what_a_shard_does_not_repeat_is_gone_and_what_it_repeats_is_not_noticed() {
    let mut presence = Presence::new(1000);
    for (of, user) in [(0, "ada"), (0, "bob"), (1, "eve")] {
        presence.report(shard(1, of), report(Some(user), 1), 0).expect("there is room");
    }
    changes(&mut presence);
    presence.begin_anew(shard(1, 0));
    presence.report(shard(1, 0), report(Some("ada"), 2), 0).expect("there is room");
    presence.end_anew(shard(1, 0), 0);
    assert_eq!(changes_at(&mut presence, GRACE_MS), [left("bob")]);
}

#[test]
fn a_new_home_tells_nobody_of_users_that_an_earlier_one_has_told_of() {
    let mut presence = Presence::new(1000);
    let known = PresenceReport { was_told: true, ..report(Some("ada"), 1) };
    presence.report(shard(1, 0), known, 0).expect("there is room");
    presence.report(shard(1, 0), report(Some("bob"), 1), 0).expect("there is room");
    assert_eq!(changes(&mut presence), [joined("bob")]);
    presence.report(shard(1, 0), report(Some("ada"), 0), 0).expect("there is room");
    assert_eq!(changes_at(&mut presence, GRACE_MS), [left("ada")]);
}

#[test]
fn numbers_are_bounded_and_those_that_are_known_still_change() {
    let mut presence = Presence::new(10);
    for user in 0..10 {
        let report = report(Some(&user.to_string()), 1);
        assert_eq!(presence.report(shard(1, 0), report, 0), Ok(()));
    }
    assert_eq!(presence.report(shard(1, 0), report(Some("x"), 1), 0), Err(TooManyPresent));
    assert_eq!(presence.report(shard(1, 0), report(Some("x"), 0), 0), Ok(()));
    assert_eq!(presence.report(shard(1, 0), report(Some("7"), 0), 0), Ok(()));
    assert_eq!(presence.report(shard(1, 0), report(Some("x"), 1), 0), Ok(()));
}

/// Numbers from a seed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        crate::address::placement::mix(self.0) % end
    }
}

/// What clients there are, by node and shard, channel and user; and who was told to be there.
#[derive(Default)]
struct World {
    clients: BTreeMap<(u16, u8, u64, Option<u64>), u32>,
    present: BTreeSet<(Arc<str>, Arc<str>)>,
    occupied: BTreeSet<Arc<str>>,
}

impl World {
    /// Notes what was told. Nobody joins twice or leaves twice, and nobody is in a channel that is not occupied.
    fn hear(&mut self, presence: &mut Presence) {
        for change in changes(presence) {
            match change {
                Occupied(channel) => assert!(self.occupied.insert(channel)),
                Joined(channel, user) => {
                    assert!(self.occupied.contains(&channel));
                    assert!(self.present.insert((channel, user)));
                }
                Left(channel, user) => assert!(self.present.remove(&(channel, user))),
                Vacated(channel) => {
                    assert!(self.present.iter().all(|(of, _)| *of != channel));
                    assert!(self.occupied.remove(&channel));
                }
            }
        }
    }

    /// Everybody who is there was told to be, and nobody else.
    fn check(&self, seed: u64) {
        let there = self.clients.iter().filter(|(_, clients)| **clients > 0);
        let (mut present, mut occupied) = (BTreeSet::new(), BTreeSet::new());
        for ((_, _, channel, user), _) in there {
            let channel: Arc<str> = channel.to_string().into();
            occupied.insert(channel.clone());
            present.extend(user.map(|user| (channel, Arc::from(user.to_string()))));
        }
        assert_eq!((&self.present, &self.occupied), (&present, &occupied), "seed {seed}");
    }
}

#[test]
fn whatever_happens_everybody_who_is_there_was_told_to_be_and_nobody_else() {
    for seed in 0..500 {
        let (mut random, mut presence, mut world) =
            (Random(seed), Presence::new(1000), World::default());
        let mut now_ms = 0;
        for _ in 0..200 {
            now_ms += random.below(2000);
            let (node, of) = (random.below(3) as u16, random.below(2) as u8);
            let told = |key: (u16, u8, u64, Option<u64>), clients: u32| PresenceReport {
                channel: key.2.to_string().into(),
                user: key.3.map(|user| user.to_string().into()),
                clients,
                grace_ms: GRACE_MS,
                was_told: false,
            };
            match random.below(20) {
                // A node is lost with all its clients.
                0 => {
                    world.clients.retain(|key, _| key.0 != node);
                    presence.handle_node_lost(NodeId::new(node).expect("small"), now_ms);
                }
                // Changes of a shard were lost with a session. It reports anew.
                1 => {
                    world
                        .clients
                        .retain(|key, _| (key.0, key.1) != (node, of) || random.below(2) == 0);
                    presence.begin_anew(shard(node, of));
                    for (key, clients) in &world.clients {
                        if (key.0, key.1) == (node, of) {
                            let report = told(*key, *clients);
                            presence
                                .report(shard(node, of), report, now_ms)
                                .expect("there is room");
                        }
                    }
                    presence.end_anew(shard(node, of), now_ms);
                }
                _ => {
                    let user = Some(random.below(4)).filter(|user| *user > 0);
                    let key = (node, of, random.below(2), user);
                    let clients = random.below(3) as u32;
                    world.clients.insert(key, clients);
                    presence
                        .report(shard(node, of), told(key, clients), now_ms)
                        .expect("there is room");
                }
            }
            presence.expire(now_ms, random.below(4) as usize);
            world.hear(&mut presence);
        }
        while presence.expire(now_ms + GRACE_MS, 100) {}
        world.hear(&mut presence);
        world.check(seed);
    }
}
