//! The memory that peers can make a shard use. A shard is a value here: no socket, no clock.

#![forbid(unsafe_code)]

mod bounds;
#[path = "../support/shard.rs"]
mod shard_value;
mod shedding;

use std::sync::Arc;

use gridcast::message::ConnectionKey;
use gridcast::shard::settings::{EdgeSettings, RouteSettings, Settings};
use gridcast::shard::{Action, Now, Shard};
use shard_value::{bytes_of, call, poll_write};

const NOW: Now = Now { ms: 0, us: 0, unix_ms: 1_700_000_000_000 };

/// The limit of the outbound queue of a client or back end, in bytes.
const OUTBOUND_BYTES: usize = 1 << 20;

fn settings(shards: usize, outbound_bytes: usize) -> Settings {
    let route = RouteSettings { outbound_bytes, ..shard_value::route() };
    let edges = vec![EdgeSettings { proxy: None, port: 6790, routes: vec![Arc::new(route)] }];
    Settings { shards, edges, ..shard_value::settings() }
}

fn publish(data: &str) -> Vec<u8> {
    let json = format!(r#"{{"m":"mesh.publish","p":{{"c":"a","d":"{data}"}},"i":1}}"#);
    call(&json)
}

/// Writes all output of the back end; returns it. The output of the client stays in flight.
fn write_to(shard: &mut Shard, back_end: ConnectionKey) -> String {
    let mut text = Vec::new();
    while let Some((key, batch)) = poll_write(shard) {
        if key != back_end {
            continue;
        }
        let bytes = bytes_of(&batch);
        shard.handle_written(NOW, key, bytes.len(), true);
        text.extend(bytes);
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn is_open(shard: &mut Shard, key: ConnectionKey) -> bool {
    shard.inspect().is_receiving(key)
}

/// Returns the connections that the shard closes at once.
fn closed(shard: &mut Shard) -> Vec<ConnectionKey> {
    let mut closed = Vec::new();
    while let Some(action) = shard.poll_action() {
        if let Action::Close(key) = action {
            closed.push(key);
            shard.handle_closed(key);
        }
    }
    closed
}
