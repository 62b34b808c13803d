//! Measures what well-behaved peers experience while a server is under load: every 5 ms a `mesh.send` to one
//! client, a `mesh.publish` to a channel of another, and an echo.
//!
//! The probe is open-loop: messages are sent whether or not earlier ones have arrived, and a delay counts from
//! when the message was due, or from when the probe woke up if that was later. The probe has its own threads,
//! so that it does not wait behind the tasks that generate the load. It also reports the delay that it caused
//! itself, and how long the same messages take to a thread that only sends them back: the part without a
//! server.

use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
use crate::target::Target;

const PERIOD: Duration = Duration::from_millis(5);

/// A message that has not arrived after this long is lost.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest frame that a probe accepts, far longer than any that it expects.
const FRAME_BYTES_MAX: usize = 64 * 1024;

/// The channel of the probe's subscriber.
const CHANNEL: &str = "probe";

/// The source of the measured messages.
const COUNTED: u32 = 0;
const LAST: u32 = 1;

/// A running probe.
pub struct Probe {
    stop: Arc<AtomicBool>,
    writer: JoinHandle<Result<(u32, Duration)>>,
    readers: Vec<JoinHandle<Result<Ledger>>>,
    delays: Arc<Latencies>,
    control: JoinHandle<Result<Latencies>>,
    errors: Arc<AtomicU64>,
}

/// The measurements of a probe.
pub struct Felt {
    /// Delays from when a message was due, or could be sent, to its arrival.
    pub delays: Arc<Latencies>,
    /// Messages lost, doubled or misordered.
    pub damage: Damage,
    /// The longest delay that the probe itself caused.
    pub own_delay: Duration,
    /// Durations of an echo without a server.
    pub control: Latencies,
    /// Error answers, and connections that ended before the probe.
    pub errors: u64,
}

/// The event with a client's message, of which only the id matters here.
#[derive(Deserialize)]
struct Event {
    p: Delivery,
}

#[derive(Deserialize)]
struct Delivery {
    c: String,
}

impl Probe {
    /// Connects (to the API with `authorization`, if there are users) and starts. Blocks until the server has
    /// answered.
    ///
    /// # Errors
    /// The server refuses, or does not answer within 30 s.
    pub fn start(target: Target, authorization: Option<&str>) -> Result<Self> {
        let mut client = Socket::open(target.edge, "/ws", None)?;
        let subscriber = Socket::open(target.edge, &format!("/ws?channels={CHANNEL}"), None)?;
        let mut back_end = Socket::open(target.api, "/ws/v1", authorization)?;
        let id = learn_id(&mut client, &mut back_end)?;
        let echo = Socket::open(target.edge, "/echo", None)?;
        let (to_api, to_echo) = (back_end.writer()?, echo.writer()?);
        let (stop, delays) = (Arc::<AtomicBool>::default(), Arc::<Latencies>::default());
        let (start, errors) = (Instant::now() + PERIOD, Arc::<AtomicU64>::default());
        let readers = [client, subscriber, echo].map(|socket| {
            let (delays, errors) = (Arc::clone(&delays), Arc::clone(&errors));
            go_first_and(move || read(socket, &delays, &errors))
        });
        let counted = Arc::clone(&errors);
        go_first_and(move || take_answers(back_end, &counted));
        let is_over = Arc::clone(&stop);
        let writer = go_first_and(move || write(to_api, to_echo, &id, start, &is_over));
        let control = control(start, &stop)?;
        Ok(Self { stop, writer, readers: readers.into(), delays, control, errors })
    }

    /// The delays measured so far.
    pub fn delays(&self) -> Arc<Latencies> {
        Arc::clone(&self.delays)
    }

    /// Stops the probe and waits for messages in flight.
    ///
    /// # Errors
    /// A message arrived that was never sent.
    pub fn stop(self) -> Result<Felt> {
        self.stop.store(true, Ordering::Relaxed);
        let (sent, own_delay) = joined(self.writer)?;
        let mut damage = Damage::default();
        for reader in self.readers {
            damage += joined(reader)?.damage(sent);
        }
        let (control, errors) = (joined(self.control)?, self.errors.load(Ordering::Relaxed));
        Ok(Felt { delays: self.delays, damage, own_delay, control, errors })
    }
}

/// Runs `work` in a thread with priority over those that generate the load, if the system permits it. Its waits
/// for a CPU would count as the server's delay. A real-time thread runs at once; one with a better nice
/// value waits until another has used its slice, about 3 ms.
fn go_first_and<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    thread::spawn(move || {
        let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
        let _ = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, policy);
        work()
    })
}

fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread of the probe panicked"))?
}

/// Finds the id of a client, from the event of a message that it sends.
fn learn_id(client: &mut Socket, back_end: &mut Socket) -> Result<String> {
    back_end.send(r#"{"m":"queue.pop","p":{"t":["messages"]},"i":1}"#)?;
    back_end.read()?;
    client.send("who am I?")?;
    let event: Event = serde_json::from_slice(&back_end.read()?)?;
    back_end.send(r#"{"m":"queue.unpop","p":{},"i":2}"#)?;
    back_end.read()?;
    Ok(event.p.c)
}

/// Echoes through a thread without a server, while the probe runs.
fn control(start: Instant, stop: &Arc<AtomicBool>) -> Result<JoinHandle<Result<Latencies>>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    // The thread ends when the other end is dropped.
    go_first_and(move || -> Result<()> {
        let mut message = [0; BYTES_MIN];
        loop {
            far.read_exact(&mut message)?;
            far.write_all(&message)?;
        }
    });
    let (stop, latencies) = (Arc::clone(stop), Latencies::default());
    Ok(go_first_and(move || {
        let mut due = start;
        while !stop.load(Ordering::Relaxed) {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let woken = Instant::now();
            near.write_all(&[0; BYTES_MIN])?;
            near.read_exact(&mut [0; BYTES_MIN])?;
            latencies.record(woken.elapsed());
            due = woken + PERIOD;
        }
        Ok(latencies)
    }))
}

/// Reads the answers to the probe's calls, and counts errors.
fn take_answers(mut back_end: Socket, errors: &AtomicU64) {
    while let Ok(answer) = back_end.read() {
        let is_error = !answer.starts_with(br#"{"E":null"#);
        errors.fetch_add(u64::from(is_error), Ordering::Relaxed);
    }
}

/// Sends until told to stop, or until a connection ends. Returns the number of messages to each receiver, and
/// the longest delay of the probe itself.
fn write(
    mut to_api: TcpStream,
    mut to_echo: TcpStream,
    id: &str,
    start: Instant,
    stop: &AtomicBool,
) -> Result<(u32, Duration)> {
    let mut send = |source, sequence, due| -> Result<()> {
        let text = Payload::at(source, sequence, due).text(BYTES_MIN);
        let send = format!(r#"{{"m":"mesh.send","p":{{"c":"{id}","d":"{text}"}},"i":3}}"#);
        let publish =
            format!(r#"{{"m":"mesh.publish","p":{{"c":"{CHANNEL}","d":"{text}"}},"i":4}}"#);
        let calls = [send, publish].map(|call| raw::frame(raw::TEXT, call.as_bytes())).concat();
        to_api.write_all(&calls)?;
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
        sequence += 1;
        // Messages that are not sent will be missing.
        if send(COUNTED, sequence - 1, due.max(woken)).is_err() {
            break;
        }
    }
    let _ = send(LAST, 0, Instant::now());
    Ok((sequence, own_delay))
}

/// Receives messages until the last one, or until none arrives for a long time.
fn read(mut socket: Socket, delays: &Latencies, errors: &AtomicU64) -> Result<Ledger> {
    let mut ledger = Ledger::default();
    loop {
        let Ok(text) = socket.read() else {
            errors.fetch_add(1, Ordering::Relaxed);
            break;
        };
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
    fn open(address: SocketAddr, path: &str, authorization: Option<&str>) -> Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let line = authorization.map(|value| format!("Authorization: {value}\r\n"));
        let request = raw::upgrade_request_with(path, &line.unwrap_or_default());
        stream.write_all(request.as_bytes())?;
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

    /// Receives the next text message.
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
