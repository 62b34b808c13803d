//! Walks through the clients and channels of the shard, for lists of administration. What is known of named users and
//! channels.

use super::Clients;
use super::channels::ChannelIndex;
use super::for_users::is_open_client_of;
use crate::address::remote::Remote;
use crate::message::{ConnectionKey, NamesPart, SlottedClient};
use crate::protocol::api::{ChannelRow, ClientFilter, ClientRow, USER_BYTES_MAX, UserConnection};
use crate::shard::connection::{Connection, Connections, Phase, Stage};
use crate::shard::lists::UserInfoWalk;
use crate::shard::lists::{Budget, ChannelWalk, ClientWalk, Reached, SLOTS_CHOSEN_MAX, Slots};
use crate::shard::settings::Settings;
use crate::shard::turn::Turn;

/// The most members of a channel of which a walk chooses those to visit. The clients of a larger channel are
/// found among all clients of the shard: on average few slots lie between two of them.
const MEMBERS_CHOSEN_MAX: usize = 16 * 1024;

/// Subscriptions that are compared, or members that are looked at, in one unit of a budget.
const COMPARED_PER_UNIT: usize = 32;

impl Clients {
    /// Continues a walk through clients within the budget.
    pub(in crate::shard) fn walk_clients(
        &self,
        turn: &Turn,
        connections: &Connections,
        walk: &mut ClientWalk,
        budget: &mut Budget,
    ) -> Reached {
        let channel = match &walk.question.filter.channel {
            None => None,
            // The channel may have got another index since the last slice.
            Some(name) => match self.channels.find(name) {
                Some(channel) => Some(channel),
                None => {
                    walk.next = None;
                    return Reached::End;
                }
            },
        };
        while !walk.is_full() {
            if budget.is_spent() {
                return Reached::Pause;
            }
            let slots = walk.slots.take();
            let mut slots = slots.unwrap_or_else(|| self.choose_slots(walk, channel, budget));
            let Some(slot) = next_slot(walk, &mut slots, connections) else {
                match slots {
                    Slots::Chosen { is_cut: true, .. } => continue,
                    _ => {
                        walk.next = None;
                        return Reached::End;
                    }
                }
            };
            walk.slots = Some(slots);
            walk.next = slot.checked_add(1);
            budget.spend(Budget::SLOT);
            let Some((_, connection)) = connections.peek_at(slot) else { continue };
            budget.spend(Budget::CLIENT);
            if let Some(row) =
                row_if_listed(&turn.settings, connection, &walk.question.filter, channel, budget)
            {
                budget.spend(Budget::ROW);
                walk.rows.push(SlottedClient { slot, row });
            }
        }
        let is_over = match &walk.slots {
            Some(Slots::Chosen { slots, is_cut: false }) => slots.is_empty(),
            _ => walk.next.is_none_or(|next| next >= connections.index_end()),
        };
        walk.next = walk.next.filter(|_| !is_over);
        Reached::End
    }

    /// Returns the slots to look at: those of the clients, of the user or of the channel that are asked for, or all.
    fn choose_slots(
        &self,
        walk: &ClientWalk,
        channel: Option<ChannelIndex>,
        budget: &mut Budget,
    ) -> Slots {
        let Some(from) = walk.next else { return chosen(Vec::new()) };
        if let Some(clients) = &walk.question.filter.clients {
            budget.spend(clients.len());
            let slot = |key: &ConnectionKey| Some(key.index).filter(|slot| *slot >= from);
            return chosen(clients.iter().filter_map(|id| slot(self.by_id.get(id)?)).collect());
        }
        if let Some(user) = &walk.question.filter.user {
            let slots = self.users.connections(self.users.hash(user), from);
            let slots: Vec<u32> = slots.take(SLOTS_CHOSEN_MAX + 1).collect();
            budget.spend(slots.len());
            return chosen(slots);
        }
        let Some(channel) = channel else { return Slots::All };
        let members = self.channels.end(channel);
        if members > MEMBERS_CHOSEN_MAX {
            return Slots::All;
        }
        budget.spend(members.div_ceil(COMPARED_PER_UNIT));
        let members = self.channels.members(channel, None, 0, members);
        let slots = members.map(|(_, member)| member.connection);
        chosen(slots.filter(|slot| *slot >= from).collect())
    }

    /// Continues a walk through channels within the budget.
    pub(in crate::shard) fn walk_channels(
        &self,
        walk: &mut ChannelWalk,
        budget: &mut Budget,
    ) -> Reached {
        while !budget.is_spent() {
            budget.spend(Budget::SLOT);
            if walk.next >= self.channels.index_end() {
                return Reached::End;
            }
            if let Some((name, members)) = self.channels.name_and_members(walk.next) {
                walk.offer(name, || members as u64);
            }
            walk.next += 1;
        }
        Reached::Pause
    }

    /// Continues a walk through the connections of users within the budget.
    pub(in crate::shard) fn walk_user_info(
        &self,
        connections: &Connections,
        walk: &mut UserInfoWalk,
        budget: &mut Budget,
    ) -> Reached {
        while !budget.is_spent() {
            let Some(user) = walk.user() else { return Reached::End };
            budget.spend(Budget::CLIENT);
            let found = self.users.connections(self.users.hash(user), walk.from).next();
            let Some(slot) = found else {
                walk.pass_user();
                continue;
            };
            if is_open_client_of(connections, slot, user)
                && let Some((_, connection)) = connections.peek_at(slot)
                && let Stage::Client(client) = &connection.stage
            {
                budget.spend(Budget::ROW);
                let (since_ms, remote) = (connection.since_ms, connection.remote);
                if !walk.add(UserConnection { client: client.id, since_ms, remote }) {
                    return Reached::End;
                }
            }
            match slot.checked_add(1) {
                Some(next) => walk.from = next,
                None => walk.pass_user(),
            }
        }
        Reached::Pause
    }

    /// Counts the subscribers of channels on this shard. Those without any are left out.
    pub(in crate::shard) fn channel_info(&self, names: Vec<Box<str>>) -> NamesPart<ChannelRow> {
        let row = |name: Box<str>| {
            let (_, members) = self.channels.name_and_members(self.channels.find(&name)?)?;
            Some(ChannelRow { name, clients: members as u64 })
        };
        NamesPart { rows: names.into_iter().filter_map(row).collect(), is_cut: false }
    }
}

/// Returns the first slots in ascending order.
fn chosen(mut slots: Vec<u32>) -> Slots {
    let is_cut = slots.len() > SLOTS_CHOSEN_MAX;
    if is_cut {
        slots.select_nth_unstable(SLOTS_CHOSEN_MAX);
        slots.truncate(SLOTS_CHOSEN_MAX);
        slots.shrink_to_fit();
    }
    slots.sort_unstable();
    Slots::Chosen { slots: slots.into(), is_cut }
}

/// Returns the next slot to look at; `None` if all chosen slots were looked at.
fn next_slot(walk: &ClientWalk, slots: &mut Slots, connections: &Connections) -> Option<u32> {
    match slots {
        Slots::All => walk.next.filter(|slot| *slot < connections.index_end()),
        Slots::Chosen { slots, .. } => slots.pop_front(),
    }
}

/// Returns the row of a connection if it is that of a client that meets the conditions.
fn row_if_listed(
    settings: &Settings,
    connection: &Connection,
    filter: &ClientFilter,
    channel: Option<ChannelIndex>,
    budget: &mut Budget,
) -> Option<ClientRow> {
    let Stage::Client(client) = &connection.stage else { return None };
    if connection.phase != Phase::Open || connection.has_pending_close {
        return None;
    }
    if let Some(clients) = &filter.clients {
        clients.binary_search(&client.id).ok()?;
    }
    if let Some(network) = filter.address {
        let Remote::Ip(address, _) = connection.remote else { return None };
        network.contains(address).then_some(())?;
    }
    let route = connection.route(settings);
    let path = route.map_or("", |route| &route.path);
    if filter.route.as_deref().is_some_and(|asked| asked != path) {
        return None;
    }
    let user = client.context.user();
    if filter.user.is_some() && filter.user.as_deref() != user.as_deref() {
        return None;
    }
    if let Some(channel) = channel {
        budget.spend(client.subscriptions.len() / COMPARED_PER_UNIT);
        client.is_in(channel).then_some(())?;
    }
    let shown = |user: &str| Box::from(&user[..user.floor_char_boundary(USER_BYTES_MAX)]);
    Some(ClientRow {
        client: client.id,
        user: user.as_deref().map(shown),
        remote: connection.remote,
        path: path.into(),
        since_ms: connection.since_ms,
        channels: client.subscriptions.len() as u64,
        buffered: connection.outbound.buffered() as u64,
    })
}
