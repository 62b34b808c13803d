//! Clients that only read what is published to their channel.

use std::net::SocketAddr;

use anyhow::Result;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::{self, Socket};
use crate::inbox::Inbox;
use crate::ledger::Damage;
use crate::tasks::until;

/// The channel that all of them are subscribed to.
pub const CHANNEL: &str = "load";

const PATH: &str = "/ws?channels=load";

/// Subscribed clients, each reading in a task of its own.
pub struct Subscribers(JoinSet<Result<Inbox>>);

impl Subscribers {
    /// Opens `count` of them; each is to get what `inbox` expects before `deadline`.
    ///
    /// # Errors
    /// One could not be opened.
    pub async fn open(
        edge: SocketAddr,
        count: u32,
        inbox: &Inbox,
        deadline: Instant,
    ) -> Result<Self> {
        let sockets = client::open_many(edge, PATH, count).await?;
        Ok(Self(sockets.into_iter().map(|socket| read(socket, inbox.clone(), deadline)).collect()))
    }

    /// Waits until each has got everything, has lost its connection, or the deadline is there.
    ///
    /// # Errors
    /// One got a message that nobody sent.
    pub async fn damage(mut self) -> Result<Damage> {
        let mut damage = Damage::default();
        while let Some(inbox) = self.0.join_next().await {
            damage += inbox??.damage();
        }
        Ok(damage)
    }
}

async fn read(mut socket: Socket, mut inbox: Inbox, deadline: Instant) -> Result<Inbox> {
    let reading = async {
        while !inbox.is_complete() {
            let Some(text) = client::next_text(&mut socket).await else { break };
            inbox.take(&text)?;
        }
        Ok(())
    };
    until(deadline, reading).await?;
    Ok(inbox)
}
