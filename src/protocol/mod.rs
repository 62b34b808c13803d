//! Bytes ⇄ meaning: HTTP, WebSocket and the back ends' JSON. Pure: no socket, no clock.

pub mod assembler;
pub mod close;
pub mod frame;
mod mask;
