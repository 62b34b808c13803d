//! The other nodes of the grid, and what proves that a node belongs to it.

use std::fmt;
use std::net::SocketAddr;

use super::definition::section;
use super::document::{ConfigError, Section};
use super::shape::{ADDRESS, List, REACHABLE, Secret, whole_of};
use super::tls::MutualTls;

const KEY_BYTES_MIN: usize = 16;
const KEY_BYTES_MAX: usize = 1024;

/// RFC 1035, section 2.3.4.
const HOST_BYTES_MAX: usize = 255;

section! {
    pub(super) struct MeshKeys(section) {
        /// Where other nodes connect, over UDP. Port 0 lets the system pick one.
        bind: SocketAddr = ADDRESS, required("a mesh needs one", "\"10.0.0.5:6788\""), restart;

        /// Where other nodes reach this one.
        advertise: SocketAddr = REACHABLE, derived(
            bind,
            "`bind`; where that is `0.0.0.0` or `[::]`, the address of the route to the first seed, or out",
            "\"10.0.0.5:6788\""
        ), restart;

        /// Nodes to join at the start. A name may stand for several addresses. One node of a grid may have
        /// none; it waits for others.
        seeds: Vec<String> = SEEDS, value(Vec::new()), restart;

        /// Nodes, this one included, that have to have been seen before `/readyz` answers 200.
        expect: usize = whole_of(" of nodes", 1..=1024), value(1);

        /// The secret of the grid, the same for all of its nodes. Make one with `openssl rand -hex 32`.
        key: Option<GridKey> = KEY, none(
            "none: `[mesh.tls]` has to be there", "\"change-me: openssl rand -hex 32\""
        ), restart;
    }
    tables {
        /// Certificates that nodes show each other, instead of `mesh.key`. They are issued by an authority
        /// of yours for the name `node.gridcast`, and read when the node starts.
        tls as "tls": Option<MutualTls> = MutualTls::read(section)?, Optional(MutualTls::definition);
    }
}

/// This node's part of a grid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// The UDP address of this node. With port 0 the system picks one.
    pub bind: SocketAddr,
    /// Where other nodes reach this one. If it is `bind`, its port may be 0, which stands for the port
    /// that was picked, and its IP may be unspecified, which stands for that of the route out.
    pub advertise: SocketAddr,
    /// Nodes to join at the start, `HOST:PORT`.
    pub seeds: Vec<String>,
    /// Nodes that have to have been seen before this one is ready.
    pub expect: usize,
    /// What proves that a node belongs to the grid.
    pub trust: Trust,
}

/// What proves that a node belongs to a grid.
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

impl Mesh {
    /// Reads `[mesh]`. `None`: there is no such table, and no variable for one of its keys.
    pub(super) fn read(root: &Section) -> Result<Option<Self>, ConfigError> {
        let section = root.table("mesh")?;
        if !section.is_written() {
            return Ok(None);
        }
        let MeshKeys { bind, advertise, seeds, expect, key, tls } = MeshKeys::read_keys(&section)?;
        let trust = match (key, tls) {
            (Some(key), None) => Trust::Key(key),
            (None, Some(files)) => Trust::Files(files),
            (None, None) => return Err(section.fault(&["key"], "missing; a mesh needs one")),
            (Some(_), Some(_)) => {
                return Err(section.fault(&["key"], "a mesh has a key or a table tls, not both"));
            }
        };
        let node = root.table("node")?;
        if !node.has("id") {
            let reason = "missing; with a mesh each node has an id of its own, 0 to 1023";
            return Err(node.fault(&["id"], reason));
        }
        Ok(Some(Self { bind, advertise, seeds, expect, trust }))
    }
}

impl fmt::Display for Mesh {
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

const KEY: Secret<GridKey> = Secret {
    expected: SECRET,
    parse: |key| match (KEY_BYTES_MIN..=KEY_BYTES_MAX).contains(&key.len()) {
        true => Ok(GridKey(key.into())),
        false => Err(SECRET),
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
