//! A publish asks only the shards of its node that may have subscribers.

#![forbid(unsafe_code)]

#[path = "support/shard.rs"]
mod shard_value;

use std::sync::Arc;

use gridcast::address::{IdLayout, IdSource, ShardId};
use gridcast::message::{ConnectionKey, FromShard};
use gridcast::shard::node_state::NodeState;
use gridcast::shard::settings::{EdgeSettings, Settings};
use gridcast::shard::{Listener, Now, Shard};
use shard_value::{call, upgraded};

const NOW: Now = Now { ms: 1_000_000, us: 1_000_000_000, unix_ms: 1_790_000_000_000 };
const SHARDS: usize = 3;

fn shards() -> Vec<Shard> {
    let edges = vec![EdgeSettings {
        proxy: None,
        port: 6790,
        routes: vec![Arc::new(shard_value::route())],
    }];
    let settings = Settings { shards: SHARDS, edges, ..shard_value::settings() };
    let state = Arc::new(NodeState::new(&settings, Arc::default()));
    let shard = |index| Shard::new(ShardId(index as u8), &settings, state.clone(), NOW);
    (0..SHARDS).map(shard).collect()
}

/// Returns the shards that are asked when a back end of the first shard makes these calls.
fn asked(shards: &mut [Shard], backend: ConnectionKey, json: &str) -> Vec<u8> {
    shards[0].handle_bytes(NOW, backend, &mut call(json));
    let messages = std::iter::from_fn(|| shards[0].poll_message());
    let shard = |message| match message {
        FromShard::Local(to, _) => to.0,
        FromShard::Mesh(_) => panic!("there is no mesh"),
    };
    messages.map(shard).collect()
}

const PUBLISH: &str = r#"{"m":"mesh.publish","p":{"c":"a","d":"x"},"i":1}"#;

#[test]
fn shards_without_subscribers_are_not_asked() {
    let mut shards = shards();
    let backend = upgraded(&mut shards[0], NOW, Listener::Api, "/ws/v1");
    assert!(asked(&mut shards, backend, PUBLISH).is_empty());
    upgraded(&mut shards[0], NOW, Listener::Edge(0), "/ws?channels=a");
    assert!(asked(&mut shards, backend, PUBLISH).is_empty());
    let client = upgraded(&mut shards[2], NOW, Listener::Edge(0), "/ws?channels=a,b");
    assert_eq!(asked(&mut shards, backend, PUBLISH), [2]);
    shards[2].handle_end(NOW, client, true);
    assert!(asked(&mut shards, backend, PUBLISH).is_empty());
}

#[test]
fn a_publish_after_an_unanswered_subscribe_asks_all_shards() {
    let mut shards = shards();
    let backend = upgraded(&mut shards[0], NOW, Listener::Api, "/ws/v1");
    let layout = IdLayout::new(SHARDS);
    let node = shard_value::settings().node;
    let client = IdSource::new(node, ShardId(2), layout, NOW.unix_ms).next(NOW.unix_ms);
    let client = client.expect("the first of its millisecond").value();
    let params = format!(r#"{{"c":"{client}","f":"subscribe","a":["a"]}}"#);
    let subscribe = format!(r#"{{"m":"conn.call","p":{params},"i":0}}"#);
    assert_eq!(asked(&mut shards, backend, &subscribe), [2]);
    assert_eq!(asked(&mut shards, backend, PUBLISH), [1, 2]);
}
