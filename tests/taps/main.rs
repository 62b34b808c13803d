//! Taps: a back end watches devices live. Shards are values here: no socket, no clock.

#![forbid(unsafe_code)]

mod bounds;
mod grid;
#[path = "../support/shard.rs"]
mod shard_value;
mod watched;
