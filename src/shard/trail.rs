//! Log lines at level `debug`, by which an operator follows a connection from accept to close, and the
//! warning of a consumer that does not read.
//!
//! `tracing` is a facade: it passes each line to a subscriber that the runtime installs, so a shard
//! does no I/O. While the level is off, a line costs one relaxed load.
//!
//! A line never shows a secret, a token, a query, a header, or the payload of a message. Text from
//! a peer is escaped and cut after [`SHOWN_BYTES`].

use std::fmt;
use std::sync::Arc;

use tracing::level_filters::LevelFilter;
use tracing::{debug, warn};

use super::connection::Listener;
use crate::address::remote::Remote;
use crate::address::{ClientId, ShardId};
use crate::message::ConnectionKey;
use crate::protocol::api::{Call, Fault, Function, TapTarget};

/// The number of bytes of a peer's text that a line shows. Cut at the character boundary before it.
const SHOWN_BYTES: usize = 256;

/// The number of channels or topics that a line names.
const SHOWN_NAMES: usize = 16;

/// An event in the life of a connection.
pub(super) enum Entry<'a> {
    /// A socket was accepted on this listener.
    Accepted(Remote, Listener),
    /// A proxy told that it connects for this address. `None`: for itself.
    Proxied(Option<Remote>),
    /// A request with this method and path was read.
    Requested(&'a str, &'a str),
    /// The value that a refusal, or a verification, is about: its kind and its text.
    Cause(&'a str, &'a [u8]),
    /// A request was refused with this status and error message.
    Refused { remote: Remote, status: u16, reason: &'a str },
    /// The connection was closed without a response, for this reason.
    Dropped(Remote, &'a str),
    /// The request waits until its credentials are verified.
    Verifying,
    /// A handshake waits for this.
    Waiting(&'static str),
    /// A client connected to the route with this path, subscribed to these channels.
    Opened { client: ClientId, path: &'a str, channels: &'a str },
    /// A back end opened a WebSocket, as this user.
    BackendOpened(&'a str),
    /// A back end made a call, as this user.
    Called(&'a str, &'a Call<'a>),
    /// A call was refused or failed.
    Failed(&'a Fault),
    /// A back end called this function of the connection's client.
    Function(ClientId, &'a Function),
    /// The client (or back end, if `None`) has ended, with this close code and reason.
    Closed { client: Option<ClientId>, by: By, code: u16, reason: &'a str },
    /// The socket is closed.
    Gone,
}

/// Who ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The peer, or the network.
    Peer,
    /// The node itself.
    Node,
    /// A back end, by a call of `close`.
    Backend,
}

impl By {
    /// Returns the name that a tap shows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Node => "node",
            Self::Backend => "backend",
        }
    }
}

/// The name of a connection in the log: its shard, its place in the shard's table, and the
/// generation of that place.
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

/// Whether the level `debug` is on. Check this before looking up values that only a log line needs.
#[inline]
pub(super) fn is_read() -> bool {
    LevelFilter::current() >= LevelFilter::DEBUG
}

/// Writes an entry to the log if the level `debug` is on.
#[inline]
pub(super) fn note(trail: Trail, entry: Entry<'_>) {
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
        Entry::Proxied(Some(remote)) => debug!(connection, %remote, "connected through a proxy"),
        Entry::Proxied(None) => debug!(connection, "connected by a proxy itself"),
        Entry::Requested(method, path) => {
            debug!(connection, method = %Shown(method), path = %Shown(path), "request");
        }
        Entry::Cause(what, text) => {
            let text = String::from_utf8_lossy(text);
            debug!(connection, what, text = %Shown(&text), "judged");
        }
        Entry::Refused { remote, status, reason } => {
            debug!(connection, %remote, status, why = %Shown(reason), "refused");
        }
        Entry::Dropped(remote, why) => debug!(connection, %remote, why, "closed without an answer"),
        Entry::Verifying => debug!(connection, "credentials are verified"),
        Entry::Waiting(what) => debug!(connection, what, "the handshake waits"),
        Entry::Opened { client, path, channels } => {
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
        Entry::Closed { client: Some(client), by, code, reason } => {
            debug!(connection, %client, code, reason = %Shown(reason), ?by, "client closed");
        }
        Entry::Closed { client: None, by, code, reason } => {
            debug!(connection, code, reason = %Shown(reason), ?by, "back end closed");
        }
        Entry::Gone => debug!(connection, "socket closed"),
    }
}

/// Warns that the node closes a consumer of these topics, and why.
#[cold]
pub(super) fn warn_of_consumer(user: &str, remote: Remote, topics: &[Arc<str>], reason: &str) {
    let topics = listed(topics);
    warn!(user, %remote, %topics, reason, "a back end that consumes is closed");
}

/// Joins names into one text: the first [`SHOWN_NAMES`], and the number of the others.
pub(super) fn listed<T: AsRef<str>>(names: &[T]) -> String {
    let shown: Vec<String> =
        names.iter().take(SHOWN_NAMES).map(|name| Shown(name.as_ref()).to_string()).collect();
    let mut text = shown.join(",");
    if names.len() > SHOWN_NAMES {
        text += &format!(" and {} more", names.len() - SHOWN_NAMES);
    }
    text
}

/// Returns the part of a peer's text that a line shows. For fields that are escaped elsewhere.
pub(super) fn shown_part(text: &str) -> &str {
    &text[..text.floor_char_boundary(SHOWN_BYTES)]
}

/// Text from a peer, displayed so that it can neither begin a new line nor fill the log.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.0.floor_char_boundary(SHOWN_BYTES);
        for character in self.0[..end].chars() {
            match character {
                // Quotation marks do no harm, and escaping makes them hard to read.
                '\'' | '"' => write!(formatter, "{character}")?,
                _ => write!(formatter, "{}", character.escape_debug())?,
            }
        }
        if end < self.0.len() { formatter.write_str("…") } else { Ok(()) }
    }
}

/// A call, displayed without its payload.
struct ShownCall<'a>(&'a Call<'a>);

impl fmt::Display for ShownCall<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Call::Send(client, _) => write!(formatter, "mesh.send {client}"),
            Call::Publish(channel, _) => write!(formatter, "mesh.publish {}", Shown(channel)),
            Call::MultiPublish(publish) => {
                write!(formatter, "mesh.publish {}", listed(&publish.channels))
            }
            Call::Call(client, function) => {
                write!(formatter, "conn.call {client} {}", ShownFunction(function))
            }
            Call::UserSend(users, _) => write!(formatter, "user.send {}", listed(users)),
            Call::UserCall(users, function) => {
                write!(formatter, "user.call {} {}", listed(users), ShownFunction(function))
            }
            Call::Pop(topics, ..) => write!(formatter, "queue.pop {}", listed(topics)),
            Call::Take(take) => write!(formatter, "queue.take {}", listed(&take.topics)),
            Call::Unpop => formatter.write_str("queue.unpop"),
            Call::Ack(_) => formatter.write_str("queue.ack"),
            Call::Nack(..) => formatter.write_str("queue.nack"),
            Call::Push(event) => write!(formatter, "queue.push {}", listed(&[event.topic])),
            Call::Reload => formatter.write_str("admin.reload"),
            Call::List(list) => formatter.write_str(list.name()),
            Call::Tap(tap) => write!(formatter, "tap.start {}", ShownTarget(&tap.target)),
            Call::Untap => formatter.write_str("tap.stop"),
        }
    }
}

/// The target of a tap, displayed.
struct ShownTarget<'a>(&'a TapTarget);

impl fmt::Display for ShownTarget<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            TapTarget::Client(client) => write!(formatter, "c {client}"),
            TapTarget::User(user) => write!(formatter, "user {}", Shown(user)),
            TapTarget::Channel(channel) => write!(formatter, "channel {}", Shown(channel)),
            TapTarget::Topic(topic) => write!(formatter, "topic {}", Shown(topic)),
            TapTarget::Address(network) => write!(formatter, "address {network}"),
        }
    }
}

/// A function and its arguments, displayed without the values of a context.
pub(super) struct ShownFunction<'a>(pub &'a Function);

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
    fn text_of_a_peer_is_escaped_and_cut() {
        assert_eq!(Shown("a\nb\u{1b}[1m\"é").to_string(), "a\\nb\\u{1b}[1m\"é");
        let long = Shown(&"é".repeat(1000)).to_string();
        assert_eq!(long, "é".repeat(SHOWN_BYTES / 2) + "…");
    }

    #[test]
    fn the_first_names_of_a_list_are_shown_and_the_others_counted() {
        assert_eq!(listed(&["a", "b\n"]), "a,b\\n");
        let many = vec!["x"; SHOWN_NAMES + 3];
        assert!(listed(&many).ends_with("x,x and 3 more"));
    }

    #[test]
    fn the_payload_of_a_call_is_not_shown() {
        let context = Function::SetContext(vec![("key".into(), "\"secret\"".into())]);
        let value = Function::SetContextValue("key".into(), "\"secret\"".into());
        for function in [context, value] {
            let shown = ShownFunction(&function).to_string();
            assert!(shown.contains("key") && !shown.contains("secret"), "{shown}");
        }
    }
}
