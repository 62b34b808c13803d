//! Helpers of the tests over real sockets: a server process, a WebSocket client, an HTTP client.
//!
//! No test waits for time to pass. Each test waits for an event, at most for [`DEADLINE`].

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "each test uses its own part of this"
)]

mod engine;
mod grid;
mod http;
mod program;
mod server;
mod service;
mod socket;
mod stream;
mod users;

use std::time::{Duration, Instant};

pub use engine::{Engine, assert_complete, sample, send_numbers, sink_sample, with_orders};
pub use grid::{Grid, KEY, node_config, states, until_within};
pub use http::{Http, Response, http};
pub use program::{browser, program};
pub use server::{
    CONFIG, DRIVER, LogReader, Process, Ready, Server, command, config_file, config_of, routes,
};
pub use service::{Asked, Service, refusing_port};
pub use socket::{Message, Socket, frame};
pub use stream::Stream;
pub use users::{basic, bearer, users};

/// The longest that any awaited event may take, far beyond what a healthy server needs.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// The answer to a successful request with the id 12345, as in the examples of the protocol.
pub const SUCCESS: &str = r#"{"E":null,"r":{"s":true},"i":12345}"#;

/// Asserts that `answer` is an error envelope with its keys in order; returns the error message. `id` is the request's
/// id as JSON; `None` over HTTP.
#[track_caller]
pub fn assert_error<'a>(answer: &'a str, code: u16, id: Option<&str>) -> &'a str {
    let start = format!(r#"{{"E":{{"c":{code},"m":""#);
    let end = id.map_or(r#""}}"#.to_string(), |id| format!(r#""}},"i":{id}}}"#));
    let message = answer.strip_prefix(&start).and_then(|rest| rest.strip_suffix(&end));
    message
        .filter(|message| !message.is_empty())
        .unwrap_or_else(|| panic!("not {start}…{end}: {answer}"))
}

/// Checks a condition by round trips to the server until it holds.
#[track_caller]
pub fn until(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "it did not come true in time");
    }
}
