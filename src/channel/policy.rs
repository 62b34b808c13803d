//! What is kept of a channel.

/// The bounds of a channel's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelPolicy {
    /// The most messages.
    pub messages: usize,
    /// The most memory for messages, in bytes.
    pub bytes: usize,
    /// How long a message is kept, in milliseconds.
    pub keep_ms: u64,
    /// The number of nodes that hold the history, the home included: at least 1.
    pub copies: usize,
}
