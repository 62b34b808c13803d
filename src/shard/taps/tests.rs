//! The walk by which connections are marked.

use super::*;
use crate::address::{ClientId, IdLayout, IdSource};
use crate::protocol::api::TapTarget;
use crate::shard::client::Clients;
use crate::shard::connection::Listener;
use crate::shard::fixture;

/// The turns until all connections are marked for this number of taps of channels.
fn turns_to_mark(clients: u64, channels: usize, taps: u64) -> usize {
    let mut settings = fixture::settings();
    settings.limits.channels_per_client = channels;
    let (mut turn, mut connections) = (fixture::turn(settings), Connections::default());
    let ids = IdSource::new(turn.address.node, turn.address.shard, IdLayout::new(1), 1);
    let mut all = Clients::new(&turn, ids);
    let names: Vec<String> = (0..channels).map(|number| format!("room:{number}")).collect();
    for id in 0..clients {
        let key = fixture::client(&mut turn, &mut connections, ClientId::from_value(id));
        all.subscribe(&mut turn, &mut connections, key, &names).expect("the limit allows them");
    }
    let key = fixture::accepted(&mut turn, &mut connections, Listener::Api);
    for ticket in 0..taps {
        let requester = Requester { ticket: Ticket(ticket), backend: turn.backend_id(key) };
        let target = TapTarget::Channel(names[channels - 1].as_str().into());
        assert!(turn.taps.start(requester, Tap { target, max_per_s: 1 }));
    }
    let mut marks = Taps::default();
    let mut turns = 0;
    while turn.taps.is_walk_due() || marks.next.is_some() {
        let is_in = |client: &_, channel: &str| all.is_subscribed(client, channel);
        marks.handle_turn(&mut turn, &mut connections, is_in);
        turns += 1;
        assert!(turns < 1000, "the walk does not end");
    }
    let keys = connections.keys(0, usize::MAX).0;
    let marked = keys.iter().filter(|&&key| connections.peek(key).expect("open").is_tapped());
    assert_eq!(marked.count() as u64, clients);
    turns
}

#[test]
fn a_turn_marks_fewer_connections_the_more_there_is_to_compare() {
    assert_eq!(turns_to_mark(300, 1, 1), 1);
    // Each client costs 8 comparisons with a tap, and with 8 times 640 subscriptions as much as 80 more.
    let clients_per_turn = COMPARED_PER_TURN.div_ceil(8 + 80);
    assert_eq!(turns_to_mark(300, 640, 8), 300_usize.div_ceil(clients_per_turn));
}
