//! Messages of back ends to clients: sent, awaited and accounted for.

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

/// Back ends, each with as many destinations, which get as many messages each.
pub struct Delivery<'a> {
    /// Servers that are at work; the back ends connect to the first.
    pub servers: &'a [Target],
    /// Back ends, one connection each.
    pub connections: u32,
    /// How their requests follow each other.
    pub load: Load,
    /// As many for each of the back ends. The messages to the first are those of source 0, and so on.
    pub destinations: Vec<Destination>,
    /// The clients that read, each with the sources of its messages; all destinations have as many.
    pub clients: Vec<(WebSocket, Range<u32>)>,
    /// Messages to each destination.
    pub each: u32,
    /// Length of a message.
    pub bytes: u32,
    /// Whether an answer is to tell of exactly these clients.
    pub counts_receivers: bool,
}

/// What it came to.
pub struct Delivered {
    /// Of the servers.
    pub cost: Cost,
    /// From when a message was due, or the writing of those sent at once began, to its arrival at a
    /// client.
    pub arrivals: Arc<Arrivals>,
    /// What did not arrive as it was sent, and what was not answered as it should be.
    pub damage: Damage,
}

impl Delivery<'_> {
    /// Does it, until `deadline` at the longest.
    ///
    /// # Errors
    /// It could not be measured.
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
    /// As the run of a scenario.
    pub fn into_run(self) -> Run {
        Run::new(self.cost, &self.arrivals.latencies, self.damage)
    }
}
