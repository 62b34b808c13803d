//! The server as a separate process, on ports that the system selects.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Instant;
use std::{env, fs, process, thread};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

use super::{DEADLINE, Http, Response, SUCCESS, Socket, http};

/// Two shards, and an edge with a route of each kind. More sections may follow it.
pub const CONFIG: &str = r#"
[node]
cores = 2
[api]
bind = "127.0.0.1:0"
[[edge]]
bind = "127.0.0.1:0"
[[edge.route]]
path = "/ws"
topic = "messages"
events = ["open", "message", "close"]
subscribe = ["*"]
[[edge.route]]
path = "/plain"
topic = "plain"
events = ["message"]
subscribe = ["*"]
[[edge.route]]
path = "/private"
topic = "messages2"
subscribe = ["user-*", "news"]
[[edge.route]]
path = "/echo"
handler = "echo"
message_bytes = 16777216
outbound_bytes = 67108864
"#;

/// The configuration of two shards that listen at these addresses. `lines` are keys of the edge, and its routes.
pub fn config_of(api: &str, edge: &str, lines: &str) -> String {
    format!("[node]\ncores = 2\n[api]\nbind = \"{api}\"\n[[edge]]\nbind = \"{edge}\"\n{lines}")
}

/// The routes of [`CONFIG`].
pub fn routes() -> &'static str {
    &CONFIG[CONFIG.find("[[edge.route]]").expect("an edge has routes")..]
}

/// A running server, which is stopped when the value is dropped.
pub struct Server {
    process: Process,
    pub api: SocketAddr,
    /// The address of the first edge, or of the API if there is no edge.
    pub edge: SocketAddr,
    /// The addresses of the edges, in the order of the configuration.
    pub edges: Vec<SocketAddr>,
    /// The address of the mesh, if there is one.
    pub mesh: Option<SocketAddr>,
    // The configuration file.
    file: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}

impl Server {
    #[track_caller]
    pub fn new() -> Self {
        Self::start(CONFIG)
    }

    /// [`CONFIG`] with further sections.
    #[track_caller]
    pub fn with(sections: &str) -> Self {
        Self::start(&format!("{CONFIG}{sections}"))
    }

    /// Starts the server and waits until it listens.
    #[track_caller]
    pub fn start(config: &str) -> Self {
        let file = config_file(config);
        let mut process = Process::start(&["serve", "--config", file.to_str().expect("UTF-8")]);
        let ready = process.wait_until_ready();
        Self::of(process, ready, file)
    }

    /// Starts the server by a command that `change` has changed, and waits until it listens. Returns the
    /// lines before, too.
    #[track_caller]
    pub fn start_changed(config: &str, change: impl FnOnce(&mut Command)) -> (Self, Vec<String>) {
        let file = config_file(config);
        let mut command = command(&["serve", "--config", file.to_str().expect("UTF-8")]);
        change(&mut command);
        let mut process = Process::spawn(&mut command);
        let (ready, lines) = process.lines_until_ready();
        (Self::of(process, ready, file), lines)
    }

    /// Starts a server whose log is not read any more once the server listens.
    #[track_caller]
    pub fn start_unread(config: &str, reader: LogReader) -> Self {
        let file = config_file(config);
        let (process, ready) = Process::start_unread(file.to_str().expect("UTF-8"), reader);
        Self::of(process, ready, file)
    }

    fn of(process: Process, Ready { api, edges, mesh }: Ready, file: PathBuf) -> Self {
        Self { process, api, edge: edges.first().copied().unwrap_or(api), edges, mesh, file }
    }

    /// Changes the configuration file.
    pub fn configure(&self, config: &str) {
        fs::write(&self.file, config).expect("the test's folder can be written");
    }

    /// Changes the configuration file, and tells the server to reload it.
    pub fn reload(&mut self, config: &str) {
        self.configure(config);
        self.hang_up();
    }

    /// Connects a client to the edge.
    #[track_caller]
    pub fn device(&self, path: &str) -> Socket {
        Socket::connect(self.edge, path, "").expect("the edge grants the upgrade")
    }

    /// Connects a client to the edge; returns its id too, from the open event of the route `/ws`.
    #[track_caller]
    pub fn client(&self) -> (Socket, String) {
        let mut consumer = self.consumer("messages");
        let client = self.device("/ws");
        let id = consumer.opened();
        assert_eq!(consumer.call(r#"{"m":"queue.unpop","p":{},"i":12345}"#), SUCCESS);
        (client, id)
    }

    #[track_caller]
    pub fn backend(&self) -> Socket {
        Socket::connect(self.api, "/ws/v1", "").expect("the API grants the upgrade")
    }

    #[track_caller]
    pub fn consumer(&self, topic: &str) -> Socket {
        let mut consumer = self.backend();
        let pop = format!(r#"{{"m":"queue.pop","p":{{"t":["{topic}"]}},"i":12345}}"#);
        assert_eq!(consumer.call(&pop), SUCCESS);
        consumer
    }

    /// Calls the API over HTTP; returns the body of the response.
    #[track_caller]
    pub fn post(&self, path: &str, body: &str) -> String {
        let response = self.request("POST", path, "", body);
        assert_eq!(response.status, 200, "{response:?}");
        assert_eq!(response.header("content-type"), Some("application/json"));
        response.body
    }

    /// Publishes text over HTTP; returns the numbers of subscribers that it reached and did not reach.
    #[track_caller]
    pub fn publish(&self, channel: &str, data: &str) -> (u64, u64) {
        let body = format!(r#"{{"c":"{channel}","d":"{data}"}}"#);
        let answer: serde_json::Value =
            serde_json::from_str(&self.post("/v1/mesh/publish", &body)).expect("JSON");
        let count = |key| answer["r"][key].as_u64().expect("a count");
        (count("s"), count("f"))
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        self.request("GET", path, "", "")
    }

    /// Sends one request to the API. `headers` are complete lines, each with its CRLF.
    #[track_caller]
    pub fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> Response {
        http(self.api, self.raw(method, path, headers, body))
    }

    /// Returns the bytes of a request to the API.
    pub fn raw(&self, method: &str, path: &str, headers: &str, body: &str) -> String {
        let (host, length) = (self.api, body.len());
        format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        )
    }

    pub fn http(&self) -> Http {
        Http::connect(self.api)
    }

    /// Asks the server to stop.
    pub fn terminate(&mut self) {
        self.process.signal(Signal::TERM);
    }

    /// Interrupts the server, as Ctrl-C would.
    pub fn interrupt(&mut self) {
        self.process.signal(Signal::INT);
    }

    /// Kills the server, as a crash would.
    pub fn kill(&mut self) {
        self.process.signal(Signal::KILL);
        self.process.finish();
    }

    /// Lets the process write files of any size again, if a limit was set before it was started.
    pub fn remove_file_limit(&self) {
        let pid = Some(Pid::from_child(&self.process.child));
        let limit = Rlimit { current: None, maximum: None };
        prlimit(pid, Resource::Fsize, limit).expect("the hard limit was not lowered");
    }

    /// Suspends the process.
    pub fn freeze(&self) {
        self.process.signal(Signal::STOP);
    }

    /// Resumes the suspended process.
    pub fn thaw(&self) {
        self.process.signal(Signal::CONT);
    }

    /// Tells the server to reload its configuration and certificates.
    pub fn hang_up(&mut self) {
        self.process.signal(Signal::HUP);
    }

    /// Waits for a line on stderr that contains a text.
    #[track_caller]
    pub fn logs(&mut self, part: &str) {
        while !self.process.line().expect("the server runs").contains(part) {}
    }

    /// Waits for the end of the process; returns the exit code.
    #[track_caller]
    pub fn exit_code(&mut self) -> Option<i32> {
        self.finish().0
    }

    /// Waits for the end of the process; returns the exit code and the remaining lines.
    #[track_caller]
    pub fn finish(&mut self) -> (Option<i32>, Vec<String>) {
        self.process.finish()
    }
}

/// The work of the reader of a server's log once the server listens.
#[derive(Clone, Copy, Debug)]
pub enum LogReader {
    /// The reader ends, so writing to the pipe fails.
    Leaves,
    /// The reader stops with a full pipe, so writing to the pipe blocks.
    StandsStill,
}

/// A process of the binary, whose stderr is read line by line.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
    // The full pipe of a reader that has stopped.
    unread: Option<ChildStderr>,
}

impl Process {
    pub fn start(arguments: &[&str]) -> Self {
        Self::spawn(&mut command(arguments))
    }

    pub fn spawn(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary is there");
        let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines, unread: None }
    }

    #[track_caller]
    fn start_unread(file: &str, reader: LogReader) -> (Self, Ready) {
        let mut command = command(&["serve", "--config", file]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary is there");
        let mut stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let mut line = String::new();
        while Ready::parse(line.trim_end()).is_none() {
            line.clear();
            assert!(stderr.read_line(&mut line).expect("a line") > 0, "the server did not start");
        }
        let stderr = stderr.into_inner();
        let unread = match reader {
            LogReader::Leaves => None,
            LogReader::StandsStill => {
                fill(&stderr);
                Some(stderr)
            }
        };
        let (_, lines) = mpsc::channel();
        let ready = Ready::parse(line.trim_end()).expect("it was found");
        (Self { child, lines, unread }, ready)
    }

    #[track_caller]
    pub fn wait_until_ready(&mut self) -> Ready {
        self.lines_until_ready().0
    }

    #[track_caller]
    pub fn lines_until_ready(&mut self) -> (Ready, Vec<String>) {
        let mut lines = Vec::new();
        while let Some(line) = self.line() {
            if let Some(ready) = Ready::parse(&line) {
                return (ready, lines);
            }
            lines.push(line);
        }
        panic!("the server did not start: {lines:#?}")
    }

    /// Waits for the end of the process; returns the exit code and the remaining lines.
    #[track_caller]
    pub fn finish(&mut self) -> (Option<i32>, Vec<String>) {
        let lines = std::iter::from_fn(|| self.line()).collect();
        (self.wait().code(), lines)
    }

    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    #[track_caller]
    fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the process is ours") {
                return status;
            }
            assert!(start.elapsed() < DEADLINE, "the process did not end in {DEADLINE:?}");
            thread::yield_now();
        }
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("the process has not been waited for");
    }

    /// Returns the next line; `None` after the end of the process.
    #[track_caller]
    pub fn line(&mut self) -> Option<String> {
        match self.lines.recv_timeout(DEADLINE) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("neither a line nor the end in {DEADLINE:?}"),
        }
    }

    /// Returns the next line if it has come already.
    pub fn try_line(&mut self) -> Option<String> {
        self.lines.try_recv().ok()
    }
}

impl Drop for Process {
    /// Stops the process, and kills it if it does not end. Shows its output if the test has failed.
    fn drop(&mut self) {
        if self.has_ended() {
            return;
        }
        self.signal(Signal::TERM);
        while let Ok(line) = self.lines.recv_timeout(DEADLINE) {
            if thread::panicking() {
                eprintln!("server: {line}");
            }
        }
        // The process has not been waited for, so its id cannot be in use by another one.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Fills a pipe, given its reading end.
fn fill(pipe: &ChildStderr) {
    // Opened again, so that the server's own end stays blocking.
    let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    let mut end = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .expect("a pipe can be opened again");
    for bytes in [&[b'x'; 4096][..], b"x"] {
        while end.write(bytes).is_ok() {}
    }
    let full = end.write(b"x").expect_err("it is full");
    assert_eq!(full.kind(), ErrorKind::WouldBlock);
}

/// Writes a configuration file with a unique name.
pub fn config_file(text: &str) -> PathBuf {
    static FILES: AtomicUsize = AtomicUsize::new(0);
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let file = folder.join(format!("gridcast-{}-{number}.toml", process::id()));
    fs::write(&file, text).expect("the test's folder can be written");
    file
}

/// The addresses in the line that the server logs when it listens.
pub struct Ready {
    pub api: SocketAddr,
    pub edges: Vec<SocketAddr>,
    pub mesh: Option<SocketAddr>,
}

impl Ready {
    /// Reads `gridcast: ready, api A, edge B,C, mesh D, open URL`, or the same from JSON.
    pub fn parse(line: &str) -> Option<Self> {
        let object: Option<serde_json::Value> = serde_json::from_str(line).ok();
        let message = match &object {
            Some(object) => object["fields"]["message"].as_str()?,
            None => line.strip_prefix("gridcast: ")?,
        };
        let parts: Vec<_> = message.strip_prefix("ready, ")?.split(", ").collect();
        let part = |name: &str| parts.iter().find_map(|part| part.strip_prefix(name));
        let edges = part("edge ")
            .map_or(Ok(Vec::new()), |edges| edges.split(',').map(str::parse).collect());
        let mesh = part("mesh ").map(str::parse).transpose();
        Some(Self { api: part("api ")?.parse().ok()?, edges: edges.ok()?, mesh: mesh.ok()? })
    }
}

/// The variable that selects the driver of all servers that tests start.
pub const DRIVER: &str = "GRIDCAST_NODE_DRIVER";

/// The binary with `arguments`, in an environment whose variables override no key of a test, but for
/// [`DRIVER`].
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gridcast"));
    command.args(arguments).env_clear();
    command.envs(std::env::var_os(DRIVER).map(|driver| (DRIVER, driver)));
    command
}
