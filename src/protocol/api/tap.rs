//! Taps: the parameters of `tap.start`, and the events that a tap sends to its back end.

use super::document::Value;
use super::params::{optional, read_client, read_name, read_network, read_user};
use super::write::put_base64;
use super::{Fault, Tap, TapTarget};
use crate::address::remote::Remote;
use crate::address::{ClientId, NodeId};
use crate::protocol::frame::{self, Frame, Kind, Opcode};
use crate::protocol::json::{put_number, put_string};

/// The most events a second that a tap may ask for.
pub const TAP_EVENTS_PER_S_MAX: u16 = 1000;

/// The events a second of a tap that asks for no number.
const TAP_EVENTS_PER_S_DEFAULT: u16 = 100;

/// The most bytes of a message, a path or a reason that a tap event shows.
const TAP_SHOWN_BYTES: usize = 256;

/// The most bytes of an encoded tap event. Four texts of [`TAP_SHOWN_BYTES`] whose every byte is escaped
/// with six stay below it.
pub const TAP_FRAME_BYTES_MAX: usize = 8 * 1024;

/// Reads the parameters of `tap.start`.
pub(super) fn read_tap(params: Option<Value<'_, '_>>) -> Result<Tap, Fault> {
    let targets = [
        ("c", optional(params, "c")),
        ("user", optional(params, "user")),
        ("channel", optional(params, "channel")),
        ("topic", optional(params, "topic")),
        ("address", optional(params, "address")),
    ];
    let given = targets.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let given: Vec<_> = given.collect();
    let [(name, value)] = given[..] else {
        let names: Vec<&str> = given.iter().map(|(name, _)| *name).collect();
        return Err(Fault::invalid(match names.is_empty() {
            true => "p: expected one of c, user, channel, topic and address".to_owned(),
            false => format!("p: expected only one of {}", names.join(" and ")),
        }));
    };
    let target = match name {
        "c" => TapTarget::Client(read_client(params)?),
        "user" => TapTarget::User(read_user("user", value)?),
        "channel" => TapTarget::Channel(read_name("channel", value)?.into()),
        "topic" => TapTarget::Topic(read_name("topic", value)?.into()),
        _ => TapTarget::Address(read_network(value)?.into()),
    };
    Ok(Tap { target, max_per_s: read_rate(params)? })
}

fn read_rate(params: Option<Value<'_, '_>>) -> Result<u16, Fault> {
    let Some(value) = optional(params, "max_per_s") else { return Ok(TAP_EVENTS_PER_S_DEFAULT) };
    let rate = value.unsigned().and_then(|rate| u16::try_from(rate).ok());
    rate.filter(|rate| (1..=TAP_EVENTS_PER_S_MAX).contains(rate)).ok_or_else(|| {
        let message = format!("max_per_s: expected an integer from 1 to {TAP_EVENTS_PER_S_MAX}");
        Fault::invalid(message)
    })
}

/// When and where something happened that a tap tells.
#[derive(Clone, Copy, Debug)]
pub struct TapHead {
    /// The time in Unix milliseconds: `at`.
    pub unix_ms: u64,
    /// The node: `node`.
    pub node: NodeId,
    /// The client: `c`. `None`: there is no client, or not one alone.
    pub client: Option<ClientId>,
}

/// An event of a tap: the field `what`, with the fields that go with it. No variant has a place for a
/// query, a header or the value of a context, so that no token is told.
#[derive(Clone, Copy, Debug)]
pub enum TapEvent<'a> {
    /// `connect`: a client connected.
    Connect {
        /// The path of the route.
        path: &'a str,
        /// The address of the client.
        remote: Remote,
        /// The user of the client, if it has one: `u`.
        user: Option<&'a str>,
        /// The number of channels that the client is subscribed to.
        channels: usize,
    },
    /// `refuse`: a connection of a device was refused.
    Refuse {
        /// The status of the answer. `None`: the connection was closed without an answer.
        status: Option<u16>,
        /// The reason.
        why: &'a str,
        /// The address of the device.
        remote: Remote,
        /// The user, if the device has shown a token that names it: `u`.
        user: Option<&'a str>,
        /// The path that the device asked for, if it got as far.
        path: Option<&'a str>,
    },
    /// `in`: the client sent a message.
    In(Kind, &'a [u8]),
    /// `out`: a message was put into the client's outbound buffer.
    Out(Kind, &'a [u8]),
    /// `call`: a back end made a call.
    Call {
        /// The method.
        method: &'a str,
        /// The function and its arguments, without values of a context; or the channel, or the topics.
        arguments: &'a str,
        /// The user of the back end, if that is known.
        by: Option<&'a str>,
        /// The outcome, if that is known.
        outcome: Option<Result<(), &'a Fault>>,
    },
    /// `close`: the client has ended.
    Close {
        /// The close code.
        code: u16,
        /// The close reason.
        reason: &'a str,
        /// Who ended the client: `peer`, `node` or `backend`.
        by: &'a str,
    },
}

/// Encodes an event of a tap as a whole frame.
pub fn tap_frame(head: TapHead, event: TapEvent<'_>) -> Frame {
    let mut json = begin(head.unix_ms);
    json.extend_from_slice(b",\"node\":");
    put_number(&mut json, head.node.number().into());
    json.extend_from_slice(b",\"c\":");
    match head.client {
        Some(client) => put_string(&mut json, &client.to_string()),
        None => json.extend_from_slice(b"null"),
    }
    put_event(&mut json, event);
    json.extend_from_slice(b"}}");
    Frame::message(Kind::Text, &json)
}

/// Appends the frame of a `lost` event: the tap could not tell this number of events. With a node: from now on the
/// tap is not told what happens there, until the node is reachable again.
pub fn put_tap_lost(out: &mut Vec<u8>, unix_ms: u64, lost: u64, node: Option<NodeId>) {
    let mut json = begin(unix_ms);
    json.extend_from_slice(b",\"what\":\"lost\",\"n\":");
    put_number(&mut json, lost);
    if let Some(node) = node {
        json.extend_from_slice(b",\"node\":");
        put_number(&mut json, node.number().into());
    }
    json.extend_from_slice(b"}}");
    frame::put_frame(out, Opcode::Data(Kind::Text), &json);
}

fn begin(unix_ms: u64) -> Vec<u8> {
    let mut json = Vec::from(b"{\"e\":\"tap\",\"p\":{\"at\":");
    put_number(&mut json, unix_ms);
    json
}

fn put_event(out: &mut Vec<u8>, event: TapEvent<'_>) {
    match event {
        TapEvent::Connect { path, remote, user, channels } => {
            put_what(out, "connect");
            put_text(out, "path", path);
            put_text(out, "remote", &remote.to_string());
            put_optional(out, "u", user);
            put_field(out, "channels", |out| put_number(out, channels as u64));
        }
        TapEvent::Refuse { status, why, remote, user, path } => {
            put_what(out, "refuse");
            put_field(out, "status", |out| match status {
                Some(status) => put_number(out, status.into()),
                None => out.extend_from_slice(b"null"),
            });
            put_text(out, "why", why);
            put_text(out, "remote", &remote.to_string());
            put_optional(out, "u", user);
            put_optional(out, "path", path);
        }
        TapEvent::In(kind, data) => {
            put_what(out, "in");
            put_data(out, kind, data);
        }
        TapEvent::Out(kind, data) => {
            put_what(out, "out");
            put_data(out, kind, data);
        }
        TapEvent::Call { method, arguments, by, outcome } => {
            put_what(out, "call");
            put_text(out, "m", method);
            put_text(out, "arguments", arguments);
            put_optional(out, "by", by);
            if let Some(outcome) = outcome {
                put_field(out, "error", |out| put_error(out, outcome.err()));
            }
        }
        TapEvent::Close { code, reason, by } => {
            put_what(out, "close");
            put_field(out, "code", |out| put_number(out, code.into()));
            put_text(out, "reason", reason);
            put_text(out, "by", by);
        }
    }
}

fn put_what(out: &mut Vec<u8>, what: &str) {
    put_text(out, "what", what);
}

fn put_field(out: &mut Vec<u8>, name: &str, put: impl FnOnce(&mut Vec<u8>)) {
    out.push(b',');
    put_string(out, name);
    out.push(b':');
    put(out);
}

/// Appends a field with a text, of which at most [`TAP_SHOWN_BYTES`] are shown.
fn put_text(out: &mut Vec<u8>, name: &str, text: &str) {
    let shown = &text[..text.floor_char_boundary(TAP_SHOWN_BYTES)];
    put_field(out, name, |out| put_string(out, shown));
}

fn put_optional(out: &mut Vec<u8>, name: &str, text: Option<&str>) {
    match text {
        Some(text) => put_text(out, name, text),
        None => put_field(out, name, |out| out.extend_from_slice(b"null")),
    }
}

/// Appends the type of a message, its first bytes and its length.
fn put_data(out: &mut Vec<u8>, kind: Kind, data: &[u8]) {
    let shown = &data[..data.len().min(TAP_SHOWN_BYTES)];
    match kind {
        Kind::Text => {
            // A character may be cut.
            let shown = shown.utf8_chunks().next().map_or("", |chunk| chunk.valid());
            put_text(out, "t", "text");
            put_text(out, "d", shown);
        }
        Kind::Binary => {
            put_text(out, "t", "binary");
            put_field(out, "d", |out| put_base64(out, shown));
        }
    }
    put_field(out, "bytes", |out| put_number(out, data.len() as u64));
}

fn put_error(out: &mut Vec<u8>, fault: Option<&Fault>) {
    let Some(fault) = fault else { return out.extend_from_slice(b"null") };
    out.extend_from_slice(b"{\"c\":");
    put_number(out, fault.code.number());
    put_text(out, "m", &fault.message);
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::super::{ApiMethod, Call, Code, Parser};
    use super::*;

    fn read(params: &str) -> Result<Tap, String> {
        match Parser::default().params(ApiMethod::Tap, &mut params.as_bytes().to_vec()) {
            Ok(Call::Tap(tap)) => Ok(tap),
            Ok(call) => panic!("{call:?}"),
            Err(fault) => {
                assert_eq!(fault.code, Code::InvalidArgument, "{params}");
                Err(fault.message.into_owned())
            }
        }
    }

    #[test]
    fn a_tap_watches_exactly_one_target() {
        let target = |params: &str| read(params).map(|tap| tap.target);
        let network = |text: &str| TapTarget::Address(text.parse().expect("a network"));
        let client = TapTarget::Client(ClientId::from_value(7));
        assert_eq!(target(r#"{"c":"7"}"#), Ok(client.clone()));
        assert_eq!(target(r#"{"c":7,"user":null}"#), Ok(client));
        assert_eq!(target(r#"{"user":"ann"}"#), Ok(TapTarget::User("ann".into())));
        assert_eq!(target(r#"{"user":10000}"#), Ok(TapTarget::User("10000".into())));
        assert_eq!(target(r#"{"channel":"news"}"#), Ok(TapTarget::Channel("news".into())));
        assert_eq!(target(r#"{"topic":"t"}"#), Ok(TapTarget::Topic("t".into())));
        assert_eq!(target(r#"{"address":"10.1.2.3"}"#), Ok(network("10.1.2.3/32")));
        assert_eq!(target(r#"{"address":"::ffff:10.1.2.3"}"#), Ok(network("10.1.2.3/32")));
        assert_eq!(target(r#"{"address":"::ffff:10.0.0.0/104"}"#), Ok(network("10.0.0.0/8")));
        assert_eq!(target(r#"{"address":"fd00::/8"}"#), Ok(network("fd00::/8")));
        let no_network = "address: expected an IP address, or a network such as \"10.0.0.0/8\"";
        let none = "p: expected one of c, user, channel, topic and address";
        for (params, message) in [
            ("{}", none),
            (r#"{"usr":"ann"}"#, none),
            (r#"{"c":"7","topic":"t"}"#, "p: expected only one of c and topic"),
            (
                r#"{"c":"x"}"#,
                "c: expected a client id, as a string of decimal digits or an integer",
            ),
            (
                r#"{"user":true}"#,
                "user: expected a user, as a string or an integer from 0 to 18446744073709551615",
            ),
            (r#"{"channel":""}"#, "channel: expected 1 to 255 bytes"),
            (r#"{"address":"10.0.0.0/33"}"#, no_network),
            (r#"{"address":7}"#, no_network),
        ] {
            assert_eq!(target(params), Err(message.to_owned()), "{params}");
        }
    }

    #[test]
    fn the_rate_of_a_tap_is_bounded() {
        let rate = |text: &str| {
            let tap = read(&format!(r#"{{"c":"7","max_per_s":{text}}}"#))?;
            Ok::<_, String>(tap.max_per_s)
        };
        assert_eq!((rate("null"), rate("1"), rate("1000")), (Ok(100), Ok(1), Ok(1000)));
        for wrong in ["0", "1001", "65536", "-1", "1.5", "\"9\""] {
            let message = "max_per_s: expected an integer from 1 to 1000";
            assert_eq!(rate(wrong), Err(message.to_owned()), "{wrong}");
        }
    }

    fn encoded(client: Option<u64>, event: TapEvent<'_>) -> String {
        let node = NodeId::new(3).expect("3 is a node id");
        let head = TapHead { unix_ms: 5, node, client: client.map(ClientId::from_value) };
        let frame = tap_frame(head, event);
        assert!(frame.bytes().len() <= TAP_FRAME_BYTES_MAX);
        String::from_utf8(frame.payload().to_vec()).expect("JSON is text")
    }

    #[test]
    fn each_event_has_its_fields() {
        let remote = Remote::from(([192, 0, 2, 7], 5000));
        let fault = Fault::new(Code::SendFailed, "full");
        let call =
            |outcome| TapEvent::Call { method: "mesh.send", arguments: "", by: None, outcome };
        let connect = TapEvent::Connect { path: "/ws", remote, user: Some("ann"), channels: 2 };
        let refuse = TapEvent::Refuse {
            status: Some(401),
            why: "no",
            remote,
            user: Some("ann"),
            path: Some("/ws"),
        };
        let dropped = TapEvent::Refuse { status: None, why: "no", remote, user: None, path: None };
        let close = TapEvent::Close { code: 4001, reason: "bye", by: "peer" };
        for (event, fields) in [
            (connect, r#""connect","path":"/ws","remote":"192.0.2.7:5000","u":"ann","channels":2"#),
            (
                refuse,
                r#""refuse","status":401,"why":"no","remote":"192.0.2.7:5000","u":"ann","path":"/ws""#,
            ),
            (
                dropped,
                r#""refuse","status":null,"why":"no","remote":"192.0.2.7:5000","u":null,"path":null"#,
            ),
            (TapEvent::In(Kind::Text, b"a\"b"), r#""in","t":"text","d":"a\"b","bytes":3"#),
            (TapEvent::Out(Kind::Binary, &[0, 1]), r#""out","t":"binary","d":"AAE=","bytes":2"#),
            (call(None), r#""call","m":"mesh.send","arguments":"","by":null"#),
            (call(Some(Ok(()))), r#""call","m":"mesh.send","arguments":"","by":null,"error":null"#),
            (
                call(Some(Err(&fault))),
                r#""call","m":"mesh.send","arguments":"","by":null,"error":{"c":401,"m":"full"}"#,
            ),
            (close, r#""close","code":4001,"reason":"bye","by":"peer""#),
        ] {
            let head = r#"{"e":"tap","p":{"at":5,"node":3,"c":"7","what":"#;
            assert_eq!(encoded(Some(7), event), format!("{head}{fields}}}}}"));
        }
        assert!(encoded(None, refuse).contains(r#","c":null,"#));
        let mut lost = Vec::new();
        put_tap_lost(&mut lost, 5, 9, None);
        assert_eq!(&lost[2..], br#"{"e":"tap","p":{"at":5,"what":"lost","n":9}}"#);
        lost.clear();
        put_tap_lost(&mut lost, 5, 0, NodeId::new(2));
        assert_eq!(&lost[2..], br#"{"e":"tap","p":{"at":5,"what":"lost","n":0,"node":2}}"#);
    }

    #[test]
    fn what_is_shown_of_a_message_is_bounded_and_cut_between_characters() {
        let long = "é".repeat(1000);
        let shown = encoded(None, TapEvent::In(Kind::Text, &long.as_bytes()[1..]));
        assert!(shown.contains(r#""d":"","bytes":1999"#), "not UTF-8 from the start: {shown}");
        let shown = encoded(None, TapEvent::In(Kind::Text, format!("a{long}").as_bytes()));
        assert!(shown.contains(&format!(r#""d":"a{}","bytes":2001"#, "é".repeat(127))), "{shown}");
        let control = "\u{1}".repeat(1000);
        encoded(None, TapEvent::Out(Kind::Text, control.as_bytes()));
        let by = Some(&control[..]);
        let fault = Fault::new(Code::SendFailed, control.clone());
        let outcome = Some(Err(&fault));
        encoded(None, TapEvent::Call { method: &control, arguments: &control, by, outcome });
    }
}
