//! Requests of back ends: JSON → calls, or faults that name the field.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use simd_json::value::tape::Tape;
use simd_json::{Buffers, Node, StaticNode};

use super::document::{Document, Value};
use super::usual::Usual;
use super::{
    BASE64, CHANNELS_PER_CALL_MAX, CLOSE_REASON_BYTES_MAX, CONTEXT_KEYS_MAX, Call, Content,
    ContextEntry, Fault, Function, NAME_BYTES_MAX, Request, Settling, TOPICS_PER_POP_MAX, Tags,
    UNSETTLED_DEFAULT, UNSETTLED_MAX,
};
use crate::address::ClientId;
use crate::protocol::close;
use crate::protocol::frame::Kind;
use crate::protocol::json;

/// Parses requests in place, with buffers that are used again. One per shard. Where it is taken out
/// of its place, what stays there costs nothing.
#[derive(Default)]
pub struct Parser(Option<Box<Room>>);

#[derive(Default)]
struct Room {
    buffers: Buffers,
    tape: Vec<Node<'static>>,
    // The request as it came: strings are unescaped in place, numbers lose their digits.
    raw: Vec<u8>,
    // A copy of the request, for the parser to overwrite, if it has numbers that it does not take.
    retry: Vec<u8>,
}

impl Parser {
    /// Reads a request of the WebSocket API. `input` is overwritten.
    pub fn request<'a>(&'a mut self, input: &'a mut [u8]) -> Request<'a> {
        if let Some(usual) = Usual::request(input) {
            return usual.read(input);
        }
        self.request_of_any_form(input)
    }

    pub(super) fn request_of_any_form<'a>(&'a mut self, input: &'a mut [u8]) -> Request<'a> {
        self.parse(input, |document| match document {
            Ok(document) => read_envelope(document),
            Err(fault) => Request { id: "null", call: Err(fault) },
        })
    }

    /// Reads the parameters of `method` from the body of an HTTP request. `input` is overwritten.
    ///
    /// # Errors
    /// 101, with words that name the field.
    pub fn params<'a>(
        &'a mut self,
        method: Method,
        input: &'a mut [u8],
    ) -> Result<Call<'a>, Fault> {
        if let Some(usual) = Usual::params(method, input) {
            return usual.read(input).call;
        }
        self.params_of_any_form(method, input)
    }

    pub(super) fn params_of_any_form<'a>(
        &'a mut self,
        method: Method,
        input: &'a mut [u8],
    ) -> Result<Call<'a>, Fault> {
        self.parse(input, |document| {
            let document = document?;
            read_params(method, Some(document.root()), document)
        })
    }

    fn parse<'a, T>(
        &'a mut self,
        input: &'a mut [u8],
        read: impl FnOnce(Result<&Document<'_, 'a>, Fault>) -> T,
    ) -> T {
        let Room { buffers, tape: nodes, raw, retry } = &mut **self.0.get_or_insert_default();
        raw.clear();
        raw.extend_from_slice(input);
        let mut base = input.as_ptr() as usize;
        let mut tape = Tape(std::mem::take(nodes)).reset();
        let mut parsed = simd_json::fill_tape(input, buffers, &mut tape).map_err(invalid_json);
        if parsed.is_err() {
            parsed = match hide_huge_numbers(raw, retry) {
                Err(flaw) => Err(invalid_json(flaw)),
                Ok(false) => parsed,
                Ok(true) => {
                    base = retry.as_ptr() as usize;
                    tape = tape.reset();
                    simd_json::fill_tape(retry, buffers, &mut tape).map_err(invalid_json)
                }
            };
        }
        let parsed = parsed.and_then(|()| check_depth(&tape.0, raw));
        let document = Document { nodes: &tape.0, raw, base };
        let result = read(parsed.map(|()| &document));
        *nodes = tape.reset().0;
        result
    }
}

/// Copies a text that the parser refused, with other numbers in the place of those that no float
/// holds. True if there are any: digits count in ids, which [`Document::raw_after`] gives as they were
/// sent.
fn hide_huge_numbers(raw: &[u8], copy: &mut Vec<u8>) -> Result<bool, json::Flaw> {
    // No call takes a fraction.
    const FRACTION: &[u8] = b"0.5";
    copy.clear();
    copy.extend_from_slice(raw);
    let mut are_there = false;
    json::check_but_numbers(raw, |place| {
        are_there = true;
        let hidden = &mut copy[place];
        hidden.fill(b' ');
        hidden[..FRACTION.len()].copy_from_slice(FRACTION);
    })?;
    Ok(are_there)
}

/// The parser takes any nesting. Few texts have so many arrays and objects that they may be too deep.
fn check_depth(nodes: &[Node<'_>], raw: &[u8]) -> Result<(), Fault> {
    let is_container = |node: &&Node<'_>| matches!(node, Node::Object { .. } | Node::Array { .. });
    if nodes.iter().filter(is_container).count() <= json::DEPTH_MAX as usize {
        return Ok(());
    }
    json::check_but_numbers(raw, |_| {}).map(drop).map_err(invalid_json)
}

pub(super) fn invalid_json(error: impl fmt::Display) -> Fault {
    Fault::invalid(format!("not valid JSON: {error}"))
}

/// A method of the API that takes parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `mesh.send`
    Send,
    /// `mesh.publish`
    Publish,
    /// `conn.call`
    Call,
    /// `queue.pop`
    Pop,
    /// `queue.unpop`
    Unpop,
    /// `queue.ack`
    Ack,
}

impl Method {
    pub(super) fn from_name(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"mesh.send" => Self::Send,
            b"mesh.publish" => Self::Publish,
            b"conn.call" => Self::Call,
            b"queue.pop" => Self::Pop,
            b"queue.unpop" => Self::Unpop,
            b"queue.ack" => Self::Ack,
            _ => return None,
        })
    }
}

fn read_envelope<'a>(document: &Document<'_, 'a>) -> Request<'a> {
    let (mut method, mut params, mut id, mut alias) = (None, None, None, None);
    for (key, value) in document.root().fields() {
        match key {
            "m" => method = Some(value),
            "p" => params = Some(value),
            "i" => id = Some((key, value)),
            "id" => alias = Some((key, value)),
            _ => {}
        }
    }
    let (id, bad_id) = match id.or(alias) {
        None => ("null", None),
        Some((key, value)) => match value.0[0] {
            Node::Object { .. } | Node::Array { .. } | Node::Static(StaticNode::Bool(_)) => {
                ("null", Some(Fault::invalid("i: expected a number, a string or null")))
            }
            _ => (document.raw_after(key), None),
        },
    };
    let call = match bad_id {
        Some(fault) => Err(fault),
        None if !document.root().is_object() => {
            Err(Fault::invalid("expected a JSON object with m, p and i"))
        }
        None => read_method(method).and_then(|method| read_params(method, params, document)),
    };
    Request { id, call }
}

fn read_method(method: Option<Value<'_, '_>>) -> Result<Method, Fault> {
    let name = method
        .ok_or_else(|| Fault::invalid("m: missing; expected the name of a method"))?
        .text()
        .ok_or_else(|| Fault::invalid("m: expected a string"))?;
    Method::from_name(name.as_bytes()).ok_or_else(|| {
        Fault::invalid(format!(
            "m: unknown method {}; known are mesh.send, mesh.publish, conn.call, queue.pop, \
             queue.unpop, queue.ack",
            quoted(name)
        ))
    })
}

/// A name of the peer's inside a message of ours: bounded, and escaped as a string literal.
fn quoted(name: &str) -> String {
    format!("{:?}", &name[..name.floor_char_boundary(64)])
}

fn read_params<'a>(
    method: Method,
    params: Option<Value<'_, 'a>>,
    document: &Document<'_, 'a>,
) -> Result<Call<'a>, Fault> {
    if method == Method::Unpop {
        return Ok(Call::Unpop);
    }
    let given = params.ok_or_else(|| Fault::invalid("p: missing; expected an object"))?;
    if method == Method::Pop
        && let Some(topics) = bare_topics(given)
    {
        return topics.map(|topics| Call::Pop(topics, Settling::Written));
    }
    let params = object_of(given)?;
    Ok(match method {
        Method::Send => Call::Send(read_client(params)?, read_content(params)?),
        Method::Publish => {
            Call::Publish(read_name("c", required(params, "c")?)?, read_content(params)?)
        }
        Method::Call => Call::Call(read_client(params)?, read_function(params, document)?),
        Method::Pop => {
            Call::Pop(read_topics(params.and_then(|p| p.field("t")))?, read_settling(params)?)
        }
        Method::Ack => Call::Ack(read_tags(params)?),
        Method::Unpop => Call::Unpop,
    })
}

/// The object of parameters: itself, or alone in an array, or the empty array for an empty object
/// (older clients send both).
fn object_of<'t, 'a>(given: Value<'t, 'a>) -> Result<Option<Value<'t, 'a>>, Fault> {
    if given.is_object() {
        return Ok(Some(given));
    }
    let wrong = || Fault::invalid("p: expected an object");
    let mut items = given.items().ok_or_else(wrong)?;
    match (items.next(), items.next()) {
        (None, _) => Ok(None),
        (Some(only), None) if only.is_object() => Ok(Some(only)),
        _ => Err(wrong()),
    }
}

/// The topics of `"p":["topic"]`, the form of older clients; `None` if it is not that.
fn bare_topics<'a>(given: Value<'_, 'a>) -> Option<Result<Vec<&'a str>, Fault>> {
    given.items()?.next()?.text()?;
    Some(read_topics(Some(given)))
}

fn read_topics<'a>(topics: Option<Value<'_, 'a>>) -> Result<Vec<&'a str>, Fault> {
    let wrong = || Fault::invalid("t: expected an array of one or more topic names");
    let topics = topics.ok_or_else(wrong)?;
    let items = topics.items().ok_or_else(wrong)?;
    // Repeated ones count, so that nobody has to look for them in a megabyte.
    if topics.len() > TOPICS_PER_POP_MAX {
        return Err(Fault::invalid(format!("t: more than {TOPICS_PER_POP_MAX} topics")));
    }
    let mut names = Vec::new();
    for item in items {
        let name = read_name("t", item)?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if names.is_empty() { Err(wrong()) } else { Ok(names) }
}

fn read_settling(params: Option<Value<'_, '_>>) -> Result<Settling, Fault> {
    if !read_flag("a", optional(params, "a"))? {
        return Ok(Settling::Written);
    }
    let window = optional(params, "w").map_or(Some(UNSETTLED_DEFAULT as u64), Value::unsigned);
    match window.map(|window| window as usize) {
        Some(window) if (1..=UNSETTLED_MAX).contains(&window) => Ok(Settling::Acknowledged(window)),
        _ => Err(Fault::invalid(format!("w: expected an integer from 1 to {UNSETTLED_MAX}"))),
    }
}

fn read_tags(params: Option<Value<'_, '_>>) -> Result<Tags, Fault> {
    let tag = required(params, "g")?
        .unsigned()
        .ok_or_else(|| Fault::invalid("g: expected the tag of an event, an integer"))?;
    let up_to = read_flag("u", optional(params, "u"))?;
    Ok(if up_to { Tags::UpTo(tag) } else { Tags::One(tag) })
}

fn read_flag(name: &'static str, value: Option<Value<'_, '_>>) -> Result<bool, Fault> {
    value
        .map_or(Some(false), Value::flag)
        .ok_or_else(|| Fault::invalid(format!("{name}: expected true or false")))
}

/// A field that may be left out; `null` is as good as that.
fn optional<'t, 'a>(params: Option<Value<'t, 'a>>, field: &str) -> Option<Value<'t, 'a>> {
    params.and_then(|params| params.field(field)).filter(|value| !value.is_null())
}

fn required<'t, 'a>(
    params: Option<Value<'t, 'a>>,
    field: &'static str,
) -> Result<Value<'t, 'a>, Fault> {
    params
        .and_then(|params| params.field(field))
        .ok_or_else(|| Fault::invalid(format!("{field}: missing")))
}

fn read_name<'a>(field: &'static str, value: Value<'_, 'a>) -> Result<&'a str, Fault> {
    match value.text() {
        Some(name) if (1..=NAME_BYTES_MAX).contains(&name.len()) => Ok(name),
        Some(_) => Err(Fault::invalid(format!("{field}: expected 1 to {NAME_BYTES_MAX} bytes"))),
        None => Err(Fault::invalid(format!("{field}: expected a string"))),
    }
}

fn read_client(params: Option<Value<'_, '_>>) -> Result<ClientId, Fault> {
    let value = required(params, "c")?;
    let from_text = || value.text()?.parse().ok();
    value.unsigned().map(ClientId::from_value).or_else(from_text).ok_or_else(|| {
        Fault::invalid("c: expected a client id, as a string of decimal digits or an integer")
    })
}

fn read_content<'a>(params: Option<Value<'_, 'a>>) -> Result<Content<'a>, Fault> {
    let data =
        required(params, "d")?.text().ok_or_else(|| Fault::invalid("d: expected a string"))?;
    let kind = optional(params, "t").map_or(Some("text"), Value::text);
    match kind {
        Some("text") => Ok(Content { kind: Kind::Text, bytes: data.as_bytes().into() }),
        Some("binary") => {
            let bytes = BASE64
                .decode(data)
                .map_err(|error| Fault::invalid(format!("d: not standard base64: {error}")))?;
            Ok(Content { kind: Kind::Binary, bytes: bytes.into() })
        }
        _ => Err(Fault::invalid("t: expected \"text\" or \"binary\"")),
    }
}

fn read_function(
    params: Option<Value<'_, '_>>,
    document: &Document<'_, '_>,
) -> Result<Function, Fault> {
    let name =
        required(params, "f")?.text().ok_or_else(|| Fault::invalid("f: expected a string"))?;
    let arguments: Vec<_> = match optional(params, "a") {
        None => Vec::new(),
        Some(value) => {
            value.items().ok_or_else(|| Fault::invalid("a: expected an array"))?.collect()
        }
    };
    match (name, &arguments[..]) {
        ("set_context_value", &[key, _]) => {
            let key = read_name("a[0]", key)?;
            Ok(Function::SetContextValue(key.into(), read_context_value(key, document)?))
        }
        ("set_context", &[object]) if object.is_object() => {
            read_context(object, document).map(Function::SetContext)
        }
        ("subscribe", [_, ..]) => read_channels(&arguments).map(Function::Subscribe),
        ("unsubscribe", [_, ..]) => read_channels(&arguments).map(Function::Unsubscribe),
        ("close", _) => read_close(&arguments),
        ("get_context", []) => Ok(Function::GetContext),
        ("info", []) => Ok(Function::Info),
        _ => Err(Fault::invalid(wrong_arguments(name))),
    }
}

fn wrong_arguments(name: &str) -> Cow<'static, str> {
    match name {
        "set_context_value" => "a: expected [key, value]".into(),
        "set_context" => "a: expected [object]".into(),
        "subscribe" | "unsubscribe" => "a: expected one or more channel names".into(),
        "get_context" | "info" => "a: expected no arguments".into(),
        _ => format!(
            "f: unknown function {}; known are set_context_value, set_context, subscribe, \
             unsubscribe, close, get_context, info",
            quoted(name)
        )
        .into(),
    }
}

fn read_context(
    object: Value<'_, '_>,
    document: &Document<'_, '_>,
) -> Result<Vec<ContextEntry>, Fault> {
    // Repeated ones count, as with topics.
    if object.len() > CONTEXT_KEYS_MAX {
        return Err(Fault::invalid(format!("a: more than {CONTEXT_KEYS_MAX} keys")));
    }
    let mut context: Vec<ContextEntry> = Vec::new();
    for (key, _) in object.fields() {
        if !(1..=NAME_BYTES_MAX).contains(&key.len()) {
            return Err(Fault::invalid(format!("a: expected keys of 1 to {NAME_BYTES_MAX} bytes")));
        }
        let value = read_context_value(key, document)?;
        match context.iter_mut().find(|(known, _)| **known == *key) {
            Some(entry) => entry.1 = value,
            None => context.push((key.into(), value)),
        }
    }
    Ok(context)
}

/// The text of the value after a key. Back ends get it as it was sent.
fn read_context_value(key: &str, document: &Document<'_, '_>) -> Result<Box<str>, Fault> {
    let value = document.raw_after(key);
    match json::check(value.as_bytes()) {
        Err(flaw) => Err(Fault::invalid(format!("a: the value of {}: {flaw}", quoted(key)))),
        Ok(value) => Ok(value.into()),
    }
}

fn read_channels(arguments: &[Value<'_, '_>]) -> Result<Vec<Box<str>>, Fault> {
    if arguments.len() > CHANNELS_PER_CALL_MAX {
        return Err(Fault::invalid(format!("a: more than {CHANNELS_PER_CALL_MAX} channels")));
    }
    arguments.iter().map(|&argument| read_name("a", argument).map(Box::from)).collect()
}

fn read_close(arguments: &[Value<'_, '_>]) -> Result<Function, Fault> {
    let (code, reason) = match *arguments {
        [] => (Some(1000), Some("")),
        [code] => (code.unsigned(), Some("")),
        [code, reason] => (code.unsigned(), reason.text()),
        _ => (None, None),
    };
    let code = code.and_then(|code| u16::try_from(code).ok()).filter(|&c| close::may_be_asked(c));
    match (code, reason) {
        (Some(code), Some(reason)) if reason.len() <= CLOSE_REASON_BYTES_MAX => {
            Ok(Function::Close(code, reason.into()))
        }
        _ => Err(Fault::invalid(
            "a: expected [code, reason] with a code of 1000, 1001, 1008, 1011 to 1013 or 3000 to \
             4999 and a reason of at most 123 bytes",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::api::Code;

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
            assert_eq!(request.call, Ok(Call::Pop(vec![&format!("t{round}")], Settling::Written)));
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
            (r#"{"m":"queue.pop","p":{"t":["a","b","a"]}}"#, r#"Pop(["a", "b"], Written)"#),
            (
                r#"{"m":"queue.pop","p":{"t":["a"],"a":true,"w":7}}"#,
                r#"Pop(["a"], Acknowledged(7))"#,
            ),
            (r#"{"m":"queue.pop","p":{"t":["a"],"a":true}}"#, r#"Pop(["a"], Acknowledged(64))"#),
            (r#"{"m":"queue.ack","p":{"g":9}}"#, "Ack(One(9))"),
            (r#"{"m":"queue.ack","p":{"g":9.0}}"#, "Ack(One(9))"),
            (r#"{"m":"queue.ack","p":{"g":9007199254740991.0}}"#, "Ack(One(9007199254740991))"),
            (
                r#"{"m":"mesh.send","p":{"c":7e0,"d":"a"}}"#,
                "Send(ClientId(7), Content { kind: Text, bytes: [97] })",
            ),
            (r#"{"m":"queue.ack","p":{"g":9,"u":true}}"#, "Ack(UpTo(9))"),
            (r#"{"m":"queue.pop","p":["a"]}"#, r#"Pop(["a"], Written)"#),
            (r#"{"m":"queue.pop","p":[{"t":["a"]}]}"#, r#"Pop(["a"], Written)"#),
            (r#"{"m":"queue.unpop","p":[]}"#, "Unpop"),
            (r#"{"m":"queue.pop","p":{"t":["a"],"a":null,"w":null}}"#, r#"Pop(["a"], Written)"#),
            (
                r#"{"m":"queue.pop","p":{"t":["a"],"a":true,"w":null}}"#,
                r#"Pop(["a"], Acknowledged(64))"#,
            ),
            (r#"{"m":"queue.ack","p":{"g":9,"u":null}}"#, "Ack(One(9))"),
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
            let text =
                format!(r#"{{"m":"mesh.publish","p":{{"c":"a","d":"{data}","t":"binary"}}}}"#);
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
            (
                r#""subscribe","a":["channel1","channel2"]"#,
                r#"Subscribe(["channel1", "channel2"])"#,
            ),
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
            (br#"{"m":"a"}}"#, "more text behind the value, at offset 9"),
            (deep.as_bytes(), "more than 64 levels of nesting, at offset 86"),
            // Of the usual form up to the fault.
            (
                b"{\"m\":\"mesh.publish\",\"p\":{\"c\":\"a\",\"d\":\"\\n\\n\xff\"}}",
                "not UTF-8, at offset 42",
            ),
        ];
        for (text, words) in table {
            let mut parser = Parser::default();
            let mut input = text.to_vec();
            let fault = parser.request(&mut input).call.expect_err("it is not JSON");
            assert_eq!(
                fault.message,
                format!("not valid JSON: {words}"),
                "{}",
                text.escape_ascii()
            );
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
            (r#"{"m":"queue.pop","p":{}}"#, "t: expected an array"),
            (r#"{"m":"queue.pop","p":{"t":[]}}"#, "t: expected an array"),
            (r#"{"m":"queue.pop","p":{"t":"a"}}"#, "t: expected an array"),
            (r#"{"m":"queue.pop","p":{"t":["a",1]}}"#, "t: expected a string"),
            (r#"{"m":"queue.pop","p":{"t":["a"],"a":1}}"#, "a: expected true or false"),
            (r#"{"m":"queue.pop","p":{"t":["a"],"a":true,"w":0}}"#, "w: expected an integer"),
            (r#"{"m":"queue.ack","p":{}}"#, "g: missing"),
            (r#"{"m":"queue.ack","p":{"g":"1"}}"#, "g: expected the tag"),
            (r#"{"m":"queue.ack","p":{"g":-1.0}}"#, "g: expected the tag"),
            (r#"{"m":"queue.ack","p":{"g":1e16}}"#, "g: expected the tag"),
            (r#"{"m":"conn.call","p":{"c":1}}"#, "f: missing"),
            (r#"{"m":"conn.call","p":{"c":1,"f":"x"}}"#, "f: unknown function \"x\""),
            (r#"{"m":"conn.call","p":{"c":1,"f":"subscribe"}}"#, "a: expected one or more"),
            (r#"{"m":"conn.call","p":{"c":1,"f":"set_context","a":[1]}}"#, "a: expected [object]"),
            (
                r#"{"m":"conn.call","p":{"c":1,"f":"close","a":[1005]}}"#,
                "a: expected [code, reason]",
            ),
            (r#"{"m":"queue.unpop","i":{}}"#, "i: expected a number, a string or null"),
            (
                r#"{"m":"conn.call","p":{"c":1,"f":"close","a":[1e400]}}"#,
                "a: expected [code, reason]",
            ),
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
        let topics =
            |count: usize| format!(r#"{{"m":"queue.pop","p":{{"t":[{}]}}}}"#, names(count));
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

    /// So many names, of which a few are different.
    fn names(count: usize) -> String {
        (0..count).map(|at| format!(r#""{}""#, at % 7)).collect::<Vec<_>>().join(",")
    }

    fn assert_bound(text: impl Fn(usize) -> String, max: usize, fault: &str) {
        assert!(request(&text(max)).1.is_ok());
        for count in [max + 1, 100_000] {
            assert_eq!(fault_of(&text(count)), fault, "of {count}");
        }
    }
}
