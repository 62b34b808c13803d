//! What is logged, and how.

use super::definition::section;
use super::document::{ConfigError, Section};
use super::shape::Choice;

section! {
    /// What goes to standard error.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Log(section) {
        /// How much is logged: lines of this level and of those before it. `debug` has a line for each
        /// step of each connection.
        level: Level = LEVELS, value(Level::Info);

        /// How a line is written: for people, or as one JSON object for programs.
        format: Format = FORMATS, value(Format::Text), restart;
    }
}

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line, for programs.
    Json,
}

const FORMATS: Choice<Format> = Choice(&[("text", Format::Text), ("json", Format::Json)]);

/// How much is logged: this level and those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What ended the node.
    Error,
    /// What someone should look at.
    Warn,
    /// What changes in the life of the node.
    Info,
    /// What helps to find a fault.
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
