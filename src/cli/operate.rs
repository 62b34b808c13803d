//! `call`, `close` and `reload`: single calls.

use clap::Args;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::connection::ApiConnection;
use super::failure::Failure;
use super::options::{Server, ServerOptions};
use super::terminal::{Output, printable, unix_ms};
use super::units;

/// The arguments of `call`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct CallArguments {
    /// Id of the client
    client: String,

    /// Function to call: info, get_context, set_context, set_context_value, subscribe, unsubscribe, close
    function: String,

    /// Arguments of the function. What is JSON is taken as JSON, anything else as a string
    #[arg(value_name = "ARGUMENT", allow_hyphen_values = true)]
    arguments: Vec<String>,

    #[command(flatten)]
    pub(super) server: ServerOptions,
}

/// The arguments of `close`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct CloseArguments {
    /// Id of the client
    client: String,

    /// Close code: 1000, 1001, 1008, 1011 to 1013, or 3000 to 4999 for codes of your own
    #[arg(long, default_value_t = 1000)]
    code: u16,

    /// Reason, of at most 123 bytes. The device gets it with the code
    #[arg(long, default_value = "")]
    reason: String,

    #[command(flatten)]
    pub(super) server: ServerOptions,
}

/// The arguments of `reload`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ReloadArguments {
    #[command(flatten)]
    pub(super) server: ServerOptions,
}

impl CallArguments {
    pub(super) async fn run(&self, server: &Server) -> Result<(), Failure> {
        let arguments: Vec<Value> = self.arguments.iter().map(|text| argument(text)).collect();
        let params = json!({ "c": self.client, "f": self.function, "a": arguments });
        let result = call(server, "conn.call", &params).await?;
        print(self.server.json, result.get(), record)
    }
}

/// An argument as it is written: JSON, or else a string.
fn argument(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

impl CloseArguments {
    pub(super) async fn run(&self, server: &Server) -> Result<(), Failure> {
        let arguments = json!([self.code, self.reason]);
        let params = json!({ "c": self.client, "f": "close", "a": arguments });
        let result = call(server, "conn.call", &params).await?;
        print(self.server.json, result.get(), |_| "closed\n".to_owned())
    }
}

impl ReloadArguments {
    pub(super) async fn run(&self, server: &Server) -> Result<(), Failure> {
        let result = call(server, "admin.reload", &json!({})).await?;
        print(self.server.json, result.get(), changes)
    }
}

/// Makes one call on a connection of its own.
async fn call(server: &Server, method: &str, params: &Value) -> Result<Box<RawValue>, Failure> {
    let mut connection = ApiConnection::open(server).await?;
    let result = connection.call(method, params).await;
    connection.close().await;
    result
}

/// Prints a result: as it is, or as text that `format` makes of it.
fn print(json: bool, result: &str, format: impl FnOnce(&Value) -> String) -> Result<(), Failure> {
    let mut output = Output::new();
    match json {
        true => output.json(result)?,
        false => {
            let value = serde_json::from_str(result).unwrap_or_default();
            output.write(&format(&value))?;
        }
    }
    output.flush()
}

/// Formats the result of a function: its fields in lines, but for the `s` that stands for success.
fn record(result: &Value) -> String {
    let empty = Map::new();
    let fields = result.as_object().unwrap_or(&empty).iter().filter(|(name, _)| *name != "s");
    // Names come from elsewhere too: those of a context are chosen by devices' tokens and back ends.
    let shown = |name: &str, value| (printable(name), printable(&field(name, value)));
    let fields: Vec<_> = fields.map(|(name, value)| shown(name, value)).collect();
    let width = fields.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
    if fields.is_empty() {
        return "done\n".to_owned();
    }
    fields.iter().map(|(name, text)| format!("{name:<width$}  {text}\n")).collect()
}

fn field(name: &str, value: &Value) -> String {
    match (name, value) {
        ("since", Value::Number(number)) => {
            units::ago(number.as_u64().unwrap_or_default(), unix_ms())
        }
        ("buffered", Value::Number(number)) => units::bytes(number.as_u64().unwrap_or_default()),
        (_, Value::String(text)) => text.clone(),
        (_, Value::Array(items)) => {
            items.iter().map(|item| field("", item)).collect::<Vec<_>>().join(", ")
        }
        (_, other) => other.to_string(),
    }
}

/// Formats the result of a reload.
fn changes(result: &Value) -> String {
    #[derive(Deserialize)]
    struct ReloadResult {
        changed: Vec<String>,
        restart: Vec<String>,
    }
    let Ok(ReloadResult { changed, restart }) = ReloadResult::deserialize(result) else {
        return format!("{}\n", printable(&result.to_string()));
    };
    if changed.is_empty() && restart.is_empty() {
        return "nothing has changed\n".to_owned();
    }
    let list = |title: &str, lines: &[String]| {
        lines.iter().map(|line| format!("{title}: {}\n", printable(line))).collect::<String>()
    };
    list("changed", &changed) + &list("needs a restart", &restart)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_json_is_taken_as_json() {
        assert_eq!(argument("10000"), json!(10000));
        assert_eq!(argument("\"10000\""), json!("10000"));
        assert_eq!(argument("user_id"), json!("user_id"));
        assert_eq!(argument("{\"a\":1}"), json!({"a": 1}));
        assert_eq!(argument(""), json!(""));
    }

    #[test]
    fn a_record_has_aligned_fields_with_units() {
        let now = unix_ms();
        let result =
            json!({"s": true, "buffered": 2048, "channels": ["a", "b"], "since": now - 200_000});
        assert_eq!(record(&result), "buffered  2.0 KiB\nchannels  a, b\nsince     3 min ago\n");
        assert_eq!(record(&json!({"s": true})), "done\n");
    }

    #[test]
    fn a_result_cannot_control_the_terminal() {
        let context = json!({"\u{1b}[2J": "\u{9b}31m", "a": ["\n", {"\u{9b}": "\u{202e}"}]});
        let expected = "\\u{1b}[2J  \\u{9b}31m\na          \\n, {\"\\u{9b}\":\"\\u{202e}\"}\n";
        assert_eq!(record(&context), expected);
        assert_eq!(changes(&json!({"\u{9b}": 1})), "{\"\\u{9b}\":1}\n");
    }

    #[test]
    fn a_reload_tells_what_changed() {
        assert_eq!(changes(&json!({"changed": [], "restart": []})), "nothing has changed\n");
        let result =
            json!({"changed": ["log.level: info -> debug"], "restart": ["node.id: 1 -> 2"]});
        let expected = "changed: log.level: info -> debug\nneeds a restart: node.id: 1 -> 2\n";
        assert_eq!(changes(&result), expected);
    }
}
