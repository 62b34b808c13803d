//! Reports of the tasks of links to the [`Transport`](super::transport::Transport).

use std::net::SocketAddr;

use quinn::Connection;
use tokio::sync::mpsc;

use super::carriers::Berth;
use crate::mesh::link::{LinkEvent, LinkId};

/// Reports on control lanes, datagrams and links that wait for the mesh. Beyond it the tasks of links wait.
const CONTROL_REPORTS: usize = 1024;

/// Reports on other lanes that wait for the mesh, with the data of one packet each. Beyond it readers wait,
/// the windows of QUIC fill, and peers cannot send more.
const DATA_REPORTS: usize = 1024;

/// A report of a task.
pub(super) enum TaskReport {
    /// An event of a link.
    Event(LinkEvent),
    /// The addresses of a target were looked up.
    Resolved(String, Result<Vec<SocketAddr>, String>),
    /// A dial of an address of a target has ended.
    Dialled {
        target: String,
        address: SocketAddr,
        berth: Berth,
        connection: Result<Connection, String>,
    },
    /// A handshake that a peer began has ended.
    Answered { remote: SocketAddr, berth: Berth, connection: Result<Connection, String> },
    /// A connection is lost, and why.
    Ended(LinkId, String),
}

/// Where tasks send reports.
#[derive(Clone)]
pub(super) struct Reporter {
    /// Reports on control lanes, datagrams and links. Always received, so that pings and acknowledgements
    /// arrive however much data waits.
    pub(super) control: mpsc::Sender<TaskReport>,
    /// Reports on other lanes. Not received while the mesh takes no data: then readers wait, windows fill,
    /// and peers cannot send more.
    pub(super) data: mpsc::Sender<TaskReport>,
}

/// Where the transport receives reports.
pub(super) struct Reports {
    pub(super) control: mpsc::Receiver<TaskReport>,
    pub(super) data: mpsc::Receiver<TaskReport>,
}

/// Two bounded queues from tasks to the transport.
pub(super) fn channel() -> (Reporter, Reports) {
    let (control_sender, control) = mpsc::channel(CONTROL_REPORTS);
    let (data_sender, data) = mpsc::channel(DATA_REPORTS);
    let reporter = Reporter { control: control_sender, data: data_sender };
    (reporter, Reports { control, data })
}
