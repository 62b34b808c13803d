//! The log line of a node that is ready.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::Value;

use super::mesh::MeshStart;
use crate::config::Config;
use crate::runtime::Listening;

/// The addresses of a node that is ready, for the log line that says so.
pub(super) struct Ready {
    api: String,
    edges: Vec<String>,
    mesh: Option<SocketAddr>,
    // The address of the start page for a browser on this machine. A Unix socket has none.
    url: Option<String>,
}

impl Ready {
    pub(super) fn new(
        config: &Config,
        api: &Listening,
        edges: &[Listening],
        mesh: Option<&MeshStart>,
    ) -> Self {
        let scheme = if config.api.tls.is_some() { "https" } else { "http" };
        let reachable = |ip: IpAddr| match ip {
            ip if !ip.is_unspecified() => ip,
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        let page = api.address.tcp().map(|tcp| SocketAddr::new(reachable(tcp.ip()), tcp.port()));
        Self {
            api: api.address.to_string(),
            edges: edges.iter().map(|edge| edge.address.to_string()).collect(),
            mesh: mesh.map(|mesh| mesh.socket.address),
            url: page.map(|page| format!("{scheme}://{page}/")),
        }
    }

    pub(super) fn text(&self) -> String {
        let mut line = format!("ready, api {}", self.api);
        if !self.edges.is_empty() {
            line.push_str(&format!(", edge {}", self.edges.join(",")));
        }
        if let Some(mesh) = self.mesh {
            line.push_str(&format!(", mesh {mesh}"));
        }
        if let Some(url) = &self.url {
            line.push_str(&format!(", open {url}"));
        }
        line
    }

    pub(super) fn fields(&self) -> [(&'static str, Value); 4] {
        [
            ("api", self.api.clone().into()),
            ("edges", self.edges.clone().into()),
            ("mesh", self.mesh.map(|mesh| mesh.to_string()).into()),
            ("url", self.url.clone().into()),
        ]
    }
}
