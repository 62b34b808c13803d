//! The lists of administration: what a call asks for, and the answers as JSON.

use super::write::put_list;
use crate::address::NodeId;
use crate::protocol::json::{put_number, put_string};

/// A call of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListCall {
    /// `node.list`
    Nodes,
}

/// The answer to a [`ListCall`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listing {
    /// The answer to `node.list`.
    Nodes(NodeList),
}

/// The answer to `node.list`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeList {
    /// The nodes, in the order of their ids.
    pub nodes: Vec<NodeEntry>,
    /// The nodes that did not answer.
    pub missing: Vec<NodeId>,
}

/// A node in the answer to `node.list`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEntry {
    /// The node's id.
    pub node: NodeId,
    /// The state of the node.
    pub state: NodeStanding,
    /// The version of gridcast that the node runs. `None`: unknown, because there is no session with the
    /// node.
    pub version: Option<String>,
    /// The figures of the node. `None`: the node did not answer.
    pub figures: Option<NodeFigures>,
}

/// The state of a node, by its own account or as the asked node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeStanding {
    /// The node works.
    Up,
    /// The node is about to shut down, and still takes connections: `/readyz` answers 503.
    LameDuck,
    /// The node is shutting down.
    Draining,
    /// The node has answered, and other nodes suspect that it is dead.
    Suspected,
    /// There is a link to the node, and it did not answer in time.
    Silent,
    /// The node is a member of the grid, and there is no link to it.
    Unreachable,
}

impl NodeStanding {
    /// Returns the name of the state in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::LameDuck => "lame_duck",
            Self::Draining => "draining",
            Self::Suspected => "suspected",
            Self::Silent => "silent",
            Self::Unreachable => "unreachable",
        }
    }
}

/// The figures of a node: the sums over its shards, and facts about its process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFigures {
    /// How long the node has been running, in milliseconds.
    pub uptime_ms: u64,
    /// The number of connected clients.
    pub clients: u64,
    /// The number of back ends on the WebSocket API.
    pub backends: u64,
    /// Messages received from clients.
    pub received: PerSecond,
    /// Messages queued for clients.
    pub delivered: PerSecond,
    /// How the shards reach the kernel: `io_uring` or `epoll`.
    pub driver: Box<str>,
    /// The number of shards, each of which has a core.
    pub cores: u64,
    /// Memory in use, in bytes.
    pub memory_bytes: u64,
    /// The memory budget, in bytes.
    pub memory_limit_bytes: u64,
}

/// A rate, in tenths of an event per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerSecond(pub u64);

/// Appends the result of a list.
pub(super) fn put_listing(out: &mut Vec<u8>, listing: &Listing) {
    match listing {
        Listing::Nodes(NodeList { nodes, missing }) => {
            out.extend_from_slice(b"{\"nodes\":");
            put_list(out, nodes, put_node);
            put_missing(out, missing);
        }
    }
    out.push(b'}');
}

fn put_missing(out: &mut Vec<u8>, missing: &[NodeId]) {
    out.extend_from_slice(b",\"missing\":");
    put_list(out, missing, |out, node| put_number(out, node.number().into()));
}

/// Appends a node. Each node has all fields; those that are unknown are null.
fn put_node(out: &mut Vec<u8>, entry: &NodeEntry) {
    let NodeEntry { node, state, version, figures } = entry;
    let figures = figures.as_ref();
    out.extend_from_slice(b"{\"id\":");
    put_number(out, node.number().into());
    put_text(out, "state", Some(state.name()));
    put_text(out, "version", version.as_deref());
    put_figure(out, "uptime", figures.map(|figures| figures.uptime_ms));
    put_figure(out, "clients", figures.map(|figures| figures.clients));
    put_figure(out, "backends", figures.map(|figures| figures.backends));
    put_rate(out, "in_per_s", figures.map(|figures| figures.received));
    put_rate(out, "out_per_s", figures.map(|figures| figures.delivered));
    put_text(out, "driver", figures.map(|figures| &*figures.driver));
    put_figure(out, "cores", figures.map(|figures| figures.cores));
    put_figure(out, "memory", figures.map(|figures| figures.memory_bytes));
    put_figure(out, "memory_max", figures.map(|figures| figures.memory_limit_bytes));
    out.push(b'}');
}

fn put_key(out: &mut Vec<u8>, key: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":");
}

fn put_text(out: &mut Vec<u8>, key: &str, text: Option<&str>) {
    put_key(out, key);
    match text {
        Some(text) => put_string(out, text),
        None => out.extend_from_slice(b"null"),
    }
}

fn put_figure(out: &mut Vec<u8>, key: &str, figure: Option<u64>) {
    put_key(out, key);
    match figure {
        Some(figure) => put_number(out, figure),
        None => out.extend_from_slice(b"null"),
    }
}

fn put_rate(out: &mut Vec<u8>, key: &str, rate: Option<PerSecond>) {
    put_figure(out, key, rate.map(|PerSecond(tenths)| tenths / 10));
    if let Some(tenth @ 1..) = rate.map(|PerSecond(tenths)| tenths % 10) {
        out.extend_from_slice(&[b'.', b'0' + tenth as u8]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(listing: Listing) -> String {
        let mut out = Vec::new();
        put_listing(&mut out, &listing);
        String::from_utf8(out).expect("JSON is UTF-8")
    }

    #[test]
    fn a_node_has_all_fields_and_those_that_are_unknown_are_null() {
        let node = |number| NodeId::new(number).expect("a small number");
        let figures = NodeFigures {
            uptime_ms: 1,
            clients: 2,
            backends: 3,
            received: PerSecond(45),
            delivered: PerSecond(60),
            driver: "epoll".into(),
            cores: 7,
            memory_bytes: 8,
            memory_limit_bytes: 9,
        };
        let known = NodeEntry {
            node: node(1),
            state: NodeStanding::Up,
            version: Some("0.1.0".into()),
            figures: Some(figures),
        };
        let lost = NodeEntry {
            node: node(2),
            state: NodeStanding::Unreachable,
            version: None,
            figures: None,
        };
        let list = NodeList { nodes: vec![known, lost], missing: vec![node(2)] };
        assert_eq!(
            written(Listing::Nodes(list)),
            concat!(
                r#"{"nodes":[{"id":1,"state":"up","version":"0.1.0","uptime":1,"clients":2,"#,
                r#""backends":3,"in_per_s":4.5,"out_per_s":6,"driver":"epoll","cores":7,"#,
                r#""memory":8,"memory_max":9},"#,
                r#"{"id":2,"state":"unreachable","version":null,"uptime":null,"clients":null,"#,
                r#""backends":null,"in_per_s":null,"out_per_s":null,"driver":null,"cores":null,"#,
                r#""memory":null,"memory_max":null}],"missing":[2]}"#
            )
        );
    }
}
