//! One shard with many clients and a back end that publishes to them, without a socket: what is to
//! be written counts as written at once.

use std::net::Ipv4Addr;
use std::sync::Arc;

use gridcast::channel::ChannelPolicy;
use gridcast::message::ConnectionKey;
use gridcast::shard::settings::{ChannelRule, ChannelSettings, EdgeSettings, Settings};
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
    /// A shard with `clients` subscribers of the channel `all`, each of which has `own_channels` other channels. The back end
    /// publishes 128 bytes to `channel`, over and over.
    pub fn new(clients: usize, own_channels: usize, channel: &str) -> Self {
        Self::on(shard_value::shard(&settings(), NOW), clients, own_channels, channel)
    }

    /// A shard with `clients` subscribers of the channel `all`, which has a history of 256 messages.
    pub fn with_history(clients: usize) -> Self {
        Self::on(shard_value::shard(&with_history(), NOW), clients, 0, "all")
    }

    fn on(mut shard: Shard, clients: usize, own_channels: usize, channel: &str) -> Self {
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

/// A device that speaks the device protocol, and a channel whose history has 100 messages of 128 bytes.
pub struct Recovering {
    shard: Shard,
    device: ConnectionKey,
    backend: ConnectionKey,
    publishes: Vec<u8>,
    returns: Vec<u8>,
    scratch: Vec<u8>,
}

impl Recovering {
    pub fn new() -> Self {
        let mut shard = shard_value::shard(&with_history(), NOW);
        let device = accept(&mut shard, Listener::Edge(0));
        let end = "Sec-WebSocket-Protocol: gridcast.v1\r\n\r\n";
        let request = handshake("/ws").replace("\r\n\r\n", &format!("\r\n{end}"));
        shard.handle_bytes(NOW, device, request.into_bytes().as_mut_slice());
        settle(&mut shard);
        let backend = connect(&mut shard, Listener::Api, "/ws/v1");
        let subscribe = client_frame(1, br#"{"m":"subscribe","p":{"c":["all"]},"i":1}"#);
        shard.handle_bytes(NOW, device, &mut subscribe.clone());
        let answer = written_to(&mut shard, device);
        let position = answer.split(r#""o":""#).nth(1).and_then(|rest| rest.split('"').next());
        let position = position.expect("the channel has a history").to_owned();
        let publishes = client_frame(1, publish_call("all", 128).as_bytes()).repeat(100);
        let returns = [
            r#"{"m":"unsubscribe","p":{"c":["all"]},"i":2}"#.to_owned(),
            format!(r#"{{"m":"subscribe","p":{{"c":["all"],"o":{{"all":"{position}"}}}},"i":3}}"#),
        ];
        let returns = returns.map(|call| client_frame(1, call.as_bytes())).concat();
        let mut this = Self { shard, device, backend, publishes, returns, scratch: Vec::new() };
        this.publish();
        this.shard.handle_bytes(NOW, device, &mut this.returns.clone());
        let got = written_to(&mut this.shard, device);
        assert_eq!(got.matches(r#"{"e":"message""#).count(), 100);
        this
    }

    /// Publishes 100 messages in one batch, until the device has all of them.
    pub fn publish(&mut self) -> usize {
        self.scratch.clone_from(&self.publishes);
        self.shard.handle_bytes(NOW, self.backend, &mut self.scratch);
        settle(&mut self.shard)
    }

    /// The device leaves the channel, comes back, and gets the 100 messages.
    pub fn recover(&mut self) -> usize {
        self.scratch.clone_from(&self.returns);
        self.shard.handle_bytes(NOW, self.device, &mut self.scratch);
        settle(&mut self.shard)
    }
}

/// Runs turns until the shard has nothing left to do, and returns the text that it has written to one connection.
fn written_to(shard: &mut Shard, to: ConnectionKey) -> String {
    let mut written = Vec::new();
    while shard.inspect().has_writes() || shard.poll_timeout() == Some(0) {
        shard.handle_turn(NOW);
        while let Some((key, batch)) =
            shard.poll_write(Priority::Urgent).or_else(|| shard.poll_write(Priority::Bulk))
        {
            if key == to {
                batch.iter().for_each(|chunk| written.extend_from_slice(chunk.bytes()));
            }
            write(shard, key, batch);
        }
    }
    String::from_utf8_lossy(&written).into_owned()
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

fn with_history() -> Settings {
    let policy = ChannelPolicy { messages: 256, bytes: usize::MAX, keep_ms: 60_000, copies: 1 };
    let rule = ChannelRule { pattern: "all".into(), history: Some(policy), presence: None };
    let channels = ChannelSettings {
        rules: Arc::new([rule]),
        history_bytes: 64 << 20,
        ..ChannelSettings::default()
    };
    Settings { channels, ..settings() }
}

fn settings() -> Settings {
    let routes = vec![Arc::new(shard_value::route())];
    Settings {
        edges: vec![EdgeSettings { proxy: None, port: 6790, routes }],
        ..shard_value::settings()
    }
}
