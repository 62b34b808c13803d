//! A node of one or two shards, driven with any bytes in any order: nothing panics, all that is
//! written is well formed, no message of a client is stuck, and nothing is left of connections
//! that are gone.

mod node;
mod output;
mod settings;

use gridcast::shard::Listener;

use super::input::Input;
use node::Node;

/// Requests of an HTTP peer, upgrades first.
const REQUESTS: [&str; 9] = [
    "GET /ws/v1 HTTP/1.1\r\n{u}",
    "GET /ws?channels=a HTTP/1.1\r\n{u}",
    "GET /hold HTTP/1.1\r\n{u}",
    "GET /echo HTTP/1.1\r\n{u}",
    "GET /quiet?channels=a,b HTTP/1.1\r\n{u}",
    "POST /v1/mesh/publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 17\r\n\r\n{\"c\":\"a\",\"d\":\"b\"}",
    "POST /v1/conn/call HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
    "GET /readyz HTTP/1.0\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
];

/// The replacement of `{u}`.
const UPGRADE: &str = "Host: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";

/// Calls of a back end; `{c}` stands for a client's id.
const CALLS: [&str; 16] = [
    r#"{"m":"queue.pop","p":{"t":["t"]},"i":1}"#,
    r#"{"m":"queue.pop","p":["h","t","x"],"i":"2"}"#,
    r#"{"m":"queue.unpop","p":{},"i":3}"#,
    r#"{"m":"mesh.send","p":{"c":{c},"d":"hello"},"id":4}"#,
    r#"{"m":"mesh.send","p":{"c":"{c}","d":"AAEC/w==","t":"binary"},"i":null}"#,
    r#"{"m":"mesh.publish","p":{"c":"a","d":"news"},"i":6}"#,
    r#"{"m":"mesh.publish","p":{"c":"b","d":"AAEC","t":"binary"},"i":7}"#,
    r#"{"m":"conn.call","p":{"c":{c},"f":"subscribe","a":["a","c"]},"i":8}"#,
    r#"{"m":"conn.call","p":{"c":{c},"f":"unsubscribe","a":["a"]},"i":9}"#,
    r#"{"m":"conn.call","p":{"c":{c},"f":"set_context_value","a":["k",1e400]},"i":10}"#,
    r#"{"m":"conn.call","p":{"c":{c},"f":"close","a":[1000,"bye"]},"i":11}"#,
    r#"{"m":"conn.call","p":{"c":{c},"f":"info"},"i":12}"#,
    "ping",
    r#"{"m":"queue.pop","p":{"t":["t","h"],"a":true,"w":2},"i":14}"#,
    r#"{"m":"queue.ack","p":{"g":1},"i":15}"#,
    r#"{"m":"queue.ack","p":{"g":3,"u":true},"i":16}"#,
];

/// The shape of the node, then one step after the other.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut node = Node::new(input.byte());
    while !input.0.is_empty() {
        step(&mut node, &mut input);
        node.act();
    }
    node.end();
}

fn step(node: &mut Node, input: &mut Input<'_>) {
    match input.byte() {
        step @ (b'A' | b'E') => {
            let listener = if step == b'A' { Listener::Api } else { Listener::Edge(0) };
            let shard = input.byte();
            if let Some(socket) = node.open(shard, listener) {
                node.receive(socket, &request(input.byte()));
            }
        }
        b'r' => says(node, input, |input| request(input.byte())),
        b'b' => says(node, input, |input| {
            let length = input.byte();
            input.take(length.into()).to_vec()
        }),
        b'f' => says(node, input, |input| {
            let (first, length) = (input.byte(), input.byte());
            frame(first, input.take(length.into()))
        }),
        b'c' => says(node, input, |input| {
            let call = CALLS[usize::from(input.byte()) % CALLS.len()];
            let client = node::client_id(input.byte()).to_string();
            frame(0x81, call.replace("{c}", &client).as_bytes())
        }),
        b'w' => on_socket(node, input, |node, socket, input| {
            node.write(socket, usize::from(input.byte()) * 8);
        }),
        b'e' => on_socket(node, input, |node, socket, _| node.receive_end(socket, false)),
        b'x' => on_socket(node, input, |node, socket, _| node.receive_end(socket, true)),
        b'm' => node.deliver(input.byte().into()),
        b't' => node.pass_ms(u64::from(input.byte()) * 50),
        b'D' => node.drain(u64::from(input.byte()) * 50),
        b'd' => node.drain_backends(),
        _ => node.turn(),
    }
}

fn says(node: &mut Node, input: &mut Input<'_>, bytes: impl FnOnce(&mut Input<'_>) -> Vec<u8>) {
    on_socket(node, input, |node, socket, input| node.receive(socket, &bytes(input)));
}

/// One of the sockets that are open, if any is.
fn on_socket(
    node: &mut Node,
    input: &mut Input<'_>,
    act: impl FnOnce(&mut Node, usize, &mut Input<'_>),
) {
    if let Some(socket) = node.open_socket(input.byte().into()) {
        act(node, socket, input);
    }
}

fn request(number: u8) -> Vec<u8> {
    REQUESTS[usize::from(number) % REQUESTS.len()].replace("{u}", UPGRADE).into_bytes()
}

/// A client's frame with a mask of zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match u16::try_from(payload.len()).expect("a frame of this fuzzer is short") {
        length @ 0..126 => out.push(0x80 | length as u8),
        length => {
            out.push(0x80 | 126);
            out.extend_from_slice(&length.to_be_bytes());
        }
    }
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
    out
}
