//! Sends messages of back ends to clients, waits for them, and accounts for each.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::time::Instant;

use crate::back_end::{BackEnd, Load, work};
use crate::inbox::{Arrivals, Inbox, stages};
use crate::latency::Latencies;
use crate::ledger::Damage;
use crate::meter::{Cost, Meter};
use crate::publisher::{Destination, Publisher};
use crate::run::Run;
use crate::subscribers::Subscribers;
use crate::target::Target;
use crate::web_socket::WebSocket;

/// A number of back ends with the same number of destinations each. Each destination gets the same number of
/// messages.
pub struct Delivery<'a> {
    /// The servers. The back ends connect to the first.
    pub servers: &'a [Target],
    /// The number of back ends, with one connection each.
    pub connections: u32,
    /// How requests follow each other.
    pub load: Load,
    /// All destinations, the same number for each back end. The messages to the first have source 0, and so on.
    pub destinations: Vec<Destination>,
    /// The receiving clients, each with the sources of its messages. All destinations have the same number.
    pub clients: Vec<(WebSocket, Range<u32>)>,
    /// The number of messages to each destination.
    pub each: u32,
    /// The length of a message in bytes.
    pub bytes: u32,
    /// Whether answers have to count exactly these clients.
    pub counts_receivers: bool,
}

/// The outcome of a [`Delivery`].
pub struct Delivered {
    /// CPU time and elapsed time.
    pub cost: Cost,
    /// Latencies from when a message was due, or the writing of its batch began, to the arrival at a client.
    pub arrivals: Arc<Arrivals>,
    /// Messages that did not arrive as sent, and requests that were not answered as expected.
    pub damage: Damage,
}

impl Delivery<'_> {
    /// Sends and receives all messages, until `deadline` at the latest.
    ///
    /// # Errors
    /// The delivery could not be measured.
    pub async fn run(self, deadline: Instant) -> Result<Delivered> {
        let arrivals = Arc::<Arrivals>::default();
        let first = self.servers.first().context("no server")?;
        let read = self.clients.iter().map(|(_, sources)| sources.len()).sum::<usize>();
        let receivers = (read / self.destinations.len()) as u64;
        let mut back_ends = self.open_back_ends(receivers).await?;
        let inbox = |sources| Inbox::new(sources, self.each, self.bytes as usize, &arrivals);
        let clients = self.clients.into_iter().map(|(socket, sources)| (socket, inbox(sources)));
        let subscribers = Subscribers::new(*first, clients, deadline);
        let per_back_end = (self.destinations.len() / back_ends.len()) as u32;
        let mut cost = None;
        let [opening, measured, closing] = stages(self.each);
        for (stage, is_measured) in [(opening, false), (measured, true), (closing.clone(), false)] {
            let numbers = stage.start * per_back_end..stage.end * per_back_end;
            arrivals.expect(stage.len() as u64 * self.destinations.len() as u64 * receivers);
            let meter = Meter::start_all(self.servers.iter().map(|server| server.pid))?;
            let answers = Arc::<Latencies>::default();
            back_ends = work(back_ends, numbers, self.load, &answers, deadline).await?;
            arrivals.all_before(deadline).await;
            if is_measured {
                cost = Some(meter.stop()?);
            }
        }
        let sent = closing.end * per_back_end;
        let unanswered = match self.counts_receivers {
            true => back_ends.iter().map(|back_end| back_end.answers.damage(sent)).sum(),
            false => Damage::default(),
        };
        let damage = [unanswered, subscribers.damage().await?].into_iter().sum();
        Ok(Delivered { cost: cost.context("a stage is measured")?, arrivals, damage })
    }

    async fn open_back_ends(&self, receivers: u64) -> Result<Vec<BackEnd>> {
        let per_back_end = self.destinations.len() / self.connections as usize;
        let mut back_ends = Vec::new();
        for (number, destinations) in (0..).zip(self.destinations.chunks_exact(per_back_end)) {
            let publisher = Publisher::open(self.servers[0], &destinations[0], false).await?;
            let source = number * per_back_end as u32;
            let bytes = self.bytes as usize;
            let mut back_end = BackEnd::new(publisher, destinations.to_vec(), source, bytes);
            back_end.reached.s = receivers;
            back_ends.push(back_end);
        }
        Ok(back_ends)
    }
}

impl Delivered {
    /// The outcome as the run of a scenario.
    pub fn into_run(self) -> Run {
        Run::new(self.cost, &self.arrivals.latencies, self.damage)
    }
}
