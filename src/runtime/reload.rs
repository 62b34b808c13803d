//! Passes the settings of a reloaded configuration to the running shards.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::bus::NodePort;
use super::start::Renewals;
use super::watch::{Capacity, Watch};
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

/// A handle that reloads the settings of running shards.
#[derive(Clone)]
pub struct Reloads {
    pub(super) control: NodePort,
    pub(super) watch: Arc<Watch>,
    /// The certificates of the listeners.
    pub renewals: Renewals,
}

impl Reloads {
    /// Passes new settings and limits to all shards. Returns when each has room for the settings, which it
    /// applies in its next turn.
    ///
    /// # Errors
    /// A shard has not taken the settings of an earlier reload within 10 s.
    pub fn reload(&self, reloaded: &Reloaded, capacity: Capacity) -> io::Result<()> {
        self.watch.set_capacity(capacity);
        for (shard, settings) in self.watch.reloads().enumerate() {
            let sent = settings.send_timeout(reloaded.clone(), WAIT_MAX);
            sent.map_err(|_| io::Error::other(format!("shard {shard} does not respond")))?;
        }
        self.control.wake_all();
        Ok(())
    }
}
