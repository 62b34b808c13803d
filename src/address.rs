//! Addresses of nodes, shards and clients. A client's id is its address.

pub mod listen;
pub mod networks;
pub mod placement;
pub mod remote;

use std::fmt;
use std::str::FromStr;

/// The start of the time in client ids: 2010-11-04 01:42:54.657 UTC, in Unix milliseconds. It is the epoch
/// of Twitter's snowflake ids, which the protocol uses.
pub const EPOCH_MS: u64 = 1_288_834_974_657;

const NODE_BITS: u32 = 10;
const LOW_BITS: u32 = 12;

/// The largest number of shards of a node. An id has 12 bits for shard and sequence, and at least 4 of them
/// (16,000 new clients per second and shard) are for the sequence.
pub const SHARDS_MAX: usize = 256;

/// Milliseconds by which the ids of a shard may run ahead of the clock while clients arrive faster than
/// the sequence has numbers. Beyond it new clients are refused.
pub const AHEAD_MS_MAX: u64 = 1000;

/// The last time that the 41 bits of an id can hold, in Unix milliseconds: in the year 2080.
pub const UNIX_MS_MAX: u64 = EPOCH_MS + (1 << 41) - 1;

/// A node of the grid, 0 to 1023.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u16);

impl NodeId {
    /// The node with this number, if it is at most 1023.
    pub const fn new(number: u16) -> Option<Self> {
        if number < 1 << NODE_BITS { Some(Self(number)) } else { None }
    }

    /// The number of the node, 0 to 1023.
    pub fn number(self) -> u16 {
        self.0
    }
}

/// When a node was started, in Unix milliseconds. Distinguishes the runs of nodes with the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation(pub u64);

/// A shard of one node, 0 to 255.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u8);

impl ShardId {
    /// The index of the shard on its node.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A shard of the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardAddress {
    /// The node.
    pub node: NodeId,
    /// The shard of the node.
    pub shard: ShardId,
}

/// The id of a client: 41 bits of milliseconds since [`EPOCH_MS`], 10 bits of node, and 12 bits that shard
/// and sequence share as defined by the node's [`IdLayout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(u64);

/// The bit that no client's id has.
const OF_NO_CLIENT: u64 = 1 << 63;

impl ClientId {
    /// The id with this value. A value from outside may name no client.
    pub fn from_value(value: u64) -> Self {
        Self(value)
    }

    /// A value in place of an id, for events that no client has sent. Events with the same number keep their
    /// order. Ids of clients have 63 bits, so the value is never the id of a client.
    pub fn of_no_client(number: u64) -> Self {
        Self(number | OF_NO_CLIENT)
    }

    /// Whether the value was made by [`Self::of_no_client`].
    pub fn is_of_no_client(self) -> bool {
        self.0 & OF_NO_CLIENT != 0
    }

    /// The id as a number.
    pub fn value(self) -> u64 {
        self.0
    }

    /// The node of the client.
    pub fn node(self) -> NodeId {
        NodeId((self.0 >> LOW_BITS) as u16 & ((1 << NODE_BITS) - 1))
    }

    fn low(self) -> u64 {
        self.0 & ((1 << LOW_BITS) - 1)
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ClientId {
    type Err = ();

    /// Reads 1 to 20 decimal digits, without a sign, up to 2^64 - 1.
    fn from_str(text: &str) -> Result<Self, ()> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(());
        }
        text.parse().map(Self).map_err(|_| ())
    }
}

/// The split of the 12 low bits of a node's ids between shard and sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdLayout {
    shards: u16,
    sequence_bits: u32,
}

impl IdLayout {
    /// The layout of a node with this many shards, 1 to [`SHARDS_MAX`].
    pub fn new(shards: usize) -> Self {
        assert!((1..=SHARDS_MAX).contains(&shards), "a node has 1 to 256 shards");
        let shard_bits = shards.next_power_of_two().trailing_zeros();
        Self { shards: shards as u16, sequence_bits: LOW_BITS - shard_bits }
    }

    /// The shard of a client of this node; `None` if the id names none.
    pub fn shard_of(self, client: ClientId) -> Option<ShardId> {
        let shard = client.low() >> self.sequence_bits;
        (shard < u64::from(self.shards)).then_some(ShardId(shard as u8))
    }
}

/// Generates the ids of one shard, each once. The time in them follows a clock that never steps back. After
/// a restart ids differ from earlier ones if the node starts after the end of its last run (see
/// `runtime::ids`).
#[derive(Debug)]
pub struct IdSource {
    prefix: u64,
    sequence_bits: u32,
    // The time in ids when the node's clock is at 0.
    first_ms: u64,
    last_ms: u64,
    sequence: u64,
}

impl IdSource {
    /// The source of a shard. The node's clock is at 0 at `first_unix_ms`.
    pub fn new(node: NodeId, shard: ShardId, layout: IdLayout, first_unix_ms: u64) -> Self {
        let prefix = u64::from(node.0) << LOW_BITS | u64::from(shard.0) << layout.sequence_bits;
        let first_ms = first_unix_ms.saturating_sub(EPOCH_MS);
        let sequence_bits = layout.sequence_bits;
        Self { prefix, sequence_bits, first_ms, last_ms: first_ms, sequence: 0 }
    }

    /// The next id, at this time of the node's clock. `None`: ids are [`AHEAD_MS_MAX`] ahead of the clock, and
    /// the client is to be refused.
    pub fn next(&mut self, now_ms: u64) -> Option<ClientId> {
        let now = self.first_ms + now_ms;
        if now > self.last_ms {
            (self.last_ms, self.sequence) = (now, 0);
        } else if self.sequence == 1 << self.sequence_bits {
            if self.last_ms >= now + AHEAD_MS_MAX {
                return None;
            }
            (self.last_ms, self.sequence) = (self.last_ms + 1, 0);
        }
        let id = self.last_ms << (NODE_BITS + LOW_BITS) | self.prefix | self.sequence;
        self.sequence += 1;
        Some(ClientId(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn source(shard: u8, layout: IdLayout) -> IdSource {
        IdSource::new(NodeId(7), ShardId(shard), layout, EPOCH_MS)
    }

    #[test]
    fn an_id_names_its_node_and_shard() {
        for shards in [1, 2, 3, 128, 256] {
            let layout = IdLayout::new(shards);
            for shard in [0, (shards - 1) as u8] {
                let id = source(shard, layout).next(5).unwrap();
                assert_eq!((id.node(), layout.shard_of(id)), (NodeId(7), Some(ShardId(shard))));
            }
        }
    }

    #[test]
    fn an_id_of_a_shard_that_is_not_there_names_no_shard() {
        let id = source(3, IdLayout::new(4)).next(0).unwrap();
        assert_eq!(IdLayout::new(3).shard_of(id), None);
    }

    #[test]
    fn ids_never_repeat_though_time_stands_still() {
        let mut source = source(1, IdLayout::new(2));
        let mut seen = HashSet::new();
        for step in 0..20_000u64 {
            assert!(seen.insert(source.next(1000 + step / 10_000).unwrap()));
        }
    }

    #[test]
    fn ids_a_second_ahead_of_time_are_refused() {
        let mut source = source(0, IdLayout::new(256));
        let given = (0..100_000).take_while(|_| source.next(0).is_some()).count();
        assert_eq!(given, 16 * 1001);
        assert!(source.next(1000).is_some());
    }

    #[test]
    fn only_plain_decimal_digits_are_an_id() {
        assert_eq!("1463786910324359168".parse(), Ok(ClientId(1_463_786_910_324_359_168)));
        for bad in ["", "+1", "-1", " 1", "0x1", "1e3", "18446744073709551616"] {
            assert_eq!(bad.parse::<ClientId>(), Err(()), "{bad}");
        }
    }
}
