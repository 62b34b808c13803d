//! One function for each fuzz target. The fuzzer calls them with its own bytes, `tests/corpus.rs` with the bytes of
//! the corpus.

#![allow(dead_code, unreachable_pub, reason = "each fuzzer uses one target")]

pub mod api;
pub mod config;
pub mod device;
pub mod frames;
pub mod http;
pub mod input;
pub mod mesh;
pub mod proxy;
pub mod scanner;
pub mod shard;
pub mod upgrade;

/// A target: any bytes in, a panic if a promise is broken.
pub type Target = fn(&[u8]);

/// Every target: its name, which is that of its corpus, and its function.
pub const TARGETS: [(&str, Target); 10] = [
    ("api", api::run),
    ("config", config::run),
    ("device", device::run),
    ("frames", frames::run),
    ("http", http::run),
    ("mesh", mesh::run),
    ("proxy", proxy::run),
    ("scanner", scanner::run),
    ("shard", shard::run),
    ("upgrade", upgrade::run),
];
