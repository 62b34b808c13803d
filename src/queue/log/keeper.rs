//! A log in use: takes the changes of the topic's home, says what to write and to read, and gathers news for the home.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Damage, Log, NewlyStored, Read, Reader, Task};
use crate::message::{
    EventsRead, FailedTries, FromLog, GroupIndex, LogChange, LogFacts, LogNews, ToLog,
};

/// The log of a topic, between the topic's home and the files.
#[derive(Debug)]
pub struct LogKeeper {
    topic: Arc<str>,
    log: Log,
    // By the indices of the groups.
    readers: Vec<Reader>,
    // Each group at most once: its home waits for the answer.
    to_read: VecDeque<GroupIndex>,
    // Groups whose consumers have changed, which is not written yet. Each at most once, as above.
    to_mark: Vec<GroupIndex>,
    news: LogNews,
}

impl LogKeeper {
    /// Keeps a log whose groups are set.
    pub fn new(topic: Arc<str>, log: Log) -> Self {
        let readers = (0..log.groups.len()).map(|_| Reader::default()).collect();
        let (to_read, to_mark) = (VecDeque::new(), Vec::new());
        let recovered = log.delayed().cloned().collect();
        let news = LogNews { recovered, ..LogNews::default() };
        Self { topic, log, readers, to_read, to_mark, news }
    }

    /// The log.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The state of the log, for the home of the topic.
    pub fn facts(&self) -> LogFacts {
        let groups = self.log.groups.iter();
        let first = |group: &super::LogGroup| group.settled.next_unsettled(Default::default());
        LogFacts {
            id: self.log.id(),
            stored: self.log.stored(),
            next_delayed: self.log.delayed.next(),
            held: self.log.held(),
            unsettled: groups.map(first).collect(),
        }
    }

    /// Takes changes of the home.
    pub fn handle_changes(&mut self, message: ToLog) {
        for change in message.changes {
            self.handle_change(message.unix_start_us, change);
        }
    }

    fn handle_change(&mut self, unix_start_us: u64, change: LogChange) {
        match change {
            LogChange::Add { client, since_us, frame } => {
                let unix_ms = (unix_start_us + since_us) / 1000;
                self.log.append(client, unix_ms, frame.payload());
            }
            LogChange::AddDelayed { client, due_us, frame } => {
                let due_ms = (unix_start_us + due_us).div_ceil(1000);
                self.log.append_delayed(client, due_ms, frame);
            }
            LogChange::AddDue { number, since_us } => {
                self.log.append_due(number, (unix_start_us + since_us) / 1000);
            }
            LogChange::Settle { group, number, bytes } => {
                if self.log.settle(group, number, bytes) {
                    self.news.freed.messages += 1;
                    self.news.freed.bytes += bytes;
                }
            }
            LogChange::Retry { group, number, tries, until_us } => {
                let until_ms = if until_us == 0 { 0 } else { (unix_start_us + until_us) / 1000 };
                self.log.note_retry(group, number, FailedTries { tries, until_ms });
            }
            LogChange::Consume { group, is_consumed, below } => {
                self.log.set_consumed(group, is_consumed, below);
                self.to_mark.push(group);
            }
            LogChange::Read { group, from } => {
                self.readers[usize::from(group.0)].skip_to(from);
                self.to_read.push_back(group);
            }
        }
    }

    /// The next change of the files. See [`Log::poll_task`].
    pub fn poll_task(&mut self) -> Option<Task<'_>> {
        self.log.poll_task()
    }

    /// Notes that the task of the last [`Self::poll_task`] was carried out.
    pub fn handle_done(&mut self) {
        let NewlyStored { events, delayed } = self.log.handle_done();
        self.news.stored += events;
        self.news.stored_delayed += delayed;
    }

    /// Notes that the task of the last [`Self::poll_task`] has failed. It is tried again.
    pub fn handle_failed(&mut self) {
        self.log.handle_failed();
    }

    /// The next part of a file to read. [`Self::handle_read`] or [`Self::handle_unread`] follows.
    pub fn poll_read(&mut self) -> Option<Read> {
        while let Some(&group) = self.to_read.front() {
            let reader = &mut self.readers[usize::from(group.0)];
            if let Some(read) = self.log.poll_read(group, reader) {
                return Some(read);
            }
            let next = reader.next();
            self.to_read.pop_front();
            self.news.read.push(EventsRead { group, events: Vec::new(), next });
        }
        None
    }

    /// Takes the bytes of the last [`Self::poll_read`].
    ///
    /// # Errors
    /// The bytes are not what was written. The group stays where it is: the file is read again later.
    pub fn handle_read(&mut self, bytes: &[u8]) -> Result<(), Damage> {
        let Some(group) = self.to_read.pop_front() else { return Ok(()) };
        let reader = &mut self.readers[usize::from(group.0)];
        let read = self.log.handle_read(group, reader, bytes);
        let next = reader.next();
        match read {
            Ok(events) if !events.is_empty() => {
                self.news.read.push(EventsRead { group, events, next });
            }
            // The group has settled what was read. The other groups go first.
            Ok(_) => self.to_read.push_back(group),
            Err(damage) => {
                self.to_read.push_back(group);
                return Err(damage);
            }
        }
        Ok(())
    }

    /// Notes that the file of the last [`Self::poll_read`] could not be read. It is read again later.
    pub fn handle_unread(&mut self) {
        if let Some(group) = self.to_read.pop_front() {
            self.to_read.push_back(group);
        }
    }

    /// Whether a group waits for events.
    pub fn has_reads(&self) -> bool {
        !self.to_read.is_empty()
    }

    /// The news for the topic's home.
    pub fn poll_news(&mut self) -> Option<FromLog> {
        if !self.to_mark.is_empty() && self.log.is_written() {
            self.news.marked.append(&mut self.to_mark);
        }
        let news = std::mem::take(&mut self.news);
        (!news.is_empty()).then(|| FromLog { topic: self.topic.clone(), news })
    }
}
