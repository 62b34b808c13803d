//! The log: lines wait in a bounded queue, and a thread writes them to standard error.
//!
//! Logging never blocks and never fails. A line is dropped and counted if the queue is full or if it
//! cannot be written. Once lines can be written again, one line says how many were lost. Nothing else in
//! this crate writes to standard error; only [`print`] writes to standard output.
//!
//! tracing-appender has a similar writer, which is not used: it bounds its queue in lines but not in
//! bytes, does not count failed writes, and prints to standard output when it ends, which may panic.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal, Write};
use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Map, Value};
use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

use crate::shard::ACCESS_LOG_TARGET;

/// The most lines in the queue. The queue allocates 24 bytes for each at the start.
const LINES_MAX: usize = 4096;

/// The most bytes of all lines in the queue.
const BYTES_MAX: usize = 1 << 20;

/// How long the process waits at its end for queued lines to be written.
pub const FLUSH_MAX: Duration = Duration::from_millis(500);

/// How a line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineFormat {
    /// For people.
    Text,
    /// One JSON object a line, for programs.
    Json,
}

/// The log of the process. Clones share one queue.
#[derive(Clone, Debug)]
pub struct LogQueue {
    queue: Sender<LogItem>,
    state: Arc<LogState>,
}

#[derive(Debug)]
struct LogState {
    // Bytes of the lines in the queue and of the line that is being written.
    bytes: AtomicUsize,
    dropped: Arc<AtomicU64>,
    // Dropped lines that the log has not reported yet.
    untold: AtomicU64,
    is_json: AtomicBool,
    // The filter of the subscriber, once there is one.
    filter: OnceLock<reload::Handle<Targets, Registry>>,
}

#[derive(Debug)]
enum LogItem {
    Line(Box<[u8]>),
    /// A request that is answered once every earlier line was written or dropped.
    Flush(Sender<()>),
}

impl LogQueue {
    /// Creates a log and starts its thread, which writes to standard error.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn to_stderr() -> io::Result<Self> {
        Self::to(Stderr)
    }

    fn to(out: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, items) = bounded(LINES_MAX);
        let state = Arc::new(LogState {
            bytes: AtomicUsize::new(0),
            dropped: Arc::default(),
            untold: AtomicU64::new(0),
            is_json: AtomicBool::new(false),
            filter: OnceLock::new(),
        });
        let lines = Lines { out, state: state.clone(), is_torn: false };
        thread::Builder::new().name("log".into()).spawn(move || lines.write_all(&items))?;
        Ok(Self { queue, state })
    }

    /// Sets the format of lines. The default is text.
    pub fn set_format(&self, format: LineFormat) {
        self.state.is_json.store(format == LineFormat::Json, Ordering::Relaxed);
    }

    /// Writes the `tracing` events of the process to this log, down to `level`. A second call in the same
    /// process has no effect.
    pub fn subscribe(&self, level: Level) {
        let (filter, handle) = reload::Layer::new(filter(level));
        let registry = tracing_subscriber::registry().with(filter);
        let lines = tracing_subscriber::fmt::layer()
            // Otherwise formatting errors are printed with `eprintln!`, which may panic.
            .log_internal_errors(false)
            .with_writer(self.clone());
        let subscribed = match self.state.format() {
            LineFormat::Text => {
                registry.with(lines.with_ansi(io::stderr().is_terminal())).try_init()
            }
            LineFormat::Json => registry.with(lines.json()).try_init(),
        };
        if subscribed.is_ok() {
            let _ = self.state.filter.set(handle);
        }
    }

    /// Changes the level of the `tracing` events that are written. Has no effect before
    /// [`Self::subscribe`].
    pub fn set_level(&self, level: Level) {
        if let Some(filter) = self.state.filter.get() {
            // Fails only if the subscriber is gone, which lives as long as the process.
            let _ = filter.reload(self::filter(level));
        }
    }

    /// Writes the messages of panics to this log instead of directly to standard error.
    pub fn take_panics(&self) {
        let log = self.clone();
        panic::set_hook(Box::new(move |info| log.say_panic(info)));
    }

    fn say_panic(&self, info: &PanicHookInfo<'_>) {
        let current = thread::current();
        let name = current.name().unwrap_or("without a name");
        let why = info.payload_as_str().unwrap_or("no message");
        let place = info.location().map_or("?".to_owned(), ToString::to_string);
        let mut text = format!("thread {name} panicked at {place}: {why}");
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            text.push_str(&format!("\n{backtrace}"));
        }
        self.say(Level::ERROR, &text, &[]);
        if name == "main" {
            // The process may end before the log's thread runs.
            self.flush(FLUSH_MAX);
        }
    }

    /// Logs a line regardless of the configured level: for the start of the process and the reason of its
    /// end. `fields` appear in JSON only.
    pub fn say(&self, level: Level, message: &str, fields: &[(&str, Value)]) {
        self.put(&self.state.line(level, message, fields));
    }

    /// Returns the counter of lines dropped since the start of the process.
    pub fn lines_dropped(&self) -> Arc<AtomicU64> {
        self.state.dropped.clone()
    }

    /// Waits until the queued lines are written, but no longer than `within`.
    pub fn flush(&self, within: Duration) {
        let end = Instant::now() + within;
        let (done, is_done) = bounded(1);
        if self.queue.send_deadline(LogItem::Flush(done), end).is_ok() {
            let _ = is_done.recv_deadline(end);
        }
    }

    fn put(&self, line: &[u8]) {
        let bytes = self.state.bytes.fetch_add(line.len(), Ordering::Relaxed) + line.len();
        let has_room = bytes <= BYTES_MAX && !self.queue.is_full();
        if !has_room || self.queue.try_send(LogItem::Line(line.into())).is_err() {
            self.state.bytes.fetch_sub(line.len(), Ordering::Relaxed);
            self.state.drop_line();
        }
    }
}

impl<'a> MakeWriter<'a> for LogQueue {
    type Writer = LogWriter<'a>;

    fn make_writer(&'a self) -> LogWriter<'a> {
        LogWriter(self)
    }
}

/// A writer for `tracing_subscriber`, which writes one whole line per call. Writing never fails.
#[derive(Debug)]
pub struct LogWriter<'a>(&'a LogQueue);

impl Write for LogWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl LogState {
    fn format(&self) -> LineFormat {
        if self.is_json.load(Ordering::Relaxed) { LineFormat::Json } else { LineFormat::Text }
    }

    fn drop_line(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        self.untold.fetch_add(1, Ordering::Relaxed);
    }

    fn line(&self, level: Level, message: &str, fields: &[(&str, Value)]) -> Vec<u8> {
        match self.format() {
            LineFormat::Text => format!("gridcast: {message}\n").into(),
            LineFormat::Json => json_line(level, message, fields),
        }
    }
}

/// Returns a filter that lets pass what is at least as severe as `level`, and all lines of the access log.
fn filter(level: Level) -> Targets {
    Targets::new()
        .with_default(LevelFilter::from_level(level))
        .with_target(ACCESS_LOG_TARGET, LevelFilter::INFO)
}

/// Formats a line like `tracing_subscriber`'s JSON format.
fn json_line(level: Level, message: &str, fields: &[(&str, Value)]) -> Vec<u8> {
    let mut time = String::new();
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    let mut said = Map::new();
    said.insert("message".into(), message.into());
    said.extend(fields.iter().map(|(name, value)| ((*name).into(), value.clone())));
    let said = Value::from(said);
    format!(
        "{{\"timestamp\":\"{time}\",\"level\":\"{level}\",\"fields\":{said},\"target\":\"gridcast\"}}\n"
    )
    .into()
}

/// The state of the writing thread.
struct Lines<W> {
    out: W,
    state: Arc<LogState>,
    // The last line was written only partly.
    is_torn: bool,
}

impl<W: Write> Lines<W> {
    fn write_all(mut self, items: &Receiver<LogItem>) {
        for item in items {
            match item {
                LogItem::Line(line) => {
                    if !self.write(&line) {
                        self.state.drop_line();
                    }
                    self.state.bytes.fetch_sub(line.len(), Ordering::Relaxed);
                    if items.is_empty() {
                        self.tell_lost();
                    }
                }
                LogItem::Flush(done) => {
                    self.tell_lost();
                    // Whoever waited may have given up.
                    let _ = done.send(());
                }
            }
        }
    }

    /// Writes how many lines were lost, if any. Tries again later if this line cannot be written.
    fn tell_lost(&mut self) {
        let lost = self.state.untold.swap(0, Ordering::Relaxed);
        if lost == 0 {
            return;
        }
        let message = format!("{lost} log lines were lost before this one");
        let line = self.state.line(Level::WARN, &message, &[("lines", lost.into())]);
        if !self.write(&line) {
            self.state.untold.fetch_add(lost, Ordering::Relaxed);
        }
    }

    /// Writes one line. Returns false if it was not written completely.
    fn write(&mut self, line: &[u8]) -> bool {
        if self.is_torn && self.out.write_all(b"\n").is_err() {
            return false;
        }
        self.is_torn = false;
        let mut rest = line;
        while !rest.is_empty() {
            match self.out.write(rest) {
                Ok(written @ 1..) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => {
                    self.is_torn = rest.len() < line.len();
                    return false;
                }
            }
        }
        true
    }
}

/// Standard error without the lock of the standard library, whose holder may block forever.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stderr = rustix::stdio::stderr();
        loop {
            match rustix::io::write(stderr, bytes) {
                // Another process that shares the open file may have made it non-blocking.
                Err(rustix::io::Errno::AGAIN) => {
                    poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], None)?;
                }
                written => return Ok(written?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes the output of a command to standard output.
///
/// # Errors
/// The write fails: the reader is gone, or the disk is full.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A sink that takes bytes only while it has some allowed, waits for them to be, or refuses.
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<SinkState>>);

    #[derive(Default)]
    struct SinkState {
        taken: Vec<u8>,
        // Bytes that it takes before it refuses.
        room: usize,
    }

    impl Sink {
        fn with_room(room: usize) -> Self {
            let sink = Self::default();
            sink.0.lock().unwrap().room = room;
            sink
        }

        fn set_room(&self, room: usize) {
            self.0.lock().unwrap().room = room;
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().taken.clone()).unwrap()
        }
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut state = self.0.lock().unwrap();
            let taken = bytes.len().min(state.room);
            if taken == 0 {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            state.room -= taken;
            state.taken.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A sink that stands still until its sender is gone, and then takes everything.
    struct Blocked(Receiver<()>, Sink);

    impl Write for Blocked {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            self.1.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    fn dropped(log: &LogQueue) -> u64 {
        log.lines_dropped().load(Ordering::Relaxed)
    }

    #[test]
    fn lines_that_a_full_sink_refused_are_counted_and_told_of_once_it_takes_lines_again() {
        let sink = Sink::with_room(usize::MAX);
        let log = LogQueue::to(sink.clone()).unwrap();
        log.say(Level::INFO, "first", &[]);
        log.flush(LONG);
        // A part of the second line fits.
        sink.set_room(5);
        log.say(Level::INFO, "second", &[]);
        log.say(Level::INFO, "third", &[]);
        log.flush(LONG);
        assert_eq!(dropped(&log), 2);
        sink.set_room(usize::MAX);
        log.say(Level::INFO, "fourth", &[]);
        log.flush(LONG);
        let text = "gridcast: first\ngridc\ngridcast: fourth\n\
                    gridcast: 2 log lines were lost before this one\n";
        assert_eq!((sink.text().as_str(), dropped(&log)), (text, 2));
    }

    #[test]
    fn a_sink_that_stands_still_costs_the_lines_beyond_the_queue_and_nobody_waits() {
        let sink = Sink::with_room(usize::MAX);
        let (unblock, blocked) = bounded::<()>(0);
        let log = LogQueue::to(Blocked(blocked, sink.clone())).unwrap();
        let lines = LINES_MAX as u64 + 100;
        (0..lines).for_each(|number| log.say(Level::INFO, &number.to_string(), &[]));
        // The thread holds at most one.
        let lost = dropped(&log);
        assert!((99..=100).contains(&lost), "{lost}");
        log.flush(Duration::ZERO);
        drop(unblock);
        log.flush(LONG);
        let text = sink.text();
        assert!(text.starts_with("gridcast: 0\ngridcast: 1\n"));
        assert!(text.ends_with(&format!("gridcast: {lost} log lines were lost before this one\n")));
        assert_eq!(text.lines().count() as u64, lines - lost + 1);
    }

    #[test]
    fn the_queue_is_bounded_in_bytes() {
        let sink = Sink::with_room(usize::MAX);
        let (unblock, blocked) = bounded::<()>(0);
        let log = LogQueue::to(Blocked(blocked, sink.clone())).unwrap();
        let long = "x".repeat(BYTES_MAX / 4);
        (0..10).for_each(|_| log.say(Level::INFO, &long, &[]));
        assert_eq!(dropped(&log), 7);
        log.say(Level::INFO, "a short one has room", &[]);
        assert_eq!(dropped(&log), 7);
        drop(unblock);
        log.flush(LONG);
        assert_eq!(log.state.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn in_json_each_line_is_one_object_whatever_it_says() {
        let sink = Sink::with_room(usize::MAX);
        let log = LogQueue::to(sink.clone()).unwrap();
        log.set_format(LineFormat::Json);
        log.say(Level::ERROR, "a \"quote\"\nand a line end", &[("mesh", "127.0.0.1:1".into())]);
        log.flush(LONG);
        let text = sink.text();
        let [line] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["level"], "ERROR");
        assert_eq!(line["fields"]["message"], "a \"quote\"\nand a line end");
        assert_eq!(line["fields"]["mesh"], "127.0.0.1:1");
        assert!(line["timestamp"].as_str().unwrap().ends_with('Z'));
    }
}
