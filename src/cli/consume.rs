//! `consume`: prints the events of topics.

use std::collections::VecDeque;

use clap::Args;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::follow::EventStream;
use super::options::ServerOptions;
use super::printer::Printer;
use super::terminal::{printable, remark};

/// The arguments of `consume`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ConsumeArguments {
    /// Topics to consume, such as messages
    #[arg(required = true, value_name = "TOPIC")]
    topics: Vec<String>,

    /// Acknowledge each event after it was printed. An event that was not acknowledged goes to another
    /// consumer, and is not lost when this command fails
    #[arg(long)]
    ack: bool,

    /// With --ack: how many events may be without an acknowledgement
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    window: u32,

    /// End after this many events. Implies --ack, so that further events stay in the topic
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// End when the connection is lost, instead of connecting again
    #[arg(long)]
    pub(super) no_reconnect: bool,

    #[command(flatten)]
    pub(super) server: ServerOptions,
}

/// The consumption of topics.
pub(super) struct Consumption {
    topics: Vec<String>,
    // `None`: events are not acknowledged.
    window: Option<u32>,
    // Events that are still wanted. `None`: any number.
    remaining: Option<u64>,
    // Lines queued since the start of the command.
    queued: u64,
    // Events that were queued on this connection and are not acknowledged, the oldest first.
    unacknowledged: VecDeque<Queued>,
}

/// An event that waits to be printed and acknowledged.
struct Queued {
    line: u64,
    tag: u64,
}

impl Consumption {
    pub(super) fn new(arguments: ConsumeArguments) -> Self {
        let ConsumeArguments { topics, ack, window, count, .. } = arguments;
        Self {
            topics,
            window: (ack || count.is_some()).then_some(window),
            remaining: count,
            queued: 0,
            unacknowledged: VecDeque::new(),
        }
    }
}

impl EventStream for Consumption {
    const METHOD: &'static str = "queue.pop";

    fn start(&mut self) -> Value {
        // Tags belong to a connection.
        self.unacknowledged.clear();
        match self.window {
            None => json!({ "t": self.topics }),
            Some(window) => {
                let window = self.remaining.map_or(window.into(), |left| left.min(window.into()));
                json!({ "t": self.topics, "a": true, "w": window })
            }
        }
    }

    fn started(&mut self, result: &RawValue) {
        #[derive(Deserialize)]
        struct PopResult {
            w: Option<String>,
        }
        if let Ok(PopResult { w: Some(warning) }) = serde_json::from_str(result.get()) {
            remark(&format!("warning: {}", printable(&warning)));
        }
    }

    fn event(&mut self, params: &RawValue, printer: &mut Printer) {
        if self.is_complete() {
            // Not acknowledged, so that it goes to another consumer.
            return;
        }
        self.remaining = self.remaining.map(|left| left - 1);
        self.queued += 1;
        if let Some(tag) = self.window.and_then(|_| tag(params)) {
            self.unacknowledged.push_back(Queued { line: self.queued, tag });
        }
        printer.json(params.get().to_owned());
    }

    fn printed(&mut self, lines: u64) -> Option<(&'static str, Value)> {
        let printed = self.unacknowledged.iter().take_while(|event| event.line <= lines).count();
        let last = self.unacknowledged.drain(..printed).next_back()?;
        Some(("queue.ack", json!({ "g": last.tag, "u": true })))
    }

    fn is_complete(&self) -> bool {
        self.remaining == Some(0)
    }

    fn stop(&self) -> Option<&'static str> {
        // What is not acknowledged goes to another consumer anyway.
        self.window.is_none().then_some("queue.unpop")
    }
}

fn tag(params: &RawValue) -> Option<u64> {
    #[derive(Deserialize)]
    struct TaggedEvent {
        g: Option<u64>,
    }
    serde_json::from_str::<TaggedEvent>(params.get()).ok()?.g
}
