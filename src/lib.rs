//! gridcast.
pub mod address;
pub mod config;
pub mod message;
pub mod metrics;
pub mod node;
pub mod protocol;
pub mod queue;
pub mod runtime;
pub mod shard;
