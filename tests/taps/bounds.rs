//! When a tap ends, and how much it may take: of memory, of a turn, and of events in a second.

use gridcast::shard::Listener;
use serde_json::{Value, json};

use crate::grid::{Grid, Place, whats};
use crate::shard_value;

#[test]
fn a_tap_ends_when_it_is_stopped_and_when_its_back_end_is_gone() {
    let mut grid = Grid::new();
    let (device, id) = grid.known_device((2, 1), "/ws");
    let (stopped, closed) = (grid.backend((1, 0)), grid.backend((1, 1)));
    for tapper in [stopped, closed] {
        grid.tap(tapper, &json!({ "c": id }));
        grid.tap(tapper, &json!({ "topic": "messages" }));
    }
    grid.send(device, "one");
    assert_eq!(whats(&grid.told(stopped)), ["in"], "once, although two taps match");
    assert_eq!(whats(&grid.told(closed)), ["in"]);
    assert_eq!(grid.call(stopped, "tap.stop", &json!({}))["r"], json!({ "s": true }));
    let now = grid.now;
    grid.shard(closed).handle_end(now, closed.key, true);
    grid.run();
    grid.send(device, "two");
    assert_eq!((grid.told(stopped), grid.told(closed)), (vec![], vec![]));
    assert_eq!(grid.call(stopped, "tap.stop", &json!({}))["r"], json!({ "s": true }));
}

#[test]
fn ended_taps_make_room_for_others() {
    let mut grid = Grid::new();
    let (device, id) = grid.known_device((2, 1), "/ws");
    let tapper = grid.backend((1, 0));
    for _ in 0..100 {
        grid.tap(tapper, &json!({ "c": id }));
        grid.send(device, "hello");
        assert_eq!(whats(&grid.told(tapper)), ["in"]);
        grid.call(tapper, "tap.stop", &json!({}));
        // Its mark is gone before its number is used again.
        grid.tap(tapper, &json!({ "user": "nobody" }));
        grid.send(device, "hello");
        assert_eq!(grid.told(tapper), Vec::<Value>::new());
        grid.call(tapper, "tap.stop", &json!({}));
    }
}

#[test]
fn the_taps_of_a_back_end_and_of_the_grid_are_bounded() {
    let mut grid = Grid::new();
    let params = json!({ "c": "1" });
    let mut tappers = Vec::new();
    for number in 0..4 {
        let tapper = grid.backend((1 + number % 2, 0));
        (0..8).for_each(|_| grid.tap(tapper, &params));
        tappers.push(tapper);
    }
    let last = grid.backend((2, 1));
    for (backend, why) in [
        (tappers[0], "this connection has 8 taps already; tap.stop ends them"),
        (last, "the grid has 32 taps already"),
    ] {
        let answer = grid.call(backend, "tap.start", &params);
        assert_eq!(answer["E"], json!({ "c": 103, "m": why }));
    }
    grid.call(tappers[0], "tap.stop", &json!({}));
    grid.tap(last, &params);
}

#[test]
fn events_beyond_the_rate_are_lost_and_counted() {
    let mut grid = Grid::new();
    let (device, id) = grid.known_device((2, 1), "/ws");
    let tapper = grid.backend((1, 0));
    grid.tap(tapper, &json!({ "c": id, "max_per_s": 5 }));
    for number in 0..20 {
        grid.send(device, &number.to_string());
    }
    let told = grid.told(tapper);
    let shown: Vec<_> = told.iter().map(|event| event["d"].as_str().unwrap()).collect();
    assert_eq!(shown, ["0", "1", "2", "3", "4"]);
    grid.wait(1000);
    grid.wait(1000);
    let at = grid.now.unix_ms;
    assert_eq!(grid.told(tapper), [json!({ "at": at, "what": "lost", "n": 15 })]);
    grid.send(device, "again");
    assert_eq!(whats(&grid.told(tapper)), ["in"]);
    grid.wait(5000);
    assert_eq!(grid.told(tapper), Vec::<Value>::new(), "nothing more was lost");
}

#[test]
fn a_tapper_is_told_once_that_a_node_is_unreachable_and_a_tap_goes_on_when_it_is_back() {
    let mut grid = Grid::new();
    let (device, id) = grid.known_device((2, 1), "/ws");
    let tapper = grid.backend((1, 0));
    grid.tap(tapper, &json!({ "c": id }));
    grid.cut();
    let at = grid.now.unix_ms;
    assert_eq!(grid.told(tapper), [json!({ "at": at, "what": "lost", "n": 0, "node": 2 })]);
    grid.wait(5000);
    assert_eq!(grid.told(tapper), Vec::<Value>::new(), "it is told once");
    grid.link();
    grid.send(device, "again");
    assert_eq!(whats(&grid.told(tapper)), ["in"]);
}

/// Sends 5,000 messages of a device in ten seconds, while the tapper reads nothing.
fn flood_unread(grid: &mut Grid, tapper: Place, device: Place) {
    grid.unread.insert(tapper, Vec::new());
    let text = "x".repeat(300);
    for _ in 0..10 {
        (0..500).for_each(|_| grid.send(device, &text));
        grid.wait(1000);
    }
}

#[test]
fn a_tapper_that_does_not_read_is_told_of_an_unreachable_node_later() {
    let mut grid = Grid::new();
    let (device, id) = grid.known_device((1, 1), "/ws");
    let tapper = grid.backend((1, 0));
    grid.tap(tapper, &json!({ "c": id, "max_per_s": 1000 }));
    flood_unread(&mut grid, tapper, device);
    grid.cut();
    grid.wait(5000);
    grid.read_again(tapper);
    (0..3).for_each(|_| grid.wait(1000));
    let told = grid.told(tapper);
    assert_eq!(told.iter().filter(|event| event["node"] == 2 && event["n"] == 0).count(), 1);
}

#[test]
fn the_rate_of_a_tap_holds_for_all_shards_together() {
    let mut grid = Grid::new();
    let tapper = grid.backend((1, 0));
    grid.tap(tapper, &json!({ "topic": "messages", "max_per_s": 10 }));
    let places = [(1, 0), (1, 1), (2, 0), (2, 1)];
    let devices = places.map(|at| grid.device(at, "/ws"));
    assert_eq!(grid.told(tapper).len(), 4);
    for device in devices.into_iter().cycle().take(40) {
        grid.send(device, "hello");
    }
    assert_eq!(grid.told(tapper).len(), 6);
    grid.wait(1000);
    grid.wait(1000);
    let told = grid.told(tapper);
    assert_eq!(told.iter().map(|event| event["n"].as_u64().unwrap()).sum::<u64>(), 34);
}

#[test]
fn a_tapper_that_does_not_read_loses_events_and_nothing_else() {
    let mut grid = Grid::new();
    let (device, id) = grid.known_device((1, 1), "/echo");
    let tapper = grid.backend((1, 0));
    grid.tap(tapper, &json!({ "c": id, "max_per_s": 1000 }));
    flood_unread(&mut grid, tapper, device);
    let held = grid.shard(tapper).inspect().held_bytes();
    assert!(held < (1 << 20) / 2, "{held} bytes wait for the tapper");
    assert_eq!(grid.read(device).len(), 5000, "the device got every echo");

    // The tapper reads again: its connection is open, and its calls are answered.
    grid.read_again(tapper);
    grid.wait(1000);
    grid.wait(1000);
    let told = grid.told(tapper);
    let lost: u64 = told.iter().filter_map(|event| event["n"].as_u64()).sum();
    let events = told.iter().filter(|event| event["what"] != "lost").count() as u64;
    assert!(lost > 5000, "{lost}");
    assert_eq!(events + lost, 10_000, "each event was told or counted");
    grid.send(device, "again");
    assert_eq!(whats(&grid.told(tapper)), ["in", "out"]);
    assert_eq!(grid.call(tapper, "tap.stop", &json!({}))["r"], json!({ "s": true }));
}

#[test]
fn events_on_their_way_to_a_frozen_node_are_bounded() {
    let mut grid = Grid::new();
    let (device, id) = grid.known_device((2, 1), "/ws");
    let tapper = grid.backend((1, 0));
    grid.tap(tapper, &json!({ "c": id, "max_per_s": 1000 }));
    for _ in 0..3 {
        grid.frozen.insert(1);
        (0..300).for_each(|number| grid.send(device, &number.to_string()));
        assert_eq!(grid.mail.len(), 128, "messages wait for the frozen node");
        grid.frozen.remove(&1);
        grid.run();
        let told = grid.told(tapper);
        assert!((96..=128).contains(&told.len()), "{}", told.len());
        assert_eq!((&told[0]["d"], &told[95]["d"]), (&json!("0"), &json!("95")));
        grid.wait(1000);
        grid.wait(1000);
        let lost: u64 = grid.told(tapper).iter().filter_map(|event| event["n"].as_u64()).sum();
        assert_eq!(told.len() as u64 + lost, 300);
    }
}

#[test]
fn a_frozen_node_is_named_and_watches_as_soon_as_it_runs() {
    let mut grid = Grid::new();
    let (device, id) = grid.known_device((2, 1), "/ws");
    let tapper = grid.backend((1, 0));
    grid.frozen.insert(2);
    grid.send(tapper, &json!({ "m": "tap.start", "p": { "c": id }, "i": 1 }).to_string());
    assert_eq!(grid.read(tapper), Vec::<String>::new());
    grid.wait(1499);
    assert_eq!(grid.read(tapper), Vec::<String>::new());
    grid.wait(50);
    assert_eq!(grid.read(tapper), [r#"{"E":null,"r":{"s":true,"missing":[2]},"i":1}"#]);
    grid.frozen.remove(&2);
    grid.run();
    grid.send(device, "hello");
    assert_eq!(whats(&grid.told(tapper)), ["in"]);
}

#[test]
fn a_node_that_comes_back_watches_again_and_one_that_goes_is_watched_for_no_more() {
    let mut grid = Grid::new();
    let (device, id) = grid.known_device((2, 1), "/ws");
    let tapper = grid.backend((1, 0));
    grid.tap(tapper, &json!({ "c": id }));
    grid.cut();
    grid.send(device, "while the node is unreachable");
    assert_eq!(whats(&grid.told(tapper)), ["lost"], "the node is named");
    grid.link();
    grid.send(device, "hello");
    let told = grid.told(tapper);
    assert_eq!(told.iter().map(|event| event["d"].clone()).collect::<Vec<_>>(), ["hello"]);
    grid.cut();
    let late = grid.backend((1, 0));
    grid.tap(late, &json!({ "c": id }));
    grid.link();
    grid.send(device, "again");
    assert_eq!(whats(&grid.told(tapper)), ["lost", "in"]);
    assert_eq!(whats(&grid.told(late)), ["in"]);
}

#[test]
fn connected_clients_are_marked_in_slices() {
    let mut grid = Grid::new();
    let now = grid.now;
    let count = 10_000;
    let shard = grid.shards.get_mut(&(1, 1)).expect("a shard");
    for _ in 0..count {
        shard_value::upgraded(shard, now, Listener::Edge(0), "/ws");
    }
    grid.run();
    let tapper = grid.backend((1, 0));
    // The more taps a connection is compared with, the fewer connections are visited in a turn.
    for taps in 1..=4 {
        let mut turns = 0;
        let start = json!({ "m": "tap.start", "p": { "topic": "messages" }, "i": 2 }).to_string();
        let mut frame = shard_value::call(&start);
        grid.shard(tapper).handle_bytes(now, tapper.key, &mut frame);
        while grid.read(tapper).is_empty() {
            grid.turn();
            turns += 1;
            assert!(turns < 20 * taps, "it is never answered");
        }
        assert!(turns > count * taps / 4096, "{turns} turns with {taps} taps");
        grid.run();
    }
}
