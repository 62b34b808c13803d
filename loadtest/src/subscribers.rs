//! Clients that only read what is published to their channel, or sent to them.

use anyhow::Result;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::{self, Socket};
use crate::dialect::{Dialect, Messages};
use crate::inbox::Inbox;
use crate::ledger::Damage;
use crate::receiver::Receiver;
use crate::server::Target;
use crate::tasks::until;

/// Reading clients, each reading in a task of its own.
pub struct Subscribers(JoinSet<Result<Inbox>>);

impl Subscribers {
    /// Subscribes `count` clients to `channel`; each is to get what `inbox` expects before
    /// `deadline`.
    ///
    /// # Errors
    /// One could not be opened.
    pub async fn open(
        target: Target,
        channel: &str,
        count: u32,
        inbox: &Inbox,
        deadline: Instant,
    ) -> Result<Self> {
        let sockets = client::connect_many(target, Some(channel), count).await?;
        let clients = sockets.into_iter().map(|socket| (socket, inbox.clone()));
        Ok(Self::new(target, clients, deadline))
    }

    /// Has each of `clients`, which `target` has connected, read until it has got all that its inbox expects, or `deadline`.
    pub fn new(
        target: Target,
        clients: impl IntoIterator<Item = (Socket, Inbox)>,
        deadline: Instant,
    ) -> Self {
        let clients = clients.into_iter();
        let read = |(socket, inbox)| read(socket, target, inbox, deadline);
        Self(clients.map(read).collect())
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

async fn read(
    socket: Socket,
    target: Target,
    mut inbox: Inbox,
    deadline: Instant,
) -> Result<Inbox> {
    let reading = async {
        if target.dialect == Dialect::Nats {
            let mut messages = Messages::of(socket, target);
            while !inbox.is_complete() {
                let Some(text) = messages.next().await? else { break };
                inbox.take(&text)?;
            }
        } else {
            let mut receiver = Receiver::of(socket);
            while !inbox.is_complete() && receiver.read(|text| inbox.take(text).map(drop)).await? {}
        }
        Ok(())
    };
    until(deadline, reading).await?;
    Ok(inbox)
}
