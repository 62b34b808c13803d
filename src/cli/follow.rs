//! Follows a stream of events until the user ends it: over one connection after another, if the server
//! restarts.

use std::time::Duration;

use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};

use super::connection::ApiConnection;
use super::explain::{ApiError, call_error, unreachable};
use super::failure::Failure;
use super::message::Incoming;
use super::options::Server;
use super::printer::Printer;
use super::random::random_fraction;
use super::signals::Signals;
use super::terminal::remark;

/// The time after which a silent server is pinged, and after which it counts as lost. A server pings a
/// silent client every 30 s by default.
const PING_AFTER: Duration = Duration::from_secs(20);
const LOST_AFTER: Duration = Duration::from_secs(60);

/// How long the answer to the first request, and to the last one, may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The pauses between attempts to connect again: the first one, and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A stream of events: what to ask for, and what to do with each event.
pub(super) trait EventStream {
    /// The method that starts the events.
    const METHOD: &'static str;

    /// Begins on a new connection. Returns the params of the method that starts the events.
    fn start(&mut self) -> Value;

    /// Handles the result of that method.
    fn started(&mut self, result: &RawValue);

    /// Handles an event. Queues at most one line.
    fn event(&mut self, params: &RawValue, printer: &mut Printer);

    /// Handles that this number of lines was written since the start of the command. Returns a method to
    /// call, with its params, if one is due.
    fn printed(&mut self, lines: u64) -> Option<(&'static str, Value)>;

    /// Whether all wanted events have been queued.
    fn is_complete(&self) -> bool;

    /// The method that ends the events before the connection is closed. `None`: events on their way are
    /// not lost, or do not matter.
    fn stop(&self) -> Option<&'static str>;
}

/// Why a connection is not followed any more.
enum End {
    /// All wanted events were printed.
    Complete,
    /// The connection is lost.
    Lost(Failure),
    /// The command cannot go on.
    Failed(Failure),
}

/// Prints the events of a subscription until it is complete or the command is interrupted. Connects again
/// when the connection is lost, unless `reconnects` is false. The first connection has to succeed.
pub(super) async fn follow<S: EventStream>(
    server: &Server,
    subscription: &mut S,
    reconnects: bool,
) -> Result<(), Failure> {
    let mut signals = Signals::new().map_err(|error| Failure::Failed(error.to_string()))?;
    let mut printer = Printer::start()?;
    let mut connection = tokio::select! {
        connection = ApiConnection::open(server) => connection?,
        signal = signals.next() => return Err(Failure::Interrupted(signal)),
    };
    loop {
        let mut session = FollowSession::new(connection, subscription, &mut printer);
        let end = session.run(&mut signals).await;
        session.connection.close().await;
        match end {
            End::Complete => return Ok(()),
            End::Failed(failure) => return Err(failure),
            End::Lost(failure) if !reconnects => return Err(failure),
            End::Lost(failure) => remark(failure.message().unwrap_or_default()),
        }
        connection = tokio::select! {
            connection = reconnect(server) => connection?,
            signal = signals.next() => return Err(Failure::Interrupted(signal)),
        };
        remark(&format!("{}: connected again", server.address));
    }
}

/// Tries to connect, with growing pauses, for as long as the server cannot be reached.
async fn reconnect(server: &Server) -> Result<ApiConnection, Failure> {
    let mut pause = PAUSE_MIN;
    let mut said = None;
    loop {
        sleep(jittered(pause)).await;
        match ApiConnection::open(server).await {
            Err(Failure::Unreachable(why)) => {
                // The same reason again would tell nothing new.
                if said.as_ref() != Some(&why) {
                    remark(&format!("{why}; trying again"));
                    said = Some(why);
                }
            }
            connection => return connection,
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// A random time around a pause, so that clients of a server that restarts do not come back all at once.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + random_fraction())
}

/// The events of one connection.
struct FollowSession<'a, S> {
    connection: ApiConnection,
    subscription: &'a mut S,
    printer: &'a mut Printer,
    phase: FollowPhase,
    // When the answer of a phase that waits for one has to be there.
    deadline: Instant,
    last_heard: Instant,
    last_ping: Instant,
}

/// The answer or message that a session waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FollowPhase {
    /// The answer to the request with this id, which starts the events.
    Starting(u64),
    /// Events.
    Following,
    /// The answer to the request with this id, which ends the events after a signal. Events that were sent
    /// before it are printed.
    Leaving(u64, u8),
    /// The last lines are being printed after a signal.
    Draining(u8),
}

impl<'a, S: EventStream> FollowSession<'a, S> {
    fn new(connection: ApiConnection, subscription: &'a mut S, printer: &'a mut Printer) -> Self {
        let now = Instant::now();
        Self {
            connection,
            subscription,
            printer,
            phase: FollowPhase::Following,
            deadline: now + ANSWER_MAX,
            last_heard: now,
            last_ping: now,
        }
    }

    async fn run(&mut self, signals: &mut Signals) -> End {
        let params = self.subscription.start();
        match self.connection.send(S::METHOD, &params).await {
            Ok(id) => self.phase = FollowPhase::Starting(id),
            Err(failure) => return End::Lost(failure),
        }
        loop {
            if let Err(end) = self.step(signals).await {
                return end;
            }
        }
    }

    async fn step(&mut self, signals: &mut Signals) -> Result<(), End> {
        if self.printer.is_idle() {
            match self.phase {
                FollowPhase::Draining(signal) => {
                    return Err(End::Failed(Failure::Interrupted(signal)));
                }
                _ if self.subscription.is_complete() => return Err(End::Complete),
                _ => {}
            }
        }
        let reads = self.printer.has_room() && !matches!(self.phase, FollowPhase::Draining(_));
        if !reads {
            // A server that is not read from is not silent.
            self.last_heard = Instant::now();
        }
        let wake = self.next_wake();
        tokio::select! {
            lines = self.printer.printed() => self.printed(lines.map_err(End::Failed)?).await,
            incoming = self.connection.next(), if reads => {
                self.last_heard = Instant::now();
                let incoming = incoming.map_err(|failure| self.lost(failure))?;
                self.incoming(incoming)
            }
            signal = signals.next() => self.leave(signal).await,
            () = sleep_until(wake) => self.wake().await,
        }
    }

    /// Calls what is due after lines have been printed, such as an acknowledgement.
    async fn printed(&mut self, lines: u64) -> Result<(), End> {
        if let Some((method, params)) = self.subscription.printed(lines) {
            let sent = self.connection.send(method, &params).await;
            sent.map_err(|failure| self.lost(failure))?;
        }
        Ok(())
    }

    fn incoming(&mut self, incoming: Incoming) -> Result<(), End> {
        match incoming {
            Incoming::Event { params } => self.subscription.event(&params, self.printer),
            Incoming::Answer { id, result } => self.answer(id, result)?,
            Incoming::Other => {}
        }
        Ok(())
    }

    fn answer(
        &mut self,
        id: Option<u64>,
        result: Result<Box<RawValue>, ApiError>,
    ) -> Result<(), End> {
        if let FollowPhase::Leaving(leaving, signal) = self.phase
            && id == Some(leaving)
        {
            self.phase = FollowPhase::Draining(signal);
            return Ok(());
        }
        let is_start =
            matches!(self.phase, FollowPhase::Starting(starting) if id == Some(starting));
        let method = if is_start { S::METHOD } else { "a request" };
        let failed = |error| End::Failed(call_error(self.connection.server(), method, &error));
        let result = result.map_err(failed)?;
        if is_start {
            self.phase = FollowPhase::Following;
            self.subscription.started(&result);
        }
        Ok(())
    }

    /// Ends the events after a signal, so that none is lost on the way. A second signal ends the command at
    /// once.
    async fn leave(&mut self, signal: u8) -> Result<(), End> {
        if matches!(self.phase, FollowPhase::Leaving(..) | FollowPhase::Draining(_)) {
            return Err(End::Failed(Failure::Interrupted(signal)));
        }
        self.deadline = Instant::now() + ANSWER_MAX;
        self.phase = match self.subscription.stop() {
            None => FollowPhase::Draining(signal),
            Some(method) => {
                let sent = self.connection.send(method, &json!({})).await;
                let id = sent.map_err(|_| End::Failed(Failure::Interrupted(signal)))?;
                FollowPhase::Leaving(id, signal)
            }
        };
        Ok(())
    }

    /// The failure of a lost connection. After a signal that is the end.
    fn lost(&self, failure: Failure) -> End {
        match self.phase {
            FollowPhase::Leaving(_, signal) | FollowPhase::Draining(signal) => {
                End::Failed(Failure::Interrupted(signal))
            }
            _ => End::Lost(failure),
        }
    }

    /// When the session has to look at the time.
    fn next_wake(&self) -> Instant {
        let next =
            (self.last_heard.max(self.last_ping) + PING_AFTER).min(self.last_heard + LOST_AFTER);
        match self.phase {
            FollowPhase::Following => next,
            _ => next.min(self.deadline),
        }
    }

    async fn wake(&mut self) -> Result<(), End> {
        let now = Instant::now();
        let is_late = self.phase != FollowPhase::Following && now >= self.deadline;
        if is_late || now >= self.last_heard + LOST_AFTER {
            let server = self.connection.server();
            return Err(self.lost(unreachable(server, "the server does not answer any more")));
        }
        if now >= self.last_heard.max(self.last_ping) + PING_AFTER {
            self.last_ping = now;
            self.connection.ping().await.map_err(|failure| self.lost(failure))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_differ_by_chance() {
        let pauses: Vec<Duration> = (0..100).map(|_| jittered(PAUSE_MIN)).collect();
        assert!(pauses.iter().all(|pause| (PAUSE_MIN / 2..PAUSE_MIN * 3 / 2).contains(pause)));
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    }
}
