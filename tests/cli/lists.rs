//! `nodes`, `clients`, `channels`, `topics`.

use std::process::Stdio;
use std::sync::mpsc;

use serde_json::{Value, json};

use super::scripted::{Api, Reply};
use super::support::Server;
use super::{Ended, at, ended, run};

/// Runs a command against an API of the test.
#[track_caller]
fn ask(api: &Api, arguments: &[&str]) -> Ended {
    ended(&mut at(api.address, arguments), b"")
}

#[test]
fn the_nodes_are_shown_with_their_states() {
    let server = Server::new();
    let _device = server.device("/ws");
    let said = run(&server, &["nodes"]).succeeded();
    let lines: Vec<Vec<&str>> =
        said.lines().map(|line| line.split_whitespace().collect()).collect();
    let [header, node] = &lines[..] else { panic!("{said}") };
    assert_eq!(header[..4], ["NODE", "STATE", "VERSION", "UPTIME"]);
    assert_eq!(node[..3], ["1", "up", env!("CARGO_PKG_VERSION")]);
    let said = run(&server, &["nodes", "--json"]).succeeded();
    let node: Value = serde_json::from_str(&said).expect("one line of JSON");
    assert_eq!((&node["id"], &node["clients"], &node["cores"]), (&json!(1), &json!(1), &json!(2)));
    assert!(said.starts_with("{\"id\":1,\"state\":\"up\","), "{said}");
}

/// An API with this number of channels, whose pages end after at most `max` of them. Sends the params of
/// each call to the test.
fn channels(count: u64) -> (Api, mpsc::Receiver<Value>) {
    let (sender, asked) = mpsc::channel();
    let api = Api::start(move |method, params| {
        if method == "node.list" {
            return Reply::Result(r#"{"nodes":[],"missing":[]}"#.into());
        }
        assert_eq!(method, "channel.list");
        let _ = sender.send(params.clone());
        let after = params["after"].as_str().map_or(0, |after| after.parse().expect("a cursor"));
        let max = params["max"].as_u64().expect("a number");
        let end = count.min(after + max);
        let rows: Vec<String> =
            (after..end).map(|n| format!("{{\"c\":\"room:{n}\",\"clients\": {n}}}")).collect();
        let next = if end < count { format!("\"{end}\"") } else { "null".into() };
        let rows = rows.join(",");
        Reply::Result(format!(r#"{{"channels":[{rows}],"next":{next},"missing":[]}}"#))
    });
    (api, asked)
}

#[test]
fn all_pages_are_walked_and_each_row_is_a_line_as_the_api_gave_it() {
    let (api, asked) = channels(2500);
    let said = ask(&api, &["channels", "--json", "--prefix", "room:"]).succeeded();
    assert_eq!(said.lines().count(), 2500);
    assert!(said.starts_with("{\"c\":\"room:0\",\"clients\": 0}\n{\"c\":\"room:1\","), "{said}");
    let asked: Vec<Value> = asked.try_iter().collect();
    let first = json!({"prefix": "room:", "max": 1000});
    assert_eq!((asked.len(), &asked[0]), (3, &first));
    assert_eq!(asked[2], json!({"prefix": "room:", "max": 1000, "after": "2000"}));
}

#[test]
fn a_list_without_rows_says_so_to_people() {
    let (api, _asked) = channels(0);
    let ended = ask(&api, &["channels"]);
    assert_eq!((ended.code, &*ended.err), (Some(0), "gridcast: no channels\n"));
    let ended = ask(&api, &["channels", "--json"]);
    assert_eq!((ended.code, &*ended.err), (Some(0), ""));
}

#[test]
fn a_maximum_ends_the_walk() {
    let (api, asked) = channels(2500);
    let said = ask(&api, &["channels", "--max", "1001"]).succeeded();
    assert_eq!(said.lines().count(), 1002);
    assert!(said.starts_with("CHANNEL   CLIENTS\nroom:0          0\n"), "{said}");
    assert!(said.ends_with("room:1000    1,000\n"), "{said}");
    let asked: Vec<Value> = asked.try_iter().collect();
    assert_eq!(asked[1], json!({"max": 1, "after": "1000"}));
}

#[test]
fn a_reader_that_is_gone_ends_the_walk_quietly() {
    let (api, _asked) = channels(1_000_000);
    let mut command = at(api.address, &["channels"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary is there");
    drop(child.stdout.take());
    let ended = child.wait_with_output().expect("the process is ours");
    assert_eq!((ended.status.code(), &ended.stderr[..]), (Some(141), &b""[..]));
}

#[test]
fn nodes_that_did_not_answer_are_named_and_the_list_is_no_success() {
    let api = Api::start(|_, params| {
        let next = if params["after"].is_null() { "\"a\"" } else { "null" };
        Reply::Result(format!(r#"{{"clients":[{{"c":"7"}}],"next":{next},"missing":[3,2]}}"#))
    });
    let ended = ask(&api, &["clients", "--json"]);
    assert_eq!((ended.code, &ended.out[..]), (Some(1), "{\"c\":\"7\"}\n{\"c\":\"7\"}\n"));
    assert!(ended.err.contains("nodes that did not answer: 2, 3"), "{}", ended.err);
}

#[test]
fn every_filter_is_passed_on() {
    let (sender, asked) = mpsc::channel();
    let api = Api::start(move |method, params| {
        let _ = sender.send((method.to_owned(), params.clone()));
        Reply::Result(r#"{"clients":[],"next":null,"missing":[]}"#.into())
    });
    let filters = [
        "--by-user",
        "10000",
        "--channel",
        "news",
        "--address",
        "10.0.0.0/8",
        "--route",
        "/ws",
        "--node",
        "2",
        "--max",
        "5",
    ];
    let ended = ask(&api, &[&["clients"], &filters[..]].concat());
    assert_eq!((ended.code, &*ended.err), (Some(0), "gridcast: no clients\n"));
    assert!(ended.out.starts_with("CLIENT  NODE  USER"), "{ended:?}");
    let expected = json!({
        "user": "10000", "channel": "news", "address": "10.0.0.0/8", "route": "/ws", "node": 2, "max": 5,
    });
    assert_eq!(asked.try_recv(), Ok(("client.list".to_owned(), expected)));
}

#[test]
fn an_empty_list_names_the_nodes_that_were_lost() {
    let api = Api::start(|method, _| {
        Reply::Result(match method {
            "node.list" => concat!(
                r#"{"nodes":[{"id":1,"state":"up","lost_ms":null},"#,
                r#"{"id":3,"state":"lost","lost_ms":130000}],"missing":[]}"#
            )
            .into(),
            _ => r#"{"clients":[],"next":null,"missing":[]}"#.into(),
        })
    });
    let ended = ask(&api, &["clients", "--by-user", "10000"]);
    let word = "gridcast: no clients (node 3 was lost 2 min ago: what was there is not listed)\n";
    assert_eq!((ended.code, &*ended.err), (Some(0), word));
    assert!(ask(&api, &["nodes"]).succeeded().contains("lost 2 min ago"));
}

#[test]
fn a_walk_survives_a_lost_connection() {
    let mut is_lost = false;
    let api = Api::start(move |_, params| {
        if params["after"].is_null() {
            return Reply::Result(r#"{"topics":[{"t":"a"}],"next":"a","missing":[]}"#.into());
        }
        if !std::mem::replace(&mut is_lost, true) {
            return Reply::Lost;
        }
        Reply::Result(r#"{"topics":[{"t":"b"}],"next":null,"missing":[]}"#.into())
    });
    let said = ask(&api, &["topics", "--json"]).succeeded();
    assert_eq!(said, "{\"t\":\"a\"}\n{\"t\":\"b\"}\n");
}

#[test]
fn what_is_no_list_is_a_failure() {
    let api = Api::start(|_, _| Reply::Result("{}".into()));
    let error = ask(&api, &["topics"]).failed(1);
    assert!(error.contains("topic.list: the answer is not a list"), "{error}");
    let api = Api::start(|_, _| Reply::Result(r#"{"topics":[],"next":"a","missing":[]}"#.into()));
    let ended = ask(&api, &["topics"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("the pages do not end"), "{}", ended.err);
    let api = Api::start(|_, _| Reply::Error(102, "this user's roles do not allow it"));
    let error = ask(&api, &["channels"]).failed(4);
    assert!(error.contains("channel.list: this user's roles do not allow it"), "{error}");
    let api = Api::start(|_, _| Reply::Lost);
    ask(&api, &["clients"]).failed(3);
}

#[test]
fn what_a_device_has_named_cannot_control_the_terminal() {
    let api = Api::start(|_, _| {
        let row = r#"{"c":"7","u":"\u001b[2Jann\nbob"}"#;
        Reply::Result(format!(r#"{{"clients":[{row}],"next":null,"missing":[]}}"#))
    });
    let said = ask(&api, &["clients"]).succeeded();
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(said.contains("\\u{1b}[2Jann\\nbob") && !said.contains('\u{1b}'), "{said}");
}

#[test]
fn an_operator_finds_one_device_among_others_and_the_topic_that_falls_behind() {
    let server = Server::new();
    let (mut device, id) = server.client();
    let _other = server.device("/plain?channels=sport");
    run(&server, &["call", &id, "subscribe", "news", "room:1"]).succeeded();
    run(&server, &["call", &id, "set_context_value", "user_id", "10000"]).succeeded();
    let found = run(&server, &["clients", "--by-user", "10000", "--json"]).succeeded();
    let client: Value = serde_json::from_str(&found).expect("one line of JSON");
    assert_eq!((&client["c"], &client["u"]), (&json!(id), &json!("10000")));
    for filter in
        [["--channel", "news"], ["--route", "/ws"], ["--channel", "room:1"], ["--by-user", "10000"]]
    {
        let found = run(&server, &[&["clients"], &filter[..]].concat()).succeeded();
        assert_eq!(found.lines().count(), 2, "{found}");
        assert!(found.contains(&id) && found.contains("/ws"), "{found}");
    }
    for (filter, count) in [
        (["--address", "127.0.0.0/8"], 2),
        (["--node", "1"], 2),
        (["--max", "1"], 1),
        (["--by-user", "1"], 0),
        (["--address", "10.0.0.1"], 0),
    ] {
        let found = run(&server, &[&["clients", "--json"], &filter[..]].concat()).succeeded();
        assert_eq!(found.lines().count(), count, "{filter:?}: {found}");
    }
    let channels = run(&server, &["channels"]).succeeded();
    let rows: Vec<Vec<&str>> = channels.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows[1..], [["news", "1"], ["room:1", "1"], ["sport", "1"]], "{channels}");
    let rooms = run(&server, &["channels", "--prefix", "room:", "--json"]).succeeded();
    assert_eq!(rooms, "{\"c\":\"room:1\",\"clients\":1}\n");
    device.send_text("nobody reads this");
    device.synchronise();
    let topics = run(&server, &["topics", "--json"]).succeeded();
    let messages = topics.lines().find(|line| line.contains("\"t\":\"messages\""));
    let topic: Value = serde_json::from_str(messages.expect("the topic")).expect("JSON");
    assert_eq!((&topic["messages"], &topic["consumers"]), (&json!(1), &json!(0)));
    assert!(run(&server, &["topics"]).succeeded().starts_with("TOPIC "));
    let error = run(&server, &["clients", "--address", "here"]).failed(1);
    assert!(error.contains("client.list: address: "), "{error}");
}
