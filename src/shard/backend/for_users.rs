//! Calls for all connections of some users: `user.send` and `user.call`.

use std::sync::Arc;

use super::Backends;
use super::calls::Caller;
use super::pending::QuestionKind;
use crate::message::{LocalCommand, ToMesh, UserAction, UserCommand};
use crate::shard::connection::Connections;
use crate::shard::turn::Turn;

impl Backends {
    /// Carries out a command for users: asks every shard of this node, and through the mesh every other node. Nobody
    /// knows where the connections of a user are.
    pub(crate) fn call_users(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        caller: Caller,
        command: UserCommand,
    ) {
        let kind = match command.action {
            UserAction::Send(_) => QuestionKind::UserSend,
            UserAction::Call(_) => QuestionKind::UserCall,
        };
        let receivers = turn.all_receivers();
        let requester = self.open_question(turn, connections, caller, kind, receivers.count());
        let Some(requester) = requester else { return };
        let command = Arc::new(command);
        for shard in receivers.shards {
            turn.ask_local(shard, requester, LocalCommand::ForUsers(command.clone()));
        }
        if receivers.has_mesh {
            turn.send_to_mesh(ToMesh::ForUsers(requester, command));
        }
    }
}
