//! Mutable state that all shards of a node share. The runtime creates it and passes it to each
//! shard, beside the settings, which never change.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::interest::Interest;
use super::rate::Quota;
use super::settings::Settings;

/// State that the shards of one node read and change, without locks.
#[derive(Debug)]
pub struct NodeState {
    /// Which shards may have subscribers of which channel.
    pub interest: Arc<Interest>,
    /// The quota of each user of the API, in the order of [`super::settings::Api::users`].
    pub quotas: Box<[Quota]>,
    /// Log lines that were dropped. The log counts them; `/metrics` shows the number.
    pub log_lines_dropped: Arc<AtomicU64>,
}

impl NodeState {
    /// Creates the state of a node without subscribers, whose users have made no calls.
    pub fn new(settings: &Settings, log_lines_dropped: Arc<AtomicU64>) -> Self {
        Self {
            interest: Arc::new(Interest::new(settings.shards)),
            quotas: settings.api.users.iter().map(Quota::new).collect(),
            log_lines_dropped,
        }
    }
}
