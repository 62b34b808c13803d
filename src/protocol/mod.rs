//! Codecs for HTTP, WebSocket and the back-end API's JSON. Pure: no socket, no clock.

pub mod api;
pub mod assembler;
pub mod close;
pub mod credentials;
pub mod deflate;
pub mod extension;
pub mod frame;
pub mod http;
pub mod json;
mod mask;
pub mod origin;
pub mod proxy;
pub mod scanner;
pub mod token;
pub mod upgrade;
