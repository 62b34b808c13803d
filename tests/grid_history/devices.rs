//! Devices that subscribe one channel each, go, and come back anywhere with the place that they know.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use gridcast::address::ShardId;
use gridcast::channel::grid::{ChannelOutput, RecoveredMessages};
use gridcast::message::Ticket;
use gridcast::protocol::frame::Frame;
use gridcast::protocol::position::Position;

use crate::faults::{Life, Weather};
use crate::world::{DEVICES, World, name};

/// The shards of a node with subscribers.
const SHARDS: usize = 2;

pub struct Device {
    pub channel: usize,
    pub node: Option<usize>,
    /// Whether it waits for the answer to its subscribe.
    pub is_recovering: bool,
    /// The place that it knows.
    pub known: Option<Position>,
    /// The messages that it got, and their places.
    pub seen: BTreeSet<String>,
    places: HashSet<Position>,
    // Whether the subscribe gives a place.
    had_position: bool,
    /// How often it was told that it may have missed something.
    pub notices: usize,
    /// The messages that it got altogether.
    pub got: usize,
}

impl Device {
    pub fn new(channel: usize) -> Self {
        Self {
            channel,
            node: None,
            is_recovering: false,
            known: None,
            seen: BTreeSet::new(),
            places: HashSet::new(),
            had_position: false,
            notices: 0,
            got: 0,
        }
    }
}

fn text(frame: &Frame) -> String {
    String::from_utf8(frame.payload().to_vec()).expect("it was text")
}

fn shard_of(number: usize) -> ShardId {
    ShardId((number % SHARDS) as u8)
}

impl World {
    /// Does what a shard has to do.
    pub fn take_outputs(&mut self, node: usize) {
        while let Some(output) = self.nodes[node].channels.poll_output() {
            match output {
                ChannelOutput::Send(to, name, message) => self.send(node, to, name, *message),
                ChannelOutput::Deliver(placed, receipt) => {
                    let channel = placed.publish.channel.clone();
                    let position = placed.position.expect("the channel has a history");
                    let data = text(&placed.publish.frame);
                    for number in self.devices_on(node, &channel) {
                        if !self.devices[number].is_recovering {
                            self.device_got(number, position, &data);
                        }
                    }
                    if let Some(receipt) = receipt {
                        self.nodes[node].receipts.push_back((channel, receipt));
                    }
                }
                ChannelOutput::Lapse(channel) => {
                    self.tell(|| format!("devices of {channel} on {node} have to recover"));
                    for number in self.devices_on(node, &channel) {
                        if !self.devices[number].is_recovering {
                            self.disconnect(number);
                        }
                    }
                }
                ChannelOutput::Recovered(ticket, recovered) => {
                    if let Some(number) = self.nodes[node].questions.remove(&ticket) {
                        self.recovered(number, recovered);
                    }
                }
                ChannelOutput::NotRecovered(ticket) => {
                    if let Some(number) = self.nodes[node].questions.remove(&ticket) {
                        self.disconnect(number);
                    }
                }
                ChannelOutput::Placed(ticket, outcome) => {
                    let publish = self.nodes[node].publishes.remove(&ticket);
                    let (data, asked_ms) = publish.expect("each publish is answered once");
                    self.summary.longest_ms = self.summary.longest_ms.max(self.now_ms - asked_ms);
                    self.tell(|| format!("{data} is answered at {node}: {outcome:?}"));
                    match outcome {
                        Ok((position, _)) => {
                            self.summary.answered += 1;
                            self.order.learn_answer(position, data);
                        }
                        Err(_) => self.summary.failed += 1,
                    }
                }
                ChannelOutput::Followed(_) => {}
            }
        }
    }

    fn recovered(&mut self, number: usize, recovered: RecoveredMessages) {
        let RecoveredMessages { position, missed, .. } = recovered;
        let device = &self.devices[number];
        let (known, count) = (device.known, missed.as_ref().map(Vec::len));
        self.tell(|| format!("device {number} recovers {count:?} from {known:?} to {position:?}"));
        match missed {
            _ if !self.devices[number].had_position => {}
            None => {
                let device = &mut self.devices[number];
                device.notices += 1;
                // The device begins anew. On the other side of a split, what it knows may not have been published yet.
                if self.weather == Weather::Split {
                    device.seen.clear();
                    device.places.clear();
                }
            }
            Some(missed) => {
                for (position, frame) in missed {
                    self.device_got(number, position, &text(&frame));
                }
                let known = self.devices[number].known;
                assert_eq!(known, Some(position), "device {number} is at another place");
            }
        }
        let device = &mut self.devices[number];
        (device.is_recovering, device.known) = (false, Some(position));
    }

    fn device_got(&mut self, number: usize, position: Position, data: &str) {
        self.tell(|| format!("device {number} gets {data} at {position:?}"));
        let device = &mut self.devices[number];
        device.got += 1;
        self.order.learn_message(device.known.replace(position), position, data);
        assert!(device.places.insert(position), "device {number} gets {data} twice");
        // Several nodes publish the last message. A key is forgotten when all copies of the history are lost.
        let may_repeat = data.ends_with(".last")
            || self.weather != Weather::Calm && self.keyed.iter().any(|(_, keyed)| keyed == data);
        let is_new = device.seen.insert(data.to_owned());
        assert!(is_new || may_repeat, "device {number} gets {data} twice");
    }

    fn devices_on(&self, node: usize, channel: &str) -> Vec<usize> {
        let is_there = |number: &usize| {
            let device = &self.devices[*number];
            device.node == Some(node) && *name(device.channel) == *channel
        };
        (0..DEVICES).filter(is_there).collect()
    }

    fn is_followed(&self, node: usize, channel: &str, shard: ShardId) -> bool {
        self.devices_on(node, channel).iter().any(|&number| shard_of(number) == shard)
    }

    /// Connects a device to some node, if that runs.
    pub fn connect_anywhere(&mut self, number: usize) {
        let node = self.random.below(self.nodes.len());
        if self.nodes[node].life == Life::Up {
            self.connect(number, node);
        }
    }

    pub fn connect(&mut self, number: usize, node: usize) {
        let (channel, shard) = (name(self.devices[number].channel), shard_of(number));
        let is_first = !self.is_followed(node, &channel, shard);
        let follows_first = self.random.one_in(2);
        if is_first && follows_first && !self.follow(node, &channel, shard) {
            return;
        }
        let device = &mut self.devices[number];
        device.had_position = device.known.is_some();
        let (since, now_ms) = (device.known, self.now_ms);
        let channels = &mut self.nodes[node].channels;
        let asked = channels.recover(now_ms, &channel, &self.policy, since, 1 << 20);
        let ticket = match asked {
            Ok(ticket) if !is_first || follows_first || self.follow(node, &channel, shard) => {
                Some(ticket)
            }
            _ => None,
        };
        match ticket {
            Some(ticket) => self.wait_for_recovery(number, node, ticket),
            None => {
                self.summary.refused += 1;
                if is_first {
                    self.nodes[node].channels.unfollow(now_ms, &channel, shard);
                }
            }
        }
        self.take_outputs(node);
    }

    fn wait_for_recovery(&mut self, number: usize, node: usize, ticket: Ticket) {
        let device = &mut self.devices[number];
        (device.node, device.is_recovering) = (Some(node), true);
        self.nodes[node].questions.insert(ticket, number);
        self.tell(|| format!("device {number} subscribes at {node}"));
    }

    fn follow(&mut self, node: usize, channel: &Arc<str>, shard: ShardId) -> bool {
        let channels = &mut self.nodes[node].channels;
        let followed = channels.follow(self.now_ms, channel, &self.policy, shard);
        self.summary.refused += usize::from(followed.is_err());
        followed.is_ok()
    }

    pub fn disconnect(&mut self, number: usize) {
        let Some(node) = self.devices[number].node.take() else { return };
        self.tell(|| format!("device {number} goes from {node}"));
        self.nodes[node].questions.retain(|_, device| *device != number);
        let (channel, shard) = (name(self.devices[number].channel), shard_of(number));
        if !self.is_followed(node, &channel, shard) {
            self.nodes[node].channels.unfollow(self.now_ms, &channel, shard);
        }
    }
}
