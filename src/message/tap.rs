//! Messages about taps. A *tapper* is a back end with one tap or more. Every shard of the grid watches for
//! every tapper.

use super::Ticket;
use crate::protocol::api::Tap;
use crate::protocol::frame::Frame;

/// A message of the shard of a tapper to a shard that watches for it.
#[derive(Clone, Debug)]
pub enum FromTapper {
    /// Begins a tap. Answered with [`ToTapper::Started`] once all connected clients that the tap matches are
    /// watched.
    Start(Ticket, Box<Tap>),
    /// Ends all taps of the tapper.
    Stop,
    /// The tapper's shard has taken this number of events, so that as many more may be sent.
    Taken(u32),
}

/// A message of a shard that watches, to the shard of a tapper.
#[derive(Clone, Debug)]
pub enum ToTapper {
    /// Answers [`FromTapper::Start`].
    Started {
        /// The ticket of the question.
        ticket: Ticket,
        /// Whether the shard watches. If not, it has too many taps.
        is_watching: bool,
    },
    /// Something has happened: an event for the tapper, encoded.
    Event(Frame),
    /// A number of events that were not sent, because there were too many.
    Lost(u64),
}
