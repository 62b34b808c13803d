//! `publish`, `send`, `call`, `close`, `reload`.

use std::io::Write;

use serde_json::{Value, json};

use super::scripted::{Api, Reply};
use super::support::{CONFIG, Message, Server};
use super::{Fed, Folder, at, ended, run};

fn text(text: &str) -> Message {
    Message::Text(text.to_owned())
}

#[test]
fn a_publish_tells_how_many_got_it() {
    let server = Server::new();
    let mut device = server.device("/ws?channels=news");
    let said = run(&server, &["publish", "news", "hello"]).succeeded();
    assert_eq!(said, "1 message sent: 1 delivery, 0 failed\n");
    assert_eq!(device.read(), text("hello"));
    let said = run(&server, &["publish", "news", "--json", "-5"]).succeeded();
    assert_eq!(said, "{\"s\":1,\"f\":0}\n");
    assert_eq!(device.read(), text("-5"));
}

#[test]
fn a_message_comes_from_an_argument_a_file_or_standard_input() {
    let server = Server::new();
    let folder = Folder::new();
    let mut device = server.device("/ws?channels=news");
    let mut publish = |arguments: &[&str], input: &[u8], expected: Message| {
        let arguments = [&["publish", "news"], arguments].concat();
        ended(&mut at(server.api, &arguments), input).succeeded();
        assert_eq!(device.read(), expected, "{arguments:?}");
    };
    publish(&["-"], "Grüße\n".as_bytes(), text("Grüße\n"));
    publish(&["--file", &folder.file("a", "in a file")], b"", text("in a file"));
    publish(&[""], b"", text(""));
    publish(&["--binary", "AAEC"], b"", Message::Binary(vec![0, 1, 2]));
    publish(&["--binary", "-"], &[255, 0], Message::Binary(vec![255, 0]));
    let binary = folder.file("b", [7; 3]);
    publish(&["--binary", "--file", &binary], b"", Message::Binary(vec![7; 3]));
}

#[test]
fn input_that_cannot_be_sent_is_named() {
    let server = Server::new();
    let error = ended(&mut at(server.api, &["publish", "news", "-"]), &[b'a', 255]).failed(1);
    assert!(error.contains("standard input: not UTF-8 text at byte 1"), "{error}");
    let error = run(&server, &["publish", "news", "--file", "no/such"]).failed(1);
    assert!(error.contains("no/such: No such file"), "{error}");
    let error = run(&server, &["publish", "news", "--binary", "%"]).failed(1);
    assert!(error.contains("mesh.publish: d: ") && error.contains("(error 101)"), "{error}");
    run(&server, &["publish", "news"]).failed(2);
    run(&server, &["publish", "news", "a", "--lines"]).failed(2);
}

#[test]
fn each_line_is_a_message_in_order() {
    let server = Server::new();
    let mut device = server.device("/ws?channels=news");
    // More than are in flight at a time.
    let lines: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
    let mut publish = at(server.api, &["publish", "news", "--lines"]);
    let said = ended(&mut publish, lines.join("\n").as_bytes()).succeeded();
    assert_eq!(said, "1,000 messages sent: 1,000 deliveries, 0 failed\n");
    lines.iter().for_each(|line| assert_eq!(device.read(), text(line)));
    let mut publish = at(server.api, &["publish", "news", "--lines", "--json"]);
    let said = ended(&mut publish, b"a\r\nb\n").succeeded();
    assert_eq!(said, "{\"s\":1,\"f\":0}\n{\"s\":1,\"f\":0}\n");
    assert_eq!((device.read(), device.read()), (text("a"), text("b")));
}

#[test]
fn a_line_is_sent_without_waiting_for_the_next() {
    let server = Server::new();
    let mut device = server.device("/ws?channels=news");
    let mut publish = Fed::start(&mut at(server.api, &["publish", "news", "--lines", "--json"]));
    for line in ["first", "second"] {
        writeln!(publish.input, "{line}").expect("the command reads");
        assert_eq!(device.read(), text(line));
        assert_eq!(publish.running.line(), "{\"s\":1,\"f\":0}");
    }
    drop(publish.input);
    assert_eq!(publish.running.end().code, Some(0));
}

#[test]
fn the_first_refused_line_is_named() {
    let server = Server::new();
    let mut publish = at(server.api, &["publish", "news", "--lines", "--binary"]);
    let ended = ended(&mut publish, b"AAEC\n%\nAAEC\n");
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("mesh.publish: line 2: d: "), "{}", ended.err);
    assert!(ended.out.contains("sent: "), "{}", ended.out);
}

#[test]
fn a_message_for_one_client_reaches_it_or_says_why_not() {
    let server = Server::new();
    let (mut device, id) = server.client();
    assert_eq!(run(&server, &["send", &id, "hello, you"]).succeeded(), "1 message sent\n");
    assert_eq!(device.read(), text("hello, you"));
    assert_eq!(run(&server, &["send", &id, "x", "--json"]).succeeded(), "{\"s\":true}\n");
    let error = run(&server, &["send", "1", "x"]).failed(1);
    let expected = format!("gridcast: http://{}: mesh.send: no such client", server.api);
    assert!(error.starts_with(&expected) && error.contains("(error 401)"), "{error}");
}

#[test]
fn a_call_changes_a_connection_and_looks_at_it() {
    let server = Server::new();
    let (_device, id) = server.client();
    let call = |arguments: &[&str]| run(&server, &[&["call", &id], arguments].concat()).succeeded();
    assert_eq!(call(&["subscribe", "news", "sport"]), "done\n");
    assert_eq!(call(&["set_context_value", "user_id", "10000"]), "done\n");
    assert_eq!(call(&["set_context_value", "name", "A B"]), "done\n");
    let context: Value = serde_json::from_str(&call(&["get_context", "--json"])).expect("JSON");
    assert_eq!(context["context"], json!({"user_id": 10000, "name": "A B"}));
    let info = call(&["info"]);
    assert!(info.contains("channels  news, sport\n") && info.contains("buffered  0 B\n"), "{info}");
    let error = run(&server, &["call", &id, "dance"]).failed(1);
    assert!(error.contains("conn.call: ") && error.contains("(error 101)"), "{error}");
}

#[test]
fn a_client_is_closed_with_code_and_reason() {
    let server = Server::new();
    let (mut device, id) = server.client();
    let close = ["close", &id, "--code", "4001", "--reason", "bye"];
    assert_eq!(run(&server, &close).succeeded(), "closed\n");
    assert_eq!(device.closed(), (4001, "bye".to_owned()));
    let server = Server::new();
    let (mut device, id) = server.client();
    assert_eq!(run(&server, &["close", &id, "--json"]).succeeded(), "{\"s\":true}\n");
    assert_eq!(device.closed().0, 1000);
}

#[test]
fn a_reload_tells_what_changed_or_what_is_wrong() {
    let server = Server::new();
    assert_eq!(run(&server, &["reload"]).succeeded(), "nothing has changed\n");
    server.configure(&format!("{CONFIG}[log]\nlevel = \"warn\"\n"));
    let said = run(&server, &["reload"]).succeeded();
    assert_eq!(said, "changed: log.level: \"info\" -> \"warn\"\n");
    assert_eq!(
        run(&server, &["reload", "--json"]).succeeded(),
        "{\"changed\":[],\"restart\":[]}\n"
    );
    server.configure(&format!("{CONFIG}[log]\nlevel = \"loud\"\n"));
    let error = run(&server, &["reload"]).failed(1);
    assert!(error.contains("admin.reload: ") && error.contains("log.level: "), "{error}");
}

#[test]
fn lines_that_are_never_answered_end_with_a_word() {
    let api = Api::start(|_, _| Reply::Silence);
    // The input stays open: nothing else would end the command.
    let publish = Fed::start(&mut at(api.address, &["publish", "news", "--lines"]));
    let mut input = publish.input;
    writeln!(input, "hello").expect("the command reads");
    let ended = publish.running.end();
    assert_eq!(ended.code, Some(3));
    assert!(ended.err.contains("mesh.publish: no answer in time"), "{}", ended.err);
}
