//! Attacks: peers that take more than their share, each in its own way.
//!
//! An attack is bounded in connections, bytes and time. It runs against the servers that its [`Setup`] describes,
//! while a probe measures the delays of well-behaved peers.

mod access;
mod greedy;
mod holders;
mod queues;
mod scene;
mod sockets;
mod turns;

use anyhow::Result;
use clap::ValueEnum;
use tokio::time::{Instant, sleep_until};

pub use greedy::FanOut;
pub use scene::Scene;

use crate::raw;
use crate::server::Setup;

/// An attack on a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Attack {
    /// No attack: the baseline
    Nobody,
    /// A back end that publishes over HTTP without waiting for answers, and reads them
    Pipeline,
    /// A back end that publishes over HTTP and never reads the answers
    PipelineUnread,
    /// A back end that publishes without pause to a channel of 5,000 clients
    Fanout,
    /// One client that never reads its messages of 16 KiB
    SlowReader,
    /// 100 clients that never read, each with its own channel
    SlowReaders,
    /// 2,000 handshakes at once
    Connects,
    /// 5,000 clients that leave at once
    CrowdLeaves,
    /// 300 requests of back ends that send a byte every 50 ms
    HalfRequests,
    /// 300 handshakes of clients that send a byte every 50 ms
    HalfHandshakes,
    /// A client that sends messages of 1 KiB to a topic without a consumer
    Flood,
    /// A client that sends messages of 64 KiB in fragments of one byte
    Fragments,
    /// A client that sends pings without pause and reads the pongs
    OnePings,
    /// A client that sends pings without pause and never reads the pongs
    OnePingsUnread,
    /// 100 sockets with six pipelined handshakes each, of 1,023 channels, one of them twice
    Channels,
    /// Eight back ends that subscribe clients to 1,023 long names and set contexts of 1 MiB of repeats
    Calls,
    /// Eight back ends that pop six times, with 1 MiB of names each, most of them repeats
    PopTopics,
    /// 1,000 sockets that send empty pings without pause
    Pings,
    /// 1,000 sockets that send pipelined requests for unknown paths
    NotFound,
    /// 20 sockets that have deflate bombs of 16 MiB echoed, compressed
    Bombs,
    /// 3,000 clients with 1,024 channels each that leave at once
    Leave,
    /// 1,500 sockets that never read: pongs, echoes, and publishes to a channel of their own
    Unread,
    /// 1,500 messages that are never completed, while pings are answered
    Unfinished,
    /// 1,000 clients with a context of 60 KiB
    Contexts,
    /// 400 clients with 1,024 channels of their own each
    Subscriptions,
    /// Four clients that never read, each with 600,000 empty messages
    EmptyFrames,
    /// 1,000 requests with a body of 1 MB and without credentials
    Strangers,
    /// 200 wrong passwords per second, some pipelined, from the address of the right ones
    Guesses,
    /// 200 wrong passwords per second, each from another address
    Verifications,
    /// API connections that exhaust the descriptors
    Descriptors,
    /// 400 calls with an id of 1 MB each, for a client of a frozen node
    Ids,
    /// 1,500 clients of a full topic, each with a message that grows to 4,600 times its size
    FullTopic,
    /// 500 consumers that join and leave a topic with 7,500 waiting clients
    Churn,
}

impl Attack {
    /// The attacks that need no special server and take a few seconds.
    pub const GREEDY: [Self; 14] = [
        Self::Nobody,
        Self::Pipeline,
        Self::PipelineUnread,
        Self::Fanout,
        Self::SlowReader,
        Self::SlowReaders,
        Self::Connects,
        Self::CrowdLeaves,
        Self::HalfRequests,
        Self::HalfHandshakes,
        Self::Flood,
        Self::Fragments,
        Self::OnePings,
        Self::OnePingsUnread,
    ];

    /// A description of the attack.
    pub fn title(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Pipeline => "publishes pipelined without end",
            Self::PipelineUnread => "the same, answers never read",
            Self::Fanout => "fan-out without pause to 5,000",
            Self::SlowReader => "1 client that never reads",
            Self::SlowReaders => "100 clients that never read",
            Self::Connects => "2,000 handshakes at once",
            Self::CrowdLeaves => "5,000 clients leave at once",
            Self::HalfRequests => "300 half-open requests",
            Self::HalfHandshakes => "300 half-open handshakes",
            Self::Flood => "messages to a topic nobody consumes",
            Self::Fragments => "64 KiB in fragments of 1 byte",
            Self::OnePings => "pings without pause",
            Self::OnePingsUnread => "the same, pongs never read",
            Self::Channels => "channels: 600 handshakes, 1,023 names",
            Self::Calls => "calls: 96 with many names",
            Self::PopTopics => "pop-topics: 48 of 1 MiB of names",
            Self::Pings => "pings: 1,000 sockets of empty pings",
            Self::NotFound => "not-found: 1,000 sockets of 404s",
            Self::Bombs => "bombs: 20 sockets echo deflate bombs",
            Self::Leave => "leave: 3,000 with 1,024 channels each",
            Self::Unread => "unread: 1,500 sockets never read",
            Self::Unfinished => "unfinished: 1,500 begun messages",
            Self::Contexts => "contexts: 1,000 of 60 KiB",
            Self::Subscriptions => "subscriptions: 400 × 1,024 channels",
            Self::EmptyFrames => "empty-frames: 4 clients never read",
            Self::Strangers => "strangers: 1,000 bodies of 1 MB",
            Self::Guesses => "guesses: 200/s from one address",
            Self::Verifications => "verifications: 200/s from many",
            Self::Descriptors => "descriptors: API connections take all",
            Self::Ids => "ids: of 1 MB, to a frozen node",
            Self::FullTopic => "full-topic: 1,500 messages that grow",
            Self::Churn => "churn: 500 consumers, 7,500 waiting",
        }
    }

    /// The servers that the attack needs.
    pub fn setup(self) -> Setup {
        match self {
            Self::Channels => Setup { config: turns::CLOSED_ROUTE, ..Setup::default() },
            Self::Bombs => Setup { config: turns::COMPRESSED_ECHO, ..Setup::default() },
            Self::Unread => Setup { config: holders::SMALL_ECHO, ..Setup::default() },
            Self::FullTopic => Setup { config: queues::COMPRESSED_TOPIC, ..Setup::default() },
            Self::Strangers | Self::Guesses | Self::Verifications => access::setup(),
            Self::Descriptors => {
                Setup { descriptors: Some(access::DESCRIPTORS), ..Setup::default() }
            }
            Self::Ids => Setup { nodes: 2, ..Setup::default() },
            _ => Setup::default(),
        }
    }

    /// Runs the attack, for the time of `scene` if it does not end by itself. Returns the outcome.
    ///
    /// # Errors
    /// The attack could not start, because the server refused the attackers.
    pub async fn run(self, scene: &Scene) -> Result<String> {
        let (target, time) = (scene.target(), scene.time);
        let (api, edge) = (target.api, target.edge);
        match self {
            Self::Nobody => {
                sleep_until(Instant::now() + time).await;
                Ok("–".into())
            }
            Self::Pipeline => greedy::pipeline(api, time, true).await,
            Self::PipelineUnread => greedy::pipeline(api, time, false).await,
            Self::Fanout => greedy::fan_out(target, 5_000, time).await,
            Self::SlowReader => greedy::slow_readers(api, edge, 1, time).await,
            Self::SlowReaders => greedy::slow_readers(api, edge, 100, time).await,
            Self::Connects => greedy::connects(edge, 2_000, time).await,
            Self::CrowdLeaves => greedy::leaves(edge, 5_000, time).await,
            Self::HalfRequests => greedy::half_open(api, "POST /v1/mesh/publish", 300, time).await,
            Self::HalfHandshakes => greedy::half_open(edge, "GET /ws", 300, time).await,
            Self::Flood => {
                let client = sockets::open(edge, "/ws", true).await?;
                let message = raw::frame(raw::TEXT, &[b'x'; 1024]);
                greedy::flood_with(client, &message, time, false).await
            }
            Self::Fragments => {
                let client = sockets::open(edge, "/echo", true).await?;
                let message = raw::in_fragments(&[b'x'; 65_536]);
                greedy::flood_with(client, &message, time, true).await
            }
            Self::OnePings | Self::OnePingsUnread => {
                let reads = self == Self::OnePings;
                let client = sockets::open(edge, "/ws", reads).await?;
                let ping = raw::frame(raw::PING, &[b'x'; 125]);
                greedy::flood_with(client, &ping, time, reads).await
            }
            Self::Channels => turns::channels(scene).await,
            Self::Calls => turns::calls(scene).await,
            Self::PopTopics => turns::pop_topics(scene).await,
            Self::Pings => turns::pings(scene).await,
            Self::NotFound => turns::not_found(scene).await,
            Self::Bombs => turns::bombs(scene).await,
            Self::Leave => turns::leave(scene).await,
            Self::Unread => holders::unread(scene).await,
            Self::Unfinished => holders::unfinished(scene).await,
            Self::Contexts => holders::contexts(scene).await,
            Self::Subscriptions => holders::subscriptions(scene).await,
            Self::EmptyFrames => holders::empty_frames(scene).await,
            Self::Ids => holders::ids(scene).await,
            Self::Strangers => access::strangers(scene).await,
            Self::Guesses => access::guesses(scene).await,
            Self::Verifications => access::verifications(scene).await,
            Self::Descriptors => access::descriptors(scene).await,
            Self::FullTopic => queues::full_topic(scene).await,
            Self::Churn => queues::churn(scene).await,
        }
    }
}
