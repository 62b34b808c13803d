//! Tests of interest in channels, publishes and calls, and of the leases that they depend on.

use super::*;

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
fn a_tally_without_excluded_clients_is_not_what_a_silent_node_counts_as() {
    let mut net = Net::new(2);
    net.want(1, 0, 1, true);
    net.settle();
    net.heard.clear();
    net.publish(0, 1);
    net.published(5);
    net.publish_except(0, 2, Some(ClientId::from_value(7)));
    net.published(4);
    assert_eq!(net.tally(2), tally(4, 0));
    net.publish(0, 3);
    net.heard.clear();
    net.pass(1400);
    assert_eq!(net.tally(3), tally(0, 5));
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
