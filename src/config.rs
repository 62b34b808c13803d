//! The configuration: a TOML file and `GRIDCAST_` variables → checked, derived values.
//!
//! What is wrong is answered in one line: the place, the key, what was expected, what was found.
//! Nothing here asks the process for anything but the file: variables and CPUs are arguments.

mod document;
mod edge;
mod mesh;
mod origin;
mod tls;
mod token;
mod user;

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use toml::de::DeValue;

use crate::protocol::credentials::User;
use crate::queue::WhenFull;
pub use document::ConfigError;
use document::{Document, Keys, Section, whole_number};
use edge::read_edges;
pub use edge::{Edge, Events, Route};
use mesh::MESH_KEYS;
pub use mesh::{GridKey, Mesh, Trust};
use origin::read_origins;
use tls::{MUTUAL_TLS_KEYS, TLS_KEYS};
pub use tls::{MutualTls, Tls};
use user::read_users;

/// Largest file read. A thousand routes take a tenth of it.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A client id has 12 bits for shard number and sequence: more shards would leave too short a
/// sequence.
const CORES_MAX: usize = 256;

/// Largest message from a client: what the largest conformance tests send.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// What a topic keeps of a message beside its data: ids, the topic's name, the frame around it.
const ENVELOPE_BYTES: usize = 4096;

const TOPIC_BYTES: usize = 64 << 20;

// So a topic that is too small for its messages is always one whose size was written.
const _: () = assert!(TOPIC_BYTES >= topic_bytes_min(MESSAGE_BYTES_MAX));

const HOUR_MS: u64 = 3_600_000;

const BYTES: &str = " of bytes";
const MILLISECONDS: &str = " of milliseconds";
const ADDRESS: &str = "an IP address and port such as \"127.0.0.1:6789\"";

/// The sections that are there once. Their keys can be set by variables too.
const SECTIONS: [Keys; 9] = [
    ("node", &NODE_KEYS),
    ("api", &API_KEYS),
    ("api.tls", &TLS_KEYS),
    ("mesh", &MESH_KEYS),
    ("mesh.tls", &MUTUAL_TLS_KEYS),
    ("queue", &QUEUE_KEYS),
    ("limits", &LIMITS_KEYS),
    ("data", &DATA_KEYS),
    ("log", &LOG_KEYS),
];

/// All that one node is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This node.
    pub node: Node,
    /// The back ends' listener.
    pub api: Api,
    /// Listeners for clients. Default: none; without a file, one on 127.0.0.1:6790.
    pub edges: Vec<Edge>,
    /// The other nodes. Default: none, this one is alone.
    pub mesh: Option<Mesh>,
    /// Topics.
    pub queue: Queue,
    /// Bounds and times.
    pub limits: Limits,
    /// What outlives the process.
    pub data: Data,
    /// What is logged, and how.
    pub log: Log,
}

impl Config {
    /// Reads `file`, overridden by those variables of `environment` that begin with `GRIDCAST_`.
    /// `available` are the numbers of the CPUs that the process may use: at least one.
    pub fn read(
        file: &Path,
        environment: impl Iterator<Item = (String, String)>,
        available: &[usize],
    ) -> Result<Self, ConfigError> {
        let name = file.display().to_string();
        let text = read_bounded(file)
            .map_err(|error| ConfigError::new(&name, format!("cannot be read: {error}")))?;
        Self::parse(&text, &name, environment, available)
    }

    /// What a node runs with that is given no file: listeners on loopback, the routes `/ws` and
    /// `/echo`. Variables override it as they override a file.
    pub fn development(
        environment: impl Iterator<Item = (String, String)>,
        available: &[usize],
    ) -> Result<Self, ConfigError> {
        let text = include_str!("config/development.toml");
        Self::parse(text, "built-in configuration", environment, available)
    }

    /// As [`Config::read`], from the text of a file that messages call `name`.
    pub fn parse(
        text: &str,
        name: &str,
        environment: impl Iterator<Item = (String, String)>,
        available: &[usize],
    ) -> Result<Self, ConfigError> {
        let environment: Vec<_> = environment.collect();
        let document = Document::parse(text, name, &environment, &SECTIONS)?;
        // Before all else, so that what is wrong there is said as the log is written.
        let format = Log::read(&document.root()).map_or(Format::Text, |log| log.format);
        Self::read_all(document.root(), available).map_err(|error| error.in_format(format))
    }

    fn read_all(root: Section, available: &[usize]) -> Result<Self, ConfigError> {
        let root = root.only(&["node", "api", "edge", "mesh", "queue", "limits", "data", "log"])?;
        let node = Node::read(&root, available)?;
        let api = Api::read(&root)?;
        let mesh = Mesh::read(&root)?;
        let limits = Limits::read(&root, mesh.is_some(), node.cores.len())?;
        let edges = read_edges(&root, &api, &limits)?;
        let queue = Queue::read(&root, &edges)?;
        Ok(Self {
            node,
            api,
            edges,
            mesh,
            queue,
            limits,
            data: Data::read(&root)?,
            log: Log::read(&root)?,
        })
    }
}

impl Config {
    /// What is allowed and yet likely a mistake, at this time: a line each.
    pub fn warnings(&self, unix_ms: u64) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.edges.is_empty() {
            warnings.push("no [[edge]] is configured: no device can connect to this node".into());
        }
        let edges = self.edges.iter().map(|edge| &edge.tls);
        let listeners = std::iter::once(&self.api.tls).chain(edges).flatten();
        warnings.extend(listeners.flat_map(|tls| tls.warnings(unix_ms)));
        if let Some(Mesh { trust: Trust::Files(files), .. }) = &self.mesh {
            warnings.extend(files.warnings(unix_ms));
        }
        warnings
    }
}

/// What `gridcast check` says of a configuration that is right.
impl fmt::Display for Config {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "node {} on CPUs {}", self.node.id, numbers(&self.node.cores))?;
        let over = |tls: &Option<Tls>| if tls.is_some() { " over TLS" } else { "" };
        let api = &self.api;
        write!(formatter, "\napi {}{}, advertised as {}", api.bind, over(&api.tls), api.advertise)?;
        if !self.api.users.is_empty() {
            let names: Vec<&str> = self.api.users.iter().map(|user| &user.name[..]).collect();
            write!(formatter, ", for {}", names.join(", "))?;
        }
        for edge in &self.edges {
            let routes: Vec<String> = edge.routes.iter().map(Route::to_string).collect();
            let routes = routes.join(", ");
            write!(formatter, "\nedge {}{}: {routes}", edge.bind, over(&edge.tls))?;
        }
        if let Some(mesh) = &self.mesh {
            write!(formatter, "\n{mesh}")?;
        }
        Ok(())
    }
}

/// Reads a file that the configuration names, or its own. Everything that is read from such a path is
/// read here: a FIFO or a device would keep the node waiting, or never end.
fn read_bounded(path: &Path) -> io::Result<String> {
    // Without waiting: to open a FIFO waits until somebody writes it.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut text = String::new();
    // One byte more than allowed tells a file that is too large from one that just fits.
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

const NODE_KEYS: [&str; 4] = ["id", "cores", "drain_s", "spin_us"];

/// Who this node is and what it runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Unique in the grid, 0 to 1023: the node part of the client ids given out here. Default: 1,
    /// without a mesh.
    pub id: u16,
    /// CPU numbers, 1 to 256 of those that the process may use; a shard is pinned to each. Written
    /// as their count or as a list. Default: all of them. Each costs two threads and a ring.
    pub cores: Vec<usize>,
    /// Seconds that going down may take: closing clients, giving out topics, answering what is
    /// pending. 1 to 3600. Default: 10.
    pub drain_s: u64,
    /// Microseconds that a shard looks for work before it sleeps, where its last wait was short. 0
    /// to 1000. Default: 0.
    pub spin_us: u64,
}

impl Node {
    fn read(root: &Section, available: &[usize]) -> Result<Self, ConfigError> {
        let section = root.table("node")?.only(&NODE_KEYS)?;
        let usable = &available[..available.len().min(CORES_MAX)];
        let expected = format!(
            "a count from 1 to {}, or a list of different CPU numbers out of {}",
            usable.len(),
            numbers(available)
        );
        let cores = section.read("cores", &expected, |value| chosen_cores(value, available))?;
        Ok(Self {
            id: section.whole("id", "", 0..=1023, 1)?,
            drain_s: section.whole("drain_s", " of seconds", 1..=3600, 10)?,
            spin_us: section.whole("spin_us", " of microseconds", 0..=1000, 0)?,
            cores: cores.unwrap_or_else(|| usable.to_vec()),
        })
    }
}

fn chosen_cores(value: &DeValue, available: &[usize]) -> Option<Vec<usize>> {
    let cores = match whole_number(value) {
        Some(count) => available.get(..count)?.to_vec(),
        None => listed_cores(value, available)?,
    };
    (1..=CORES_MAX).contains(&cores.len()).then_some(cores)
}

fn listed_cores(value: &DeValue, available: &[usize]) -> Option<Vec<usize>> {
    let mut seen = BTreeSet::new();
    let mut is_new = |core: &usize| available.contains(core) && seen.insert(*core);
    let items = value.as_array()?.iter();
    items.map(|item| whole_number(item.get_ref()).filter(&mut is_new)).collect()
}

/// `[0, 1, 2, 3, 8]` as `0-3, 8`.
fn numbers(cpus: &[usize]) -> String {
    let run = |run: &[usize]| match run {
        [first, .., last] => format!("{first}-{last}"),
        _ => format!("{}", run[0]),
    };
    let runs: Vec<String> = cpus.chunk_by(|a, b| a + 1 == *b).map(run).collect();
    runs.join(", ")
}

const API_KEYS: [&str; 4] = ["bind", "advertise", "origins", "tls"];

/// The listener for back ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    /// Default: 127.0.0.1:6789. With port 0 the system picks one. Without users it is an address of
    /// loopback: who can connect may do all.
    pub bind: SocketAddr,
    /// Where back ends reach this node, as `GET /v1/nodes` tells them. Default: `bind`, whose port
    /// may be 0; then the one that was picked is meant. A written one is never 0, nor is its IP.
    pub advertise: SocketAddr,
    /// Web origins, beside the API's own, that may call it from a browser; in lower case, as
    /// browsers send them. Default: none.
    pub origins: Vec<String>,
    /// `[api.tls]`. Default: none, plain HTTP.
    pub tls: Option<Tls>,
    /// Who may use it. Default: nobody in particular, there is no authentication.
    pub users: Vec<User>,
}

impl Api {
    fn read(root: &Section) -> Result<Self, ConfigError> {
        let section = root.table("api")?;
        // Users are tables, which no variable can set.
        let section = section.only(&[&API_KEYS[..], &["user"]].concat())?;
        let users = read_users(&section)?;
        let bind = read_address(&section, "bind", 6789)?;
        if users.is_empty() && !bind.ip().to_canonical().is_loopback() {
            let reason = "without users the API listens on loopback only, such as 127.0.0.1:6789";
            return Err(section.fault(&["bind"], format!("{reason}; found {bind}")));
        }
        let advertise = read_reachable(&section, "advertise")?;
        let origins = read_origins(&section)?.unwrap_or_default();
        let tls = Tls::read(&section)?;
        Ok(Self { bind, advertise: advertise.unwrap_or(bind), origins, tls, users })
    }
}

fn read_address(section: &Section, key: &str, port: u16) -> Result<SocketAddr, ConfigError> {
    let address = section.read_text(key, ADDRESS, address)?;
    Ok(address.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, port))))
}

/// An address that others can connect to.
fn read_reachable(section: &Section, key: &str) -> Result<Option<SocketAddr>, ConfigError> {
    section.read_text(key, ADDRESS, |text| {
        address(text).filter(|address| !address.ip().is_unspecified() && address.port() != 0)
    })
}

fn address(text: &str) -> Option<SocketAddr> {
    text.parse().ok()
}

fn message_bytes(section: &Section, key: &str, default: usize) -> Result<usize, ConfigError> {
    section.whole(key, BYTES, 1..=MESSAGE_BYTES_MAX, default)
}

fn outbound_bytes(section: &Section, default: usize) -> Result<usize, ConfigError> {
    section.whole("outbound_bytes", BYTES, 1024..=1 << 30, default)
}

/// A number that 0 sets no limit to.
fn limit(section: &Section, key: &str, default: u32) -> Result<u32, ConfigError> {
    section.whole(key, "", 0..=1_000_000, default)
}

const QUEUE_KEYS: [&str; 4] = ["topic_messages", "topic_bytes", "when_full", "topics"];

/// The bounds of topics, on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Messages that wait in one topic, 1 to 16,777,216. Default: 65,536.
    pub topic_messages: usize,
    /// Bytes that wait in one topic, 4,096 to 64 GiB, and room for the largest message of any
    /// route that feeds one. Default: 67,108,864. A topic without consumers fills them.
    pub topic_bytes: usize,
    /// What happens to messages for which there is no room. Default: hold.
    pub when_full: WhenFull,
    /// Topics, 1 to 1,048,576. Default: 1,024.
    pub topics: usize,
}

impl Queue {
    fn read(root: &Section, edges: &[Edge]) -> Result<Self, ConfigError> {
        let section = root.table("queue")?.only(&QUEUE_KEYS)?;
        let choices = [
            ("hold", WhenFull::Hold),
            ("drop_oldest", WhenFull::DropOldest),
            ("close", WhenFull::Close),
        ];
        let queue = Self {
            topic_messages: section.whole("topic_messages", "", 1..=1 << 24, 65_536)?,
            topic_bytes: section.whole("topic_bytes", BYTES, 4096..=64 << 30, TOPIC_BYTES)?,
            when_full: section.choice("when_full", &choices, WhenFull::Hold)?,
            topics: section.whole("topics", "", 1..=1 << 20, 1024)?,
        };
        let routes = edges.iter().flat_map(|edge| &edge.routes);
        let feeding = routes.filter(|route| route.topic.is_some());
        let Some(message_bytes) = feeding.map(|route| route.message_bytes).max() else {
            return Ok(queue);
        };
        let needed = topic_bytes_min(message_bytes);
        if queue.topic_bytes < needed {
            let reason = format!(
                "expected at least {needed} bytes, room for a route's message of {message_bytes} \
                 bytes; found {}",
                queue.topic_bytes
            );
            return Err(section.fault(&["topic_bytes"], reason));
        }
        Ok(queue)
    }
}

/// Room for one message: base64 makes four bytes of three, JSON escapes seldom make more than two
/// of one.
const fn topic_bytes_min(message_bytes: usize) -> usize {
    2 * message_bytes + ENVELOPE_BYTES
}

const LIMITS_KEYS: [&str; 17] = [
    "edge_message_bytes",
    "api_message_bytes",
    "head_bytes",
    "headers",
    "outbound_bytes",
    "slow_client",
    "channels_per_client",
    "clients",
    "api_connections",
    "memory_bytes",
    "connections_per_address",
    "handshakes_per_address_s",
    "messages_per_s",
    "handshake_ms",
    "ping_ms",
    "idle_ms",
    "answer_ms",
];

/// Bounds on what one connection may cost, and on how long things may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest message of a client, in bytes of all its fragments, 1 to 16,777,216; a route may
    /// have its own. Default: 65,536.
    pub edge_message_bytes: usize,
    /// Largest message or request body of a back end, 1,024 to 67,108,864 bytes.
    /// Default: 1,048,576.
    pub api_message_bytes: usize,
    /// Largest head of an HTTP request, 1,024 to 1,048,576 bytes. Default: 16,384.
    pub head_bytes: usize,
    /// Header fields in that head, 1 to 256. Default: 100.
    pub headers: usize,
    /// Memory that what waits for one client or back end may take, 1,024 bytes to 1 GiB; a route may
    /// have its own. Each queued message counts with its bytes and 128 more. Default: 1,048,576.
    /// Allocated as it is used: a client that keeps up costs none of it.
    pub outbound_bytes: usize,
    /// What happens to a client for which more would wait. Default: close.
    pub slow_client: SlowClient,
    /// Channels that one client is subscribed to, 1 to 1,048,576. Default: 1,024.
    pub channels_per_client: usize,
    /// Clients of this node, up to 16,777,216. Default: 0, as many as descriptors and memory allow.
    pub clients: usize,
    /// Connections of the API, up to 1,048,576; descriptors are set aside for so many. Default: 0, one
    /// in 16 of the descriptors.
    pub api_connections: usize,
    /// Memory of the node in bytes: connections, what waits for them, what is half received, contexts,
    /// channels, topics, and what the kernel takes for an idle connection. 64 MiB and 16 MiB more for
    /// each core at least. Near it the node gives way in a documented order. Default: 0, three quarters
    /// of what the control group or else the machine has.
    pub memory_bytes: u64,
    /// Connections of one address, of IPv6 one /64 network, to all edges, up to 1,000,000. Default:
    /// 0, any number. Costs a message to another shard and back per connection, and about 50 bytes
    /// per address.
    pub connections_per_address: u32,
    /// Handshakes a second of one address, to all edges, up to 1,000,000; as many may come at once.
    /// Default: 0, any number. Costs likewise; a refused handshake ends its connection then.
    pub handshakes_per_address_s: u32,
    /// Messages a second of one client, up to 1,000,000; as many may come at once; a route may have
    /// its own. Default: 0, any number. Beyond it the client is not read from.
    pub messages_per_s: u32,
    /// Milliseconds from accepting a connection to the end of its handshake, 1 to 3,600,000.
    /// Default: 10,000.
    pub handshake_ms: u64,
    /// Milliseconds of silence after which a connection is pinged, 1 to 3,600,000 and less than
    /// `idle_ms`. Default: 30,000. Each ping wakes the device at the other end.
    pub ping_ms: u64,
    /// Milliseconds of silence after which a connection is closed, 2 to 3,600,000.
    /// Default: 60,000.
    pub idle_ms: u64,
    /// Milliseconds that a call waits for other shards and nodes, 1 to 2,000, in which every call
    /// is answered. Default: 1,500.
    pub answer_ms: u64,
}

/// The answer to a client that does not read what is sent to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowClient {
    /// Close it with 1013; the message counts as failed.
    Close,
    /// Drop the message, which counts as failed; the client stays.
    Drop,
}

/// The lease of what a node knows of another's interest, and some.
const MESH_ANSWER_MS_MIN: u64 = 1100;

impl Limits {
    fn read(root: &Section, has_mesh: bool, cores: usize) -> Result<Self, ConfigError> {
        let section = root.table("limits")?.only(&LIMITS_KEYS)?;
        let bytes = |key, bounds, default| section.whole(key, BYTES, bounds, default);
        let count = |key, bounds, default| section.whole(key, "", bounds, default);
        let ms = |key, bounds, default| section.whole(key, MILLISECONDS, bounds, default);
        let slow_client = [("close", SlowClient::Close), ("drop", SlowClient::Drop)];
        let limits = Self {
            edge_message_bytes: message_bytes(&section, "edge_message_bytes", 65_536)?,
            api_message_bytes: bytes("api_message_bytes", 1024..=64 << 20, 1 << 20)?,
            head_bytes: bytes("head_bytes", 1024..=1 << 20, 16_384)?,
            headers: count("headers", 1..=256, 100)?,
            outbound_bytes: outbound_bytes(&section, 1 << 20)?,
            slow_client: section.choice("slow_client", &slow_client, SlowClient::Close)?,
            channels_per_client: count("channels_per_client", 1..=1 << 20, 1024)?,
            clients: count("clients", 0..=1 << 24, 0)?,
            api_connections: count("api_connections", 0..=1 << 20, 0)?,
            memory_bytes: memory_bytes(&section, cores)?,
            connections_per_address: limit(&section, "connections_per_address", 0)?,
            handshakes_per_address_s: limit(&section, "handshakes_per_address_s", 0)?,
            messages_per_s: limit(&section, "messages_per_s", 0)?,
            handshake_ms: ms("handshake_ms", 1..=HOUR_MS, 10_000)?,
            ping_ms: ms("ping_ms", 1..=HOUR_MS, 30_000)?,
            idle_ms: ms("idle_ms", 2..=HOUR_MS, 60_000)?,
            answer_ms: ms("answer_ms", 1..=2000, 1500)?,
        };
        if has_mesh && limits.answer_ms < MESH_ANSWER_MS_MIN {
            let answer_ms = limits.answer_ms;
            let reason = format!(
                "expected at least {MESH_ANSWER_MS_MIN} with a mesh, found {answer_ms}: a subscribe \
                 waits a second for a node that is silent"
            );
            return Err(section.fault(&["answer_ms"], reason));
        }
        if limits.ping_ms >= limits.idle_ms {
            let Self { ping_ms, idle_ms, .. } = limits;
            let reason =
                format!("expected ping_ms ({ping_ms}) to be less than idle_ms ({idle_ms})");
            return Err(section.fault(&["idle_ms", "ping_ms"], reason));
        }
        Ok(limits)
    }
}

/// The least budget of a node with so many cores: what its shards take without a client, and as much
/// again.
pub fn memory_bytes_min(cores: usize) -> u64 {
    (64 << 20) + (cores as u64) * (16 << 20)
}

fn memory_bytes(section: &Section, cores: usize) -> Result<u64, ConfigError> {
    let bytes = section.whole("memory_bytes", BYTES, 0..=1u64 << 50, 0)?;
    let least = memory_bytes_min(cores);
    if bytes > 0 && bytes < least {
        let reason = format!(
            "expected at least {least} with {cores} cores, or 0 for three quarters of what there is; \
             found {bytes}"
        );
        return Err(section.fault(&["memory_bytes"], reason));
    }
    Ok(bytes)
}

const DATA_KEYS: [&str; 1] = ["dir"];

/// What is kept on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// A directory, made if it is not there: a record of the client ids that may be in use. Default:
    /// none; the record is in systemd's `$STATE_DIRECTORY`, or else in memory.
    pub dir: Option<PathBuf>,
}

impl Data {
    fn read(root: &Section) -> Result<Self, ConfigError> {
        let section = root.table("data")?.only(&DATA_KEYS)?;
        let dir = section.text("dir", "the path of a directory", |path| !path.is_empty())?;
        Ok(Self { dir: dir.map(PathBuf::from) })
    }
}

const LOG_KEYS: [&str; 2] = ["level", "format"];

/// What goes to standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// How much. Default: info.
    pub level: Level,
    /// How it is written. Default: text.
    pub format: Format,
}

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line, for programs.
    Json,
}

/// How much is logged: this level and those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What ended the node.
    Error,
    /// What someone should look at.
    Warn,
    /// What changes in the life of the node.
    Info,
    /// What helps to find a fault.
    Debug,
}

impl Log {
    fn read(root: &Section) -> Result<Self, ConfigError> {
        let section = root.table("log")?.only(&LOG_KEYS)?;
        let levels = [
            ("error", Level::Error),
            ("warn", Level::Warn),
            ("info", Level::Info),
            ("debug", Level::Debug),
        ];
        let formats = [("text", Format::Text), ("json", Format::Json)];
        Ok(Self {
            level: section.choice("level", &levels, Level::Info)?,
            format: section.choice("format", &formats, Format::Text)?,
        })
    }
}

#[cfg(test)]
mod tests;
