//! Placement by hash: which shard of a node is the home of a topic or of an address.
//!
//! Every shard and every node must come to the same answer, so the hash has no seed. Whoever picks
//! names that collide makes one shard busy, or makes publishes to them ask shards in vain.
//!
//! The placement is part of the protocol between nodes: with another one, a node would look for topics on
//! the wrong shards of its peers. Whoever changes it raises the version of that protocol
//! (`mesh::wire::VERSIONS`).

use std::net::IpAddr;

use super::{NodeId, ShardId};

/// The shard that is the home of a topic, on a node with `shards` shards.
pub fn home_of_topic(topic: &str, shards: usize) -> ShardId {
    shard_by(topic.as_bytes(), shards)
}

/// The shard that is the home of an address, on a node with `shards` shards.
pub fn home_of_address(address: IpAddr, shards: usize) -> ShardId {
    match address {
        IpAddr::V4(address) => shard_by(&address.octets(), shards),
        IpAddr::V6(address) => shard_by(&address.octets(), shards),
    }
}

/// The shard that is the home of a channel, on a node with `shards` shards.
pub fn home_of_channel(channel: &str, shards: usize) -> ShardId {
    shard_by(channel.as_bytes(), shards)
}

/// The score of a node for a channel. The node with the highest one should be the home of the channel (rendezvous
/// hashing): when a node comes or goes, only its own channels move.
pub fn channel_score(node: NodeId, channel: &str) -> u64 {
    mix(hash(channel.as_bytes()) ^ mix(u64::from(node.number()) + 1))
}

/// Spreads a number evenly over all numbers: the finalizer of splitmix64. Every bit of the number changes every bit of
/// the result.
pub fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ value >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ value >> 31
}

/// The hash of a name: 64-bit FNV-1a. The last bytes of a name change the low bits and those above bit
/// 40, and hardly those between.
pub fn hash(name: &[u8]) -> u64 {
    name.iter().fold(0xCBF2_9CE4_8422_2325u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

fn shard_by(name: &[u8], shards: usize) -> ShardId {
    let hash = hash(name);
    // Multiplying by the golden ratio (Knuth, volume 3, section 6.4) carries every bit into the high half.
    let mixed = (hash ^ hash >> 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    ShardId(((mixed >> 32) % shards as u64) as u8)
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

    /// Expected homes on nodes of 3, 8 and 64 shards.
    type Homes = [u8; 3];

    fn homes(home: impl Fn(usize) -> ShardId) -> Homes {
        [3, 8, 64].map(|shards| home(shards).0)
    }

    /// Fails when the placement changes. Then the version of the mesh protocol has to change, too: nodes
    /// with different placements must refuse each other.
    #[test]
    fn the_placement_is_the_same_in_every_build() {
        let long = "x".repeat(255);
        let topics: [(&str, Homes); 7] = [
            ("messages", [1, 3, 43]),
            ("orders", [0, 0, 16]),
            ("orders-1", [2, 5, 53]),
            ("orders-2", [1, 1, 33]),
            ("a", [2, 4, 28]),
            ("日本", [1, 0, 32]),
            (&long, [1, 0, 32]),
        ];
        for (topic, expected) in topics {
            assert_eq!(homes(|shards| home_of_topic(topic, shards)), expected, "{topic}");
        }
        let addresses: [(&str, Homes); 9] = [
            ("10.0.0.1", [2, 6, 22]),
            ("10.0.0.2", [1, 1, 49]),
            ("192.168.7.9", [1, 2, 26]),
            ("255.255.255.255", [0, 3, 19]),
            ("2001:db8::1", [1, 0, 32]),
            ("2001:db8:0:1::", [1, 6, 22]),
            ("2001:db8:ffff:ffff::", [0, 5, 21]),
            ("::1", [0, 2, 34]),
            ("fe80::1", [2, 1, 25]),
        ];
        for (text, expected) in addresses {
            let address = text.parse().expect("an IP address");
            assert_eq!(homes(|shards| home_of_address(address, shards)), expected, "{text}");
        }
    }

    #[test]
    fn channels_are_spread_over_nodes_and_only_those_of_a_lost_node_move() {
        let nodes: Vec<NodeId> = (1..=5).filter_map(NodeId::new).collect();
        let home = |nodes: &[NodeId], channel: &str| {
            *nodes.iter().max_by_key(|node| channel_score(**node, channel)).expect("a node")
        };
        let mut counts = [0; 6];
        for number in 0..10_000 {
            let channel = format!("room:{number}");
            let all = home(&nodes, &channel);
            counts[usize::from(all.number())] += 1;
            let left = home(&nodes[..4], &channel);
            assert!(left == all || all == nodes[4], "{channel} moves without need");
        }
        assert!(counts[1..].iter().all(|count| (1800..2200).contains(count)), "{counts:?}");
    }

    /// The number of names at home on the fullest shard, in percent of an even share.
    fn fullest(shards: usize, homes: impl ExactSizeIterator<Item = ShardId>) -> usize {
        let names = homes.len();
        let mut counts = vec![0; shards];
        homes.for_each(|home| counts[home.index()] += 1);
        counts.iter().max().expect("there are shards") * shards * 100 / names
    }

    #[test]
    fn names_that_differ_only_at_their_end_are_spread_over_all_shards() {
        for shards in [2, 3, 4, 8, 16, 64] {
            let topic = |number: u32| home_of_topic(&format!("orders-{number}"), shards);
            let ip = |number: u32| IpAddr::from((0x0A00_0000 + number).to_be_bytes());
            let wide_ip = |number: u32| {
                IpAddr::from(((0x2001_0DB8 << 96) + (u128::from(number) << 64)).to_be_bytes())
            };
            let addresses = [&ip as &dyn Fn(u32) -> IpAddr, &wide_ip];
            assert!(fullest(shards, (0..10_000).map(topic)) < 150, "{shards} shards");
            for address in addresses {
                let home = |number| home_of_address(address(number), shards);
                assert!(fullest(shards, (0..10_000).map(home)) < 150, "{shards} shards");
            }
        }
    }

    #[test]
    fn one_shard_alone_is_home_to_all() {
        assert_eq!(home_of_topic("orders", 1), ShardId(0));
        assert_eq!(home_of_address(IpAddr::from([10, 0, 0, 1]), 1), ShardId(0));
    }
}
