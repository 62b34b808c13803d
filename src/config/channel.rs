//! Channels with settings of their own.

use super::definition::section;
use super::document::{ConfigError, Section};
use super::route::{PATTERN, is_pattern};
use super::shape::{Text, whole, whole_of};

/// The most messages that are kept of one channel.
const HISTORY_MAX: usize = 1 << 16;

const DAY_S: u64 = 24 * 3600;

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
