//! Several meshes, connected by links that the tests control.

mod interest;
mod sessions;
mod users;

use super::link::{Lane, PeerRefusal};
use super::numbers::SessionId;
use super::*;
use crate::address::{ClientId, ShardAddress};
use crate::message::{
    BackendId, ClientCommand, ClientReply, ConnectionKey, FromTapper, GridMessage, InterestChange,
    Publish, Requester, Ticket, ToTapper,
};
use crate::protocol::api::{Tally, Tap, TapTarget};
use crate::protocol::frame::Frame;
use std::collections::BTreeSet;
use std::sync::Arc;

const SHARDS: usize = 2;

/// Nodes, and the network between them.
struct Net {
    meshes: Vec<Mesh>,
    now_ms: u64,
    // The nodes at the ends of each link.
    links: BTreeMap<LinkId, [usize; 2]>,
    cut: BTreeSet<[usize; 2]>,
    // A node that receives nothing.
    deaf: Option<usize>,
    heard: Vec<(usize, ShardId, FromMesh)>,
    // Nodes that failed, and why.
    ended: Vec<(usize, String)>,
}

fn node(index: usize) -> NodeId {
    NodeId::new(index as u16 + 1).unwrap()
}

fn mesh_address(index: usize) -> SocketAddr {
    ([127, 0, 0, 1], 7000 + index as u16).into()
}

/// A second address of a node, which it does not advertise.
fn other_address(index: usize) -> SocketAddr {
    ([127, 0, 0, 2], 7000 + index as u16).into()
}

pub(super) fn mesh(index: usize, incarnation: u64, now_ms: u64) -> Mesh {
    let settings = MeshSettings {
        node: node(index),
        incarnation: Incarnation(incarnation),
        shards: SHARDS,
        advertise: mesh_address(index),
        api: ([127, 0, 0, 1], 6000 + index as u16).into(),
        seeds: vec![mesh_address(0).to_string()],
        answer_ms: 1500,
        expected: 1,
        channel_key: [7; 16],
        random_seed: index as u64,
    };
    Mesh::new(settings, now_ms)
}

impl Net {
    fn new(count: usize) -> Self {
        let meshes = (0..count).map(|index| mesh(index, 1, 0)).collect();
        let (links, cut, heard) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        let ended = Vec::new();
        let mut net = Self { meshes, now_ms: 0, links, cut, deaf: None, heard, ended };
        net.pass(3000);
        net
    }

    fn is_cut(&self, one: usize, two: usize) -> bool {
        self.cut.contains(&[one.min(two), one.max(two)])
    }

    fn dial(&mut self, from: usize, target: &str) {
        let count = self.meshes.len();
        let is_its = |index: &usize| {
            [mesh_address(*index), other_address(*index)]
                .map(|at| at.to_string())
                .contains(&target.into())
        };
        let to = (0..count).find(is_its);
        let is_heard = |to: &usize| !self.is_cut(from, *to) && self.deaf.is_none();
        let Some(to) = to.filter(is_heard) else { return };
        let link = LinkId(self.links.keys().last().map_or(0, |link| link.0 + 1));
        self.links.insert(link, [from, to]);
        let dialled = target.parse().unwrap();
        for (index, remote, is_dialled) in [(from, dialled, true), (to, mesh_address(from), false)]
        {
            let event = LinkEvent::Opened { link, remote, is_dialled };
            self.meshes[index].handle_event(self.now_ms, event);
        }
    }

    fn turn(&mut self) -> bool {
        let mut was_busy = false;
        for index in 0..self.meshes.len() {
            self.meshes[index].handle_turn(self.now_ms);
            self.meshes[index].check();
            while let Some(effect) = self.meshes[index].poll_effect() {
                was_busy = true;
                self.carry_out(index, effect);
            }
            while let Some(ShardMessage { to: shard, message }) = self.meshes[index].poll_message()
            {
                if let FromMesh::NodeUp { node, .. } = message {
                    self.send(index, shard.0, ToMesh::NodeSeen(node));
                }
                self.heard.push((index, shard, message));
            }
        }
        was_busy
    }

    fn carry_out(&mut self, index: usize, effect: LinkEffect) {
        let (link, event) = match effect {
            LinkEffect::Dial(target) => return self.dial(index, &target),
            LinkEffect::Send(link, lane, bytes) => (link, LinkEvent::Received(link, lane, bytes)),
            LinkEffect::Datagram(link, bytes) => (link, LinkEvent::Datagram(link, bytes)),
            LinkEffect::Close(link, why) => (link, LinkEvent::Closed(link, why)),
            LinkEffect::Fail(why) => return self.ended.push((index, why)),
        };
        let Some(&[one, two]) = self.links.get(&link) else { return };
        if matches!(event, LinkEvent::Closed(..)) {
            self.links.remove(&link);
        }
        let to = one + two - index;
        if !self.is_cut(one, two) && self.deaf != Some(to) {
            self.meshes[to].handle_event(self.now_ms, event);
        }
    }

    fn settle(&mut self) {
        for _ in 0..1000 {
            if !self.turn() {
                return;
            }
        }
        panic!("the meshes do not come to rest");
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 10 {
            self.now_ms += 10;
            self.settle();
        }
    }

    /// Cuts the network between two nodes. Both notice that their links are lost.
    fn cut(&mut self, one: usize, two: usize) {
        self.cut.insert([one.min(two), one.max(two)]);
        let ends = [[one, two], [two, one]];
        let broken: Vec<LinkId> =
            self.links.iter().filter(|(_, e)| ends.contains(e)).map(|(&link, _)| link).collect();
        for link in broken {
            self.links.remove(&link);
            for index in [one, two] {
                let event = LinkEvent::Closed(link, "timed out".into());
                self.meshes[index].handle_event(self.now_ms, event);
            }
        }
    }

    fn send(&mut self, index: usize, shard: u8, message: ToMesh) {
        self.meshes[index].handle_message(self.now_ms, ShardId(shard), message);
    }

    fn want(&mut self, index: usize, shard: u8, number: u64, is_on: bool) {
        let interest =
            ToMesh::Interest { change: InterestChange(number), channel: "news".into(), is_on };
        self.send(index, shard, interest);
    }

    fn publish(&mut self, index: usize, ticket: u64) {
        self.publish_except(index, ticket, None);
    }

    fn publish_except(&mut self, index: usize, ticket: u64, excluded: Option<ClientId>) {
        let at = ShardAddress { node: node(index), shard: ShardId(0) };
        let backend = BackendId { at, connection: ConnectionKey { index: 0, generation: 0 } };
        let publish = Publish {
            channel: "news".into(),
            frame: Frame::from_encoded(b"frame"),
            excluded: excluded.map(|client| Arc::new(vec![client])),
        };
        self.send(
            index,
            0,
            ToMesh::Publish(Requester { ticket: Ticket(ticket), backend }, publish),
        );
        self.settle();
    }

    /// Lets the shards answer that were asked to publish since the last call, and returns them.
    fn published(&mut self, delivered: u64) -> Vec<(usize, ShardId)> {
        let heard = std::mem::take(&mut self.heard);
        let mut asked = Vec::new();
        for (index, shard, message) in heard {
            if let FromMesh::Publish(Requester { ticket, .. }, _) = message {
                asked.push((index, shard));
                let tally = Tally { delivered, failed: 0 };
                self.send(index, shard.0, ToMesh::Published(ticket, tally));
            }
        }
        self.settle();
        asked
    }

    /// The tally of a publish, if the mesh has sent it.
    fn tally(&mut self, ticket: u64) -> Option<Tally> {
        self.heard.iter().find_map(|(_, _, message)| match message {
            FromMesh::Published(of, tally) if of.0 == ticket => Some(*tally),
            _ => None,
        })
    }

    fn is_known(&self, index: usize, number: u64) -> bool {
        self.heard.iter().any(|(at, _, message)| {
            *at == index && matches!(message, FromMesh::InterestKnown(known) if known.0 >= number)
        })
    }

    fn count_of(&self, index: usize, is_it: impl Fn(&FromMesh) -> bool) -> usize {
        self.heard.iter().filter(|(at, _, message)| *at == index && is_it(message)).count()
    }
}

fn tally(delivered: u64, failed: u64) -> Option<Tally> {
    Some(Tally { delivered, failed })
}

/// Longer than a session lives without a link, and than it takes to dial a lost node again.
const LOST_AND_FOUND_MS: u64 = 5000;
