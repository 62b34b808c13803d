//! The plan of a run, made from a seed: the number of shards, the limits, the load.

use std::num::NonZeroU32;
use std::sync::Arc;

use gridcast::address::NodeId;
use gridcast::protocol::http;
use gridcast::queue::{Bounds, WhenFull};
use gridcast::shard::rate::Rate;
use gridcast::shard::settings::{
    AddressLimits, ApiSettings, EdgeSettings, LimitSettings, QueueSettings, RouteSettings, Settings,
};

use crate::random::Random;
use crate::shard_value;

/// The longest message that a client may send.
pub const MESSAGE_BYTES: usize = 600;

/// The calls of a back end without an answer, at most.
pub const CALLS_WAITING_MAX: usize = 300;

/// One run.
pub struct Plan {
    pub settings: Arc<Settings>,
    /// Rounds in which peers come, ask, stall and break off.
    pub rounds: usize,
    /// Peers that come at most.
    pub peers: usize,
    /// Subscribers of one channel on the first shard, above what one slice of a walk reaches.
    pub crowd: usize,
    /// How long a message between shards is on its way, at most.
    pub delay_ms_max: usize,
    /// Consumers that are there at a time, come, pop, unpop and go all the while. None in most seeds.
    pub fleet: usize,
    /// Whether every other client compresses. One seed in five, and nothing else of a run depends on
    /// it: seeds that found a bug stay what they were.
    pub compresses: bool,
    /// The memory budget for what connections hold. Three seeds in thirteen, where queues are wide.
    pub memory_bytes: Option<u64>,
    /// Whether peers may end other than at the end.
    pub is_calm: bool,
    /// Whether the node goes down at the end, before its peers do.
    pub drains: bool,
}

impl Plan {
    /// `rare` decides on limits that are not always there: so a seed means what it meant without them.
    pub fn new(seed: u64, random: &mut Random, rare: &mut Random) -> Self {
        // Seeds that found a bug have other remainders, and stay what they were.
        let has_fleet = matches!(seed % 11, 1 | 5 | 8);
        let has_budget = matches!(seed % 13, 0 | 1 | 4);
        let shards = random.between(1, 4);
        let crowd = if random.one_in(12) { random.between(1025, 2200) } else { 0 };
        let mut settings = settings(random, rare, shards, crowd > 0);
        let rounds = random.between(100, 600);
        // So many back ends would publish to a crowd faster than a run's few turns write.
        let are_many = has_fleet && crowd == 0;
        let peers = random.between(6, 40) + if are_many { 200 } else { 0 };
        if has_fleet {
            // A turn takes some twenty messages of another shard here, and thousands in a real node.
            settings.limits.answer_ms = 60_000;
        }
        if crowd > 0 {
            settings.limits.answer_ms = crowd_answer_ms(peers, crowd);
        }
        let memory_bytes = has_budget.then(|| {
            widen(&mut settings);
            // At rest peers take half of it at most.
            let at_rest = 2 * PEER_BYTES * (peers + SMALL_PEER_PART * crowd / 8);
            at_rest as u64 + [20_000, 60_000, 200_000][(seed % 3) as usize]
        });
        Self {
            settings: Arc::new(settings),
            rounds,
            peers,
            memory_bytes,
            crowd,
            fleet: if has_fleet { 40 + (seed % 160) as usize } else { 0 },
            compresses: seed % 5 == 1,
            delay_ms_max: *random.pick(&[1, 10, 120]),
            is_calm: random.one_in(4),
            drains: random.one_in(2),
        }
    }
}

/// Returns the time in which every publish to a crowd is answered, in milliseconds, if each peer is a
/// back end with as many calls as may wait, of which one in ten is such a publish.
///
/// A run has two hundred turns a second, and a real node thousands. Where outbound queues are short,
/// each publish has to be written before the next one, and a turn makes 32 of these writes: in the
/// mean five per millisecond. A call that is never answered is found however long this time is,
/// because its back end still waits when the node has come to rest.
fn crowd_answer_ms(peers: usize, crowd: usize) -> u64 {
    let publishes = peers * CALLS_WAITING_MAX / 10;
    (publishes * crowd / 5) as u64
}

/// The most memory of a peer at rest: its channels and its context. One of a crowd has one channel.
const PEER_BYTES: usize = 3500;
const SMALL_PEER_PART: usize = 3;

/// Lets what waits for slow peers grow until the budget is short.
fn widen(settings: &mut Settings) {
    settings.limits.outbound_bytes = 100_000;
    for route in &mut settings.edges[0].routes {
        *route = Arc::new(RouteSettings { outbound_bytes: 100_000, ..RouteSettings::clone(route) });
    }
}

/// Returns the settings of the shards of a node.
pub fn settings(
    random: &mut Random,
    rare: &mut Random,
    shards: usize,
    is_crowded: bool,
) -> Settings {
    let http = http::RequestLimits { head_bytes: 4096, headers: 50, body_bytes: 4096 };
    // The open events of a crowd would take ages through a narrow topic.
    let topic_messages = *random.pick(if is_crowded { &[64, 1000] } else { &[1, 3, 16, 64, 1000] });
    let bytes = if is_crowded { 200_000 } else { *random.pick(&[4000, 9000, 60_000]) };
    let outbound_bytes = *random.pick(&[700, 3000, 100_000]);
    // What is held back for it comes within the time in which all comes to rest.
    let messages = Rate::new(*rare.pick(&[0, 0, 0, 30, 60]));
    let base = shard_value::settings();
    Settings {
        node: NodeId::new(7).expect("7 is a node"),
        shards,
        api: ApiSettings { http, ..base.api },
        edges: vec![EdgeSettings {
            proxy: None,
            port: 6790,
            routes: routes(outbound_bytes, messages),
        }],
        queue: QueueSettings {
            bounds: Bounds { messages: topic_messages, bytes },
            when_full: *random.pick(&[
                WhenFull::Hold,
                WhenFull::Hold,
                WhenFull::Hold,
                WhenFull::DropOldest,
                WhenFull::Close,
            ]),
            topics: 64,
            ..base.queue
        },
        limits: LimitSettings {
            edge_http: http::RequestLimits { body_bytes: 0, ..http },
            api_message_bytes: 4096,
            outbound_bytes: match *random.pick(&[1500, 6000, 100_000]) {
                // The window of its consumers would be as narrow.
                1500 if is_crowded => 6000,
                bytes => bytes,
            },
            close_slow_clients: random.one_in(2),
            channels_per_client: random.between(2, 6),
            addresses: AddressLimits { connections: connections(rare), handshakes: None },
            ping_ms: 30_000,
            idle_ms: 60_000,
            ..base.limits
        },
        ..base
    }
}

/// Returns the limit of connections per address: the clients come from a few.
fn connections(rare: &mut Random) -> Option<NonZeroU32> {
    let max = rare.between(1, 4) as u32;
    rare.one_in(4).then(|| NonZeroU32::new(max))?
}

fn routes(outbound_bytes: usize, messages: Option<Rate>) -> Vec<Arc<RouteSettings>> {
    let route = |path: &str, topic: &str| RouteSettings {
        path: path.into(),
        topic: Some(topic.into()),
        tells_open: true,
        tells_message: true,
        tells_close: true,
        subscribe: vec!["*".into()],
        message_bytes: MESSAGE_BYTES,
        compression: true,
        outbound_bytes,
        messages,
        ..RouteSettings::default()
    };
    vec![
        Arc::new(route("/talk", "messages")),
        Arc::new(RouteSettings { hold_until: Some("user".into()), ..route("/held", "messages") }),
        Arc::new(RouteSettings { echo: true, ..route("/echo", "doors") }),
        Arc::new(RouteSettings { tells_message: false, ..route("/quiet", "doors") }),
    ]
}
