//! Where an attack takes place, and when it begins.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use crate::client;
use crate::latency::Latencies;
use crate::raw;
use crate::target::Target;
use crate::web_socket::WebSocket;

/// Before an attack begins: what a probe still felt of its preparation is over.
const QUIET: Duration = Duration::from_millis(300);

/// The longest that an attack with an end of its own waits for it.
const PATIENCE: Duration = Duration::from_secs(25);

/// The servers, the time, and what others feel.
pub struct Scene {
    /// The nodes of the grid; at least one.
    pub nodes: Vec<Target>,
    /// How long an attack without an end of its own goes on.
    pub time: Duration,
    /// What the probe felt so far.
    pub felt: Arc<Latencies>,
}

#[derive(Deserialize)]
struct Event {
    p: Delivery,
}

#[derive(Deserialize)]
struct Delivery {
    c: String,
}

impl Scene {
    /// The server, or the first node.
    pub fn target(&self) -> Target {
        self.nodes[0]
    }

    /// The preparation is over: what was felt of it does not count. Gives the time.
    pub async fn begin(&self) -> Instant {
        sleep(QUIET).await;
        self.felt.forget();
        Instant::now()
    }

    /// When an attack without an end of its own ends that begins now.
    pub fn end(&self) -> Instant {
        Instant::now() + self.time
    }

    /// When an attack that begins now and has an end of its own is not waited for any longer.
    pub fn patience(&self) -> Instant {
        Instant::now() + PATIENCE.max(self.time)
    }
}

/// The ids of `clients`, in their order: each says something, which a back end at `target` consumes.
///
/// # Errors
/// A connection ended.
pub async fn learn_ids(target: Target, clients: &mut [WebSocket]) -> Result<Vec<String>> {
    let mut back_end = client::open(target.api, "/ws/v1", raw::TEXT).await?;
    back_end.feed(&[br#"{"m":"queue.pop","p":{"t":["messages"]},"i":1}"#]);
    back_end.flush().await?;
    back_end.next(|_, _| Ok(())).await?;
    let mut ids = Vec::new();
    for client in clients {
        client.feed(&[b"who am I?"]);
        client.flush().await?;
        let read = |text: &[u8], _| Ok(serde_json::from_slice::<Event>(text)?.p.c);
        ids.push(back_end.next(read).await.context("the event of a client")?);
    }
    Ok(ids)
}
