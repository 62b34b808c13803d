//! The threads that carry links: that of the mesh alone, or several beside it.
//!
//! A link's packets are encrypted, decrypted, sent and acknowledged on one thread, and its lanes are read and
//! written there. With more threads than one, the thread of the mesh is left with the mesh itself, and with
//! receiving packets from the socket, which it hands to the threads of their links.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::{fs, io};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::metrics::MeshThreadReport;

/// The threads that carry links.
pub(super) struct Carriers {
    // The thread of the mesh. It carries links if there is no other.
    own: Arc<Carrier>,
    others: Vec<Beside>,
}

/// A thread that carries links.
#[derive(Debug)]
struct Carrier {
    runtime: Handle,
    // Its folder in /proc.
    folder: PathBuf,
}

/// A thread beside that of the mesh.
struct Beside {
    carrier: Arc<Carrier>,
    // `None` while the thread is being ended.
    ending: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What a link or a handshake has of a thread. The thread counts it until it is dropped.
#[derive(Clone, Debug)]
pub(super) struct Berth(Arc<Carrier>);

impl Berth {
    /// The runtime of the thread. What is spawned there runs on the thread.
    pub(super) fn runtime(&self) -> &Handle {
        &self.0.runtime
    }
}

impl Carriers {
    /// Starts so many threads that carry links: with one it is the current thread, which has to be in tokio's
    /// runtime, and with more they are others.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub(super) fn new(threads: usize) -> io::Result<Self> {
        let own = Arc::new(Carrier::current()?);
        let beside = if threads > 1 { threads } else { 0 };
        Ok(Self { own, others: (1..=beside).map(Beside::start).collect::<io::Result<_>>()? })
    }

    /// A berth on the thread with the fewest links and handshakes.
    pub(super) fn berth(&self) -> Berth {
        let others = self.others.iter().map(|beside| &beside.carrier);
        let fewest = others.min_by_key(|carrier| Arc::strong_count(carrier));
        Berth(fewest.unwrap_or(&self.own).clone())
    }

    /// What each thread has used and carries, that of the mesh first.
    pub(super) fn report(&self) -> Vec<MeshThreadReport> {
        let others = self.others.iter().map(|beside| &beside.carrier);
        [&self.own].into_iter().chain(others).map(Carrier::report).collect()
    }
}

impl Carrier {
    /// The current thread, in tokio's runtime.
    fn current() -> io::Result<Self> {
        // The link leads to `PID/task/TID`.
        let folder = PathBuf::from("/proc").join(fs::read_link("/proc/thread-self")?);
        Ok(Self { runtime: Handle::current(), folder })
    }

    fn report(self: &Arc<Self>) -> MeshThreadReport {
        // One reference is that of `Carriers`.
        let links = Arc::strong_count(self) as u64 - 1;
        MeshThreadReport { links, cpu_us: self.cpu_us() }
    }

    /// CPU time of the thread, in microseconds. Zero if the kernel was built without this figure.
    fn cpu_us(&self) -> u64 {
        // proc_pid_schedstat: time on the CPU in nanoseconds, time waiting for it, slices.
        let text = fs::read_to_string(self.folder.join("schedstat")).unwrap_or_default();
        let ns = text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok());
        ns.unwrap_or_default() / 1000
    }
}

impl Beside {
    fn start(number: usize) -> io::Result<Self> {
        let (ending, ended) = oneshot::channel::<()>();
        let (started, start) = std::sync::mpsc::channel();
        let work = move || {
            let runtime = match Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(started.send(Err(error))),
            };
            runtime.block_on(async move {
                let _ = started.send(Carrier::current());
                let _ = ended.await;
            });
        };
        let thread = std::thread::Builder::new().name(format!("mesh-{number}")).spawn(work)?;
        let carrier = start.recv().unwrap_or_else(|_| Err(io::Error::other("panicked")))?;
        Ok(Self { carrier: Arc::new(carrier), ending: Some(ending), thread: Some(thread) })
    }
}

impl Drop for Beside {
    /// Ends the thread, with what still runs there.
    fn drop(&mut self) {
        drop(self.ending.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carriers(threads: usize) -> Carriers {
        let runtime = Builder::new_current_thread().build().unwrap();
        let _inside = runtime.enter();
        Carriers::new(threads).unwrap()
    }

    fn links(carriers: &Carriers) -> Vec<u64> {
        carriers.report().iter().map(|thread| thread.links).collect()
    }

    #[test]
    fn one_thread_is_that_of_the_mesh_and_more_are_beside_it() {
        let one = carriers(1);
        let berths = [one.berth(), one.berth()];
        assert_eq!(links(&one), [2]);
        drop(berths);
        assert_eq!(links(&one), [0]);
        let two = carriers(2);
        let _berths = [two.berth(), two.berth()];
        assert_eq!(links(&two), [0, 1, 1]);
    }

    #[test]
    fn a_new_link_goes_to_the_thread_with_the_fewest() {
        let carriers = carriers(3);
        let mut berths: Vec<Berth> = (0..7).map(|_| carriers.berth()).collect();
        assert_eq!(links(&carriers), [0, 3, 2, 2]);
        let second = berths[1].clone();
        assert_eq!(links(&carriers), [0, 3, 3, 2], "a copy counts as well");
        drop(second);
        berths.retain(|berth| !Arc::ptr_eq(&berth.0, &carriers.others[1].carrier));
        berths.extend((0..3).map(|_| carriers.berth()));
        assert_eq!(links(&carriers), [0, 3, 3, 2], "the first of those with the fewest");
    }

    #[test]
    fn the_cpu_time_of_a_thread_is_its_own() {
        let carriers = carriers(2);
        let (ran, run) = std::sync::mpsc::channel();
        carriers.others[1].carrier.runtime.spawn(async move {
            let work = (0..20_000_000u64).map(std::hint::black_box).sum::<u64>();
            assert!(work > 0);
            let _ = ran.send(());
            std::future::pending::<()>().await;
        });
        run.recv().unwrap();
        let cpu_us: Vec<u64> = carriers.report().iter().map(|thread| thread.cpu_us).collect();
        assert!(cpu_us[2] > cpu_us[1], "{cpu_us:?}");
    }
}
