//! Building blocks of channels with history: the messages of one channel, their idempotency keys, and the nodes that
//! may be home of a channel. Pure: the time comes in as an argument.
//!
//! Shards do not use this layer yet, so no channel has a history. `docs/internals/history.md` describes the design.

pub mod history;
pub mod keys;
pub mod members;
mod policy;

pub use policy::ChannelPolicy;
