//! Greedy peers, which take more than their share without malice.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::sockets::{connect, drain, flood, open, open_many};
use crate::machine;
use crate::raw;
use crate::target::Target;
use crate::tasks::in_parallel;

/// The length of messages for a peer that does not read, in bytes.
const SLOW_MESSAGE: usize = 16 * 1024;

/// Time for a closed peer to read the remaining data, as long as servers linger.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Time in which the clients of a fan-out leave after it.
const LEAVING: Duration = Duration::from_secs(1);

/// Interval between two bytes of an incomplete request.
const DRIP: Duration = Duration::from_millis(50);

pub async fn pipeline(api: SocketAddr, time: Duration, reads: bool) -> Result<String> {
    let body = r#"{"c":"none","d":"data"}"#;
    let request = format!(
        "POST /v1/mesh/publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let stream = connect(api, reads).await?;
    flood_with(stream, request.as_bytes(), time, reads).await
}

/// Sends `unit` on one connection without pause.
pub async fn flood_with(
    stream: TcpStream,
    unit: &[u8],
    time: Duration,
    reads: bool,
) -> Result<String> {
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

/// The clients of one channel, and a back end that publishes to them without pause.
pub struct FanOut {
    clients: Vec<TcpStream>,
    back_end: TcpStream,
}

/// The outcome of a [`FanOut`].
pub struct FannedOut {
    /// Messages that clients received.
    pub deliveries_per_s: f64,
    /// Clients that the server closed.
    pub closed: usize,
}

impl FanOut {
    /// Connects the clients and the back end.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn open(Target { api, edge, .. }: Target, clients: u32) -> Result<Self> {
        let clients = open_many(edge, clients, true, |_| "/ws?channels=greedy".into()).await?;
        Ok(Self { clients, back_end: open(api, "/ws/v1", true).await? })
    }

    /// Publishes for `time`. Then the clients leave, a few at a time, since leaving at once is another attack.
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

pub async fn fan_out(target: Target, clients: u32, time: Duration) -> Result<String> {
    let FannedOut { deliveries_per_s, closed } =
        FanOut::open(target, clients).await?.run(time).await?;
    Ok(format!("{deliveries_per_s:.0} deliveries/s, {closed} of {clients} clients closed"))
}

/// Publishes to clients that never read, each on its own channel, so that no memory is shared.
pub async fn slow_readers(
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

/// Reads to the end. Returns the code of the close frame, if there is one.
pub async fn close_code(mut socket: TcpStream, end: Instant) -> Option<u16> {
    let (mut scratch, mut tail) = (vec![0; 64 * 1024], Vec::new());
    while let Ok(Ok(count @ 1..)) = timeout_at(end, socket.read(&mut scratch)).await {
        tail.extend_from_slice(&scratch[..count]);
        // A control frame has at most 127 bytes.
        tail.drain(..tail.len().saturating_sub(127));
    }
    // All other data is the letter x.
    let at = tail.iter().rposition(|&byte| byte == 0x88)?;
    Some(u16::from_be_bytes([*tail.get(at + 2)?, *tail.get(at + 3)?]))
}

pub async fn connects(edge: SocketAddr, count: u32, time: Duration) -> Result<String> {
    machine::check_descriptors_for(count)?;
    let start = Instant::now();
    let opening = in_parallel(0..count, |_| async move { Ok(open(edge, "/ws", true).await.ok()) });
    let sockets: Vec<_> = opening.await?.into_iter().flatten().collect();
    let taken = start.elapsed();
    sleep_until(start + time).await;
    Ok(format!("{} of {count} came in, in {} ms", sockets.len(), taken.as_millis()))
}

pub async fn leaves(edge: SocketAddr, clients: u32, time: Duration) -> Result<String> {
    let sockets = open_many(edge, clients, true, |_| "/ws?channels=greedy".into()).await?;
    sleep_until(Instant::now() + time / 2).await;
    drop(sockets);
    sleep_until(Instant::now() + time / 2).await;
    Ok("–".into())
}

/// Sends requests whose heads never end.
pub async fn half_open(
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

/// Sends a byte at intervals until an answer arrives, and returns the answer.
async fn drip(mut stream: TcpStream, end: Instant) -> Vec<u8> {
    let mut answer = Vec::new();
    while answer.is_empty() && Instant::now() < end && stream.write_all(b"b").await.is_ok() {
        let next = end.min(Instant::now() + DRIP);
        // At the timeout the next byte is due.
        let _ = timeout_at(next, stream.read_buf(&mut answer)).await;
    }
    answer
}
