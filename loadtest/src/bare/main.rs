//! A server that does nothing but the work of the load test: the lower bound ("bare") beside which the
//! load test puts gridcast.
//!
//! One thread and one io_uring: multishot accept and receive, one plain send for each receiver, and all
//! sends of a turn in one submission. Without limits, timeouts, authentication, statistics and slow-client
//! policy, so it is for loopback only.
//!
//! | request | meaning |
//! |---|---|
//! | `GET /sub/NAME`, upgraded | receives the messages of a channel |
//! | `GET /pub/NAME`, upgraded | publishes each message to the channel. Each is answered by a short one |
//! | `GET /in/NAME`, upgraded | the same without answers |
//! | `GET /echo`, upgraded | receives its own messages |
//! | `POST /pub/NAME` | publishes the body |
//!
//! `gridcast-bare CERTIFICATE KEY` also serves clients that begin with a TLS handshake, at the same address.

mod connection;
mod frame;
mod request;
mod ring;
mod server;
mod session;

use std::net::{Ipv4Addr, TcpListener};
use std::process::{ExitCode, exit};
use std::sync::Arc;
use std::{env, io, thread};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{setsockopt, sockopt};
use rustls::ServerConfig;

use server::Server;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gridcast-bare: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Reads the files of a certificate and its key, if there are such arguments.
fn tls() -> io::Result<Option<Arc<ServerConfig>>> {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    match &arguments[..] {
        [] => Ok(None),
        [certificate, key] => session::config(certificate.as_ref(), key.as_ref()).map(Some),
        _ => Err(io::Error::other("usage: gridcast-bare [CERTIFICATE KEY]")),
    }
}

/// Listens on a free port of loopback, reports it on standard error, and serves until SIGTERM.
fn run() -> io::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    let tls = tls()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(BACKLOG)?)?;
    // Accepted sockets inherit it.
    setsockopt(&listener, sockopt::TcpNoDelay, &true)?;
    eprintln!("gridcast-bare listens at {}", listener.local_addr()?);
    thread::spawn(move || {
        let _ = signals.wait();
        exit(0)
    });
    Server::new(listener, tls)?.serve()
}
