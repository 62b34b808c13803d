//! Prevents client ids from repeating across restarts of a node.
//!
//! Ids contain a time in milliseconds, and the clock may step back while a node is down. A node
//! therefore keeps a record: ids up to this time may be in use. A new run starts above the record of
//! the run before. A thread raises the record ahead of the ids; no shard waits for it.
//!
//! There is one record per node id. Several processes with the same node id and user may share it: each
//! starts above the record and only ever raises it. After a process was stopped, its thread raises the
//! record as soon as it runs again.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::address::{AHEAD_MS_MAX, NodeId, UNIX_MS_MAX};

/// The most bytes of a record that are read. A valid record is shorter.
const RECORD_BYTES_MAX: u64 = 128;

/// How long to wait for the lock of a record. Other processes hold it only during a write.
const LOCK_MAX: Duration = Duration::from_secs(1);

/// The time between two attempts to take the lock.
const LOCK_LOOK: Duration = Duration::from_millis(2);

/// Where records are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordPlace {
    /// A directory on a disk. The record is synced and survives a power failure.
    Disk(PathBuf),
    /// A directory in memory, created for this user. The record survives the process, but not a reboot.
    Memory(PathBuf),
}

impl RecordPlace {
    /// Returns the default place, in memory.
    pub fn in_memory() -> Self {
        let user = rustix::process::geteuid().as_raw();
        Self::Memory(format!("/dev/shm/gridcast-{user}").into())
    }

    fn directory(&self) -> &Path {
        match self {
            Self::Disk(directory) | Self::Memory(directory) => directory,
        }
    }

    /// Returns how far the record is ahead of the ids, in milliseconds, and how often it is written.
    /// Each start skips as many milliseconds of ids.
    fn pace(&self) -> (u64, Duration) {
        match self {
            Self::Disk(_) => (30_000, Duration::from_secs(10)),
            Self::Memory(_) => (3000, Duration::from_secs(1)),
        }
    }

    /// Creates the directory if it does not exist. Refuses a directory in memory that belongs to another
    /// user or is accessible to others: everybody may create directories there.
    fn prepare(&self) -> io::Result<()> {
        let mut builder = DirBuilder::new();
        let Self::Memory(directory) = self else {
            return builder.recursive(true).mode(0o750).create(self.directory());
        };
        match builder.mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let metadata = directory.symlink_metadata()?;
        let is_ours = metadata.uid() == rustix::process::geteuid().as_raw();
        if !metadata.is_dir() || !is_ours || metadata.mode() & 0o077 != 0 {
            return Err(io::Error::other("not a directory of this user alone"));
        }
        Ok(())
    }
}

/// A reservation of client ids for this run of the node. The record is raised until this is dropped.
#[derive(Debug)]
pub struct Reservation {
    /// The first time to use in ids, in Unix milliseconds: later than any id of an earlier run, and not
    /// earlier than the clock.
    pub first_unix_ms: u64,
    // Dropping the sender ends the thread.
    _stop: mpsc::Sender<()>,
}

/// Reserves ids for a run of the node that starts at `unix_ms`.
///
/// # Errors
/// The record cannot be kept. The error contains its path.
pub fn reserve(place: RecordPlace, node: NodeId, unix_ms: u64) -> io::Result<Reservation> {
    let path = place.directory().join(format!("ids-{}", node.number()));
    let with_path =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let start = Instant::now();
    let (ahead_ms, every) = place.pace();
    let mut record =
        IdRecord { path: path.clone(), is_synced: matches!(place, RecordPlace::Disk(_)) };
    let mut first_unix_ms = unix_ms;
    place
        .prepare()
        .and_then(|()| {
            record.raise(|used_ms| {
                first_unix_ms = used_ms.map_or(unix_ms, |used_ms| unix_ms.max(used_ms + 1));
                first_unix_ms + AHEAD_MS_MAX + ahead_ms
            })
        })
        .map_err(with_path)?;
    let (stop, stopped) = mpsc::channel::<()>();
    let renew = move || {
        let mut is_failing = false;
        while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(every) {
            let until_ms =
                first_unix_ms + start.elapsed().as_millis() as u64 + AHEAD_MS_MAX + ahead_ms;
            let renewed = record.raise(|_| until_ms);
            record.report(&renewed, &mut is_failing);
        }
    };
    thread::Builder::new().name("ids".into()).spawn(renew)?;
    Ok(Reservation { first_unix_ms, _stop: stop })
}

struct IdRecord {
    path: PathBuf,
    is_synced: bool,
}

impl IdRecord {
    /// Raises the record to the result of `until`, which gets its current value. Never lowers it.
    fn raise(&mut self, until: impl FnOnce(Option<u64>) -> u64) -> io::Result<()> {
        // Opened each time, because the file may have been removed. Symbolic links are not followed.
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&self.path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        lock(&file)?;
        let used_ms = self.read(&mut file)?;
        let until_ms = until(used_ms);
        if used_ms.is_some_and(|used_ms| used_ms >= until_ms) {
            return Ok(());
        }
        let text = text(until_ms);
        file.write_all_at(text.as_bytes(), 0)?;
        file.set_len(text.len() as u64)?;
        if self.is_synced { file.sync_data() } else { Ok(()) }
    }

    /// Reads the record. Returns `None` for a new file, and for an invalid record, which is logged and
    /// replaced.
    fn read(&self, file: &mut File) -> io::Result<Option<u64>> {
        let mut bytes = Vec::new();
        file.take(RECORD_BYTES_MAX).read_to_end(&mut bytes)?;
        let used_ms = parse(&bytes);
        if used_ms.is_none() && !bytes.is_empty() {
            let path = self.path.display();
            tracing::warn!("{path} is not a record of client ids and is replaced: ids may repeat");
        }
        Ok(used_ms)
    }

    /// Logs once when the record can no longer be kept, and once when it can again.
    fn report(&self, renewed: &io::Result<()>, is_failing: &mut bool) {
        let path = self.path.display();
        match renewed {
            Err(error) if !*is_failing => tracing::warn!(
                "{path}: {error}: client ids may repeat after the next start if the clock is set \
                 back before it"
            ),
            Ok(()) if *is_failing => tracing::info!("{path}: client ids are recorded again"),
            _ => {}
        }
        *is_failing = renewed.is_err();
    }
}

/// Locks a file. The lock is released when the file is closed.
fn lock(file: &File) -> io::Result<()> {
    let end = Instant::now() + LOCK_MAX;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < end => thread::sleep(LOCK_LOOK),
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::other("another process holds its lock"));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// Formats a record. The time appears twice, so that a partial write is recognised as invalid.
fn text(until_ms: u64) -> String {
    format!("gridcast ids up to {until_ms:020} Unix ms, {until_ms:020}\n")
}

fn parse(record: &[u8]) -> Option<u64> {
    let record = str::from_utf8(record).ok()?;
    let number = record.strip_prefix("gridcast ids up to ")?.get(..20)?;
    let until_ms = number.parse().ok().filter(|&until_ms| until_ms <= UNIX_MS_MAX)?;
    (record == text(until_ms)).then_some(until_ms)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const NODE: NodeId = NodeId::new(7).unwrap();
    const NOW: u64 = 1_800_000_000_000;
    const HOUR: u64 = 3_600_000;

    /// A temporary directory of one test, removed on drop.
    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            static FOLDERS: AtomicUsize = AtomicUsize::new(0);
            let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
            let name = format!("gridcast-ids-{}-{number}", std::process::id());
            let folder = std::env::temp_dir().join(name);
            fs::create_dir(&folder).unwrap();
            Self(folder)
        }

        fn disk(&self) -> RecordPlace {
            RecordPlace::Disk(self.0.join("new/data"))
        }

        fn memory(&self) -> RecordPlace {
            RecordPlace::Memory(self.0.join("memory"))
        }

        fn record(&self, place: &RecordPlace) -> PathBuf {
            place.directory().join("ids-7")
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn a_life_begins_above_all_that_an_earlier_one_may_have_given_out() {
        let folder = Folder::new();
        for place in [folder.disk(), folder.memory()] {
            let first = reserve(place.clone(), NODE, NOW).unwrap();
            assert_eq!(first.first_unix_ms, NOW);
            // The clock was set back, and the first did not say that it ended.
            let second = reserve(place.clone(), NODE, NOW - HOUR).unwrap();
            let ahead_ms = AHEAD_MS_MAX + place.pace().0;
            assert_eq!(second.first_unix_ms, NOW + ahead_ms + 1);
            let third = reserve(place.clone(), NODE, NOW + HOUR).unwrap();
            assert_eq!(third.first_unix_ms, NOW + HOUR);
            // Ids of another node are others.
            let other = reserve(place, NodeId::new(8).unwrap(), NOW).unwrap();
            assert_eq!(other.first_unix_ms, NOW);
        }
    }

    #[test]
    fn lives_that_begin_at_once_share_no_time() {
        let folder = Folder::new();
        let begin = |_| {
            let place = folder.memory();
            move || reserve(place, NODE, NOW).unwrap().first_unix_ms
        };
        let threads: Vec<_> = (0..32).map(begin).map(thread::spawn).collect();
        let mut firsts: Vec<u64> = threads.into_iter().map(|life| life.join().unwrap()).collect();
        firsts.sort_unstable();
        let ahead_ms = AHEAD_MS_MAX + folder.memory().pace().0;
        assert!(firsts.windows(2).all(|pair| pair[0] + ahead_ms < pair[1]), "{firsts:?}");
    }

    #[test]
    fn the_record_is_only_ever_raised_and_made_again_when_it_is_gone() {
        let folder = Folder::new();
        folder.disk().prepare().unwrap();
        let path = folder.record(&folder.disk());
        let mut record = IdRecord { path: path.clone(), is_synced: true };
        record.raise(|used_ms| used_ms.map_or(20, |_| unreachable!())).unwrap();
        record.raise(|_| 10).unwrap();
        assert_eq!(parse(&fs::read(&path).unwrap()), Some(20));
        record.raise(|_| 30).unwrap();
        assert_eq!(parse(&fs::read(&path).unwrap()), Some(30));
        fs::remove_file(&path).unwrap();
        record.raise(|_| 40).unwrap();
        assert_eq!(parse(&fs::read(&path).unwrap()), Some(40));
    }

    #[test]
    fn a_running_life_keeps_its_record_ahead() {
        let folder = Folder::new();
        let place = folder.memory();
        let life = reserve(place.clone(), NODE, NOW).unwrap();
        let path = folder.record(&place);
        let before = parse(&fs::read(&path).unwrap()).unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while parse(&fs::read(&path).unwrap()).is_none_or(|until_ms| until_ms == before) {
            assert!(Instant::now() < end, "it is not renewed");
            thread::yield_now();
        }
        drop(life);
    }

    #[test]
    fn what_is_no_record_is_replaced() {
        let folder = Folder::new();
        let place = folder.disk();
        place.prepare().unwrap();
        let path = folder.record(&place);
        let whole = text(NOW + HOUR);
        let torn = format!("{}{}", &whole[..30], &text(1)[30..]);
        for rubbish in [&whole[..40], &torn, "rubbish", &text(UNIX_MS_MAX + 1), &text(u64::MAX)] {
            fs::write(&path, rubbish).unwrap();
            assert_eq!(reserve(place.clone(), NODE, NOW).unwrap().first_unix_ms, NOW, "{rubbish}");
            assert!(parse(&fs::read(&path).unwrap()).is_some());
        }
        fs::write(&path, &whole).unwrap();
        assert_eq!(reserve(place, NODE, NOW).unwrap().first_unix_ms, NOW + HOUR + 1);
    }

    #[test]
    fn a_link_or_a_directory_that_others_may_write_is_refused() {
        let folder = Folder::new();
        let (place, victim) = (folder.memory(), folder.0.join("victim"));
        fs::write(&victim, "precious").unwrap();
        let refused = |why: &str| {
            let error = reserve(place.clone(), NODE, NOW).unwrap_err().to_string();
            assert!(error.contains("/ids-7: ") && error.contains(why), "{error}");
        };
        std::os::unix::fs::symlink(&folder.0, place.directory()).unwrap();
        refused("not a directory of this user alone");
        fs::remove_file(place.directory()).unwrap();
        DirBuilder::new().mode(0o777).create(place.directory()).unwrap();
        refused("not a directory of this user alone");
        fs::remove_dir(place.directory()).unwrap();
        place.prepare().unwrap();
        std::os::unix::fs::symlink(&victim, folder.record(&place)).unwrap();
        refused("symbolic links");
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
    }
}
