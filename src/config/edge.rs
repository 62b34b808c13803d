//! Listeners for clients and their routes.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use super::document::{ConfigError, Section};
use super::origin::read_origins;
use super::token::read_token;
use super::{Api, Limits, Tls, limit, message_bytes, outbound_bytes, read_address};
use crate::protocol::http::is_token;
use crate::protocol::token::TokenRule;

const NAME: &str = "a name of 1 to 255 bytes without control characters";
const PATTERN: &str =
    "a channel's name, or the beginning of one and \"*\", without commas: they separate channels";
const PATH: &str = "a path such as \"/ws\", as clients send it: without parameters and patterns";
const SUBPROTOCOL: &str = "the name of a subprotocol: letters, digits and !#$%&'*+-.^_`|~";

const EDGE_KEYS: [&str; 3] = ["bind", "tls", "route"];

/// A listener for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    /// Default: 127.0.0.1:6790. With port 0 the system picks one.
    pub bind: SocketAddr,
    /// `[edge.tls]`. Default: none, plain `ws://`. For both, two listeners with the same routes.
    pub tls: Option<Tls>,
    /// At least one; their paths differ.
    pub routes: Vec<Route>,
}

/// Reads the listeners, none of which may have the address of `api`. A limit that a route does not
/// set is the one in `limits`.
pub(super) fn read_edges(
    root: &Section,
    api: &Api,
    limits: &Limits,
) -> Result<Vec<Edge>, ConfigError> {
    let mut taken = vec![(api.bind, root.table("api")?.place("bind"))];
    let mut edges = Vec::new();
    for section in root.tables("edge")? {
        let section = section.only(&EDGE_KEYS)?;
        let edge = Edge::read(&section, limits)?;
        // Listeners set SO_REUSEPORT: the kernel would let two share an address and mix them up.
        let same = taken.iter().find(|(bind, _)| *bind == edge.bind && bind.port() != 0);
        if let Some((bind, place)) = same {
            return Err(section.fault(&["bind"], format!("{bind} is taken by {place}")));
        }
        taken.push((edge.bind, section.place("bind")));
        edges.push(edge);
    }
    Ok(edges)
}

impl Edge {
    fn read(section: &Section, limits: &Limits) -> Result<Self, ConfigError> {
        let bind = read_address(section, "bind", 6790)?;
        let mut routes: Vec<Route> = Vec::new();
        for section in section.tables("route")? {
            let section = section.only(&ROUTE_KEYS)?;
            let route = Route::read(&section, limits)?;
            if routes.iter().any(|other| other.path == route.path) {
                let reason = format!("{:?} is the path of an earlier route", route.path);
                return Err(section.fault(&["path"], reason));
            }
            routes.push(route);
        }
        if routes.is_empty() {
            return Err(section.fault(&["route"], "missing; an edge needs at least one"));
        }
        Ok(Self { bind, tls: Tls::read(section)?, routes })
    }
}

const ROUTE_KEYS: [&str; 13] = [
    "path",
    "topic",
    "events",
    "subscribe",
    "hold_until",
    "origins",
    "subprotocols",
    "token",
    "handler",
    "compression",
    "message_bytes",
    "outbound_bytes",
    "messages_per_s",
];

/// What clients of one path may do, and where their messages go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Begins with `/`; compared with the path of the request byte for byte. Has no default.
    pub path: String,
    /// The topic of what clients send, 1 to 255 bytes without control characters. Default: none,
    /// what they send is discarded and counted.
    pub topic: Option<String>,
    /// What the topic is told of. Default: messages if there is a topic. Open and close cost a
    /// topic message per connection each.
    pub events: Events,
    /// Channels that `?channels=` may name: `*` is any, `prefix*` those that begin so, all else
    /// the one of that name. Default: none.
    pub subscribe: Vec<String>,
    /// A key of a client's context: what the client sends after its first message waits until a
    /// back end has set it. Default: no hold.
    pub hold_until: Option<String>,
    /// Web origins that may connect, in lower case. Default: any.
    pub origins: Option<Vec<String>>,
    /// Subprotocols that clients may ask for: the first of a client's that is among them is answered.
    /// Default: none.
    pub subprotocols: Vec<String>,
    /// The tokens that a client needs one of. Default: it needs none. Each handshake costs the shard
    /// a check: of a keyed hash for HS256, of a public-key signature for the others.
    pub token: Option<Arc<TokenRule>>,
    /// `handler = "echo"`: every message goes back to its sender. Default: no.
    pub echo: bool,
    /// Whether clients that offer permessage-deflate (RFC 7692) get it. Costs time for each message
    /// to them, once per shard for a publish, and up to 750 KiB per shard. A client that is no browser
    /// and compresses its messages in one context costs up to 32 KiB. Default: no.
    pub compression: bool,
    /// Largest message of a client, in bytes of all its fragments, 1 to 16,777,216.
    /// Default: `limits.edge_message_bytes`.
    pub message_bytes: usize,
    /// Bytes that may wait for one client, 1,024 to 1 GiB. Default: `limits.outbound_bytes`.
    pub outbound_bytes: usize,
    /// Messages a second of one client, up to 1,000,000; 0: any number.
    /// Default: `limits.messages_per_s`.
    pub messages_per_s: u32,
}

/// Which of a client's doings its route reports to its topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// A client came.
    pub open: bool,
    /// A client sent a message.
    pub message: bool,
    /// A client went.
    pub close: bool,
}

impl Route {
    fn read(section: &Section, limits: &Limits) -> Result<Self, ConfigError> {
        let path = section.text("path", PATH, is_path)?;
        let topic = section.text("topic", NAME, is_name)?;
        let echo = section.choice("handler", &[("echo", true)], false)?;
        if echo && topic.is_some() {
            let reason = "a route has a handler or a topic, not both";
            return Err(section.fault(&["handler"], reason));
        }
        if topic.is_none() {
            let reason = "has no effect without a topic";
            section.without("events", reason)?;
            section.without("hold_until", reason)?;
        }
        Ok(Self {
            path: path.ok_or_else(|| section.fault(&["path"], "missing; a route needs one"))?,
            events: Events::read(section, topic.is_some())?,
            topic,
            subscribe: section.texts("subscribe", PATTERN, is_pattern)?.unwrap_or_default(),
            hold_until: section.text("hold_until", NAME, is_name)?,
            origins: read_origins(section)?,
            subprotocols: section
                .texts_as("subprotocols", SUBPROTOCOL, subprotocol)?
                .unwrap_or_default(),
            token: read_token(section)?,
            echo,
            compression: section.switch("compression", false)?,
            message_bytes: message_bytes(section, "message_bytes", limits.edge_message_bytes)?,
            outbound_bytes: outbound_bytes(section, limits.outbound_bytes)?,
            messages_per_s: limit(section, "messages_per_s", limits.messages_per_s)?,
        })
    }
}

impl Events {
    fn read(section: &Section, message: bool) -> Result<Self, ConfigError> {
        let is_event = |word: &str| matches!(word, "open" | "message" | "close");
        let words = section.texts("events", r#""open", "message" or "close""#, is_event)?;
        let Some(words) = words else {
            return Ok(Self { message, ..Self::default() });
        };
        let has = |event: &str| words.iter().any(|word| word == event);
        Ok(Self { open: has("open"), message: has("message"), close: has("close") })
    }
}

impl fmt::Display for Route {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.topic {
            Some(topic) => write!(formatter, "{} (topic {topic:?})", self.path),
            None if self.echo => write!(formatter, "{} (echo)", self.path),
            None => write!(formatter, "{} (no topic)", self.path),
        }
    }
}

/// A path that a client can ask for. `?` and `#` would end it (RFC 3986, section 3.3), what browsers
/// encode never comes as it is written, and `.` and `..` are resolved before a request is sent. A
/// `*` could come, but who writes one means a pattern.
fn is_path(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_graphic() && !b"?#\"<>\\^`{}*".contains(&byte);
    let is_resolved = |segment: &str| matches!(&segment.replace("%2e", ".")[..], "." | "..");
    text.starts_with('/')
        && text.bytes().all(is_part)
        && !text.to_ascii_lowercase().split('/').any(is_resolved)
}

/// A subprotocol that a route may accept; `bearer.` is how tokens come, `gridcast.` is ours.
fn subprotocol(text: &str) -> Result<String, String> {
    if !is_token(text.as_bytes()) {
        return Err(SUBPROTOCOL.to_owned());
    }
    match ["bearer.", "gridcast."].iter().find(|prefix| text.starts_with(**prefix)) {
        Some(prefix) => Err(format!("a subprotocol of your own: {prefix:?} begins gridcast's")),
        None => Ok(text.to_owned()),
    }
}

/// Of a topic, or of a key in a client's context.
fn is_name(text: &str) -> bool {
    (1..=255).contains(&text.len()) && !text.contains(char::is_control)
}

fn is_pattern(text: &str) -> bool {
    is_name(text) && !text.contains(',') && !text.strip_suffix('*').unwrap_or(text).contains('*')
}
