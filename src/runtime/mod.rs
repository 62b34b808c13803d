//! Threads, sockets and io_uring: the only layer that names glommio and io_uring, and the only one with
//! unsafe code.
//!
//! Each shard has a pinned thread with a glommio executor. The executor runs one task, the [`driver`],
//! which has an io_uring of its own: completions → `Shard::handle_*` → `Shard::poll_*` → submissions.
//! The thread sleeps only in that ring. It does not sleep in glommio's ring, because glommio 0.9 cannot
//! wait for an eventfd, and because that would cost two more system calls per turn. glommio's own timers
//! and tasks run once per turn of the driver, at the latest every [`driver::SLEEP_MAX_MS`].

mod awake;
mod budget;
mod bus;
pub mod cgroup;
pub mod check;
mod clock;
mod driver;
#[cfg(test)]
mod faults;
mod identity;
pub mod ids;
mod listener;
pub mod log;
pub mod memory;
mod ring;
mod socket_io;
mod start;
mod tls;
mod verifier;
mod wake;
mod watch;

// For `wake.rs`, which takes them from its parent.
use std::sync::atomic;

pub use awake::AwakeClock;
pub use bus::{MeshPort, Port, bus};
pub use clock::unix_ms;
pub use identity::TlsContext;
pub use listener::{BACKLOG, Listening, bind, route_out};
pub use start::{Renewals, Shards, start};
pub use watch::{Capacity, Summary};
