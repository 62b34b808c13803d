//! The API's envelope, its HTTP and its WebSocket, over real sockets: sections 2 and 3 of the
//! specification beyond what the protocol's own text says.

#![forbid(unsafe_code)]

mod envelope;
mod http;
mod order;
mod origins;
#[path = "../support/mod.rs"]
mod support;

const PUBLISHED_TO_NONE: &str = r#"{"E":null,"r":{"s":0,"f":0}}"#;
const BODY: &str = r#"{"c":"channel1","d":"data"}"#;

/// The answer to a publish that nobody gets, with the request's id as JSON.
fn published_to_none(id: &str) -> String {
    format!(r#"{{"E":null,"r":{{"s":0,"f":0}},"i":{id}}}"#)
}

/// A publish that nobody gets, with `rest` behind its params.
fn publish(rest: &str) -> String {
    format!(r#"{{"m":"mesh.publish","p":{BODY}{rest}}}"#)
}
