//! `client.list`.

use std::collections::BTreeMap;

use gridcast::message::ConnectionKey;
use serde_json::{Value, json};

use crate::grid::{BackEnd, Grid, node_id};

/// The rows of all pages, and the number of pages.
#[track_caller]
fn walk(grid: &mut Grid, back_end: &BackEnd, method: &str, params: Value) -> (Vec<Value>, usize) {
    walk_with(grid, back_end, method, params, |_| {})
}

/// Walks all pages, and calls `between` after each.
#[track_caller]
fn walk_with(
    grid: &mut Grid,
    back_end: &BackEnd,
    method: &str,
    mut params: Value,
    mut between: impl FnMut(&mut Grid),
) -> (Vec<Value>, usize) {
    let name = format!("{}s", method.split('.').next().expect("a name"));
    let mut rows = Vec::new();
    for pages in 1..10_000 {
        let mut page = grid.ask(back_end, method, params.clone());
        assert_eq!(page["missing"], json!([]));
        let found = page[&name].as_array_mut().expect("a list");
        let max = params["max"].as_u64().unwrap_or(100) as usize;
        assert!(found.len() <= max, "{} rows", found.len());
        rows.append(found);
        params["after"] = page["next"].take();
        if params["after"].is_null() {
            return (rows, pages);
        }
        between(grid);
    }
    panic!("the walk does not end");
}

/// Clients by their ids, with the number of times that they were listed.
fn counted(rows: &[Value]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for row in rows {
        *counts.entry(row["c"].as_str().expect("an id").to_owned()).or_default() += 1;
    }
    counts
}

/// Opens this number of clients on each shard.
fn crowd(grid: &mut Grid, count: usize, path: &str) -> Vec<((usize, usize), ConnectionKey)> {
    let places = grid.places();
    let mut clients = Vec::new();
    for _ in 0..count {
        for &place in &places {
            clients.push((place, grid.client(place, path)));
        }
    }
    clients
}

#[test]
fn pages_list_every_client_once_in_the_order_of_nodes() {
    let mut grid = Grid::new(&[3, 1, 2]);
    let back_end = grid.back_end(1);
    crowd(&mut grid, 40, "/ws?channels=a,b");
    for max in [1, 7, 100, 1000] {
        let (rows, pages) = walk(&mut grid, &back_end, "client.list", json!({ "max": max }));
        let counts = counted(&rows);
        assert_eq!((counts.len(), rows.len()), (240, 240), "in pages of {max}");
        assert!(pages <= 240_usize.div_ceil(max) + 1, "{pages} pages of {max}");
        assert!(rows.is_sorted_by_key(|row| row["n"].as_u64()));
    }
    let (rows, _) = walk(&mut grid, &back_end, "client.list", json!({ "max": 1, "node": 2 }));
    assert_eq!(rows.len(), 40);
    let row = &rows[0];
    assert_eq!((&row["n"], &row["u"], &row["path"]), (&json!(2), &Value::Null, &json!("/ws")));
    assert_eq!((&row["remote"], &row["channels"]), (&json!("127.0.0.1:50000"), &json!(2)));
    assert!(row["since"].as_u64() >= Some(1_700_000_000_000) && row["buffered"].is_u64());
}

#[test]
fn clients_that_stay_are_listed_once_while_others_come_and_go() {
    let mut grid = Grid::new(&[2, 2]);
    let back_end = grid.back_end(0);
    let mut passing = crowd(&mut grid, 50, "/ws?channels=passing");
    let staying = crowd(&mut grid, 50, "/ws?channels=staying");
    let (rows, _) = walk(&mut grid, &back_end, "client.list", json!({ "channel": "staying" }));
    let stay = counted(&rows);
    assert_eq!(stay.len(), staying.len());
    let change = |grid: &mut Grid| {
        for _ in 0..5 {
            if let Some((place, key)) = passing.pop() {
                grid.gone(place, key);
            }
            let place = (passing.len() % 2, passing.len() / 2 % 2);
            grid.client(place, "/ws?channels=new");
        }
    };
    let params = json!({ "max": 10 });
    let (rows, _) = walk_with(&mut grid, &back_end, "client.list", params, change);
    let counts = counted(&rows);
    assert!(counts.values().all(|count| *count == 1), "one is listed twice");
    assert!(stay.keys().all(|client| counts.contains_key(client)), "one is missing");
}

#[test]
fn a_client_has_to_meet_all_conditions() {
    let mut grid = Grid::new(&[2, 1]);
    let back_end = grid.back_end(0);
    crowd(&mut grid, 2, "/ws?channels=news,sport");
    crowd(&mut grid, 1, "/ws?channels=sport");
    let all = grid.ask(&back_end, "client.list", json!({}));
    let ids: Vec<String> =
        counted(all["clients"].as_array().expect("a list")).into_keys().collect();
    assert_eq!(ids.len(), 9);
    for (index, id) in ids.iter().enumerate() {
        let user = if index % 2 == 0 { json!("ada") } else { json!(7) };
        let call = json!({ "c": id, "f": "set_context_value", "a": ["user_id", user] });
        grid.ask(&back_end, "conn.call", call);
    }
    let mut count = |params: Value| {
        let (rows, _) = walk(&mut grid, &back_end, "client.list", params);
        assert!(counted(&rows).values().all(|count| *count == 1));
        rows.len()
    };
    assert_eq!(count(json!({ "user": "ada" })) + count(json!({ "user": "7" })), 9);
    assert_eq!(count(json!({ "user": "ad" })), 0);
    assert_eq!((count(json!({ "channel": "news" })), count(json!({ "channel": "x" }))), (6, 0));
    assert_eq!(count(json!({ "channel": "sport", "max": 2 })), 9);
    assert_eq!(count(json!({ "address": "127.0.0.0/8" })), 9);
    assert_eq!(count(json!({ "address": "::ffff:127.0.0.1" })), 9);
    assert_eq!(count(json!({ "address": "10.0.0.0/8" })), 0);
    assert_eq!((count(json!({ "route": "/ws" })), count(json!({ "route": "/x" }))), (9, 0));
    assert_eq!((count(json!({ "node": 1 })), count(json!({ "node": 2 }))), (6, 3));
    assert_eq!((count(json!({ "c": ids[0] })), count(json!({ "c": "1" }))), (1, 0));
    assert_eq!(count(json!({ "c": ids, "max": 2 })), 9);
    let both = count(json!({ "channel": "news", "node": 2 }));
    let users = ["ada", "7"].map(|user| {
        count(json!({ "channel": "news", "node": 2, "user": user, "c": ids, "route": "/ws" }))
    });
    assert_eq!((both, users[0] + users[1]), (2, 2));
}

#[test]
fn a_channel_of_many_is_found_among_all_clients() {
    let mut grid = Grid::new(&[1]);
    let back_end = grid.back_end(0);
    for index in 0..17_000 {
        grid.client((0, 0), if index % 16 == 0 { "/ws?channels=b" } else { "/ws?channels=a,b" });
    }
    let params = json!({ "channel": "b", "max": 1000 });
    assert_eq!(counted(&walk(&mut grid, &back_end, "client.list", params).0).len(), 17_000);
    let params = json!({ "channel": "a", "max": 1000 });
    assert_eq!(counted(&walk(&mut grid, &back_end, "client.list", params).0).len(), 15_937);
}

#[test]
fn a_walk_looks_at_no_more_than_its_budget_in_a_turn_and_its_pace_leaves_turns_to_others() {
    let mut grid = Grid::new(&[1]);
    let back_end = grid.back_end(0);
    for _ in 0..10_000 {
        grid.client((0, 0), "/ws");
    }
    // Each client that is looked at costs 5 units, of 4,096 in a slice. Its row costs 40 more. Clients of other
    // users are not looked at.
    for (params, rows, units) in [
        (json!({ "user": "nobody", "max": 1000 }), 0, 0),
        (json!({ "route": "/x", "max": 1000 }), 0, 10_000 * 5),
        (json!({ "max": 1000 }), 1000, 1000 * (5 + 40)),
    ] {
        grid.send(&back_end, "client.list", params);
        let asked_ms = grid.now.ms;
        let answer = grid.answer(&back_end);
        assert_eq!(answer["r"]["clients"].as_array().map(Vec::len), Some(rows));
        let slices = units / 4096;
        let took_ms = grid.now.ms - asked_ms;
        assert!((slices * 4..=(slices + 3) * 4).contains(&took_ms), "{took_ms} ms");
    }
}

#[test]
fn a_page_that_takes_long_ends_early_and_the_next_goes_on() {
    let mut grid = Grid::new(&[2]);
    grid.set_limits(|limits| limits.answer_ms = 40);
    let back_end = grid.back_end(0);
    let clients = crowd(&mut grid, 8000, "/ws");
    let last = {
        let (place, key) = clients[clients.len() - 1];
        assert_eq!(place, (0, 1));
        key
    };
    assert!(last.index >= 7999);
    let (rows, pages) = walk(&mut grid, &back_end, "client.list", json!({ "max": 1000 }));
    assert_eq!((counted(&rows).len(), rows.len()), (16_000, 16_000));
    assert!(pages > 17, "{pages} pages of at most 1000");
    let (rows, pages) = walk(&mut grid, &back_end, "client.list", json!({ "route": "/x" }));
    assert!(rows.is_empty() && pages > 1, "{pages} pages");
}

#[test]
fn the_clients_of_a_user_are_found_at_once_and_as_the_user_changes() {
    let mut grid = Grid::new(&[2, 1]);
    let back_end = grid.back_end(1);
    let clients = crowd(&mut grid, 3000, "/ws");
    let (rows, _) = walk(&mut grid, &back_end, "client.list", json!({ "max": 1000 }));
    let set = |grid: &mut Grid, row: &Value, user: &str| {
        let call = json!({ "c": row["c"], "f": "set_context_value", "a": ["user_id", user] });
        grid.ask(&back_end, "conn.call", call);
    };
    // More than are chosen at a time on a shard.
    for row in rows.iter().filter(|row| row["n"] == 2).take(2500) {
        set(&mut grid, row, "many");
    }
    let last = &rows[5999];
    assert_eq!(last["n"], 1);
    set(&mut grid, last, "last");
    let found = |grid: &mut Grid, user: &str| {
        let params = json!({ "user": user, "max": 1000 });
        walk(grid, &back_end, "client.list", params)
    };
    let (many, _) = found(&mut grid, "many");
    assert_eq!((counted(&many).len(), many.len()), (2500, 2500));
    let asked_ms = grid.now.ms;
    let (rows, pages) = found(&mut grid, "last");
    assert_eq!((&rows[0]["c"], rows.len(), pages), (&last["c"], 1, 1));
    assert!(grid.now.ms - asked_ms < 20, "{} ms", grid.now.ms - asked_ms);

    set(&mut grid, last, "many");
    assert_eq!((found(&mut grid, "last").0.len(), found(&mut grid, "many").0.len()), (0, 2501));
    for (place, key) in clients {
        grid.gone(place, key);
    }
    assert_eq!(found(&mut grid, "many").0.len(), 0);
    grid.nodes.iter().flatten().for_each(|shard| shard.inspect().check_invariants());
}

#[test]
fn a_node_that_does_not_answer_is_named_and_passed_over() {
    let mut grid = Grid::new(&[1, 2, 1]);
    let back_end = grid.back_end(0);
    crowd(&mut grid, 5, "/ws");
    grid.frozen.insert(1);
    let asked_ms = grid.now.ms;
    let page = grid.ask(&back_end, "client.list", json!({}));
    assert!(grid.now.ms - asked_ms < 1500);
    let rows = |page: &Value| page["clients"].as_array().expect("a list").len();
    assert_eq!((rows(&page), &page["missing"], &page["next"]), (5, &json!([2]), &json!("3-0")));
    let page = grid.ask(&back_end, "client.list", json!({ "after": "3-0" }));
    assert_eq!((rows(&page), &page["missing"], &page["next"]), (5, &json!([]), &Value::Null));
    // A node that the mesh does not reach costs no time.
    grid.frozen.clear();
    grid.unreachable.push(node_id(6));
    let page = grid.ask(&back_end, "client.list", json!({}));
    assert_eq!((rows(&page), &page["missing"]), (20, &json!([7])));
    for node in [7, 99] {
        let page = grid.ask(&back_end, "client.list", json!({ "node": node }));
        assert_eq!((rows(&page), &page["missing"]), (0, &json!([node])));
    }
}

#[test]
fn walks_of_a_shard_at_once_are_bounded() {
    let mut grid = Grid::new(&[1, 1, 1, 1, 1, 1]);
    let mut back_ends = Vec::new();
    for node in 0..5 {
        for _ in 0..16 {
            back_ends.push(grid.back_end(node));
        }
    }
    let params = json!({ "node": 6, "user": "nobody" });
    back_ends.iter().for_each(|back_end| grid.send(back_end, "client.list", params.clone()));
    let answers: Vec<Value> = back_ends.iter().map(|back_end| grid.answer(back_end)).collect();
    let refused = answers.iter().filter(|answer| answer["E"]["c"] == 103).count();
    assert_eq!((refused, answers.iter().filter(|a| a["E"].is_null()).count()), (16, 64));
    let page = grid.ask(&back_ends[79], "client.list", json!({ "node": 6 }));
    assert_eq!(page["missing"], json!([]));
}
