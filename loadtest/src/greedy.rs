//! Peers that take more than their share, each in its own way.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::TcpMaxSeg;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::machine;
use crate::raw::{self, HEAD_END};
use crate::server::Target;
use crate::tasks::in_parallel;

/// Handshakes under way at the same time where they are not the attack.
const HANDSHAKES: u32 = 64;

/// Receive buffer of a peer that means not to read, in bytes; the kernel doubles it.
const SMALL_BUFFER: u32 = 4096;

/// Its segments, in bytes, as on an Ethernet: for those of loopback, 64 KiB, the server's kernel
/// would take 2.6 MB off the server's hands.
const SEGMENT_BYTES: u32 = 1448;

/// Messages for a peer that does not read, in bytes.
const SLOW_MESSAGE: usize = 16 * 1024;

/// Time for a peer that was cut off to read what is left for it, as long as servers linger.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Time in which the clients of a fan-out leave when it is over.
const LEAVING: Duration = Duration::from_secs(1);

/// Time between the bytes of a half-open request.
const DRIP: Duration = Duration::from_millis(50);

/// Bytes that a flood hands to the kernel at once.
const FLOOD_BYTES: usize = 64 * 1024;

/// What takes more than its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Peer {
    /// Nobody: the baseline
    Nobody,
    /// A back end that publishes over HTTP without waiting for answers, which it reads
    Pipeline,
    /// The same, and it never reads the answers
    PipelineUnread,
    /// A back end that publishes without pause to a channel of 5,000 clients
    Fanout,
    /// One client that never reads what is published to it, 16 KiB at a time
    SlowReader,
    /// A hundred of them, each with a channel of its own
    SlowReaders,
    /// 2,000 handshakes at once
    Connects,
    /// 5,000 clients that leave at once
    Leaves,
    /// 300 requests of back ends of which a byte comes every 50 ms
    HalfRequests,
    /// 300 handshakes of clients of which a byte comes every 50 ms
    HalfHandshakes,
    /// A client that sends messages of 1 KiB to a topic without a consumer
    Flood,
    /// A client that sends messages of 64 KiB in fragments of one byte
    Fragments,
    /// A client that sends pings without pause and reads the pongs
    Pings,
    /// The same, and it never reads the pongs
    PingsUnread,
}

impl Peer {
    /// In words.
    pub fn title(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Pipeline => "publishes pipelined without end",
            Self::PipelineUnread => "the same, answers never read",
            Self::Fanout => "fan-out without pause to 5,000",
            Self::SlowReader => "1 client that never reads",
            Self::SlowReaders => "100 clients that never read",
            Self::Connects => "2,000 handshakes at once",
            Self::Leaves => "5,000 clients leave at once",
            Self::HalfRequests => "300 half-open requests",
            Self::HalfHandshakes => "300 half-open handshakes",
            Self::Flood => "messages to a topic nobody consumes",
            Self::Fragments => "64 KiB in fragments of 1 byte",
            Self::Pings => "pings without pause",
            Self::PingsUnread => "the same, pongs never read",
        }
    }

    /// Does what it does for `time`, once it is connected; tells what became of it.
    ///
    /// # Errors
    /// It could not connect.
    pub async fn attack(self, target: Target, time: Duration) -> Result<String> {
        let Target { api, edge, .. } = target;
        match self {
            Self::Nobody => {
                sleep_until(Instant::now() + time).await;
                Ok("–".into())
            }
            Self::Pipeline => pipeline(api, time, true).await,
            Self::PipelineUnread => pipeline(api, time, false).await,
            Self::Fanout => fan_out(target, 5_000, time).await,
            Self::SlowReader => slow_readers(api, edge, 1, time).await,
            Self::SlowReaders => slow_readers(api, edge, 100, time).await,
            Self::Connects => connects(edge, 2_000, time).await,
            Self::Leaves => leaves(edge, 5_000, time).await,
            Self::HalfRequests => half_open(api, "POST /v1/mesh/publish", 300, time).await,
            Self::HalfHandshakes => half_open(edge, "GET /ws", 300, time).await,
            Self::Flood => {
                let client = open(edge, "/ws", true).await?;
                flood_with(client, &raw::frame(raw::TEXT, &[b'x'; 1024]), time, false).await
            }
            Self::Fragments => {
                let client = open(edge, "/echo", true).await?;
                flood_with(client, &raw::in_fragments(&[b'x'; 65_536]), time, true).await
            }
            Self::Pings => {
                let client = open(edge, "/ws", true).await?;
                flood_with(client, &raw::frame(raw::PING, &[b'x'; 125]), time, true).await
            }
            Self::PingsUnread => {
                let client = open(edge, "/ws", false).await?;
                flood_with(client, &raw::frame(raw::PING, &[b'x'; 125]), time, false).await
            }
        }
    }
}

async fn pipeline(api: SocketAddr, time: Duration, reads: bool) -> Result<String> {
    let body = r#"{"c":"none","d":"data"}"#;
    let request = format!(
        "POST /v1/mesh/publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let stream = connect(api, reads).await?;
    flood_with(stream, request.as_bytes(), time, reads).await
}

/// One connection on which `unit` is sent without end.
async fn flood_with(stream: TcpStream, unit: &[u8], time: Duration, reads: bool) -> Result<String> {
    let end = Instant::now() + time;
    let (mut from, mut to) = stream.into_split();
    let reading = async {
        match reads {
            true => drain(&mut from, end).await.1,
            false => false,
        }
    };
    let (flood, is_shut) = tokio::join!(flood(&mut to, unit, end), reading);
    let sent = flood.bytes / unit.len() as u64;
    let rate = sent as f64 / time.as_secs_f64();
    Ok(match (flood.is_ended || is_shut, end.saturating_duration_since(flood.last) > time / 4) {
        (true, _) => format!("ended by the server after {sent}"),
        (_, true) => format!("held back after {sent} ({:.1} MB)", flood.bytes as f64 / 1e6),
        (_, false) => format!("served, {rate:.0}/s"),
    })
}

/// How far a flood came.
struct Flood {
    bytes: u64,
    /// When the kernel last took some of it.
    last: Instant,
    is_ended: bool,
}

/// Writes `unit` again and again until `end`, or until the connection ends.
async fn flood(to: &mut (impl AsyncWrite + Unpin), unit: &[u8], end: Instant) -> Flood {
    let units = unit.repeat(FLOOD_BYTES.div_ceil(unit.len()));
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

/// Reads and forgets until `end`; the number of bytes, and whether the connection ended before.
async fn drain(from: &mut (impl AsyncRead + Unpin), end: Instant) -> (u64, bool) {
    let (mut scratch, mut bytes) = ([0; 16 * 1024], 0);
    while Instant::now() < end {
        match timeout_at(end, from.read(&mut scratch)).await {
            Ok(Ok(count @ 1..)) => bytes += count as u64,
            Ok(_) => return (bytes, true),
            Err(_) => break,
        }
    }
    (bytes, false)
}

/// Clients of one channel, and a back end that publishes to them without pause.
pub struct FanOut {
    clients: Vec<TcpStream>,
    back_end: TcpStream,
}

/// What came of it.
pub struct FannedOut {
    /// Messages that clients got.
    pub deliveries_per_s: f64,
    /// Clients that the server closed.
    pub closed: usize,
}

impl FanOut {
    /// Connects them.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn open(Target { api, edge, .. }: Target, clients: u32) -> Result<Self> {
        let clients = open_many(edge, clients, true, |_| "/ws?channels=greedy".into()).await?;
        Ok(Self { clients, back_end: open(api, "/ws/v1", true).await? })
    }

    /// Publishes for `time`; then the clients leave, a few at a time: a crowd that leaves at once is
    /// a case of its own.
    ///
    /// # Errors
    /// A task panicked.
    pub async fn run(self, time: Duration) -> Result<FannedOut> {
        let (end, count) = (Instant::now() + time, self.clients.len() as u32);
        let clients = self.clients.into_iter().zip(0..);
        let reading = in_parallel(clients, move |(mut socket, number): (_, u32)| async move {
            let read = drain(&mut socket, end).await;
            drain(&mut socket, end + LEAVING * number / count).await;
            Ok(read)
        });
        let reading = tokio::spawn(reading);
        let data = "x".repeat(128);
        let call = format!(r#"{{"m":"mesh.publish","p":{{"c":"greedy","d":"{data}"}},"i":1}}"#);
        flood_with(self.back_end, &raw::frame(raw::TEXT, call.as_bytes()), time, true).await?;
        let read = reading.await??;
        let bytes: u64 = read.iter().map(|(bytes, _)| bytes).sum();
        Ok(FannedOut {
            deliveries_per_s: bytes as f64 / (data.len() + 4) as f64 / time.as_secs_f64(),
            closed: read.iter().filter(|(_, is_ended)| *is_ended).count(),
        })
    }
}

async fn fan_out(target: Target, clients: u32, time: Duration) -> Result<String> {
    let FannedOut { deliveries_per_s, closed } =
        FanOut::open(target, clients).await?.run(time).await?;
    Ok(format!("{deliveries_per_s:.0} deliveries/s, {closed} of {clients} clients closed"))
}

/// Clients that never read, each on a channel of its own: so that no memory is shared.
async fn slow_readers(
    api: SocketAddr,
    edge: SocketAddr,
    clients: u32,
    time: Duration,
) -> Result<String> {
    let path = |number| format!("/ws?channels=slow-{number}");
    let sockets = open_many(edge, clients, false, path).await?;
    let data = "x".repeat(SLOW_MESSAGE);
    let calls: Vec<u8> = (0..clients)
        .flat_map(|number| {
            let call =
                format!(r#"{{"m":"mesh.publish","p":{{"c":"slow-{number}","d":"{data}"}},"i":1}}"#);
            raw::frame(raw::TEXT, call.as_bytes())
        })
        .collect();
    flood_with(open(api, "/ws/v1", true).await?, &calls, time, true).await?;
    let end = Instant::now() + LAST_WORDS;
    let reading = in_parallel(sockets, |socket| async move { Ok(close_code(socket, end).await) });
    let codes = reading.await?;
    let slow = codes.iter().filter(|code| **code == Some(1013)).count();
    Ok(format!("{slow} of {clients} closed with 1013"))
}

/// Reads to the end; the code of the close frame that is there, if one is.
async fn close_code(mut socket: TcpStream, end: Instant) -> Option<u16> {
    let (mut scratch, mut tail) = (vec![0; 64 * 1024], Vec::new());
    while let Ok(Ok(count @ 1..)) = timeout_at(end, socket.read(&mut scratch)).await {
        tail.extend_from_slice(&scratch[..count]);
        // A control frame has at most 127 bytes.
        tail.drain(..tail.len().saturating_sub(127));
    }
    // All else that was sent is the letter x.
    let at = tail.iter().rposition(|&byte| byte == 0x88)?;
    Some(u16::from_be_bytes([*tail.get(at + 2)?, *tail.get(at + 3)?]))
}

async fn connects(edge: SocketAddr, count: u32, time: Duration) -> Result<String> {
    machine::check_descriptors_for(count)?;
    let start = Instant::now();
    let opening = in_parallel(0..count, |_| async move { Ok(open(edge, "/ws", true).await.ok()) });
    let sockets: Vec<_> = opening.await?.into_iter().flatten().collect();
    let taken = start.elapsed();
    sleep_until(start + time).await;
    Ok(format!("{} of {count} came in, in {} ms", sockets.len(), taken.as_millis()))
}

async fn leaves(edge: SocketAddr, clients: u32, time: Duration) -> Result<String> {
    let sockets = open_many(edge, clients, true, |_| "/ws?channels=greedy".into()).await?;
    sleep_until(Instant::now() + time / 2).await;
    drop(sockets);
    sleep_until(Instant::now() + time / 2).await;
    Ok("–".into())
}

/// Requests whose heads have no end.
async fn half_open(
    address: SocketAddr,
    method_and_path: &'static str,
    count: u32,
    time: Duration,
) -> Result<String> {
    let end = Instant::now() + time;
    let dripping = in_parallel(0..count, |_| async move {
        let mut stream = connect(address, true).await?;
        let head = format!("{method_and_path} HTTP/1.1\r\nHost: localhost\r\nA: ");
        stream.write_all(head.as_bytes()).await?;
        Ok(drip(stream, end).await)
    });
    let answers = dripping.await?;
    let late = answers.iter().filter(|answer| answer.starts_with(b"HTTP/1.1 408 ")).count();
    Ok(format!("{late} of {count} got 408 and were closed"))
}

/// Sends a byte now and then until an answer comes, which it gives.
async fn drip(mut stream: TcpStream, end: Instant) -> Vec<u8> {
    let mut answer = Vec::new();
    while answer.is_empty() && Instant::now() < end && stream.write_all(b"b").await.is_ok() {
        let next = end.min(Instant::now() + DRIP);
        // A timeout is the time for the next byte.
        let _ = timeout_at(next, stream.read_buf(&mut answer)).await;
    }
    answer
}

async fn open_many(
    edge: SocketAddr,
    count: u32,
    reads: bool,
    path: impl Fn(u32) -> String + Clone + Send + 'static,
) -> Result<Vec<TcpStream>> {
    machine::check_descriptors_for(count)?;
    let openers = in_parallel(0..HANDSHAKES, |opener| {
        let path = path.clone();
        async move {
            let mut sockets = Vec::new();
            for number in (opener..count).step_by(HANDSHAKES as usize) {
                sockets.push(open(edge, &path(number), reads).await?);
            }
            Ok(sockets)
        }
    });
    Ok(openers.await?.into_iter().flatten().collect())
}

/// A WebSocket; what follows on it are frames.
async fn open(address: SocketAddr, path: &str, reads: bool) -> Result<TcpStream> {
    let mut stream = connect(address, reads).await?;
    stream.write_all(raw::upgrade_request(path).as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(HEAD_END) {
        // Byte by byte: what comes behind the head is not ours to take.
        head.push(stream.read_u8().await?);
    }
    ensure!(head.starts_with(b"HTTP/1.1 101"), "the server refused a handshake");
    Ok(stream)
}

async fn connect(address: SocketAddr, reads: bool) -> Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if !reads {
        socket.set_recv_buffer_size(SMALL_BUFFER)?;
        setsockopt(&socket, TcpMaxSeg, &SEGMENT_BYTES)?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
