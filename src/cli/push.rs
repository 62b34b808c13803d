//! `publish` and `send`: messages to a channel or to one client.

use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{ArgGroup, Args};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::connection::{ANSWER_MAX, ApiConnection};
use super::explain::{call_error, unreachable};
use super::failure::Failure;
use super::message::Incoming;
use super::options::{Server, ServerOptions};
use super::terminal::{Output, ProgressLine};
use super::units;

/// The largest message that is read. `limits.api_message_bytes` of the server decides what it takes.
const DATA_BYTES_MAX: usize = 64 << 20;

/// The most messages of `--lines` without an answer. The server takes 1,024 from a connection.
const IN_FLIGHT_MAX: usize = 256;

/// The arguments of `publish`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct PublishArguments {
    /// Channel whose subscribers get the message
    channel: String,

    #[command(flatten)]
    data: DataArguments,

    #[command(flatten)]
    pub(super) server: ServerOptions,
}

/// The arguments of `send`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct SendArguments {
    /// Id of the client that gets the message
    client: String,

    #[command(flatten)]
    data: DataArguments,

    #[command(flatten)]
    pub(super) server: ServerOptions,
}

/// Where a message comes from.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(group(ArgGroup::new("source").required(true).args(["data", "file", "lines"])))]
struct DataArguments {
    /// The message, or - to read it from standard input, up to its end
    #[arg(allow_hyphen_values = true)]
    data: Option<String>,

    /// Read the message from a file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Read messages from standard input, one a line, and send them without waiting for each answer
    #[arg(long)]
    lines: bool,

    /// Send a binary message. A file or - is sent as it is; an argument and each line are base64
    #[arg(long)]
    binary: bool,
}

/// The messages to send.
enum PushInput {
    One(Message),
    Lines { is_binary: bool },
}

/// The data of a message, as the API takes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Message {
    d: String,
    t: &'static str,
}

impl Message {
    /// A message from text of the user: as it is, or base64.
    fn of_text(text: String, is_binary: bool) -> Self {
        Self { d: text, t: if is_binary { "binary" } else { "text" } }
    }

    /// A message from bytes, which have to be text unless the message is binary.
    fn of_bytes(bytes: Vec<u8>, is_binary: bool) -> Result<Self, String> {
        if is_binary {
            return Ok(Self { d: STANDARD.encode(bytes), t: "binary" });
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let place = error.utf8_error().valid_up_to();
            format!("not UTF-8 text at byte {place}; --binary sends any bytes")
        })?;
        Ok(Self { d: text, t: "text" })
    }
}

impl DataArguments {
    /// Returns the source of the messages. Reads a file, or standard input.
    fn source(&self) -> Result<PushInput, Failure> {
        if self.lines {
            return Ok(PushInput::Lines { is_binary: self.binary });
        }
        let read = |name: &str, input: io::Result<Box<dyn Read>>| {
            let wrong = |error: String| Failure::Failed(format!("{name}: {error}"));
            let input = input.map_err(|error| wrong(error.to_string()))?;
            let bytes = read_bounded(input).map_err(wrong)?;
            Message::of_bytes(bytes, self.binary).map_err(wrong)
        };
        let message = match (&self.file, &self.data) {
            (Some(file), _) => read(&file.display().to_string(), open(file)),
            (None, Some(data)) if data == "-" => read("standard input", Ok(Box::new(io::stdin()))),
            (None, data) => Ok(Message::of_text(data.clone().unwrap_or_default(), self.binary)),
        };
        Ok(PushInput::One(message?))
    }
}

fn open(file: &Path) -> io::Result<Box<dyn Read>> {
    Ok(Box::new(File::open(file)?))
}

fn read_bounded(input: impl Read) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = input.take(DATA_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| error.to_string())?;
    match bytes.len() > DATA_BYTES_MAX {
        true => Err(format!("larger than {DATA_BYTES_MAX} bytes")),
        false => Ok(bytes),
    }
}

/// Where messages go.
struct PushTarget<'a> {
    method: &'static str,
    /// The channel or the client.
    name: &'a str,
}

#[derive(Serialize)]
struct PushParams<'a> {
    c: &'a str,
    #[serde(flatten)]
    message: &'a Message,
}

impl PublishArguments {
    pub(super) async fn run(&self, server: &Server) -> Result<(), Failure> {
        let target = PushTarget { method: "mesh.publish", name: &self.channel };
        push(server, &target, &self.data, self.server.json).await
    }
}

impl SendArguments {
    pub(super) async fn run(&self, server: &Server) -> Result<(), Failure> {
        let target = PushTarget { method: "mesh.send", name: &self.client };
        push(server, &target, &self.data, self.server.json).await
    }
}

async fn push(
    server: &Server,
    target: &PushTarget<'_>,
    data: &DataArguments,
    json: bool,
) -> Result<(), Failure> {
    // Read first: input that takes its time would leave the pings of the server without an answer.
    let source = data.source()?;
    let mut connection = ApiConnection::open(server).await?;
    let mut output = Output::new();
    let result = match source {
        PushInput::One(message) => {
            let params = PushParams { c: target.name, message: &message };
            let result = connection.call(target.method, &params).await?;
            match json {
                true => output.json(result.get()),
                false => output.write(&format!("{}\n", PushTally::default().with(&result))),
            }
        }
        PushInput::Lines { is_binary } => {
            let mut pipeline = Pipeline {
                connection: &mut connection,
                target,
                is_binary,
                // Answers are printed one by one, or counted.
                answers: json.then_some(&mut output),
                tally: PushTally::default(),
                in_flight: 0,
                waiting_since: Instant::now(),
            };
            let ended = pipeline.run().await;
            let tally = pipeline.tally;
            match json {
                true => ended,
                false => output.write(&format!("{tally}\n")).and(ended),
            }
        }
    };
    output.flush()?;
    connection.close().await;
    result
}

/// The outcome of the messages.
#[derive(Clone, Copy, Debug, Default)]
struct PushTally {
    messages: u64,
    // Subscribers that took a message, and those that did not. `None`: messages to one client.
    deliveries: Option<(u64, u64)>,
}

impl PushTally {
    /// Adds the result of a call.
    fn with(mut self, result: &RawValue) -> Self {
        #[derive(Deserialize)]
        struct Counts {
            s: u64,
            f: u64,
        }
        self.messages += 1;
        if let Ok(Counts { s, f }) = serde_json::from_str(result.get()) {
            let (delivered, failed) = self.deliveries.unwrap_or_default();
            self.deliveries = Some((delivered + s, failed + f));
        }
        self
    }
}

impl std::fmt::Display for PushTally {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plural = |count: u64, one: &str, many: &str| match count {
            1 => format!("1 {one}"),
            count => format!("{} {many}", units::count(count)),
        };
        write!(formatter, "{} sent", plural(self.messages, "message", "messages"))?;
        if let Some((delivered, failed)) = self.deliveries {
            write!(formatter, ": {}", plural(delivered, "delivery", "deliveries"))?;
            write!(formatter, ", {} failed", units::count(failed))?;
        }
        Ok(())
    }
}

/// Sends the lines of standard input, many at a time.
struct Pipeline<'a> {
    connection: &'a mut ApiConnection,
    target: &'a PushTarget<'a>,
    is_binary: bool,
    // Where answers are printed, if they are.
    answers: Option<&'a mut Output>,
    tally: PushTally,
    in_flight: usize,
    // Since when the next answer is awaited, if there is a message in flight.
    waiting_since: Instant,
}

impl Pipeline<'_> {
    /// Sends until the input ends or a message is refused. Waits for the answers to all that was sent.
    async fn run(&mut self) -> Result<(), Failure> {
        let mut lines = read_lines()?;
        let is_torn = io::stdin().is_terminal()
            || self.answers.as_ref().is_some_and(|output| output.is_terminal);
        let mut progress = ProgressLine::new("messages", is_torn);
        let mut ended = None;
        loop {
            if ended.is_some() && self.in_flight == 0 {
                return ended.unwrap_or(Ok(()));
            }
            let has_room = self.in_flight < IN_FLIGHT_MAX && ended.is_none();
            tokio::select! {
                // An answer that is there is never late.
                biased;
                line = lines.recv(), if has_room => match line {
                    Some(Ok(line)) => self.send(line).await?,
                    Some(Err(error)) => {
                        ended = Some(Err(Failure::Failed(format!("standard input: {error}"))));
                    }
                    None => ended = Some(Ok(())),
                },
                incoming = self.connection.next() => {
                    if let Err(failure) = self.incoming(incoming?)? {
                        // The first one counts. Those that were sent after it may have succeeded.
                        if !matches!(ended, Some(Err(_))) {
                            ended = Some(Err(failure));
                        }
                    }
                    progress.show(self.tally.messages);
                    // After the output: its reader may have taken long.
                    self.waiting_since = Instant::now();
                }
                () = sleep_until(self.waiting_since + ANSWER_MAX), if self.in_flight > 0 => {
                    let (server, method) = (self.connection.server(), self.target.method);
                    return Err(unreachable(server, &format!("{method}: no answer in time")));
                }
            }
        }
    }

    async fn send(&mut self, line: String) -> Result<(), Failure> {
        let message = Message::of_text(line, self.is_binary);
        let params = PushParams { c: self.target.name, message: &message };
        self.connection.send(self.target.method, &params).await?;
        if self.in_flight == 0 {
            self.waiting_since = Instant::now();
        }
        self.in_flight += 1;
        Ok(())
    }

    /// Handles a message of the server. The outer failure is one of this machine, the inner one a refusal.
    fn incoming(&mut self, incoming: Incoming) -> Result<Result<(), Failure>, Failure> {
        let Incoming::Answer { id, result } = incoming else { return Ok(Ok(())) };
        self.in_flight = self.in_flight.saturating_sub(1);
        let result = match result {
            Ok(result) => result,
            Err(mut error) => {
                // The ids of a connection are the numbers of its requests.
                let line = id.map_or(String::new(), |id| format!("line {id}: "));
                error.reason.insert_str(0, &line);
                return Ok(Err(call_error(self.connection.server(), self.target.method, &error)));
            }
        };
        self.tally = self.tally.with(&result);
        if let Some(output) = &mut self.answers {
            output.json(result.get())?;
            if self.in_flight == 0 {
                output.flush()?;
            }
        }
        Ok(Ok(()))
    }
}

/// Reads the lines of standard input on a thread, a bounded number ahead.
fn read_lines() -> Result<mpsc::Receiver<Result<String, String>>, Failure> {
    let (sender, lines) = mpsc::channel(IN_FLIGHT_MAX);
    let read = move || {
        let mut input = io::stdin().lock();
        while let Some(line) = next_line(&mut input) {
            let is_last = line.is_err();
            if sender.blocking_send(line).is_err() || is_last {
                return;
            }
        }
    };
    thread::Builder::new()
        .name("input".into())
        .spawn(read)
        .map_err(|error| Failure::Failed(format!("a thread cannot be started: {error}")))?;
    Ok(lines)
}

/// Reads a line without its end. `None` at the end of the input.
fn next_line(input: &mut impl BufRead) -> Option<Result<String, String>> {
    let mut line = Vec::new();
    let read = input.take(DATA_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line);
    match read {
        Err(error) => return Some(Err(error.to_string())),
        Ok(0) => return None,
        Ok(length) if length > DATA_BYTES_MAX => {
            return Some(Err(format!("a line is longer than {DATA_BYTES_MAX} bytes")));
        }
        Ok(_) => {}
    }
    if line.ends_with(b"\n") {
        line.pop();
        if line.ends_with(b"\r") {
            line.pop();
        }
    }
    Some(String::from_utf8(line).map_err(|_| "a line is not UTF-8 text".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_without_their_ends() {
        let mut input = &b"a\n\nb\r\nc"[..];
        let lines: Vec<_> = std::iter::from_fn(|| next_line(&mut input)).collect();
        assert_eq!(lines, ["a", "", "b", "c"].map(|line| Ok(line.to_owned())));
        assert!(next_line(&mut &b"\xff\n"[..]).is_some_and(|line| line.is_err()));
    }

    #[test]
    fn bytes_are_text_unless_the_message_is_binary() {
        let error = Message::of_bytes(b"ab\xff".to_vec(), false).expect_err("not text");
        assert!(error.starts_with("not UTF-8 text at byte 2"), "{error}");
        let binary = Message::of_bytes(b"\x00\x01\x02".to_vec(), true);
        assert_eq!(binary, Ok(Message { d: "AAEC".into(), t: "binary" }));
    }

    #[test]
    fn a_tally_names_what_was_delivered() {
        let counts = RawValue::from_string(r#"{"s":1,"f":0}"#.into()).expect("JSON");
        let done = RawValue::from_string(r#"{"s":true}"#.into()).expect("JSON");
        assert_eq!(
            PushTally::default().with(&counts).to_string(),
            "1 message sent: 1 delivery, 0 failed"
        );
        let two = PushTally::default().with(&counts).with(&counts);
        assert_eq!(two.to_string(), "2 messages sent: 2 deliveries, 0 failed");
        assert_eq!(PushTally::default().with(&done).to_string(), "1 message sent");
    }
}
