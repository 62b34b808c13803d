//! The other nodes of the grid, and what proves that a node belongs to it.

use std::fmt;
use std::net::SocketAddr;

use super::document::{ConfigError, Section};
use super::tls::MutualTls;
use super::{ADDRESS, address, read_reachable};

pub(super) const MESH_KEYS: [&str; 5] = ["bind", "advertise", "seeds", "expect", "key"];

const SEED: &str = "a host and port such as \"10.0.0.5:6788\" or \"node-2.example.org:6788\"";
const KEY: &str = "expected a secret of 16 to 1024 bytes, such as `openssl rand -hex 32` makes";

const KEY_BYTES_MIN: usize = 16;
const KEY_BYTES_MAX: usize = 1024;

/// RFC 1035, section 2.3.4.
const HOST_BYTES_MAX: usize = 255;

/// This node's part of a grid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// A UDP address. Has no default. With port 0 the system picks one.
    pub bind: SocketAddr,
    /// Where other nodes reach this one. Default: `bind`; its port may be 0, then the one that was
    /// picked is meant, and its IP may be unspecified, then that of the route out is. A written one is
    /// neither.
    pub advertise: SocketAddr,
    /// Nodes that it asks to be let in, `HOST:PORT`; a name may stand for several. Default: none, it
    /// waits for others.
    pub seeds: Vec<String>,
    /// Nodes, this one included, that must have been seen once before `/readyz` answers 200. 1 to 1,024.
    /// Default: 1.
    pub expect: usize,
    /// How it knows the others. Has no default.
    pub trust: Trust,
}

/// How nodes of a grid know each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// `key`: what all of them have in common, and nobody else has.
    Key(GridKey),
    /// `[mesh.tls]`: certificates for the name `node.gridcast`.
    Files(MutualTls),
}

/// The secret of a grid.
#[derive(Clone, PartialEq, Eq)]
pub struct GridKey(Box<str>);

impl GridKey {
    /// The secret itself: not for eyes.
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
    /// `None`: there is no table `mesh`, and no variable for one.
    pub(super) fn read(root: &Section) -> Result<Option<Self>, ConfigError> {
        let section = root.table("mesh")?.only(&[&MESH_KEYS[..], &["tls"]].concat())?;
        if !section.is_written() && !MESH_KEYS.iter().any(|key| section.has(key)) {
            return Ok(None);
        }
        let missing = |key| section.fault(&[key], "missing; a mesh needs one");
        let bind = section.read_text("bind", ADDRESS, address)?.ok_or_else(|| missing("bind"))?;
        let advertise = read_reachable(&section, "advertise")?;
        let trust = match (read_key(&section)?, MutualTls::read(&section)?) {
            (Some(key), None) => Trust::Key(key),
            (None, Some(files)) => Trust::Files(files),
            (None, None) => return Err(missing("key")),
            (Some(_), Some(_)) => {
                return Err(section.fault(&["key"], "a mesh has a key or a table tls, not both"));
            }
        };
        let seeds = section.texts("seeds", SEED, is_target)?.unwrap_or_default();
        let expect = section.whole("expect", " of nodes", 1..=1024, 1)?;
        let node = root.table("node")?;
        if !node.has("id") {
            let reason = "missing; with a mesh each node has an id of its own, 0 to 1023";
            return Err(node.fault(&["id"], reason));
        }
        Ok(Some(Self { bind, advertise: advertise.unwrap_or(bind), seeds, expect, trust }))
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

/// The message does not say what was found.
fn read_key(section: &Section) -> Result<Option<GridKey>, ConfigError> {
    let Some(key) = section.secret("key") else { return Ok(None) };
    match (KEY_BYTES_MIN..=KEY_BYTES_MAX).contains(&key.len()) {
        true => Ok(Some(GridKey(key.into()))),
        false => Err(section.fault(&["key"], KEY)),
    }
}

fn is_target(text: &str) -> bool {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return address.port() != 0 && !address.ip().is_unspecified();
    }
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let is_of_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    (1..=HOST_BYTES_MAX).contains(&host.len())
        && host.bytes().all(is_of_name)
        && port.parse::<u16>().is_ok_and(|port| port != 0)
}
