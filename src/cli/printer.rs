//! Standard output for streams of lines. A thread writes them, so that a slow reader of the output does not
//! keep the connection to the server from being served.

use std::io::stdout;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::mpsc;

use super::failure::Failure;
use super::terminal::Output;

/// The most lines that wait to be written, and their bytes. When there are as many, nothing more is read
/// from the server. One line may exceed the bytes.
const LINES_MAX: u64 = 4096;
const BYTES_MAX: usize = 16 << 20;

/// Prints lines in their order.
pub(super) struct Printer {
    lines: mpsc::UnboundedSender<Line>,
    results: mpsc::UnboundedReceiver<Result<Printed, Failure>>,
    // Lines that were queued and that were written, since the start.
    queued: u64,
    written: u64,
    bytes: usize,
}

/// A line to write, without its end.
enum Line {
    /// Text, written unchanged.
    Text(String),
    /// JSON, with the escapes that a terminal needs.
    Json(String),
}

/// Lines that were written.
struct Printed {
    lines: u64,
    bytes: usize,
}

impl Printer {
    /// Starts the threads.
    pub(super) fn start() -> Result<Self, Failure> {
        let (lines, queue) = mpsc::unbounded_channel();
        let (sender, results) = mpsc::unbounded_channel();
        let watcher = sender.clone();
        let start = |name: &str, work: Box<dyn FnOnce() + Send>| {
            let started = thread::Builder::new().name(name.into()).spawn(work);
            started.map_err(|error| Failure::Failed(format!("a thread cannot be started: {error}")))
        };
        start("printer", Box::new(move || print_all(queue, &sender)))?;
        start("output", Box::new(move || watch(&watcher)))?;
        Ok(Self { lines, results, queued: 0, written: 0, bytes: 0 })
    }

    /// Queues a line of JSON. Callers check [`Self::has_room`] before they produce one.
    pub(super) fn json(&mut self, line: String) {
        self.queue(line.len(), Line::Json(line));
    }

    /// Queues a line of text, as [`Self::json`] does.
    pub(super) fn text(&mut self, line: String) {
        self.queue(line.len(), Line::Text(line));
    }

    fn queue(&mut self, bytes: usize, line: Line) {
        self.queued += 1;
        self.bytes += bytes;
        // Fails only if the thread has ended, which `printed` reports.
        let _ = self.lines.send(line);
    }

    /// Whether more lines may be produced.
    pub(super) fn has_room(&self) -> bool {
        self.queued - self.written < LINES_MAX && self.bytes < BYTES_MAX
    }

    /// Whether every line has been written.
    pub(super) fn is_idle(&self) -> bool {
        self.queued == self.written
    }

    /// Waits until further lines have been written, and returns the number of all written lines. Fails as
    /// soon as the reader of standard output is gone, because the next line would be lost. May be
    /// cancelled without a loss.
    pub(super) async fn printed(&mut self) -> Result<u64, Failure> {
        let result = self.results.recv().await.unwrap_or(Err(Failure::OutputClosed));
        let Printed { lines, bytes } = result?;
        self.written += lines;
        self.bytes -= bytes;
        Ok(self.written)
    }
}

/// Reports when the reader of standard output is gone. Otherwise that is noticed only at the next line.
fn watch(results: &mpsc::UnboundedSender<Result<Printed, Failure>>) {
    let stdout = stdout();
    // Without events to wait for, the call returns when the other end is closed. A file has none.
    while poll(&mut [PollFd::new(&stdout, PollFlags::empty())], None).is_err() {}
    let _ = results.send(Err(Failure::OutputClosed));
}

/// Writes lines until the channel is closed or a write fails. Flushes when no line waits.
fn print_all(
    mut queue: mpsc::UnboundedReceiver<Line>,
    results: &mpsc::UnboundedSender<Result<Printed, Failure>>,
) {
    let mut output = Output::new();
    while let Some(first) = queue.blocking_recv() {
        let result = print_burst(&mut output, first, &mut queue);
        let is_failed = result.is_err();
        if results.send(result).is_err() || is_failed {
            return;
        }
    }
}

fn print_burst(
    output: &mut Output,
    first: Line,
    queue: &mut mpsc::UnboundedReceiver<Line>,
) -> Result<Printed, Failure> {
    let mut printed = Printed { lines: 0, bytes: 0 };
    let mut next = Some(first);
    while let Some(line) = next {
        printed.lines += 1;
        printed.bytes += match &line {
            Line::Text(text) => output.write(&format!("{text}\n")).map(|()| text.len())?,
            Line::Json(text) => output.json(text).map(|()| text.len())?,
        };
        next = queue.try_recv().ok();
    }
    output.flush()?;
    Ok(printed)
}
