//! Client messages that wait for back ends. Pure.
//!
//! Each topic has a home: one shard of the node, by the hash of its name, which holds its messages
//! and decides who gets them ([`topic::Topic`]; `slots.rs`: which clients are whose; `consumers.rs`:
//! what each consumer has). A shard whose clients feed the topic pushes against credit that the home
//! gave it ([`feeder::Feeder`]): so a topic is never over its bounds, whatever the number of shards,
//! and a full one is felt as clients that are not read from.

mod consumers;
pub mod feeder;
pub mod room;
mod slots;
pub mod topic;

/// What happens when a topic has no room for a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// The clients that feed it are not read from until there is room.
    Hold,
    /// Its oldest message goes.
    DropOldest,
    /// The client that sent the message is closed with 1013.
    Close,
}

/// How much a topic holds, messages on their way to consumers included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Messages, at least 1.
    pub messages: usize,
    /// Bytes of encoded event.
    pub bytes: usize,
}
