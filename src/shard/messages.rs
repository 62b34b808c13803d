//! How the shard routes messages to its parts: one function for each direction.

use super::Shard;
use super::backend::{self, Answer, Caller, TopicHome};
use super::calls::read_bridge_call;
use super::lists;
use super::publishing::{self, HomeParts};
use super::turn::{Now, ShardCommand};
use crate::address::{ShardAddress, ShardId};
use crate::message::{
    FromBridge, FromMesh, FromNode, GridMessage, ListAnswer, ListMessage, ListQuestion,
    LocalCommand, LocalMessage, Requester, ToConsumer, ToFeeder, ToMesh, ToShard, ToTapper,
};
use crate::protocol::api::{Code, Fault, Reply};

impl Shard {
    /// Handles a message of another shard, the mesh or the node.
    pub fn handle_message(&mut self, now: Now, message: ToShard) {
        self.turn.now = now;
        let (turn, connections) = (&mut self.turn, &mut self.connections);
        match message {
            ToShard::Local(from, message) => self.dispatch_local(from, message),
            ToShard::Mesh(FromMesh::Grid(from, message)) => self.dispatch_grid(from, message),
            ToShard::Mesh(FromMesh::Publish(requester, publish)) => {
                self.execute_command(
                    requester,
                    ShardCommand::Local(LocalCommand::Publish(publish)),
                );
            }
            ToShard::Mesh(FromMesh::ForUsers(requester, command)) => {
                self.execute_command(
                    requester,
                    ShardCommand::Local(LocalCommand::ForUsers(command)),
                );
            }
            ToShard::Mesh(FromMesh::Published(ticket, tally)) => {
                let answer = Answer::Published(tally);
                self.backends.handle_answer(turn, connections, ticket, answer);
            }
            ToShard::Mesh(FromMesh::Report(ticket, report)) => {
                let answer = Answer::Mesh(report);
                self.backends.handle_answer(turn, connections, ticket, answer);
            }
            ToShard::Mesh(FromMesh::Nodes(ticket, nodes)) => {
                if let Some(nodes) = self.lists.handle_nodes(turn, ticket, nodes) {
                    let answer = Answer::Done(Ok(Reply::Page(
                        "application/json",
                        backend::nodes_page(nodes.rows),
                    )));
                    self.backends.handle_answer(turn, connections, ticket, answer);
                }
            }
            ToShard::Mesh(FromMesh::NotAsked(ticket, to)) => {
                self.lists.handle_not_asked(turn, ticket, to);
            }
            ToShard::Mesh(FromMesh::InterestKnown(change)) => {
                self.clients.handle_interest_known(turn, connections, change);
            }
            ToShard::Mesh(FromMesh::NodeUp { node, shards, incarnation }) => {
                turn.send_to_mesh(ToMesh::NodeSeen(node));
                turn.roster.add(node, shards, incarnation);
                self.backends.handle_node_up(turn, connections, node);
                self.taps.handle_node_up(turn, node);
                self.last_wills.handle_node_up(turn, node, incarnation);
                self.clients.handle_presence_up(turn, node, shards, incarnation);
            }
            ToShard::Mesh(FromMesh::NodeDown(node)) => {
                turn.roster.remove(node);
                self.taps.handle_node_down(turn, node);
                self.backends.handle_node_down(connections, node);
                self.topics.home.handle_node_down(turn, node);
                self.last_wills.handle_node_down(turn, node);
                self.lists.handle_node_down(turn, node);
                self.clients.handle_presence_down(turn, node);
            }
            ToShard::Mesh(FromMesh::NodeDead { node, incarnation }) => {
                self.last_wills.handle_node_dead(turn, node, incarnation);
            }
            ToShard::Mesh(FromMesh::Readmitted) => self.last_wills.handle_readmitted(),
            ToShard::Node(FromNode::VerificationDone { credentials, user }) => {
                self.api_access.handle_verification_done(turn, connections, credentials, user);
            }
            ToShard::Node(FromNode::Reloaded { ticket, outcome }) => {
                let reason = |why| Fault::new(Code::ExecutionFailed, String::from(why));
                let answer = Answer::Done(outcome.map(Reply::Reloaded).map_err(reason));
                self.backends.handle_answer(turn, connections, ticket, answer);
            }
            ToShard::Node(FromNode::Bridge(message)) => match *message {
                FromBridge::Keys(report) => self.admissions.handle_keys(turn, report),
                FromBridge::Admission { connection, ticket, verdict } => {
                    self.admissions.handle_verdict(turn, connection, ticket, verdict);
                }
                FromBridge::Sink { topic, sink, message } => {
                    self.topics.home.handle_sink(turn, &topic, &sink, message);
                }
                FromBridge::CallSource { source, report } => {
                    self.backends.note_call_source(source, report);
                }
                FromBridge::Call { call: id, mut text } => {
                    // The parser stays borrowed during the call, because the call refers to its buffers.
                    let mut parser = self.backends.lend_parser();
                    let call = read_bridge_call(&mut parser, &mut text);
                    self.call(Caller::of_bridge(id), call);
                    self.backends.return_parser(parser);
                }
            },
            ToShard::Node(FromNode::Drain { over_ms }) => {
                self.draining.begin(turn, connections, over_ms);
                self.admissions.handle_drain(turn);
                self.backends.handle_drain(turn, connections);
            }
            ToShard::Node(FromNode::DrainBackends) => self.draining.begin_with_backends(),
            ToShard::Node(FromNode::Log(message)) => self.topics.home.handle_log(turn, *message),
        }
        self.route();
    }

    /// Handles a message of a shard of this node, or of this shard itself.
    pub(super) fn dispatch_local(&mut self, from: ShardId, message: LocalMessage) {
        let (turn, connections) = (&mut self.turn, &mut self.connections);
        match message {
            LocalMessage::Grid(message) => {
                let node = turn.address.node;
                self.dispatch_grid(ShardAddress { node, shard: from }, message);
            }
            LocalMessage::Ask { ticket, backend, command } => {
                self.execute_command(Requester { ticket, backend }, ShardCommand::Local(command));
            }
            LocalMessage::Published(ticket, tally) => {
                let answer = Answer::Published(tally);
                self.backends.handle_answer(turn, connections, ticket, answer);
            }
            LocalMessage::PublishAtHome(requester, publish) => {
                let Self { turn, connections, clients, backends, homes, .. } = self;
                let mut parts = HomeParts { turn, connections, clients, backends, homes };
                publishing::publish_at_home(&mut parts, requester, *publish);
            }
            LocalMessage::Placed(ticket, placement) => {
                let answer = Answer::Placed(placement);
                self.backends.handle_answer(turn, connections, ticket, answer);
            }
            LocalMessage::Delivered(ticket, tally) => {
                self.homes.handle_delivered(turn, ticket, tally);
            }
            LocalMessage::Recover(question) => self.homes.handle_question(turn, from, *question),
            LocalMessage::Report(ticket, report) => {
                let answer = Answer::Report(report);
                self.backends.handle_answer(turn, connections, ticket, answer);
            }
            LocalMessage::PresencePushed(ticket, is_in) => {
                self.clients.handle_presence_pushed(turn, ticket, is_in);
            }
            LocalMessage::FromFeeder(topic, message) => {
                self.topics.home.handle_feeder(turn, from, &topic, message);
            }
            LocalMessage::ToFeeder(topic, message) => match message {
                ToFeeder::Credit(credit) => {
                    self.topics.handle_credit(turn, connections, &topic, credit);
                }
                ToFeeder::Recall(most) => self.topics.feeders.recall(turn, &topic, most),
                ToFeeder::Refused => self.topics.feeders.refuse(turn, connections, &topic),
                ToFeeder::EventLeft(client) => self.last_wills.unregister(turn, &topic, client),
                ToFeeder::EventStored(client, receipt) => {
                    self.clients.handle_stored(turn, connections, client, receipt);
                }
            },
            LocalMessage::StartDelivery(topic, consumer) => {
                self.topics.home.start(turn, &topic, consumer)
            }
            LocalMessage::Bury { to, from: topic, client, frame } => {
                self.topics.home.handle_bury(turn, from, &to, topic, client, frame);
            }
            LocalMessage::Buried(topic, was_taken) => {
                self.topics.home.handle_buried(turn, &topic, was_taken);
            }
            LocalMessage::BackendGone(backend) => {
                self.clients.handle_backend_gone(turn, backend);
                self.topics.home.handle_backend_gone(turn, backend);
            }
            LocalMessage::CredentialsVerified(credentials, user) => {
                self.api_access.handle_verified(turn, connections, credentials, user);
            }
            LocalMessage::FailedAttempt(address) => {
                self.api_access.handle_failed_attempt(turn, address)
            }
            LocalMessage::Arrived(address, key) => {
                self.addresses.handle_arrived(turn, from, address, key);
            }
            LocalMessage::Admitted { address, key, may_stay } => {
                self.addresses.handle_admitted(turn, connections, address, key, may_stay);
            }
            LocalMessage::Departed(address) => self.addresses.handle_departed(turn, address),
        }
    }

    /// Handles a message of a shard of any node.
    pub(super) fn dispatch_grid(&mut self, from: ShardAddress, message: GridMessage) {
        let (turn, connections) = (&mut self.turn, &mut self.connections);
        match message {
            GridMessage::Ask { ticket, backend, command } => {
                self.execute_command(Requester { ticket, backend }, ShardCommand::Client(command));
            }
            GridMessage::Answer(ticket, answer) => {
                let answer = Answer::Done(answer.map(Reply::from));
                self.backends.handle_answer(turn, connections, ticket, answer);
            }
            GridMessage::FromConsumer { topic, consumer, message } => {
                self.topics.home.handle_consumer(turn, &topic, consumer, message);
            }
            GridMessage::ToConsumer { topic, consumer, message } => match message {
                ToConsumer::Deliver(delivery) => {
                    let (key, home) = (consumer.connection, TopicHome { node: from.node, topic });
                    self.backends.deliver(turn, connections, key, home, delivery);
                }
                ToConsumer::Expired(numbers) => {
                    let (key, home) = (consumer.connection, TopicHome { node: from.node, topic });
                    self.backends.handle_expired(turn, connections, key, &home, &numbers);
                }
                // A take leaves by itself, soon.
                ToConsumer::Evict if backend::is_take(consumer.connection) => {}
                ToConsumer::Evict => connections.close_slow(turn, consumer.connection),
            },
            GridMessage::Settle(ticket, settle) => {
                let stale = self.topics.home.handle_settle(turn, *settle);
                turn.send_grid(from, GridMessage::Settled(ticket, Box::new(stale)));
            }
            GridMessage::Settled(ticket, stale) => {
                let answer = Answer::Settled(backend::stale_tags(turn, from.node, *stale));
                self.backends.handle_answer(turn, connections, ticket, answer);
            }
            GridMessage::LastWills(owner, message) => {
                self.last_wills.handle_message(turn, from, owner, message);
            }
            GridMessage::List(ticket, ListMessage::Ask(ListQuestion::Figures)) => {
                let figures = ListAnswer::Figures(Box::new(self.inspect().figures()));
                lists::answer(&mut self.turn, from, ticket, figures);
            }
            GridMessage::List(ticket, ListMessage::Ask(ListQuestion::Topic(question))) => {
                let part = self.topics.home.list(turn.now.us, &question);
                lists::answer(turn, from, ticket, ListAnswer::Topic(Box::new(part)));
            }
            GridMessage::List(ticket, ListMessage::Ask(ListQuestion::Client(question))) => {
                self.lists.walk_clients(turn, from, ticket, question);
            }
            GridMessage::List(ticket, ListMessage::Ask(ListQuestion::Channel(question))) => {
                self.lists.walk_channels(turn, from, ticket, question);
            }
            GridMessage::List(ticket, ListMessage::Ask(ListQuestion::Backend(question))) => {
                self.lists.walk_backends(turn, from, ticket, question);
            }
            GridMessage::List(ticket, ListMessage::Ask(ListQuestion::UserInfo(question))) => {
                self.lists.walk_users(turn, from, ticket, question);
            }
            GridMessage::List(ticket, ListMessage::Ask(ListQuestion::ChannelInfo(channels))) => {
                let part = Box::new(self.clients.channel_info(channels));
                lists::answer(turn, from, ticket, ListAnswer::Channel(part));
            }
            GridMessage::List(ticket, ListMessage::Answer(answer)) => {
                self.lists.handle_answer(turn, from, ticket, answer);
            }
            GridMessage::Presence(message) => self.clients.handle_presence(turn, from, *message),
            GridMessage::Caller(requester, user) => turn.taps.note_caller(requester, user),
            GridMessage::FromTapper(tapper, message) => {
                self.taps.handle_from_tapper(turn, tapper, message);
            }
            GridMessage::ToTapper(tapper, message) => match message {
                ToTapper::Started { ticket, is_watching } => {
                    let answer = Answer::Tapping { node: from.node, is_watching };
                    self.backends.handle_answer(turn, connections, ticket, answer);
                }
                ToTapper::Event(event) => {
                    let key = tapper.connection;
                    self.taps.handle_event(turn, connections, from, key, &event);
                }
                ToTapper::Lost(count) => self.taps.handle_lost(turn, tapper.connection, count),
            },
        }
    }
}
