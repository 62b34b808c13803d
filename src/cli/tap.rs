//! `tap`: watches devices live.

use clap::{ArgGroup, Args};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::connection::ApiConnection;
use super::failure::Failure;
use super::follow::EventStream;
use super::lists::lost_nodes;
use super::options::{Server, ServerOptions};
use super::printer::Printer;
use super::terminal::{Style, printable, remark};
use super::units;

/// The arguments of `tap`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(group(ArgGroup::new("target").required(true).args(["client", "by_user", "channel", "topic", "address"])))]
pub struct TapArguments {
    /// Id of the client to watch
    client: Option<String>,

    /// Watch the clients of this user: the user_id of their context. Refusals show only if the token was
    /// valid; otherwise watch the address
    #[arg(long, value_name = "USER")]
    by_user: Option<String>,

    /// Watch the subscribers of this channel
    #[arg(long, value_name = "NAME")]
    channel: Option<String>,

    /// Watch the clients that feed this topic
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,

    /// Watch this IP address, or this network, such as 10.0.0.0/8
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,

    /// The most events a second. Further ones are counted
    #[arg(long, value_name = "N", default_value_t = 100)]
    max_per_s: u32,

    /// End after this many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// End when the connection is lost, instead of connecting again
    #[arg(long)]
    pub(super) no_reconnect: bool,

    #[command(flatten)]
    pub(super) server: ServerOptions,
}

impl TapArguments {
    /// Checks that there is something to watch, and warns of nodes that were lost: nothing is watched there.
    pub(super) async fn prepare(&self, server: &Server) -> Result<(), Failure> {
        let mut connection = ApiConnection::open(server).await?;
        self.find_client(&mut connection).await?;
        let lost = lost_nodes(&mut connection).await;
        connection.close().await;
        if let Some(lost) = lost {
            remark(&format!("warning: {lost}: what was there is not watched"));
        }
        Ok(())
    }

    /// Checks that the client to watch is connected. Ids are never used again, so a tap of any other id, such as
    /// that of a user, would show nothing for ever.
    async fn find_client(&self, connection: &mut ApiConnection) -> Result<(), Failure> {
        #[derive(Deserialize)]
        struct ClientsResult {
            clients: Vec<IgnoredAny>,
            #[serde(default)]
            missing: Vec<u64>,
        }
        let Some(client) = &self.client else { return Ok(()) };
        let result = connection.call("client.list", &json!({ "c": client })).await?;
        match serde_json::from_str(result.get()) {
            Ok(ClientsResult { clients, missing }) if clients.is_empty() && missing.is_empty() => {
                Err(Failure::Failed(format!(
                    "{}: no client with the id {client} is connected; for a user: --by-user {client}",
                    connection.server().address
                )))
            }
            // It is connected, or may be to a node that does not answer.
            _ => Ok(()),
        }
    }
}

/// A tap.
pub(super) struct TapStream {
    params: Value,
    json: bool,
    style: Style,
    // Events that are still wanted. `None`: any number.
    remaining: Option<u64>,
}

impl TapStream {
    pub(super) fn new(arguments: &TapArguments) -> Self {
        let targets = [
            ("c", &arguments.client),
            ("user", &arguments.by_user),
            ("channel", &arguments.channel),
            ("topic", &arguments.topic),
            ("address", &arguments.address),
        ];
        let mut params = json!({ "max_per_s": arguments.max_per_s });
        for (name, target) in targets {
            if let Some(target) = target {
                params[name] = json!(target);
            }
        }
        let json = arguments.server.json;
        Self { params, json, style: Style::of_output(), remaining: arguments.count }
    }
}

impl EventStream for TapStream {
    const METHOD: &'static str = "tap.start";

    fn start(&mut self) -> Value {
        self.params.clone()
    }

    fn started(&mut self, result: &RawValue) {
        #[derive(Deserialize)]
        struct TapResult {
            #[serde(default)]
            missing: Vec<u64>,
        }
        let missing =
            serde_json::from_str(result.get()).map_or(Vec::new(), |s: TapResult| s.missing);
        if !missing.is_empty() {
            let ids: Vec<String> = missing.iter().map(u64::to_string).collect();
            remark(&format!("warning: these nodes do not watch: {}", ids.join(", ")));
        }
        if !self.json {
            // Otherwise a device that does nothing looks like a tap that does not work.
            remark("watching; Ctrl-C ends");
        }
    }

    fn event(&mut self, params: &RawValue, printer: &mut Printer) {
        if self.is_complete() {
            return;
        }
        self.remaining = self.remaining.map(|left| left - 1);
        match serde_json::from_str::<Value>(params.get()) {
            Ok(event) if !self.json => printer.text(line(&event, self.style)),
            _ => printer.json(params.get().to_owned()),
        }
    }

    fn printed(&mut self, _: u64) -> Option<(&'static str, Value)> {
        None
    }

    fn is_complete(&self) -> bool {
        self.remaining == Some(0)
    }

    fn stop(&self) -> Option<&'static str> {
        // The end of the connection ends its taps.
        None
    }
}

/// Formats an event: when, where, whose, what.
fn line(event: &Value, style: Style) -> String {
    let what = field(event, "what");
    let at = style.dim(&time_of_day(event["at"].as_u64().unwrap_or_default()));
    let text = printable(&told(&what, event));
    let word = format!("{:<7}", printable(&what));
    let (word, text) = match &what[..] {
        "refuse" | "lost" => (style.red(&word), style.red(&text)),
        _ => (style.bold(&word), text),
    };
    if what == "lost" {
        return format!("{at}  {word}  {text}");
    }
    let [node, client] = ["node", "c"].map(|name| printable(&field(event, name)));
    format!("{at}  {node}  {client:<19}  {word}  {text}")
}

/// Describes an event in words.
fn told(what: &str, event: &Value) -> String {
    let get = |name| field(event, name);
    let optional = |before: &str, name| match &event[name] {
        Value::Null => String::new(),
        _ => format!("{before}{}", get(name)),
    };
    match what {
        "connect" => {
            let user = optional(", user ", "u");
            format!("{} from {}{user}, channels: {}", get("path"), get("remote"), get("channels"))
        }
        "refuse" => {
            let status = optional("", "status");
            let status = if status.is_empty() { "closed".to_owned() } else { status };
            format!("{status} from {}{}: {}", get("remote"), optional(" ", "path"), get("why"))
        }
        "in" | "out" => data(event),
        "call" => {
            let arguments = match &get("arguments")[..] {
                "" | "-" => String::new(),
                arguments => format!(" {arguments}"),
            };
            let error =
                event["error"]["m"].as_str().map_or(String::new(), |why| format!(": {why}"));
            format!("{}{arguments}{}{error}", get("m"), optional(" by ", "by"))
        }
        "close" => format!("{} {} (by {})", get("code"), get("reason"), get("by")),
        "lost" if !event["node"].is_null() => {
            format!("node {} is unreachable: its devices are not watched", get("node"))
        }
        "lost" => format!("{} events: more than --max-per-s, or read too slowly", get("n")),
        _ => event.to_string(),
    }
}

/// A message: its first bytes, and its length if that is more.
fn data(event: &Value) -> String {
    let shown = field(event, "d");
    let bytes = event["bytes"].as_u64().unwrap_or_default();
    match event["t"].as_str() {
        Some("binary") => format!("binary {shown} ({})", units::bytes(bytes)),
        _ if shown.len() as u64 == bytes => shown,
        _ => format!("{shown}… ({})", units::bytes(bytes)),
    }
}

fn field(event: &Value, name: &str) -> String {
    match &event[name] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Writes the time of day of a time in Unix milliseconds, in UTC.
fn time_of_day(unix_ms: u64) -> String {
    let (seconds, ms) = (unix_ms / 1000 % 86_400, unix_ms % 1000);
    format!("{:02}:{:02}:{:02}.{ms:03}Z", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The line of an event with these fields.
    fn shown(fields: Value) -> String {
        let mut event = json!({"at": 1_767_225_600_123_u64, "node": 1, "c": "1463819408261513216"});
        let fields = fields.as_object().expect("fields").clone();
        event.as_object_mut().expect("fields").extend(fields);
        line(&event, Style::Plain)
    }

    #[test]
    fn each_event_is_a_line() {
        let head = "00:00:00.123Z  1  1463819408261513216  ";
        for (fields, text) in [
            (
                json!({"what": "connect", "path": "/ws", "remote": "192.0.2.7:5000", "u": "ann", "channels": 2}),
                "connect  /ws from 192.0.2.7:5000, user ann, channels: 2",
            ),
            (
                json!({"what": "refuse", "status": 401, "why": "the token has expired", "remote": "192.0.2.7:5000", "path": "/ws"}),
                "refuse   401 from 192.0.2.7:5000 /ws: the token has expired",
            ),
            (json!({"what": "in", "t": "text", "d": "a\u{1b}b", "bytes": 3}), "in       a\\u{1b}b"),
            (
                json!({"what": "out", "t": "text", "d": "ab", "bytes": 2048}),
                "out      ab… (2.0 KiB)",
            ),
            (
                json!({"what": "out", "t": "binary", "d": "AAE=", "bytes": 2}),
                "out      binary AAE= (2 B)",
            ),
            (
                json!({"what": "call", "m": "mesh.send", "arguments": "", "by": "app", "error": {"c": 401, "m": "full"}}),
                "call     mesh.send by app: full",
            ),
            (
                json!({"what": "close", "code": 4001, "reason": "bye", "by": "peer"}),
                "close    4001 bye (by peer)",
            ),
        ] {
            assert_eq!(shown(fields), format!("{head}{text}"));
        }
        let lost = line(&json!({"at": 5, "what": "lost", "n": 9}), Style::Plain);
        assert_eq!(
            lost,
            "00:00:00.005Z  lost     9 events: more than --max-per-s, or read too slowly"
        );
    }

    #[test]
    fn no_field_can_control_the_terminal() {
        for name in ["node", "c", "what", "d", "why", "path", "remote", "u", "reason", "code", "x"]
        {
            for what in ["connect", "refuse", "in", "call", "close", "lost", "later"] {
                let mut event = json!({"at": 5, "node": 1, "what": what});
                event[name] = json!({"\u{9b}31m": "\u{1b}[2J\u{202e}\n"});
                let in_object = line(&event, Style::Plain);
                event[name] = json!("\u{9b}31m\u{1b}[2J\u{202e}\n");
                for text in [in_object, line(&event, Style::Plain)] {
                    let is_bad = |c: char| c.is_control() || c == '\u{202e}';
                    assert!(!text.contains(is_bad), "{name} of {what}: {text:?}");
                }
            }
        }
    }

    #[test]
    fn an_event_of_a_later_version_is_shown_too() {
        assert!(shown(json!({"what": "pause", "why": "x"})).contains("\"why\":\"x\""));
    }
}
