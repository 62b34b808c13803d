//! The servers and the timing of an attack.

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

/// Time before an attack starts, until its preparation no longer affects the probe.
const QUIET: Duration = Duration::from_millis(300);

/// Time limit of an attack that ends by itself.
const PATIENCE: Duration = Duration::from_secs(25);

/// The servers, the duration, and the delays of the probe.
pub struct Scene {
    /// The nodes of the grid, at least one.
    pub nodes: Vec<Target>,
    /// The duration of an attack that does not end by itself.
    pub time: Duration,
    /// The delays of the probe so far.
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

    /// Ends the preparation, whose delays do not count, and returns the time.
    pub async fn begin(&self) -> Instant {
        sleep(QUIET).await;
        self.felt.forget();
        Instant::now()
    }

    /// The end of an attack that starts now and does not end by itself.
    pub fn end(&self) -> Instant {
        Instant::now() + self.time
    }

    /// The time limit of an attack that starts now and ends by itself.
    pub fn patience(&self) -> Instant {
        Instant::now() + PATIENCE.max(self.time)
    }
}

/// Finds the ids of `clients`, in their order. Each sends a message that a back end at `target` consumes.
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
