//! How it is found out that nobody is there.

use super::peer::{put_frame, upgrade};
use super::plain::Plain;
use super::*;
use socket2::SockRef;

const PING_MS: u64 = 100;
const IDLE_MS: u64 = 200;

fn short_settings() -> Settings {
    let settings = settings();
    let limits = LimitSettings { ping_ms: PING_MS, idle_ms: IDLE_MS, ..settings.limits };
    Settings { limits, ..settings }
}

/// A client that has asked for more than the sockets hold and answers no ping.
fn flooded<I: Tested>(world: &mut World<I>) -> Plain {
    let mut peer = Plain::connect(world.doors[1].address);
    peer.say(upgrade("/echo").as_bytes());
    let mut message = Vec::new();
    put_frame(&mut message, 0x82, &[b'x'; 50_000], Some(&mut Random::default()));
    peer.say(&message);
    world.turn_until(|world| {
        peer.write();
        let socket = world.driver.sockets.first().and_then(Option::as_ref);
        socket.is_some_and(|socket| socket.unsent.is_some())
    });
    peer
}

/// Moves the clock on by 5 ms at a time, as often as the driver turns.
fn pass_time<I: Tested>(world: &mut World<I>, ms: u64, mut meanwhile: impl FnMut(&mut World<I>)) {
    for _ in 0..ms / 5 {
        world.driver.clock.start -= Duration::from_millis(5);
        world.turn();
        meanwhile(world);
    }
}

on_both! {
    fn the_kernel_gives_a_peer_up_that_acknowledges_nothing_for_as_long_as_it_may_be_idle<I>() {
        let mut world = World::<I>::without_faults(&short_settings(), 2);
        for door in 0..2 {
            let mut peer = Plain::connect(world.doors[door].address);
            peer.say(b"GET ");
            world.turn_until(|world| world.driver.sockets.get(door).is_some_and(Option::is_some));
            let socket = world.driver.sockets[door].as_ref().unwrap();
            let timeout = SockRef::from(&socket.fd).tcp_user_timeout().unwrap();
            assert_eq!(timeout, Some(Duration::from_millis(IDLE_MS)));
        }
    }
}

on_both! {
    fn a_peer_that_reads_what_its_socket_was_too_full_for_is_alive<I>() {
        let mut world = World::<I>::without_faults(&short_settings(), 1);
        let mut peer = flooded(&mut world);
        pass_time(&mut world, 5 * IDLE_MS, |world| {
            peer.read(250);
            let closed = world.driver.shard.inspect().counters().limits.idle_ms;
            assert_eq!(closed, 0, "it was closed though it reads");
        });
    }
}

on_both! {
    fn a_peer_that_reads_nothing_of_it_is_closed<I>() {
        let mut world = World::<I>::without_faults(&short_settings(), 1);
        let _peer = flooded(&mut world);
        // A connection that ends has some time to read the last words.
        pass_time(&mut world, 2 * IDLE_MS + 6000, |_| {});
        assert_eq!(world.driver.shard.inspect().connections(), 0);
        assert_eq!(world.driver.shard.inspect().counters().limits.idle_ms, 1);
    }
}
