//! What one back end can make of one turn of a shard. A shard is a value here: no socket, no clock.

#[path = "support/shard.rs"]
mod shard_value;

use std::sync::Arc;

use gridcast::address::ShardId;
use gridcast::shard::settings::{Edge, Settings};
use gridcast::shard::{Listener, Now, Shard};
use shard_value::{call, upgraded};

const NOW: Now = Now { ms: 0, us: 0, unix_ms: 1_700_000_000_000 };

/// Subscribers of the channel: one slice of a walk reaches them all.
const CLIENTS: u64 = 1000;

const PUBLISHES: u64 = 200;

const PUBLISH: &str = r#"{"m":"mesh.publish","p":{"c":"a","d":"b"},"i":1}"#;

/// The bound on what a turn reaches, and the publish that meets it.
const REACHED_MAX: u64 = 33 * 1024;

#[test]
fn publishes_that_came_at_once_are_done_over_several_turns_and_all_done() {
    let mut shard = Shard::new(ShardId(0), &settings(), NOW);
    for _ in 0..CLIENTS {
        upgraded(&mut shard, NOW, Listener::Edge(0), "/ws?channels=a");
    }
    let back_end = upgraded(&mut shard, NOW, Listener::Api, "/ws/v1");
    shard.handle_turn(NOW);
    shard.handle_bytes(NOW, back_end, &mut call(PUBLISH).repeat(PUBLISHES as usize));

    let (mut turns, mut before) = (0, 0);
    loop {
        let delivered = shard.counters().delivered;
        assert!(delivered - before <= REACHED_MAX, "a turn reached {}", delivered - before);
        if shard.poll_timeout() != Some(0) {
            break;
        }
        before = delivered;
        shard.handle_turn(NOW);
        turns += 1;
    }
    assert_eq!(shard.counters().delivered, CLIENTS * PUBLISHES);
    assert!(turns > 1, "it was one turn");
}

fn settings() -> Settings {
    let routes = vec![Arc::new(shard_value::route())];
    Settings { edges: vec![Edge { port: 6790, routes }], ..shard_value::settings() }
}
