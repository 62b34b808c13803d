//! The server under load: started here on ports of the system's choice, or running already.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::NamedTempFile;

/// Time that a server has to listen, and again to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a server listens, and its process.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its API.
    pub api: SocketAddr,
    /// Its first edge, with the routes `/ws` and `/echo`.
    pub edge: SocketAddr,
    /// Its process, whose CPU time and memory are measured.
    pub pid: Pid,
}

/// A server to measure; if it was started here, it is ended on drop.
pub struct Server {
    target: Target,
    started: Option<Started>,
}

struct Started {
    child: Child,
    // Removed on drop; the server has read it by then.
    _config: NamedTempFile,
}

impl Server {
    /// A server that somebody else started and will end.
    pub fn running(target: Target) -> Self {
        Self { target, started: None }
    }

    /// Starts `binary` with one shard on each of `cpus` and waits until it listens.
    ///
    /// # Errors
    /// It cannot be started, or does not say within 10 s where it listens.
    pub fn start(binary: &Path, cpus: &[usize]) -> Result<Self> {
        let mut file = NamedTempFile::with_prefix("gridcast-loadtest-")?;
        file.write_all(config(cpus).as_bytes())?;
        let mut child = Command::new(binary)
            .args(["serve".as_ref(), "--config".as_ref(), file.path()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let listening = child.stderr.take().map(follow);
        let pid = Pid::from_raw(child.id().cast_signed());
        let mut started = Started { child, _config: file };
        let Some(Ok((api, edge))) = listening.map(|ready| ready.recv_timeout(PATIENCE)) else {
            let fate = started.end();
            anyhow::bail!("the server did not say where it listens, and ended with {fate}");
        };
        Ok(Self { target: Target { api, edge, pid }, started: Some(started) })
    }

    /// Where it listens.
    pub fn target(&self) -> Target {
        self.target
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(started) = &mut self.started {
            let fate = started.end();
            if fate != "exit status: 0" {
                eprintln!("loadtest: the server ended with {fate}");
            }
        }
    }
}

impl Started {
    /// Asks the server to end, insists after a while, and tells how it ended.
    fn end(&mut self) -> String {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        let deadline = Instant::now() + PATIENCE;
        let mut status = self.child.try_wait();
        // The process is ours and not waited for yet, so its id cannot be somebody else's.
        if matches!(status, Ok(None)) && kill(pid, Signal::SIGTERM).is_ok() {
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

/// The server binary of the same build.
///
/// # Errors
/// The system does not tell where this program lies.
pub fn binary_beside_this_one() -> Result<PathBuf> {
    let this = std::env::current_exe().context("where this program lies is not known")?;
    Ok(this.with_file_name("gridcast"))
}

fn config(cpus: &[usize]) -> String {
    let mut config = String::new();
    writeln!(config, "[node]\ncores = {cpus:?}").expect("a string takes what is written");
    config + CONFIG_OF_LISTENERS
}

const CONFIG_OF_LISTENERS: &str = r#"
[api]
bind = "127.0.0.1:0"
[[edge]]
bind = "127.0.0.1:0"
[[edge.route]]
path = "/ws"
topic = "messages"
events = ["message"]
subscribe = ["*"]
[[edge.route]]
path = "/echo"
handler = "echo"
message_bytes = 16777216
outbound_bytes = 67108864
[limits]
handshake_ms = 1000
"#;

/// Reads the server's stderr to its end, so that it never waits for us: the line that says where
/// it listens goes to the receiver, all others to our stderr.
fn follow(stderr: ChildStderr) -> mpsc::Receiver<(SocketAddr, SocketAddr)> {
    let (ready, listening) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            match parse_ready(&line) {
                // Once nobody waits for it any more, it is of no use.
                Some(addresses) => drop(ready.send(addresses)),
                None => eprintln!("{line}"),
            }
        }
    });
    listening
}

/// The addresses of the API and of the first edge in `gridcast: ready, api A, edge B,C`.
fn parse_ready(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let (api, edges) = line.strip_prefix("gridcast: ready, api ")?.split_once(", edge ")?;
    let edge = edges.split(',').next()?;
    Some((api.parse().ok()?, edge.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_names_the_api_and_the_first_edge() {
        let addresses = ("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
        for line in [
            "gridcast: ready, api 127.0.0.1:1, edge 127.0.0.1:2",
            "gridcast: ready, api 127.0.0.1:1, edge 127.0.0.1:2,127.0.0.1:3",
            "gridcast: ready, api 127.0.0.1:1, edge 127.0.0.1:2, mesh 127.0.0.1:3",
        ] {
            assert_eq!(parse_ready(line), Some(addresses), "{line}");
        }
    }

    #[test]
    fn other_lines_are_not_the_ready_line() {
        for line in ["", "gridcast: ready", "gridcast: ready, api here, edge there"] {
            assert_eq!(parse_ready(line), None, "{line}");
        }
    }

    #[test]
    fn a_program_that_never_listens_is_an_error() {
        let error = Server::start(Path::new("/bin/true"), &[0]).err().expect("it does not listen");
        assert!(error.to_string().contains("did not say where it listens"), "{error}");
    }
}
