//! A program that is started here, kept to its CPUs, and ended.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::machine;

/// Time that a program has to get ready, and again to end after SIGTERM.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A running program; ended on drop.
pub struct Process {
    name: String,
    child: Child,
    // Removed on drop.
    _files: TempDir,
}

impl Process {
    /// Starts `command`, whose threads keep to `cpus`; `files`, which it needs, go when it ends.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(mut command: Command, cpus: &[usize], files: TempDir) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = spawn_on(cpus, command).with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name, child, _files: files })
    }

    /// The same, and waits until it writes a line to its stderr that `ready` knows; gives what
    /// `ready` made of it.
    ///
    /// # Errors
    /// It cannot be started, or does not write such a line within 10 s.
    pub fn start_until<T: Send + 'static>(
        mut command: Command,
        cpus: &[usize],
        files: TempDir,
        ready: impl FnMut(&str) -> Option<T> + Send + 'static,
    ) -> Result<(Self, T)> {
        command.stderr(Stdio::piped());
        let mut process = Self::start(command, cpus, files)?;
        let stderr = process.child.stderr.take().context("a program without stderr")?;
        match follow(stderr, ready).recv_timeout(PATIENCE) {
            Ok(is_ready) => Ok((process, is_ready)),
            Err(_) => {
                let fate = process.end();
                let name = &process.name;
                Err(anyhow!("{name} did not say where it listens, and ended with {fate}"))
            }
        }
    }

    /// Its id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Asks it to end, insists after a while, and tells how it ended.
    fn end(&mut self) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut status = self.child.try_wait();
        // The process is ours and not waited for yet, so its id cannot be somebody else's.
        if matches!(status, Ok(None)) && kill(self.pid(), Signal::SIGTERM).is_ok() {
            while matches!(status, Ok(None)) && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(5));
                status = self.child.try_wait();
            }
        }
        match status {
            Ok(Some(status)) => status.to_string(),
            _ => {
                let killed = self.child.kill().and_then(|()| self.child.wait());
                killed.map_or_else(|error| error.to_string(), |status| status.to_string())
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let fate = self.end();
        if fate != "exit status: 0" {
            eprintln!("loadtest: {} ended with {fate}", self.name);
        }
    }
}

/// A child inherits the affinity of the thread that starts it; so this one is started by a thread
/// that is there for nothing else.
fn spawn_on(cpus: &[usize], mut command: Command) -> Result<Child> {
    let cpus = cpus.to_vec();
    let starting = thread::spawn(move || {
        machine::keep_to(&cpus)?;
        anyhow::Ok(command.spawn()?)
    });
    starting.join().map_err(|_| anyhow!("the thread that starts programs panicked"))?
}

/// Reads stderr to its end, so that the program never waits for us: what `ready` makes of a line
/// goes to the receiver, and other lines to our stderr.
fn follow<T: Send + 'static>(
    stderr: ChildStderr,
    mut ready: impl FnMut(&str) -> Option<T> + Send + 'static,
) -> mpsc::Receiver<T> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            match ready(&line) {
                // Once nobody waits for it any more, it is of no use.
                Some(is_ready) => drop(sender.send(is_ready)),
                None => eprintln!("{line}"),
            }
        }
    });
    receiver
}
