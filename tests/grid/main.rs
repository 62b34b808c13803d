//! Grids of real nodes, each a process, on loopback: what back ends are promised across nodes, and
//! what becomes of it when nodes come, go, die and freeze.
//!
//! Promises about time are asserted with room for a busy machine; what was measured is printed
//! (`cargo test --test grid -- --nocapture`).

mod calls;
mod faults;
mod lists;
mod members;
mod presence;
mod queue;
#[path = "../support/mod.rs"]
mod support;
mod taking;
mod taps;
