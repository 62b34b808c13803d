//! Warns of topics that a back end consumes although no route of this node feeds them and the configuration does not name
//! them otherwise: the name may be misspelt. Consuming such a topic is allowed, since it may still receive the reports of a
//! lost node, or get a route with the next restart. The answer to the back end and the log name the topic.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Backends;
use super::calls::topics_of;
use crate::message::{ConnectionKey, PopId};
use crate::protocol::api::Reply;
use crate::shard::connection::Connections;
use crate::shard::turn::Turn;

/// The number of topics that the log names. Further ones are not logged: back ends may invent any
/// number.
const LOGGED_MAX: usize = 64;

/// The number of topics that one answer names. The others are counted.
const NAMED_MAX: usize = 4;

/// Topics that the configuration does not name and the log has named.
#[derive(Debug, Default)]
pub(super) struct UnroutedTopics {
    // At most LOGGED_MAX.
    logged: BTreeSet<Arc<str>>,
}

impl UnroutedTopics {
    /// Writes each topic to the log, unless it was logged before.
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
    /// Returns the answer to a successful `queue.pop`, with a warning if the configuration does not name a topic. In
    /// a grid the warning is about this node only, since the routes of other nodes are not known.
    pub(super) fn answer_to_pop(
        &mut self,
        turn: &Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        pop: PopId,
    ) -> Reply {
        let mut unrouted = topics_of(connections, key, pop);
        unrouted.retain(|topic| !turn.settings.names_topic(topic));
        if unrouted.is_empty() {
            return Reply::Done;
        }
        let has_mesh = turn.settings.has_mesh;
        self.unrouted.log(&unrouted, has_mesh);
        let scope = if has_mesh { "no route of this node" } else { "no route" };
        let named: Vec<String> =
            unrouted.iter().take(NAMED_MAX).map(|topic| format!("{topic:?}")).collect();
        let more = match unrouted.len() - named.len() {
            0 => String::new(),
            count => format!(" and {count} more"),
        };
        Reply::Warned(format!("{scope} feeds {}{more}", named.join(", ")).into())
    }
}
