//! Commands for all connections of some users, in slices within the budget of fan-outs.

use std::sync::Arc;

use super::Clients;
use super::budget::{FEW, SLICE};
use super::fanout::PendingWalk;
use super::variants::{LastFrames, VariantMaker, Variants};
use crate::message::{Requester, UserAction, UserCommand};
use crate::protocol::api::{Function, MessageOrigin, Tally, TapEvent};
use crate::protocol::frame::QUEUED_FRAME_BYTES;
use crate::shard::connection::{Connections, Phase, Priority, Stage};
use crate::shard::memory::Shortage;
use crate::shard::trail::{self, Entry};
use crate::shard::turn::Turn;

/// Units of a slice that a function takes, more than a message does: it may subscribe to many channels.
const FUNCTION_UNITS: usize = 4;

/// Channels, or bytes of a context in units of 64, that count as one more unit of a slice.
const PARTS_PER_UNIT: usize = 8;

/// The progress of a command through the connections of users.
///
/// Between two slices clients may come, go, or become another user. The walk goes on from the next connection of the
/// same user, so that a client that stays is met once.
#[derive(Debug)]
pub(crate) struct UserWalk {
    command: Arc<UserCommand>,
    // The index of the current user, and the first of the user's connections that is not visited yet.
    user: usize,
    from: u32,
    // The variants of the message. `None`: the command calls a function.
    variants: Option<Variants>,
    tally: Tally,
    // Connections whose message may still be written ahead of fan-outs.
    urgent_left: usize,
}

/// Returns the most memory that a command holds, in bytes.
pub(super) fn held_bytes_for_users(command: &UserCommand) -> usize {
    // A pointer with a length, and the overhead of an allocation.
    let held = |user: &str| size_of::<Box<str>>() + 24 + user.len();
    let users: usize = command.users.iter().map(|user| held(user)).sum();
    users
        + match &command.action {
            UserAction::Send(frame) => frame.bytes().len() + QUEUED_FRAME_BYTES,
            UserAction::Call(function) => function.held_bytes(),
        }
}

impl Clients {
    /// Carries out a command for users, and answers with a tally: at once if it fits in one slice.
    pub(crate) fn carry_out_for_users(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        requester: Requester,
        command: Arc<UserCommand>,
    ) {
        let variants = match &command.action {
            UserAction::Send(frame) => Some(Variants::of(frame.clone(), LastFrames::default())),
            UserAction::Call(_) => None,
        };
        let urgent_left = if command.users.len() <= FEW { FEW } else { 0 };
        let tally = Tally::default();
        let mut walk = UserWalk { command, user: 0, from: 0, variants, tally, urgent_left };
        match self.walk_users(turn, connections, &mut walk, SLICE) {
            (true, _) => self.answer_users(turn, requester, walk),
            (false, _) => self.defer_publish(requester, PendingWalk::from(Box::new(walk))),
        }
    }

    /// Answers a walk that is over. If it has subscribed clients, the answer waits until every node knows.
    pub(super) fn answer_users(&mut self, turn: &mut Turn, requester: Requester, walk: UserWalk) {
        let UserWalk { command, tally, .. } = walk;
        let channels = command.channels_to_subscribe();
        if tally.delivered == 0 || !self.tally_when_known(requester, tally, channels) {
            turn.answer_publish(requester, Ok(tally));
        }
    }

    /// Visits connections for up to `most` units of work, within the turn's budget. Returns whether the walk is over,
    /// and the units.
    pub(super) fn walk_users(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        walk: &mut UserWalk,
        most: usize,
    ) -> (bool, usize) {
        let command = walk.command.clone();
        let bytes = match &command.action {
            UserAction::Send(frame) => frame.bytes().len(),
            UserAction::Call(_) => 1,
        };
        let most = most.min(self.fanout.budget.may_reach(bytes));
        let mut spent = 0;
        while let Some(user) = command.users.get(walk.user) {
            if spent >= most {
                break;
            }
            let found = self.users.connections(self.users.hash(user), walk.from).next();
            let Some(connection) = found else {
                (walk.user, walk.from) = (walk.user + 1, 0);
                // To look a user up costs less than a visit.
                spent += usize::from(walk.user.is_multiple_of(4));
                continue;
            };
            match connection.checked_add(1) {
                Some(next) => walk.from = next,
                None => (walk.user, walk.from) = (walk.user + 1, 0),
            }
            spent += 1;
            if !is_open_client_of(connections, connection, user) {
                continue;
            }
            match &command.action {
                UserAction::Send(_) => {
                    self.deliver(turn, connections, walk, connection);
                }
                UserAction::Call(function) => {
                    self.apply_to(turn, connections, walk, connection, function);
                    spent += units_of(function);
                }
            }
        }
        let appended = walk.variants.as_mut().map(Variants::take_appended).unwrap_or_default();
        walk.tally.delivered += appended.frames;
        turn.counters.delivered += appended.frames;
        turn.counters.note_compressed(appended.compressed, appended.saved_bytes);
        self.fanout.budget.reach(spent, appended.bytes);
        (walk.user >= command.users.len(), spent)
    }

    /// Appends the message to the outbound queue of a connection.
    fn deliver(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        walk: &mut UserWalk,
        index: u32,
    ) {
        let Some(variants) = &mut walk.variants else { return };
        let (key, connection, write_queues) = connections.at(index);
        let variant = match variants.made(connection.form) {
            Some(variant) => variant,
            None => {
                let maker = VariantMaker {
                    deflater: &mut self.deflater,
                    envelope: &mut self.envelope,
                    counters: &mut turn.counters,
                };
                variants.make(connection.form, Some(MessageOrigin::default()), maker)
            }
        };
        let bytes = variant.frame_bytes();
        let is_shed = connection.outbound.is_in_flight() && turn.is_short(Shortage::Frames);
        if is_shed || !connection.has_room_for(bytes) {
            walk.tally.failed += 1;
            turn.counters.failed += 1;
            match is_shed {
                true => turn.counters.note_shed_frames(1),
                false => turn.counters.limits.outbound_bytes += 1,
            }
            if connection.is_too_slow_for(bytes) && turn.settings.limits.close_slow_clients {
                connections.close_slow(turn, key);
            }
            return;
        }
        variant.push(&mut connection.outbound, &mut turn.buffer_pool);
        if connection.is_observed() {
            let published = variants.published();
            let event = TapEvent::Out(published.kind(), published.payload());
            turn.observe_message(connection, event);
        }
        if connection.queued_writes.is_empty() && connection.outbound.is_ready() {
            let priority = if walk.urgent_left > 0 { Priority::Urgent } else { Priority::Bulk };
            write_queues.push(priority, key, connection);
        }
        walk.urgent_left = walk.urgent_left.saturating_sub(1);
    }

    /// Calls the function on the client of a connection.
    fn apply_to(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        walk: &mut UserWalk,
        index: u32,
        function: &Function,
    ) {
        let (key, connection, _) = connections.at(index);
        if let Some(client) = connection.client() {
            trail::note(turn.trail(key), Entry::Function(client.id, function));
        }
        match self.apply(turn, connections, key, function) {
            Ok(_) => walk.tally.delivered += 1,
            Err(_) => walk.tally.failed += 1,
        }
    }
}

/// Whether a connection is that of a client of this user, and takes messages.
pub(super) fn is_open_client_of(connections: &Connections, index: u32, user: &str) -> bool {
    let Some((_, connection)) = connections.peek_at(index) else { return false };
    let Stage::Client(client) = &connection.stage else { return false };
    connection.phase == Phase::Open && client.context.user().as_deref() == Some(user)
}

/// Returns the units of a slice that a function takes on one connection.
fn units_of(function: &Function) -> usize {
    let parts = match function {
        Function::Subscribe(channels) | Function::Unsubscribe(channels) => channels.len(),
        Function::SetContext(_) | Function::SetContextValue(..) => function.held_bytes() / 64,
        Function::Close(..) | Function::GetContext | Function::Info => 0,
    };
    FUNCTION_UNITS + parts / PARTS_PER_UNIT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{ClientId, IdLayout, IdSource, ShardId};
    use crate::message::Ticket;
    use crate::protocol::frame::Frame;
    use crate::shard::connection::Listener;
    use crate::shard::fixture;

    #[test]
    fn a_message_for_few_users_is_written_first_to_as_many_connections() {
        let settings = fixture::settings();
        let ids = IdSource::new(settings.node, ShardId(0), IdLayout::new(1), 1);
        let (mut turn, mut connections) = (fixture::turn(settings), Connections::default());
        let mut clients = Clients::new(&turn, ids);
        let be_anna = Function::SetContextValue("user_id".into(), r#""anna""#.into());
        for id in 1..=FEW as u64 + 2 {
            let key = fixture::client(&mut turn, &mut connections, ClientId::from_value(id));
            clients.apply(&mut turn, &mut connections, key, &be_anna).unwrap();
        }
        let at = fixture::accepted(&mut turn, &mut connections, Listener::Api);
        let requester = Requester { ticket: Ticket(1), backend: turn.backend_id(at) };
        let mut send = |users: &[&str]| {
            let users = users.iter().map(|&user| user.into()).collect();
            let action = UserAction::Send(Frame::from_encoded(b"frame"));
            let command = Arc::new(UserCommand { users, action });
            clients.carry_out_for_users(&mut turn, &mut connections, requester, command);
            let queued = connections.queued_writes();
            for priority in [Priority::Urgent, Priority::Bulk] {
                while let Some(write) = connections.poll_write(&turn, priority) {
                    connections.handle_written(&mut turn, write.key, write.bytes);
                }
            }
            queued
        };
        assert_eq!(send(&["anna"]), [FEW, 2]);
        let many = ["anna", "b", "c", "d", "e"];
        assert!(many.len() > FEW);
        assert_eq!(send(&many), [0, FEW + 2]);
    }
}
