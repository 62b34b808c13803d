//! Channels with history in a grid, as values, from seeds: nodes crash, freeze, leave, join and are cut off, sessions between
//! them end and begin, and devices come and go. Every device has to see one order, without a gap that it was not told of, and
//! nothing twice. With one fault at a time, nothing that was answered may be missing.
//!
//! `GRIDCAST_SEEDS=N` runs so many seeds in each weather, from `GRIDCAST_FIRST_SEED` on, `GRIDCAST_SEED=S` one of them, telling
//! all that happens.

#![forbid(unsafe_code)]

mod devices;
mod faults;
mod network;
mod order;
mod world;

// Shared with the simulation of one node.
#[path = "../simulation/random.rs"]
#[expect(dead_code, reason = "not every way to choose is of use here")]
mod random;
#[path = "../simulation/seeds.rs"]
mod seeds;

use faults::Weather;
use seeds::Replay;
use world::{Summary, World};

/// Seeds of a usual run, in each weather.
const SEEDS: u64 = 12;

/// Seeds that found a bug, and what it was.
const FOUND: [(Weather, u64); 0] = [];

fn replayed(weather: Weather, seed: u64, is_verbose: bool) -> Summary {
    let _replay = Replay { seed, test: "grid_history" };
    World::new(seed, weather, is_verbose).run()
}

fn run(weather: Weather) -> Summary {
    if let Some(seed) = seeds::number("GRIDCAST_SEED") {
        return replayed(weather, seed, true);
    }
    let found = FOUND.iter().filter(|(of, _)| *of == weather).map(|(_, seed)| *seed);
    let mut all = Summary::default();
    for seed in seeds::asked_for(SEEDS).chain(found) {
        all += replayed(weather, seed, false);
    }
    println!("{weather:?}: {all:?}");
    all
}

#[test]
fn after_single_faults_every_device_has_everything_that_was_answered() {
    let all = run(Weather::Calm);
    assert!(all.got > 0 && all.answered > 0, "devices get messages: {all:?}");
}

#[test]
fn in_a_storm_all_devices_see_one_order_and_know_of_every_gap() {
    let all = run(Weather::Stormy);
    assert!(all.got > 0 && all.answered > 0, "devices get messages: {all:?}");
}

#[test]
fn after_a_split_all_devices_know_of_every_gap() {
    let all = run(Weather::Split);
    assert!(all.got > 0 && all.answered > 0, "devices get messages: {all:?}");
}

#[test]
fn where_room_is_scarce_what_does_not_fit_is_refused_and_all_else_holds() {
    let all = run(Weather::Cramped);
    assert!(all.got > 0 && all.answered > 0, "devices get messages: {all:?}");
    assert!(all.refused > 0, "some find no room: {all:?}");
}
