//! Whatever a device sends is answered with one JSON object or carried out, and what it is sent is JSON.

use gridcast::protocol::api::{
    DeviceCall, DeviceRequest, MessageOrigin, Parser, put_answer, put_device_message,
};
use gridcast::protocol::frame::Kind;
use serde::de::IgnoredAny;
use serde_json::Value;

const NAME_BYTES_MAX: usize = 255;
const CHANNELS_MAX: usize = 1024;

/// One request, in the buffers that another one used before; then the same bytes as a message to a device.
pub fn run(data: &[u8]) {
    let mut parser = Parser::default();
    let mut before = data.to_vec();
    before.reverse();
    parser.device_request(&mut before);
    let mut input = data.to_vec();
    let first = check(data, &parser.device_request(&mut input));
    let mut input = data.to_vec();
    let fresh = check(data, &Parser::default().device_request(&mut input));
    assert_eq!(first, fresh, "a parser that was used reads as one that was not");
    check_message(data);
}

fn is_json(text: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(text).is_ok()
}

fn check(data: &[u8], DeviceRequest { id, call }: &DeviceRequest<'_>) -> String {
    assert!(is_json(id.as_bytes()), "the id is JSON: {id:?}");
    match call {
        Err(fault) => {
            let mut answer = Vec::new();
            put_answer(&mut answer, &Err(fault.clone()), Some(id));
            assert!(is_json(&answer), "{}", String::from_utf8_lossy(&answer));
        }
        Ok(DeviceCall::Push(content)) => {
            assert!(content.bytes.len() <= data.len());
            if content.kind == Kind::Text {
                assert!(std::str::from_utf8(&content.bytes).is_ok());
            }
        }
        Ok(DeviceCall::Subscribe(wanted)) => {
            check_names(&wanted.channels);
            assert!(wanted.positioned.len() <= CHANNELS_MAX);
        }
        Ok(DeviceCall::Unsubscribe(channels)) => check_names(channels),
        Ok(DeviceCall::Token(token)) => assert!(token.len() <= data.len()),
    }
    format!("{id} {call:?}")
}

fn check_names(names: &[&str]) {
    assert!((1..=CHANNELS_MAX).contains(&names.len()));
    assert!(names.iter().all(|name| (1..=NAME_BYTES_MAX).contains(&name.len())));
}

/// The bytes as a message, to a channel whose name they are too if they are text.
fn check_message(data: &[u8]) {
    let text = std::str::from_utf8(data).ok();
    for kind in [Kind::Text, Kind::Binary] {
        let mut out = Vec::new();
        let origin = MessageOrigin { channel: text, position: None };
        put_device_message(&mut out, origin, kind, data);
        let message: Value = serde_json::from_slice(&out).expect("a message is JSON");
        assert_eq!(message["p"]["c"].as_str(), text);
        if kind == Kind::Text && text.is_some() {
            assert_eq!(message["p"]["d"].as_str(), text);
        } else {
            assert_eq!(message["p"]["t"], "binary");
        }
    }
}
