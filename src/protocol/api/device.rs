//! The protocol of devices, `gridcast.v1`: parses their calls, and encodes what is sent to them.
//!
//! A call has the envelope of the back-end API. Its methods are those of [`DeviceCall`].

use simd_json::Node;

use super::document::{JsonDocument, Value};
use super::params::{object_of, optional, quoted, read_content, read_name, required};
use super::read::{Parser, read_id};
use super::write::{put_base64, put_position};
use super::{CHANNELS_PER_CALL_MAX, Content, Fault};
use crate::protocol::frame::Kind;
use crate::protocol::json::{put_number, put_string};
use crate::protocol::position::Position;

/// The WebSocket subprotocol of devices that make calls.
pub const DEVICE_SUBPROTOCOL: &str = "gridcast.v1";

/// A request of a device.
#[derive(Debug, PartialEq)]
pub struct DeviceRequest<'a> {
    /// The request's `i`, which the answer repeats: the JSON text of a number, a string or null.
    pub id: &'a str,
    /// The requested call, or the reason why the request is invalid.
    pub call: Result<DeviceCall<'a>, Fault>,
}

/// A call of a device.
#[derive(Debug, PartialEq)]
pub enum DeviceCall<'a> {
    /// `push`: puts a message into the topic of the route.
    Push(Content<'a>),
    /// `subscribe`: subscribes to channels.
    Subscribe(WantedChannels<'a>),
    /// `unsubscribe`: ends subscriptions. From 1 to [`CHANNELS_PER_CALL_MAX`] channels.
    Unsubscribe(Vec<&'a str>),
    /// `token`: replaces the token that the device has connected with. As long as a message of the route may be.
    Token(&'a str),
}

/// The channels of a `subscribe`.
#[derive(Debug, PartialEq, Eq)]
pub struct WantedChannels<'a> {
    /// The channels, from 1 to [`CHANNELS_PER_CALL_MAX`]. A channel may be repeated.
    pub channels: Vec<&'a str>,
    /// Channels for which the device gave the position of the last message that it got, as text. At most
    /// [`CHANNELS_PER_CALL_MAX`].
    pub positioned: Vec<(&'a str, &'a str)>,
}

/// A channel that a device is subscribed to, for the answer to its `subscribe`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscribedChannel {
    /// The name of the channel.
    pub channel: Box<str>,
    /// What follows from the position that the device gave. `None`: it gave none.
    pub recovery: Option<ChannelRecovery>,
    /// The place behind the last message before the live ones. `None`: the channel has no history.
    pub position: Option<Position>,
}

/// What follows from a position that a device gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelRecovery {
    /// This many messages were missed. They follow.
    Complete(usize),
    /// Messages may be missing. None follow.
    Incomplete,
}

/// Where a message for a device comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MessageOrigin<'a> {
    /// The channel to which the message was published. `None`: the message was sent to the device alone.
    pub channel: Option<&'a str>,
    /// The place behind the message in the history of the channel. `None`: the channel has none.
    pub position: Option<Position>,
}

impl Parser {
    /// Parses a request of a device. `input` is overwritten.
    pub fn device_request<'a>(&'a mut self, input: &'a mut [u8]) -> DeviceRequest<'a> {
        self.parse(input, |document| match document {
            Ok(document) => read_request(document),
            Err(fault) => DeviceRequest { id: "null", call: Err(fault) },
        })
    }
}

fn read_request<'a>(document: &JsonDocument<'_, 'a>) -> DeviceRequest<'a> {
    let (id, bad_id) = read_id(document);
    let root = document.root();
    let call = match bad_id {
        Some(fault) => Err(fault),
        None if !root.is_object() => Err(Fault::invalid("expected a JSON object with m, p and i")),
        None => read_call(root),
    };
    DeviceRequest { id, call }
}

fn read_call<'a>(root: Value<'_, 'a>) -> Result<DeviceCall<'a>, Fault> {
    let name = root
        .field("m")
        .ok_or_else(|| Fault::invalid("m: missing; expected the name of a method"))?
        .text()
        .ok_or_else(|| Fault::invalid("m: expected a string"))?;
    let params = || match root.field("p") {
        None => Err(Fault::invalid("p: missing; expected an object")),
        Some(given) => object_of(given),
    };
    match name {
        "push" => Ok(DeviceCall::Push(read_content(params()?)?)),
        "subscribe" => read_wanted(params()?).map(DeviceCall::Subscribe),
        "unsubscribe" => read_channels(params()?).map(DeviceCall::Unsubscribe),
        "token" => read_token(params()?).map(DeviceCall::Token),
        _ => {
            let name = quoted(name);
            let why =
                format!("m: unknown method {name}; known are push, subscribe, unsubscribe, token");
            Err(Fault::invalid(why))
        }
    }
}

fn read_wanted<'a>(params: Option<Value<'_, 'a>>) -> Result<WantedChannels<'a>, Fault> {
    let channels = read_channels(params)?;
    let Some(given) = optional(params, "o") else {
        return Ok(WantedChannels { channels, positioned: Vec::new() });
    };
    let wrong = || Fault::invalid("o: expected an object of channels and their positions, strings");
    if !given.is_object() {
        return Err(wrong());
    }
    if given.len() > CHANNELS_PER_CALL_MAX {
        return Err(Fault::invalid(format!("o: more than {CHANNELS_PER_CALL_MAX} channels")));
    }
    let positioned = given.fields().map(|(channel, position)| Some((channel, position.text()?)));
    Ok(WantedChannels {
        channels,
        positioned: positioned.collect::<Option<_>>().ok_or_else(wrong)?,
    })
}

fn read_token<'a>(params: Option<Value<'_, 'a>>) -> Result<&'a str, Fault> {
    let token = required(params, "token")?.text();
    token.ok_or_else(|| Fault::invalid("token: expected a string"))
}

fn read_channels<'a>(params: Option<Value<'_, 'a>>) -> Result<Vec<&'a str>, Fault> {
    let wrong = || Fault::invalid("c: expected an array of one or more channel names");
    let given = required(params, "c")?;
    if !matches!(given.0[0], Node::Array { len, .. } if len > 0) {
        return Err(wrong());
    }
    // Repeated names count, so that removing them stays cheap.
    if given.len() > CHANNELS_PER_CALL_MAX {
        return Err(Fault::invalid(format!("c: more than {CHANNELS_PER_CALL_MAX} channels")));
    }
    given.items().ok_or_else(wrong)?.map(|item| read_name("c", item)).collect()
}

/// Appends a message for a device, without its frame.
pub fn put_device_message(out: &mut Vec<u8>, origin: MessageOrigin<'_>, kind: Kind, data: &[u8]) {
    let MessageOrigin { channel, position } = origin;
    out.extend_from_slice(b"{\"e\":\"message\",\"p\":{");
    if let Some(channel) = channel {
        out.extend_from_slice(b"\"c\":");
        put_string(out, channel);
        out.push(b',');
    }
    out.extend_from_slice(b"\"d\":");
    match std::str::from_utf8(data) {
        Ok(text) if kind == Kind::Text => put_string(out, text),
        _ => {
            put_base64(out, data);
            out.extend_from_slice(b",\"t\":\"binary\"");
        }
    }
    if let Some(position) = position {
        out.extend_from_slice(b",\"o\":\"");
        put_position(out, position);
        out.push(b'"');
    }
    out.extend_from_slice(b"}}");
}

/// Appends the hint for a device whose connection is about to be closed, without its frame: the close code, and the
/// time after which the device should come back, in milliseconds.
pub fn put_closing(out: &mut Vec<u8>, code: u16, after_ms: u64) {
    out.extend_from_slice(b"{\"e\":\"closing\",\"p\":{\"code\":");
    put_number(out, code.into());
    out.extend_from_slice(b",\"after_ms\":");
    put_number(out, after_ms);
    out.extend_from_slice(b"}}");
}

/// Appends the event that a user has come to a channel, or else has left it, without its frame.
pub fn put_presence(out: &mut Vec<u8>, is_join: bool, channel: &str, user: &str) {
    let event: &[u8] = if is_join { b"{\"e\":\"join\"" } else { b"{\"e\":\"leave\"" };
    out.extend_from_slice(event);
    out.extend_from_slice(b",\"p\":{\"c\":");
    put_string(out, channel);
    out.extend_from_slice(b",\"u\":");
    put_string(out, user);
    out.extend_from_slice(b"}}");
}

/// Appends the answer to a device's `subscribe`: `{"s":true,"channels":{…}}`.
pub(super) fn put_subscribed(out: &mut Vec<u8>, channels: &[SubscribedChannel]) {
    out.extend_from_slice(b"{\"s\":true,\"channels\":{");
    for (number, SubscribedChannel { channel, recovery, position }) in channels.iter().enumerate() {
        if number > 0 {
            out.push(b',');
        }
        put_string(out, channel);
        out.extend_from_slice(b":{");
        match recovery {
            None => {}
            Some(ChannelRecovery::Incomplete) => out.extend_from_slice(b"\"recovered\":false"),
            Some(ChannelRecovery::Complete(missed)) => {
                out.extend_from_slice(b"\"recovered\":true,\"missed\":");
                put_number(out, *missed as u64);
            }
        }
        if let Some(position) = position {
            out.extend_from_slice(if recovery.is_some() { b",\"o\":\"" } else { b"\"o\":\"" });
            put_position(out, *position);
            out.push(b'"');
        }
        out.push(b'}');
    }
    out.extend_from_slice(b"}}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::api::{Code, Reply, put_answer};
    use crate::protocol::position::{Epoch, Serial};

    /// The id of a request, and what `read` makes of its call.
    fn parsed<T>(text: &str, read: impl FnOnce(Result<DeviceCall<'_>, Fault>) -> T) -> (String, T) {
        let (mut parser, mut text) = (Parser::default(), text.as_bytes().to_vec());
        let DeviceRequest { id, call } = parser.device_request(&mut text);
        (id.to_owned(), read(call))
    }

    #[track_caller]
    fn refused(text: &str, id: &str, why: &str) {
        let (given, fault) = parsed(text, |call| call.expect_err("it is invalid"));
        assert_eq!((&given[..], &fault.message[..]), (id, why));
        assert_eq!(fault.code, Code::InvalidArgument);
    }

    #[test]
    fn a_push_is_text_or_base64() {
        let text = r#"{"m":"push","p":{"d":"\u00e9\"x"},"i":18446744073709551615}"#;
        let (id, ()) = parsed(text, |call| {
            let content = Content { kind: Kind::Text, bytes: "é\"x".as_bytes().into() };
            assert_eq!(call, Ok(DeviceCall::Push(content)));
        });
        assert_eq!(id, "18446744073709551615");
        let (id, ()) = parsed(r#"{"m":"push","p":{"d":"AAE","t":"binary"}}"#, |call| {
            let content = Content { kind: Kind::Binary, bytes: [0, 1][..].into() };
            assert_eq!(call, Ok(DeviceCall::Push(content)));
        });
        assert_eq!(id, "null");
    }

    #[test]
    fn channels_are_subscribed_to_with_positions_or_without_and_left() {
        let text = r#"{"m":"subscribe","p":{"c":["a","b"],"o":{"b":"1-2"}},"i":"x"}"#;
        let (id, ()) = parsed(text, |call| {
            let wanted =
                WantedChannels { channels: vec!["a", "b"], positioned: vec![("b", "1-2")] };
            assert_eq!(call, Ok(DeviceCall::Subscribe(wanted)));
        });
        assert_eq!(id, "\"x\"");
        parsed(r#"{"m":"unsubscribe","p":{"c":["a"]},"id":1}"#, |call| {
            assert_eq!(call, Ok(DeviceCall::Unsubscribe(vec!["a"])));
        });
    }

    #[test]
    fn a_token_is_a_string() {
        parsed(r#"{"m":"token","p":{"token":"a.b.c"},"i":1}"#, |call| {
            assert_eq!(call, Ok(DeviceCall::Token("a.b.c")));
        });
        refused(r#"{"m":"token","p":{},"i":1}"#, "1", "token: missing");
        refused(r#"{"m":"token","p":{"token":7},"i":1}"#, "1", "token: expected a string");
    }

    #[test]
    fn devices_are_told_who_comes_to_a_channel_and_goes() {
        let put = |is_join| {
            let mut out = Vec::new();
            put_presence(&mut out, is_join, "a\"b", "7");
            String::from_utf8(out).unwrap()
        };
        assert_eq!(put(true), r#"{"e":"join","p":{"c":"a\"b","u":"7"}}"#);
        assert_eq!(put(false), r#"{"e":"leave","p":{"c":"a\"b","u":"7"}}"#);
    }

    #[test]
    fn a_hint_tells_the_close_code_and_when_to_come_back() {
        let mut out = Vec::new();
        put_closing(&mut out, 1001, 1200);
        assert_eq!(out, br#"{"e":"closing","p":{"code":1001,"after_ms":1200}}"#);
    }

    #[test]
    fn what_is_no_call_is_refused_with_the_field_that_is_wrong() {
        let channels = "c: expected an array of one or more channel names";
        let positions = "o: expected an object of channels and their positions, strings";
        let long = format!(r#"{{"m":"subscribe","p":{{"c":["{}"]}}}}"#, "x".repeat(256));
        let many = vec!["\"a\""; CHANNELS_PER_CALL_MAX + 1].join(",");
        let many = format!(r#"{{"m":"subscribe","p":{{"c":[{many}]}},"i":1}}"#);
        let table = [
            ("[]", "null", "expected a JSON object with m, p and i"),
            (r#"{"i":1}"#, "1", "m: missing; expected the name of a method"),
            (r#"{"m":1,"i":1}"#, "1", "m: expected a string"),
            (
                r#"{"m":"mesh.send","i":1}"#,
                "1",
                "m: unknown method \"mesh.send\"; known are push, subscribe, unsubscribe, token",
            ),
            (r#"{"m":"push","i":[]}"#, "null", "i: expected a number, a string or null"),
            (r#"{"m":"push","i":1}"#, "1", "p: missing; expected an object"),
            (r#"{"m":"push","p":1,"i":1}"#, "1", "p: expected an object"),
            (r#"{"m":"push","p":{},"i":1}"#, "1", "d: missing"),
            (r#"{"m":"push","p":{"d":1},"i":1}"#, "1", "d: expected a string"),
            (r#"{"m":"subscribe","p":{},"i":1}"#, "1", "c: missing"),
            (r#"{"m":"subscribe","p":{"c":"a"},"i":1}"#, "1", channels),
            (r#"{"m":"subscribe","p":{"c":[]},"i":1}"#, "1", channels),
            (r#"{"m":"subscribe","p":{"c":[1]},"i":1}"#, "1", "c: expected a string"),
            (r#"{"m":"unsubscribe","p":{"c":[""]},"i":1}"#, "1", "c: expected 1 to 255 bytes"),
            (&long, "null", "c: expected 1 to 255 bytes"),
            (&many, "1", "c: more than 1024 channels"),
            (r#"{"m":"subscribe","p":{"c":["a"],"o":[]},"i":1}"#, "1", positions),
            (r#"{"m":"subscribe","p":{"c":["a"],"o":{"a":1}},"i":1}"#, "1", positions),
        ];
        for (text, id, why) in table {
            refused(text, id, why);
        }
        for input in [&b"{"[..], b"{\"m\":\"\xFF\"}"] {
            let (mut parser, mut input) = (Parser::default(), input.to_vec());
            let DeviceRequest { id, call } = parser.device_request(&mut input);
            let fault = call.expect_err("it is no JSON");
            assert!(id == "null" && fault.message.starts_with("not valid JSON"), "{fault:?}");
        }
    }

    #[test]
    fn a_message_names_its_channel_and_says_when_it_is_base64() {
        let put = |channel, position, kind, data: &[u8]| {
            let mut out = Vec::new();
            put_device_message(&mut out, MessageOrigin { channel, position }, kind, data);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            put(Some("a\"b"), None, Kind::Text, "é\n".as_bytes()),
            r#"{"e":"message","p":{"c":"a\"b","d":"é\n"}}"#
        );
        assert_eq!(
            put(None, None, Kind::Binary, &[0, 1, 2, 3]),
            r#"{"e":"message","p":{"d":"AAECAw==","t":"binary"}}"#
        );
        let position = Some(Position { epoch: Epoch(0), serial: Serial(1) });
        assert_eq!(
            put(Some("a"), position, Kind::Text, b"x"),
            r#"{"e":"message","p":{"c":"a","d":"x","o":"AAAAAAAAAAAAAAAAAAAAAQ"}}"#
        );
    }

    #[test]
    fn the_answer_to_a_subscribe_says_of_each_channel_what_was_recovered() {
        let position = Some(Position { epoch: Epoch(0), serial: Serial(1) });
        let subscribed = |channel: &str, recovery, position| SubscribedChannel {
            channel: channel.into(),
            recovery,
            position,
        };
        let channels = vec![
            subscribed("a", None, None),
            subscribed("b", Some(ChannelRecovery::Incomplete), None),
            subscribed("c", Some(ChannelRecovery::Complete(3)), position),
            subscribed("d", None, position),
        ];
        let mut out = Vec::new();
        put_answer(&mut out, &Ok(Reply::Subscribed(channels)), Some("1"));
        let all = r#"{"a":{},"b":{"recovered":false},"c":{"recovered":true,"missed":3,"o":"AAAAAAAAAAAAAAAAAAAAAQ"},"d":{"o":"AAAAAAAAAAAAAAAAAAAAAQ"}}"#;
        assert_eq!(
            String::from_utf8(out).unwrap(),
            format!(r#"{{"E":null,"r":{{"s":true,"channels":{all}}},"i":1}}"#)
        );
    }
}
