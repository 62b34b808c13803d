//! A child process that is started on given CPUs, and ended.

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

/// Time limit for a program to become ready, and for it to end after SIGTERM.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A running program, which is ended on drop.
pub struct Process {
    name: String,
    child: Child,
    // Removed on drop.
    _files: TempDir,
}

impl Process {
    /// Starts `command` with its threads restricted to `cpus`. Its `files` are removed when it ends.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(mut command: Command, cpus: &[usize], files: TempDir) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = spawn_on(cpus, command).with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name, child, _files: files })
    }

    /// Starts `command` as [`Self::start`] does, and waits until it writes a line to stderr that `ready`
    /// recognises. Returns the result of `ready`.
    ///
    /// # Errors
    /// The program cannot be started, or does not write such a line within 10 s.
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

    /// The process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Ends the process with SIGTERM, or with SIGKILL after a while, and returns its exit status.
    fn end(&mut self) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut status = self.child.try_wait();
        // The child was not waited for, so its id cannot have been reused.
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

/// Starts a child from a thread of its own, since a child inherits the affinity of the thread that starts
/// it.
fn spawn_on(cpus: &[usize], mut command: Command) -> Result<Child> {
    let cpus = cpus.to_vec();
    let starting = thread::spawn(move || {
        machine::keep_to(&cpus)?;
        anyhow::Ok(command.spawn()?)
    });
    starting.join().map_err(|_| anyhow!("the thread that starts programs panicked"))?
}

/// Reads stderr to its end, so that the program never blocks on it. Sends the result of `ready` to the receiver,
/// and copies all other lines to the own stderr.
fn follow<T: Send + 'static>(
    stderr: ChildStderr,
    mut ready: impl FnMut(&str) -> Option<T> + Send + 'static,
) -> mpsc::Receiver<T> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            match ready(&line) {
                // The receiver may have given up.
                Some(is_ready) => drop(sender.send(is_ready)),
                None => eprintln!("{line}"),
            }
        }
    });
    receiver
}
