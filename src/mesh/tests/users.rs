//! Commands for users over nodes.

use super::*;
use crate::message::{UserAction, UserCommand};
use crate::protocol::api::Function;

/// Sends a command for users from the first shard of a node.
fn command(net: &mut Net, index: usize, ticket: u64, action: UserAction) {
    let at = ShardAddress { node: node(index), shard: ShardId(0) };
    let backend = BackendId { at, connection: ConnectionKey { index: 0, generation: 0 } };
    let requester = Requester { ticket: Ticket(ticket), backend };
    let command = Arc::new(UserCommand { users: vec!["ada".into()], action });
    net.send(index, 0, ToMesh::ForUsers(requester, command));
    net.settle();
}

/// Lets the shards answer that were asked since the last call, with one connection each. Returns the
/// shards.
fn carried_out(net: &mut Net) -> Vec<(usize, u8)> {
    let mut asked = Vec::new();
    for (index, shard, message) in std::mem::take(&mut net.heard) {
        if let FromMesh::ForUsers(Requester { ticket, .. }, _) = message {
            asked.push((index, shard.0));
            let tally = Tally { delivered: 1, failed: 0 };
            net.send(index, shard.0, ToMesh::Published(ticket, tally));
        }
    }
    net.settle();
    asked.sort_unstable();
    asked
}

fn message() -> UserAction {
    UserAction::Send(Frame::from_encoded(b"frame"))
}

#[test]
fn a_command_for_users_goes_to_every_shard_of_every_other_node() {
    let mut net = Net::new(3);
    command(&mut net, 1, 7, message());
    assert_eq!(carried_out(&mut net), [(0, 0), (0, 1), (2, 0), (2, 1)]);
    assert_eq!(net.tally(7), tally(4, 0));
}

#[test]
fn a_command_for_users_is_answered_without_a_node_that_is_lost() {
    let mut net = Net::new(3);
    net.cut(0, 2);
    net.cut(1, 2);
    command(&mut net, 0, 7, message());
    assert_eq!(carried_out(&mut net), [(1, 0), (1, 1)]);
    net.pass(1500);
    assert_eq!(net.tally(7), tally(2, 0));
    // A node without a link is given up, and then not waited for.
    net.pass(LOST_AND_FOUND_MS);
    command(&mut net, 0, 8, message());
    assert_eq!(carried_out(&mut net), [(1, 0), (1, 1)]);
    assert_eq!(net.tally(8), tally(2, 0));
}

#[test]
fn a_function_for_users_is_not_called_late_on_a_node_that_is_out_of_reach() {
    let mut net = Net::new(2);
    net.deaf = Some(1);
    net.pass(2000);
    command(&mut net, 0, 7, UserAction::Call(Function::Info));
    assert_eq!(net.tally(7), tally(0, 0));
    net.deaf = None;
    net.pass(LOST_AND_FOUND_MS);
    assert_eq!(carried_out(&mut net), []);
}

#[test]
fn a_publish_behind_a_subscribe_for_users_goes_where_the_subscribe_went() {
    let mut net = Net::new(2);
    let subscribe = Function::Subscribe(vec!["news".into()]);
    command(&mut net, 0, 7, UserAction::Call(subscribe));
    net.publish(0, 8);
    assert_eq!(net.count_of(1, |message| matches!(message, FromMesh::Publish(..))), SHARDS);
    let is_command = |message: &FromMesh| matches!(message, FromMesh::ForUsers(..));
    assert_eq!(net.count_of(1, is_command), SHARDS);
}
