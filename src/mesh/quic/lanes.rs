//! The tasks of a link: one that listens, and one for each lane in each direction.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use quinn::{Connection, ConnectionError, ReadError, RecvStream, WriteError};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};

use super::reasons;
use super::reports::{Reporter, TaskReport};
use crate::mesh::link::{LANES, Lane, LinkEvent, LinkId};

/// Bytes taken from a stream at a time. A packet rarely has more.
const CHUNK_BYTES: usize = 64 * 1024;

/// Pieces passed to a stream at a time.
const PIECES: usize = 64;

/// Reports all that arrives on a link until it is lost, and then why it was lost.
pub(super) async fn listen(link: LinkId, connection: Connection, reporter: Reporter) {
    let mut readers = JoinSet::new();
    let why = match receive(link, &connection, &reporter, &mut readers).await {
        Ok(lost) => reasons::why_lost(&lost),
        Err(violation) => {
            connection.close(0u8.into(), violation.as_bytes());
            violation
        }
    };
    // Data that arrived before the end is reported before it: the last control message may say more.
    while let Some(ended) = readers.join_next().await {
        // Each reader fails when the link is lost. The first reason was kept above.
        let _ = unwound(ended);
    }
    // Without a receiver the node has ended.
    let _ = reporter.control.send(TaskReport::Ended(link, why)).await;
}

/// Accepts lanes and datagrams until the connection is lost.
///
/// # Errors
/// The peer misuses a lane: how.
async fn receive(
    link: LinkId,
    connection: &Connection,
    reporter: &Reporter,
    readers: &mut JoinSet<Result<(), String>>,
) -> Result<ConnectionError, String> {
    let opened = Arc::new(OpenedLanes::default());
    loop {
        tokio::select! {
            biased;
            stream = connection.accept_uni() => match stream {
                Ok(stream) => {
                    let reading = read(link, connection.clone(), stream, opened.clone(), reporter.clone());
                    readers.spawn(reading);
                }
                Err(lost) => return Ok(lost),
            },
            Some(ended) = readers.join_next() => unwound(ended)?,
            datagram = connection.read_datagram() => match datagram {
                Ok(bytes) => {
                    let event = LinkEvent::Datagram(link, bytes);
                    let _ = reporter.control.send(TaskReport::Event(event)).await;
                }
                Err(lost) => return Ok(lost),
            },
        }
    }
}

/// The result of a task. A panic of the task continues here.
pub(super) fn unwound<T>(ended: Result<T, JoinError>) -> T {
    match ended {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Which lanes of a link the peer has opened, by number. Each may be opened once.
struct OpenedLanes([AtomicBool; LANES]);

impl Default for OpenedLanes {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicBool::new(false)))
    }
}

impl OpenedLanes {
    /// Notes that the lane with this number is opened.
    fn open(&self, number: u16) -> Result<Lane, String> {
        let lane = Lane::from_number(number).ok_or_else(|| format!("there is no lane {number}"))?;
        match self.0[usize::from(number)].swap(true, Ordering::Relaxed) {
            true => Err(format!("lane {number} was opened twice")),
            false => Ok(lane),
        }
    }
}

async fn read(
    link: LinkId,
    connection: Connection,
    mut stream: RecvStream,
    opened: Arc<OpenedLanes>,
    reporter: Reporter,
) -> Result<(), String> {
    let mut number = [0; 2];
    if stream.read_exact(&mut number).await.is_err() {
        // The stream ended, or the link was lost, before the number arrived.
        return Ok(());
    }
    let lane = opened.open(u16::from_le_bytes(number))?;
    loop {
        match stream.read_chunk(CHUNK_BYTES, true).await {
            Ok(Some(chunk)) => {
                let report = TaskReport::Event(LinkEvent::Received(link, lane, chunk.bytes));
                match lane {
                    Lane::Control => drop(reporter.control.send(report).await),
                    _ => report_data(&connection, &reporter.data, report).await,
                }
            }
            Ok(None) | Err(ReadError::ConnectionLost(_)) => return Ok(()),
            Err(error) => return Err(format!("{lane:?} broke off: {error}")),
        }
    }
}

/// Waits for room, at most until the link is lost. Data that is dropped then was not acknowledged.
async fn report_data(connection: &Connection, data: &mpsc::Sender<TaskReport>, report: TaskReport) {
    if let Err(TrySendError::Full(report)) = data.try_send(report) {
        tokio::select! {
            _ = data.send(report) => {}
            _ = connection.closed() => {}
        }
    }
}

/// Sends on one lane.
pub(super) struct Writer {
    // Bounded by the session, which keeps what the peer has not acknowledged and ends beyond its limit: no
    // more than that waits here. On the control lane the bound is the interest of this node, and what it
    // announces until the session with a peer that answers no pings ends. (QUIC's own buffer is its send window.)
    queue: mpsc::UnboundedSender<Bytes>,
    finished: oneshot::Receiver<Infallible>,
}

impl Writer {
    /// A writer, and the work of its task.
    pub(super) fn new(connection: Connection, lane: Lane) -> (Self, impl Future<Output = ()>) {
        let (queue, pieces) = mpsc::unbounded_channel();
        let (finishing, finished) = oneshot::channel::<Infallible>();
        let work = async move {
            // A lost connection is reported by the task that listens.
            let _ = write(&connection, lane, pieces).await;
            drop(finishing);
        };
        (Self { queue, finished }, work)
    }

    pub(super) fn send(&self, bytes: Bytes) {
        // Without a receiver the connection is lost.
        let _ = self.queue.send(bytes);
    }

    /// Ends the lane. Returns when the peer has received all data, or is gone.
    pub(super) async fn finish(self) {
        drop(self.queue);
        let _ = self.finished.await;
    }
}

async fn write(
    connection: &Connection,
    lane: Lane,
    mut pieces: mpsc::UnboundedReceiver<Bytes>,
) -> Result<(), WriteError> {
    let mut stream = connection.open_uni().await?;
    // Acknowledgements and pings go before a backlog of messages.
    let _ = stream.set_priority(i32::from(lane == Lane::Control));
    stream.write_all(&lane.number().to_le_bytes()).await?;
    let mut some = Vec::with_capacity(PIECES);
    while pieces.recv_many(&mut some, PIECES).await > 0 {
        stream.write_all_chunks(&mut some).await?;
        some.clear();
    }
    let _ = stream.finish();
    // Returns when the peer has received everything.
    let _ = stream.stopped().await;
    Ok(())
}
