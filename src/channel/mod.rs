//! Channels with history: the messages of one channel, those of all channels of a home, and idempotency keys. Pure: the time
//! comes in as an argument.
//!
//! In a grid no channel has a history yet: `members` and the reigns of [`history`] wait for that. [`presence`] is who is in a
//! channel, over the whole grid.
//! `docs/internals/history.md` describes the design.

pub mod grid;
pub mod histories;
pub mod history;
pub mod keys;
pub mod members;
mod policy;
pub mod presence;

pub use policy::ChannelPolicy;
