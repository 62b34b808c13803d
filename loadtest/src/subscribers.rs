//! Clients that only read what is published to their channel, or sent to them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::connection::until_ended;
use crate::dialect::Messages;
use crate::inbox::Inbox;
use crate::ledger::Damage;
use crate::target::Target;
use crate::tasks::until;
use crate::web_socket::WebSocket;

/// Reading clients, each reading in a task of its own.
pub struct Subscribers {
    reading: JoinSet<Result<()>>,
    damage: Arc<Mutex<Damage>>,
    deadline: Instant,
}

/// One of them. When it is dropped, done or not, what it has not got as it was sent counts.
struct Subscriber {
    messages: Messages,
    inbox: Inbox,
    damage: Arc<Mutex<Damage>>,
}

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
        let sockets = target.connect_many(Some(channel), count).await?;
        let clients = sockets.into_iter().map(|socket| (socket, inbox.clone()));
        Ok(Self::new(target, clients, deadline))
    }

    /// Has each of `clients`, which `target` has connected, read until it has got all that its inbox
    /// expects, or `deadline`.
    pub fn new(
        target: Target,
        clients: impl IntoIterator<Item = (WebSocket, Inbox)>,
        deadline: Instant,
    ) -> Self {
        let damage = Arc::<Mutex<Damage>>::default();
        let read = |(socket, inbox)| {
            let (messages, damage) = (Messages::of(socket, target.dialect), Arc::clone(&damage));
            Subscriber { messages, inbox, damage }.read()
        };
        Self { reading: clients.into_iter().map(read).collect(), damage, deadline }
    }

    /// Waits until each has got everything, has lost its connection, or the deadline is there.
    ///
    /// # Errors
    /// One got a message that nobody sent.
    pub async fn damage(mut self) -> Result<Damage> {
        let reading = async {
            while let Some(read) = self.reading.join_next().await {
                read??;
            }
            Ok(())
        };
        // One timer for all: one in each task would be looked at whenever that reads.
        until(self.deadline, reading).await?;
        self.reading.shutdown().await;
        Ok(*locked(&self.damage))
    }
}

impl Subscriber {
    async fn read(mut self) -> Result<()> {
        let reading = async {
            while !self.inbox.is_complete() {
                self.messages.read(|text, at| self.inbox.take(text, at).map(drop)).await?;
            }
            Ok(())
        };
        until_ended(reading).await
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        *locked(&self.damage) += self.inbox.damage();
    }
}

/// A panic elsewhere cannot leave numbers half written.
fn locked(damage: &Mutex<Damage>) -> MutexGuard<'_, Damage> {
    damage.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use async_tungstenite::tungstenite::Message;
    use nix::unistd::Pid;

    use super::*;
    use crate::dialect::Dialect;
    use crate::payload::Payload;
    use crate::web_socket::tests::connected;

    /// One that reads on `socket` and is to get three messages.
    fn one_on(socket: WebSocket, deadline: Instant) -> Subscribers {
        let nowhere = ([127, 0, 0, 1], 0).into();
        let (api, edge, pid, dialect) = (nowhere, nowhere, Pid::this(), Dialect::Gridcast);
        let inbox = Inbox::new(0..1, 1, 40, &Arc::default());
        Subscribers::new(Target { api, edge, pid, dialect }, [(socket, inbox)], deadline)
    }

    #[tokio::test]
    async fn what_has_not_come_by_the_deadline_is_lost() -> Result<()> {
        let (socket, _server) = connected().await?;
        let damage = one_on(socket, Instant::now()).damage().await?;
        assert_eq!(damage, Damage { lost: 3, ..Damage::default() });
        Ok(())
    }

    #[tokio::test]
    async fn what_a_connection_that_ended_has_not_brought_is_lost() -> Result<()> {
        let (socket, mut server) = connected().await?;
        server.send(Message::text(Payload::now(0, 0).text(40))).await?;
        drop(server);
        let damage = one_on(socket, Instant::now() + Duration::from_secs(60)).damage().await?;
        assert_eq!(damage, Damage { lost: 2, ..Damage::default() });
        Ok(())
    }

    #[tokio::test]
    async fn what_nobody_sent_is_an_error() -> Result<()> {
        let (socket, mut server) = connected().await?;
        server.send(Message::text("what?")).await?;
        let damage = one_on(socket, Instant::now() + Duration::from_secs(60)).damage().await;
        assert!(damage.is_err());
        Ok(())
    }
}
