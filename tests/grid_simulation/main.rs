//! A whole grid from one seed: the shards and the mesh of each node as values, the network between
//! them, peers and sockets that are simulated, a clock that only steps. Links break and heal, nodes
//! crash, freeze and come back, packets get lost: what SPEC promises must hold, as strictly as the
//! time allows.
//!
//! `GRIDCAST_SEEDS=N` runs so many seeds, from `GRIDCAST_FIRST_SEED` on, `GRIDCAST_SEED=S` one of them,
//! telling all that happens.

mod backend;
mod bus;
mod client;
mod network;
mod node;
mod peer;
mod plan;
mod queue;
mod requests;
mod run;
mod weather;
mod world;

// Shared with the simulation of one node.
#[path = "../simulation/ledger.rs"]
#[expect(dead_code, reason = "the rules of the queue are others in a grid")]
mod ledger;
#[path = "../simulation/line.rs"]
#[expect(dead_code, reason = "whether a held client is heard is asked of one node")]
mod line;
#[path = "../simulation/plan.rs"]
#[expect(dead_code, reason = "only what one node is told is of use here")]
mod one_node;
#[path = "../simulation/pushes.rs"]
mod pushes;
#[path = "../simulation/random.rs"]
mod random;
#[path = "../simulation/seeds.rs"]
mod seeds;
#[path = "../support/shard.rs"]
mod shard_value;
#[path = "../simulation/wire.rs"]
#[expect(dead_code, reason = "back ends speak WebSocket alone here")]
mod wire;

use run::{Summary, run};
use seeds::Replay;

/// Seeds of a usual run.
const SEEDS: u64 = 20;

/// Seeds that found a bug, and what it was.
const FOUND: [u64; 13] = [
    3,     // What a consumer had to write came twice when it popped anew and unpopped.
    7,     // A publish behind a subscribe on the same connection missed its client on another node.
    9,     // The other end continued, for ever, a session that one end had ended.
    10,    // Links that gave way to others all the time, for a seed that was a name.
    62,    // What came back from a consumer came behind what was sent later.
    68,    // Likewise, with a gap.
    75,    // What came back did not make the topic hand out again.
    102,   // Two announcements that got lost, and nodes that never heard of each other.
    166,   // An event to a consumer that had cancelled, and was gone, stayed with it for ever.
    169,   // Likewise, and the consumer stayed too.
    253,   // What was written in one session counted in the next.
    114,   // A consumer was closed that had no room for long, until it had given back what it had.
    12663, // An older link took the place of a newer one, with what was said before on it.
];

fn replayed(seed: u64, is_verbose: bool) -> Summary {
    let _replay = Replay { seed, test: "grid_simulation" };
    run(seed, is_verbose)
}

#[test]
fn every_promise_holds_whatever_becomes_of_links_and_nodes() {
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
    assert!(all.doubled > 0 && all.sessions_lost > 0 && all.restarts > 0, "and trouble, too");
}

#[test]
fn seeds_that_found_a_bug_find_it_no_more() {
    for seed in FOUND {
        replayed(seed, false);
    }
}
