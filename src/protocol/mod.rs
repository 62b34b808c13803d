//! Codecs for HTTP, WebSocket and the back-end API's JSON. Pure: no socket, no clock.

pub mod admission;
pub mod api;
pub mod assembler;
pub mod call_source;
pub mod close;
pub mod credentials;
pub mod deflate;
pub mod extension;
pub mod fields;
pub mod frame;
pub mod http;
pub mod json;
mod mask;
pub mod origin;
pub mod position;
pub mod proxy;
pub mod scanner;
pub mod service;
pub mod signature;
pub mod sink;
pub mod token;
pub mod upgrade;
