//! `user.send`, `user.call`, `user.info`, `channel.members` and `channel.info`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::grid::{BackEnd, Grid};

/// Opens this number of clients on each shard, all of this user.
fn users(grid: &mut Grid, asker: &BackEnd, count: usize, user: &Value) {
    for place in grid.places() {
        for _ in 0..count {
            grid.client(place, "/ws?channels=new");
        }
    }
    loop {
        let page = grid.ask(asker, "client.list", json!({ "channel": "new", "max": 1000 }));
        let rows = page["clients"].as_array().expect("a list").clone();
        for row in &rows {
            let mut call = |f: &str, a: Value| {
                grid.ask(asker, "conn.call", json!({ "c": row["c"], "f": f, "a": a }));
            };
            call("set_context_value", json!(["user_id", user]));
            call("unsubscribe", json!(["new"]));
        }
        if page["next"].is_null() {
            return;
        }
    }
}

#[test]
fn a_message_for_users_reaches_all_their_connections_on_all_nodes() {
    let mut grid = Grid::new(&[2, 1, 3]);
    let asker = grid.back_end(1);
    users(&mut grid, &asker, 2, &json!("ada"));
    users(&mut grid, &asker, 1, &json!(7));
    users(&mut grid, &asker, 1, &Value::Null);
    let mut sent = |u: Value| grid.ask(&asker, "user.send", json!({ "u": u, "d": "hello" }));
    assert_eq!(sent(json!("ada")), json!({ "s": 12, "f": 0 }));
    assert_eq!(sent(json!(7)), json!({ "s": 6, "f": 0 }));
    assert_eq!(sent(json!(["7", "nobody", "ada", 7])), json!({ "s": 18, "f": 0 }));
    assert_eq!(sent(json!(["ad", "null", "adaa"])), json!({ "s": 0, "f": 0 }));
    let delivered = grid.nodes.iter().flatten().map(|shard| shard.inspect().counters().delivered);
    assert_eq!(delivered.sum::<u64>(), 36);
    // A node that does not answer adds nothing.
    grid.frozen.insert(2);
    assert_eq!(
        grid.ask(&asker, "user.send", json!({ "u": 7, "d": "x" })),
        json!({ "s": 3, "f": 0 })
    );
}

#[test]
fn a_function_takes_effect_on_every_connection_of_a_user() {
    let mut grid = Grid::new(&[2, 1]);
    let asker = grid.back_end(0);
    users(&mut grid, &asker, 2, &json!("ada"));
    users(&mut grid, &asker, 1, &json!("bob"));
    let call = |grid: &mut Grid, u: Value, f: &str, a: Value| {
        grid.ask(&asker, "user.call", json!({ "u": u, "f": f, "a": a }))
    };
    let all = json!({ "s": 6, "f": 0 });
    assert_eq!(call(&mut grid, json!("ada"), "subscribe", json!(["news"])), all);
    let members = |grid: &mut Grid| {
        let page = grid.ask(&asker, "client.list", json!({ "channel": "news" }));
        page["clients"].as_array().map(Vec::len)
    };
    assert_eq!(members(&mut grid), Some(6));
    assert_eq!(
        call(&mut grid, json!(["ada", "bob"]), "info", json!([])),
        json!({ "s": 9, "f": 0 })
    );
    // The connections change their user while the command walks through them.
    let renamed = call(&mut grid, json!("ada"), "set_context_value", json!(["user_id", "eve"]));
    assert_eq!(renamed, all);
    assert_eq!(call(&mut grid, json!("ada"), "info", json!([])), json!({ "s": 0, "f": 0 }));
    assert_eq!(call(&mut grid, json!("eve"), "unsubscribe", json!(["news"])), all);
    assert_eq!(members(&mut grid), Some(0));
    grid.nodes.iter().flatten().for_each(|shard| shard.inspect().check_invariants());
    assert_eq!(call(&mut grid, json!("eve"), "close", json!([4001, "bye"])), all);
    assert_eq!(call(&mut grid, json!("eve"), "info", json!([])), json!({ "s": 0, "f": 0 }));
}

#[test]
fn a_user_with_many_connections_is_walked_in_slices_and_later_calls_wait() {
    let mut grid = Grid::new(&[1]);
    let asker = grid.back_end(0);
    users(&mut grid, &asker, 3000, &json!("guest"));
    grid.send(&asker, "user.send", json!({ "u": "guest", "d": "x" }));
    let delivered = |grid: &Grid| grid.nodes[0][0].inspect().counters().delivered;
    let at_once = delivered(&grid);
    assert!((1..=1024).contains(&at_once), "{at_once}");
    let answer = grid.answer(&asker);
    assert_eq!(answer["r"], json!({ "s": 3000, "f": 0 }));
    assert_eq!(delivered(&grid), 3000);
}

#[test]
fn the_members_of_a_channel_are_listed_with_their_users_once_in_pages() {
    let mut grid = Grid::new(&[2, 1]);
    let asker = grid.back_end(0);
    users(&mut grid, &asker, 2, &json!("ada"));
    grid.ask(&asker, "user.call", json!({ "u": "ada", "f": "subscribe", "a": ["room"] }));
    grid.client((1, 0), "/ws?channels=room");
    grid.client((1, 0), "/ws?channels=other");
    for max in [1, 3, 1000] {
        let (mut users, mut ids) = (Vec::new(), BTreeSet::new());
        let mut params = json!({ "c": "room", "max": max });
        loop {
            let page = grid.ask(&asker, "channel.members", params.clone());
            assert_eq!(page["missing"], json!([]));
            for row in page["members"].as_array().expect("a list") {
                assert_eq!(row.as_object().map(|row| row.len()), Some(2), "{row}");
                users.push(row["u"].clone());
                ids.insert(row["c"].as_str().expect("an id").to_owned());
            }
            params["after"] = page["next"].clone();
            if params["after"].is_null() {
                break;
            }
        }
        assert_eq!((users.len(), ids.len()), (7, 7), "in pages of {max}");
        assert_eq!(users.iter().filter(|user| **user == "ada").count(), 6);
    }
}

#[test]
fn users_are_told_with_all_their_connections_and_those_who_are_offline_with_none() {
    let mut grid = Grid::new(&[2, 1]);
    let asker = grid.back_end(0);
    users(&mut grid, &asker, 2, &json!("ada"));
    users(&mut grid, &asker, 1, &json!(7));
    users(&mut grid, &asker, 1, &Value::Null);
    let listed = grid.ask(&asker, "client.list", json!({ "max": 1000 }));
    let of_user = |user: &str| -> BTreeSet<String> {
        let rows = listed["clients"].as_array().expect("a list").iter();
        let rows = rows.filter(|row| row["u"] == user).map(|row| {
            json!({ "c": row["c"], "n": row["n"], "since": row["since"], "remote": row["remote"] })
        });
        rows.map(|row| row.to_string()).collect()
    };
    let told = |answer: &Value, user: &str| -> BTreeSet<String> {
        let rows = answer["users"][user].as_array().expect("a list").iter();
        rows.map(Value::to_string).collect()
    };
    let answer = grid.ask(&asker, "user.info", json!({ "u": ["nobody", 7, "ada", "7", "null"] }));
    assert_eq!(answer["users"].as_object().map(|users| users.len()), Some(4));
    for (user, connections) in [("ada", 6), ("7", 3), ("nobody", 0), ("null", 0)] {
        assert_eq!(told(&answer, user), of_user(user), "{user}");
        assert_eq!(told(&answer, user).len(), connections, "{user}");
    }
    assert_eq!(answer["missing"], json!([]));
    grid.frozen.insert(1);
    let answer = grid.ask(&asker, "user.info", json!({ "u": "ada" }));
    assert_eq!((told(&answer, "ada").len(), &answer["missing"]), (4, &json!([2])));
}

#[test]
fn users_with_many_connections_are_walked_in_slices() {
    let mut grid = Grid::new(&[1]);
    let asker = grid.back_end(0);
    users(&mut grid, &asker, 1000, &json!("guest"));
    users(&mut grid, &asker, 10, &json!("other"));
    let answer = grid.ask(&asker, "user.info", json!({ "u": ["other", "guest"] }));
    let count = |user: &str| answer["users"][user].as_array().map(Vec::len);
    assert_eq!((count("guest"), count("other")), (Some(1000), Some(10)));
}

#[test]
fn channels_are_told_with_the_number_of_their_subscribers_on_all_nodes() {
    let mut grid = Grid::new(&[2, 1]);
    let asker = grid.back_end(0);
    for place in grid.places() {
        grid.client(place, "/ws?channels=room,hall");
    }
    grid.client((1, 0), "/ws?channels=room");
    let answer =
        grid.ask(&asker, "channel.info", json!({ "c": ["room", "empty", "hall", "room"] }));
    let expected =
        json!({ "empty": { "clients": 0 }, "hall": { "clients": 3 }, "room": { "clients": 4 } });
    assert_eq!(answer, json!({ "channels": expected, "missing": [] }));
    let answer = grid.ask(&asker, "channel.info", json!({ "c": "room" }));
    assert_eq!(answer["channels"], json!({ "room": { "clients": 4 } }));
    grid.frozen.insert(1);
    let answer = grid.ask(&asker, "channel.info", json!({ "c": "room" }));
    assert_eq!(answer, json!({ "channels": { "room": { "clients": 2 } }, "missing": [2] }));
}
