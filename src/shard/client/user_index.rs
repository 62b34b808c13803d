//! The index of a shard's clients by user.

use std::collections::BTreeSet;
use std::hash::BuildHasher;

use hashbrown::DefaultHashBuilder;

use super::Context;
use crate::protocol::api::NAME_BYTES_MAX;

/// The clients of a shard that have a user, by user. A client without a user takes no room.
///
/// An entry takes 16 bytes. A node of the tree has room for 11 entries and holds at least 5, so that a client with
/// a user costs at most 50 bytes. Entries of a user are in the order of the connections, so that a walk through
/// them can pause, and go on whatever has come and gone meanwhile.
#[derive(Debug, Default)]
pub(super) struct UserIndex {
    entries: BTreeSet<IndexedClient>,
    hasher: DefaultHashBuilder,
}

/// The hash of a user, with a key of the shard's own. Two users may have the same hash: whoever looks a user up
/// compares the user of each client found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct UserHash(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct IndexedClient {
    user: UserHash,
    // The index of the client's connection in the shard's table.
    connection: u32,
}

impl UserIndex {
    /// Returns the hash of the user of a client with this context. `None`: the client has no user, or one that no
    /// call can name.
    pub(super) fn hash_of(&self, context: &Context) -> Option<UserHash> {
        let user = context.user()?;
        (1..=NAME_BYTES_MAX).contains(&user.len()).then(|| self.hash(&user))
    }

    /// Returns the hash of a user.
    pub(super) fn hash(&self, user: &str) -> UserHash {
        UserHash(self.hasher.hash_one(user))
    }

    /// Adds a client. `None`: the client has no user.
    pub(super) fn insert(&mut self, user: Option<UserHash>, connection: u32) {
        self.entries.extend(user.map(|user| IndexedClient { user, connection }));
    }

    /// Removes a client, if it is there.
    pub(super) fn remove(&mut self, user: Option<UserHash>, connection: u32) {
        if let Some(user) = user {
            self.entries.remove(&IndexedClient { user, connection });
        }
    }

    /// Returns the number of clients with a user.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Iterates over the connections of the clients whose user has this hash, in ascending order from `from` on.
    pub(super) fn connections(&self, user: UserHash, from: u32) -> impl Iterator<Item = u32> {
        let first = IndexedClient { user, connection: from };
        let last = IndexedClient { user, connection: u32::MAX };
        self.entries.range(first..=last).map(|entry| entry.connection)
    }
}

// The promise of the type's documentation: at least 5 entries of a leaf's 11, its head, and its share of the nodes
// above.
const _: () = assert!(11 * size_of::<IndexedClient>() / 5 <= 36);

#[cfg(test)]
mod tests {
    use super::*;

    fn context(entries: &str) -> Context {
        let mut context = Context::default();
        if !entries.is_empty() {
            context.set("user_id".into(), entries.into()).expect("it is small");
        }
        context
    }

    #[test]
    fn clients_are_found_by_user_in_order_from_any_place_on() {
        let mut index = UserIndex::default();
        let [ada, bob] = ["ada", "7"].map(|user| index.hash(user));
        for connection in [5, 1, 9, 3] {
            index.insert(Some(ada), connection);
            index.insert(Some(bob), connection + 1);
        }
        index.insert(Some(ada), 5);
        let found = |index: &UserIndex, from| index.connections(ada, from).collect::<Vec<_>>();
        assert_eq!(found(&index, 0), [1, 3, 5, 9]);
        assert_eq!((found(&index, 4), found(&index, 10)), (vec![5, 9], vec![]));
        index.remove(Some(ada), 5);
        index.remove(Some(ada), 6);
        index.remove(None, 1);
        assert_eq!((found(&index, 0), index.len()), (vec![1, 3, 9], 7));
        assert_eq!(index.connections(bob, 0).count(), 4);
    }

    #[test]
    fn a_client_takes_no_room_without_a_user_that_a_call_can_name() {
        let mut index = UserIndex::default();
        let long = format!("\"{}\"", "x".repeat(NAME_BYTES_MAX + 1));
        for value in ["", "null", "true", "\"\"", &long] {
            let user = index.hash_of(&context(value));
            assert_eq!(user, None, "{value}");
            index.insert(user, 1);
        }
        assert_eq!(index.len(), 0);
        assert_eq!(index.hash_of(&context("\"7\"")), index.hash_of(&context("7")));
        assert_eq!(index.hash_of(&context("7")), Some(index.hash("7")));
    }
}
