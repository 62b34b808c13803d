//! The directory and the files of one log, and the lock of the data directory.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use crate::protocol::sink::encoded_name;
use crate::queue::log::{Damage, Log, LogId, Read, Recovered, Recovery, SegmentNumber, Task};

/// The size at which the next segment is begun. The last one is read at the start of the node.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Why logs cannot be used, in one line that names the file.
#[derive(Debug)]
pub struct OpenError(pub String);

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The lock of a data directory's topics. One process has it.
#[derive(Debug)]
pub struct DataLock {
    // The lock ends with the file, also when the process is killed.
    _file: File,
    topics: PathBuf,
}

impl DataLock {
    /// Creates `topics` in the data directory if there is none, and locks it.
    ///
    /// # Errors
    /// Another process has the lock, or the directory cannot be used.
    pub fn take(data: &Path) -> Result<Self, OpenError> {
        let topics = data.join("topics");
        let path = topics.join("lock");
        let failed = |error: io::Error| OpenError(format!("{}: {error}", path.display()));
        create_directory(&topics).map_err(failed)?;
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o640);
        let file = file.open(&path).map_err(failed)?;
        Self::lock(topics, &path, file)
    }

    /// Locks a data directory that a node has used, and changes nothing. `None`: no node has used it.
    ///
    /// # Errors
    /// Another process has the lock, or the directory cannot be used.
    pub fn take_existing(data: &Path) -> Result<Option<Self>, OpenError> {
        let topics = data.join("topics");
        let path = topics.join("lock");
        match File::open(&path) {
            Ok(file) => Self::lock(topics, &path, file).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(OpenError(format!("{}: {error}", path.display()))),
        }
    }

    fn lock(topics: PathBuf, path: &Path, file: File) -> Result<Self, OpenError> {
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file, topics }),
            Err(TryLockError::WouldBlock) => Err(OpenError(format!(
                "{}: another process uses the topics in this directory",
                topics.display()
            ))),
            Err(TryLockError::Error(error)) => {
                Err(OpenError(format!("{}: {error}", path.display())))
            }
        }
    }

    /// The directory of the topics.
    pub fn topics(&self) -> &Path {
        &self.topics
    }
}

fn create_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o750).create(path)?;
    // The entries in the parents have to survive a crash too.
    for parent in path.ancestors().skip(1).take(2) {
        if let Ok(parent) = File::open(parent) {
            parent.sync_all()?;
        }
    }
    Ok(())
}

/// The files of one log.
#[derive(Debug)]
pub(super) struct LogFiles {
    directory: PathBuf,
    handle: File,
    // The file that is written to, and the one that was read last.
    writing: Option<(SegmentNumber, File)>,
    reading: Option<(SegmentNumber, File)>,
    is_full: bool,
}

impl LogFiles {
    /// Opens the log of a topic, and recovers it.
    pub(super) fn open(
        topics: &Path,
        topic: &str,
        groups: &[Option<Arc<str>>],
        unix_ms: u64,
    ) -> Result<(Self, Log), OpenError> {
        let directory = topics.join(encoded_name(topic));
        let failed = |error: io::Error| {
            OpenError(format!("topic {topic:?}: {}: {error}", directory.display()))
        };
        create_directory(&directory).map_err(failed)?;
        let handle = File::open(&directory).map_err(failed)?;
        let mut files = Self {
            directory: directory.clone(),
            handle,
            writing: None,
            reading: None,
            is_full: false,
        };
        let found = segments(&directory).map_err(failed)?;
        let recovered = recover(topic, LogId(unix_ms), &found, |read| files.read(read));
        let Recovered { mut log, torn_bytes, missing, .. } =
            recovered.and_then(|recovered| recovered.map_err(io::Error::from)).map_err(failed)?;
        if torn_bytes > 0 {
            tracing::info!(
                "topic {topic:?}: cut off {torn_bytes} bytes of a write that was not completed"
            );
        }
        if missing > 0 {
            tracing::warn!("topic {topic:?}: files with {missing} unsettled events are gone");
        }
        for group in log.set_groups(groups) {
            let name = group.as_deref().unwrap_or("default");
            tracing::warn!("topic {topic:?}: the group {name:?} is not configured, and forgotten");
        }
        Ok((files, log))
    }

    /// Carries out a change.
    pub(super) fn carry_out(&mut self, task: &Task<'_>) -> io::Result<()> {
        match *task {
            Task::Create(segment, bytes) => {
                self.writing = None;
                let mut options = OpenOptions::new();
                let file = options.write(true).create(true).truncate(true).mode(0o640);
                let file = file.open(self.path(segment))?;
                file.write_all_at(bytes, 0)?;
                file.sync_all()?;
                self.handle.sync_all()?;
                self.writing = Some((segment, file));
            }
            Task::Append(segment, at, bytes) => {
                let file = self.file(segment)?;
                file.write_all_at(bytes, at)?;
                file.sync_data()?;
            }
            Task::Truncate(segment, length) => {
                let file = self.file(segment)?;
                file.set_len(length)?;
                file.sync_all()?;
            }
            Task::Remove(segment) => {
                self.reading.take_if(|(number, _)| *number == segment);
                match fs::remove_file(self.path(segment)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Returns the segment that is written to.
    fn file(&mut self, segment: SegmentNumber) -> io::Result<&File> {
        if self.writing.as_ref().is_none_or(|(number, _)| *number != segment) {
            let file = OpenOptions::new().write(true).open(self.path(segment))?;
            self.writing = Some((segment, file));
        }
        Ok(&self.writing.as_ref().expect("the file was just opened").1)
    }

    /// Reads a part of a file. Returns fewer bytes if the file ends earlier.
    pub(super) fn read(&mut self, read: Read) -> io::Result<Vec<u8>> {
        if self.reading.as_ref().is_none_or(|(number, _)| *number != read.segment) {
            self.reading = Some((read.segment, File::open(self.path(read.segment))?));
        }
        let (_, file) = self.reading.as_ref().expect("the file was just opened");
        read_at(file, read)
    }

    fn path(&self, segment: SegmentNumber) -> PathBuf {
        self.directory.join(segment.file_name())
    }

    /// Notes whether an error says that the disk is full.
    pub(super) fn set_full(&mut self, error: &io::Error) {
        let full = [Errno::NOSPC, Errno::DQUOT, Errno::FBIG];
        self.is_full = full.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
    }

    /// Whether the last error says that the disk is full.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    /// Says what cannot be used, and why.
    pub(super) fn error(&self, error: &io::Error) -> OpenError {
        OpenError(format!("{}: {error}", self.name()))
    }

    /// The path of the log.
    pub(super) fn name(&self) -> String {
        self.directory.display().to_string()
    }
}

/// Recovers a log from these files. Changes none of them. The inner error says what is damaged.
pub(super) fn recover(
    topic: &str,
    new: LogId,
    files: &[(SegmentNumber, u64)],
    mut read: impl FnMut(Read) -> io::Result<Vec<u8>>,
) -> io::Result<Result<Recovered, Damage>> {
    let mut recovery = Recovery::new(new, topic, SEGMENT_BYTES, files.iter().copied());
    while let Some(part) = recovery.poll_read() {
        if let Err(damage) = recovery.handle_read(&read(part)?) {
            return Ok(Err(damage));
        }
    }
    Ok(recovery.finish())
}

/// Reads a part of a file. Returns fewer bytes if the file ends earlier.
pub(super) fn read_at(file: &File, read: Read) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; read.length];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], read.at + filled as u64) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// The segments in a directory, and their sizes.
pub(super) fn segments(directory: &Path) -> io::Result<Vec<(SegmentNumber, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(SegmentNumber::of_file_name);
        if let Some(number) = number {
            found.push((number, entry.metadata()?.len()));
        }
    }
    Ok(found)
}
