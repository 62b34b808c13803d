//! Clients that only receive messages.

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

/// Receiving clients, each in its own task.
pub struct Subscribers {
    reading: JoinSet<Result<()>>,
    damage: Arc<Mutex<Damage>>,
    deadline: Instant,
}

/// One receiving client. On drop, complete or not, its damage is added to the total.
struct Subscriber {
    messages: Messages,
    inbox: Inbox,
    damage: Arc<Mutex<Damage>>,
}

impl Subscribers {
    /// Subscribes `count` clients to `channel`. Each receives what its `inbox` expects, until `deadline`.
    ///
    /// # Errors
    /// A client could not be opened.
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

    /// Has each connected client receive until its inbox is complete, or until `deadline`.
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

    /// Waits until each client is complete or has lost its connection, or for the deadline.
    ///
    /// # Errors
    /// A client received a message that was never sent.
    pub async fn damage(mut self) -> Result<Damage> {
        let reading = async {
            while let Some(read) = self.reading.join_next().await {
                read??;
            }
            Ok(())
        };
        // One timer for all, since a timer per task would be polled at each read.
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

/// Locks the damage. A panic elsewhere cannot leave it inconsistent.
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

    /// A client on `socket` that expects three messages.
    fn one_on(socket: WebSocket, deadline: Instant) -> Subscribers {
        let nowhere = ([127, 0, 0, 1], 0).into();
        let (api, edge, pid, dialect) = (nowhere, nowhere, Pid::this(), Dialect::Gridcast);
        let inbox = Inbox::new(0..1, 1, 40, &Arc::default());
        Subscribers::new(
            Target { api, edge, pid, dialect, tls: false },
            [(socket, inbox)],
            deadline,
        )
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
