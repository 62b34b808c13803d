//! Several meshes, connected by links that the tests control.

use super::link::{Lane, Refusal};
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
        let at = ShardAddress { node: node(index), shard: ShardId(0) };
        let backend = BackendId { at, connection: ConnectionKey { index: 0, generation: 0 } };
        let publish = Publish { channel: "news".into(), frame: Frame::from_encoded(b"frame") };
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

#[test]
fn nodes_that_know_one_seed_find_each_other() {
    let net = Net::new(4);
    for (index, mesh) in net.meshes.iter().enumerate() {
        let peers: Vec<NodeId> = mesh.peers.keys().copied().collect();
        assert_eq!(peers.len(), 3, "node {index} knows {peers:?}");
        assert!(
            mesh.peers.values().all(|peer| peer.link.is_some() && peer.liveness.is_trusted(3000))
        );
        assert_eq!(mesh.membership.members().count(), 3);
        assert_eq!(net.count_of(index, |m| matches!(m, FromMesh::NodeUp { .. })), 3 * SHARDS);
    }
}

#[test]
fn a_publish_reaches_the_shards_that_want_it_and_no_others() {
    let mut net = Net::new(3);
    net.want(1, 1, 1, true);
    net.settle();
    assert!(net.is_known(1, 1));
    net.heard.clear();
    net.publish(0, 9);
    assert_eq!(net.published(3), [(1, ShardId(1))]);
    assert_eq!(net.tally(9), tally(3, 0));
    net.want(1, 1, 2, false);
    net.settle();
    net.publish(2, 10);
    assert_eq!(net.tally(10), tally(0, 0));
    assert_eq!(net.published(3), []);
}

#[test]
fn a_silent_node_counts_as_last_known_until_its_session_ends() {
    let mut net = Net::new(3);
    net.want(1, 0, 1, true);
    net.settle();
    net.heard.clear();
    net.publish(0, 1);
    net.published(5);
    net.publish(0, 2);
    net.heard.clear();
    net.pass(1400);
    assert_eq!(net.tally(2), tally(0, 5));
    net.cut(0, 1);
    net.cut(1, 2);
    net.pass(LOST_AND_FOUND_MS);
    net.publish(0, 3);
    assert_eq!(net.tally(3), tally(0, 0));
    net.cut.clear();
    net.pass(LOST_AND_FOUND_MS);
    net.heard.clear();
    net.publish(0, 4);
    assert_eq!(net.published(5), [(1, ShardId(0))]);
    assert_eq!(net.tally(4), tally(5, 0));
}

#[test]
fn a_publish_goes_once_to_each_node_that_may_have_subscribers() {
    let mut net = Net::new(4);
    net.want(1, 0, 1, true);
    net.settle();
    let channel = net.meshes[0].hasher.hash("news");
    let interested = |net: &Net| net.meshes[0].interested_nodes(net.now_ms, channel);
    assert_eq!(interested(&net), [node(1)], "all are trusted");
    // A node that wants the channel and another one are about to get a subscriber.
    for index in [1, 2] {
        net.meshes[0].subscribing_there.note(net.now_ms + 10, channel, node(index));
    }
    assert_eq!(interested(&net), [node(1), node(2)]);
    // Node 0 resumes after a gap, and trusts nobody.
    net.meshes[0].handle_gap(net.now_ms);
    assert_eq!(interested(&net), [node(1), node(2), node(3)]);
    net.pass(1000);
    assert_eq!(interested(&net), [node(1)]);
}

#[test]
fn calls_wait_for_a_node_only_until_it_is_silent() {
    let mut net = Net::new(2);
    net.want(1, 0, 1, true);
    net.settle();
    net.heard.clear();
    net.publish(0, 1);
    net.published(5);
    // From here on all packets between them are lost, though the link seems to exist.
    net.cut.insert([0, 1]);
    net.publish(0, 2);
    net.pass(600);
    assert_eq!(net.tally(2), None);
    net.pass(400);
    assert_eq!(net.tally(2), tally(0, 5));
    net.publish(0, 3);
    assert_eq!(net.tally(3), tally(0, 5));
    let to = ShardAddress { node: node(1), shard: ShardId(0) };
    let at = ShardAddress { node: node(0), shard: ShardId(1) };
    let backend = BackendId { at, connection: ConnectionKey { index: 0, generation: 0 } };
    let client = ClientId::from_value(1463786910324359168);
    let command = ClientCommand::Send(client, Frame::from_encoded(b"frame"));
    let ask = GridMessage::Ask { ticket: Ticket(4), backend, command };
    net.send(0, 1, ToMesh::Grid(to, ask));
    net.settle();
    let is_refused = |m: &FromMesh| matches!(m, FromMesh::Grid(from, GridMessage::Answer(Ticket(4), Err(_))) if *from == to);
    assert_eq!(net.count_of(0, is_refused), 1);
}

#[test]
fn a_tap_does_not_wait_for_an_unreachable_node() {
    let mut net = Net::new(2);
    let to = ShardAddress { node: node(7), shard: ShardId(0) };
    let at = ShardAddress { node: node(0), shard: ShardId(1) };
    let tapper = BackendId { at, connection: ConnectionKey { index: 0, generation: 0 } };
    let tap = Tap { target: TapTarget::User("ann".into()), max_per_s: 1 };
    let start = FromTapper::Start(Ticket(4), Box::new(tap));
    net.send(0, 1, ToMesh::Grid(to, GridMessage::FromTapper(tapper, start)));
    net.settle();
    let is_answer = |m: &FromMesh| {
        matches!(m, FromMesh::Grid(from, GridMessage::ToTapper(of, ToTapper::Started {
            ticket: Ticket(4),
            is_watching: false,
        })) if (*from, *of) == (to, tapper))
    };
    assert_eq!(net.count_of(0, is_answer), 1);
}

#[test]
fn a_node_that_sends_and_does_not_receive_is_lost_like_a_dead_one() {
    let mut net = Net::new(2);
    net.deaf = Some(1);
    net.heard.clear();
    net.pass(4500);
    assert_eq!(net.count_of(0, |m| matches!(m, FromMesh::NodeDown(_))), SHARDS);
    net.deaf = None;
    net.pass(LOST_AND_FOUND_MS);
    assert_eq!(net.count_of(0, |m| matches!(m, FromMesh::NodeUp { .. })), SHARDS);
}

#[test]
fn the_session_with_a_leaving_node_ends_at_once() {
    let mut net = Net::new(3);
    net.heard.clear();
    net.meshes[2].handle_leave(net.now_ms);
    while let Some(effect) = net.meshes[2].poll_effect() {
        net.carry_out(2, effect);
        // Its last packets are handled before its links close.
        (0..2).for_each(|index| net.meshes[index].handle_turn(net.now_ms));
    }
    net.cut.extend([[0, 2], [1, 2]]);
    net.settle();
    for index in 0..2 {
        assert_eq!(net.count_of(index, |m| matches!(m, FromMesh::NodeDown(_))), SHARDS);
    }
}

/// Longer than a session lives without a link, and than it takes to dial a lost node again.
const LOST_AND_FOUND_MS: u64 = 5000;

#[test]
fn a_subscribe_waits_for_a_silent_node_no_longer_than_the_lease() {
    let mut net = Net::new(2);
    // From here on all packets of node 1 are lost, though its link seems to exist.
    net.cut.insert([0, 1]);
    net.want(1, 0, 1, true);
    net.pass(500);
    assert!(!net.is_known(1, 1));
    net.pass(600);
    assert!(net.is_known(1, 1));
    assert!(!net.meshes[0].peers[&node(1)].liveness.is_trusted(net.now_ms));
    let channel = net.meshes[0].hasher.hash("news");
    assert_eq!(
        net.meshes[0].interested_nodes(net.now_ms, channel),
        [node(1)],
        "its interest is not trusted"
    );
}

#[test]
fn a_node_that_resumes_trusts_no_interest_and_gives_up_no_peer() {
    let mut net = Net::new(2);
    net.want(1, 0, 1, true);
    net.settle();
    net.heard.clear();
    net.publish(0, 1);
    // The clock of node 0 leaves the gap out; the others' do not.
    net.meshes[0].handle_gap(net.now_ms);
    net.settle();
    let channel = net.meshes[0].hasher.hash("other");
    assert_eq!(
        net.meshes[0].interested_nodes(net.now_ms, channel),
        [node(1)],
        "its interest is not trusted"
    );
    assert_eq!(net.tally(1), None, "the call in flight is not failed");
    assert_eq!(net.published(5), [(1, ShardId(0))]);
    assert_eq!(net.tally(1), tally(5, 0));
    net.pass(50);
    assert!(net.meshes[0].peers[&node(1)].liveness.is_trusted(net.now_ms), "it has answered since");
    assert_eq!(net.meshes[0].sessions_ended, 0);
}

#[test]
fn the_answer_to_a_ping_from_before_a_gap_does_not_renew_trust() {
    let mut net = Net::new(2);
    let asked_ms = net.now_ms;
    net.meshes[0].handle_gap(net.now_ms);
    let link = net.meshes[0].peers[&node(1)].link.unwrap();
    let mut pong = Vec::new();
    wire::put_control(&mut pong, &wire::Control::Pong { sent_ms: asked_ms, clients: 0 });
    let event = LinkEvent::Received(link, Lane::Control, pong.into());
    net.meshes[0].handle_event(net.now_ms, event);
    let peer = &net.meshes[0].peers[&node(1)];
    assert!(!peer.liveness.is_trusted(net.now_ms) && !peer.liveness.is_silent());
}

#[test]
fn the_answer_to_an_old_ping_takes_nothing_back() {
    let mut net = Net::new(2);
    net.pass(1000);
    let link = net.meshes[0].peers[&node(1)].link.unwrap();
    for sent_ms in [0, net.now_ms - 500, u64::MAX, 0] {
        let mut pong = Vec::new();
        wire::put_control(&mut pong, &wire::Control::Pong { sent_ms, clients: 0 });
        let event = LinkEvent::Received(link, Lane::Control, pong.into());
        net.meshes[0].handle_event(net.now_ms, event);
        net.meshes[0].check();
    }
    net.settle();
    assert!(net.meshes[0].peers[&node(1)].liveness.is_trusted(net.now_ms));
    assert_eq!(net.meshes[0].sessions_ended, 0);
}

#[test]
fn messages_in_flight_on_a_lost_link_arrive_once_on_the_next() {
    let mut net = Net::new(2);
    net.heard.clear();
    let from = ShardAddress { node: node(0), shard: ShardId(1) };
    let to = ShardAddress { node: node(1), shard: ShardId(0) };
    let message =
        |number| ToMesh::Grid(to, GridMessage::Answer(Ticket(number), Ok(ClientReply::Done)));
    net.send(0, 1, message(1));
    net.settle();
    net.cut(0, 1);
    net.send(0, 1, message(2));
    net.send(0, 1, message(3));
    net.settle();
    net.cut.clear();
    net.pass(2000);
    let numbers: Vec<u64> = net
        .heard
        .iter()
        .filter_map(|(index, shard, message)| match message {
            FromMesh::Grid(sender, GridMessage::Answer(ticket, _)) => {
                assert_eq!((*index, *shard, *sender), (1, ShardId(0), from));
                Some(ticket.0)
            }
            _ => None,
        })
        .collect();
    assert_eq!(numbers, [1, 2, 3]);
    assert_eq!(net.count_of(1, |m| matches!(m, FromMesh::NodeDown(_))), 0);
}

#[test]
fn a_node_without_a_common_version_is_refused_and_told_why() {
    let mut net = Net::new(2);
    let hello = net.meshes[0].peers[&node(1)].hello.clone();
    let wire::Versions { first, last } = wire::VERSIONS;
    let stranger = |first, last| {
        let versions = wire::Versions { first, last };
        wire::Hello { node: node(5), versions, ..hello.clone() }
    };
    assert_eq!(net.meshes[0].refusal(&stranger(first, last + 7)), None);
    let remote = mesh_address(5);
    for (number, (oldest, newest)) in
        [(first - 1, first - 1), (last + 1, last + 7)].iter().enumerate()
    {
        let link = LinkId(1000 + number as u64);
        let event = LinkEvent::Opened { link, remote, is_dialled: false };
        net.meshes[0].handle_event(net.now_ms, event);
        let said = stranger(*oldest, *newest);
        let why = net.meshes[0].handle_hello(net.now_ms, link, said).unwrap_err();
        assert!(why.contains(&format!("speaks versions {oldest} to {newest}")), "{why}");
        let mut next = || {
            let Some(LinkEffect::Send(_, Lane::Control, said)) = net.meshes[0].poll_effect() else {
                panic!()
            };
            let mut reader = wire::FrameReader::default();
            reader.push(said);
            wire::read_control(&reader.next_frame().unwrap().unwrap()).unwrap()
        };
        assert!(matches!(next(), wire::Control::Hello(own) if own.versions == wire::VERSIONS));
        assert_eq!(next(), wire::Control::Refused(why));
        assert_eq!(net.meshes[0].refusals.version, number as u64 + 1);
    }
}

#[test]
fn nodes_without_a_common_version_refuse_each_other_and_none_ends() {
    let mut net = Net::new(0);
    net.meshes = (0..2).map(|index| mesh(index, 1, 0)).collect();
    let wire::Versions { last, .. } = wire::VERSIONS;
    net.meshes[1].versions = wire::Versions { first: last + 1, last: last + 1 };
    net.pass(60_000);
    assert_eq!(net.ended, []);
    for mesh in &net.meshes {
        assert!(mesh.peers.is_empty() && mesh.refusals.version > 0, "{:?}", mesh.refusals);
    }
    // Once the other node is replaced, too, the grid is whole.
    let now_ms = net.now_ms;
    net.meshes[1] = mesh(1, 2, now_ms);
    net.pass(15_000);
    assert!(net.meshes.iter().all(|mesh| mesh.peers.len() == 1));
}

#[test]
fn a_node_that_older_ones_refuse_for_its_version_goes_on() {
    let mut net = Net::new(1);
    let why = "it speaks versions 3 to 3 of the mesh protocol, the node at A versions 1 to 2";
    for _ in 0..6 {
        let now_ms = net.now_ms;
        net.meshes[0].handle_refused(now_ms, why.into());
        net.pass(5000);
    }
    assert_eq!((net.ended, net.meshes[0].refusals.version), (vec![], 6));
}

#[test]
fn nodes_with_the_first_placement_are_refused() {
    let net = Net::new(2);
    let hello = net.meshes[0].peers[&node(1)].hello.clone();
    let versions = wire::Versions { first: 1, last: 1 };
    let old = wire::Hello { node: node(5), versions, ..hello };
    assert_eq!(net.meshes[0].refusal(&old).map(|(refusal, _)| refusal), Some(Refusal::Version));
}

#[test]
fn a_session_that_ended_during_the_handshake_is_not_continued() {
    let mut net = Net::new(2);
    let hello = net.meshes[0].peers[&node(1)].hello.clone();
    let held = net.meshes[0].peers[&node(1)].session_id;
    net.cut(0, 1);
    let (link, remote) = (LinkId(1000), mesh_address(1));
    net.meshes[0].handle_event(net.now_ms, LinkEvent::Opened { link, remote, is_dialled: true });
    net.meshes[0].end_session(node(1), "it takes too long");
    let answer = wire::Hello { held: Some(held), ..hello };
    assert!(net.meshes[0].handle_hello(net.now_ms, link, answer).is_err());
    assert!(net.meshes[0].peers.is_empty());
}

#[test]
fn a_tally_for_a_session_that_ended_is_not_sent_in_the_next() {
    let mut net = Net::new(2);
    net.want(1, 0, 1, true);
    net.settle();
    net.heard.clear();
    net.publish(0, 1);
    assert_eq!(net.meshes[1].pending.len(), 1, "the shard is asked");
    net.cut(0, 1);
    for (index, other) in [(0, 1), (1, 0)] {
        net.meshes[index].lose(net.now_ms, node(other), "both nodes give up");
    }
    net.cut.clear();
    net.pass(1000);
    assert!(net.meshes[1].peers[&node(0)].link.is_some(), "there is a new session");
    let before = net.meshes[1].peers[&node(0)].session.traffic().sent_batches;
    assert_eq!(net.published(5), [(1, ShardId(0))]);
    assert_eq!(net.meshes[1].peers[&node(0)].session.traffic().sent_batches, before);
}

#[test]
fn an_overtaken_hello_begins_no_session_even_after_the_later_one_has_ended() {
    let mut net = Net::new(2);
    let Peer { hello, session_id, .. } = &net.meshes[1].peers[&node(0)];
    let (hello, session_id) = (hello.clone(), session_id.0);
    // The sender of such a hello holds no session.
    let said = |offered| {
        let offered = SessionId(offered);
        wire::Hello { held: None, offered, ..hello.clone() }
    };
    let hear = |mesh: &mut Mesh, number, offered| {
        let (link, remote) = (LinkId(number), mesh_address(0));
        mesh.handle_event(0, LinkEvent::Opened { link, remote, is_dialled: false });
        let is_taken = mesh.handle_hello(0, link, said(offered)).is_ok();
        (is_taken, mesh.peers.get(&node(0)).map(|peer| peer.session_id.0))
    };
    let mesh = &mut net.meshes[1];
    assert_eq!(hear(mesh, 1000, hello.offered.0 - 1), (false, Some(session_id)));
    let next = hello.offered.0 + 2;
    assert_eq!(hear(mesh, 1001, next), (true, Some(next)), "node 0 has lost the session since");
    mesh.end_session(node(0), "it is no more");
    assert_eq!(hear(mesh, 1002, next - 1), (false, None));
}

#[test]
fn a_message_that_a_shard_sent_before_it_knew_of_a_new_session_is_not_sent_in_it() {
    let mut net = Net::new(2);
    let to = ShardAddress { node: node(1), shard: ShardId(0) };
    let message =
        |number| ToMesh::Grid(to, GridMessage::Answer(Ticket(number), Ok(ClientReply::Done)));
    net.heard.clear();
    // The shard was told of a second session, and has not confirmed it.
    net.meshes[0].unseen_node_ups.insert((node(1), ShardId(1)), 1);
    net.send(0, 1, message(1));
    net.send(0, 1, ToMesh::NodeSeen(node(1)));
    net.send(0, 1, message(2));
    net.settle();
    let is = |number| move |m: &FromMesh| matches!(m, FromMesh::Grid(_, GridMessage::Answer(of, _)) if of.0 == number);
    assert_eq!((net.count_of(1, is(1)), net.count_of(1, is(2))), (0, 1));
}

#[test]
fn a_restarted_node_is_accepted_and_an_id_in_use_is_refused() {
    let mut net = Net::new(2);
    net.heard.clear();
    let links: Vec<LinkId> = net.links.keys().copied().collect();
    net.links.clear();
    net.meshes[1] = mesh(1, 2, net.now_ms);
    for link in links {
        net.meshes[0].handle_event(net.now_ms, LinkEvent::Closed(link, "gone".into()));
    }
    net.pass(2000);
    assert_eq!(net.count_of(0, |m| matches!(m, FromMesh::NodeDown(_))), SHARDS);
    assert_eq!(net.count_of(0, |m| matches!(m, FromMesh::NodeUp { .. })), SHARDS);
    let mut other = mesh(1, 3, net.now_ms);
    other.settings.advertise = mesh_address(7);
    let hello = net.meshes[1].peers[&node(0)].hello.clone();
    let intruder =
        wire::Hello { node: node(1), mesh: mesh_address(7), incarnation: Incarnation(3), ..hello };
    let (refusal, why) = net.meshes[0].refusal(&intruder).unwrap();
    assert!(refusal == Refusal::Id && why.contains("node id 2 is in use"), "{why}");
}

#[test]
fn a_node_ends_only_if_it_is_refused_again_and_again() {
    let mut net = Net::new(1);
    let refuse = |net: &mut Net| {
        let now_ms = net.now_ms;
        net.meshes[0].note_rejection(now_ms, "another version".into());
    };
    refuse(&mut net);
    net.pass(20_000);
    assert_eq!(net.ended, [], "nobody refuses it any more");
    // A node with links dials a seed every five seconds.
    for _ in 0..2 {
        refuse(&mut net);
        net.pass(5000);
    }
    assert_eq!(net.ended, [], "the last refusal came after five seconds");
    refuse(&mut net);
    net.pass(500);
    assert_eq!(net.ended.first(), Some(&(0, "another version".into())));
}

#[test]
fn dialling_a_second_address_of_a_node_keeps_the_session() {
    let mut net = Net::new(2);
    net.dial(0, &other_address(1).to_string());
    net.pass(1000);
    net.heard.clear();
    for _ in 0..3 {
        net.dial(0, &other_address(1).to_string());
        net.pass(1000);
    }
    for index in 0..2 {
        assert_eq!(net.count_of(index, |m| matches!(m, FromMesh::NodeDown(_))), 0);
        assert_eq!(net.meshes[index].peers.len(), 1);
    }
}

#[test]
fn of_two_nodes_with_one_id_the_later_one_fails_whichever_dials() {
    let mut net = Net::new(2);
    let settings = mesh(2, 2, net.now_ms).settings;
    net.meshes.push(Mesh::new(MeshSettings { node: node(0), ..settings }, net.now_ms));
    for _ in 0..12 {
        net.dial(0, &mesh_address(2).to_string());
        net.dial(1, &mesh_address(2).to_string());
        net.pass(1000);
    }
    let why = format!("node id 1 is in use by the node at {}", mesh_address(0));
    assert_eq!(net.ended.first(), Some(&(2, why)));
    assert!(net.ended.iter().all(|(index, _)| *index == 2));
    let is_own = |m: &FromMesh| matches!(m, FromMesh::NodeUp { node: up, .. } if *up == node(0));
    assert_eq!(net.count_of(2, is_own), 0, "it is not told of itself");
}
