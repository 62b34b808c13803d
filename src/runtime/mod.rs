//! Threads, sockets, io_uring and epoll: the only layer that names glommio and io_uring, and the only one
//! with unsafe code.
//!
//! Each shard has a pinned thread that runs a [`driver`]: completions → `Shard::handle_*` →
//! `Shard::poll_*` → submissions. The driver decides what to do with sockets. A [`socket_io::SocketIo`]
//! performs it: the [`ring`] with io_uring, or the [`poller`] with epoll. `threads.rs` starts one or the
//! other.
//!
//! With io_uring the thread has a glommio executor, whose only task runs the driver, and the driver has
//! a ring of its own. The thread sleeps only in that ring. It does not sleep in glommio's ring, because glommio 0.9 cannot
//! wait for an eventfd, and because that would cost two more system calls per turn. glommio's own timers
//! and tasks run once per turn of the driver, at the latest every [`driver::SLEEP_MAX_MS`].

mod awake;
mod budget;
mod bus;
pub mod cgroup;
pub mod check;
mod clock;
pub mod disk;
mod driver;
#[cfg(test)]
mod faults;
mod identity;
pub mod ids;
mod listener;
pub mod log;
pub mod memory;
mod outlet;
mod poller;
pub mod probe;
pub mod reload;
mod ring;
mod socket_io;
mod start;
mod threads;
mod tls;
mod usage;
mod verifier;
mod wake;
mod watch;

// For `wake.rs`, which takes them from its parent.
use std::sync::atomic;

pub use awake::AwakeClock;
pub use bus::{MeshPort, NodePort, Port, bus};
pub use clock::unix_ms;
pub use identity::{TlsContext, expiry_unix_s};
pub use listener::{BACKLOG, Listening, SocketFile, bind, route_out};
pub use outlet::ToBridgeSender;
pub use start::{OutletSenders, ShardPlacement, Shards, start};
pub use usage::sample_usage;
pub use watch::{Capacity, Summary};
