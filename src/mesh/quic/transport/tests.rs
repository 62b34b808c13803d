//! Links between two [`Transport`]s in one process, over loopback. The tests play the part of the mesh.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use super::*;
use crate::address::ShardId;
use crate::mesh::quic::bind;

/// A generous time limit for work that takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(60);

const KEY: &str = "0123456789abcdef";
const FIRST: Lane = Lane::Shard(ShardId(0));

fn run(test: impl Future<Output = ()>) {
    runtime().block_on(async { timeout(DEADLINE, test).await.expect("in time") });
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn node(key: &str) -> (Transport, String) {
    node_with(key, 1)
}

/// A transport with so many threads that carry links.
fn node_with(key: &str, threads: usize) -> (Transport, String) {
    let socket = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let target = socket.address.to_string();
    let identity = NodeIdentity::from_key(key).unwrap();
    (Transport::new(socket.socket, &identity, threads).unwrap(), target)
}

/// The next event of each transport.
async fn both(a: &mut Transport, b: &mut Transport) -> (LinkEvent, LinkEvent) {
    tokio::join!(a.next(true), b.next(true))
}

fn opened(event: LinkEvent, dialled: bool) -> LinkId {
    match event {
        LinkEvent::Opened { link, is_dialled, .. } if is_dialled == dialled => link,
        other => panic!("unexpected {other:?}"),
    }
}

/// Two transports with a link, and the id of the link at each.
async fn linked() -> ((Transport, LinkId), (Transport, LinkId)) {
    let ((mut a, _), (mut b, target)) = (node(KEY), node(KEY));
    a.perform(LinkEffect::Dial(target));
    let (at_a, at_b) = both(&mut a, &mut b).await;
    ((a, opened(at_a, true)), (b, opened(at_b, false)))
}

/// The next event of `a`, while `b` runs, too.
async fn of(a: &mut Transport, b: &mut Transport) -> LinkEvent {
    tokio::select! {
        event = a.next(true) => event,
        event = b.next(true) => panic!("unexpected at the other: {event:?}"),
    }
}

/// The data received on each lane, until there are this many bytes.
async fn received(a: &mut Transport, b: &mut Transport, bytes: usize) -> BTreeMap<Lane, Vec<u8>> {
    let mut lanes = BTreeMap::<Lane, Vec<u8>>::new();
    while lanes.values().map(Vec::len).sum::<usize>() < bytes {
        match of(a, b).await {
            LinkEvent::Received(_, lane, piece) => lanes.entry(lane).or_default().extend(piece),
            other => panic!("unexpected {other:?}"),
        }
    }
    lanes
}

fn send(transport: &mut Transport, link: LinkId, lane: Lane, bytes: &'static [u8]) {
    transport.perform(LinkEffect::Send(link, lane, Bytes::from_static(bytes)));
}

#[test]
fn lanes_and_datagrams_go_both_ways() {
    run(async {
        let ((mut a, at_a), (mut b, at_b)) = linked().await;
        for lane in [Lane::Control, Lane::Mesh, FIRST, Lane::Shard(ShardId(255))] {
            send(&mut a, at_a, lane, b"hello, ");
            send(&mut a, at_a, lane, b"you");
            let lanes = received(&mut b, &mut a, 10).await;
            assert_eq!(lanes, BTreeMap::from([(lane, b"hello, you".to_vec())]));
            send(&mut b, at_b, lane, b"and you");
            let lanes = received(&mut a, &mut b, 7).await;
            assert_eq!(lanes, BTreeMap::from([(lane, b"and you".to_vec())]));
        }
        a.perform(LinkEffect::Datagram(at_a, Bytes::from_static(b"ping")));
        let event = of(&mut b, &mut a).await;
        assert!(
            matches!(&event, LinkEvent::Datagram(link, bytes) if *link == at_b && bytes == "ping")
        );
        b.perform(LinkEffect::Datagram(at_b, Bytes::from_static(b"pong")));
        let event = of(&mut a, &mut b).await;
        assert!(
            matches!(&event, LinkEvent::Datagram(link, bytes) if *link == at_a && bytes == "pong")
        );
    });
}

#[test]
fn links_are_spread_over_threads_and_carry_data_there() {
    run(async {
        let ((mut hub, at_hub), mut peers) = (node_with(KEY, 2), Vec::new());
        let carried = |hub: &Transport| hub.report().iter().map(|it| it.links).collect::<Vec<_>>();
        // It dials one of them, and is dialled by the other.
        for hub_dials in [true, false] {
            let (mut peer, at_peer) = node(KEY);
            match hub_dials {
                true => hub.perform(LinkEffect::Dial(at_peer)),
                false => peer.perform(LinkEffect::Dial(at_hub.clone())),
            }
            let (here, there) = both(&mut hub, &mut peer).await;
            peers.push((peer, opened(here, hub_dials), opened(there, !hub_dials)));
        }
        assert_eq!(carried(&hub), [0, 1, 1]);
        for (peer, here, there) in &mut peers {
            for lane in [Lane::Control, FIRST] {
                send(&mut hub, *here, lane, b"hello");
                let lanes = received(peer, &mut hub, 5).await;
                assert_eq!(lanes, BTreeMap::from([(lane, b"hello".to_vec())]));
                send(peer, *there, lane, b"and you");
                let lanes = received(&mut hub, peer, 7).await;
                assert_eq!(lanes, BTreeMap::from([(lane, b"and you".to_vec())]));
            }
        }
        hub.perform(LinkEffect::Close(peers[0].1, "enough".into()));
        let event = hub.next(true).await;
        assert!(matches!(event, LinkEvent::Closed(link, _) if link == peers[0].1), "{event:?}");
        assert_eq!(carried(&hub).iter().sum::<u64>(), 1, "a link that is closed is not counted");
        // The node says goodbye on the thread of the other link.
        let (peer, _, there) = &mut peers[1];
        hub.leave("the node shuts down").await;
        let event = peer.next(true).await;
        let LinkEvent::Closed(link, why) = event else { panic!("unexpected {event:?}") };
        assert_eq!((link, &why[..]), (*there, "the peer closed it: the node shuts down"));
    });
}

#[test]
fn a_node_with_another_key_is_refused_with_a_reason() {
    run(async {
        let ((mut a, _), (mut b, target)) = (node(KEY), node("0123456789abcdeg"));
        a.perform(LinkEffect::Dial(target.clone()));
        let (at_a, at_b) = tokio::join!(a.next(true), refusal(&mut b));
        let LinkEvent::Unreachable(to, at_a) = at_a else { panic!("unexpected {at_a:?}") };
        assert_eq!(at_b, "the peer has another grid key (mesh.key) or authority (mesh.tls.ca)");
        assert_eq!((to, at_a), (target.clone(), format!("{target}: {at_b}")));
        for links in [&mut a, &mut b] {
            let event = links.next(true).await;
            assert!(matches!(event, LinkEvent::Refused(PeerRefusal::Key)), "{event:?}");
        }
    });
}

/// Why the handshake of a peer failed.
async fn refusal(transport: &mut Transport) -> String {
    loop {
        tokio::select! {
            Some(incoming) = transport.endpoint.accept() => transport.answer(incoming),
            Some(report) = transport.reports.control.recv() => match report {
                TaskReport::Answered { connection: Err(why), .. } => return why,
                _ => panic!("the handshake succeeded"),
            },
        }
    }
}

#[test]
fn the_reason_of_a_close_arrives_after_the_last_control_data() {
    run(async {
        let ((mut a, at_a), (mut b, _)) = linked().await;
        send(&mut a, at_a, Lane::Control, &[7; 100_000]);
        a.perform(LinkEffect::Close(at_a, "node 3 is there already".into()));
        send(&mut a, at_a, Lane::Control, b"too late");
        let both = async {
            let mut bytes = 0;
            let at_b = loop {
                match b.next(true).await {
                    LinkEvent::Received(_, Lane::Control, piece) => bytes += piece.len(),
                    LinkEvent::Closed(_, why) => break why,
                    other => panic!("unexpected {other:?}"),
                }
            };
            assert_eq!(bytes, 100_000);
            at_b
        };
        let (at_a, at_b) = tokio::join!(a.next(true), both);
        let LinkEvent::Closed(_, at_a) = at_a else { panic!("unexpected {at_a:?}") };
        assert_eq!(at_a, "closed here: node 3 is there already");
        assert_eq!(at_b, "the peer closed it: node 3 is there already");
    });
}

#[test]
fn a_large_transfer_arrives_in_order_and_waits_while_data_is_not_taken() {
    // All pieces are the same, and the length of their pattern does not divide theirs.
    const PATTERN: usize = 251;
    const PIECE: usize = PATTERN * 4096;
    const LANE_PIECES: usize = 22;
    run(async {
        let ((mut a, at_a), (mut b, at_b)) = linked().await;
        let lanes = [FIRST, Lane::Shard(ShardId(1)), Lane::Mesh];
        let pattern: Bytes = (0..PIECE).map(|place| (place % PATTERN) as u8).collect();
        for _ in 0..LANE_PIECES {
            for lane in lanes {
                a.perform(LinkEffect::Send(at_a, lane, pattern.clone()));
            }
        }
        // Data that is not taken stays at the sender, except for windows. The control lane is received.
        send(&mut a, at_a, Lane::Control, b"!");
        let event = tokio::select! {
            event = b.next(false) => event,
            event = a.next(true) => panic!("unexpected {event:?}"),
        };
        assert!(matches!(event, LinkEvent::Received(_, Lane::Control, _)), "{event:?}");
        let window = lanes.len() as u64 * u64::from(LANE_WINDOW_BYTES);
        let mut round_trips = 0;
        while round_trips < FULL_ROUND_TRIPS {
            round_trip(&mut a, at_a, &mut b, at_b).await;
            let sent = sent_bytes(&a, at_a);
            assert!(sent <= window * 5 / 4, "{sent}");
            // Until the windows are used up, a sender need not wait.
            round_trips += usize::from(sent >= window);
        }
        let mut places = BTreeMap::<Lane, usize>::new();
        while places.values().sum::<usize>() < lanes.len() * LANE_PIECES * PIECE {
            let event = of(&mut b, &mut a).await;
            let LinkEvent::Received(link, lane, piece) = event else {
                panic!("unexpected {event:?}")
            };
            let place = places.entry(lane).or_default();
            assert!(link == at_b && piece == pattern[*place % PATTERN..][..piece.len()]);
            *place += piece.len();
        }
        assert!(places.values().all(|bytes| *bytes == LANE_PIECES * PIECE));
    });
}

/// Round trips on the control lane while the windows of the other lanes are full. A sender that did not wait
/// would send several MiB meanwhile.
const FULL_ROUND_TRIPS: usize = 1000;

/// Sends a byte to `b` and back on the control lane, while neither takes data.
async fn round_trip(a: &mut Transport, at_a: LinkId, b: &mut Transport, at_b: LinkId) {
    send(a, at_a, Lane::Control, b"?");
    let event = tokio::select! {
        event = b.next(false) => event,
        event = a.next(false) => panic!("unexpected {event:?}"),
    };
    assert!(matches!(event, LinkEvent::Received(_, Lane::Control, _)), "{event:?}");
    send(b, at_b, Lane::Control, b"!");
    let event = tokio::select! {
        event = a.next(false) => event,
        event = b.next(false) => panic!("unexpected {event:?}"),
    };
    assert!(matches!(event, LinkEvent::Received(_, Lane::Control, _)), "{event:?}");
}

/// The bytes sent on a link, without those that were lost and sent again.
fn sent_bytes(transport: &Transport, link: LinkId) -> u64 {
    let stats = transport.links[&link].connection.stats();
    stats.udp_tx.bytes - stats.path.lost_bytes
}

#[test]
fn the_link_to_a_vanished_peer_is_lost() {
    let (say, said) = std::sync::mpsc::channel();
    let peer = std::thread::spawn(move || {
        let runtime = runtime();
        let links = runtime.block_on(async {
            let (mut links, target) = node(KEY);
            say.send(target).unwrap();
            opened(links.next(true).await, false);
            links
        });
        // The peer no longer runs, so it does not close the link.
        (links, runtime)
    });
    run(async {
        let (mut a, _) = node(KEY);
        a.perform(LinkEffect::Dial(said.recv().unwrap()));
        let at_a = opened(a.next(true).await, true);
        let event = a.next(true).await;
        let LinkEvent::Closed(link, why) = event else { panic!("unexpected {event:?}") };
        assert_eq!((link, &why[..]), (at_a, "no packet for 2500 ms"));
    });
    drop(peer.join().unwrap());
}

/// Opens lanes with these numbers, as a node never does.
async fn violate(numbers: &[&[u8]], expected: &str) {
    let ((mut a, at_a), (mut b, _)) = linked().await;
    let connection: Connection = a.links[&at_a].connection.clone();
    let mut streams = Vec::new();
    for number in numbers {
        let mut stream = connection.open_uni().await.unwrap();
        stream.write_all(number).await.unwrap();
        streams.push(stream);
    }
    let (at_a, at_b) = both(&mut a, &mut b).await;
    let LinkEvent::Closed(_, at_a) = at_a else { panic!("unexpected {at_a:?}") };
    let LinkEvent::Closed(_, at_b) = at_b else { panic!("unexpected {at_b:?}") };
    assert_eq!((at_a, &at_b[..]), (format!("the peer closed it: {expected}"), expected));
}

#[test]
fn an_unknown_lane_or_a_second_one_ends_the_link() {
    run(async {
        violate(&[&258u16.to_le_bytes()], "there is no lane 258").await;
        violate(&[&[1, 0], &[1, 0]], "lane 1 was opened twice").await;
    });
}

#[test]
fn a_lookup_over_its_time_is_reported_and_awaited_all_the_same() {
    run(async {
        let (control, mut reports) = mpsc::channel(8);
        let (answer, answered) = tokio::sync::oneshot::channel();
        let lookup = async { Ok(answered.await.expect("the lookup ends")) };
        let target = "node.example.org:6788";
        let work = report_lookup(target.into(), lookup, Duration::ZERO, &control);
        let play = async {
            let Some(TaskReport::Event(LinkEvent::Unreachable(of, why))) = reports.recv().await
            else {
                panic!("the limit is over")
            };
            assert_eq!((&of[..], &why[..]), (target, "looking up the name takes too long"));
            assert!(reports.try_recv().is_err(), "the lookup has not ended");
            let address = "127.0.0.1:6788".parse().unwrap();
            answer.send(vec![address]).unwrap();
            let Some(TaskReport::Resolved(of, addresses)) = reports.recv().await else {
                panic!("the lookup has ended")
            };
            assert_eq!((&of[..], addresses), (target, Ok(vec![address])));
        };
        tokio::join!(work, play);
    });
}

#[test]
fn a_dial_while_there_are_too_many_links_is_reported() {
    run(async {
        let (mut a, _) = node(KEY);
        a.answering = LINKS_MAX;
        a.perform(LinkEffect::Dial("127.0.0.1:9".into()));
        let event = a.next(true).await;
        let LinkEvent::Unreachable(of, why) = event else { panic!("unexpected {event:?}") };
        assert_eq!((&of[..], &why[..]), ("127.0.0.1:9", "there are too many links"));
    });
}

#[test]
fn an_unreachable_target_is_reported() {
    run(async {
        let (mut a, _) = node(KEY);
        // The discard port: nothing answers there with QUIC.
        for (target, words) in [
            ("127.0.0.1:9", "127.0.0.1:9: no answer"),
            ("[::1]:9", "has an IPv6 address only, and mesh.bind is an IPv4 address"),
        ] {
            a.perform(LinkEffect::Dial(target.into()));
            a.perform(LinkEffect::Dial(target.into()));
            let event = a.next(true).await;
            let LinkEvent::Unreachable(of, why) = event else { panic!("unexpected {event:?}") };
            assert_eq!((&of[..], &why[..]), (target, words));
        }
        assert!(a.ready(true).is_none(), "each was dialled once");
    });
}
