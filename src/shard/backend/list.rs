//! The back ends of the shard, for `backend.list`.

use std::sync::Arc;

use crate::message::ConnectionKey;
use crate::protocol::api::{BackendRow, TOPICS_SHOWN_MAX};
use crate::shard::connection::{Backend, Connection, Connections, Stage};
use crate::shard::lists::{BackendWalk, Budget, Reached};
use crate::shard::turn::Turn;

/// Continues a walk through the back ends of the shard within the budget.
pub(in crate::shard) fn walk_backends(
    turn: &Turn,
    connections: &Connections,
    walk: &mut BackendWalk,
    budget: &mut Budget,
) -> Reached {
    while !budget.is_spent() {
        let Some(key) = connections.backend_after(walk.last) else { return Reached::End };
        walk.last = Some(key);
        budget.spend(Budget::CLIENT);
        let Some(connection) = connections.peek(key) else { continue };
        let Stage::Backend(backend) = &connection.stage else { continue };
        let id = id_of(turn, key);
        if !walk.question.page.matches(&id) || !consumes(backend, walk.question.topic.as_deref()) {
            continue;
        }
        budget.spend(Budget::ROW);
        if !walk.add(row(turn, id, connection, backend)) {
            return Reached::End;
        }
    }
    Reached::Pause
}

/// Returns the id of a back end. The digits of all parts have a fixed number, so that ids sort by node, shard and
/// slot.
fn id_of(turn: &Turn, key: ConnectionKey) -> Box<str> {
    let (node, shard) = (turn.settings.node.number(), turn.address.shard.0);
    format!("{node:03x}{shard:02x}{:08x}{:06x}", key.index, key.generation).into()
}

/// Whether a back end consumes a topic, or anything if no topic is given.
fn consumes(backend: &Backend, topic: Option<&str>) -> bool {
    topic.is_none_or(|topic| backend.topics.iter().any(|consumed| **consumed == *topic))
}

fn row(turn: &Turn, id: Box<str>, connection: &Connection, backend: &Backend) -> BackendRow {
    let (now_ms, ping_ms) = (turn.now.ms, turn.settings.limits.ping_ms);
    let unsettled = backend.unsettled.as_ref();
    let unread_ms = connection.outbound.in_flight_ms(now_ms).unwrap_or(0);
    let unsettled_ms = unsettled.map_or(0, |unsettled| unsettled.stalled_ms(now_ms));
    let unsettled = unsettled.map_or(0, |unsettled| unsettled.count());
    let name = |text: &Arc<str>| Box::from(&**text);
    BackendRow {
        id,
        node: turn.settings.node,
        user: backend.grant.user.map(|user| turn.settings.api.users.name(user).into()),
        remote: connection.remote,
        since_ms: connection.since_ms,
        topic_count: backend.topics.len() as u64,
        topics: backend.topics.iter().take(TOPICS_SHOWN_MAX).map(name).collect(),
        group: backend.group.as_ref().map(name),
        in_flight: (backend.unwritten_events.len() + unsettled) as u64,
        buffered: connection.outbound.buffered() as u64,
        stalled_ms: unread_ms.max(unsettled_ms).max(connection.unanswered_ms(now_ms, ping_ms)),
    }
}
