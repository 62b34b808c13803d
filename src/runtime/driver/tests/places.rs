//! Places for connections of the API (`limits.api_connections`).

use super::plain::Plain;
use super::*;

const REQUEST: &[u8] = b"GET /v1/nodes HTTP/1.1\r\nHost: localhost\r\n\r\n";

const PLACES: usize = 2;

fn counted<I: Tested>(world: &World<I>) -> u64 {
    world.driver.shard.inspect().counters().limits.api_connections
}

fn connect<I: Tested>(world: &World<I>, says: &[u8]) -> Plain {
    let mut peer = Plain::connect(world.doors[0].address);
    peer.say(says);
    peer
}

/// Connects callers and authenticates them.
fn callers<I: Tested>(world: &mut World<I>) -> Vec<Plain> {
    let mut callers: Vec<_> = (0..PLACES).map(|_| connect(world, REQUEST)).collect();
    callers.iter_mut().for_each(|caller| expect_answer(world, caller));
    callers
}

fn expect_answer<I: Tested>(world: &mut World<I>, caller: &mut Plain) {
    caller.got.clear();
    world.turn_until(|_| {
        caller.read(1000);
        assert!(!caller.is_ended, "it was closed");
        caller.got.starts_with(b"HTTP/1.1 200 ")
    });
}

fn expect_end<I: Tested>(world: &mut World<I>, caller: &mut Plain) {
    world.turn_until(|_| {
        caller.read(1000);
        caller.is_ended
    });
    assert_eq!(caller.got, b"");
}

on_both! {
    fn a_handshake_too_many_in_a_second_is_closed_and_the_api_has_no_such_limit<I>() {
        let mut world = World::<I>::without_faults(&settings(), 100);
        let capacity =
            Capacity { clients: 100, callers: 100, memory_bytes: 0, handshakes_per_s: 3 };
        world.watch.set_capacity(capacity);
        let refused = |world: &World<I>| {
            world.driver.shard.inspect().counters().limits.handshakes_per_s
        };
        let arrived =
            |world: &World<I>| world.driver.shard.inspect().connections() as u64 + refused(world);
        let mut peers = Vec::new();
        while refused(&world) == 0 {
            // A connection is accepted once something has arrived on it.
            let mut peer = Plain::connect(world.doors[1].address);
            peer.say(b"GET ");
            peers.push(peer);
            world.turn_until(|world| arrived(world) == peers.len() as u64);
        }
        assert!(peers.len() > 3, "three are allowed in a second, and {} came", peers.len());
        expect_end(&mut world, &mut peers.pop().unwrap());
        let mut caller = connect(&world, REQUEST);
        expect_answer(&mut world, &mut caller);
        // A third of a second later there is room for one.
        world.driver.clock.start -= Duration::from_millis(334);
        let before = world.driver.shard.inspect().connections();
        let mut peer = Plain::connect(world.doors[1].address);
        peer.say(b"GET ");
        world.turn_until(|world| world.driver.shard.inspect().connections() > before);
        assert_eq!(refused(&world), 1);
    }
}

on_both! {
    fn one_caller_too_many_is_closed_and_gets_the_next_place_that_is_free<I>() {
        let mut world = World::<I>::without_faults(&settings(), PLACES);
        let mut callers = callers(&mut world);
        assert_eq!(counted(&world), 0);
        let mut late = connect(&world, REQUEST);
        expect_end(&mut world, &mut late);
        assert_eq!(counted(&world), 1);
        for caller in &mut callers {
            caller.say(REQUEST);
            expect_answer(&mut world, caller);
        }
        callers.pop();
        world.turn_until(|world| world.driver.shard.inspect().connections() < PLACES);
        let mut next = connect(&world, REQUEST);
        expect_answer(&mut world, &mut next);
        assert_eq!(counted(&world), 1);
    }
}

on_both! {
    fn a_caller_that_asks_for_something_gets_the_place_of_the_oldest_that_does_not<I>() {
        let mut world = World::<I>::without_faults(&settings(), PLACES);
        let mut strangers = Vec::new();
        for count in 1..=PLACES {
            strangers.push(connect(&world, &REQUEST[..5]));
            world.turn_until(|world| world.driver.shard.inspect().connections() == count);
        }
        let mut caller = connect(&world, REQUEST);
        expect_answer(&mut world, &mut caller);
        expect_end(&mut world, &mut strangers[0]);
        assert_eq!(counted(&world), 1);
        strangers[1].say(&REQUEST[5..]);
        expect_answer(&mut world, &mut strangers[1]);
        assert_eq!(world.driver.shard.inspect().connections(), PLACES);
    }
}

on_both! {
    fn clients_do_not_count_as_callers_nor_callers_as_clients<I>() {
        let mut world = World::<I>::without_faults(&settings(), PLACES);
        let _callers = callers(&mut world);
        let mut clients: Vec<_> = (0..PLACES).map(|_| Plain::connect(world.doors[1].address)).collect();
        for client in &mut clients {
            client.say(super::peer::upgrade("/echo").as_bytes());
            world.turn_until(|_| {
                client.read(1000);
                assert!(!client.is_ended, "it was closed");
                client.got.ends_with(b"\r\n\r\n")
            });
        }
        assert_eq!(counted(&world), 0);
    }
}
