//! Encodes answers and events for back ends as JSON.

use std::borrow::Cow;

use base64::Engine;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use super::device::put_subscribed;
use super::list::put_listing;
use super::taken::{put_settled, put_taken};
use super::{BASE64, Fault, Info, MeshRow, NodeRow, PushedEvent, Reply, Tally};
use crate::address::remote::Remote;
use crate::address::{ClientId, NodeId};
use crate::protocol::frame::{self, Frame, Kind, Opcode};
use crate::protocol::json::{put_number, put_string};
use crate::protocol::position::Position;

/// Appends the answer to a call. `id` is the JSON text of the request's `i`; requests over HTTP have
/// none.
pub fn put_answer(out: &mut Vec<u8>, answer: &Result<Reply, Fault>, id: Option<&str>) {
    match answer {
        Ok(reply) => {
            out.extend_from_slice(b"{\"E\":null,\"r\":");
            put_reply(out, reply);
        }
        Err(fault) => {
            out.extend_from_slice(b"{\"E\":{\"c\":");
            put_number(out, fault.code.number());
            out.extend_from_slice(b",\"m\":");
            put_string(out, &fault.message);
            out.push(b'}');
        }
    }
    if let Some(id) = id {
        out.extend_from_slice(b",\"i\":");
        out.extend_from_slice(id.as_bytes());
    }
    out.push(b'}');
}

/// Appends an array. `put` appends an item.
pub(super) fn put_list<T>(out: &mut Vec<u8>, items: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    out.push(b'[');
    for (number, item) in items.iter().enumerate() {
        if number > 0 {
            out.push(b',');
        }
        put(out, item);
    }
    out.push(b']');
}

fn put_strings(out: &mut Vec<u8>, strings: &[String]) {
    put_list(out, strings, |out, string| put_string(out, string));
}

fn put_reply(out: &mut Vec<u8>, reply: &Reply) {
    match reply {
        Reply::Done => out.extend_from_slice(b"{\"s\":true}"),
        Reply::Warned(warning) => {
            out.extend_from_slice(b"{\"s\":true,\"w\":");
            put_string(out, warning);
            out.push(b'}');
        }
        Reply::Published(tally) => {
            put_tally(out, *tally);
            out.push(b'}');
        }
        Reply::Placed(tally, position) => {
            put_tally(out, *tally);
            out.extend_from_slice(b",\"o\":\"");
            put_position(out, *position);
            out.extend_from_slice(b"\"}");
        }
        Reply::Context(json) => {
            out.extend_from_slice(b"{\"s\":true,\"context\":");
            out.extend_from_slice(json.as_bytes());
            out.push(b'}');
        }
        Reply::Info(info) => put_info(out, info),
        Reply::Reloaded(settings) => {
            out.extend_from_slice(b"{\"changed\":");
            put_strings(out, &settings.changed);
            out.extend_from_slice(b",\"restart\":");
            put_strings(out, &settings.restart);
            out.push(b'}');
        }
        Reply::List(listing) => put_listing(out, listing),
        Reply::Tapping(missing) => {
            out.extend_from_slice(b"{\"s\":true,\"missing\":[");
            for (number, node) in missing.iter().enumerate() {
                out.extend_from_slice(if number > 0 { b"," } else { b"" });
                put_number(out, node.number().into());
            }
            out.extend_from_slice(b"]}");
        }
        Reply::Taken(events) => put_taken(out, events),
        Reply::Settled(stale) => put_settled(out, stale),
        Reply::Subscribed(channels) => put_subscribed(out, channels),
        Reply::Page(_, text) => put_string(out, text),
    }
}

/// Appends the sums of a publish, without the closing brace.
fn put_tally(out: &mut Vec<u8>, tally: Tally) {
    out.extend_from_slice(b"{\"s\":");
    put_number(out, tally.delivered);
    out.extend_from_slice(b",\"f\":");
    put_number(out, tally.failed);
}

/// Appends a position, which needs no quoting.
pub(super) fn put_position(out: &mut Vec<u8>, position: Position) {
    out.extend_from_slice(&position.text());
}

fn put_info(out: &mut Vec<u8>, info: &Info) {
    out.extend_from_slice(b"{\"s\":true,\"node\":");
    put_number(out, info.node.number().into());
    out.extend_from_slice(b",\"remote\":");
    put_string(out, &info.remote.to_string());
    out.extend_from_slice(b",\"since\":");
    put_number(out, info.since_ms);
    out.extend_from_slice(b",\"channels\":[");
    for (at, channel) in info.channels.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        put_string(out, channel);
    }
    out.extend_from_slice(b"],\"buffered\":");
    put_number(out, info.buffered);
    out.push(b'}');
}

/// Appends the response to `GET /v1/nodes`.
pub fn put_nodes(out: &mut Vec<u8>, nodes: impl Iterator<Item = NodeRow>) {
    out.extend_from_slice(b"{\"nodes\":[");
    for (index, NodeRow { node, api, mesh }) in nodes.enumerate() {
        let comma = if index > 0 { "," } else { "" };
        let (node, port) = (node.number(), api.port());
        // A Unix socket has no IP address.
        let ip = api.ip().map(|ip| ip.to_string()).unwrap_or_default();
        let api = api.to_string();
        out.extend_from_slice(format!("{comma}{{\"id\":{node},\"api_server\":").as_bytes());
        put_string(out, &api);
        out.extend_from_slice(b",\"host\":");
        put_string(out, &api);
        out.extend_from_slice(format!(",\"ip\":\"{ip}\",\"port\":{port}").as_bytes());
        if let Some(MeshRow { address, state, version, clients }) = mesh {
            let state = state.name();
            let row = format!(
                ",\"mesh\":\"{address}\",\"state\":\"{state}\",\"clients\":{clients},\"version\":"
            );
            out.extend_from_slice(row.as_bytes());
            put_string(out, &version);
        }
        out.push(b'}');
    }
    out.extend_from_slice(b"]}");
}

/// The fields that every `queue.pop` event has.
#[derive(Clone, Copy, Debug)]
pub struct EventHead<'t> {
    /// The client's node: `n`.
    pub node: NodeId,
    /// The client: `c`.
    pub client: ClientId,
    /// The topic: `t`.
    pub topic: &'t str,
}

/// Appends the frame of a `queue.pop` event. `put_data` appends the JSON value of the field `d`.
/// `scratch` is overwritten.
pub fn put_event(
    out: &mut Vec<u8>,
    scratch: &mut Vec<u8>,
    head: EventHead<'_>,
    put_data: impl FnOnce(&mut Vec<u8>),
) {
    let EventHead { node, client, topic } = head;
    scratch.clear();
    scratch.extend_from_slice(EVENT_BEGIN);
    scratch.extend_from_slice(b"{\"n\":");
    put_number(scratch, node.number().into());
    scratch.extend_from_slice(b",\"c\":\"");
    put_number(scratch, client.value());
    scratch.push(b'"');
    scratch.extend_from_slice(TOPIC_FIELD);
    put_string(scratch, topic);
    scratch.extend_from_slice(b",\"d\":");
    put_data(scratch);
    scratch.extend_from_slice(EVENT_END);
    frame::put_frame(out, Opcode::Data(Kind::Text), scratch);
}

/// Replaces what is in `scratch` by the beginning of an event that names no client.
fn begin_event_without_client(scratch: &mut Vec<u8>, node: NodeId, topic: &str) {
    scratch.clear();
    scratch.extend_from_slice(EVENT_BEGIN);
    scratch.extend_from_slice(b"{\"n\":");
    put_number(scratch, node.number().into());
    scratch.extend_from_slice(b",\"c\":\"\"");
    scratch.extend_from_slice(TOPIC_FIELD);
    put_string(scratch, topic);
}

/// Appends the frame of an event that a back end has pushed. The event names no client. `scratch` is
/// overwritten.
pub fn put_pushed(out: &mut Vec<u8>, scratch: &mut Vec<u8>, node: NodeId, event: &PushedEvent<'_>) {
    begin_event_without_client(scratch, node, event.topic);
    scratch.extend_from_slice(b",\"d\":{\"event\":\"push\",\"data\":");
    put_string(scratch, event.data);
    scratch.push(b'}');
    if let Some(key) = event.key {
        scratch.extend_from_slice(b",\"k\":");
        put_string(scratch, key);
    }
    scratch.extend_from_slice(EVENT_END);
    frame::put_frame(out, Opcode::Data(Kind::Text), scratch);
}

/// A change of who is present in a channel, for back ends.
#[derive(Clone, Copy, Debug)]
pub struct PresenceEvent<'e> {
    /// The topic.
    pub topic: &'e str,
    /// The channel.
    pub channel: &'e str,
    /// The user who comes or goes. `None`: the channel is occupied by its first client, or vacated by its last.
    pub user: Option<&'e str>,
    /// Whether somebody comes.
    pub is_arrival: bool,
}

/// Appends the frame of an event about presence. The event names no client, and has the channel as its key. `scratch` is
/// overwritten.
pub fn put_presence_event(
    out: &mut Vec<u8>,
    scratch: &mut Vec<u8>,
    node: NodeId,
    event: &PresenceEvent<'_>,
) {
    let name: &[u8] = match (event.user.is_some(), event.is_arrival) {
        (true, true) => b"join",
        (true, false) => b"leave",
        (false, true) => b"occupied",
        (false, false) => b"vacated",
    };
    begin_event_without_client(scratch, node, event.topic);
    scratch.extend_from_slice(b",\"d\":{\"event\":\"");
    scratch.extend_from_slice(name);
    scratch.extend_from_slice(b"\",\"channel\":");
    put_string(scratch, event.channel);
    if let Some(user) = event.user {
        scratch.extend_from_slice(b",\"user\":");
        put_string(scratch, user);
    }
    scratch.extend_from_slice(b"},\"k\":");
    put_string(scratch, event.channel);
    scratch.extend_from_slice(EVENT_END);
    frame::put_frame(out, Opcode::Data(Kind::Text), scratch);
}

/// The beginning of every event.
const EVENT_BEGIN: &[u8] = b"{\"e\":\"queue.pop\",\"p\":";

/// The end of every event. [`put_tagged`] inserts its fields before it.
const EVENT_END: &[u8] = b"},\"id\":null}";

/// Returns the object `p` of an encoded event: what `queue.pop` hands to a consumer, without a tag.
pub fn event_object(event: &[u8]) -> &[u8] {
    let object = event.strip_prefix(EVENT_BEGIN).filter(|object| object.ends_with(EVENT_END));
    // `EVENT_END` begins with the closing brace of the object.
    object.map_or(event, |object| &object[..object.len() - EVENT_END.len() + 1])
}

/// Appends a copy of an event's frame with the tag by which its consumer acknowledges it. `scratch` is
/// overwritten.
pub fn put_tagged(
    out: &mut Vec<u8>,
    scratch: &mut Vec<u8>,
    event: &Frame,
    tag: u64,
    is_redelivered: bool,
) {
    let json = event.payload();
    scratch.clear();
    scratch.extend_from_slice(json.strip_suffix(EVENT_END).unwrap_or(json));
    scratch.extend_from_slice(b",\"g\":");
    put_number(scratch, tag);
    if is_redelivered {
        scratch.extend_from_slice(b",\"redelivered\":true");
    }
    scratch.extend_from_slice(EVENT_END);
    frame::put_frame(out, Opcode::Data(Kind::Text), scratch);
}

/// Why an event has gone to a dead topic.
#[derive(Clone, Copy, Debug)]
pub struct Death<'t> {
    /// The topic in which nobody has acknowledged the event.
    pub topic: &'t str,
    /// How often the event was handed out there.
    pub tries: u16,
    /// Why the last time was in vain.
    pub why: &'t str,
}

/// Appends a copy of an event's frame as it stands in the topic `to` for dead events. `scratch` is overwritten.
pub fn put_dead(
    out: &mut Vec<u8>,
    scratch: &mut Vec<u8>,
    event: &Frame,
    to: &str,
    death: Death<'_>,
) {
    let json = event.payload();
    let json = json.strip_suffix(EVENT_END).unwrap_or(json);
    scratch.clear();
    // The first `"t":` names the topic: only numbers stand before it.
    let place = memchr::memmem::find(json, TOPIC_FIELD).map(|at| at + TOPIC_FIELD.len());
    let mut topic = Vec::new();
    put_string(&mut topic, death.topic);
    match place.filter(|&place| json[place..].starts_with(&topic)) {
        Some(place) => {
            scratch.extend_from_slice(&json[..place]);
            put_string(scratch, to);
            scratch.extend_from_slice(&json[place + topic.len()..]);
        }
        None => scratch.extend_from_slice(json),
    }
    scratch.extend_from_slice(b",\"dead\":{\"t\":");
    scratch.extend_from_slice(&topic);
    scratch.extend_from_slice(b",\"tries\":");
    put_number(scratch, death.tries.into());
    scratch.extend_from_slice(b",\"why\":");
    put_string(scratch, death.why);
    scratch.push(b'}');
    scratch.extend_from_slice(EVENT_END);
    frame::put_frame(out, Opcode::Data(Kind::Text), scratch);
}

const TOPIC_FIELD: &[u8] = b",\"t\":";

/// Appends the field `d` of a client's message: `{"frame":{…},"context":{…}}`. `context` is the JSON
/// text of the client's context, if it has one. `data` must be valid UTF-8 if `kind` is text.
pub fn put_message(out: &mut Vec<u8>, kind: Kind, data: &[u8], context: Option<&str>) {
    let kind_name: &[u8] = match kind {
        Kind::Text => b"{\"frame\":{\"type\":\"text\",\"data\":",
        Kind::Binary => b"{\"frame\":{\"type\":\"binary\",\"data\":",
    };
    out.extend_from_slice(kind_name);
    match std::str::from_utf8(data) {
        Ok(text) if kind == Kind::Text => put_string(out, text),
        _ => put_base64(out, data),
    }
    out.extend_from_slice(b",\"finish\":true}");
    put_context(out, context);
    out.push(b'}');
}

pub(super) fn put_base64(out: &mut Vec<u8>, data: &[u8]) {
    out.push(b'"');
    let start = out.len();
    // Four characters for every three bytes, rounded up.
    out.resize(start + data.len().div_ceil(3) * 4, 0);
    let length = BASE64.encode_slice(data, &mut out[start..]).expect("the buffer was sized for it");
    out.truncate(start + length);
    out.push(b'"');
}

fn put_context(out: &mut Vec<u8>, context: Option<&str>) {
    if let Some(context) = context {
        out.extend_from_slice(b",\"context\":");
        out.extend_from_slice(context.as_bytes());
    }
}

/// Appends the field `d` of an `open` event. `context` is the context from the client's token.
pub fn put_open<'a>(
    out: &mut Vec<u8>,
    path: &str,
    query: impl Iterator<Item = (Cow<'a, str>, Cow<'a, str>)>,
    headers: impl Iterator<Item = (String, Cow<'a, str>)>,
    remote: Remote,
    context: Option<&str>,
) {
    out.extend_from_slice(b"{\"event\":\"open\",");
    put_request(out, path, query, headers, remote);
    put_context(out, context);
    out.push(b'}');
}

/// Appends the fields that describe a client's request.
pub fn put_request<'a>(
    out: &mut Vec<u8>,
    path: &str,
    query: impl Iterator<Item = (Cow<'a, str>, Cow<'a, str>)>,
    headers: impl Iterator<Item = (String, Cow<'a, str>)>,
    remote: Remote,
) {
    out.extend_from_slice(b"\"path\":");
    put_string(out, path);
    out.extend_from_slice(b",\"query\":");
    put_object(out, query.map(|(name, value)| (name.into_owned(), value)), |_| ",");
    out.extend_from_slice(b",\"headers\":");
    put_object(out, headers, header_separator);
    out.extend_from_slice(b",\"remote\":");
    put_string(out, &remote.to_string());
}

/// Returns the separator that joins the values of a repeated header: a comma (RFC 9110, section 5.3), or
/// a semicolon for cookies, which may contain commas (RFC 9113, section 8.2.3).
fn header_separator(name: &str) -> &'static str {
    if name == "cookie" { "; " } else { "," }
}

/// Appends an object of strings. The values of a repeated name are joined with `separator`.
fn put_object<'a>(
    out: &mut Vec<u8>,
    fields: impl Iterator<Item = (String, Cow<'a, str>)>,
    separator: fn(&str) -> &'static str,
) {
    let mut joined: Vec<(String, String)> = Vec::new();
    let mut places = HashMap::new();
    for (name, value) in fields {
        match places.entry(name.clone()) {
            Entry::Occupied(place) => {
                let (_, known): &mut (_, String) = &mut joined[*place.get()];
                known.push_str(separator(&name));
                known.push_str(&value);
            }
            Entry::Vacant(place) => {
                place.insert(joined.len());
                joined.push((name, value.into_owned()));
            }
        }
    }
    out.push(b'{');
    for (at, (name, value)) in joined.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        put_string(out, name);
        out.push(b':');
        put_string(out, value);
    }
    out.push(b'}');
}

/// Appends the field `d` of an `open` event for a client that is still connected, but may have been
/// reported as lost with its node.
pub fn put_found(out: &mut Vec<u8>, remote: Remote, context: Option<&str>) {
    out.extend_from_slice(b"{\"event\":\"open\",\"reason\":\"node_found\",\"remote\":");
    put_string(out, &remote.to_string());
    put_context(out, context);
    out.push(b'}');
}

/// Appends the field `d` of a `close` event.
pub fn put_close(out: &mut Vec<u8>, code: u16, reason: &str, context: Option<&str>) {
    out.extend_from_slice(b"{\"event\":\"close\",\"code\":");
    put_number(out, code.into());
    out.extend_from_slice(b",\"reason\":");
    put_string(out, reason);
    put_context(out, context);
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::api::{Code, Tally};

    fn written(put: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        put(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn answers_have_the_keys_and_the_order_of_the_protocol() {
        let tally = Tally { delivered: 9, failed: 0 };
        let published = Ok(Reply::Published(tally));
        let fault = Err(Fault::new(Code::RepeatedConsumption, "\"again\""));
        let cases = [
            (Ok(Reply::Done), Some("12345"), r#"{"E":null,"r":{"s":true},"i":12345}"#),
            (Ok(Reply::Done), None, r#"{"E":null,"r":{"s":true}}"#),
            (Ok(Reply::Warned("\"t\"".into())), None, r#"{"E":null,"r":{"s":true,"w":"\"t\""}}"#),
            (published, Some("null"), r#"{"E":null,"r":{"s":9,"f":0},"i":null}"#),
            (fault, Some("1"), r#"{"E":{"c":202,"m":"\"again\""},"i":1}"#),
            (
                Ok(Reply::Context("{\"a\":1}".into())),
                None,
                r#"{"E":null,"r":{"s":true,"context":{"a":1}}}"#,
            ),
        ];
        for (answer, id, expected) in cases {
            assert_eq!(written(|out| put_answer(out, &answer, id)), expected);
        }
    }

    #[test]
    fn an_event_has_the_shape_of_the_protocol() {
        let mut out = Vec::new();
        let client = ClientId::from_value(1463819408261513216);
        let head = EventHead { node: NodeId::new(1).unwrap(), client, topic: "topic1" };
        put_event(&mut out, &mut Vec::new(), head, |out| {
            put_message(out, Kind::Text, b"json \"str\"", None);
        });
        let json = std::str::from_utf8(&out[4..]).unwrap();
        assert_eq!(
            json,
            r#"{"e":"queue.pop","p":{"n":1,"c":"1463819408261513216","t":"topic1","d":{"frame":{"type":"text","data":"json \"str\"","finish":true}}},"id":null}"#
        );
    }

    #[test]
    fn an_event_about_presence_names_the_channel_and_who_comes_or_goes() {
        let written = |user, is_arrival| {
            let event = PresenceEvent { topic: "t", channel: "a\"b", user, is_arrival };
            let mut out = Vec::new();
            put_presence_event(&mut out, &mut Vec::new(), NodeId::new(1).unwrap(), &event);
            String::from_utf8_lossy(Frame::from_encoded(&out).payload()).into_owned()
        };
        let expected = |data: &str| {
            format!(
                r#"{{"e":"queue.pop","p":{{"n":1,"c":"","t":"t","d":{{{data}}},"k":"a\"b"}},"id":null}}"#
            )
        };
        for (user, is_arrival, data) in [
            (Some("7"), true, r#""event":"join","channel":"a\"b","user":"7""#),
            (Some("7"), false, r#""event":"leave","channel":"a\"b","user":"7""#),
            (None, true, r#""event":"occupied","channel":"a\"b""#),
            (None, false, r#""event":"vacated","channel":"a\"b""#),
        ] {
            assert_eq!(written(user, is_arrival), expected(data));
        }
    }

    #[test]
    fn an_event_that_is_to_be_acknowledged_carries_its_tag() {
        let mut event = Vec::new();
        let client = ClientId::from_value(5);
        let head = EventHead { node: NodeId::new(1).unwrap(), client, topic: "t" };
        let long = "x".repeat(200);
        for data in ["x", &long] {
            event.clear();
            put_event(&mut event, &mut Vec::new(), head, |out| {
                put_message(out, Kind::Text, data.as_bytes(), None);
            });
            let event = Frame::from_encoded(&event);
            let mut out = Vec::new();
            put_tagged(&mut out, &mut Vec::new(), &event, 17, true);
            let tagged = Frame::from_encoded(&out);
            let json = String::from_utf8_lossy(tagged.payload());
            assert!(json.ends_with(r#""finish":true}},"g":17,"redelivered":true},"id":null}"#));
        }
    }

    #[test]
    fn what_clients_do_is_told_with_its_circumstances() {
        assert_eq!(
            written(|out| put_message(out, Kind::Binary, &[0, 1, 2, 3], Some("{\"a\":1}"))),
            r#"{"frame":{"type":"binary","data":"AAECAw==","finish":true},"context":{"a":1}}"#
        );
        let pair = |name: &'static str, value: &'static str| (Cow::from(name), Cow::from(value));
        let opened = |context| {
            written(|out| {
                let query = [pair("cookie", "a"), pair("cookie", "b")];
                let headers =
                    [("cookie", "x=1"), ("accept", "t"), ("cookie", "y=2, 3"), ("accept", "u")];
                let headers = headers.map(|(name, value)| (name.to_owned(), Cow::from(value)));
                let remote = ([127, 0, 0, 1], 5).into();
                put_open(out, "/ws", query.into_iter(), headers.into_iter(), remote, context);
            })
        };
        let beginning = r#"{"event":"open","path":"/ws","query":{"cookie":"a,b"},"headers":{"cookie":"x=1; y=2, 3","accept":"t,u"},"remote":"127.0.0.1:5""#;
        assert_eq!(opened(None), format!("{beginning}}}"));
        assert_eq!(opened(Some("{\"a\":1}")), format!("{beginning},\"context\":{{\"a\":1}}}}"));
        assert_eq!(
            written(|out| put_close(out, 1000, "bye", None)),
            r#"{"event":"close","code":1000,"reason":"bye"}"#
        );
    }
}
