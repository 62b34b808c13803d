//! The thread that keeps the logs of topics on disk: plain files, one thread for all logs of the node.
//!
//! Shards send changes through a bounded channel and never wait for a disk. The thread takes all changes that have
//! arrived, writes them, syncs each changed log once, and tells the homes of the topics. What arrives during a sync
//! shares the next one.
//!
//! - `files.rs`: the directory and the files of one log. `verify.rs`: checks all files.

mod files;
mod verify;

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, TrySendError, bounded};

use super::bus::NodePort;
use super::outlet::Sender;
use crate::address::ShardId;
use crate::message::{FromNode, LogFacts, ToLog};
use crate::queue::log::LogKeeper;
use crate::shard::node_state::DiskState;
use files::LogFiles;
pub use files::{DataLock, OpenError};
pub use verify::{TopicState, VerifiedTopics, verify};

/// Messages of shards that the thread has not taken yet. A shard keeps what does not fit.
const INBOX_MESSAGES: usize = 4096;

/// Messages that the thread takes before it writes.
const MESSAGES_PER_ROUND: usize = 4096;

/// How long acknowledgements wait for an event to share its sync. A crash meanwhile forgets them: their events are
/// handed out again.
const ACK_DELAY: Duration = Duration::from_millis(50);

/// The pause after a file could not be written or read.
const RETRY: Duration = Duration::from_millis(250);

/// The time that the end of the node gives to a failing disk.
const END_MAX: Duration = Duration::from_secs(2);

/// Sends changes of a shard to the thread. Gives the message back if there is no room at present.
pub type ToLogSender = Sender<ToLog>;

/// The end of the thread at which messages of shards arrive.
#[derive(Debug)]
pub struct LogInbox(Receiver<ToLog>);

/// Returns the two ends of the way from the shards to the thread. If the [`LogInbox`] is dropped, messages are dropped.
pub fn channel() -> (ToLogSender, LogInbox) {
    let (sender, inbox) = bounded(INBOX_MESSAGES);
    let send = move |_: ShardId, message| match sender.try_send(message) {
        Err(TrySendError::Full(message)) => Err(message),
        Ok(()) | Err(TrySendError::Disconnected(_)) => Ok(()),
    };
    (Arc::new(send), LogInbox(inbox))
}

/// A topic on disk.
#[derive(Clone, Debug)]
pub struct DiskTopic {
    /// The name.
    pub name: Arc<str>,
    /// The groups of the log.
    pub groups: Vec<Option<Arc<str>>>,
    /// The home of the topic.
    pub home: ShardId,
}

/// The logs of a node, recovered and not in use yet.
#[derive(Debug)]
pub struct Logs {
    _lock: DataLock,
    logs: Vec<OpenLog>,
}

/// One log.
#[derive(Debug)]
struct OpenLog {
    keeper: LogKeeper,
    files: LogFiles,
    home: ShardId,
    // When acknowledgements that wait are written.
    write_at: Option<Instant>,
    // When what has failed is tried again.
    retry_at: Option<Instant>,
    is_failing: bool,
}

impl Logs {
    /// Opens the logs of these topics in the data directory, and recovers them.
    ///
    /// # Errors
    /// Another process has the directory, a log is damaged, or a file cannot be used. The error names it.
    pub fn open(data: &Path, topics: Vec<DiskTopic>, unix_ms: u64) -> Result<Self, OpenError> {
        let lock = DataLock::take(data)?;
        let open = |topic: DiskTopic| {
            let (files, log) = LogFiles::open(lock.topics(), &topic.name, &topic.groups, unix_ms)?;
            let keeper = LogKeeper::new(topic.name, log);
            let mut log = OpenLog {
                keeper,
                files,
                home: topic.home,
                write_at: None,
                retry_at: None,
                is_failing: false,
            };
            log.write(&DiskState::default()).map_err(|error| log.files.error(&error))?;
            Ok(log)
        };
        let logs = topics.into_iter().map(open).collect::<Result<_, OpenError>>()?;
        Ok(Self { _lock: lock, logs })
    }

    /// The state of each log, for the homes of the topics.
    pub fn facts(&self) -> HashMap<Arc<str>, LogFacts> {
        let facts = |log: &OpenLog| (log.keeper.log().topic().into(), log.keeper.facts());
        self.logs.iter().map(facts).collect()
    }

    /// Starts the thread. It ends once it is stopped, or all senders of `inbox` are dropped, and everything is written.
    ///
    /// # Errors
    /// The thread cannot be created.
    pub fn start(
        self,
        inbox: LogInbox,
        control: NodePort,
        state: Arc<DiskState>,
        failures: impl Fn(String) + Send + 'static,
    ) -> io::Result<RunningLogs> {
        let names = self.logs.iter().enumerate();
        let by_topic = names.map(|(at, log)| (log.keeper.log().topic().into(), at)).collect();
        let thread = DiskThread { logs: self, by_topic, control, state };
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let work = move || {
            let run = std::panic::AssertUnwindSafe(|| thread.run(&inbox, &stopped));
            if std::panic::catch_unwind(run).is_err() {
                failures("topics on disk: panicked; see the message above".into());
            }
        };
        let thread = std::thread::Builder::new().name("disk".into()).spawn(work)?;
        Ok(RunningLogs { thread, stop })
    }
}

/// A running thread.
#[derive(Debug)]
pub struct RunningLogs {
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
}

impl RunningLogs {
    /// Ends the thread after it has written what has arrived. The shards have ended.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Release);
        // A panic was reported already.
        let _ = self.thread.join();
    }
}

struct DiskThread {
    logs: Logs,
    by_topic: HashMap<Arc<str>, usize>,
    control: NodePort,
    state: Arc<DiskState>,
}

impl DiskThread {
    fn run(mut self, inbox: &LogInbox, stopped: &AtomicBool) {
        self.state.note_bytes(self.logs.logs.iter().map(|log| log.keeper.log().file_bytes()));
        loop {
            // Read first: what was sent before the stop is in the channel then.
            let is_stopped = stopped.load(Ordering::Acquire);
            let is_stopped = self.take(inbox) || is_stopped;
            let now = Instant::now();
            for log in &mut self.logs.logs {
                log.work(now, &self.state, is_stopped);
                if let Some(news) = log.keeper.poll_news() {
                    self.control.tell(log.home, FromNode::Log(Box::new(news)));
                }
            }
            self.state.note_bytes(self.logs.logs.iter().map(|log| log.keeper.log().file_bytes()));
            let failing = self.logs.logs.iter().any(|log| log.is_failing && !log.files.is_full());
            self.state.is_failing.store(failing, Ordering::Relaxed);
            if is_stopped && inbox.0.is_empty() {
                return self.end();
            }
        }
    }

    /// Waits for messages, and takes those that have arrived. Returns true if no more can come.
    fn take(&mut self, inbox: &LogInbox) -> bool {
        let now = Instant::now();
        let due = self.logs.logs.iter().filter_map(|log| log.next_turn(now)).min();
        // The flag of the end is looked at as often.
        let wait = due.map_or(ACK_DELAY, |due| due.saturating_duration_since(now).min(ACK_DELAY));
        match inbox.0.recv_timeout(wait) {
            Ok(message) => self.handle(message),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return true,
        }
        for message in inbox.0.try_iter().take(MESSAGES_PER_ROUND) {
            self.handle(message);
        }
        false
    }

    fn handle(&mut self, message: ToLog) {
        if let Some(&at) = self.by_topic.get(&message.topic) {
            self.logs.logs[at].keeper.handle_changes(message);
        }
    }

    /// Writes what is left, for a limited time if that fails.
    fn end(mut self) {
        let end = Instant::now() + END_MAX;
        for log in &mut self.logs.logs {
            while !log.keeper.log().is_written() && Instant::now() < end {
                if log.write(&self.state).is_err() {
                    std::thread::sleep(RETRY);
                }
            }
        }
    }
}

impl OpenLog {
    /// When the log has something to do without a message.
    fn next_turn(&self, now: Instant) -> Option<Instant> {
        match self.retry_at {
            Some(at) => Some(at),
            None if self.keeper.has_reads() => Some(now),
            None => self.write_at,
        }
    }

    /// Writes and reads what is due.
    fn work(&mut self, now: Instant, state: &DiskState, is_stopped: bool) {
        if self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        self.retry_at = None;
        if self.keeper.log().is_urgent() || is_stopped || self.write_at.is_some_and(|at| at <= now)
        {
            self.write_at = None;
            let written = self.write(state);
            self.note(now, state, written);
        } else if !self.keeper.log().is_written() {
            self.write_at.get_or_insert(now + ACK_DELAY);
        }
        if self.retry_at.is_none() {
            let read = self.read();
            self.note(now, state, read);
        }
    }

    /// Carries out tasks until there are none.
    fn write(&mut self, state: &DiskState) -> io::Result<()> {
        while let Some(task) = self.keeper.poll_task() {
            let start = Instant::now();
            match self.files.carry_out(&task) {
                Ok(()) => state.note_sync(start.elapsed()),
                Err(error) => {
                    self.keeper.handle_failed();
                    return Err(error);
                }
            }
            let before = self.keeper.log().stored().0;
            self.keeper.handle_done();
            state.note_stored(self.keeper.log().stored().0 - before);
        }
        Ok(())
    }

    /// Reads one part of a file.
    fn read(&mut self) -> io::Result<()> {
        let Some(read) = self.keeper.poll_read() else { return Ok(()) };
        match self.files.read(read) {
            Ok(bytes) => {
                self.keeper.handle_read(&bytes)?;
                Ok(())
            }
            Err(error) => {
                self.keeper.handle_unread();
                Err(error)
            }
        }
    }

    /// Logs the first of several errors, and their end.
    fn note(&mut self, now: Instant, state: &DiskState, result: io::Result<()>) {
        match result {
            Err(error) => {
                state.note_error();
                self.retry_at = Some(now + RETRY);
                self.files.set_full(&error);
                if !std::mem::replace(&mut self.is_failing, true) {
                    tracing::error!("{}: tried again until it works", self.files.error(&error));
                }
            }
            Ok(()) => {
                let has_work = !self.keeper.log().is_written() || self.keeper.has_reads();
                if self.is_failing && !has_work {
                    self.is_failing = false;
                    tracing::info!("{}: works again", self.files.name());
                }
            }
        }
    }
}
