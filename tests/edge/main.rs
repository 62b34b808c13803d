//! Clients, channels and topics over real sockets: sections 4 to 6 of the specification.

#![forbid(unsafe_code)]

mod compression;
mod devices;
mod events;
mod frames;
mod handshake;
mod limits;
mod publishing;
mod slow_clients;
#[path = "../support/mod.rs"]
mod support;
mod topics;

use std::collections::HashMap;
use std::io::Write;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use support::{CONFIG, DEADLINE, Http, Message, SUCCESS, Server, Socket, frame, until};

/// A server whose edge has one route, `/ws`, with these keys; then further sections.
fn server_with_route(keys: &str, sections: &str) -> Server {
    Server::start(&format!(
        "[node]\ncores = 2\n[api]\nbind = \"127.0.0.1:0\"\n[[edge]]\nbind = \"127.0.0.1:0\"\n\
         [[edge.route]]\npath = \"/ws\"\n{keys}\n{sections}"
    ))
}

/// A `conn.call` over HTTP that has to succeed; its result.
#[track_caller]
fn conn_call(server: &Server, client: &str, function: &str, arguments: Value) -> Value {
    let request = json!({"c": client, "f": function, "a": arguments}).to_string();
    let answer: Value =
        serde_json::from_str(&server.post("/v1/conn/call", &request)).expect("an answer is JSON");
    assert_eq!(answer["E"], Value::Null, "{answer}");
    answer["r"].clone()
}

/// Writes bytes from a thread of their own, so that the test may read meanwhile.
fn write_aside(socket: &Socket, bytes: Vec<u8>) -> JoinHandle<()> {
    let mut writer = socket.writer();
    // A server that closes the connection ends the writing; what the test reads tells of it.
    thread::spawn(move || drop(writer.write_all(&bytes)))
}

/// The numbers of `range`, each as a text message.
fn numbers(range: std::ops::Range<u32>) -> Vec<u8> {
    range.flat_map(|number| frame(0x81, number.to_string().as_bytes())).collect()
}

fn status_of_refusal(server: &Server, path: &str, headers: &str) -> Option<u16> {
    Socket::connect(server.edge, path, headers).err().map(|response| response.status)
}
