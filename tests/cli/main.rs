//! The commands that are clients of the API, as processes of the binary against real nodes.

#![forbid(unsafe_code)]

#[path = "../support/mod.rs"]
mod support;

mod consume;
mod lists;
mod local;
mod login;
mod push;
mod scripted;
mod server;
mod tap;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::{fs, process, thread};

use rustix::process::{Pid, Signal, kill_process};
use support::{DEADLINE, Server, command};

/// The end of a command.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ended {
    /// Standard output of a command that has succeeded without a remark.
    #[track_caller]
    fn succeeded(self) -> String {
        assert_eq!((self.code, &self.err[..]), (Some(0), ""), "{}", self.out);
        self.out
    }

    /// Standard error of a command that has failed with this exit status.
    #[track_caller]
    fn failed(self, code: i32) -> String {
        assert_eq!((self.code, &self.out[..]), (Some(code), ""), "{}", self.err);
        self.err
    }
}

/// A command for the API at this address.
fn at(api: SocketAddr, arguments: &[&str]) -> Command {
    let mut command = command(arguments);
    command.env("GRIDCAST_SERVER", api.to_string());
    command
}

/// Runs a command for a node to its end.
#[track_caller]
fn run(server: &Server, arguments: &[&str]) -> Ended {
    ended(&mut at(server.api, arguments), b"")
}

/// Runs a command to its end with this input.
#[track_caller]
fn ended(command: &mut Command, input: &[u8]) -> Ended {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary is there");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    // A command that does not read its input closes the pipe.
    let _ = stdin.write_all(input);
    drop(stdin);
    let output = child.wait_with_output().expect("the process is ours");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is text");
    Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// A command that runs until it is stopped. Stopped when the value is dropped.
struct Running {
    child: Child,
    out: Receiver<String>,
    err: Receiver<String>,
}

impl Running {
    #[track_caller]
    fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary is there");
        let out = lines(child.stdout.take().expect("stdout is piped"));
        let err = lines(child.stderr.take().expect("stderr is piped"));
        Self { child, out, err }
    }

    /// Waits for the next line of standard output.
    #[track_caller]
    fn line(&self) -> String {
        self.out.recv_timeout(DEADLINE).expect("a line comes")
    }

    /// Waits for a line on standard error that contains this text.
    #[track_caller]
    fn says(&self, part: &str) {
        while !self.err.recv_timeout(DEADLINE).expect("a line comes").contains(part) {}
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the process runs");
    }

    /// Waits for the end; returns the exit status and the rest of the output.
    #[track_caller]
    fn end(mut self) -> Ended {
        let code = self.child.wait().expect("the process is ours").code();
        let rest = |lines: &Receiver<String>| {
            lines.iter().map(|line| format!("{line}\n")).collect::<String>()
        };
        Ended { code, out: rest(&self.out), err: rest(&self.err) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(from: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    let from = BufReader::new(from);
    thread::spawn(move || {
        from.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    lines
}

/// A folder, removed on drop.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static FOLDERS: AtomicUsize = AtomicUsize::new(0);
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        // Short, as the path of a Unix socket has to be.
        let folder = std::env::temp_dir().join(format!("gridcast-cli-{}-{number}", process::id()));
        fs::create_dir_all(&folder).expect("the test's folder can be written");
        Self(folder)
    }

    /// Writes a file; returns its path.
    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        fs::write(&path, bytes).expect("the folder is there");
        text(&path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

/// A command whose input comes piece by piece.
struct Fed {
    running: Running,
    input: ChildStdin,
}

impl Fed {
    #[track_caller]
    fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary is there");
        let input = child.stdin.take().expect("stdin is piped");
        let out = lines(child.stdout.take().expect("stdout is piped"));
        let err = lines(child.stderr.take().expect("stderr is piped"));
        Self { running: Running { child, out, err }, input }
    }
}
