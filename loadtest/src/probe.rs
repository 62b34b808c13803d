//! What others feel while a server is at work: every 5 ms a `mesh.send` to one client and an echo.
//!
//! Open loop: the next one goes out whether or not the last one has come, and a delay counts from
//! the instant at which it was to go out, unless the probe itself was woken late: then from there. It
//! has threads of its own, so that it does not wait behind the tasks that make the load; how late it
//! was is told too.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};

use crate::latency::Latencies;
use crate::ledger::{Damage, Ledger};
use crate::payload::{BYTES_MIN, Payload};
use crate::raw::{self, HEAD_END};
use crate::server::Target;

const PERIOD: Duration = Duration::from_millis(5);

/// A message that has not come after this long is lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest frame that a server sends to a probe, far longer than any that it should.
const FRAME_BYTES_MAX: usize = 64 * 1024;

/// Source of the messages that count, and of the one that ends them.
const COUNTED: u32 = 0;
const LAST: u32 = 1;

/// A probe at work.
pub struct Probe {
    stop: Arc<AtomicBool>,
    writer: JoinHandle<Result<(u32, Duration)>>,
    readers: Vec<JoinHandle<Result<Ledger>>>,
    delays: Arc<Latencies>,
}

/// What a probe felt.
pub struct Felt {
    /// From the instant at which a message was to be sent, or could be, to its arrival.
    pub delays: Arc<Latencies>,
    /// What did not arrive as it was sent.
    pub damage: Damage,
    /// How late the probe itself was, at most.
    pub own_delay: Duration,
}

/// The event that brings a client's message; only the id matters here.
#[derive(Deserialize)]
struct Event {
    p: Delivery,
}

#[derive(Deserialize)]
struct Delivery {
    c: String,
}

impl Probe {
    /// Connects and begins. Blocks for as long as the server takes to answer.
    ///
    /// # Errors
    /// The server refuses, or does not answer within 5 s.
    pub fn start(target: Target) -> Result<Self> {
        let mut client = Socket::open(target.edge, "/ws")?;
        let mut back_end = Socket::open(target.api, "/ws/v1")?;
        let id = learn_id(&mut client, &mut back_end)?;
        let echo = Socket::open(target.edge, "/echo")?;
        let (to_api, to_echo) = (back_end.writer()?, echo.writer()?);
        let (stop, delays) = (Arc::<AtomicBool>::default(), Arc::<Latencies>::default());
        let (start, is_over) = (Instant::now() + PERIOD, Arc::clone(&stop));
        let readers = [client, echo].map(|socket| {
            let delays = Arc::clone(&delays);
            thread::spawn(move || {
                go_first();
                read(socket, &delays)
            })
        });
        // Answers have to be taken, though they tell nothing that the messages do not.
        thread::spawn(move || while back_end.read().is_ok() {});
        let writer = thread::spawn(move || {
            go_first();
            write(to_api, to_echo, &id, start, &is_over)
        });
        Ok(Self { stop, writer, readers: readers.into(), delays })
    }

    /// Ends it and waits for what is under way.
    ///
    /// # Errors
    /// A connection broke, or brought what nobody sent.
    pub fn stop(self) -> Result<Felt> {
        self.stop.store(true, Ordering::Relaxed);
        let (sent, own_delay) = joined(self.writer)?;
        let mut damage = Damage::default();
        for reader in self.readers {
            damage += joined(reader)?.damage(sent);
        }
        Ok(Felt { delays: self.delays, damage, own_delay })
    }
}

/// Lets the calling thread run before those that make the load, where the system permits it: what
/// it waits for a CPU would count as the server's delay. A real-time thread does so at once; one that
/// is only less nice waits until the other has used its slice, some 3 ms.
fn go_first() {
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    let _ = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, policy);
}

fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread of the probe panicked"))?
}

/// Has the client say something that the back end consumes: the event carries its id.
fn learn_id(client: &mut Socket, back_end: &mut Socket) -> Result<String> {
    back_end.send(r#"{"m":"queue.pop","p":{"t":["messages"]},"i":1}"#)?;
    back_end.read()?;
    client.send("who am I?")?;
    let event: Event = serde_json::from_slice(&back_end.read()?)?;
    back_end.send(r#"{"m":"queue.unpop","p":{},"i":2}"#)?;
    back_end.read()?;
    Ok(event.p.c)
}

/// Sends until it is told to stop; how many messages to each, and its greatest lateness.
fn write(
    mut to_api: TcpStream,
    mut to_echo: TcpStream,
    id: &str,
    start: Instant,
    stop: &AtomicBool,
) -> Result<(u32, Duration)> {
    let mut send = |source, sequence, due| -> Result<()> {
        let text = Payload::at(source, sequence, due).text(BYTES_MIN);
        let call = format!(r#"{{"m":"mesh.send","p":{{"c":"{id}","d":"{text}"}},"i":3}}"#);
        to_api.write_all(&raw::frame(raw::TEXT, call.as_bytes()))?;
        Ok(to_echo.write_all(&raw::frame(raw::TEXT, text.as_bytes()))?)
    };
    let (mut sequence, mut own_delay, mut woken) = (0, Duration::ZERO, start);
    while !stop.load(Ordering::Relaxed) {
        let due = start + PERIOD * sequence;
        let early = due.saturating_duration_since(Instant::now());
        if !early.is_zero() {
            thread::sleep(early);
            woken = Instant::now();
            own_delay = own_delay.max(due.elapsed());
        }
        send(COUNTED, sequence, due.max(woken))?;
        sequence += 1;
    }
    send(LAST, 0, Instant::now())?;
    Ok((sequence, own_delay))
}

/// Takes messages until the last one, or until none comes for a long time.
fn read(mut socket: Socket, delays: &Latencies) -> Result<Ledger> {
    let mut ledger = Ledger::default();
    while let Ok(text) = socket.read() {
        let payload = Payload::parse(&text, BYTES_MIN);
        let payload = payload.context("the probe got what it did not send")?;
        if payload.source == LAST {
            break;
        }
        if ledger.observe(payload.sequence) {
            delays.record(payload.age_at(Instant::now()));
        }
    }
    Ok(ledger)
}

/// A blocking WebSocket.
struct Socket(BufReader<TcpStream>);

impl Socket {
    fn open(address: SocketAddr, path: &str) -> Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(raw::upgrade_request(path).as_bytes())?;
        let mut socket = Self(BufReader::new(stream));
        let mut head = Vec::new();
        while !head.ends_with(HEAD_END) {
            head.extend(socket.take::<1>()?);
        }
        ensure!(head.starts_with(b"HTTP/1.1 101"), "the server refused the probe");
        Ok(socket)
    }

    fn writer(&self) -> Result<TcpStream> {
        Ok(self.0.get_ref().try_clone()?)
    }

    fn send(&mut self, text: &str) -> Result<()> {
        Ok(self.0.get_mut().write_all(&raw::frame(raw::TEXT, text.as_bytes()))?)
    }

    /// The next text.
    fn read(&mut self) -> Result<Vec<u8>> {
        let [first, second] = self.take()?;
        let length = match second {
            126 => u16::from_be_bytes(self.take()?).into(),
            length => usize::from(length),
        };
        if first != raw::TEXT || length > FRAME_BYTES_MAX {
            bail!("the probe got a frame that begins with {first:#x} {second:#x}");
        }
        let mut text = vec![0; length];
        self.0.read_exact(&mut text)?;
        Ok(text)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
