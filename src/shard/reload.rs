//! Passes calls of `admin.reload` to the node, and applies reloaded settings to open connections.

use std::collections::VecDeque;

use super::connection::{Connection, Connections, Stage};
use super::settings::Settings;
use super::turn::Turn;
use crate::message::{ConnectionKey, Ticket};
use crate::protocol::close::{self, Reason};

/// The number of connections visited per turn.
const SLICE: usize = 4096;

/// Requests for a reload, and the walk over all connections after it, in slices.
#[derive(Debug, Default)]
pub(super) struct Reloading {
    // Calls of `admin.reload` that were not handed to the node yet: at most one per question that waits
    // for an answer.
    requests: VecDeque<Ticket>,
    // The place in the table of connections to continue from. None: no walk is in progress.
    next: Option<u32>,
}

impl Reloading {
    /// Asks the node to reload its configuration. The answer comes back with the ticket.
    pub(super) fn request(&mut self, ticket: Ticket) {
        self.requests.push_back(ticket);
    }

    /// Returns the next request to the node.
    pub(super) fn poll_request(&mut self) -> Option<Ticket> {
        self.requests.pop_front()
    }

    /// Begins a walk. A walk in progress starts again.
    pub(super) fn begin(&mut self) {
        self.next = Some(0);
    }

    /// Whether connections are left to visit, so that the next turn begins at once.
    pub(super) fn is_pending(&self) -> bool {
        self.next.is_some()
    }

    /// Visits the next slice: closes clients whose route was removed and back ends whose user may do less
    /// than before, and gives the others their new limits and roles.
    pub(super) fn handle_turn(&mut self, turn: &mut Turn, connections: &mut Connections) {
        let Some(from) = self.next else { return };
        let (keys, next) = connections.keys(from, SLICE);
        self.next = next;
        for key in keys {
            visit(turn, connections, key);
        }
    }
}

fn visit(turn: &mut Turn, connections: &mut Connections, key: ConnectionKey) {
    let Some(connection) = connections.get(key) else { return };
    if let Some(reason) = apply(&turn.settings, connection) {
        connections.close_with(turn, key, reason);
    }
}

/// Applies the settings to a connection. Returns the reason to close it, if there is one.
fn apply(settings: &Settings, connection: &mut Connection) -> Option<Reason> {
    if let Some(route) = connection.route(settings) {
        if route.is_removed {
            // A client that is being unsubscribed is closed already.
            return connection.client().map(|_| close::ROUTE_REMOVED);
        }
        let bytes = route.outbound_bytes;
        connection.set_outbound_max(bytes);
        return None;
    }
    let remote = connection.remote.ip();
    let Stage::Backend(backend) = &mut connection.stage else { return None };
    let users = &settings.api.users;
    let roles = match backend.grant.user {
        Some(user) => users.get(user).filter(|user| user.may_come_from(remote)).map(|u| u.roles),
        // Authentication was not required when the back end connected.
        None => users.is_empty().then_some(backend.grant.roles),
    };
    match roles {
        Some(roles) if roles.include(backend.grant.roles) => {
            backend.grant.roles = roles;
            None
        }
        _ => Some(close::USER_CHANGED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::ClientId;
    use crate::protocol::credentials::{Roles, Scheme, Secret, User};
    use crate::shard::access::Grant;
    use crate::shard::connection::{Backend, Listener, Phase};
    use crate::shard::fixture;
    use std::sync::Arc;

    fn user(name: &str, roles: Roles) -> User {
        User {
            name: name.into(),
            scheme: Scheme::Basic,
            secret: Secret::Plain("x".into()),
            roles,
            from: Default::default(),
            requests_per_s: 0,
        }
    }

    fn reload(turn: &mut Turn, connections: &mut Connections, settings: Settings) {
        turn.settings = Arc::new(settings);
        let mut reload = Reloading::default();
        reload.begin();
        while reload.is_pending() {
            reload.handle_turn(turn, connections);
        }
    }

    fn is_open(connections: &mut Connections, key: ConnectionKey) -> bool {
        connections.get(key).is_some_and(|connection| connection.phase == Phase::Open)
    }

    #[test]
    fn clients_of_a_removed_route_are_closed_and_the_others_get_their_new_limits() {
        let (mut turn, mut connections) =
            (fixture::turn(fixture::settings()), Connections::default());
        let count = SLICE as u64 + 10;
        let keys: Vec<_> = (0..count)
            .map(|id| fixture::client(&mut turn, &mut connections, ClientId::from_value(id)))
            .collect();
        let mut settings = turn.settings.as_ref().clone();
        Arc::make_mut(&mut settings.edges[0].routes[0]).outbound_bytes = 4096;
        reload(&mut turn, &mut connections, settings.clone());
        assert!(keys.iter().all(|&key| is_open(&mut connections, key)));
        Arc::make_mut(&mut settings.edges[0].routes[0]).is_removed = true;
        reload(&mut turn, &mut connections, settings);
        assert!(keys.iter().all(|&key| !is_open(&mut connections, key)));
    }

    #[test]
    fn back_ends_are_closed_if_their_user_may_do_less() {
        let read = Roles { write: false, ..Roles::ALL };
        let all = [user("gone", Roles::ALL), user("less", Roles::ALL), user("more", read)];
        let mut settings = fixture::settings();
        settings.api.users = all.to_vec().into();
        let (mut turn, mut connections) = (fixture::turn(settings), Connections::default());
        let keys: Vec<_> = turn
            .settings
            .clone()
            .api
            .users
            .iter()
            .map(|(index, user)| {
                let key = fixture::accepted(&mut turn, &mut connections, Listener::Api);
                let grant = Grant { user: Some(index), roles: user.roles };
                let connection = connections.get(key).expect("it was accepted");
                connection.stage =
                    Stage::Backend(Box::new(Backend { grant, ..Backend::default() }));
                key
            })
            .collect();
        let mut settings = turn.settings.as_ref().clone();
        let users = [user("more", Roles::ALL), user("less", read)];
        settings.api.users = settings.api.users.reloaded(&users).expect("few users");
        reload(&mut turn, &mut connections, settings);
        let open: Vec<_> = keys.iter().map(|&key| is_open(&mut connections, key)).collect();
        assert_eq!(open, [false, false, true]);
        let Stage::Backend(backend) = &connections.get(keys[2]).expect("it is open").stage else {
            panic!("a back end")
        };
        assert_eq!(backend.grant.roles, Roles::ALL);
    }
}
