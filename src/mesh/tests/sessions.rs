//! Tests of hellos and sessions: how nodes find, accept, refuse and lose each other.

use super::*;

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

fn lost_nodes(net: &Net, index: usize) -> Vec<(NodeId, u64)> {
    let known = net.meshes[index].known_nodes(net.now_ms);
    assert!(known.lost.iter().all(|lost| !known.unreachable.contains(&lost.node)));
    known.lost.iter().map(|lost| (lost.node, lost.lost_ms)).collect()
}

#[test]
fn a_dead_node_counts_as_lost_until_it_is_back() {
    let mut net = Net::new(3);
    net.cut(0, 2);
    net.cut(1, 2);
    assert_eq!(lost_nodes(&net, 0), [], "its session may go on");
    net.pass(LOST_AND_FOUND_MS);
    for index in 0..2 {
        let [(lost, ago_ms)] = lost_nodes(&net, index)[..] else { panic!("one is lost") };
        assert!(lost == node(2) && (1..LOST_AND_FOUND_MS).contains(&ago_ms), "{ago_ms} ms ago");
    }
    assert_eq!(lost_nodes(&net, 2).len(), 2, "it has lost the others");
    net.cut.clear();
    net.pass(LOST_AND_FOUND_MS);
    (0..3).for_each(|index| assert_eq!(lost_nodes(&net, index), []));
}

#[test]
fn the_session_with_a_leaving_node_ends_at_once() {
    let mut net = Net::new(3);
    net.heard.clear();
    net.meshes[2].handle_leave(net.now_ms);
    while let Some(effect) = net.meshes[2].poll_effect() {
        net.carry_out(2, effect);
        // The last packets of the node are handled before its links close.
        (0..2).for_each(|index| net.meshes[index].handle_turn(net.now_ms));
    }
    net.cut.extend([[0, 2], [1, 2]]);
    net.settle();
    for index in 0..2 {
        assert_eq!(net.count_of(index, |m| matches!(m, FromMesh::NodeDown(_))), SHARDS);
        assert_eq!(lost_nodes(&net, index), [], "a node that leaves is not lost");
    }
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
    assert_eq!(net.meshes[0].refusal(&old).map(|(refusal, _)| refusal), Some(PeerRefusal::Version));
}

#[test]
fn a_session_that_ended_during_the_handshake_is_not_continued() {
    let mut net = Net::new(2);
    let hello = net.meshes[0].peers[&node(1)].hello.clone();
    let held = net.meshes[0].peers[&node(1)].session_id;
    net.cut(0, 1);
    let (link, remote) = (LinkId(1000), mesh_address(1));
    net.meshes[0].handle_event(net.now_ms, LinkEvent::Opened { link, remote, is_dialled: true });
    net.meshes[0].end_session(net.now_ms, node(1), "it takes too long");
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
    mesh.end_session(0, node(0), "it is no more");
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
    assert!(refusal == PeerRefusal::Id && why.contains("node id 2 is in use"), "{why}");
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
