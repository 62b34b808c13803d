//! Routes of a listener for clients.

use std::fmt;
use std::sync::Arc;

use super::Limits;
use super::admit::{AdmitKeys, read_admit};
use super::definition::section;
use super::document::{ConfigError, Section};
use super::limits::{MESSAGE_BYTES, OUTBOUND_BYTES};
use super::origin::ORIGINS;
use super::shape::{Choice, List, Switch, Text, Words, bytes, limit};
use super::token::{TokenKeys, read_token};
use crate::protocol::admission::AdmissionHook;
use crate::protocol::api::ROUTE_PATH_BYTES_MAX;
use crate::protocol::http::is_token;
use crate::protocol::token::TokenRule;

section! {
    /// What clients of one path may do, and where their messages go.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Route(section, limits: &Limits) {
        /// The path of the route. A request has to have exactly this path, byte for byte.
        path: String = PATH, required("a route needs one", "\"/ws\"");

        /// The topic that gets the messages of clients.
        topic: Option<String> = NAME,
            none("none: what clients send is discarded and counted", "\"messages\"");

        /// Which events the topic gets. `open` and `close` cost one event per connection each. Refused on a
        /// route without a topic.
        events: Events = EVENTS, derived(
            Events { message: topic.is_some(), ..Events::default() },
            "`[\"message\"]`", "[\"open\", \"message\", \"close\"]"
        );

        /// Channels that clients may name in `?channels=` when they connect, and in a `subscribe` of the device
        /// protocol. `*` allows any channel,
        /// `room:*` those that begin with `room:`, anything else the channel with that name.
        subscribe: Vec<String> = PATTERNS, value(Vec::new());

        /// A key of the client's context. What a client sends after its first message waits until a back
        /// end has set this key, so that it can check a login first. Refused on a route without a topic.
        hold_until: Option<String> = NAME, none("none: nothing waits", "\"user_id\"");

        /// Web origins whose pages may connect, in the form that browsers send. Clients that send no
        /// `Origin` are not browsers and may connect.
        origins: Option<Vec<String>> = ORIGINS, none("any", "[\"https://example.org\"]");

        /// Subprotocols that clients may ask for. The first of a client's that is listed here, or that is
        /// `gridcast.v1`, the device protocol, is answered.
        subprotocols: Vec<String> = SUBPROTOCOLS, value(Vec::new());

        /// What serves the route instead of a topic. `echo` sends every message back to its sender, for
        /// load and conformance tests.
        handler: Option<Handler> = HANDLERS, none("none", "\"echo\"");

        /// Whether clients that offer permessage-deflate (RFC 7692) get it. Costs time for each message
        /// to them, once per shard for a publish, and up to 750 KiB per shard. A client that compresses
        /// its messages in one context costs up to 32 KiB; browsers do not.
        compression: bool = Switch, value(false);

        /// Largest message of a client: the bytes of all its fragments together.
        message_bytes: usize = bytes(MESSAGE_BYTES), derived(
            limits.edge_message_bytes, "`limits.edge_message_bytes`", "16777216"
        );

        /// Memory that messages may take that wait for one client.
        outbound_bytes: usize = bytes(OUTBOUND_BYTES), derived(
            limits.outbound_bytes, "`limits.outbound_bytes`", "67108864"
        );

        /// Messages a second of one client; 0: any number.
        messages_per_s: u32 = limit(), derived(
            limits.messages_per_s, "`limits.messages_per_s`", "100"
        );
    }
    tables {
        /// Tokens (JSON Web Tokens) that clients have to show. Without it, they need none. Each handshake
        /// costs the shard a check: a keyed hash for HS256, a public-key signature for the others.
        token as "token": Option<Arc<TokenRule>> = read_token(section)?,
            Optional(TokenKeys::definition);

        /// A back end that decides at connect whether a device may come in. After the checks of the
        /// origin, the token and the channels, the request is posted to it as JSON. An answer of 200
        /// lets the device in, 401 and 403 keep it out, and anything else is 503.
        admit as "admit": Option<Arc<AdmissionHook>> = read_admit(section)?,
            Optional(AdmitKeys::definition);
    }
}

/// The handler that serves a route instead of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handler {
    /// Sends every message back to its sender.
    Echo,
}

const HANDLERS: Choice<Handler> = Choice(&[("echo", Handler::Echo)]);

/// The kinds of events that a route reports to its topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// A client has connected.
    pub open: bool,
    /// A client has sent a message.
    pub message: bool,
    /// A client has gone.
    pub close: bool,
}

const EVENTS: Words<Events> = Words {
    words: &["open", "message", "close"],
    collect: |has| Ok(Events { open: has("open"), message: has("message"), close: has("close") }),
};

/// Reads the routes of an edge.
pub(super) fn read_routes(edge: &Section<'_>, limits: &Limits) -> Result<Vec<Route>, ConfigError> {
    let mut routes: Vec<Route> = Vec::new();
    for section in edge.tables("route")? {
        let route = Route::read(&section, limits)?;
        if routes.iter().any(|other| other.path == route.path) {
            let reason = format!("{:?} is the path of an earlier route", route.path);
            return Err(section.fault(&["path"], reason));
        }
        routes.push(route);
    }
    Ok(routes)
}

impl Route {
    fn read(section: &Section<'_>, limits: &Limits) -> Result<Self, ConfigError> {
        let route = Self::read_keys(section, limits)?;
        if route.handler.is_some() && route.topic.is_some() {
            let reason = "a route has a handler or a topic, not both";
            return Err(section.fault(&["handler"], reason));
        }
        if route.topic.is_none() {
            let reason = "has no effect without a topic";
            section.without("events", reason)?;
            section.without("hold_until", reason)?;
        }
        Ok(route)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.topic, self.handler) {
            (Some(topic), _) => write!(formatter, "{} (topic {topic:?})", self.path),
            (None, Some(Handler::Echo)) => write!(formatter, "{} (echo)", self.path),
            (None, None) => write!(formatter, "{} (no topic)", self.path),
        }
    }
}

const PATH: Text<String> = Text {
    expected: "a path such as \"/ws\", up to 1,024 bytes, as clients send it: without parameters and patterns",
    parse: |text| is_path(text).then(|| text.to_owned()),
};

/// Whether a client can ask for the path. `?` and `#` would end it (RFC 3986, section 3.3), what
/// browsers encode never comes as it is written, and `.` and `..` are resolved before a request is
/// sent. A `*` could come, but whoever writes one means a pattern.
fn is_path(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_graphic() && !b"?#\"<>\\^`{}*".contains(&byte);
    let is_resolved = |segment: &str| matches!(&segment.replace("%2e", ".")[..], "." | "..");
    text.starts_with('/')
        && text.len() <= ROUTE_PATH_BYTES_MAX
        && text.bytes().all(is_part)
        && !text.to_ascii_lowercase().split('/').any(is_resolved)
}

/// The name of a topic, or of a key in a client's context.
const NAME: Text<String> = Text {
    expected: "a name of 1 to 255 bytes without control characters",
    parse: |text| is_name(text).then(|| text.to_owned()),
};

fn is_name(text: &str) -> bool {
    (1..=255).contains(&text.len()) && !text.contains(char::is_control)
}

pub(super) const PATTERN: &str =
    "a channel's name, or the beginning of one and \"*\", without commas: they separate channels";

const PATTERNS: List<String> = List {
    expected: PATTERN,
    parse: |text| if is_pattern(text) { Ok(text.to_owned()) } else { Err(PATTERN.to_owned()) },
    empty: None,
};

/// Whether a text is a name, or the beginning of names with `*` behind it.
pub(super) fn is_pattern(text: &str) -> bool {
    is_name(text) && !text.contains(',') && !text.strip_suffix('*').unwrap_or(text).contains('*')
}

const SUBPROTOCOL: &str = "the name of a subprotocol: letters, digits and !#$%&'*+-.^_`|~";

const SUBPROTOCOLS: List<String> = List { expected: SUBPROTOCOL, parse: subprotocol, empty: None };

/// A subprotocol that a route may accept. `bearer.` announces a token, `gridcast.` is reserved.
fn subprotocol(text: &str) -> Result<String, String> {
    if !is_token(text.as_bytes()) {
        return Err(SUBPROTOCOL.to_owned());
    }
    match ["bearer.", "gridcast."].iter().find(|prefix| text.starts_with(**prefix)) {
        Some(prefix) => Err(format!("a subprotocol of your own: {prefix:?} begins gridcast's")),
        None => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{parse, parse_with, refused, route};

    #[test]
    fn an_edge_has_routes_with_paths_that_differ() {
        refused("\n[[edge]]", "gridcast.toml:2: edge.route: missing; an edge needs at least one");
        refused(
            &route("[[edge.route]]\npath = \"/ws\""),
            "gridcast.toml:5: edge.route.path: \"/ws\" is the path of an earlier route",
        );
        refused(
            "[[edge]]\n\n[[edge.route]]\ntopic = \"a\"",
            "gridcast.toml:3: edge.route.path: missing; a route needs one",
        );
        let path_of = |bytes: usize| format!("/{}", "x".repeat(bytes - 1));
        let with_path = |path: &str| format!("[[edge]]\n[[edge.route]]\npath = '{path}'");
        for path in [
            "",
            "ws",
            "/a b",
            "/a?b",
            "/a#b",
            "/ä",
            "/ws/*",
            "*",
            "/{id}",
            "/a<b>",
            "/a^",
            "/a`",
            "/./a",
            "/a/..",
            "/../a",
            "/%2e%2E/a",
            "/.%2e",
        ] {
            refused(
                &with_path(path),
                &format!(
                    "gridcast.toml:3: edge.route.path: expected a path such as \"/ws\", up to 1,024 \
                     bytes, as clients send it: without parameters and patterns, found \"{path}\""
                ),
            );
        }
        let longest = path_of(ROUTE_PATH_BYTES_MAX);
        assert!(parse_with(&with_path(&format!("{longest}x")), &[]).is_err());
        let unusual = "/~a/.well-known/b;c=1,2@x";
        for path in ["/", "//", "/a/", "/:id", "/...", "/a|b", "/%7Bid%7D", unusual, &longest] {
            assert_eq!(parse(&with_path(path)).edges[0].routes[0].path, path);
        }
    }

    #[test]
    fn a_route_has_a_handler_or_a_topic_or_neither() {
        refused(
            &route("topic = \"a\"\nhandler = \"echo\""),
            "gridcast.toml:5: edge.route.handler: a route has a handler or a topic, not both",
        );
        let config = parse(&route(""));
        let route = &config.edges[0].routes[0];
        assert_eq!((route.handler, &route.topic, route.events), (None, &None, Events::default()));
    }

    #[test]
    fn what_only_a_topic_gives_effect_is_refused_without_one() {
        for (line, key) in [("events = [\"open\"]", "events"), ("hold_until = \"a\"", "hold_until")]
        {
            refused(
                &route(line),
                &format!("gridcast.toml:4: edge.route.{key}: has no effect without a topic"),
            );
        }
    }

    #[test]
    fn a_pattern_has_its_star_at_the_end_or_none() {
        let config = parse(&route("subscribe = [\"*\", \"café\", \"café*\"]"));
        assert_eq!(config.edges[0].routes[0].subscribe, ["*", "café", "café*"]);
        for pattern in ["", "*a", "a**", "a,b", "a,*"] {
            assert!(parse_with(&route(&format!("subscribe = [\"{pattern}\"]")), &[]).is_err());
        }
    }

    #[test]
    fn a_subprotocol_is_a_token_and_no_name_of_the_gateway() {
        let refused = |name: &str, expected: &str| {
            refused(
                &route(&format!("subprotocols = [\"chat\", \"{name}\"]")),
                &format!(
                    "gridcast.toml:4: edge.route.subprotocols: expected {expected}, found \"{name}\""
                ),
            );
        };
        for name in ["", "a b", "a,b", "ä"] {
            refused(name, "the name of a subprotocol: letters, digits and !#$%&'*+-.^_`|~");
        }
        for (name, prefix) in [("bearer.x", "bearer."), ("gridcast.v1", "gridcast.")] {
            refused(name, &format!("a subprotocol of your own: {prefix:?} begins gridcast's"));
        }
    }

    #[test]
    fn a_name_has_a_length_and_no_control_characters() {
        let longest = "é".repeat(127) + "x";
        let config = parse(&route(&format!("topic = \"{longest}\"")));
        assert_eq!(config.edges[0].routes[0].topic.as_deref(), Some(longest.as_str()));
        let expected = "expected a name of 1 to 255 bytes without control characters";
        for (topic, shown) in [("\"\"", "\"\""), ("\"a\\tb\"", "\"a\\tb\""), ("1", "1")] {
            refused(
                &route(&format!("topic = {topic}")),
                &format!("gridcast.toml:4: edge.route.topic: {expected}, found {shown}"),
            );
        }
        assert!(parse_with(&route(&format!("topic = \"{longest}y\"")), &[]).is_err());
    }
}
