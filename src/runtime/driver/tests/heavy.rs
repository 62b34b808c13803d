//! Buffers of sockets that send without pause, and buffers that remain for others.

use super::peer::{put_frame, upgrade};
use super::plain::Plain;
use super::*;

/// The size of a receive buffer under test.
const BUFFER_BYTES: u64 = 64;

/// Bytes of a message, and of its echo.
const MESSAGE: usize = 1000;
const ECHO: usize = MESSAGE + 4;

fn messages(count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..count {
        put_frame(&mut bytes, 0x82, &[b'x'; MESSAGE], Some(&mut Random::default()));
    }
    bytes
}

fn received<I: Tested>(world: &World<I>) -> u64 {
    world.driver.shard.inspect().counters().received_bytes
}

/// A client of the echo.
fn echoed<I: Tested>(world: &mut World<I>) -> Plain {
    let mut peer = Plain::connect(world.doors[1].address);
    peer.say(upgrade("/echo").as_bytes());
    world.turn_until(|_| {
        peer.read(1000);
        peer.got.ends_with(b"\r\n\r\n")
    });
    peer.got.clear();
    peer
}

on_both! {
    fn a_heavy_socket_has_one_buffer_on_its_way_and_none_while_it_is_paused<I>() {
        const MESSAGES: usize = 200;
        let mut world = World::<I>::without_faults(&settings(), 1);
        let mut peer = echoed(&mut world);
        peer.say(&messages(MESSAGES));
        let before = received(&world);
        world.turn_until(|world| received(world) > before + 4 * BUFFER_BYTES);
        // The peer reads nothing: its echoes fill the sockets, then its queue.
        let (mut turns_in_pause, mut when_paused) = (0, None);
        world.turn_until(|world| {
            let before = received(world);
            peer.write();
            world.turn();
            let after = received(world);
            assert!(after - before <= BUFFER_BYTES, "a turn took {} bytes", after - before);
            if !world.driver.sockets[0].as_ref().unwrap().wants_bytes {
                turns_in_pause += 1;
                let taken = after - *when_paused.get_or_insert(after);
                assert!(taken <= BUFFER_BYTES, "{taken} bytes were taken while it is paused");
            }
            turns_in_pause >= 100
        });
        world.turn_until(|_| {
            peer.write();
            peer.read(10_000);
            peer.got.len() >= MESSAGES * ECHO
        });
    }
}

on_both! {
    fn heavy_sockets_leave_buffers_to_light_ones<I>() {
        const HEAVY: usize = 8;
        let mut world = World::<I>::without_faults(&settings(), HEAVY + 1);
        let mut light = echoed(&mut world);
        let mut heavy: Vec<_> = (0..HEAVY).map(|_| echoed(&mut world)).collect();
        heavy.iter_mut().for_each(|peer| peer.say(&messages(1000)));
        let mut keep_on = move || {
            for peer in &mut heavy {
                peer.write();
                peer.read(10_000);
            }
        };
        let before = received(&world);
        world.turn_until(|world| {
            keep_on();
            received(world) - before > 100 * BUFFER_BYTES
        });
        let mut frame = Vec::new();
        put_frame(&mut frame, 0x82, b"light", Some(&mut Random::default()));
        for _ in 0..100 {
            let before = received(&world);
            light.say(&frame);
            light.got.clear();
            world.turn_until(|_| {
                keep_on();
                light.read(100);
                light.got.len() == 2 + b"light".len()
            });
            let others = received(&world) - before - frame.len() as u64;
            assert!(others <= 8 * BUFFER_BYTES, "it waited for {others} bytes of others");
        }
    }
}
