//! What the tests over real sockets share: a server process, a WebSocket client, an HTTP client.
//!
//! No test waits for time to pass: each waits for an event, and [`DEADLINE`] only bounds how long
//! that event may stay away.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "each test uses its own part of this"
)]

mod grid;
mod http;
mod server;
mod socket;
mod stream;

use std::time::{Duration, Instant};

pub use grid::{Grid, KEY, node_config, states, until_within};
pub use http::{Http, Response, http};
pub use server::{CONFIG, LogReader, Process, Ready, Server, command, config_file};
pub use socket::{Message, Socket, frame};
pub use stream::Stream;

/// The longest that any awaited event may take, far beyond what a healthy server needs.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// The answer to a request that succeeded and had the id 12345, as the protocol's examples have.
pub const SUCCESS: &str = r#"{"E":null,"r":{"s":true},"i":12345}"#;

/// Asserts that `answer` is an error's envelope, keys in order and with a message; gives the
/// message. `id` is the request's id as JSON, none over HTTP.
#[track_caller]
pub fn assert_error<'a>(answer: &'a str, code: u16, id: Option<&str>) -> &'a str {
    let start = format!(r#"{{"E":{{"c":{code},"m":""#);
    let end = id.map_or(r#""}}"#.to_string(), |id| format!(r#""}},"i":{id}}}"#));
    let message = answer.strip_prefix(&start).and_then(|rest| rest.strip_suffix(&end));
    message
        .filter(|message| !message.is_empty())
        .unwrap_or_else(|| panic!("not {start}…{end}: {answer}"))
}

/// Asks again until the answer is yes, each time by a round trip to the server.
#[track_caller]
pub fn until(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "it did not come true in time");
    }
}
