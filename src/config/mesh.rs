//! The other nodes of the grid, and how nodes authenticate each other.

use std::fmt;
use std::net::SocketAddr;

use super::definition::section;
use super::document::{ConfigError, Section};
use super::shape::{ADDRESS, List, REACHABLE, SecretText, whole_of};
use super::tls::MutualTls;

const KEY_BYTES_MIN: usize = 16;
const KEY_BYTES_MAX: usize = 1024;

/// RFC 1035, section 2.3.4.
const HOST_BYTES_MAX: usize = 255;

section! {
    pub(super) struct MeshKeys(section) {
        /// The UDP address that other nodes connect to. Port 0 lets the system pick one.
        bind: SocketAddr = ADDRESS, required("a mesh needs one", "\"10.0.0.5:6788\""), restart;

        /// The address at which other nodes reach this one.
        advertise: SocketAddr = REACHABLE, derived(
            bind,
            "`bind`; where that is `0.0.0.0` or `[::]`, the address of the route to the first seed, or out",
            "\"10.0.0.5:6788\""
        ), restart;

        /// Nodes to join at the start. A name may resolve to several addresses. One node of a grid may have
        /// no seeds; it waits for the others.
        seeds: Vec<String> = SEEDS, value(Vec::new()), restart;

        /// The number of nodes, this one included, that must have been seen before `/readyz` answers 200.
        expect: usize = whole_of(" of nodes", 1..=1024), value(1), restart;

        /// Threads that carry the links to other nodes. With 1 the mesh's own thread does. With more, so many
        /// others share the links, and the mesh's own is left with what goes over them.
        threads: usize = whole_of(" of threads", 1..=64), value(1), restart;

        /// The secret of the grid, the same on all nodes. Generate one with `openssl rand -hex 32`.
        key: Option<GridKey> = KEY, none(
            "none; then `[mesh.tls]` is required", "\"change-me: openssl rand -hex 32\""
        ), restart;
    }
    tables {
        /// Certificates that nodes present to each other, instead of `mesh.key`. An authority of your own
        /// issues them for the name `node.gridcast`. They are read when the node starts.
        tls as "tls": Option<MutualTls> = MutualTls::read(section)?, Optional(MutualTls::definition);
    }
}

/// This node's part of a grid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshConfig {
    /// The UDP address of this node. With port 0 the system picks one.
    pub bind: SocketAddr,
    /// The address at which other nodes reach this one. If it is equal to `bind`, port 0 stands for the
    /// port that was picked, and an unspecified IP stands for that of the route out.
    pub advertise: SocketAddr,
    /// Nodes to join at the start, `HOST:PORT`.
    pub seeds: Vec<String>,
    /// The number of nodes that must have been seen before this one is ready.
    pub expect: usize,
    /// Threads that carry links; 1: the mesh's own.
    pub threads: usize,
    /// How nodes authenticate each other.
    pub trust: Trust,
}

/// How the nodes of a grid authenticate each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// `key`: a secret of all nodes of the grid.
    Key(GridKey),
    /// `[mesh.tls]`: certificates for the name `node.gridcast`.
    Files(MutualTls),
}

/// The secret of a grid.
#[derive(Clone, PartialEq, Eq)]
pub struct GridKey(Box<str>);

impl GridKey {
    /// The secret itself, which is shown nowhere.
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for GridKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("GridKey(…)")
    }
}

impl MeshConfig {
    /// Reads `[mesh]`. `None`: there is no such table, and no variable for one of its keys.
    pub(super) fn read(root: &Section<'_>) -> Result<Option<Self>, ConfigError> {
        let section = root.table("mesh")?;
        if !section.is_written() {
            return Ok(None);
        }
        let MeshKeys { bind, advertise, seeds, expect, threads, key, tls } =
            MeshKeys::read_keys(&section)?;
        let trust = match (key, tls) {
            (Some(key), None) => Trust::Key(key),
            (None, Some(files)) => Trust::Files(files),
            (None, None) => {
                return Err(
                    section.fault(&["key"], "missing; a mesh has a key or a table [mesh.tls]")
                );
            }
            (Some(_), Some(_)) => {
                return Err(
                    section.fault(&["key"], "a mesh has a key or a table [mesh.tls], not both")
                );
            }
        };
        let node = root.table("node")?;
        if !node.has("id") {
            let reason = "missing; with a mesh each node has an id of its own, 0 to 1023";
            return Err(node.fault(&["id"], reason));
        }
        Ok(Some(Self { bind, advertise, seeds, expect, threads, trust }))
    }
}

impl fmt::Display for MeshConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "mesh {}, advertised as {}", self.bind, self.advertise)?;
        if !self.seeds.is_empty() {
            write!(formatter, ", seeds {}", self.seeds.join(", "))?;
        }
        if self.expect > 1 {
            write!(formatter, ", of {} nodes", self.expect)?;
        }
        Ok(())
    }
}

const SECRET: &str = "a secret of 16 to 1024 bytes, such as `openssl rand -hex 32` makes";

const KEY: SecretText<GridKey> = SecretText {
    expected: SECRET,
    parse: |key| match (KEY_BYTES_MIN..=KEY_BYTES_MAX).contains(&key.len()) {
        true => Ok(GridKey(key.into())),
        false => Err(SECRET.to_owned()),
    },
};

const SEED: &str = "a host and port such as \"10.0.0.5:6788\" or \"node-2.example.org:6788\"";

const SEEDS: List<String> = List {
    expected: SEED,
    parse: |text| if is_seed(text) { Ok(text.to_owned()) } else { Err(SEED.to_owned()) },
    empty: None,
};

fn is_seed(text: &str) -> bool {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return address.port() != 0 && !address.ip().is_unspecified();
    }
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let is_of_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    (1..=HOST_BYTES_MAX).contains(&host.len())
        && host.bytes().all(is_of_name)
        && port.parse::<u16>().is_ok_and(|port| port != 0)
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{development, parse, parse_with, refused, refused_variable};

    #[test]
    fn a_mesh_needs_an_address_a_key_and_an_id_of_the_node() {
        let key = "key = \"0123456789abcdef\"";
        let missing = "missing; a mesh needs one";
        refused("\n[mesh]\nseeds = []", &format!("gridcast.toml:2: mesh.bind: {missing}"));
        refused(
            "[mesh]\nbind = \"127.0.0.1:0\"",
            "gridcast.toml:1: mesh.key: missing; a mesh has a key or a table [mesh.tls]",
        );
        let id = "missing; with a mesh each node has an id of its own, 0 to 1023";
        let mesh = format!("[mesh]\nbind = \"0.0.0.0:0\"\n{key}");
        refused(&mesh, &format!("gridcast.toml: node.id: {id}"));
        let short = "limits.answer_ms: expected at least 1100 with a mesh, found 1099: a subscribe waits a \
                     second for a node that is silent";
        let limits = "node.id = 1\nlimits.answer_ms = 1099";
        refused(&format!("{limits}\n{mesh}"), &format!("gridcast.toml:2: {short}"));
        assert_eq!(parse(limits).limits.answer_ms, 1099);
        let config = parse(&format!("node.id = 0\n{mesh}"));
        let mesh = config.mesh.expect("it is written");
        assert_eq!((mesh.advertise, mesh.seeds.len()), (mesh.bind, 0));
        refused(
            &format!("node.id = 0\n[mesh]\n{key}\nbind = \"localhost:1\""),
            "gridcast.toml:4: mesh.bind: expected an IP address and port such as \"127.0.0.1:7000\", \
             found \"localhost:1\"",
        );
    }

    #[test]
    fn variables_alone_can_put_a_node_into_a_grid() {
        let variables = [
            ("GRIDCAST_NODE_ID", "3"),
            ("GRIDCAST_MESH_BIND", "127.0.0.1:0"),
            ("GRIDCAST_MESH_SEEDS", "['a:1', '127.0.0.1:2']"),
            ("GRIDCAST_MESH_KEY", "0123456789abcdef"),
        ];
        let mesh = development(&variables).expect("they are right").mesh.expect("they make one");
        assert_eq!(mesh.seeds, ["a:1", "127.0.0.1:2"]);
        refused_variable(
            "GRIDCAST_MESH_BIND",
            "127.0.0.1:0",
            "built-in configuration: mesh.key: missing; a mesh has a key or a table [mesh.tls]",
        );
    }

    #[test]
    fn the_key_of_a_grid_is_long_and_not_shown() {
        let with = |key: &str| format!("node.id = 1\n[mesh]\nbind = \"127.0.0.1:0\"\nkey = {key}");
        for key in
            ["\"\"", "\"0123456789abcde\"", "1234567890123456", &format!("{:?}", "x".repeat(1025))]
        {
            refused(
                &with(key),
                "gridcast.toml:4: mesh.key: expected a secret of 16 to 1024 bytes, such as \
                 `openssl rand -hex 32` makes",
            );
        }
        let config = parse(&with("\"0123456789abcdef\""));
        assert!(!format!("{config:?} {config}").contains("0123456789abcdef"));
    }

    #[test]
    fn a_grid_has_a_key_or_certificates() {
        let with = |lines: &str| format!("node.id = 1\n[mesh]\nbind = \"127.0.0.1:0\"\n{lines}");
        let tls = "[mesh.tls]\ncert = 'no/such.pem'";
        refused(&with(tls), "gridcast.toml:4: mesh.tls.key: missing; TLS needs one");
        refused(
            &with(&format!("{tls}\nkey = 'x'")),
            "gridcast.toml:4: mesh.tls.ca: missing; nodes are known by one",
        );
        let error =
            parse_with(&with(&format!("{tls}\nkey = 'x'\nca = 'x'")), &[]).unwrap_err().to_string();
        assert!(
            error.starts_with("gridcast.toml:5: mesh.tls.cert: no/such.pem: cannot"),
            "{error}"
        );
    }

    #[test]
    fn a_seed_is_a_host_and_a_port() {
        for seed in
            ["10.0.0.5", "10.0.0.5:0", "0.0.0.0:1", ":1", "a:", "a:x", "a b:1", "a:1:2", "ä:1"]
        {
            refused(
                &format!(
                    "[mesh]\nbind = \"127.0.0.1:0\"\nkey = \"0123456789abcdef\"\nseeds = [\"{seed}\"]"
                ),
                &format!(
                    "gridcast.toml:4: mesh.seeds: expected a host and port such as \
                     \"10.0.0.5:6788\" or \"node-2.example.org:6788\", found \"{seed}\""
                ),
            );
        }
    }
}
