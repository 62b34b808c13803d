//! The bounds of topics.

use super::Edge;
use super::definition::section;
use super::document::{ConfigError, Section};
use super::limits::MESSAGE_BYTES_MAX;
use super::shape::{Choice, bytes, whole};
use crate::queue::WhenFull;

/// The overhead of a message in a topic: ids, the topic's name, the frame.
const ENVELOPE_BYTES: usize = 4096;

/// The fewest bytes of a topic.
pub(super) const TOPIC_BYTES_MIN: usize = 4096;

const TOPIC_BYTES: usize = 64 << 20;

// So a topic that is too small for its messages is always one whose size was written.
const _: () = assert!(TOPIC_BYTES >= topic_bytes_min(MESSAGE_BYTES_MAX));

pub(super) const WHEN_FULL: Choice<WhenFull> = Choice(&[
    ("hold", WhenFull::Hold),
    ("drop_oldest", WhenFull::DropOldest),
    ("close", WhenFull::Close),
]);

section! {
    /// Bounds of the topics on this node.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Queue(section) {
        /// The most messages waiting in one topic.
        topic_messages: usize = whole(1..=1 << 24), value(65_536);

        /// The most bytes waiting in one topic. A topic needs room for the largest message of the routes
        /// that feed it: twice its `message_bytes`, plus 4096. A topic without consumers fills up.
        topic_bytes: usize = bytes(TOPIC_BYTES_MIN..=64 << 30), value(TOPIC_BYTES);

        /// What happens when a topic is full. `hold`: reading from the clients that feed it pauses until
        /// there is room. `drop_oldest`: the oldest messages are dropped. `close`: the client is closed with
        /// 1013. Each case is counted.
        when_full: WhenFull = WHEN_FULL, value(WhenFull::Hold);

        /// The most topics on the node.
        topics: usize = whole(1..=1 << 20), value(1024);
    }
}

impl Queue {
    /// Reads `[queue]`, for a node with these listeners.
    pub(super) fn read(root: &Section<'_>, edges: &[Edge]) -> Result<Self, ConfigError> {
        let section = root.table("queue")?;
        let queue = Self::read_keys(&section)?;
        let routes = edges.iter().flat_map(|edge| &edge.routes);
        let feeding = routes.filter(|route| route.topic.is_some());
        let Some(message_bytes) = feeding.map(|route| route.message_bytes).max() else {
            return Ok(queue);
        };
        let needed = topic_bytes_min(message_bytes);
        if queue.topic_bytes < needed {
            let reason = format!(
                "expected at least {needed} bytes, room for a route's message of {message_bytes} \
                 bytes; found {}",
                queue.topic_bytes
            );
            return Err(section.fault(&["topic_bytes"], reason));
        }
        Ok(queue)
    }
}

/// Room for one message: base64 makes four bytes of three, JSON escapes seldom make more than two
/// of one.
pub(super) const fn topic_bytes_min(message_bytes: usize) -> usize {
    2 * message_bytes + ENVELOPE_BYTES
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{parse, refused, route};

    #[test]
    fn a_topic_has_room_for_the_largest_message_of_its_routes() {
        let queue = |bytes| format!("{}\n[queue]\ntopic_bytes = {bytes}", route("topic = \"a\""));
        assert_eq!(parse(&queue(135_168)).queue.topic_bytes, 135_168);
        refused(
            &queue(135_167),
            "gridcast.toml:6: queue.topic_bytes: expected at least 135168 bytes, room for a route's \
             message of 65536 bytes; found 135167",
        );
    }

    #[test]
    fn a_route_without_a_topic_needs_no_room_in_one() {
        let text = format!("{}\n[queue]\ntopic_bytes = 4096", route("handler = \"echo\""));
        assert_eq!(parse(&text).queue.topic_bytes, 4096);
    }
}
