//! Sockets of attackers: opened in large numbers, flooded, drained, or never read.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout_at};

use crate::machine;
use crate::raw::{self, HEAD_END};
use crate::tasks::in_parallel;

/// Handshakes in progress at the same time, for attacks that are not about handshakes.
const HANDSHAKES: u32 = 64;

/// The receive buffer of a peer that will not read, in bytes. The kernel doubles it.
const SMALL_BUFFER: u32 = 4096;

/// The segment size of a peer that will not read, in bytes, as on Ethernet. With that of loopback, 64 KiB, the
/// server's kernel would accept 2.6 MB from the server.
const SEGMENT_BYTES: u32 = 1448;

/// Bytes that a flood writes at once.
const FLOOD_BYTES: usize = 64 * 1024;

/// Loopback addresses from which attackers connect in turn, and the first of them. One address has about 28,000
/// ports, and closed ones stay occupied for a minute.
const SOURCES: u32 = 256;
const FIRST_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 2, 0, 0);

/// The outcome of a flood.
pub struct Flood {
    /// Bytes that the kernel accepted.
    pub bytes: u64,
    /// When the kernel last accepted bytes.
    pub last: Instant,
    /// Whether the connection ended.
    pub is_ended: bool,
}

/// Writes `unit` again and again until `end`, or until the connection ends.
pub async fn flood(to: &mut (impl AsyncWrite + Unpin), unit: &[u8], end: Instant) -> Flood {
    flood_units(to, &units(unit), end).await
}

/// Repeats `unit` to the length that a flood writes at once.
pub fn units(unit: &[u8]) -> Vec<u8> {
    unit.repeat(FLOOD_BYTES.div_ceil(unit.len()))
}

/// Floods a connection with `units`, which many connections may share.
pub async fn flood_units(to: &mut (impl AsyncWrite + Unpin), units: &[u8], end: Instant) -> Flood {
    let mut flood = Flood { bytes: 0, last: Instant::now(), is_ended: false };
    while Instant::now() < end {
        let at = (flood.bytes % units.len() as u64) as usize;
        match timeout_at(end, to.write(&units[at..])).await {
            Ok(Ok(count @ 1..)) => {
                flood.bytes += count as u64;
                flood.last = Instant::now();
            }
            Ok(_) => {
                flood.is_ended = true;
                break;
            }
            Err(_) => break,
        }
    }
    flood
}

/// Reads and discards data until `end`. Returns the number of bytes, and whether the connection ended early.
pub async fn drain(from: &mut (impl AsyncRead + Unpin), end: Instant) -> (u64, bool) {
    drain_some(from, u64::MAX, end).await
}

/// Reads and discards data until `end`, or until `most` bytes have arrived.
pub async fn drain_some(
    from: &mut (impl AsyncRead + Unpin),
    most: u64,
    end: Instant,
) -> (u64, bool) {
    let (mut scratch, mut bytes) = ([0; 16 * 1024], 0);
    while bytes < most && Instant::now() < end {
        match timeout_at(end, from.read(&mut scratch)).await {
            Ok(Ok(count @ 1..)) => bytes += count as u64,
            Ok(_) => return (bytes, true),
            Err(_) => break,
        }
    }
    (bytes, false)
}

/// Writes `bytes` until `end`. Returns whether the kernel accepted all.
pub async fn write_until(to: &mut TcpStream, bytes: &[u8], end: Instant) -> bool {
    matches!(timeout_at(end, to.write_all(bytes)).await, Ok(Ok(())))
}

/// Reads the answers of an HTTP server until there are `count`, the connection ends, or `end`. Returns their
/// statuses.
pub async fn statuses(from: &mut TcpStream, count: usize, end: Instant) -> Vec<u16> {
    const START: &[u8] = b"HTTP/1.1 ";
    let (mut read, mut scratch, mut statuses) = (Vec::new(), [0; 16 * 1024], Vec::new());
    while statuses.len() < count {
        let Ok(Ok(more @ 1..)) = timeout_at(end, from.read(&mut scratch)).await else { break };
        read.extend_from_slice(&scratch[..more]);
        let mut kept = 0;
        while let Some(at) = read[kept..].windows(START.len()).position(|bytes| bytes == START) {
            let status = read.get(kept + at + START.len()..kept + at + START.len() + 3);
            let Some(status) = status.and_then(|digits| str::from_utf8(digits).ok()) else { break };
            statuses.extend(status.parse::<u16>());
            kept += at + START.len();
        }
        // The start of the next answer stays.
        let tail = read.len().saturating_sub(START.len() + 2);
        read.drain(..kept.max(tail));
    }
    statuses
}

/// Opens `count` WebSockets, 64 at a time, each on the `path` for its number.
///
/// # Errors
/// The server refuses a WebSocket, or there are too few descriptors.
pub async fn open_many(
    address: SocketAddr,
    count: u32,
    reads: bool,
    path: impl Fn(u32) -> String + Clone + Send + 'static,
) -> Result<Vec<TcpStream>> {
    many(count, move |number| {
        let path = path(number);
        async move { open(address, &path, reads).await }
    })
    .await
}

/// Opens `count` connections, 64 at a time.
///
/// # Errors
/// A connection cannot be opened, or there are too few descriptors.
pub async fn connect_many(address: SocketAddr, count: u32) -> Result<Vec<TcpStream>> {
    many(count, move |_| connect(address, true)).await
}

async fn many<F>(
    count: u32,
    open: impl Fn(u32) -> F + Clone + Send + 'static,
) -> Result<Vec<TcpStream>>
where
    F: Future<Output = Result<TcpStream>> + Send,
{
    machine::check_descriptors_for(count)?;
    let openers = in_parallel(0..HANDSHAKES, |opener| {
        let open = open.clone();
        async move {
            let mut sockets = Vec::new();
            for number in (opener..count).step_by(HANDSHAKES as usize) {
                sockets.push(open(number).await?);
            }
            Ok(sockets)
        }
    });
    Ok(openers.await?.into_iter().flatten().collect())
}

/// Opens a WebSocket. Only frames follow on the stream.
///
/// # Errors
/// The server refuses the handshake.
pub async fn open(address: SocketAddr, path: &str, reads: bool) -> Result<TcpStream> {
    open_with(address, &raw::upgrade_request(path), reads).await
}

/// Opens a WebSocket with this `request`.
///
/// # Errors
/// The server refuses the handshake.
pub async fn open_with(address: SocketAddr, request: &str, reads: bool) -> Result<TcpStream> {
    let mut stream = connect(address, reads).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(HEAD_END) {
        // Byte by byte, since the data behind the head is not to be read here.
        head.push(stream.read_u8().await.context("the server ended a handshake")?);
    }
    ensure!(head.starts_with(b"HTTP/1.1 101"), "the server refused a handshake");
    Ok(stream)
}

/// Connects from the next of many addresses, with a small receive buffer unless it is to be `read`.
///
/// # Errors
/// The connection is refused.
pub async fn connect(address: SocketAddr, reads: bool) -> Result<TcpStream> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed) % SOURCES;
    connect_from(Ipv4Addr::from_bits(FIRST_SOURCE.to_bits() + number), address, reads).await
}

/// Connects from `source`, if `address` is a loopback address.
///
/// # Errors
/// The connection is refused.
pub async fn connect_from(source: Ipv4Addr, address: SocketAddr, reads: bool) -> Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.is_ipv4() && address.ip().is_loopback() {
        // The kernel chooses the port once it knows the destination.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind((source, 0).into())?;
    }
    if !reads {
        socket.set_recv_buffer_size(SMALL_BUFFER)?;
        setsockopt(&socket, sockopt::TcpMaxSeg, &SEGMENT_BYTES)?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
