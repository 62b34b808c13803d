//! One shard with many clients and a back end that publishes to them, without a socket: what is to
//! be written counts as written at once.

use std::net::Ipv4Addr;
use std::sync::Arc;

use gridcast::message::ConnectionKey;
use gridcast::shard::settings::{EdgeSettings, Settings};
use gridcast::shard::{Batch, Listener, Now, Priority, Shard};

use super::shard_value;
use super::{client_frame, handshake, publish_call, publish_post};

const NOW: Now = Now { ms: 1_000_000, us: 1_000_000_000, unix_ms: 1_790_000_000_000 };

/// The shard, and what its back end sends.
pub struct Crowd {
    shard: Shard,
    backend: ConnectionKey,
    call: Vec<u8>,
    scratch: Vec<u8>,
}

impl Crowd {
    /// So many clients on the channel `all`, each on so many channels of its own besides. The back
    /// end publishes 128 bytes to `channel`, over and over.
    pub fn new(clients: usize, own_channels: usize, channel: &str) -> Self {
        let mut shard = shard_value::shard(&settings(), NOW);
        for number in 0..clients {
            let mut path = String::from("/ws?channels=all");
            for own in 0..own_channels {
                path += &format!(",{number}-{own}");
            }
            connect(&mut shard, Listener::Edge(0), &path);
        }
        let backend = connect(&mut shard, Listener::Api, "/ws/v1");
        let call = client_frame(1, publish_call(channel, 128).as_bytes());
        Self { shard, backend, scratch: call.clone(), call }
    }

    /// No clients. The back end publishes 128 bytes over HTTP, on a connection that stays.
    pub fn over_http() -> Self {
        let mut shard = shard_value::shard(&settings(), NOW);
        let backend = accept(&mut shard, Listener::Api);
        let call = publish_post("nobody's", 128).into_bytes();
        Self { shard, backend, scratch: call.clone(), call }
    }

    /// The same, but so many publishes at once.
    pub fn in_bursts(mut self, count: usize) -> Self {
        self.call = self.call.repeat(count);
        self.scratch = self.call.clone();
        self
    }

    /// The same, beside ten taps, of two other back ends, that match no client.
    pub fn beside_taps(mut self) -> Self {
        for (number, taps) in [8, 2].into_iter().enumerate() {
            let tapper = connect(&mut self.shard, Listener::Api, "/ws/v1");
            for tap in 0..taps {
                let params = format!("{{\"user\":\"{number}-{tap}\"}}");
                let start = format!("{{\"m\":\"tap.start\",\"p\":{params},\"i\":1}}");
                let mut frame = client_frame(1, start.as_bytes());
                self.shard.handle_bytes(NOW, tapper, &mut frame);
            }
        }
        settle(&mut self.shard);
        self
    }

    /// Publishes in one batch, until everything is written, answers included. Returns the number of writes.
    pub fn publish(&mut self) -> usize {
        self.scratch.copy_from_slice(&self.call);
        self.shard.handle_bytes(NOW, self.backend, &mut self.scratch);
        settle(&mut self.shard)
    }
}

/// A connection that is through its handshake.
fn connect(shard: &mut Shard, listener: Listener, path: &str) -> ConnectionKey {
    let key = accept(shard, listener);
    // The API answers to its address, and to a page of that address.
    let request = handshake(path)
        .replace("Origin: https://example.org\r\n", "")
        .replace("Host: edge.example.org", "Host: 127.0.0.1:6789");
    shard.handle_bytes(NOW, key, request.into_bytes().as_mut_slice());
    shard.handle_turn(NOW);
    let (of, batch) = shard.poll_write(Priority::Urgent).expect("the handshake is answered");
    assert!(batch[0].bytes().starts_with(b"HTTP/1.1 101 "), "and granted");
    write(shard, of, batch);
    key
}

fn accept(shard: &mut Shard, listener: Listener) -> ConnectionKey {
    let remote = (Ipv4Addr::LOCALHOST, 50_000).into();
    shard.handle_accepted(NOW, listener, remote).expect("the node is up")
}

/// Turns until there is nothing left to do.
fn settle(shard: &mut Shard) -> usize {
    let mut writes = 0;
    loop {
        shard.handle_turn(NOW);
        while let Some((key, batch)) = shard.poll_write(Priority::Urgent) {
            write(shard, key, batch);
            writes += 1;
        }
        while let Some((key, batch)) = shard.poll_write(Priority::Bulk) {
            write(shard, key, batch);
            writes += 1;
        }
        let is_busy = shard.inspect().has_writes() || shard.poll_timeout() == Some(0);
        if !is_busy {
            return writes;
        }
    }
}

fn write(shard: &mut Shard, key: ConnectionKey, batch: Batch) {
    let bytes = batch.iter().map(|chunk| chunk.bytes().len()).sum();
    shard.recycle(batch);
    shard.handle_written(NOW, key, bytes, true);
}

fn settings() -> Settings {
    let routes = vec![Arc::new(shard_value::route())];
    Settings {
        edges: vec![EdgeSettings { proxy: None, port: 6790, routes }],
        ..shard_value::settings()
    }
}
