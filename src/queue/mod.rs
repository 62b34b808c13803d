//! Messages of clients that wait for back ends. Pure.
//!
//! Each topic has a home: one shard of the node, found by the hash of the topic's name, which holds the
//! messages and decides which consumer gets them ([`topic::Topic`]). A shard whose clients feed the topic
//! pushes against credit that the home has granted ([`feeder::Feeder`]). So a topic never exceeds its
//! bounds, whatever the number of shards, and clients of a full topic are not read from.
//!
//! - `lanes.rs`: the waiting messages of each client. `hash_slots.rs`: which consumer they are for.
//! - `consumers.rs`: the messages in flight to each consumer.
//! - `room.rs`: what the topic holds, and the credit of each shard.
//! - `log/`: the files of a topic on disk.

mod consumers;
pub mod feeder;
mod hash_slots;
mod lanes;
pub mod log;
pub mod room;
pub mod topic;

/// The behaviour of a topic without room for a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// Clients that feed the topic are not read from until there is room.
    Hold,
    /// The oldest message is dropped.
    DropOldest,
    /// The client that sent the message is closed with 1013.
    Close,
}

/// The bounds of a topic, including messages in flight to consumers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Messages, at least 1.
    pub messages: usize,
    /// Bytes of encoded events.
    pub bytes: usize,
}
