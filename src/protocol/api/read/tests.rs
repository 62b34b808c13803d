use super::*;
use crate::address::ClientId;
use crate::protocol::api::{
    CHANNELS_PER_CALL_MAX, CHANNELS_PER_PUBLISH_MAX, CONTEXT_KEYS_MAX, Code, EXCLUDED_MAX,
    Settling, TOPICS_PER_POP_MAX,
};

fn request(text: &str) -> (String, Result<String, (Code, String)>) {
    let mut parser = Parser::default();
    let mut input = text.as_bytes().to_vec();
    let request = parser.request(&mut input);
    let call = request.call.map(|call| format!("{call:?}"));
    (request.id.to_owned(), call.map_err(|fault| (fault.code, fault.message.into_owned())))
}

fn id_of(text: &str) -> String {
    request(text).0
}

fn fault_of(text: &str) -> String {
    let (code, message) = request(text).1.unwrap_err();
    assert_eq!(code, Code::InvalidArgument);
    message
}

#[test]
fn an_id_comes_back_as_it_was_sent_digits_and_all() {
    for id in [
        "12345",
        "-7",
        "0",
        "-0",
        "18446744073709551615",
        "123456789012345678901234567890",
        "1e400",
        "-1E+9999",
        "10000000000000000000000000000000000000000000000000000000000000000000e999",
        "1.50",
        "1e2",
        "null",
        "\"abc\"",
        r#""a\u0041\"\\é""#,
    ] {
        for (m, key) in [("queue.unpop", "i"), ("queue.unpop", "id"), ("nobody.knows", "i")] {
            for text in [
                format!(r#"{{"m":"{m}","p":{{}},"{key}":{id}}}"#),
                format!("{{ \"{key}\" : {id} , \"p\": [] ,\"m\" :\"{m}\" }}"),
                format!(r#"{{"x\"\u0041":"\\","{key}":{id},"m":"{m}"}}"#),
            ] {
                assert_eq!(id_of(&text), id, "{text}");
            }
        }
    }
    assert_eq!(id_of(r#"{"m":"queue.unpop"}"#), "null");
    assert_eq!(id_of(r#"{"i":1,"id":2,"m":"queue.unpop","i":3}"#), "3");
}

#[test]
fn a_parser_that_is_used_again_remembers_nothing() {
    let mut parser = Parser::default();
    for round in 0..3 {
        let mut bad = b"{\"m\":".to_vec();
        assert!(parser.request(&mut bad).call.is_err());
        let good = format!(r#"{{"m":"queue.pop","p":{{"t":["t{round}"]}},"i":{round}}}"#);
        let mut good = good.into_bytes();
        let request = parser.request(&mut good);
        assert_eq!(request.id, round.to_string());
        assert_eq!(
            request.call,
            Ok(Call::Pop(vec![&format!("t{round}")], Settling::Written, None))
        );
    }
}

#[test]
fn every_method_reads_its_parameters() {
    let cases = [
        (
            r#"{"m":"mesh.send","p":{"c":"1463786910324359168","d":"data"}}"#,
            "Send(ClientId(1463786910324359168), Content { kind: Text, bytes: [100, 97, 116, 97] })",
        ),
        (
            r#"{"m":"mesh.send","p":{"c":7,"d":"AAEC","t":"binary"}}"#,
            "Send(ClientId(7), Content { kind: Binary, bytes: [0, 1, 2] })",
        ),
        (
            r#"{"m":"mesh.publish","p":[{"c":"a","d":"\u00e9","c":"b"}]}"#,
            "Publish(\"b\", Content { kind: Text, bytes: [195, 169] })",
        ),
        (r#"{"m":"queue.pop","p":{"t":["a","b","a"]}}"#, r#"Pop(["a", "b"], Written, None)"#),
        (
            r#"{"m":"queue.pop","p":{"t":["a"],"a":true,"w":7}}"#,
            r#"Pop(["a"], Acknowledged(7), None)"#,
        ),
        (r#"{"m":"queue.pop","p":{"t":["a"],"a":true}}"#, r#"Pop(["a"], Acknowledged(64), None)"#),
        (r#"{"m":"queue.ack","p":{"g":9}}"#, "Ack(One(9))"),
        (r#"{"m":"queue.ack","p":{"g":9.0}}"#, "Ack(One(9))"),
        (r#"{"m":"queue.ack","p":{"g":9007199254740991.0}}"#, "Ack(One(9007199254740991))"),
        (
            r#"{"m":"mesh.send","p":{"c":7e0,"d":"a"}}"#,
            "Send(ClientId(7), Content { kind: Text, bytes: [97] })",
        ),
        (r#"{"m":"queue.ack","p":{"g":9,"u":true}}"#, "Ack(UpTo(9))"),
        (r#"{"m":"queue.pop","p":["a"]}"#, r#"Pop(["a"], Written, None)"#),
        (r#"{"m":"queue.pop","p":[{"t":["a"]}]}"#, r#"Pop(["a"], Written, None)"#),
        (r#"{"m":"queue.unpop","p":[]}"#, "Unpop"),
        (r#"{"m":"queue.pop","p":{"t":["a"],"a":null,"w":null}}"#, r#"Pop(["a"], Written, None)"#),
        (
            r#"{"m":"queue.pop","p":{"t":["a"],"a":true,"w":null}}"#,
            r#"Pop(["a"], Acknowledged(64), None)"#,
        ),
        (r#"{"m":"queue.ack","p":{"g":9,"u":null}}"#, "Ack(One(9))"),
        (r#"{"m":"queue.ack","p":{"g":[9,7]}}"#, "Ack(Each([9, 7]))"),
        (r#"{"m":"queue.nack","p":{"g":9}}"#, "Nack(One(9), 0)"),
        (r#"{"m":"queue.nack","p":{"g":[9],"after_ms":604800000}}"#, "Nack(Each([9]), 604800000)"),
        (
            r#"{"m":"queue.pop","p":{"t":["a"],"group":"billing"}}"#,
            r#"Pop(["a"], Written, Some("billing"))"#,
        ),
        (
            r#"{"m":"mesh.send","p":{"c":7,"d":"a","t":null}}"#,
            "Send(ClientId(7), Content { kind: Text, bytes: [97] })",
        ),
        (
            r#"{"m":"mesh.publish","p":{"c":"x","d":"a","t":null,"y":1e999}}"#,
            "Publish(\"x\", Content { kind: Text, bytes: [97] })",
        ),
    ];
    for (text, call) in cases {
        assert_eq!(request(text).1.as_deref(), Ok(call), "{text}");
    }
}

#[test]
fn base64_is_taken_with_and_without_padding() {
    for (data, bytes) in [("AA==", "[0]"), ("AA", "[0]"), ("AAE=", "[0, 1]"), ("", "[]")] {
        let text = format!(r#"{{"m":"mesh.publish","p":{{"c":"a","d":"{data}","t":"binary"}}}}"#);
        assert!(request(&text).1.unwrap().contains(bytes));
    }
    assert!(
        fault_of(r#"{"m":"mesh.publish","p":{"c":"a","d":"A*","t":"binary"}}"#)
            .starts_with("d: not standard base64")
    );
}

#[test]
fn every_function_reads_its_arguments_and_keeps_values_as_they_were_sent() {
    let cases = [
        (
            r#""set_context_value","a":["user_id", 10000000000000000000001]"#,
            r#"SetContextValue("user_id", "10000000000000000000001")"#,
        ),
        (
            r#""set_context_value","a":["k\n",{"a":[1.50,"]"]}]"#,
            r#"SetContextValue("k\n", "{\"a\":[1.50,\"]\"]}")"#,
        ),
        (
            r#""set_context","a":[{"user_id":10000,"a":null,"user_id":"x"}]"#,
            r#"SetContext([("user_id", "\"x\""), ("a", "null")])"#,
        ),
        (r#""subscribe","a":["channel1","channel2"]"#, r#"Subscribe(["channel1", "channel2"])"#),
        (r#""unsubscribe","a":["channel1"]"#, r#"Unsubscribe(["channel1"])"#),
        (r#""close","a":[4001,"bye"]"#, r#"Close(4001, "bye")"#),
        (r#""close""#, r#"Close(1000, "")"#),
        (r#""get_context","a":[]"#, "GetContext"),
        (r#""info""#, "Info"),
        (r#""info","a":null"#, "Info"),
        (r#""close","a":null"#, r#"Close(1000, "")"#),
    ];
    for (call, expected) in cases {
        let text = format!(r#"{{"m":"conn.call","p":{{"c":"5","f":{call}}}}}"#);
        assert_eq!(request(&text).1, Ok(format!("Call(ClientId(5), {expected})")), "{text}");
    }
}

#[test]
fn what_is_not_json_is_told_what_is_wrong_and_where() {
    let deep = format!(r#"{{"m":"queue.unpop","x":{}{}}}"#, "[".repeat(64), "]".repeat(64));
    let table: &[(&[u8], &str)] = &[
        (br#"{"m":"queue.unpop","#, "the text ends too early, at offset 19"),
        (b"", "the text ends too early, at offset 0"),
        (b"\xEF\xBB\xBF{}", "a byte order mark, at offset 0"),
        (br#"{"m":"\ud800"}"#, "half of a surrogate pair, at offset 6"),
        (b"{\"m\":\"\xff\"}", "not UTF-8, at offset 6"),
        (b"{\"m\":\"\n\"}", "a control character that is not escaped, at offset 6"),
        (br#"{"m":01}"#, "a malformed number, at offset 5"),
        (br#"{"m":"a"}}"#, "more text after the value, at offset 9"),
        (deep.as_bytes(), "more than 64 levels of nesting, at offset 86"),
        // The fast path accepts these up to the fault.
        (
            b"{\"m\":\"mesh.publish\",\"p\":{\"c\":\"a\",\"d\":\"\\n\\n\xff\"}}",
            "not UTF-8, at offset 42",
        ),
    ];
    for (text, words) in table {
        let mut parser = Parser::default();
        let mut input = text.to_vec();
        let fault = parser.request(&mut input).call.expect_err("it is not JSON");
        assert_eq!(fault.message, format!("not valid JSON: {words}"), "{}", text.escape_ascii());
    }
}

#[test]
fn a_bad_request_is_told_which_field_and_why() {
    let long = "x".repeat(256);
    let cases = [
        ("[1]", "expected a JSON object"),
        ("7", "expected a JSON object"),
        ("{}", "m: missing"),
        (r#"{"m":1}"#, "m: expected a string"),
        (r#"{"m":"mesh.sent"}"#, "m: unknown method \"mesh.sent\""),
        (r#"{"m":"mesh.send"}"#, "p: missing"),
        (r#"{"m":"mesh.send","p":"x"}"#, "p: expected an object"),
        (r#"{"m":"mesh.send","p":[{},{}]}"#, "p: expected an object"),
        (r#"{"m":"mesh.send","p":[]}"#, "c: missing"),
        (r#"{"m":"mesh.send","p":{"c":"x","d":""}}"#, "c: expected a client id"),
        (r#"{"m":"mesh.send","p":{"c":-1,"d":""}}"#, "c: expected a client id"),
        (r#"{"m":"mesh.send","p":{"c":1.5,"d":""}}"#, "c: expected a client id"),
        (r#"{"m":"mesh.send","p":{"c":1}}"#, "d: missing"),
        (r#"{"m":"mesh.send","p":{"c":1,"d":{}}}"#, "d: expected a string"),
        (r#"{"m":"mesh.send","p":{"c":1,"d":"","t":"blob"}}"#, "t: expected \"text\""),
        (r#"{"m":"mesh.send","p":{"c":1,"d":"","t":1}}"#, "t: expected \"text\""),
        (r#"{"m":"mesh.publish","p":{"c":1,"d":""}}"#, "c: expected a string"),
        (r#"{"m":"mesh.publish","p":{"c":"","d":""}}"#, "c: expected 1 to 255 bytes"),
        (r#"{"m":"mesh.publish","p":{"c":[],"d":""}}"#, "c: expected a channel name, or an array"),
        (r#"{"m":"mesh.publish","p":{"c":["a",1],"d":""}}"#, "c: expected a string"),
        (r#"{"m":"mesh.publish","p":{"c":"a","d":"","x":7}}"#, "x: expected an array"),
        (r#"{"m":"mesh.publish","p":{"c":"a","d":"","k":7}}"#, "k: expected a string"),
        (r#"{"m":"mesh.publish","p":{"c":"a","d":"","k":""}}"#, "k: expected 1 to 128 bytes"),
        (r#"{"m":"mesh.publish","p":{"c":"a","d":"","x":["a"]}}"#, "x: expected an array"),
        (r#"{"m":"queue.pop","p":{}}"#, "t: expected an array"),
        (r#"{"m":"queue.pop","p":{"t":[]}}"#, "t: expected an array"),
        (r#"{"m":"queue.pop","p":{"t":"a"}}"#, "t: expected an array"),
        (r#"{"m":"queue.pop","p":{"t":["a",1]}}"#, "t: expected a string"),
        (r#"{"m":"queue.pop","p":{"t":["a"],"a":1}}"#, "a: expected true or false"),
        (r#"{"m":"queue.pop","p":{"t":["a"],"a":true,"w":0}}"#, "w: expected an integer"),
        (r#"{"m":"queue.ack","p":{}}"#, "g: missing"),
        (r#"{"m":"queue.ack","p":{"g":"1"}}"#, "g: \"1\" is no tag"),
        (r#"{"m":"queue.ack","p":{"g":["1",1]}}"#, "g: \"1\" is no tag"),
        (r#"{"m":"queue.ack","p":{"g":[1,"1"]}}"#, "g: expected the tag"),
        (r#"{"m":"queue.ack","p":{"g":-1.0}}"#, "g: expected the tag"),
        (r#"{"m":"queue.ack","p":{"g":1e16}}"#, "g: expected the tag"),
        (r#"{"m":"conn.call","p":{"c":1}}"#, "f: missing"),
        (r#"{"m":"conn.call","p":{"c":1,"f":"x"}}"#, "f: unknown function \"x\""),
        (r#"{"m":"conn.call","p":{"c":1,"f":"subscribe"}}"#, "a: expected one or more"),
        (r#"{"m":"conn.call","p":{"c":1,"f":"set_context","a":[1]}}"#, "a: expected [object]"),
        (r#"{"m":"conn.call","p":{"c":1,"f":"close","a":[1005]}}"#, "a: expected [code, reason]"),
        (r#"{"m":"queue.unpop","i":{}}"#, "i: expected a number, a string or null"),
        (r#"{"m":"conn.call","p":{"c":1,"f":"close","a":[1e400]}}"#, "a: expected [code, reason]"),
        (
            r#"{"m":"conn.call","p":{"c":1,"f":"set_context","a":[{"":1}]}}"#,
            "a: expected keys of 1 to 255 bytes",
        ),
        (
            r#"{"m":"conn.call","p":{"c":1,"f":"set_context_value","a":["",1]}}"#,
            "a[0]: expected 1 to 255 bytes",
        ),
        (
            r#"{"m":"conn.call","p":{"c":1,"f":"set_context","a":[{"a":1,"b":[1e400]}]}}"#,
            "a: the value of \"b\": a number too large for a 64-bit float, at offset 1",
        ),
        (
            r#"{"m":"conn.call","p":{"c":1,"f":"set_context_value","a":["k",-1e400]}}"#,
            "a: the value of \"k\": a number too large for a 64-bit float, at offset 0",
        ),
        (r#"{"m":"mesh.send","p":{"c":1e400,"d":""}}"#, "c: expected a client id"),
        (r#"{"m":"queue.ack","p":{"g":1e400}}"#, "g: expected the tag"),
        (r#"{"m":"queue.pop","p":{"t":["a"],"a":true,"w":1e400}}"#, "w: expected an integer"),
        (r#"{"m":"mesh.send","p":{"c":1,"d":null}}"#, "d: expected a string"),
    ];
    for (text, start) in cases {
        assert!(fault_of(text).starts_with(start), "{text} gave {}", fault_of(text));
    }
    let text = format!(r#"{{"m":"mesh.publish","p":{{"c":"{long}","d":""}}}}"#);
    assert_eq!(fault_of(&text), "c: expected 1 to 255 bytes");
}

#[test]
fn repeated_names_count_so_that_a_megabyte_of_them_is_refused_at_once() {
    let topics = |count: usize| format!(r#"{{"m":"queue.pop","p":{{"t":[{}]}}}}"#, names(count));
    let bare = |count: usize| format!(r#"{{"m":"queue.pop","p":[{}]}}"#, names(count));
    let keys = |count: usize| {
        let keys = vec![r#""k":0"#; count].join(",");
        format!(r#"{{"m":"conn.call","p":{{"c":1,"f":"set_context","a":[{{{keys}}}]}}}}"#)
    };
    let channels = |count: usize| {
        let names = names(count);
        format!(r#"{{"m":"conn.call","p":{{"c":1,"f":"unsubscribe","a":[{names}]}}}}"#)
    };
    assert_bound(topics, TOPICS_PER_POP_MAX, "t: more than 256 topics");
    assert_bound(bare, TOPICS_PER_POP_MAX, "t: more than 256 topics");
    assert_bound(keys, CONTEXT_KEYS_MAX, "a: more than 256 keys");
    assert_bound(channels, CHANNELS_PER_CALL_MAX, "a: more than 1024 channels");
}

/// A list of `count` names, few of them distinct.
fn names(count: usize) -> String {
    (0..count).map(|at| format!(r#""{}""#, at % 7)).collect::<Vec<_>>().join(",")
}

fn assert_bound(text: impl Fn(usize) -> String, max: usize, fault: &str) {
    assert!(request(&text(max)).1.is_ok());
    for count in [max + 1, 100_000] {
        assert_eq!(fault_of(&text(count)), fault, "of {count}");
    }
}

#[test]
fn a_text_request_is_read_as_any_other_unless_it_is_not_utf8() {
    for data in ["hello", "é", r"a\nb", "\\u00e9", ""] {
        let text = format!(r#"{{"m":"mesh.publish","p":{{"c":"é","d":"{data}"}},"i":"ü"}}"#);
        let (mut of_text, mut other) = (text.clone().into_bytes(), text.into_bytes());
        let (mut parser, mut other_parser) = (Parser::default(), Parser::default());
        let request = parser.text_request(&mut of_text).expect("UTF-8");
        assert!(request.call.is_ok());
        assert_eq!(request, other_parser.request(&mut other));
    }
    for bad in
        [&b"{\"m\":\"mesh.publish\",\"p\":{\"c\":\"a\",\"d\":\"\xff\"}}"[..], b"\xff", b"{}\xe4"]
    {
        assert_eq!(Parser::default().text_request(&mut bad.to_vec()).err(), Some(NotUtf8));
    }
}

#[test]
fn a_publish_to_several_channels_names_each_once_and_may_exclude_clients() {
    let ids = |ids: &[u64]| ids.iter().map(|&id| ClientId::from_value(id)).collect::<Vec<_>>();
    let multi = |channels: &str, more: &str| {
        let text = format!(r#"{{"m":"mesh.publish","p":{{"c":{channels},"d":"x"{more}}}}}"#);
        let (mut parser, mut input) = (Parser::default(), text.into_bytes());
        match parser.request(&mut input).call.unwrap() {
            Call::MultiPublish(publish) => {
                let channels = publish.channels.iter().map(|&name| name.to_owned());
                (channels.collect::<Vec<_>>(), publish.excluded.clone())
            }
            call => panic!("{call:?}"),
        }
    };
    assert_eq!(multi(r#"["b","a","b"]"#, ""), (vec!["b".into(), "a".into()], Vec::new()));
    assert_eq!(multi(r#""a""#, r#","x":[9,"7",9]"#), (vec!["a".into()], ids(&[9, 7, 9])));
    assert_eq!(multi(r#"["a"]"#, ""), (vec!["a".into()], Vec::new()));
    assert_eq!(multi(r#""a""#, r#","k":"1""#), (vec!["a".into()], Vec::new()));
    let plain = [r#""a""#, r#""a","x":[]"#, r#""a","x":null,"k":null"#];
    for form in plain {
        let text = format!(r#"{{"m":"mesh.publish","p":{{"c":{form},"d":"x"}}}}"#);
        let call = request(&text).1.unwrap();
        assert!(call.starts_with("Publish(\"a\""), "{call}");
    }
    let names = |count: usize| {
        let names: Vec<_> = (0..count).map(|number| format!("\"c{number}\"")).collect();
        format!("[{}]", names.join(","))
    };
    assert_eq!(multi(&names(CHANNELS_PER_PUBLISH_MAX), "").0.len(), CHANNELS_PER_PUBLISH_MAX);
    let too_many = names(CHANNELS_PER_PUBLISH_MAX + 1);
    let text = format!(r#"{{"m":"mesh.publish","p":{{"c":{too_many},"d":"x"}}}}"#);
    assert_eq!(fault_of(&text), "c: more than 1000 channels");
    let clients: Vec<_> = (0..=EXCLUDED_MAX).map(|id| id.to_string()).collect();
    let clients = clients.join(",");
    let text = format!(r#"{{"m":"mesh.publish","p":{{"c":"a","d":"x","x":[{clients}]}}}}"#);
    assert_eq!(fault_of(&text), "x: more than 1000 clients");
}
