//! Topics that back ends consume and no route of this node feeds: perhaps their names are misspelt.
//! That stays possible, since a report of a lost node may come, or a route with the next start; but
//! the back end and the log are told.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Backends;
use super::calls::topics_of;
use crate::message::ConnectionKey;
use crate::protocol::api::Reply;
use crate::shard::connection::Connections;
use crate::shard::turn::Turn;

/// Topics that the log names, at most: back ends may make up names without end.
const LOGGED_MAX: usize = 64;

/// Topics that one answer names, at most.
const NAMED_MAX: usize = 4;

/// Which of these topics the log has named.
#[derive(Debug, Default)]
pub struct Unfed {
    logged: BTreeSet<Arc<str>>,
}

impl Unfed {
    /// Writes each topic to the log once.
    fn log(&mut self, topics: &[Arc<str>], has_mesh: bool) {
        for topic in topics {
            if self.logged.len() >= LOGGED_MAX || !self.logged.insert(topic.clone()) {
                continue;
            }
            match has_mesh {
                true => {
                    tracing::info!("a back end consumes {topic:?}; no route of this node feeds it")
                }
                false => tracing::warn!("a back end consumes {topic:?}, which no route feeds"),
            }
        }
    }
}

impl Backends {
    /// The answer that grants a `queue.pop`. It says so if no route feeds a topic. Another node may: what
    /// its routes are is not known here, so in a grid the answer speaks of this node alone.
    pub(super) fn grant_of_pop(
        &mut self,
        turn: &Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        pop: u64,
    ) -> Reply {
        let mut unfed = topics_of(connections, key, pop);
        unfed.retain(|topic| !turn.settings.feeds(topic));
        if unfed.is_empty() {
            return Reply::Done;
        }
        let has_mesh = turn.settings.has_mesh;
        self.unfed.log(&unfed, has_mesh);
        let whose = if has_mesh { "no route of this node" } else { "no route" };
        let named: Vec<String> =
            unfed.iter().take(NAMED_MAX).map(|topic| format!("{topic:?}")).collect();
        let more = match unfed.len() - named.len() {
            0 => String::new(),
            count => format!(" and {count} more"),
        };
        Reply::Warned(format!("{whose} feeds {}{more}", named.join(", ")).into())
    }
}
