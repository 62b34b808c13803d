//! `node.list`.

use gridcast::address::NodeId;
use gridcast::message::LostNode;
use serde_json::json;

use crate::grid::Grid;

#[test]
fn the_figures_of_a_node_are_the_sums_over_its_shards() {
    let mut grid = Grid::new(&[2, 3]);
    let back_end = grid.back_end(0);
    for shard in [0, 1, 2, 2] {
        grid.client((1, shard), "/ws");
    }
    (0..2000).for_each(|_| grid.turn());
    let list = grid.ask(&back_end, "node.list", json!({}));
    assert_eq!(list["missing"], json!([]));
    let [first, second] = &list["nodes"].as_array().expect("a list")[..] else { panic!("{list}") };
    for (node, id, cores) in [(first, 1, 2), (second, 2, 3)] {
        assert_eq!((&node["id"], &node["cores"]), (&json!(id), &json!(cores)));
        assert_eq!((&node["state"], &node["version"]), (&json!("up"), &json!("0.1.0")));
        assert_eq!(node["uptime"], json!(2000));
    }
    assert_eq!((&first["clients"], &first["backends"]), (&json!(0), &json!(1)));
    assert_eq!((&second["clients"], &second["backends"]), (&json!(4), &json!(0)));
}

#[test]
fn messages_per_second_are_those_of_the_last_five_seconds() {
    let mut grid = Grid::new(&[1]);
    let back_end = grid.back_end(0);
    for _ in 0..3 {
        grid.client((0, 0), "/ws?channels=news");
    }
    let mut rates = Vec::new();
    for second in 0..20 {
        if second < 10 {
            let params = json!({ "c": "news", "d": "x" });
            (0..10).for_each(|_| _ = grid.ask(&back_end, "mesh.publish", params.clone()));
        }
        (0..1000).for_each(|_| grid.turn());
        let list = grid.ask(&back_end, "node.list", json!({}));
        rates.push(list["nodes"][0]["out_per_s"].as_f64().expect("a number"));
    }
    assert!(rates[..10].iter().all(|rate| (29.0..31.0).contains(rate)), "{rates:?}");
    assert!(rates[15..].iter().all(|rate| *rate == 0.0), "{rates:?}");
}

#[test]
fn a_node_that_does_not_answer_is_named_in_time() {
    let mut grid = Grid::new(&[1, 2, 1]);
    let back_end = grid.back_end(0);
    grid.unreachable.push(NodeId::new(9).expect("a small number"));
    grid.frozen.insert(1);
    let asked_ms = grid.now.ms;
    let list = grid.ask(&back_end, "node.list", json!({}));
    assert!(grid.now.ms - asked_ms < 1500, "after {} ms", grid.now.ms - asked_ms);
    assert_eq!(list["missing"], json!([2, 9]));
    let states = list["nodes"].as_array().expect("a list").iter().map(|node| &node["state"]);
    assert_eq!(states.collect::<Vec<_>>(), ["up", "silent", "up", "unreachable"]);
    assert_eq!(list["nodes"][1]["clients"], json!(null));
    assert_eq!(list["nodes"][2]["clients"], json!(0));
}

#[test]
fn a_node_that_was_lost_is_listed_and_not_waited_for() {
    let mut grid = Grid::new(&[1, 1]);
    let back_end = grid.back_end(1);
    let node = |number| NodeId::new(number).expect("a small number");
    let lost = |number, lost_ms| LostNode { node: node(number), version: "0.1.0".into(), lost_ms };
    grid.lost.extend([lost(9, 1000), lost(0, 2500)]);
    let list = grid.ask(&back_end, "node.list", json!({}));
    assert_eq!(list["missing"], json!([]));
    let nodes = list["nodes"].as_array().expect("a list").iter();
    let nodes: Vec<_> =
        nodes.map(|node| json!([node["id"], node["state"], node["lost_ms"]])).collect();
    let expected = [
        json!([0, "lost", 2500]),
        json!([1, "up", null]),
        json!([2, "up", null]),
        json!([9, "lost", 1000]),
    ];
    assert_eq!(nodes, expected);
    assert_eq!(list["nodes"][0]["clients"], json!(null));
}

#[test]
fn lists_at_once_are_bounded_and_one_that_is_answered_makes_room() {
    let mut grid = Grid::new(&[1, 1]);
    let back_ends: Vec<_> = (0..17).map(|_| grid.back_end(0)).collect();
    grid.frozen.insert(1);
    back_ends.iter().for_each(|back_end| grid.send(back_end, "node.list", json!({})));
    let refused = grid.answer(&back_ends[16]);
    assert_eq!(refused["E"]["c"], 103, "{refused}");
    (0..1500).for_each(|_| grid.turn());
    let list = grid.ask(&back_ends[16], "node.list", json!({}));
    assert_eq!(list["missing"], json!([2]));
}

#[test]
fn without_the_mesh_a_list_fails_in_time_and_is_not_shown_as_empty() {
    let mut grid = Grid::new(&[1, 1]);
    let back_end = grid.back_end(0);
    grid.is_mesh_silent = true;
    for method in ["node.list", "client.list", "channel.list", "topic.list", "backend.list"] {
        let asked_ms = grid.now.ms;
        grid.send(&back_end, method, json!({}));
        let answer = grid.answer(&back_end);
        assert_eq!(answer["E"]["c"], 301, "{method}: {answer}");
        assert!(answer["E"]["m"].as_str().is_some_and(|text| text.contains("mesh")), "{answer}");
        assert!(grid.now.ms - asked_ms < 1500, "after {} ms", grid.now.ms - asked_ms);
    }
}
