//! The mesh of a node: what is checked before the shards run, and its start.

use std::net::SocketAddr;

use super::{NodeError, not_bound, random};
use crate::address::Incarnation;
use crate::config;
use crate::mesh::identity::NodeIdentity;
use crate::mesh::{self, quic};
use crate::runtime::{self, MeshPort};
use crate::shard::settings::Settings;

/// A mesh whose socket and identity are ready, before the shards run. Configuration errors have been
/// reported by then.
pub(super) struct MeshStart {
    pub(super) socket: quic::MeshSocket,
    identity: NodeIdentity,
    advertise: SocketAddr,
    seeds: Vec<String>,
    threads: usize,
}

impl MeshStart {
    /// Binds the socket and reads the identity.
    pub(super) fn new(config: &config::MeshConfig) -> Result<Self, NodeError> {
        let in_use = "another process has this UDP port; see `ss -lunp`";
        let socket = quic::bind(config.bind)
            .map_err(|error| not_bound("mesh.bind", config.bind, in_use, &error))?;
        let advertise = advertised(config.advertise, socket.address, &config.seeds);
        if advertise.ip().is_unspecified() {
            let why =
                "missing, and no route out of this machine shows it; set it, or see `ip route`";
            return Err(NodeError(format!("mesh.advertise: {why}")));
        }
        let identity = identity(&config.trust)?;
        let (seeds, threads) = (config.seeds.clone(), config.threads);
        Ok(Self { socket, identity, advertise, seeds, threads })
    }

    /// Starts the thread of the mesh.
    pub(super) fn start(
        self,
        shards: &Settings,
        port: MeshPort,
        failures: impl Fn(String) + Send + 'static,
    ) -> Result<quic::RunningMesh, NodeError> {
        let settings = mesh::MeshSettings {
            node: shards.node,
            // Like ids, the incarnation must grow with each start: other nodes refuse an older one.
            incarnation: Incarnation(shards.process.first_unix_ms.unwrap_or_else(runtime::unix_ms)),
            shards: shards.shards,
            advertise: self.advertise,
            api: shards.api.advertise.tcp().expect("the configuration was checked"),
            seeds: self.seeds,
            answer_ms: shards.limits.answer_ms,
            expected: shards.process.nodes_expected,
            channel_key: self.identity.channel_key(),
            random_seed: u64::from_ne_bytes(random()?),
        };
        quic::start(self.socket, self.identity, self.threads, settings, port, failures)
            .map_err(|error| NodeError(format!("mesh: {error}")))
    }
}

fn identity(trust: &config::Trust) -> Result<NodeIdentity, NodeError> {
    let read = |error: config::ConfigError| NodeError(error.to_string());
    match trust {
        config::Trust::Key(key) => NodeIdentity::from_key(key.secret())
            .map_err(|error| NodeError(format!("mesh.key: {error}"))),
        config::Trust::Files(files) => {
            let own = files.own.load().map_err(read)?;
            let authorities = files.load_authorities().map_err(read)?;
            NodeIdentity::from_certificates(own, authorities)
                .map_err(|error| NodeError(format!("mesh.tls.cert: {error}")))
        }
    }
}

/// Returns the address to tell others: the configured one, or else the bound one. An unspecified IP
/// address is replaced by this machine's address on the route to a seed, or else on the default route.
pub(super) fn advertised(
    configured: SocketAddr,
    bound: SocketAddr,
    seeds: &[String],
) -> SocketAddr {
    let port = if configured.port() == 0 { bound.port() } else { configured.port() };
    let mut ip = configured.ip();
    if ip.is_unspecified() {
        // Documentation addresses (RFC 5737, RFC 3849): never assigned, so the default route applies.
        let anywhere = ["192.0.2.1:9", "[2001:db8::1]:9"].map(str::parse);
        let beyond = seeds.iter().map(|seed| seed.parse()).chain(anywhere).flatten();
        let mut beyond = beyond.filter(|beyond: &SocketAddr| ip.is_ipv6() || beyond.is_ipv4());
        ip = beyond.find_map(|beyond| runtime::route_out(beyond).ok()).unwrap_or(ip);
    }
    SocketAddr::new(ip, port)
}
