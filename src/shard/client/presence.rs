//! Who is in channels with presence: what this shard reports of its clients and tells its devices, and what it tells as
//! the home of a channel. See `channel::presence`.

use std::sync::Arc;

use super::for_users::is_open_client_of;
use super::{Clients, Subscription};
use crate::address::placement::home_of_topic;
use crate::address::{Incarnation, NodeId, ShardAddress};
use crate::channel::members::JOIN_MS;
use crate::channel::presence::{
    HomePresence, LocalPresence, PresenceChange, PresencePlaces, PresenceTerms, SessionChange,
};
use crate::message::{
    BackendId, ConnectionKey, GridMessage, LocalCommand, PresenceMessage, PresentMember,
    PushCommand, Requester, Ticket,
};
use crate::protocol::api::{self, NAME_BYTES_MAX, PresenceEvent};
use crate::protocol::frame::{Frame, Kind};
use crate::shard::connection::{Client, Connections};
use crate::shard::turn::Turn;

/// Members that leave, channels that get another home, and standbys told, in one turn, of each.
const STEPS_PER_TURN: usize = 256;

/// Joins and leaves that devices are told of in one turn.
const TOLD_PER_TURN: usize = 64;

/// Events on their way to topics at a time. The next ones follow when all of these are answered.
const PUSHES_MAX: usize = 256;

/// The time until a topic that had no room is tried again, in milliseconds.
const RETRY_MS: u64 = 1000;

/// The longest time that a topic may take to answer, in milliseconds. Topics answer earlier.
const ANSWER_MS: u64 = 10_000;

/// The grace of channels that the other nodes have presence in, and this one does not.
const GRACE_MS: u64 = 3000;

/// Who is in channels with presence, as far as this shard is concerned.
pub(super) struct Presence {
    // Whether any channel of this node has presence.
    is_configured: bool,
    // Whether there may be something to do in a turn, or at a time.
    is_active: bool,
    places: PresencePlaces,
    local: LocalPresence,
    home: HomePresence,
    pushes: Pushes,
    // Until then a node that has just been started tells nothing. By then it knows what the others know.
    begins_ms: u64,
}

/// Events that are on their way to topics.
#[derive(Default)]
struct Pushes {
    // The number of the events so far, which gives each a ticket.
    last: u64,
    // The events, and their number without an answer.
    changes: Vec<Option<PresenceChange>>,
    waiting: usize,
    // When they count as not taken, and the time before which none follow, in milliseconds.
    until_ms: u64,
    next_ms: u64,
}

/// Figures for `/metrics`.
pub(crate) struct PresenceFigures {
    /// Channels whose home the shard is.
    pub channels: u64,
    /// Members of channels whose home the shard is.
    pub members: u64,
    /// The memory of users, in bytes.
    pub bytes: u64,
}

impl Presence {
    pub(super) fn new(turn: &Turn) -> Self {
        let channels = &turn.settings.channels;
        let bytes_max = channels.presence_bytes / 2;
        Self {
            is_configured: channels.has_presence(),
            is_active: false,
            places: PresencePlaces::new(turn.address, turn.settings.shards),
            local: LocalPresence::new(bytes_max),
            home: HomePresence::new(bytes_max),
            pushes: Pushes::default(),
            begins_ms: if turn.settings.has_mesh { turn.now.ms + JOIN_MS } else { 0 },
        }
    }

    /// Whether the next turn has something to do at once.
    fn is_waiting(&self) -> bool {
        self.local.has_messages()
            || self.home.has_messages()
            || self.local.is_moving()
            || self.home.is_guarding()
    }

    fn has_untold(&self) -> bool {
        self.local.has_untold() || self.home.has_changes()
    }
}

impl Clients {
    /// Figures for `/metrics`.
    pub(crate) fn presence_figures(&self) -> PresenceFigures {
        let Presence { local, home, .. } = &*self.presence;
        PresenceFigures {
            channels: home.channels() as u64,
            members: home.members() as u64,
            bytes: (local.bytes() + home.bytes()) as u64,
        }
    }

    /// Checks the sums.
    ///
    /// # Panics
    /// One is wrong.
    pub(crate) fn check_presence(&self) {
        self.presence.local.check();
        self.presence.home.check();
    }

    /// Notes that a client was subscribed to a channel.
    #[inline]
    pub(super) fn enter(
        &mut self,
        turn: &Turn,
        channel: &str,
        user: impl FnOnce() -> PresentMember,
    ) {
        if self.presence.is_configured
            && let Some(rule) = turn.settings.channels.presence_of(channel)
        {
            let Presence { places, local, is_active, .. } = &mut *self.presence;
            *is_active = true;
            local.enter(places, channel, user(), rule.grace_ms);
        }
    }

    /// Notes that a client is not subscribed to a channel any more.
    #[inline]
    pub(super) fn leave(
        &mut self,
        now_ms: u64,
        channel: &str,
        user: impl FnOnce() -> PresentMember,
    ) {
        if !self.presence.local.is_empty() {
            self.presence.local.leave(now_ms, channel, user());
        }
    }

    /// Notes that a client that has ended is not subscribed any more.
    #[inline]
    pub(super) fn leave_at(&mut self, now_ms: u64, at: Subscription, client: &Client) {
        if !self.presence.local.is_empty() {
            let channel = self.channels.name(at.channel);
            self.presence.local.leave(now_ms, channel, member_of(client));
        }
    }

    /// Whether a change of a client's context may concern presence.
    pub(super) fn has_presence(&self) -> bool {
        self.presence.is_configured
    }

    /// Notes that a client may be another user than before.
    pub(super) fn change_user(
        &mut self,
        turn: &Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        before: PresentMember,
    ) {
        let Some(client) = connections.get(key).and_then(|connection| connection.client()) else {
            return;
        };
        let after = member_of(client);
        if before == after {
            return;
        }
        let names = client.subscriptions.iter().map(|at| self.channels.name(at.channel).into());
        for channel in names.collect::<Vec<Box<str>>>() {
            self.enter(turn, &channel, || after.clone());
            self.leave(turn.now.ms, &channel, || before.clone());
        }
    }

    /// Handles a message about a channel.
    pub(crate) fn handle_presence(
        &mut self,
        turn: &mut Turn,
        from: ShardAddress,
        message: PresenceMessage,
    ) {
        let Presence { places, local, home, is_active, .. } = &mut *self.presence;
        *is_active = true;
        let settings = &turn.settings.channels;
        if message.news.is_for_home() {
            home.handle(turn.now.ms, from, message, places, |channel| {
                let rule = settings.presence_of(channel);
                PresenceTerms {
                    grace_ms: rule.map_or(GRACE_MS, |rule| rule.grace_ms),
                    has_topic: rule.is_some_and(|rule| rule.topic.is_some()),
                }
            });
        } else {
            local.handle(from, message);
        }
    }

    /// Handles the news that a node has become reachable, or was restarted.
    pub(crate) fn handle_presence_up(
        &mut self,
        turn: &Turn,
        node: NodeId,
        shards: u16,
        incarnation: Incarnation,
    ) {
        let Presence { places, local, home, .. } = &mut *self.presence;
        let change = places.add(node, shards.into(), incarnation);
        local.handle_session(node);
        home.handle_session(turn.now.ms, node, change);
    }

    /// Handles the news that a node is unreachable.
    pub(crate) fn handle_presence_down(&mut self, turn: &Turn, node: NodeId) {
        let Presence { places, local, home, .. } = &mut *self.presence;
        places.remove(node);
        local.handle_session(node);
        home.handle_session(turn.now.ms, node, SessionChange::Ended);
    }

    /// Handles the answer of a topic to an event.
    pub(crate) fn handle_presence_pushed(&mut self, turn: &mut Turn, ticket: Ticket, is_in: bool) {
        let Presence { home, pushes, is_active, .. } = &mut *self.presence;
        let Some(change) = pushes.take(ticket) else { return };
        match is_in {
            true => turn.counters.presence_told += 1,
            false => {
                *is_active = true;
                pushes.next_ms = turn.now.ms + RETRY_MS;
                home.tell_again(turn.now.ms, change);
            }
        }
    }

    /// Whether [`Self::continue_presence`] may have something to do, now or later.
    #[inline]
    pub(crate) fn has_presence_work(&self) -> bool {
        self.presence.is_active
    }

    /// Returns when [`Self::continue_presence`] has something to do, in milliseconds on the shard's clock.
    pub(crate) fn next_presence(&self) -> Option<u64> {
        let presence = &*self.presence;
        if presence.is_waiting() {
            return Some(0);
        }
        let topics = presence.home.has_changes().then_some(presence.pushes.due_ms());
        let times = [presence.local.next_expiry(), presence.home.next_expiry(), topics];
        let devices = presence.local.has_untold().then_some(0);
        let told = topics.into_iter().chain(devices).min();
        let told = told.map(|due_ms| due_ms.max(presence.begins_ms));
        times[..2].iter().copied().chain([told]).flatten().min()
    }

    /// Lets members leave whose time has come, and tells homes, devices and topics, some in each turn.
    pub(crate) fn continue_presence(&mut self, turn: &mut Turn, connections: &mut Connections) {
        let now_ms = turn.now.ms;
        let Presence { places, local, home, .. } = &mut *self.presence;
        local.expire(now_ms, STEPS_PER_TURN);
        local.move_some(places, STEPS_PER_TURN);
        home.guard_some(places, STEPS_PER_TURN);
        home.expire(now_ms, places, STEPS_PER_TURN);
        turn.counters.limits.presence_bytes += local.take_refused() + home.take_refused();
        while let Some((to, message)) = local.poll_message().or_else(|| home.poll_message()) {
            turn.send_grid(to, GridMessage::Presence(Box::new(message)));
        }
        if now_ms >= self.presence.begins_ms && self.presence.has_untold() {
            self.tell_devices(turn, connections);
            self.tell_topics(turn);
        }
        let Presence { local, home, .. } = &*self.presence;
        let is_over = local.is_empty() && home.channels() == 0 && !self.presence.is_waiting();
        self.presence.is_active = !is_over;
    }

    fn tell_devices(&mut self, turn: &mut Turn, connections: &mut Connections) {
        let backend = BackendId::of_presence(turn.address);
        for _ in 0..TOLD_PER_TURN {
            if self.has_pending_publish(backend) || !self.may_walk() {
                return;
            }
            let Some((channel, user, is_join)) = self.presence.local.poll_told() else { return };
            let mut event = Vec::new();
            api::put_presence(&mut event, is_join, &channel, &user);
            let event = Frame::message(Kind::Text, &event);
            let own = self.users.connections(self.users.hash(&user), 0);
            let own = own.filter(|&index| is_open_client_of(connections, index, &user));
            let own: Vec<u32> = own.collect();
            let own = own.into_iter().map(|index| connections.at(index).0);
            let mut own: Vec<ConnectionKey> = own.collect();
            own.sort_unstable();
            if let Err(walk) = self.publish_event(turn, connections, &channel, event, own) {
                let requester = Requester { ticket: Ticket(u64::MAX), backend };
                self.defer_publish(requester, walk.into());
            }
        }
    }

    fn tell_topics(&mut self, turn: &mut Turn) {
        let Presence { home, pushes, .. } = &mut *self.presence;
        let now_ms = turn.now.ms;
        if now_ms < pushes.due_ms() {
            return;
        }
        // Answers that have not come in time do not come.
        for change in pushes.changes.drain(..).flatten() {
            home.tell_again(now_ms, change);
        }
        pushes.waiting = 0;
        while pushes.changes.len() < PUSHES_MAX
            && let Some(change) = home.poll_change()
        {
            let Some((topic, frame)) = encode(turn, &change) else { continue };
            pushes.last += 1;
            let (ticket, backend) = (Ticket(pushes.last), BackendId::of_presence(turn.address));
            let key = Some(change.channel().as_ref().into());
            let shard = home_of_topic(&topic, turn.settings.shards);
            let push = PushCommand { topic, key, frame, after_ms: 0 };
            let requester = Requester { ticket, backend };
            turn.ask_local(shard, requester, LocalCommand::Push(Box::new(push)));
            pushes.changes.push(Some(change));
            pushes.waiting += 1;
        }
        pushes.until_ms = now_ms + ANSWER_MS;
    }
}

impl Pushes {
    /// When the next events may follow, in milliseconds.
    fn due_ms(&self) -> u64 {
        if self.waiting == 0 { self.next_ms } else { self.until_ms }
    }

    /// Takes out the event with this ticket.
    fn take(&mut self, ticket: Ticket) -> Option<PresenceChange> {
        let first = self.last + 1 - self.changes.len() as u64;
        let index = ticket.0.checked_sub(first)?;
        let change = self.changes.get_mut(usize::try_from(index).ok()?)?.take();
        self.waiting -= usize::from(change.is_some());
        change
    }
}

/// Returns the member that a client belongs to: its user, unless no call can name the user.
pub(super) fn member_of(client: &Client) -> PresentMember {
    let user = client.context.user()?;
    (1..=NAME_BYTES_MAX).contains(&user.len()).then(|| Arc::from(&*user))
}

/// Encodes an event for the topic of its channel. `None`: the channel has no topic here, or the event is too long for it.
fn encode(turn: &mut Turn, change: &PresenceChange) -> Option<(Arc<str>, Frame)> {
    let rule = turn.settings.channels.presence_of(change.channel());
    let topic = rule.and_then(|rule| rule.topic.clone())?;
    let event = PresenceEvent {
        topic: &topic,
        channel: change.channel(),
        user: change.user().map(|user| &**user),
        is_arrival: change.is_arrival(),
    };
    let (mut out, mut scratch) = (Vec::new(), std::mem::take(&mut turn.scratch));
    api::put_presence_event(&mut out, &mut scratch, turn.address.node, &event);
    turn.scratch = scratch;
    if out.len() > turn.settings.queue.event_bytes_max(&topic) {
        turn.counters.oversized += 1;
        return None;
    }
    Some((topic, Frame::from_encoded(&out)))
}
