//! Passes the settings of a reloaded configuration to the running shards.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;

use super::bus::NodePort;
use super::start::Renewals;
use super::watch::{Capacity, Watch};
use crate::address::ShardId;
use crate::message::{FromNode, Ticket};
use crate::shard::node_state::NodeState;
use crate::shard::settings::Settings;

/// The longest wait for a shard to take its settings. A shard looks for them once per turn.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The settings of a reloaded configuration, and the state that goes with them.
#[derive(Clone, Debug)]
pub struct Reloaded {
    /// The settings, for all shards.
    pub settings: Arc<Settings>,
    /// The state that the shards share.
    pub state: Arc<NodeState>,
}

/// The most requests that wait for a reload. Further calls are answered with an error. Further signals are
/// served by the same reload as those that wait.
pub(super) const REQUESTS_MAX: usize = 16;

/// A request to reload the configuration.
#[derive(Clone, Copy, Debug)]
pub enum ReloadRequest {
    /// SIGHUP. The outcome is logged.
    Signal,
    /// `admin.reload`. The outcome is logged, and sent to this shard with this ticket.
    Call(ShardId, Ticket),
}

/// A handle that reloads the settings of running shards.
#[derive(Clone)]
pub struct Reloads {
    pub(super) control: NodePort,
    pub(super) watch: Arc<Watch>,
    /// The certificates of the listeners.
    pub renewals: Renewals,
}

impl Reloads {
    /// Requests a reload for a signal.
    pub fn request(&self) {
        let _ = self.watch.request_reload(ReloadRequest::Signal);
    }

    /// Waits for a request, and returns it with all that have arrived by then: one reload serves them all.
    pub fn next_requests(&self) -> Vec<ReloadRequest> {
        self.watch.next_reload_requests()
    }

    /// Sends the outcome of a reload to the shard that requested it.
    pub fn answer(&self, shard: ShardId, answer: FromNode) {
        self.control.tell(shard, answer);
    }

    /// Passes new settings and limits to all shards. Returns when each has room for the settings, which it
    /// applies in its next turn.
    ///
    /// # Errors
    /// A shard has not taken the settings of an earlier reload within 10 s.
    pub fn reload(&self, reloaded: &Reloaded, capacity: Capacity) -> io::Result<()> {
        self.watch.set_capacity(capacity);
        let send = |(shard, settings): (usize, &Sender<Reloaded>)| {
            let sent = settings.send_timeout(reloaded.clone(), WAIT_MAX);
            sent.map_err(|_| io::Error::other(format!("shard {shard} does not respond")))
        };
        let sent = self.watch.reloads().enumerate().try_for_each(send);
        // Also those that got their settings before another one failed.
        self.control.wake_all();
        sent
    }
}
