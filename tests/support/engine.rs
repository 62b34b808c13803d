//! Engines as processes that the tests start, kill and start again.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio, id};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs};

use rustix::process::{Pid, Signal, kill_process};

use super::{Server, refusing_port, until};

/// An engine on a port of its own, with a folder that outlives its process.
pub struct Engine {
    process: Child,
    command: fn(u16, &Path) -> Command,
    pub port: u16,
    folder: PathBuf,
}

impl Engine {
    /// Starts an engine, and waits until it listens. `command` takes the port and the folder. `None`, with a word on
    /// standard error: the program is not installed.
    pub fn start(command: fn(u16, &Path) -> Command) -> Option<Self> {
        static FOLDERS: AtomicUsize = AtomicUsize::new(0);
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let folder = env::temp_dir().join(format!("gridcast-engine-{}-{number}", id()));
        fs::create_dir_all(&folder).expect("the folder for temporary files can be written");
        // The port is free again when the socket is dropped.
        let (socket, address) = refusing_port();
        drop(socket);
        let mut command_line = command(address.port(), &folder);
        let program = command_line.get_program().to_string_lossy().into_owned();
        let Some(process) = spawn(&mut command_line) else {
            eprintln!("skipped: {program} is not installed");
            return None;
        };
        let engine = Self { process, command, port: address.port(), folder };
        engine.wait();
        Some(engine)
    }

    fn wait(&self) {
        until(|| TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    /// Kills the engine.
    pub fn kill(&mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ends");
    }

    /// Starts the engine again after [`Self::kill`], with the same port and folder.
    pub fn revive(&mut self) {
        let process = spawn(&mut (self.command)(self.port, &self.folder));
        self.process = process.expect("it was there before");
        self.wait();
    }

    /// Stops the process, or lets it go on.
    pub fn signal(&self, signal: Signal) {
        let process = Pid::from_child(&self.process);
        kill_process(process, signal).expect("it runs");
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn spawn(command: &mut Command) -> Option<Child> {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()
}

/// The configuration of two shards with the route `/in` to the topic `orders`. `sections` follow.
pub fn with_orders(sections: &str) -> String {
    format!(
        "[node]\ncores = 2\n[api]\nbind = \"127.0.0.1:0\"\n[[edge]]\nbind = \"127.0.0.1:0\"\n\
         [[edge.route]]\npath = \"/in\"\ntopic = \"orders\"\nsubscribe = [\"*\"]\n{sections}"
    )
}

/// The value of a sample of `/metrics`, such as `sink_up{sink="s"}`.
#[track_caller]
pub fn sample(server: &Server, name: &str) -> u64 {
    let (text, sample) = (server.get("/metrics").body, format!("gridcast_{name} "));
    let value = text.lines().find_map(|line| line.strip_prefix(&sample));
    value.unwrap_or_else(|| panic!("{name} is in {text}")).parse().expect("a number")
}
