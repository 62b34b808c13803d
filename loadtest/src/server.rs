//! The server under load: started on ports that the system chooses, or running already.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::dialect::Dialect;
use crate::process::Process;
use crate::target::Target;
use crate::tls::TlsFiles;

/// How servers are started, in addition to the common configuration.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// The number of nodes of the grid; 1: a node without a grid.
    pub nodes: u32,
    /// TOML appended to the common configuration: more routes and other tables.
    pub config: &'static str,
    /// Environment variables that override keys.
    pub variables: &'static [(&'static str, &'static str)],
    /// The descriptor limit of each server; `None`: that of the load test.
    pub descriptors: Option<u32>,
    /// The `Authorization` header of well-behaved peers; `None`: there are no users.
    pub authorization: Option<&'static str>,
    /// Whether what clients send is stored on disk.
    pub disk: Disk,
    /// Whether clients connect over TLS.
    pub tls: bool,
}

/// Whether what clients send is stored on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// Nothing is stored on disk.
    Unused,
    /// Messages are stored on disk. A server that can answer before a sync does so.
    Used,
    /// Messages are stored on disk, and every server syncs before it answers.
    Synced,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            nodes: 1,
            config: "",
            variables: &[],
            descriptors: None,
            authorization: None,
            disk: Disk::Unused,
            tls: false,
        }
    }
}

/// A server to measure. If it was started here, it is ended on drop.
pub struct Server {
    target: Target,
    _process: Option<Process>,
}

/// The addresses that a server reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listening {
    api: SocketAddr,
    edge: SocketAddr,
    mesh: Option<SocketAddr>,
}

impl Server {
    /// A server that was started elsewhere.
    pub fn running(target: Target) -> Self {
        Self { target, _process: None }
    }

    /// A server that was started here.
    pub fn started(target: Target, process: Process) -> Self {
        Self { target, _process: Some(process) }
    }

    /// Starts one node with a shard on each of `cpus`, or the number of nodes in `setup` with one shard on one of
    /// `cpus` each. Waits until they listen.
    ///
    /// # Errors
    /// A node cannot be started, or does not report its addresses within 10 s.
    pub fn start(binary: &Path, cpus: &[usize], setup: &Setup) -> Result<Vec<Self>> {
        if setup.nodes == 1 {
            return Ok(vec![Self::start_with(binary, cpus, "[node]\n", setup)?.0]);
        }
        let (mut servers, mut seed) = (Vec::new(), None);
        for (id, &cpu) in (1..=setup.nodes).zip(cpus.iter().cycle()) {
            let node = config_of_node(id, seed);
            let (server, listening) = Self::start_with(binary, &[cpu], &node, setup)?;
            seed = seed.or(listening.mesh);
            servers.push(server);
        }
        Ok(servers)
    }

    /// Starts a node whose configuration begins with `node`, which ends within the table `[node]`.
    fn start_with(
        binary: &Path,
        cpus: &[usize],
        node: &str,
        setup: &Setup,
    ) -> Result<(Self, Listening)> {
        let files = tempfile::Builder::new().prefix("gridcast-loadtest-").tempdir()?;
        let path = files.path().join("gridcast.toml");
        // Routes of `setup` belong to the edge, so they must precede other tables.
        let config = setup.config;
        let disk = match setup.disk {
            Disk::Unused => String::new(),
            Disk::Used | Disk::Synced => config_of_disk(&files.path().join("data")),
        };
        let tls = match setup.tls {
            true => config_of_tls(&TlsFiles::write(files.path())?),
            false => String::new(),
        };
        let listeners = format!("{CONFIG_OF_LISTENERS}{config}{tls}");
        let text = format!("{node}cores = {cpus:?}\n{listeners}{disk}{LIMITS}");
        fs::write(&path, text)?;
        let mut command = command(binary, setup);
        command.args(["serve".as_ref(), "--config".as_ref(), path.as_path()]);
        let (process, listening) = Process::start_until(command, cpus, files, parse_ready)?;
        let Listening { api, edge, .. } = listening;
        let (pid, dialect) = (process.pid(), Dialect::Gridcast);
        let target = Target { api, edge, pid, dialect, tls: setup.tls };
        Ok((Self::started(target, process), listening))
    }

    /// The addresses and the process of the server.
    pub fn target(&self) -> Target {
        self.target
    }
}

/// The command that runs `binary`. A shell sets a lower descriptor limit first, and is replaced by the binary.
fn command(binary: &Path, setup: &Setup) -> Command {
    let mut command = match setup.descriptors {
        None => Command::new(binary),
        Some(descriptors) => {
            let script = format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"");
            let mut command = Command::new("sh");
            command.args(["-c".as_ref(), script.as_ref(), binary.as_os_str()]);
            command
        }
    };
    command.envs(setup.variables.iter().copied());
    command
}

/// The server binary of the same build.
///
/// # Errors
/// The path of this program is unknown.
pub fn binary_beside_this_one() -> Result<PathBuf> {
    let this = std::env::current_exe().context("where this program lies is not known")?;
    Ok(this.with_file_name("gridcast"))
}

fn config_of_node(id: u32, seed: Option<SocketAddr>) -> String {
    let seeds: Vec<_> = seed.iter().map(ToString::to_string).collect();
    let key = "a key that only the load test has";
    format!(
        "mesh = {{ bind = \"127.0.0.1:0\", key = {key:?}, seeds = {seeds:?} }}\n[node]\nid = {id}\n"
    )
}

/// The topic of clients on disk, with room for all that a run sends.
fn config_of_disk(directory: &Path) -> String {
    format!(
        "[data]\ndir = {directory:?}\n[[topic]]\nname = \"messages\"\nstore = \"disk\"\n\
         messages = {STORED_MESSAGES_MAX}\nbytes = {STORED_BYTES_MAX}\n"
    )
}

/// The certificate of the edge, which is the last listener so far.
fn config_of_tls(TlsFiles { certificate, key }: &TlsFiles) -> String {
    format!("[edge.tls]\ncert = {certificate:?}\nkey = {key:?}\n")
}

/// The messages that the topic on disk holds.
const STORED_MESSAGES_MAX: u32 = 1 << 24;

/// The bytes that the topic on disk holds.
const STORED_BYTES_MAX: u64 = 1 << 36;

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
"#;

const LIMITS: &str = r#"
[limits]
handshake_ms = 1000
[log]
level = "warn"
"#;

/// Parses the addresses in `gridcast: ready, api A, edge B,C, mesh D, open URL`.
fn parse_ready(line: &str) -> Option<Listening> {
    let mut parts = line.strip_prefix("gridcast: ready, api ")?.split(", ");
    let api = parts.next()?.parse().ok()?;
    let edges = parts.next()?.strip_prefix("edge ")?;
    let edge = edges.split(',').next()?.parse().ok()?;
    let mesh = parts.next().and_then(|part| part.strip_prefix("mesh ")?.parse().ok());
    Some(Listening { api, edge, mesh })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_names_the_api_the_first_edge_and_the_mesh() {
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let listening = |mesh| Some(Listening { api: at(1), edge: at(2), mesh });
        for (line, mesh) in [
            ("gridcast: ready, api 127.0.0.1:1, edge 127.0.0.1:2", None),
            ("gridcast: ready, api 127.0.0.1:1, edge 127.0.0.1:2,127.0.0.1:3", None),
            ("gridcast: ready, api 127.0.0.1:1, edge 127.0.0.1:2, mesh 127.0.0.1:3", Some(at(3))),
        ] {
            let line = format!("{line}, open http://127.0.0.1:1/");
            let line = line.as_str();
            assert_eq!(parse_ready(line), listening(mesh), "{line}");
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
        let error = Server::start(Path::new("/bin/true"), &[0], &Setup::default())
            .err()
            .expect("it does not listen");
        assert!(error.to_string().contains("did not say where it listens"), "{error}");
    }
}
