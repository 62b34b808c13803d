//! Topics with settings of their own.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::definition::section;
use super::document::{ConfigError, Section};
use super::queue::{TOPIC_BYTES_MIN, WHEN_FULL, topic_bytes_min};
use super::shape::{Choice, List, NAME, Switch, bytes, whole, whole_of};
use super::{Data, Edge, Queue};
use crate::protocol::sink::{Sink, encoded_name};
use crate::queue::WhenFull;
use crate::queue::topic::ACK_S_DEFAULT;

/// The most groups of one topic, besides the default group. Each costs the topic's bookkeeping once more.
const GROUPS_MAX: usize = 16;

const SECONDS_MAX: u64 = 30 * 24 * 3600;

section! {
    /// A topic with settings of its own. Other topics need no table: they come into being when they are used.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct TopicConfig(section, queue: &Queue) {
        /// The name of the topic.
        name: String = NAME, required("a topic needs one", "\"orders\"");

        /// Where the events are. `memory`: they end with the process. `disk`: in files in `data.dir`, which is needed
        /// then. An event that was reported stored survives a crash of the machine.
        store: Store = STORE, value(Store::Memory), restart;

        /// Consumer groups besides the default group, at most 16. Every group gets every event.
        groups: Vec<String> = GROUPS, value(Vec::new()), restart;

        /// Whether consumers that name no group form a group too, the default group. Without such a consumer,
        /// the events for it fill the topic.
        default_group: Option<bool> = Switch,
            none("true without a `[[sink]]` of the topic, false with one", "true");

        /// The time that a consumer has to acknowledge an event. Then the event goes to another consumer. Also
        /// the limit in topics without a table. 0: any time.
        ack_s: u64 = whole_of(" of seconds", 0..=SECONDS_MAX), value(ACK_S_DEFAULT);

        /// How often an event is handed out without being acknowledged before it goes to the topic `dead`, which
        /// is needed then. 0: any number of times.
        tries: u16 = whole(0..=1000), value(0);

        /// The topic that takes events which were handed out too often. It may not have a `dead` of its own.
        /// While it is full, they wait in this topic.
        dead: Option<String> = NAME, none("none", "\"orders.dead\"");

        /// The age at which an event that waits is dropped and counted. 0: any age.
        max_age_s: u64 = whole_of(" of seconds", 0..=SECONDS_MAX), value(0);

        /// The most messages waiting in the topic.
        messages: usize = whole(1..=1 << 24),
            derived(queue.topic_messages, "`queue.topic_messages`", "65536");

        /// The most bytes waiting in the topic. See `queue.topic_bytes`.
        bytes: usize = bytes(TOPIC_BYTES_MIN..=64 << 30),
            derived(queue.topic_bytes, "`queue.topic_bytes`", "67108864");

        /// What happens when the topic is full. See `queue.when_full`.
        when_full: WhenFull = WHEN_FULL, derived(queue.when_full, "`queue.when_full`", "\"hold\"");
    }
}

/// Where the events of a topic are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// In memory.
    Memory,
    /// In files.
    Disk,
}

const STORE: Choice<Store> = Choice(&[("memory", Store::Memory), ("disk", Store::Disk)]);

const GROUPS: List<String> = List {
    expected: NAME.expected,
    parse: |text| (NAME.parse)(text).ok_or_else(|| NAME.expected.to_owned()),
    empty: None,
};

/// Reads the tables `topic`.
pub(super) fn read_topics(
    root: &Section<'_>,
    edges: &[Edge],
    queue: &Queue,
    sinks: &[Arc<Sink>],
    data: &Data,
) -> Result<Vec<TopicConfig>, ConfigError> {
    let sections = root.tables("topic")?;
    let mut topics: Vec<TopicConfig> = Vec::new();
    for section in &sections {
        let topic = TopicConfig::read_keys(section, queue)?;
        check_alone(section, &topic, edges)?;
        if topic.store == Store::Disk {
            check_on_disk(section, &topic, data)?;
        }
        let has_sink = sinks.iter().any(|sink| *sink.topic == topic.name);
        if topic.default_group == Some(false) && topic.groups.is_empty() && !has_sink {
            let reason = "the topic would have no group: add `groups`, or a `[[sink]]`";
            return Err(section.fault(&["default_group"], reason));
        }
        if topics.iter().any(|other| other.name == topic.name) {
            let reason = format!("{:?} is the name of an earlier topic", topic.name);
            return Err(section.fault(&["name"], reason));
        }
        topics.push(topic);
    }
    for (section, topic) in sections.iter().zip(&topics) {
        check_dead(section, topic, &topics)?;
    }
    Ok(topics)
}

fn check_alone(
    section: &Section<'_>,
    topic: &TopicConfig,
    edges: &[Edge],
) -> Result<(), ConfigError> {
    if topic.groups.len() > GROUPS_MAX {
        return Err(section.fault(&["groups"], format!("expected at most {GROUPS_MAX} groups")));
    }
    let mut names = BTreeSet::new();
    if let Some(group) = topic.groups.iter().find(|&group| !names.insert(group)) {
        return Err(section.fault(&["groups"], format!("{group:?} is there twice")));
    }
    if topic.tries > 0 && topic.dead.is_none() {
        return Err(section.fault(&["tries"], "needs `dead`, the topic that takes the events"));
    }
    let routes = edges.iter().flat_map(|edge| &edge.routes);
    let feeding = routes.filter(|route| route.topic.as_ref() == Some(&topic.name));
    let needed = feeding.map(|route| topic_bytes_min(route.message_bytes)).max().unwrap_or(0);
    if topic.bytes < needed {
        let reason = format!(
            "expected at least {needed} bytes, room for the largest message of the routes that feed it; \
             found {}",
            topic.bytes
        );
        return Err(section.fault(&["bytes"], reason));
    }
    Ok(())
}

/// Refuses what a topic on disk cannot do.
fn check_on_disk(
    section: &Section<'_>,
    topic: &TopicConfig,
    data: &Data,
) -> Result<(), ConfigError> {
    if data.dir.is_none() {
        return Err(section.fault(&["store"], "needs `data.dir`, the directory for the files"));
    }
    if encoded_name(&topic.name).len() > FILE_NAME_MAX {
        let reason = format!(
            "the name of a topic on disk is the name of a directory: expected at most {FILE_NAME_MAX} bytes, \
             where every byte but letters, digits, -, _ and ~ counts three times"
        );
        return Err(section.fault(&["name"], reason));
    }
    if let Some(group) = topic.groups.iter().find(|group| group.starts_with(SINK_GROUP)) {
        let reason = format!("{group:?}: names with {SINK_GROUP:?} are those of sinks on disk");
        return Err(section.fault(&["groups"], reason));
    }
    Ok(())
}

/// The beginning of the names by which the files of a topic know its sinks.
const SINK_GROUP: &str = "sink:";

/// The longest name of a directory that every file system takes, with some reserve.
const FILE_NAME_MAX: usize = 240;

/// Refuses a dead topic that has one itself. So events never go round in a circle.
fn check_dead(
    section: &Section<'_>,
    topic: &TopicConfig,
    all: &[TopicConfig],
) -> Result<(), ConfigError> {
    let Some(dead) = &topic.dead else { return Ok(()) };
    if *dead == topic.name {
        return Err(section.fault(&["dead"], "expected another topic than this one"));
    }
    let has_one = |other: &TopicConfig| other.name == *dead && other.dead.is_some();
    match all.iter().any(has_one) {
        true => {
            let reason = format!("{dead:?} has a `dead` of its own; a dead topic must not");
            Err(section.fault(&["dead"], reason))
        }
        false => Ok(()),
    }
}

/// Warnings about topics that lose events which their settings promise to keep.
pub(super) fn warnings(topics: &[TopicConfig]) -> impl Iterator<Item = String> {
    let is_on_disk = |topic: &&TopicConfig| topic.store == Store::Disk;
    topics.iter().filter(is_on_disk).filter_map(move |topic| {
        let dead = topic.dead.as_ref()?;
        let is_kept = topics.iter().filter(is_on_disk).any(|other| other.name == *dead);
        (!is_kept).then(|| {
            format!(
                "the topic {:?} is on disk and its dead topic {dead:?} is in memory: events that go there end \
                 with the process",
                topic.name
            )
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{parse, refused, route};

    #[test]
    fn a_topic_has_the_settings_of_the_queue_unless_it_has_its_own() {
        let config = parse(
            "[queue]\ntopic_messages = 9\nwhen_full = \"close\"\n[[topic]]\nname = \"a\"\n\
             groups = [\"x\", \"y\"]\ntries = 3\ndead = \"a.dead\"\nmessages = 7",
        );
        let topic = &config.topics[0];
        assert_eq!((topic.messages, topic.when_full, topic.bytes), (7, WhenFull::Close, 64 << 20));
        assert_eq!((topic.ack_s, topic.tries, topic.max_age_s), (30, 3, 0));
        assert_eq!(
            (&topic.groups[..], topic.dead.as_deref()),
            (&["x".into(), "y".into()][..], Some("a.dead"))
        );
    }

    #[test]
    fn what_a_topic_on_disk_cannot_do_is_refused() {
        let at = "gridcast.toml:";
        let on_disk = |keys: &str| {
            format!("[data]\ndir = \"/d\"\n[[topic]]\nname = \"a\"\nstore = \"disk\"\n{keys}")
        };
        assert_eq!(parse(&on_disk("groups = [\"x\"]")).topics[0].store, Store::Disk);
        refused(
            "[[topic]]\nname = \"a\"\nstore = \"disk\"",
            &format!("{at}3: topic.store: needs `data.dir`, the directory for the files"),
        );
        let all = "when_full = \"close\"\nmax_age_s = 9\ntries = 2\ndead = \"b\"";
        let mut config = parse(&on_disk(all));
        let warning = "the topic \"a\" is on disk and its dead topic \"b\" is in memory: events that go there \
                       end with the process";
        assert!(
            config.warnings(0).iter().any(|other| other == warning),
            "{:?}",
            config.warnings(0)
        );
        let topic = config.topics.remove(0);
        assert_eq!((topic.when_full, topic.max_age_s, topic.tries), (WhenFull::Close, 9, 2));
        let is_dead_topic = "[[topic]]\nname = \"b\"\ntries = 1\ndead = \"a\"";
        assert_eq!(parse(&on_disk(is_dead_topic)).topics[1].dead.as_deref(), Some("a"));
        refused(
            &on_disk("groups = [\"sink:x\"]"),
            &format!(
                "{at}6: topic.groups: \"sink:x\": names with \"sink:\" are those of sinks on disk"
            ),
        );
        let long = on_disk("").replace("\"a\"", &format!("\"{}\"", "ä".repeat(41)));
        let reason = "topic.name: the name of a topic on disk is the name of a directory: expected at most \
                      240 bytes, where every byte but letters, digits, -, _ and ~ counts three times";
        refused(&long, &format!("{at}4: {reason}"));
    }

    #[test]
    fn topics_that_contradict_themselves_or_others_are_refused() {
        let at = "gridcast.toml:";
        refused("[[topic]]\nack_s = 1", &format!("{at}1: topic.name: missing; a topic needs one"));
        let twice = "[[topic]]\nname = \"a\"\n[[topic]]\nname = \"a\"";
        refused(twice, &format!("{at}4: topic.name: \"a\" is the name of an earlier topic"));
        let topic = |keys: &str| format!("[[topic]]\nname = \"a\"\n{keys}");
        refused(
            &topic("groups = [\"x\", \"x\"]"),
            &format!("{at}3: topic.groups: \"x\" is there twice"),
        );
        refused(
            &topic("tries = 2"),
            &format!("{at}3: topic.tries: needs `dead`, the topic that takes the events"),
        );
        refused(
            &topic("default_group = false"),
            &format!(
                "{at}3: topic.default_group: the topic would have no group: add `groups`, or a `[[sink]]`"
            ),
        );
        refused(
            &topic("dead = \"a\""),
            &format!("{at}3: topic.dead: expected another topic than this one"),
        );
        refused(
            &topic("dead = \"b\"\n[[topic]]\nname = \"b\"\ndead = \"a\""),
            &format!("{at}3: topic.dead: \"b\" has a `dead` of its own; a dead topic must not"),
        );
        refused(
            &format!("{}\n[[topic]]\nname = \"a\"\nbytes = 4096", route("topic = \"a\"")),
            &format!(
                "{at}7: topic.bytes: expected at least 135168 bytes, room for the largest message of the \
                 routes that feed it; found 4096"
            ),
        );
    }
}
