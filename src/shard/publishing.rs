//! Routing of publishes to channels with history, and of those with an idempotency key: through the home of the channel.
//!
//! Calls of one connection take effect in their order. Shards get publishes of these kinds from the home, and other calls
//! from the shard of the back end. So a call waits until earlier calls of the other kind are answered.

use std::sync::Arc;

use super::backend::{Answer, Asked, Backends, Caller, ask_to_publish};
use super::client::{Clients, PendingWalk};
use super::connection::{Connection, Connections, ParkedCall, Pause};
use super::homes::{self, Accepted, AcceptedPublish, ChannelHomes};
use super::turn::Turn;
use crate::address::ShardId;
use crate::address::placement::home_of_channel;
use crate::message::{
    BackendId, ConnectionKey, HomePublish, LocalCommand, LocalMessage, PlacedPublish, Placement,
    Publish, Requester, Ticket,
};
use crate::protocol::api::{Call, Code, Content, Fault, MultiPublish, Reply, Tally};
use crate::protocol::frame::Frame;

/// The parts of a shard that a publish at the home of its channel needs.
pub(super) struct HomeParts<'s> {
    pub turn: &'s mut Turn,
    pub connections: &'s mut Connections,
    pub clients: &'s mut Clients,
    pub backends: &'s mut Backends,
    pub homes: &'s mut ChannelHomes,
}

/// Whether a call may go through the home of a channel, or may have to wait for one that does: see [`is_placed`] and
/// [`must_wait`].
#[inline]
pub(super) fn may_be_placed(
    turn: &Turn,
    backends: &Backends,
    call: &Result<Call<'_>, Fault>,
) -> bool {
    // Most nodes have no channels with history, and then the only calls through homes are those with a key.
    backends.has_placed_publishes()
        || !turn.settings.channels.rules.is_empty()
        || matches!(call, Ok(Call::MultiPublish(_)))
}

/// Whether a call is a publish that goes through the home of a channel.
pub(super) fn is_placed(turn: &Turn, call: &Call<'_>) -> bool {
    let channels = &turn.settings.channels;
    match call {
        Call::Publish(channel, _) => channels.history_of(channel).is_some(),
        Call::MultiPublish(publish) => {
            let has_history = |channel: &&str| channels.history_of(channel).is_some();
            publish.key.is_some() || publish.channels.iter().any(has_history)
        }
        _ => false,
    }
}

/// Whether a call has to wait until earlier calls of its connection are answered.
pub(super) fn must_wait(
    turn: &Turn,
    connections: &mut Connections,
    key: ConnectionKey,
    call: &Result<Call<'_>, Fault>,
) -> bool {
    let Ok(call) = call else { return false };
    let Some(replies) = connections.get(key).and_then(Connection::replies) else { return false };
    ParkedCall::takes(call)
        && match is_placed(turn, call) {
            true => replies.has_direct_call(),
            false => replies.has_placed_publish(),
        }
}

/// Parks a call that has to wait. The connection is not read from meanwhile.
pub(super) fn park(connections: &mut Connections, caller: Caller, call: Result<Call<'_>, Fault>) {
    let Caller { key, shape } = caller;
    let parked = call.ok().and_then(|call| ParkedCall::new(shape, call));
    let parked = parked.expect("only a call that can be parked has to wait");
    if let Some(replies) = connections.get(key).and_then(Connection::replies) {
        replies.park(parked);
    }
    connections.pause(key, Pause::Answers);
}

/// Publishes to a channel with history.
pub(super) fn publish(
    parts: &mut HomeParts<'_>,
    caller: Caller,
    channel: &str,
    content: &Content<'_>,
) {
    let HomeParts { turn, connections, .. } = parts;
    let frame = Frame::message(content.kind, &content.bytes);
    let publish = Publish { channel: channel.into(), frame, excluded: None };
    let publish = HomePublish { publish, key: None };
    let home = home_of_channel(channel, turn.settings.shards);
    if home != turn.address.shard {
        let requester = parts.backends.open_placed(turn, connections, caller, Asked::one_home());
        let Some(requester) = requester else { return };
        return turn.send_local(home, LocalMessage::PublishAtHome(requester, Box::new(publish)));
    }
    let accepted = match parts.homes.accept(turn, publish) {
        Ok(Accepted::New(accepted)) => accepted,
        // Only publishes with a key are repeated.
        Ok(_) => return,
        Err(fault) => return connections.reply(turn, caller.key, &caller.shape, &Err(fault)),
    };
    let delivery = HomeDispatch::begin(turn, connections, parts.clients, accepted);
    let placement = delivery.placement();
    if placement.awaited == 0 {
        let answer = Ok(match placement.position {
            Some(position) => Reply::Placed(placement.tally, position),
            None => Reply::Published(placement.tally),
        });
        connections.reply(turn, caller.key, &caller.shape, &answer);
        return parts.homes.finish(turn, delivery.accepted, placement.tally);
    }
    // The message is in the history, so it is delivered even if nobody waits for the answer.
    let unawaited = Requester { ticket: Ticket(u64::MAX), backend: turn.backend_id(caller.key) };
    let asker = parts.backends.open_placed(turn, connections, caller, Asked::one_home());
    let asker = asker.unwrap_or(unawaited);
    parts.backends.handle_answer(turn, connections, asker.ticket, Answer::Placed(placement));
    delivery.send(turn, parts.clients, parts.homes, asker);
}

/// Publishes to several channels, or with a key, or with clients that do not get the message. At least one channel has a
/// history, or there is a key.
pub(super) fn publish_several(
    parts: &mut HomeParts<'_>,
    caller: Caller,
    publish: &MultiPublish<'_>,
) {
    let HomeParts { turn, connections, backends, .. } = parts;
    let MultiPublish { channels, is_list, excluded, key, content } = publish;
    if key.is_some() && turn.settings.has_mesh {
        let why = "k: idempotency keys are for nodes without a mesh; leave it out";
        let fault = Err(Fault::new(Code::InvalidArgument, why));
        return connections.reply(turn, caller.key, &caller.shape, &fault);
    }
    let frame = Frame::message(content.kind, &content.bytes);
    let excluded = (!excluded.is_empty()).then(|| Arc::new(excluded.clone()));
    let settings = turn.settings.clone();
    let has_home =
        |channel: &&str| key.is_some() || settings.channels.history_of(channel).is_some();
    let (at_homes, direct): (Vec<&str>, Vec<&str>) = channels.iter().copied().partition(has_home);
    let direct: Vec<_> = direct
        .into_iter()
        .map(|channel| {
            (channel, backends.receivers_of_publish(turn, connections, caller.key, channel))
        })
        .collect();
    let others = direct.iter().map(|(_, receivers)| receivers.count()).sum();
    let asked = Asked { homes: at_homes.len(), others, answers_position: !is_list };
    let Some(requester) = backends.open_placed(turn, connections, caller, asked) else { return };
    let of = |channel: &str| Publish {
        channel: channel.into(),
        frame: frame.clone(),
        excluded: excluded.clone(),
    };
    for channel in at_homes {
        let publish = HomePublish { publish: of(channel), key: key.map(Box::from) };
        let home = home_of_channel(channel, settings.shards);
        turn.send_local(home, LocalMessage::PublishAtHome(requester, Box::new(publish)));
    }
    for (channel, receivers) in direct {
        ask_to_publish(turn, requester, receivers, of(channel));
    }
}

/// Carries out a publish at the home of its channel, for a back end of any shard of the node.
pub(super) fn publish_at_home(
    parts: &mut HomeParts<'_>,
    requester: Requester,
    publish: HomePublish,
) {
    let HomeParts { turn, connections, .. } = parts;
    let accepted = match parts.homes.accept(turn, publish) {
        Ok(Accepted::New(accepted)) => accepted,
        Ok(Accepted::Repeated(placement)) => return homes::answer(turn, requester, placement),
        Ok(Accepted::InDelivery(key)) => {
            if let Err(fault) = parts.homes.wait_for_delivery(turn, requester, key) {
                turn.answer(requester, Err(fault));
            }
            return;
        }
        Err(fault) => return turn.answer(requester, Err(fault)),
    };
    let delivery = HomeDispatch::begin(turn, connections, parts.clients, accepted);
    let placement = delivery.placement();
    homes::answer(turn, requester, placement);
    match placement.awaited {
        0 => parts.homes.finish(turn, delivery.accepted, placement.tally),
        _ => delivery.send(turn, parts.clients, parts.homes, requester),
    }
}

/// A message that its home delivers.
struct HomeDispatch {
    accepted: AcceptedPublish,
    // The subscribers of this shard that were reached at once.
    tally: Tally,
    // The rest of the walk through the subscribers of this shard.
    walk: Option<PendingWalk>,
    // The shards that have to be asked.
    shards: Vec<ShardId>,
}

impl HomeDispatch {
    /// Delivers a message to the subscribers of this shard, if nothing that was sent to them before is on its way.
    fn begin(
        turn: &mut Turn,
        connections: &mut Connections,
        clients: &mut Clients,
        accepted: AcceptedPublish,
    ) -> Self {
        let PlacedPublish { publish, position } = &*accepted.placed;
        let own = turn.address.shard;
        let is_first =
            !clients.has_pending_publish(BackendId::of_home(turn.address)) && !turn.has_steps();
        let shards = turn.state.interest.shards(&publish.channel);
        let mut shards: Vec<ShardId> = shards.collect();
        let (mut tally, mut walk) = (Tally::default(), None);
        if is_first && let Some(at) = shards.iter().position(|&shard| shard == own) {
            shards.swap_remove(at);
            let excluded = publish.excluded.as_deref().map(|excluded| &excluded[..]);
            let (channel, frame) = (&publish.channel, publish.frame.clone());
            match clients.publish(turn, connections, channel, frame, *position, excluded) {
                Ok(reached) => tally = reached,
                Err(rest) => walk = Some(PendingWalk::from(rest)),
            }
        }
        Self { accepted, tally, walk, shards }
    }

    fn placement(&self) -> Placement {
        Placement {
            position: self.accepted.placed.position,
            tally: self.tally,
            awaited: self.shards.len() as u32 + u32::from(self.walk.is_some()),
        }
    }

    /// Has the other subscribers reached. Their tallies go to the asker.
    fn send(
        self,
        turn: &mut Turn,
        clients: &mut Clients,
        homes: &mut ChannelHomes,
        asker: Requester,
    ) {
        let (placement, placed) = (self.placement(), self.accepted.placed.clone());
        let requester = homes.begin_delivery(turn, asker, self.accepted, placement);
        if let Some(walk) = self.walk {
            clients.defer_publish(requester, walk);
        }
        for shard in self.shards {
            turn.ask_local(shard, requester, LocalCommand::Deliver(placed.clone()));
        }
    }
}
