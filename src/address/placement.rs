//! Placement by hash: which shard of a node is the home of a topic or of an address.
//!
//! Every shard and every node must come to the same answer, so the hash has no seed. Whoever picks
//! names that collide makes one shard busy, or makes publishes to them ask shards in vain.

use std::net::IpAddr;

use super::ShardId;

/// The shard that is the home of a topic, on a node with so many shards.
pub fn home_of_topic(topic: &str, shards: usize) -> ShardId {
    shard_by(topic.as_bytes(), shards)
}

/// The shard that is the home of an address, on a node with so many shards.
pub fn home_of_address(address: IpAddr, shards: usize) -> ShardId {
    match address {
        IpAddr::V4(address) => shard_by(&address.octets(), shards),
        IpAddr::V6(address) => shard_by(&address.octets(), shards),
    }
}

/// The hash of a name: 64-bit FNV-1a.
pub fn hash(name: &[u8]) -> u64 {
    name.iter().fold(0xCBF2_9CE4_8422_2325u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

fn shard_by(name: &[u8], shards: usize) -> ShardId {
    ShardId(((hash(name) >> 32) % shards as u64) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(hash(b""), 0xCBF2_9CE4_8422_2325);
        assert_eq!(hash(b"a"), 0xAF63_DC4C_8601_EC8C);
        assert_eq!(hash(b"foobar"), 0x8594_4171_F739_67E8);
    }

    #[test]
    fn one_shard_alone_is_home_to_all() {
        assert_eq!(home_of_topic("orders", 1), ShardId(0));
        assert_eq!(home_of_address(IpAddr::from([10, 0, 0, 1]), 1), ShardId(0));
    }
}
