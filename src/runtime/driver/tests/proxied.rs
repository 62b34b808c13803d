//! Connections that begin with a PROXY protocol header.

use std::num::NonZeroU32;

use super::peer::upgrade;
use super::plain::Plain;
use super::*;
use crate::shard::settings::{AddressLimits, ProxyMethod, ProxySettings};

const LINE: &[u8] = b"PROXY TCP4 192.0.2.1 192.0.2.9 56324 443\r\n";

/// Settings by which every peer of the edge is a trusted proxy, and each address has one connection.
fn proxied() -> Settings {
    let mut settings = settings();
    let from = "127.0.0.0/8".parse().expect("a range");
    let proxy = ProxySettings { from: [from].into_iter().collect(), method: ProxyMethod::Protocol };
    settings.edges[0].proxy = Some(Arc::new(proxy));
    settings.limits.addresses =
        AddressLimits { connections: NonZeroU32::new(1), ..AddressLimits::default() };
    settings
}

fn refused<I: Tested>(world: &World<I>) -> u64 {
    world.driver.shard.inspect().counters().proxy_refused
}

/// Sends pieces, each of which the driver reads before the next is sent. Waits for the upgrade.
fn connect<I: Tested>(world: &mut World<I>, pieces: &[&[u8]]) -> Plain {
    let mut peer = Plain::connect(world.doors[1].address);
    for piece in pieces {
        let socket_is_there = |world: &World<I>| {
            world.driver.sockets.iter().flatten().any(|socket| socket.awaits_header)
        };
        world.turn_until(|world| socket_is_there(world));
        peer.say(piece);
    }
    world.turn_until(|_| {
        peer.read(1000);
        assert!(!peer.is_ended, "it was closed");
        peer.got.starts_with(b"HTTP/1.1 101 ")
    });
    peer
}

fn expect_end<I: Tested>(world: &mut World<I>, peer: &mut Plain) {
    world.turn_until(|_| {
        peer.read(1000);
        peer.is_ended
    });
    assert_eq!(peer.got, b"");
}

on_both! {
    fn a_header_in_any_two_pieces_is_stripped_and_tells_the_address<I>() {
        let mut world = World::<I>::without_faults(&proxied(), 100);
        let request = upgrade("/echo");
        let whole = [LINE, request.as_bytes()].concat();
        for split in (1..LINE.len()).step_by(3) {
            let peer = connect(&mut world, &[&whole[..split], &whole[split..]]);
            assert_eq!(world.driver.shard.inspect().connections(), 1);
            drop(peer);
            world.turn_until(|world| world.is_settled());
        }
        assert_eq!(refused(&world), 0);
    }
}

on_both! {
    fn the_address_that_the_header_tells_is_counted_and_what_follows_waits_for_it<I>() {
        let mut world = World::<I>::without_faults(&proxied(), 100);
        let request = upgrade("/echo");
        let whole = [LINE, request.as_bytes()].concat();
        let _first = connect(&mut world, &[&whole]);
        let mut second = Plain::connect(world.doors[1].address);
        second.say(&whole);
        expect_end(&mut world, &mut second);
        let other = String::from_utf8(whole).expect("text").replace("192.0.2.1 ", "192.0.2.2 ");
        let _third = connect(&mut world, &[other.as_bytes()]);
        let counters = world.driver.shard.inspect().counters();
        assert_eq!(counters.limits.connections_per_address, 1);
    }
}

on_both! {
    fn what_is_no_header_ends_the_connection<I>() {
        let mut world = World::<I>::without_faults(&proxied(), 100);
        let request = upgrade("/echo");
        for (number, bytes) in [request.as_bytes(), b"PROXY \r\n", b"\r\n\r\n\0\r\nQUIT\n\xff\xff\xff\xff"]
            .into_iter()
            .enumerate()
        {
            let mut peer = Plain::connect(world.doors[1].address);
            peer.say(bytes);
            expect_end(&mut world, &mut peer);
            assert_eq!(refused(&world), number as u64 + 1);
        }
    }
}
