//! `tap`.

use std::sync::mpsc;

use serde_json::{Value, json};

use super::scripted::{Api, Reply};
use super::support::{Server, Socket};
use super::{Running, at, ended, run};

const EVENTS: [&str; 4] = [
    r#"{"at":5,"node":1,"c":"7","what":"in","t":"text","d":"hello","bytes":5}"#,
    r#"{"at":6,"node":1,"c":null,"what":"refuse","status":401,"why":"expired","remote":"a","path":null}"#,
    r#"{"at":7,"what":"lost","n":9}"#,
    r#"{"at":8,"what":"lost","n":0,"node":2}"#,
];

/// An API whose taps tell [`EVENTS`] and start with this result. Sends the params to the test. The client 7 is
/// connected, others are not.
fn taps(result: &'static str) -> (Api, mpsc::Receiver<Value>) {
    let (sender, asked) = mpsc::channel();
    let api = Api::start(move |method, params| {
        if method == "client.list" {
            let found = if params["c"] == "7" { json!([{ "c": "7" }]) } else { json!([]) };
            let page = json!({ "clients": found, "next": null, "missing": [] });
            return Reply::Result(page.to_string());
        }
        if method == "node.list" {
            return Reply::Result(r#"{"nodes":[],"missing":[]}"#.into());
        }
        assert_eq!(method, "tap.start");
        let _ = sender.send(params.clone());
        let events = EVENTS.map(|event| format!(r#"{{"e":"tap","p":{event}}}"#));
        Reply::Events(result.into(), events.to_vec())
    });
    (api, asked)
}

#[test]
fn events_are_lines_for_people_or_for_programs() {
    let (api, asked) = taps(r#"{"s":true,"missing":[]}"#);
    let tap = ["tap", "--by-user", "ann", "--count", "4"];
    let people = ended(&mut at(api.address, &tap), b"");
    assert_eq!((people.code, &people.err[..]), (Some(0), "gridcast: watching; Ctrl-C ends\n"));
    let lines: Vec<&str> = people.out.lines().collect();
    assert_eq!(lines[0], "00:00:00.005Z  1  7                    in       hello");
    assert_eq!(lines[1], "00:00:00.006Z  1  -                    refuse   401 from a: expired");
    assert!(lines[2].starts_with("00:00:00.007Z  lost     9 events: "), "{lines:?}");
    let down = "00:00:00.008Z  lost     node 2 is unreachable: its devices are not watched";
    assert_eq!(lines[3], down);
    assert_eq!(asked.try_recv(), Ok(json!({"user": "ann", "max_per_s": 100})));
    let said = ended(&mut at(api.address, &[&tap[..], &["--json"]].concat()), b"").succeeded();
    assert_eq!(said.lines().collect::<Vec<_>>(), EVENTS);
}

#[test]
fn a_node_that_does_not_watch_is_named() {
    let (api, _asked) = taps(r#"{"s":true,"missing":[2,3]}"#);
    let ended = ended(&mut at(api.address, &["tap", "7", "--count", "1"]), b"");
    assert_eq!(ended.code, Some(0));
    assert!(ended.err.contains("warning: these nodes do not watch: 2, 3"), "{}", ended.err);
}

#[test]
fn nodes_that_were_lost_are_named() {
    let api = Api::start(|method, _| match method {
        "node.list" => {
            let nodes =
                r#"{"nodes":[{"id":1,"lost_ms":null},{"id":3,"lost_ms":1500}],"missing":[]}"#;
            Reply::Result(nodes.into())
        }
        _ => Reply::Events(
            r#"{"s":true,"missing":[]}"#.into(),
            vec![format!(r#"{{"e":"tap","p":{}}}"#, EVENTS[0])],
        ),
    });
    let ended = ended(&mut at(api.address, &["tap", "--by-user", "ann", "--count", "1"]), b"");
    let words = "gridcast: warning: node 3 was lost 1 s ago: what was there is not watched\ngridcast: watching; Ctrl-C ends\n";
    assert_eq!((ended.code, &ended.err[..]), (Some(0), words));
}

#[test]
fn a_tap_of_an_id_that_no_client_has_fails_and_names_the_option_for_users() {
    let (api, asked) = taps(r#"{"s":true,"missing":[]}"#);
    let error = ended(&mut at(api.address, &["tap", "10050"]), b"").failed(1);
    assert!(error.contains("no client with the id 10050 is connected"), "{error}");
    assert!(error.contains("--by-user 10050"), "{error}");
    assert!(asked.try_recv().is_err(), "nothing is watched");
}

#[test]
fn a_tap_has_one_target() {
    let (api, asked) = taps(r#"{"s":true,"missing":[]}"#);
    for wrong in [&["tap"][..], &["tap", "7", "--topic", "a"], &["tap", "--channel"]] {
        ended(&mut at(api.address, wrong), b"").failed(2);
    }
    assert!(asked.try_recv().is_err());
    let api = Api::start(|_, _| Reply::Error(101, "max_per_s: expected an integer from 1 to 1000"));
    let wrong = ["tap", "--topic", "a", "--max-per-s", "0"];
    let error = ended(&mut at(api.address, &wrong), b"").failed(1);
    assert!(error.contains("tap.start: max_per_s: "), "{error}");
}

#[test]
fn the_life_of_a_device_is_watched() {
    let server = Server::new();
    let tap = Running::start(&mut at(server.api, &["tap", "--address", "127.0.0.1"]));
    tap.says("watching");
    assert!(Socket::connect(server.edge, "/nowhere?token=sesame", "").is_err());
    let line = tap.line();
    assert!(line.contains("  refuse   404 from 127.0.0.1:"), "{line}");
    assert!(line.ends_with(" /nowhere: no such route"), "{line}");
    let (mut device, id) = server.client();
    let line = tap.line();
    assert!(line.contains(&format!("  1  {id}  connect  /ws from 127.0.0.1:")), "{line}");
    device.send_text("hello");
    assert!(tap.line().ends_with("  in       hello"));
    run(&server, &["send", &id, "welcome"]).succeeded();
    let mut lines = [tap.line(), tap.line()];
    lines.sort_by_key(|line| line.contains("  call "));
    assert!(
        lines[0].ends_with("  out      welcome") && lines[1].contains("mesh.send"),
        "{lines:?}"
    );
    run(&server, &["close", &id, "--code", "4001", "--reason", "bye"]).succeeded();
    let mut lines = [tap.line(), tap.line()];
    lines.sort_by_key(|line| line.contains("  call "));
    assert!(lines[0].ends_with("  close    4001 bye (by backend)"), "{lines:?}");
    assert!(lines[1].contains("conn.call"), "{lines:?}");
    tap.signal(rustix::process::Signal::INT);
    assert_eq!(tap.end().code, Some(130));
}
