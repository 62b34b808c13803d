//! The threads of the shards, each pinned to a core: with glommio's executor for io_uring, and without it
//! for epoll, because glommio itself needs io_uring.

use std::io;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::check::DriverKind;
use super::driver::{Driver, Parts};
use super::poller::Poller;
use super::ring::Ring;
use super::socket_io::SocketIo;
use super::watch::Summary;
use crate::address::ShardId;
use crate::shard::Shard;
use crate::shard::node_state::NodeState;
use crate::shard::settings::Settings;

/// Memory that glommio locks per core for file I/O, in bytes: the minimum, because no files are opened.
const IO_MEMORY: usize = 64 * 1024;

/// The thread of a shard. Ends with what the shard counted.
pub(super) enum ShardThread {
    Executor(ExecutorJoinHandle<io::Result<Summary>>),
    Plain(JoinHandle<io::Result<Summary>>),
}

impl ShardThread {
    /// Waits for the end of the thread.
    ///
    /// # Errors
    /// The shard has failed.
    pub(super) fn join(self) -> io::Result<Summary> {
        match self {
            Self::Executor(handle) => handle.join().map_err(io::Error::from)?,
            Self::Plain(handle) => handle
                .join()
                .map_err(|_| io::Error::other("a shard panicked; see the message above"))?,
        }
    }
}

/// All that a shard is started with.
pub(super) struct Start<F> {
    pub(super) core: usize,
    pub(super) settings: Arc<Settings>,
    pub(super) state: Arc<NodeState>,
    pub(super) parts: Parts,
    /// Gets the result of the start.
    pub(super) started: mpsc::Sender<Result<(), String>>,
    /// Gets the reason if the shard fails later.
    pub(super) failures: F,
}

impl<F: Fn(String) + Send + 'static> Start<F> {
    /// Starts the thread.
    ///
    /// # Errors
    /// The thread or its executor cannot be created.
    pub(super) fn spawn(self, driver: DriverKind) -> io::Result<ShardThread> {
        match driver {
            DriverKind::IoUring => LocalExecutorBuilder::new(Placement::Fixed(self.core))
                .name("shard")
                .io_memory(IO_MEMORY)
                .spawn(move || self.run_on_executor())
                .map(ShardThread::Executor)
                .map_err(io::Error::from),
            DriverKind::Epoll => std::thread::Builder::new()
                .name(format!("shard-{}", self.parts.number))
                .spawn(move || self.run_on_thread())
                .map(ShardThread::Plain),
        }
    }

    /// Runs the shard with io_uring, and glommio's own tasks between its turns.
    async fn run_on_executor(self) -> io::Result<Summary> {
        let (mut driver, report) = self.begin::<Ring>(DriverKind::IoUring)?;
        loop {
            match report(driver.step())? {
                Some(summary) => return Ok(summary),
                None => glommio::yield_if_needed().await,
            }
        }
    }

    /// Runs the shard with epoll.
    fn run_on_thread(self) -> io::Result<Summary> {
        pin(self.core)?;
        let (mut driver, report) = self.begin::<Poller>(DriverKind::Epoll)?;
        loop {
            if let Some(summary) = report(driver.step())? {
                return Ok(summary);
            }
        }
    }

    /// Creates the driver on the thread that is to run it, and tells whether it could. Also returns what
    /// reports a failed step.
    fn begin<I: SocketIo>(
        self,
        kind: DriverKind,
    ) -> io::Result<(Driver<I>, impl Fn(RunResult) -> RunResult)> {
        let Self { core, settings, state, parts, started, failures } = self;
        let number = parts.number;
        let make_shard = |now| Shard::new(ShardId(number as u8), &settings, state, now);
        let driver = Driver::new(make_shard, parts);
        // Fails only if another shard has failed to start.
        let _ = started.send(driver.as_ref().map(drop).map_err(|error| kind.explain(error)));
        let report = move |step: RunResult| {
            step.inspect_err(|error| failures(format!("shard {number} on core {core}: {error}")))
        };
        Ok((driver?, report))
    }
}

/// The result of a step: the summary once the shard has ended.
type RunResult = io::Result<Option<Summary>>;

/// Keeps the calling thread on a core.
fn pin(core: usize) -> io::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    Ok(sched_setaffinity(None, &cores)?)
}
