//! Lists of administration over grids of many shards. Shards are values here: no socket, no clock.

mod backends;
mod clients;
mod grid;
mod names;
mod nodes;
#[path = "../support/shard.rs"]
mod shard_value;
mod users;
