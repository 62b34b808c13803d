//! A whole node from one seed: shards as values, peers and sockets that are simulated, a clock that
//! only steps. Whatever happens in whichever order, what SPEC promises must hold.
//!
//! `GRIDCAST_SEEDS=N` runs so many seeds, from `GRIDCAST_FIRST_SEED` on, `GRIDCAST_SEED=S` one of them,
//! telling all that happens.

mod backend;
mod client;
mod ledger;
mod line;
mod peer;
mod plan;
mod pushes;
mod random;
mod run;
mod seeds;
#[path = "../support/shard.rs"]
mod shard_value;
mod wire;
mod world;

use run::{Summary, run};
use seeds::Replay;

/// Seeds of a usual run.
const SEEDS: u64 = 60;

/// Seeds that found a bug before nodes stopped and clients died without a word, and what it was. They
/// are run without either.
const FOUND: [u64; 10] = [
    2,      // An event before the answer to the queue.pop that asked for it.
    7,      // A client that went while it was held: its socket and subscriptions stayed.
    9,      // A client that ended while it waited for room, and was held then: likewise.
    413,    // A back end that was gone before its queue.pop had its turn, and consumed for ever.
    90,     // One that broke off meanwhile waited to be read, for ever.
    358,    // What two consumers left came back in another order than it was sent in.
    50_152, // What a broken connection had sent before was sent back to it, without bound.
    33_233, // An event and a consumer that had just cancelled: handed out and given back without end.
    96_271, // Who left a channel and came back was met twice by a walk that was under way.
    3139,   // A question whose asker was gone stayed until its time was over.
];

/// Seeds that found a bug since then.
const FOUND_IN_TROUBLE: [u64; 10] = [
    5_000_805,  // A client that had ended and was held twice in one reading was never reported.
    5_002_032,  // The same, of a connection that broke.
    5_001_268,  // The same, of one that lived: its ping was not answered.
    5_003_600,  // Messages dropped for want of memory behind a close event that did not say so.
    5_000_510, // A held client that died with a full read-ahead, and the ping in flight, stayed for ever.
    5_003_659, // Two of them, on two shards.
    5_000_902, // What such clients had sent was still on its way to its topic when the checker looked.
    5_004_013, // Clients that waited for a consumer filled the memory, so that it was not let in.
    5_000_398, // Another one.
    30_003_246, // Histories of clients that compress, and little else, filled most of the memory.
];

fn replayed(seed: u64, is_verbose: bool) -> Summary {
    let _replay = Replay { seed, test: "simulation" };
    run(seed, is_verbose)
}

#[test]
fn every_promise_holds_in_whatever_order_things_happen() {
    if let Some(seed) = seeds::number("GRIDCAST_SEED") {
        println!("{:?}", replayed(seed, true));
        return;
    }
    let mut all = Summary::default();
    for seed in seeds::asked_for(SEEDS) {
        all += replayed(seed, false);
    }
    println!("{all:?}");
    assert!(all.answers > 0 && all.events > 0 && all.delivered > 0, "something happened");
    assert!(all.compressed > 0, "in either form");
    assert!(all.doubled > 0 && all.failed > 0 && all.slow_closed > 0, "and trouble, too");
    assert!(all.shed_readers > 0 && all.shed_frames > 0, "and memory was short");
    assert!(all.held_back > 0 && all.turned_away > 0, "and limits were reached");
}

#[test]
fn seeds_that_found_a_bug_find_it_no_more() {
    for seed in FOUND.into_iter().chain(FOUND_IN_TROUBLE) {
        replayed(seed, false);
    }
}
