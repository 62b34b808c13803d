//! Operators who look at a server: one walks through the list of clients without pause, others have taps open.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::task::JoinHandle;

use crate::answer::Answer;
use crate::client;
use crate::raw;
use crate::target::Target;
use crate::web_socket::WebSocket;

/// The target of each tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// One client for each tap.
    Clients,
    /// A channel, the same for all taps.
    Channel(&'static str),
}

/// Operators at work.
pub struct Operators {
    walk: JoinHandle<Result<()>>,
    taps: Vec<JoinHandle<Result<()>>>,
    seen: Arc<Seen>,
}

/// The answers and events that operators have got so far.
#[derive(Default)]
struct Seen {
    is_over: AtomicBool,
    rows: AtomicU64,
    events: AtomicU64,
}

/// A page of `client.list`.
#[derive(Deserialize)]
struct Page {
    clients: Vec<Row>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct Row {
    c: String,
}

impl Operators {
    /// Opens `taps` taps, each on a connection of its own, and begins to walk.
    ///
    /// # Errors
    /// The server refuses, or has fewer clients than taps.
    pub async fn start(target: Target, taps: usize, watched: Watched) -> Result<Self> {
        let mut lister = client::open(target.api, "/ws/v1", raw::TEXT).await?;
        let first = page(&mut lister, None).await?;
        ensure!(first.clients.len() >= taps, "fewer clients than taps");
        let (mut tapping, seen) = (Vec::new(), Arc::<Seen>::default());
        for Row { c } in &first.clients[..taps] {
            let target_of_tap = match watched {
                Watched::Clients => format!(r#""c":"{c}""#),
                Watched::Channel(name) => format!(r#""channel":"{name}""#),
            };
            let tapper = open_tap(target, &target_of_tap).await?;
            tapping.push(tokio::spawn(count_events(tapper, Arc::clone(&seen))));
        }
        let walk = tokio::spawn(walk(lister, Arc::clone(&seen)));
        Ok(Self { walk, taps: tapping, seen })
    }

    /// Ends the walk and the taps. Returns the rows of the lists and the events of the taps.
    ///
    /// # Errors
    /// A list failed, or a connection ended early.
    pub async fn stop(self) -> Result<(u64, u64)> {
        self.seen.is_over.store(true, Ordering::Relaxed);
        self.walk.await??;
        for tap in self.taps {
            ensure!(!tap.is_finished(), "the connection of a tap ended");
            tap.abort();
            // Its socket is closed once the task has ended.
            let _ = tap.await;
        }
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Ok((count(&self.seen.rows), count(&self.seen.events)))
    }
}

/// Walks from the first client to the last one, again and again.
async fn walk(mut lister: WebSocket, seen: Arc<Seen>) -> Result<()> {
    let mut after = None;
    while !seen.is_over.load(Ordering::Relaxed) {
        let page = page(&mut lister, after).await?;
        seen.rows.fetch_add(page.clients.len() as u64, Ordering::Relaxed);
        after = page.next;
    }
    Ok(())
}

async fn page(lister: &mut WebSocket, after: Option<String>) -> Result<Page> {
    let after = after.map(|after| format!(r#","after":"{after}""#)).unwrap_or_default();
    let call = format!(r#"{{"m":"client.list","p":{{"max":1000{after}}},"i":1}}"#);
    lister.feed(&[call.as_bytes()]);
    lister.flush().await?;
    lister.next(|answer, _| Ok(Answer::parse(answer)?.1)).await.context("client.list")
}

async fn open_tap(target: Target, target_of_tap: &str) -> Result<WebSocket> {
    let mut tapper = client::open(target.api, "/ws/v1", raw::TEXT).await?;
    let call = format!(r#"{{"m":"tap.start","p":{{{target_of_tap}}},"i":1}}"#);
    tapper.feed(&[call.as_bytes()]);
    tapper.flush().await?;
    let answered = tapper.next(|answer, _| Answer::<IgnoredAny>::parse(answer)).await;
    answered.context("tap.start")?;
    Ok(tapper)
}

async fn count_events(mut tapper: WebSocket, seen: Arc<Seen>) -> Result<()> {
    loop {
        tapper.next(|_, _| Ok(())).await?;
        seen.events.fetch_add(1, Ordering::Relaxed);
    }
}
