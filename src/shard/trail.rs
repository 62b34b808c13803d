//! Lines at level `debug` by which an operator follows a connection from accept to close.
//!
//! `tracing` is a facade: an event is a call of whoever has set up a subscriber, and what becomes of
//! it is no I/O of a shard. While nobody reads these lines, an entry costs one relaxed load.
//!
//! A line never shows a secret, a token, a query, a header, or what clients and back ends say to
//! each other. Text of a peer is escaped, and cut at [`SHOWN_BYTES`].

use std::fmt;
use std::net::SocketAddr;

use tracing::debug;
use tracing::level_filters::LevelFilter;

use super::connection::Listener;
use crate::address::{ClientId, ShardId};
use crate::message::ConnectionKey;
use crate::protocol::api::{Call, Fault, Function};

/// Bytes of a peer's text that a line shows, about.
const SHOWN_BYTES: usize = 256;

/// Channels or topics that a line names.
const SHOWN_NAMES: usize = 16;

/// What happened to a connection.
pub enum Entry<'a> {
    /// A socket was accepted on this listener.
    Accepted(SocketAddr, Listener),
    /// A request with this method and path was read.
    Requested(&'a str, &'a str),
    /// What is judged, before a refusal or a verdict: what it is, and its text.
    Cause(&'a str, &'a [u8]),
    /// A request was refused with this status and these words.
    Refused(SocketAddr, u16, &'a str),
    /// The connection was closed without an answer.
    Dropped(SocketAddr, &'a str),
    /// The credentials of a request are compared with hashes.
    Verifying,
    /// A client came in on the route of this path, subscribed to these channels.
    Opened(ClientId, &'a str, &'a str),
    /// A back end opened a WebSocket, as this user.
    BackendOpened(&'a str),
    /// A back end calls, as this user.
    Called(&'a str, &'a Call<'a>),
    /// A call was refused or failed.
    Failed(&'a Fault),
    /// A back end called this function of the connection's client.
    Function(ClientId, &'a Function),
    /// The client or back end is gone, with this code and reason.
    Closed(Option<ClientId>, By, u16, &'a str),
    /// The socket is closed.
    Gone,
}

/// Who ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The peer, or the network.
    Peer,
    /// This node.
    Node,
    /// A back end that called `close`.
    Backend,
}

/// A connection in the log: the shard, its place there, and how often that place was used before.
#[derive(Clone, Copy, Debug)]
pub struct Trail {
    pub(super) shard: ShardId,
    pub(super) key: ConnectionKey,
}

impl fmt::Display for Trail {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ConnectionKey { index, generation } = self.key;
        write!(formatter, "{}-{index}-{generation}", self.shard.0)
    }
}

/// Whether anybody reads these lines. What has to be looked up for one waits for it.
#[inline]
pub fn is_read() -> bool {
    LevelFilter::current() >= LevelFilter::DEBUG
}

/// Adds an entry to a trail, if anybody reads it.
#[inline]
pub fn note(trail: Trail, entry: Entry<'_>) {
    if is_read() {
        write(trail, &entry);
    }
}

#[cold]
#[inline(never)]
fn write(connection: Trail, entry: &Entry<'_>) {
    let connection = tracing::field::display(connection);
    match entry {
        Entry::Accepted(remote, listener) => {
            debug!(connection, %remote, ?listener, "accepted");
        }
        Entry::Requested(method, path) => {
            debug!(connection, method = %Shown(method), path = %Shown(path), "request");
        }
        Entry::Cause(what, text) => {
            let text = String::from_utf8_lossy(text);
            debug!(connection, what, text = %Shown(&text), "judged");
        }
        Entry::Refused(remote, status, why) => {
            debug!(connection, %remote, status, why = %Shown(why), "refused");
        }
        Entry::Dropped(remote, why) => debug!(connection, %remote, why, "closed without an answer"),
        Entry::Verifying => debug!(connection, "credentials are verified"),
        Entry::Opened(client, path, channels) => {
            debug!(connection, %client, path = %Shown(path), channels = %channels, "client opened");
        }
        Entry::BackendOpened(user) => debug!(connection, user, "back end opened"),
        Entry::Called(user, call) => {
            debug!(connection, user, call = %ShownCall(call), "call");
        }
        Entry::Failed(fault) => {
            let code = fault.code.number();
            debug!(connection, code, why = %Shown(&fault.message), "call failed");
        }
        Entry::Function(client, function) => {
            debug!(connection, %client, function = %ShownFunction(function), "called by a back end");
        }
        Entry::Closed(Some(client), by, code, reason) => {
            debug!(connection, %client, code, reason = %Shown(reason), ?by, "client closed");
        }
        Entry::Closed(None, by, code, reason) => {
            debug!(connection, code, reason = %Shown(reason), ?by, "back end closed");
        }
        Entry::Gone => debug!(connection, "socket closed"),
    }
}

/// Names in one text: the first few, and how many there are besides.
pub fn listed<T: AsRef<str>>(names: &[T]) -> String {
    let shown: Vec<String> =
        names.iter().take(SHOWN_NAMES).map(|name| Shown(name.as_ref()).to_string()).collect();
    let mut text = shown.join(",");
    if names.len() > SHOWN_NAMES {
        text += &format!(" and {} more", names.len() - SHOWN_NAMES);
    }
    text
}

/// Text of a peer, which can neither begin a new line nor fill the log.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.0.floor_char_boundary(SHOWN_BYTES);
        for character in self.0[..end].chars() {
            match character {
                // They end no line, and no words need them escaped.
                '\'' | '"' => write!(formatter, "{character}")?,
                _ => write!(formatter, "{}", character.escape_debug())?,
            }
        }
        if end < self.0.len() { formatter.write_str("…") } else { Ok(()) }
    }
}

/// A call without what it carries.
struct ShownCall<'a>(&'a Call<'a>);

impl fmt::Display for ShownCall<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Call::Send(client, _) => write!(formatter, "mesh.send {client}"),
            Call::Publish(channel, _) => write!(formatter, "mesh.publish {}", Shown(channel)),
            Call::Call(client, function) => {
                write!(formatter, "conn.call {client} {}", ShownFunction(function))
            }
            Call::Pop(topics, _) => write!(formatter, "queue.pop {}", listed(topics)),
            Call::Unpop => formatter.write_str("queue.unpop"),
            Call::Ack(_) => formatter.write_str("queue.ack"),
        }
    }
}

/// A function and what it is about, without the values of a context.
struct ShownFunction<'a>(&'a Function);

impl fmt::Display for ShownFunction<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Function::SetContextValue(key, _) => {
                write!(formatter, "set_context_value {}", Shown(key))
            }
            Function::SetContext(entries) => {
                let keys: Vec<&str> = entries.iter().map(|(key, _)| &**key).collect();
                write!(formatter, "set_context {}", listed(&keys))
            }
            Function::Subscribe(channels) => write!(formatter, "subscribe {}", listed(channels)),
            Function::Unsubscribe(channels) => {
                write!(formatter, "unsubscribe {}", listed(channels))
            }
            Function::Close(code, reason) => write!(formatter, "close {code} {}", Shown(reason)),
            Function::GetContext => formatter.write_str("get_context"),
            Function::Info => formatter.write_str("info"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_peer_stays_in_its_line_and_is_cut() {
        assert_eq!(Shown("a\nb\u{1b}[1m\"é").to_string(), "a\\nb\\u{1b}[1m\"é");
        let long = Shown(&"é".repeat(1000)).to_string();
        assert_eq!(long, "é".repeat(SHOWN_BYTES / 2) + "…");
    }

    #[test]
    fn of_many_names_the_first_are_shown_and_the_others_counted() {
        assert_eq!(listed(&["a", "b\n"]), "a,b\\n");
        let many = vec!["x"; SHOWN_NAMES + 3];
        assert!(listed(&many).ends_with("x,x and 3 more"));
    }

    #[test]
    fn what_a_call_carries_is_not_shown() {
        let context = Function::SetContext(vec![("key".into(), "\"secret\"".into())]);
        let value = Function::SetContextValue("key".into(), "\"secret\"".into());
        for function in [context, value] {
            let shown = ShownFunction(&function).to_string();
            assert!(shown.contains("key") && !shown.contains("secret"), "{shown}");
        }
    }
}
