//! Grids whose network breaks: each node in a network namespace of its own, all on one bridge. To be
//! run by `tests/netns/run`; without it, they are skipped.
//!
//! Promises about time are asserted with room for a busy machine; what was measured is printed.

#![forbid(unsafe_code)]

mod net;
#[path = "../support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use serde_json::json;

use net::Net;
use support::{Server, Socket, states, until_within};

/// The longest call. Promised: a call is answered within 2 s, and a fault is over within 5 s.
const CALL_MAX: Duration = Duration::from_secs(4);
const RIGHT_MAX: Duration = Duration::from_secs(50);

/// Subscribers of `news` on each node: each sum of some of them tells which ones it is of.
const SUBSCRIBERS: [usize; 3] = [1, 2, 4];
const ALL: [u64; 3] = [7; 3];

/// Three nodes, their subscribers, and a client of each with its id.
struct Scene {
    subscribers: Vec<Socket>,
    clients: Vec<(Socket, String)>,
    // Goes last: nodes that end wait for those that are connected.
    net: Net,
}

impl Scene {
    /// `None`, with a word, where there can be no namespaces.
    fn new() -> Option<Self> {
        let net = Net::new(SUBSCRIBERS.len())?;
        let mut subscribers = Vec::new();
        for (index, count) in SUBSCRIBERS.into_iter().enumerate() {
            let subscribe = |node: &Server| node.device("/plain?channels=news");
            subscribers.extend((0..count).map(|_| net.at(index, subscribe)));
        }
        let clients = (0..SUBSCRIBERS.len()).map(|index| net.at(index, Server::client)).collect();
        let scene = Self { subscribers, clients, net };
        scene.becomes_right("start", ALL);
        Some(scene)
    }

    /// Each node publishes until it reaches so many subscribers, and nobody fails. No call takes long.
    #[track_caller]
    fn becomes_right(&self, event: &str, reached: [u64; 3]) {
        let (start, mut longest) = (Instant::now(), Duration::ZERO);
        for (index, reached) in reached.into_iter().enumerate() {
            until_within(RIGHT_MAX, || {
                let asked = Instant::now();
                let counts = self.net.at(index, |node| node.publish("news", "x"));
                longest = longest.max(asked.elapsed());
                counts == (reached, 0)
            });
        }
        eprintln!("netns: {event}: right after {:?}, longest call {longest:?}", start.elapsed());
        assert!(longest < CALL_MAX, "{longest:?}");
    }

    /// A back end of one node reaches the clients of these nodes, and what they send reaches it; those
    /// of others it is told in time that it does not reach.
    #[track_caller]
    fn reaches(&mut self, from: usize, within_reach: &[usize]) {
        let mut backend = self.net.at(from, Server::backend);
        let is_within_reach = |index| within_reach.contains(&index);
        for (index, (client, id)) in self.clients.iter_mut().enumerate() {
            let fresh = format!("{from} to {index}");
            let start = Instant::now();
            let subscribe = json!({ "c": id, "f": "subscribe", "a": [fresh] });
            let answer = backend.ask("conn.call", &subscribe);
            assert_eq!(answer["E"].is_null(), is_within_reach(index), "{answer}");
            let answer = backend.ask("mesh.send", &json!({ "c": id, "d": fresh }));
            assert_eq!(answer["E"].is_null(), is_within_reach(index), "{answer}");
            if is_within_reach(index) {
                assert_eq!(backend.publish(&fresh, "published"), (1, 0));
                assert_eq!([client.text(), client.text()], [fresh, "published".into()]);
            }
            assert!(start.elapsed() < CALL_MAX * 3, "{:?}", start.elapsed());
        }
        let mut consumer = self.net.at(from, |node| node.consumer("plain"));
        for &index in within_reach {
            let mut feeder = self.net.at(index, |node| node.device("/plain"));
            feeder.send_text("fed");
            assert_eq!(consumer.event()["n"], index + 1);
        }
    }

    /// All is as if nothing had been.
    #[track_caller]
    fn ends_whole(mut self, event: &str) {
        self.becomes_right(event, ALL);
        let all = [1, 2, 3].map(|id| (id, "up".to_owned()));
        let took =
            until_within(RIGHT_MAX, || (0..3).all(|index| self.net.at(index, states) == all));
        eprintln!("netns: {event}: all list all after {took:?} more");
        (0..3).for_each(|index| self.reaches(index, &[0, 1, 2]));
        assert_eq!(self.net.at(0, |node| node.publish("news", "last")), (7, 0));
        for subscriber in &mut self.subscribers {
            while subscriber.text() != "last" {}
        }
    }
}

#[test]
fn both_sides_of_a_partition_go_on_and_meet_again() {
    let Some(mut scene) = Scene::new() else { return };
    for other in [1, 2] {
        scene.net.cut(0, other);
        scene.net.cut(other, 0);
    }
    scene.becomes_right("node 1 | nodes 2 and 3", [1, 6, 6]);
    scene.reaches(0, &[0]);
    scene.reaches(1, &[1, 2]);
    scene.net.heal();
    scene.ends_whole("healed");
}

#[test]
fn nodes_of_which_one_does_not_hear_the_other_go_on_with_the_rest() {
    let Some(mut scene) = Scene::new() else { return };
    scene.net.cut(0, 1);
    scene.becomes_right("node 2 does not hear node 1", [5, 6, 7]);
    scene.reaches(0, &[0, 2]);
    scene.reaches(1, &[1, 2]);
    scene.reaches(2, &[0, 1, 2]);
    scene.net.heal();
    scene.ends_whole("it does again");
}

#[test]
fn a_node_whose_interface_goes_down_and_up_comes_back() {
    let Some(mut scene) = Scene::new() else { return };
    scene.net.unplug(2);
    scene.becomes_right("the interface of node 3 is down", [3, 3, 4]);
    scene.reaches(2, &[2]);
    scene.reaches(0, &[0, 1]);
    scene.net.plug(2);
    scene.ends_whole("it is up");
}

#[test]
fn a_short_break_of_the_network_loses_no_message() {
    let Some(mut scene) = Scene::new() else { return };
    scene.net.cut(0, 1);
    scene.net.cut(1, 0);
    // It waits until node 2 counts as silent, which is before its link counts as dead.
    let (took, failed) = scene.net.at(0, |node| node.publish("news", "during"));
    assert_eq!(took + failed, 7, "who did not answer counts as it did before");
    scene.net.heal();
    for subscriber in &mut scene.subscribers {
        while subscriber.text() != "during" {}
    }
    scene.ends_whole("a break of a second");
}
