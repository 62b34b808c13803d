//! The configuration: a TOML file and `GRIDCAST_` variables → checked values.
//!
//! Each key is defined once: its name, type, bounds, default and documentation stand together in a
//! `section!` (`definition.rs`). The fields that the rest of gridcast reads, the variables that override
//! them, the reference page (`reference.rs`) and the sample file (`sample.rs`) come from there.
//!
//! - `document.rs`: the file and the variables, with the place of each value. `shape.rs`: the types of
//!   values.
//! - `node.rs`, `api.rs`, `edge.rs`, ...: one section each, and the rules between its keys.
//!
//! An error is one line: the place, the key, the expected value, the value found. The layer reads files
//! and nothing else of the process: environment variables and CPUs are arguments.

mod admit;
mod api;
mod call_source;
mod changes;
mod channel;
pub mod client_variables;
mod data;
mod definition;
mod document;
mod edge;
mod file;
mod kafka;
mod limits;
mod log;
mod mesh;
mod node;
mod origin;
mod proxy;
mod queue;
mod reference;
mod route;
mod sample;
mod service;
mod shape;
mod sink;
mod source;
mod tls;
mod token;
mod topic;
mod user;

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

pub use api::Api;
use call_source::{CallSourceKeys, read_call_sources};
pub use changes::{Change, WrittenSettings};
pub use channel::ChannelConfig;
use channel::read_channels;
pub use data::Data;
use definition::section;
pub use document::ConfigError;
use document::Document;
pub use edge::Edge;
use edge::read_edges;
pub use limits::{Limits, SlowClient, memory_bytes_min};
pub use log::{Format, Level, Log};
use mesh::MeshKeys;
pub use mesh::{GridKey, MeshConfig, Trust};
use node::numbers;
pub use node::{DriverChoice, Node};
pub use proxy::Proxy;
pub use queue::Queue;
pub use reference::reference_page;
pub use route::{Events, Handler, Route};
pub use sample::sample_file;
use sink::{SinkKeys, read_sinks};
pub use source::{Loaded, Source};
pub use tls::{MutualTls, TlsFiles};
use topic::read_topics;
pub use topic::{Store, TopicConfig};

use crate::protocol::call_source::CallSource;
use crate::protocol::sink::Sink;

/// The largest file that is read. A thousand routes take a tenth of it.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The configuration of a node that is given no file.
const DEVELOPMENT: &str = include_str!("config/development.toml");

section! {
    /// The whole configuration of one node.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Config(root) {}
    tables {
        node as "node": Node = Node::read(root)?, One(Node::definition);

        api as "api": Api = Api::read(root)?, One(Api::definition);

        /// The other nodes of the grid. Without this table the node is alone.
        mesh as "mesh": Option<MeshConfig> = MeshConfig::read(root)?, Optional(MeshKeys::definition), restart;

        limits as "limits": Limits =
            Limits::read(root, mesh.is_some(), node.cores.len())?, One(Limits::definition);

        /// Listeners for clients. A node without a configuration file has one, on 127.0.0.1:6790.
        edges as "edge": Vec<Edge> = read_edges(root, &api, &limits)?, Many(Edge::definition), restart;

        queue as "queue": Queue = Queue::read(root, &edges)?, One(Queue::definition);

        sinks as "sink": Vec<Arc<Sink>> = read_sinks(root)?, Many(SinkKeys::definition);

        call_sources as "source": Vec<Arc<CallSource>> =
            read_call_sources(root)?, Many(CallSourceKeys::definition);

        data as "data": Data = Data::read(root)?, One(Data::definition);

        topics as "topic": Vec<TopicConfig> =
            read_topics(root, &edges, &queue, &sinks, &data)?, Many(TopicConfig::definition), restart;

        channels as "channel": Vec<ChannelConfig> =
            read_channels(root, mesh.is_some())?, Many(ChannelConfig::definition), restart;

        log as "log": Log = Log::read(root)?, One(Log::definition);
    }
}

impl Config {
    /// Reads `file`, overridden by those variables of `environment` that begin with `GRIDCAST_`.
    /// `available` are the numbers of the CPUs that the process may use: at least one.
    pub fn read(
        file: &Path,
        environment: impl Iterator<Item = (String, String)>,
        available: &[usize],
    ) -> Result<Self, ConfigError> {
        let text = read_file(file)?;
        Self::parse(&text, &file.display().to_string(), environment, available)
    }

    /// The configuration of a node without a file: listeners on loopback, and the routes `/ws` and
    /// `/echo`. Variables override its keys.
    pub fn development(
        environment: impl Iterator<Item = (String, String)>,
        available: &[usize],
    ) -> Result<Self, ConfigError> {
        Self::parse(DEVELOPMENT, "built-in configuration", environment, available)
    }

    /// Reads the text of a file, like [`Config::read`]. Error messages call the file `name`.
    pub fn parse(
        text: &str,
        name: &str,
        environment: impl Iterator<Item = (String, String)>,
        available: &[usize],
    ) -> Result<Self, ConfigError> {
        let environment: Vec<_> = environment.collect();
        Self::load(text, name, &environment, available).map(|loaded| loaded.config)
    }

    fn load(
        text: &str,
        name: &str,
        environment: &[(String, String)],
        available: &[usize],
    ) -> Result<Loaded, ConfigError> {
        let keys = || Self::definition().single_keys();
        let document = Document::parse(text, name, environment, keys, available)?;
        let root = document.root();
        // Read first, so that errors are reported in the format of the log.
        let format = Log::read(&root).map_or(Format::Text, |log| log.format);
        let config = Self::read_keys(&root).map_err(|error| error.in_format(format))?;
        let mut written = WrittenSettings::collect(&root, &Self::definition())?;
        config.fixed_paths().for_each(|path| written.fix(&path));
        Ok(Loaded { config, written })
    }
}

impl Config {
    /// Whether a topic of this name is on disk. Its groups are those of its log, which is opened at the start.
    pub fn is_on_disk(&self, topic: &str) -> bool {
        self.topics.iter().any(|known| known.name == topic && known.store == Store::Disk)
    }

    /// The paths of settings that need a restart because they name groups of a topic on disk.
    fn fixed_paths(&self) -> impl Iterator<Item = String> {
        let on_disk = self.topics.iter().filter(|topic| topic.store == Store::Disk);
        let groups = on_disk.map(|topic| format!("topic[{:?}].default_group", topic.name));
        let sinks = self.sinks.iter().filter(|sink| self.is_on_disk(&sink.topic));
        let sinks = sinks.flat_map(|sink| {
            let table = format!("sink[{:?}]", sink.name);
            [format!("{table}.topic"), table]
        });
        groups.chain(sinks)
    }

    /// The number of services that answer questions of devices or take events (different admission hooks of
    /// routes, and webhooks of sinks), and that of different key sets and of connections to other engines.
    pub fn services(&self) -> (usize, usize) {
        let routes = || self.edges.iter().flat_map(|edge| &edge.routes);
        let hooks: HashSet<_> = routes().filter_map(|route| route.admit.as_ref()).collect();
        let rules = routes().filter_map(|route| route.token.as_ref());
        let key_sets: HashSet<_> = rules.filter_map(|rule| rule.key_source()).collect();
        let connections = self.sinks.iter().map(|sink| sink.engine.connections());
        let webhooks = connections.clone().filter(Option::is_none).count();
        // A connection, and one that replaces it: as many descriptors as for a key set.
        let sources = self.call_sources.iter().map(|source| source.engine.connections());
        let connections: usize = connections.flatten().chain(sources).sum();
        (hooks.len() + webhooks, key_sets.len() + connections)
    }

    /// Warnings about settings that are allowed but likely a mistake at this time, one line each.
    pub fn warnings(&self, unix_ms: u64) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.edges.is_empty() {
            warnings.push("no [[edge]] is configured: no device can connect to this node".into());
        }
        let edges = self.edges.iter().map(|edge| &edge.tls);
        let listeners = std::iter::once(&self.api.tls).chain(edges).flatten();
        warnings.extend(listeners.flat_map(|tls| tls.warnings(unix_ms)));
        if let Some(MeshConfig { trust: Trust::Files(files), .. }) = &self.mesh {
            warnings.extend(files.warnings(unix_ms));
        }
        warnings.extend(topic::warnings(&self.topics));
        warnings.extend(channel::warnings(&self.channels));
        warnings
    }
}

/// The summary that `gridcast check` prints for a valid configuration.
impl fmt::Display for Config {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "node {} on CPUs {}", self.node.id, numbers(&self.node.cores))?;
        let over = |tls: &Option<TlsFiles>| if tls.is_some() { " over TLS" } else { "" };
        let api = &self.api;
        write!(formatter, "\napi {}{}", api.bind, over(&api.tls))?;
        match (api.advertise, &api.bind) {
            (Some(advertise), _) => write!(formatter, ", advertised as {advertise}")?,
            (None, bind) if bind.tcp().is_some() => write!(formatter, ", advertised as {bind}")?,
            (None, _) => {}
        }
        if !self.api.users.is_empty() {
            let names: Vec<&str> = self.api.users.iter().map(|user| &user.name[..]).collect();
            write!(formatter, ", for {}", names.join(", "))?;
        }
        for edge in &self.edges {
            let routes: Vec<String> = edge.routes.iter().map(Route::to_string).collect();
            let routes = routes.join(", ");
            write!(formatter, "\nedge {}{}: {routes}", edge.bind, over(&edge.tls))?;
        }
        for sink in &self.sinks {
            write!(formatter, "\nsink {}: topic {} to {}", sink.name, sink.topic, sink.engine)?;
        }
        for source in &self.call_sources {
            write!(formatter, "\nsource {}: calls from {}", source.name, source.engine)?;
        }
        if let Some(mesh) = &self.mesh {
            write!(formatter, "\n{mesh}")?;
        }
        Ok(())
    }
}

/// Reads the file of a configuration.
fn read_file(file: &Path) -> Result<String, ConfigError> {
    read_bounded(file)
        .map_err(|error| ConfigError::new(file.display(), format!("cannot be read: {error}")))
}

/// Reads the configuration file or a file that it names. Every such file is read here, because a FIFO or
/// a device could block the node, or never end.
fn read_bounded(path: &Path) -> io::Result<String> {
    // Does not block: opening a FIFO would wait for a writer.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut text = String::new();
    // Reads one byte more than allowed, to tell a file that is too large from one that just fits.
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
