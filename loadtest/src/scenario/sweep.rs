//! Publishes at one rate after another.

use clap::Args;

use super::publish::Publish;

/// Back ends, one connection each.
const CONNECTIONS: u32 = 16;

/// 16 back ends publish to a channel without subscribers, at one rate after another.
#[derive(Args, Clone)]
pub struct Sweep {
    /// Requests per second, of all back ends together, each against a fresh server
    #[arg(long, value_name = "RATE,…", value_delimiter = ',', value_parser = super::rate::parser(),
          default_values_t = [2_000, 10_000, 50_000, 150_000, 300_000])]
    pub rates: Vec<u32>,
    /// Seconds at each rate
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=60))]
    pub time: u32,
    /// POST /v1/mesh/publish on persistent connections instead of WebSocket
    #[arg(long)]
    pub http: bool,
}

impl Sweep {
    /// One scenario for each rate.
    pub fn each(self) -> Vec<Publish> {
        let at = |&rate: &u32| Publish {
            connections: CONNECTIONS,
            pipeline: 1,
            requests: rate * self.time,
            subscribers: 0,
            http: self.http,
            history: false,
            rate: Some(rate),
        };
        self.rates.iter().map(at).collect()
    }
}
