//! The log on standard error.

use super::definition::section;
use super::document::{ConfigError, Section};
use super::shape::{Choice, Switch};

section! {
    /// The log on standard error: its level, its format, and the access log.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Log(section) {
        /// The most detailed level that is logged. `debug` logs each step of each connection.
        level: Level = LEVELS, value(Level::Info);

        /// The format of a line: text for people, or one JSON object for programs.
        format: Format = FORMATS, value(Format::Text), restart;

        /// Whether each connection leaves a line when it ends, at any level: its address, user, route, messages,
        /// bytes, duration and close code. A reload that turns this on applies to connections accepted from then
        /// on.
        access: bool = Switch, value(false);
    }
}

/// The format of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text for people.
    Text,
    /// One JSON object per line, for programs.
    Json,
}

const FORMATS: Choice<Format> = Choice(&[("text", Format::Text), ("json", Format::Json)]);

/// The severity of a log line. A level includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// A failure that ended the node.
    Error,
    /// A problem that an operator should look at.
    Warn,
    /// A change in the state of the node.
    Info,
    /// A detail that helps to find a problem.
    Debug,
}

const LEVELS: Choice<Level> = Choice(&[
    ("error", Level::Error),
    ("warn", Level::Warn),
    ("info", Level::Info),
    ("debug", Level::Debug),
]);

impl Log {
    /// Reads `[log]`.
    pub(super) fn read(root: &Section<'_>) -> Result<Self, ConfigError> {
        Self::read_keys(&root.table("log")?)
    }
}
