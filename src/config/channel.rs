//! Channels with settings of their own.

use super::definition::section;
use super::document::{ConfigError, Section};
use super::route::{PATTERN, is_pattern};
use super::shape::{NAME, Switch, Text, whole, whole_of};

/// The most messages that are kept of one channel.
const HISTORY_MAX: usize = 1 << 16;

const HOUR_S: u64 = 3600;

const DAY_S: u64 = 24 * HOUR_S;

section! {
    /// Channels with settings of their own: all channels whose name matches. The first table that matches a channel
    /// counts. Other channels need no table.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct ChannelConfig(section) {
        /// The name of a channel, or the beginning of names with `*` behind it.
        r#match: String = PATTERN_TEXT, required("a table of channels needs one", "\"room:*\""), restart;

        /// The most messages that are kept of each channel, the latest ones. A device that speaks the device protocol gets
        /// those that it has missed. 0: no message is kept. See `limits.history_bytes` too. Only on a node without
        /// `[mesh]`.
        history: usize = whole(0..=HISTORY_MAX), value(0), restart;

        /// The longest time that a message is kept.
        history_s: u64 = whole_of(" of seconds", 1..=DAY_S), value(300), restart;

        /// Whether devices that speak the device protocol, and are subscribed to a channel, are told which users come
        /// and go there. To be the same on all nodes. See `limits.presence_bytes` too.
        presence: bool = Switch, value(false), restart;

        /// How long a user has no connection in the channel before the user leaves it, so that a reconnect says
        /// nothing.
        presence_grace_s: u64 = whole_of(" of seconds", 0..=HOUR_S), value(3), restart;

        /// The topic that is told of it, too: which users join and leave, and when a channel is occupied and vacated.
        /// Needs `presence`.
        topic: Option<String> = NAME, none("none: only devices are told", "\"presence\""), restart;
    }
}

const PATTERN_TEXT: Text<String> =
    Text { expected: PATTERN, parse: |text| is_pattern(text).then(|| text.to_owned()) };

/// Reads the tables `channel`.
pub(super) fn read_channels(
    root: &Section<'_>,
    has_mesh: bool,
) -> Result<Vec<ChannelConfig>, ConfigError> {
    let mut channels: Vec<ChannelConfig> = Vec::new();
    for section in &root.tables("channel")? {
        let channel = ChannelConfig::read_keys(section)?;
        if channels.iter().any(|other| other.r#match == channel.r#match) {
            let reason = format!("{:?} is the `match` of an earlier table", channel.r#match);
            return Err(section.fault(&["match"], reason));
        }
        if has_mesh && channel.history > 0 {
            let reason = format!(
                "expected 0 with a [mesh], found {}: the nodes of a grid keep no messages of channels yet",
                channel.history
            );
            return Err(section.fault(&["history"], reason));
        }
        channels.push(channel);
    }
    Ok(channels)
}

/// Warnings about channels whose topic is told nothing.
pub(super) fn warnings(channels: &[ChannelConfig]) -> Vec<String> {
    let silent = channels.iter().filter(|channel| channel.topic.is_some() && !channel.presence);
    let warning = |channel: &ChannelConfig| {
        let name = &channel.r#match;
        format!(
            "the channels {name:?} have a topic, which is told nothing without `presence = true`"
        )
    };
    silent.map(warning).collect()
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{parse, refused};

    #[test]
    fn a_channel_keeps_nothing_unless_it_is_asked_to() {
        let config = parse(
            "[[channel]]\nmatch = \"room:*\"\nhistory = 9\nhistory_s = 60\n[[channel]]\nmatch = \"news\"",
        );
        let all = config.channels.iter().map(|of| (&of.r#match[..], of.history, of.history_s));
        assert_eq!(all.collect::<Vec<_>>(), [("room:*", 9, 60), ("news", 0, 300)]);
        assert!(parse("").channels.is_empty());
    }

    #[test]
    fn nobody_is_told_who_is_in_a_channel_unless_it_is_asked_for() {
        let presence = |text: &str| {
            let channel = &parse(&format!("[[channel]]\nmatch = \"a\"\n{text}")).channels[0];
            (channel.presence, channel.presence_grace_s, channel.topic.clone())
        };
        assert_eq!(presence(""), (false, 3, None));
        let told = presence("presence = true\npresence_grace_s = 0\ntopic = \"here\"");
        assert_eq!(told, (true, 0, Some("here".to_owned())));
        let config = parse("[[channel]]\nmatch = \"a\"\ntopic = \"here\"");
        let warning =
            "the channels \"a\" have a topic, which is told nothing without `presence = true`";
        assert_eq!(super::warnings(&config.channels), [warning]);
    }

    #[test]
    fn tables_that_contradict_each_other_are_refused() {
        let at = "gridcast.toml:";
        refused(
            "[[channel]]\nhistory = 1",
            &format!("{at}1: channel.match: missing; a table of channels needs one"),
        );
        let table = "[[channel]]\nmatch = \"a\"\nhistory = 1\n";
        refused(
            &format!("{table}{table}"),
            &format!("{at}5: channel.match: \"a\" is the `match` of an earlier table"),
        );
        refused(
            &format!(
                "{table}[mesh]\nbind = \"127.0.0.1:0\"\nkey = \"0123456789abcdef\"\n[node]\nid = 1"
            ),
            &format!(
                "{at}3: channel.history: expected 0 with a [mesh], found 1: the nodes of a grid keep no messages \
                 of channels yet"
            ),
        );
    }
}
