//! Checks the files of all topics in a data directory, while no node uses it. Changes nothing.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use super::files::{DataLock, OpenError, read_at, recover, segments};
use crate::protocol::sink::decoded_name;
use crate::queue::log::{LogId, Recovered, SegmentNumber, check_segment};

/// The state of the topics in a data directory.
#[derive(Debug, Default)]
pub struct VerifiedTopics {
    /// The topics, in the order of their names.
    pub topics: Vec<TopicState>,
}

/// The state of a topic's files.
#[derive(Debug, Default)]
pub struct TopicState {
    /// The name of the topic.
    pub name: String,
    /// The number of files.
    pub files: usize,
    /// The size of the files.
    pub bytes: u64,
    /// Events that not every group has settled, and delayed events.
    pub held: usize,
    /// Delayed events, which no group has got.
    pub delayed: usize,
    /// The groups, and the events that each has not settled.
    pub groups: Vec<(String, u64)>,
    /// Bytes at the end that were being written when the node ended. The next start cuts them off.
    pub torn_bytes: u64,
    /// The damaged places, each with its file and offset.
    pub faults: Vec<String>,
}

impl VerifiedTopics {
    /// Whether all files are what was written.
    pub fn is_whole(&self) -> bool {
        self.topics.iter().all(|topic| topic.faults.is_empty())
    }
}

impl fmt::Display for VerifiedTopics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: usize = self.topics.iter().map(|topic| topic.faults.len()).sum();
        for topic in &self.topics {
            topic.fmt(f)?;
        }
        write!(f, "{} topics, {faults} faults", self.topics.len())
    }
}

impl fmt::Display for TopicState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, files, bytes, held, delayed, groups, torn_bytes, faults } = self;
        writeln!(f, "{name}: {files} files, {bytes} bytes, {held} events held")?;
        if *delayed > 0 {
            writeln!(f, "  {delayed} of them delayed")?;
        }
        for (group, backlog) in groups {
            writeln!(f, "  {group}: {backlog} events")?;
        }
        if *torn_bytes > 0 {
            writeln!(
                f,
                "  {torn_bytes} bytes of a write that was not completed, which is no fault"
            )?;
        }
        faults.iter().try_for_each(|fault| writeln!(f, "  fault: {fault}"))
    }
}

/// Checks all topics in a data directory.
///
/// # Errors
/// A node uses the directory, or it cannot be read.
pub fn verify(data: &Path) -> Result<VerifiedTopics, OpenError> {
    let directory = data.join("topics");
    let failed = |error: io::Error| OpenError(format!("{}: {error}", directory.display()));
    let entries = fs::read_dir(&directory).map_err(failed)?;
    let _lock = DataLock::take_existing(data)?;
    let mut verification = VerifiedTopics::default();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_str().and_then(decoded_name);
        if let Some(name) = name.filter(|_| entry.path().is_dir()) {
            verification.topics.push(topic_state(name, &entry.path()).map_err(failed)?);
        }
    }
    verification.topics.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(verification)
}

fn topic_state(name: String, directory: &Path) -> io::Result<TopicState> {
    let files = segments(directory)?;
    let bytes = files.iter().map(|(_, bytes)| bytes).sum();
    let mut state = TopicState { name, files: files.len(), bytes, ..TopicState::default() };
    let mut checked: Vec<SegmentNumber> = files.iter().map(|(segment, _)| *segment).collect();
    checked.sort_unstable();
    let recovered = recover(&state.name, LogId(0), &files, |read| {
        read_at(&fs::File::open(directory.join(read.segment.file_name()))?, read)
    })?;
    match recovered {
        Ok(Recovered { log, torn_bytes, .. }) => {
            // The end of the last file was checked by the recovery.
            checked.pop();
            state.torn_bytes = torn_bytes;
            state.held = log.held().messages;
            state.delayed = log.delayed().len();
            let name = |name: Option<&str>| name.unwrap_or("default group").to_owned();
            let groups = log.group_facts();
            state.groups =
                groups.map(|group| (name(group.name.as_deref()), group.backlog)).collect();
        }
        Err(damage) => {
            checked.pop();
            state.faults.push(damage.to_string());
        }
    }
    for segment in checked {
        let bytes = fs::read(directory.join(segment.file_name()))?;
        if let Err(damage) = check_segment(&state.name, segment, &bytes) {
            state.faults.push(damage.to_string());
        }
    }
    Ok(state)
}
