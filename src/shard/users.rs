//! The users of the API. A user has the same index on all shards, and keeps it when the configuration is
//! reloaded.

use std::sync::Arc;

use crate::protocol::credentials::User;

/// The largest number of indices. Each user that is added, or gets another secret, takes a new one. Beyond
/// it a reload is refused.
pub const INDICES_MAX: usize = 1 << 16;

/// The users of the API, by index.
#[derive(Clone, Debug, Default)]
pub struct Users(Arc<[UserSlot]>);

/// The place of one user. The index of a user that was removed is never used again.
#[derive(Clone, Debug)]
struct UserSlot {
    user: User,
    is_removed: bool,
}

impl Users {
    /// Whether there are no users, so that requests need no authentication.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// Returns the user with this index, unless the user was removed.
    pub fn get(&self, index: usize) -> Option<&User> {
        self.0.get(index).filter(|slot| !slot.is_removed).map(|slot| &slot.user)
    }

    /// Yields the users with their indices.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &User)> {
        let slots = self.0.iter().enumerate();
        slots.filter(|(_, slot)| !slot.is_removed).map(|(index, slot)| (index, &slot.user))
    }

    /// Returns the name of a user for the log, also of one that was removed.
    pub fn name(&self, index: usize) -> &str {
        self.0.get(index).map_or("", |slot| &slot.user.name)
    }

    /// Returns the number of indices that are or were in use.
    pub fn index_end(&self) -> usize {
        self.0.len()
    }

    /// Returns the users of a reloaded configuration. Users whose name, scheme and secret are unchanged keep
    /// their index; the others get new ones. Returns `None` if there would be more than [`INDICES_MAX`].
    pub fn reloaded(&self, users: &[User]) -> Option<Self> {
        let is_same = |known: &User, user: &User| {
            (&known.name, known.scheme, &known.secret) == (&user.name, user.scheme, &user.secret)
        };
        let mut slots: Vec<UserSlot> = self.0.to_vec();
        let mut added: Vec<&User> = users.iter().collect();
        for slot in slots.iter_mut().filter(|slot| !slot.is_removed) {
            match added.iter().position(|user| is_same(&slot.user, user)) {
                Some(at) => slot.user = added.remove(at).clone(),
                None => slot.is_removed = true,
            }
        }
        slots.extend(
            added.into_iter().map(|user| UserSlot { user: user.clone(), is_removed: false }),
        );
        (slots.len() <= INDICES_MAX).then(|| Self(slots.into()))
    }
}

impl FromIterator<User> for Users {
    fn from_iter<I: IntoIterator<Item = User>>(users: I) -> Self {
        Self(users.into_iter().map(|user| UserSlot { user, is_removed: false }).collect())
    }
}

impl From<Vec<User>> for Users {
    fn from(users: Vec<User>) -> Self {
        users.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::credentials::{Roles, Scheme, Secret};

    fn user(name: &str, secret: &str, requests_per_s: u32) -> User {
        User {
            name: name.into(),
            scheme: Scheme::Basic,
            secret: Secret::Plain(secret.into()),
            roles: Roles::ALL,
            from: Default::default(),
            requests_per_s,
        }
    }

    fn listed(users: &Users) -> Vec<(usize, &str, u32)> {
        users.iter().map(|(index, user)| (index, &user.name[..], user.requests_per_s)).collect()
    }

    #[test]
    fn a_user_keeps_its_index_until_it_is_removed_or_has_another_secret() {
        let users = Users::from(vec![user("a", "1", 0), user("b", "2", 0), user("c", "3", 0)]);
        let changed = [user("d", "4", 0), user("c", "3", 9), user("b", "x", 0)];
        let users = users.reloaded(&changed).expect("few users");
        assert_eq!(listed(&users), [(2, "c", 9), (3, "d", 0), (4, "b", 0)]);
        assert!(users.get(0).is_none() && users.get(1).is_none() && users.get(5).is_none());
        assert_eq!((users.name(0), users.name(1), users.index_end()), ("a", "b", 5));
        let none = users.reloaded(&[]).expect("no users");
        assert!(none.is_empty() && none.index_end() == 5);
        let again = none.reloaded(&[user("a", "1", 0)]).expect("few users");
        assert_eq!(listed(&again), [(5, "a", 0)]);
    }

    #[test]
    fn the_number_of_indices_is_bounded() {
        let users: Users = (0..INDICES_MAX).map(|n| user(&n.to_string(), "x", 0)).collect();
        assert!(users.reloaded(&[]).is_some());
        assert!(users.reloaded(&[user("0", "y", 0)]).is_none());
    }
}
