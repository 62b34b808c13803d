//! The way of a shard's messages to another thread of the node. Never blocks.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::address::ShardId;
use crate::message::ToBridge;

/// Sends a message of a shard to a thread. Gives the message back if there is no room at present.
pub(super) type Sender<M> = Arc<dyn Fn(ShardId, M) -> Result<(), M> + Send + Sync>;

/// Sends a message of a shard to the bridge. Gives the message back if there is no room at present.
pub type ToBridgeSender = Sender<ToBridge>;

/// One shard's way to a thread.
pub(super) struct Outlet<M> {
    shard: ShardId,
    send: Sender<M>,
    // In order. Bounded by what the shard lets wait for answers: handshakes, the windows of sinks, events of topics
    // on disk that are not stored.
    unsent: VecDeque<M>,
}

impl<M> Outlet<M> {
    /// Creates the way of a shard.
    pub(super) fn new(shard: ShardId, send: Sender<M>) -> Self {
        Self { shard, send, unsent: VecDeque::new() }
    }

    /// Queues a message for the next [`Self::flush`].
    pub(super) fn post(&mut self, message: M) {
        self.unsent.push_back(message);
    }

    /// Sends the queued messages. Returns true if some did not fit and must be sent later.
    pub(super) fn flush(&mut self) -> bool {
        while let Some(message) = self.unsent.pop_front() {
            if let Err(message) = (self.send)(self.shard, message) {
                self.unsent.push_front(message);
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::protocol::service::HttpService;
    use crate::protocol::token::KeySource;

    #[test]
    fn a_message_that_finds_no_room_is_sent_later() {
        let room = Arc::new(AtomicUsize::new(1));
        let left = room.clone();
        let send = move |shard, message| {
            assert_eq!(shard, ShardId(3));
            let taken =
                left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
            taken.map(drop).map_err(|_| message)
        };
        let mut outlet = Outlet::new(ShardId(3), Arc::new(send));
        assert!(!outlet.flush());
        let service = HttpService::new("https://example.org/", 1).expect("a URL");
        let source = Arc::new(KeySource { service, algorithm: None, refresh_s: 1 });
        for _ in 0..2 {
            outlet.post(ToBridge::FetchKeys { source: source.clone(), known: None });
        }
        assert!(outlet.flush());
        room.store(1, Ordering::Relaxed);
        assert!(!outlet.flush());
        assert_eq!(room.load(Ordering::Relaxed), 0);
    }
}
