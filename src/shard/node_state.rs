//! Live state that all shards of a node share. The runtime makes one and hands it to each shard,
//! beside the settings, which never change.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::interest::Interest;
use super::rate::Quota;
use super::settings::Settings;

/// What the shards of one node read and change together, without locks.
#[derive(Debug)]
pub struct NodeState {
    /// Which shards have subscribers of which channel.
    pub interest: Arc<Interest>,
    /// Calls that each user of the API may still make, in the order of [`super::settings::Api::users`].
    pub quotas: Box<[Quota]>,
    /// Lines of the log that were dropped. The log counts them.
    pub log_lines_dropped: Arc<AtomicU64>,
}

impl NodeState {
    /// The state of a node that has just started: no subscribers, and no calls made.
    pub fn new(settings: &Settings, log_lines_dropped: Arc<AtomicU64>) -> Self {
        Self {
            interest: Arc::new(Interest::new(settings.shards)),
            quotas: settings.api.users.iter().map(Quota::new).collect(),
            log_lines_dropped,
        }
    }
}
