//! Attacks on the memory of a server.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::greedy::close_code;
use super::scene::{Scene, learn_ids};
use super::sockets::{drain, drain_some, flood, open, open_many, write_until};
use crate::client;
use crate::raw;
use crate::tasks::in_parallel;

/// An echo route with the default limits.
pub const SMALL_ECHO: &str = "[[edge.route]]\npath = \"/mirror\"\nhandler = \"echo\"\n";

/// The number of sockets of each kind that never read.
const UNREAD: u32 = 500;

/// Messages published to a client that never reads: nearly `limits.outbound_bytes` in all.
const UNREAD_MESSAGES: usize = 62;
const UNREAD_MESSAGE: usize = 16 * 1024;

const BEGUN_BY_CLIENTS: u32 = 1_000;
const BEGUN_BY_BACK_ENDS: u32 = 500;

/// The sent part of a message that is never completed: nearly the longest allowed.
const BEGUN_CLIENT_BYTES: usize = 60 * 1024;
const BEGUN_BACK_END_BYTES: usize = 900 * 1024;

/// Interval between two pings during a message that is never completed.
const PING_PERIOD: Duration = Duration::from_millis(500);

const CONTEXTS: u32 = 1_000;
const CONTEXT_BYTES: usize = 60 * 1024;

const SUBSCRIBERS: u32 = 400;
const CHANNELS_EACH: u32 = 1_024;

/// Clients that never read, and the number of empty messages for each.
const SLOW_READERS: u32 = 4;
const EMPTY_MESSAGES: usize = 600_000;
const ROUNDS_AT_ONCE: usize = 250;

/// Time for a closed peer to read the reason.
const LAST_WORDS: Duration = Duration::from_secs(2);

const CALLERS: u32 = 40;
const CALLS_EACH: usize = 10;
const ID_BYTES: usize = 1_000_000;

/// Causes pongs, echoes and publishes that nobody reads.
pub async fn unread(scene: &Scene) -> Result<String> {
    let (api, edge) = (scene.target().api, scene.target().edge);
    let pinging = open_many(edge, UNREAD, false, |_| "/ws".into()).await?;
    let echoing = open_many(edge, UNREAD, false, |_| "/mirror".into()).await?;
    let path = |number| format!("/ws?channels=unread-{number}");
    let subscribed = open_many(edge, UNREAD, false, path).await?;
    let mut back_end = client::open(api, "/ws/v1", raw::TEXT).await?;
    scene.begin().await;
    let end = scene.end();
    let (ping, message) =
        (raw::frame(raw::PING, &[b'x'; 125]), raw::frame(raw::TEXT, &[b'x'; 4096]));
    let sending = pinging.into_iter().map(move |socket| (socket, ping.clone()));
    let sending = sending.chain(echoing.into_iter().map(move |socket| (socket, message.clone())));
    let sending = tokio::spawn(in_parallel(sending, move |(mut socket, unit)| async move {
        let sent = flood(&mut socket, &unit, end).await.bytes;
        Ok((socket, sent))
    }));
    let data = "x".repeat(UNREAD_MESSAGE);
    let publishing = async {
        for _ in 0..UNREAD_MESSAGES {
            for number in 0..UNREAD {
                let call = format!(
                    r#"{{"m":"mesh.publish","p":{{"c":"unread-{number}","d":"{data}"}},"i":1}}"#
                );
                back_end.feed(&[call.as_bytes()]);
                back_end.flush().await?;
                back_end.next(|_, _| Ok(())).await?;
            }
        }
        anyhow::Ok(())
    };
    let _ = timeout_at(scene.patience(), publishing).await;
    let sent = sending.await??;
    let bytes: u64 = sent.iter().map(|(_, bytes)| bytes).sum();
    let closed = closed(sent.into_iter().map(|(socket, _)| socket).chain(subscribed)).await?;
    Ok(format!("{:.0} MB sent, {closed} of {} closed", bytes as f64 / 1e6, 3 * UNREAD))
}

/// The number of `sockets` that the server has closed.
async fn closed(sockets: impl IntoIterator<Item = TcpStream>) -> Result<usize> {
    let end = Instant::now() + LAST_WORDS;
    let ended =
        in_parallel(sockets, move |mut socket| async move { Ok(drain(&mut socket, end).await.1) });
    Ok(ended.await?.into_iter().filter(|&ended| ended).count())
}

/// Sends messages that never end, from clients and back ends that answer pings.
pub async fn unfinished(scene: &Scene) -> Result<String> {
    let (api, edge) = (scene.target().api, scene.target().edge);
    let clients = open_many(edge, BEGUN_BY_CLIENTS, true, |_| "/ws".into()).await?;
    let back_ends = open_many(api, BEGUN_BY_BACK_ENDS, true, |_| "/ws/v1".into()).await?;
    scene.begin().await;
    let begun = |bytes| raw::frame(raw::TEXT & !raw::FIN, &vec![b'x'; bytes]);
    let clients = clients.into_iter().map(|socket| (socket, begun(BEGUN_CLIENT_BYTES)));
    let back_ends = back_ends.into_iter().map(|socket| (socket, begun(BEGUN_BACK_END_BYTES)));
    let end = scene.end();
    let holding = in_parallel(clients.chain(back_ends), move |(mut socket, begun)| async move {
        write_until(&mut socket, &begun, end).await;
        Ok(ping_until(&mut socket, end).await)
    });
    let closed = holding.await?.into_iter().filter(|&ended| ended).count();
    Ok(format!("{closed} of {} closed", BEGUN_BY_CLIENTS + BEGUN_BY_BACK_ENDS))
}

/// Sends pings at intervals and reads pongs. Returns whether the connection ended early.
async fn ping_until(socket: &mut TcpStream, end: Instant) -> bool {
    let ping = raw::frame(raw::PING, &[]);
    while Instant::now() < end {
        let next = end.min(Instant::now() + PING_PERIOD);
        if !write_until(socket, &ping, end).await || drain(socket, next).await.1 {
            return Instant::now() < end;
        }
    }
    false
}

/// Sets large contexts of clients.
pub async fn contexts(scene: &Scene) -> Result<String> {
    let target = scene.target();
    let mut clients = client::open_many(target.edge, "/ws", CONTEXTS).await?;
    let ids = learn_ids(target, &mut clients).await?;
    let mut back_end = client::open(target.api, "/ws/v1", raw::TEXT).await?;
    scene.begin().await;
    let (mut set, value) = (0, "x".repeat(CONTEXT_BYTES));
    for id in ids {
        let arguments = format!(r#"[{{"k":"{value}"}}]"#);
        let call = format!(
            r#"{{"m":"conn.call","p":{{"c":"{id}","f":"set_context","a":{arguments}}},"i":1}}"#
        );
        back_end.feed(&[call.as_bytes()]);
        back_end.flush().await?;
        let is_set = |text: &[u8], _| Ok(text.starts_with(br#"{"E":null"#));
        set += usize::from(back_end.next(is_set).await?);
    }
    sleep_until(scene.end()).await;
    drop(clients);
    Ok(format!("{set} of {CONTEXTS} set"))
}

/// Subscribes clients to channels of their own.
pub async fn subscriptions(scene: &Scene) -> Result<String> {
    scene.begin().await;
    let start = Instant::now();
    let path = |number| {
        let names: Vec<_> =
            (0..CHANNELS_EACH).map(|name| format!("{number:04}-{name:04}")).collect();
        format!("/ws?channels={}", names.join(","))
    };
    let opening = open_many(scene.target().edge, SUBSCRIBERS, true, path);
    let opened = timeout_at(scene.patience(), opening).await;
    let came = match &opened {
        Ok(Ok(clients)) => {
            format!("{} came in, in {} ms", clients.len(), start.elapsed().as_millis())
        }
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => "not all came in".into(),
    };
    sleep_until(scene.end()).await;
    Ok(came)
}

/// Publishes empty messages, each to a channel with one client, so that none are joined or shared.
pub async fn empty_frames(scene: &Scene) -> Result<String> {
    let (api, edge) = (scene.target().api, scene.target().edge);
    let path = |number| format!("/ws?channels=empty-{number}");
    let clients = open_many(edge, SLOW_READERS, false, path).await?;
    let back_end = open(api, "/ws/v1", true).await?;
    scene.begin().await;
    let end = scene.patience();
    let publish = |number| {
        let call = format!(r#"{{"m":"mesh.publish","p":{{"c":"empty-{number}","d":""}},"i":1}}"#);
        raw::frame(raw::TEXT, call.as_bytes())
    };
    let round: Vec<u8> = (0..SLOW_READERS).flat_map(publish).collect();
    let rounds = round.repeat(ROUNDS_AT_ONCE);
    let (mut from, mut to) = back_end.into_split();
    let reading = tokio::spawn(async move { drain(&mut from, end).await });
    let mut sent = 0;
    while sent < EMPTY_MESSAGES
        && matches!(timeout_at(end, to.write_all(&rounds)).await, Ok(Ok(())))
    {
        sent += ROUNDS_AT_ONCE;
    }
    let until = Instant::now() + LAST_WORDS;
    let codes =
        in_parallel(clients, move |socket| async move { Ok(close_code(socket, until).await) });
    let slow = codes.await?.into_iter().filter(|code| *code == Some(1013)).count();
    reading.abort();
    Ok(format!("{sent} to each, {slow} of {SLOW_READERS} closed with 1013"))
}

/// A process that is stopped until this is dropped.
struct Frozen(Pid);

impl Frozen {
    fn new(pid: Pid) -> Result<Self> {
        kill(pid, Signal::SIGSTOP).context("cannot freeze a node")?;
        Ok(Self(pid))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// Sends calls with long ids, which are repeated in the answers, for a node that does not answer.
pub async fn ids(scene: &Scene) -> Result<String> {
    let (near, far) = (scene.target(), *scene.nodes.get(1).context("a grid of two nodes")?);
    let mut client = client::open_many(far.edge, "/ws", 1).await?;
    let id = learn_ids(far, &mut client).await?.concat();
    let callers = open_many(near.api, CALLERS, true, |_| "/ws/v1".into()).await?;
    scene.begin().await;
    let (_frozen, end) = (Frozen::new(far.pid)?, scene.patience());
    let body = "x".repeat(ID_BYTES);
    let call = format!(r#"{{"m":"mesh.send","p":{{"c":"{id}","d":"x"}},"i":"{body}"}}"#);
    let calls: Arc<[u8]> = raw::frame(raw::TEXT, call.as_bytes()).repeat(CALLS_EACH).into();
    let calling = in_parallel(callers, move |caller| {
        let calls = Arc::clone(&calls);
        async move {
            let (mut from, mut to) = caller.into_split();
            let writing = timeout_at(end, to.write_all(&calls));
            let reading = drain_some(&mut from, (CALLS_EACH * ID_BYTES) as u64, end);
            Ok(tokio::join!(writing, reading).1.0 as usize / ID_BYTES)
        }
    });
    let answered: usize = calling.await?.into_iter().sum();
    Ok(format!("{answered} of {} calls answered", CALLERS as usize * CALLS_EACH))
}
