//! Limits of resources and times.

use std::ops::RangeInclusive;

use super::definition::section;
use super::document::{ConfigError, Section};
use super::shape::{Choice, bytes, limit, milliseconds, whole};
use crate::protocol::http::RequestLimits;

/// Largest message from a client: what the largest conformance tests send.
pub(super) const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// The largest message of a client, of a route or of all.
pub(super) const MESSAGE_BYTES: RangeInclusive<usize> = 1..=MESSAGE_BYTES_MAX;

/// The memory of what waits for one connection, of a route or of all.
pub(super) const OUTBOUND_BYTES: RangeInclusive<usize> = 1024..=1 << 30;

const HOUR_MS: u64 = 3_600_000;

/// The lease of what a node knows of another's interest, and some.
const MESH_ANSWER_MS_MIN: u64 = 1100;

section! {
    /// Limits on the resources that peers may use, and on how long operations may take.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Limits(section) {
        /// The largest message of a client: the bytes of all its fragments together. A route may override
        /// it.
        edge_message_bytes: usize = bytes(MESSAGE_BYTES), value(65_536);

        /// The largest message or request body of a back end.
        api_message_bytes: usize = bytes(1024..=64 << 20), value(1 << 20);

        /// The largest head of an HTTP request.
        head_bytes: usize = bytes(1024..=1 << 20), value(16_384);

        /// The most header fields in the head of an HTTP request.
        headers: usize = whole(1..=RequestLimits::HEADERS_MAX), value(100);

        /// The most memory of the messages that wait for one client or back end. A queued message counts
        /// as its bytes plus 128. Memory is allocated on demand: a client that keeps up takes none. A route
        /// may override it.
        outbound_bytes: usize = bytes(OUTBOUND_BYTES), value(1 << 20);

        /// What happens when a message would exceed the `outbound_bytes` of a client. `close`: the message
        /// counts as failed, and the client is closed with 1013. `drop`: the message counts as failed, and
        /// the client stays connected.
        slow_client: SlowClient = SLOW_CLIENT, value(SlowClient::Close);

        /// The most channels that one client may be subscribed to.
        channels_per_client: usize = whole(1..=1 << 20), value(1024);

        /// The most memory of the messages that channels keep: see `history` of `[[channel]]`. The oldest messages of
        /// all channels are dropped first. Each core has an equal share, and one channel at most an eighth of it. A
        /// message counts as its bytes plus 128, and a channel as 512 bytes and its name.
        history_bytes: usize = bytes(1 << 20..=64 << 30), value(64 << 20), restart;

        /// The most memory for the users in channels with `presence`. Each core has an equal share: half of it for channels
        /// whose home it is, where a user takes about 400 bytes and the name, and half for what its devices know, where
        /// a user takes 96 bytes and the name. Of users for whom there is no room, nobody is told.
        presence_bytes: usize = bytes(1 << 20..=64 << 30), value(64 << 20), restart;

        /// The most clients of this node. 0: as many as file descriptors and memory allow. Memory allows as
        /// many as take half of the budget when idle, at 5 KiB each.
        clients: usize = whole(0..=1 << 24), value(0);

        /// The most connections of the API. File descriptors are reserved for them. 0: a sixteenth of the
        /// file descriptors.
        api_connections: usize = whole(0..=1 << 20), value(0);

        /// The memory budget of the node: connections, outbound queues, incomplete messages, contexts,
        /// channels, topics, and the kernel's memory for an idle connection. At least 64 MiB plus 16 MiB
        /// per core. As memory in use approaches the budget, the node sheds load in a documented order.
        /// 0: three quarters of the memory of the control group, or else of the machine.
        memory_bytes: u64 = bytes(0..=1 << 50), value(0);

        /// The most connections from one address (IPv6: from one /64 network) to all edges. 0: unlimited.
        /// With a limit, each connection costs a message to another shard and back, and each address about
        /// 50 bytes.
        connections_per_address: u32 = limit(), value(0);

        /// The most handshakes per second from one address, to all edges. Bursts of as many are allowed.
        /// 0: unlimited. With a limit, the costs are those of `connections_per_address`, and a refused
        /// handshake ends its connection.
        handshakes_per_address_s: u32 = limit(), value(0);

        /// The most handshakes per second with all clients of the node, so that devices that return together do
        /// not take its CPU from those that are connected. Bursts of as many are allowed. Further connections
        /// are closed at once, before TLS. 0: unlimited.
        handshakes_per_s: u32 = limit(), value(0);

        /// The most messages per second from one client. Bursts of as many are allowed. Reading from a
        /// client that sends more pauses until it may send again. 0: unlimited. A route may override it.
        messages_per_s: u32 = limit(), value(0);

        /// The longest time from accepting a connection to the end of its handshake, and for a request to
        /// arrive completely.
        handshake_ms: u64 = milliseconds(1..=HOUR_MS), value(10_000);

        /// The idle time after which a connection is pinged. Must be less than `idle_ms`. Each ping wakes
        /// the device at the other end.
        ping_ms: u64 = milliseconds(1..=HOUR_MS), value(30_000);

        /// The idle time after which a connection is closed.
        idle_ms: u64 = milliseconds(2..=HOUR_MS), value(60_000);

        /// The longest time that a call waits for other shards and nodes. With a mesh at least 1100, because
        /// a subscribe waits one second for an unresponsive node.
        answer_ms: u64 = milliseconds(1..=2000), value(1500);
    }
}

/// The treatment of a client that does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowClient {
    /// Close it with 1013; the message counts as failed.
    Close,
    /// Drop the message, which counts as failed; the client stays.
    Drop,
}

const SLOW_CLIENT: Choice<SlowClient> =
    Choice(&[("close", SlowClient::Close), ("drop", SlowClient::Drop)]);

impl Limits {
    /// Reads `[limits]`, for a node with so many cores.
    pub(super) fn read(
        root: &Section<'_>,
        has_mesh: bool,
        cores: usize,
    ) -> Result<Self, ConfigError> {
        let section = root.table("limits")?;
        let limits = Self::read_keys(&section)?;
        limits.check_memory(&section, cores)?;
        let Self { answer_ms, ping_ms, idle_ms, .. } = limits;
        if has_mesh && answer_ms < MESH_ANSWER_MS_MIN {
            let reason = format!(
                "expected at least {MESH_ANSWER_MS_MIN} with a mesh, found {answer_ms}: a subscribe \
                 waits a second for a node that is silent"
            );
            return Err(section.fault(&["answer_ms"], reason));
        }
        if ping_ms >= idle_ms {
            let reason =
                format!("expected ping_ms ({ping_ms}) to be less than idle_ms ({idle_ms})");
            return Err(section.fault(&["idle_ms", "ping_ms"], reason));
        }
        Ok(limits)
    }

    fn check_memory(&self, section: &Section<'_>, cores: usize) -> Result<(), ConfigError> {
        let (bytes, least) = (self.memory_bytes, memory_bytes_min(cores));
        if bytes == 0 || bytes >= least {
            return Ok(());
        }
        let reason = format!(
            "expected at least {least} with {cores} cores, or 0 for three quarters of what there is; \
             found {bytes}"
        );
        Err(section.fault(&["memory_bytes"], reason))
    }
}

/// The least budget of a node with so many cores: what its shards take without a client, and as much
/// again.
pub fn memory_bytes_min(cores: usize) -> u64 {
    (64 << 20) + (cores as u64) * (16 << 20)
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{parse, refused, route, user};

    #[test]
    fn a_ping_comes_before_the_idle_time_is_over() {
        refused(
            "[limits]\nping_ms = 5000\nidle_ms = 5000",
            "gridcast.toml:3: limits.idle_ms: expected ping_ms (5000) to be less than idle_ms (5000)",
        );
        refused(
            "[limits]\nping_ms = 70000",
            "gridcast.toml:2: limits.ping_ms: expected ping_ms (70000) to be less than idle_ms (60000)",
        );
    }

    #[test]
    fn a_limit_a_second_is_a_number_that_its_route_may_change() {
        let limited = |own: &str| {
            let text = format!("{}\n[limits]\nmessages_per_s = 5", route(own));
            parse(&text).edges[0].routes[0].messages_per_s
        };
        assert_eq!(
            [limited(""), limited("messages_per_s = 7"), limited("messages_per_s = 0")],
            [5, 7, 0]
        );
        refused(
            "[limits]\nconnections_per_address = 1000001",
            "gridcast.toml:2: limits.connections_per_address: expected a whole number from 0 to \
             1000000, found 1000001",
        );
        refused(
            &user("token = \"t\"\nrequests_per_s = -1"),
            "gridcast.toml:4: api.user.requests_per_s: expected a whole number from 0 to 1000000, \
             found -1",
        );
    }
}
