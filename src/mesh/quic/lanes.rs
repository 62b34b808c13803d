//! What comes and goes on one link: a task that listens, and one for each lane in each direction.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use quinn::{Connection, ConnectionError, ReadError, RecvStream, WriteError};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};

use super::links::{Ears, Heard};
use super::words;
use crate::mesh::link::{Event, LANES, Lane, LinkId};

/// Bytes taken from a stream at a time. What one packet brought is seldom more.
const CHUNK_BYTES: usize = 64 * 1024;

/// Pieces given to a stream at a time.
const PIECES: usize = 64;

/// Hears all that comes on a link until it is lost, and then says why it was.
pub(super) async fn listen(link: LinkId, connection: Connection, ears: Ears) {
    let mut readers = JoinSet::new();
    let why = match receive(link, &connection, &ears, &mut readers).await {
        Ok(lost) => words::why_lost(&lost),
        Err(violation) => {
            connection.close(0u8.into(), violation.as_bytes());
            violation
        }
    };
    // What came before the end is heard before it: the peer's last words may tell more.
    while let Some(ended) = readers.join_next().await {
        // Which of them was first to see that the link is lost or was broken does not matter.
        let _ = unwound(ended);
    }
    // Without anybody to hear it the node has ended.
    let _ = ears.control.send(Heard::Ended(link, why)).await;
}

/// Until the connection is lost.
///
/// # Errors
/// The peer does not keep to the lanes: how.
async fn receive(
    link: LinkId,
    connection: &Connection,
    ears: &Ears,
    readers: &mut JoinSet<Result<(), String>>,
) -> Result<ConnectionError, String> {
    let taken = Arc::new(Taken::default());
    loop {
        tokio::select! {
            biased;
            stream = connection.accept_uni() => match stream {
                Ok(stream) => {
                    let reading = read(link, connection.clone(), stream, taken.clone(), ears.clone());
                    readers.spawn(reading);
                }
                Err(lost) => return Ok(lost),
            },
            Some(ended) = readers.join_next() => unwound(ended)?,
            datagram = connection.read_datagram() => match datagram {
                Ok(bytes) => {
                    let event = Event::Datagram(link, bytes);
                    let _ = ears.control.send(Heard::Event(event)).await;
                }
                Err(lost) => return Ok(lost),
            },
        }
    }
}

/// What a task gave; a panic in it goes on here.
pub(super) fn unwound<T>(ended: Result<T, JoinError>) -> T {
    match ended {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Which lanes of a link the peer has opened, by number: each may be once.
struct Taken([AtomicBool; LANES]);

impl Default for Taken {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicBool::new(false)))
    }
}

impl Taken {
    /// The lane with this number.
    fn take(&self, number: u16) -> Result<Lane, String> {
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
    taken: Arc<Taken>,
    ears: Ears,
) -> Result<(), String> {
    let mut number = [0; 2];
    if stream.read_exact(&mut number).await.is_err() {
        // It was ended, or lost, before it began.
        return Ok(());
    }
    let lane = taken.take(u16::from_le_bytes(number))?;
    loop {
        match stream.read_chunk(CHUNK_BYTES, true).await {
            Ok(Some(chunk)) => {
                let heard = Heard::Event(Event::Received(link, lane, chunk.bytes));
                match lane {
                    Lane::Control => drop(ears.control.send(heard).await),
                    _ => hand_on(&connection, &ears.data, heard).await,
                }
            }
            Ok(None) | Err(ReadError::ConnectionLost(_)) => return Ok(()),
            Err(error) => return Err(format!("{lane:?} broke off: {error}")),
        }
    }
}

/// Waits for room, but not beyond the end of the link: what is lost then was not acknowledged.
async fn hand_on(connection: &Connection, data: &mpsc::Sender<Heard>, heard: Heard) {
    if let Err(TrySendError::Full(heard)) = data.try_send(heard) {
        tokio::select! {
            _ = data.send(heard) => {}
            _ = connection.closed() => {}
        }
    }
}

/// The way to a lane of the peer's.
pub(super) struct Writer {
    // Its bound is the mesh's: it keeps what a peer has not acknowledged, and takes no more for it
    // than it may keep, so no more than that waits here. (QUIC's own buffer is its send window.)
    queue: mpsc::UnboundedSender<Bytes>,
    finished: oneshot::Receiver<Infallible>,
}

impl Writer {
    /// A writer, and the work that is to be done for it.
    pub(super) fn new(connection: Connection, lane: Lane) -> (Self, impl Future<Output = ()>) {
        let (queue, pieces) = mpsc::unbounded_channel();
        let (finishing, finished) = oneshot::channel::<Infallible>();
        let work = async move {
            // If the connection is lost, who listens says so.
            let _ = write(&connection, lane, pieces).await;
            drop(finishing);
        };
        (Self { queue, finished }, work)
    }

    pub(super) fn send(&self, bytes: Bytes) {
        // Nobody takes it if the connection is lost.
        let _ = self.queue.send(bytes);
    }

    /// Ends the lane; done when the peer has got all that was sent on it, or is gone.
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
    // Acknowledgements and signs of life go before a backlog of messages.
    let _ = stream.set_priority(i32::from(lane == Lane::Control));
    stream.write_all(&lane.number().to_le_bytes()).await?;
    let mut some = Vec::with_capacity(PIECES);
    while pieces.recv_many(&mut some, PIECES).await > 0 {
        stream.write_all_chunks(&mut some).await?;
        some.clear();
    }
    let _ = stream.finish();
    // Until the peer has all of it.
    let _ = stream.stopped().await;
    Ok(())
}
