//! The hand that moves the bytes: the only folder that names glommio and io_uring, and the only one
//! with unsafe code.
//!
//! Each shard has a pinned thread with a glommio executor, and on it one task, the
//! [`driver`], with a ring of its own: completions → `Shard::handle_*` → `Shard::poll_*` →
//! submissions. The thread sleeps in that ring and nowhere else. glommio 0.9 has no way to wait for
//! a foreign file descriptor that is not a socket, and waiting in its ring would cost two system
//! calls more per turn; its own timers and tasks get their turn at each of the driver's, at the
//! latest every [`driver::SLEEP_MAX_MS`].

mod awake;
mod budget;
mod bus;
pub mod cgroup;
pub mod check;
mod clock;
mod driver;
mod identity;
pub mod ids;
mod listener;
pub mod log;
pub mod memory;
mod ring;
mod start;
mod tls;
mod verifier;
mod wake;
mod watch;

// For `wake.rs`, which takes them from its parent.
use std::sync::atomic;

pub use awake::AwakeClock;
pub use bus::{Port, bus};
pub use clock::unix_ms;
pub use identity::TlsContext;
pub use listener::{BACKLOG, Listening, bind, route_out};
pub use start::{Renewals, Shards, start};
pub use watch::{Capacity, Summary};
