//! WebSocket clients, many of them at little cost each.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::connection::Connection;
use crate::latency::Latencies;
use crate::machine;
use crate::raw;
use crate::tasks::in_parallel;
use crate::tls;
use crate::web_socket::WebSocket;

/// Handshakes in progress at the same time.
pub const HANDSHAKES: u32 = 64;

/// The number of loopback addresses that clients connect from.
const SOURCES: u32 = 256;

/// The first address that clients connect from.
const FIRST_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 1, 0, 0);

/// Time limit of a handshake, including the connection.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);

/// Opens one WebSocket on `path`, whose frames begin with `kind`. On return the server has subscribed the
/// client to its channels.
///
/// # Errors
/// The connection failed, or the server refused the upgrade or did not answer within 10 s.
pub async fn open(address: SocketAddr, path: &str, kind: u8) -> Result<WebSocket> {
    open_as(address, path, "", kind).await
}

/// Opens one WebSocket as [`open`] does, with additional header `lines` in the request.
///
/// # Errors
/// As of [`open`].
pub async fn open_as(address: SocketAddr, path: &str, lines: &str, kind: u8) -> Result<WebSocket> {
    let opening = async {
        let connection = Connection::of(connect(address).await?);
        WebSocket::open(connection, path, lines, kind).await
    };
    let opened = timeout(HANDSHAKE_TIME_MAX, opening).await;
    opened.map_err(Into::into).flatten().with_context(|| format!("ws://{address}{path}"))
}

/// Opens one WebSocket as [`open`] does, over TLS.
///
/// # Errors
/// As of [`open`]. The server does not have the certificate of the load test.
pub async fn open_over_tls(address: SocketAddr, path: &str, kind: u8) -> Result<WebSocket> {
    let opening = async {
        let connection = Connection::of(tls::connect(connect(address).await?).await?);
        WebSocket::open(connection, path, "", kind).await
    };
    let opened = timeout(HANDSHAKE_TIME_MAX, opening).await;
    opened.map_err(Into::into).flatten().with_context(|| format!("wss://{address}{path}"))
}

/// Connects, over loopback from each of [`SOURCES`] addresses in turn. One address has about 28,000 ports, and
/// used ones stay occupied for a minute: searching for a free one would take the kernel longer than the
/// rest of the connection.
async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    if !address.ip().is_loopback() || address.is_ipv6() {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        return Ok(stream);
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed) % SOURCES;
    let source = Ipv4Addr::from_bits(FIRST_SOURCE.to_bits() + number);
    let socket = TcpSocket::new_v4()?;
    // The kernel chooses the port once it knows the destination.
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    socket.bind((source, 0).into())?;
    socket.set_nodelay(true)?;
    socket.connect(address).await
}

/// Opens `count` clients that send texts on `path` of an edge, [`HANDSHAKES`] at a time.
///
/// # Errors
/// A client could not be opened, or there are too few descriptors.
pub async fn open_many(edge: SocketAddr, path: &str, count: u32) -> Result<Vec<WebSocket>> {
    let path: Arc<str> = path.into();
    let open = move || {
        let path = Arc::clone(&path);
        async move { open(edge, &path, raw::TEXT).await }
    };
    open_with(count, &Arc::default(), open).await
}

/// Opens `count` clients, [`HANDSHAKES`] at a time, and records the duration of each handshake.
///
/// # Errors
/// A client could not be opened, or there are too few descriptors.
pub async fn open_with<F>(
    count: u32,
    latencies: &Arc<Latencies>,
    open: impl Fn() -> F + Clone + Send + 'static,
) -> Result<Vec<WebSocket>>
where
    F: Future<Output = Result<WebSocket>> + Send,
{
    machine::check_descriptors_for(count)?;
    let openers = in_parallel(0..HANDSHAKES, |opener| {
        let (open, latencies) = (open.clone(), Arc::clone(latencies));
        async move {
            let mut sockets = Vec::new();
            for _ in (opener..count).step_by(HANDSHAKES as usize) {
                let started = Instant::now();
                sockets.push(open().await?);
                latencies.record(started.elapsed());
            }
            Ok(sockets)
        }
    });
    Ok(openers.await?.into_iter().flatten().collect())
}
