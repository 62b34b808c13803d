//! Bounds of what one shard holds for channels with history in a grid.

/// The memory that a shard may have for each channel that it takes part in, as a part of the memory for messages, in bytes.
const BYTES_PER_CHANNEL: usize = 1024;

/// The most of everything that one shard holds for channels with history in a grid. What finds no room is refused with 103,
/// unless another answer is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GridLimits {
    /// Memory of histories, in bytes. The oldest messages of all channels make room for new ones.
    pub history_bytes: usize,
    /// Channels that the shard takes part in: those of its node's subscribers and back ends, those whose home it is, and
    /// those of which it has a copy.
    pub channels: usize,
    /// Claims in progress that repair copies. Others wait for them.
    pub claims: usize,
    /// Publishes of this node that a home has not answered yet.
    pub publishes: usize,
    /// Memory of these publishes, in bytes.
    pub publish_bytes: usize,
    /// Questions of this node's devices that a home has not answered yet.
    pub questions: usize,
    /// Messages that this shard has taken as home, and that not all nodes have delivered yet.
    pub deliveries: usize,
    /// Memory of these messages, in bytes.
    pub delivery_bytes: usize,
    /// Publishes that wait for the delivery of an earlier one with the same idempotency key.
    pub repeated: usize,
    /// Messages that are sent again to the subscribers of a node after a change of the home, in bytes. If there are more,
    /// devices recover.
    pub missed_bytes: usize,
}

impl GridLimits {
    /// The bounds of a shard that may have so many bytes of histories.
    pub fn for_history_bytes(history_bytes: usize) -> Self {
        Self {
            history_bytes,
            channels: (history_bytes / BYTES_PER_CHANNEL).max(1),
            claims: 256,
            publishes: 16 * 1024,
            publish_bytes: 32 << 20,
            questions: 1 << 18,
            deliveries: 8192,
            delivery_bytes: 16 << 20,
            repeated: 1024,
            missed_bytes: 1 << 20,
        }
    }
}
