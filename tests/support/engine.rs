//! Engines as processes that the tests start, kill and start again.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio, id};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs};

use rustix::process::{Pid, Signal, kill_process};

use super::{Server, Socket, refusing_port, until};

/// Ports that are tried, one after another.
const PORTS_TRIED: u32 = 10;

/// Makes the command that starts an engine, for a port and a folder.
type MakeCommand = dyn Fn(u16, &Path) -> Command;

/// An engine on a port of its own, with a folder that outlives its process.
pub struct Engine {
    process: Child,
    command: Rc<MakeCommand>,
    pub port: u16,
    folder: PathBuf,
}

impl Engine {
    /// Starts an engine, and waits until it listens. `command` takes the port and the folder. `None`, with a word on
    /// standard error: the program is not installed.
    pub fn start(command: impl Fn(u16, &Path) -> Command + 'static) -> Option<Self> {
        static FOLDERS: AtomicUsize = AtomicUsize::new(0);
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let folder = env::temp_dir().join(format!("gridcast-engine-{}-{number}", id()));
        let command = Rc::new(command);
        // The port of a socket that is dropped is free again, unless somebody else takes it before the engine. Then the
        // engine ends, and another port is tried.
        for _ in 0..PORTS_TRIED {
            let (socket, address) = refusing_port();
            drop(socket);
            fs::create_dir_all(&folder).expect("the folder for temporary files can be written");
            let mut command_line = command(address.port(), &folder);
            let Some(process) = spawn(&mut command_line) else {
                let program = command_line.get_program().to_string_lossy().into_owned();
                eprintln!("skipped: {program} is not installed");
                return None;
            };
            let (command, folder) = (command.clone(), folder.clone());
            let mut engine = Self { process, command, port: address.port(), folder };
            if engine.listens() {
                return Some(engine);
            }
        }
        panic!("no engine could use its port");
    }

    /// Waits until the engine listens. Returns false if it has ended.
    fn listens(&mut self) -> bool {
        let mut has_ended = false;
        until(|| {
            has_ended = self.process.try_wait().expect("it is a child").is_some();
            has_ended || TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
        !has_ended
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
        assert!(self.listens(), "the port is taken");
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

/// The value of a sample of the sink `s` in `/metrics`, such as `up`.
#[track_caller]
pub fn sink_sample(server: &Server, name: &str) -> u64 {
    sample(server, &format!("sink_{name}{{sink=\"s\"}}"))
}

/// Has every device send these numbers, one message each.
pub fn send_numbers(devices: &mut [Socket], numbers: Range<u64>) {
    for number in numbers {
        devices.iter_mut().for_each(|device| device.send_text(&number.to_string()));
    }
}

/// Asserts that an engine has all numbers below `count` of each of so many devices, in order.
#[track_caller]
pub fn assert_complete(stored: &BTreeMap<String, Vec<u64>>, devices: usize, count: u64) {
    let all: Vec<u64> = (0..count).collect();
    assert_eq!(stored.len(), devices);
    assert!(stored.values().all(|numbers| *numbers == all), "{stored:?}");
}
