//! The directory for data that must survive a restart.

use std::path::PathBuf;

use super::definition::section;
use super::document::{ConfigError, Section};
use super::shape::Text;

const DIRECTORY: Text<PathBuf> = Text {
    expected: "the path of a directory",
    parse: |path| (!path.is_empty()).then(|| path.into()),
};

section! {
    /// The directory for data that must survive a restart.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Data(section) {
        /// The path of the directory. Created if missing. Holds a record of the client ids that may be in
        /// use, so that none is assigned again after a restart, and the files of topics on disk.
        dir: Option<PathBuf> = DIRECTORY, none(
            "none; the record is in systemd's `$STATE_DIRECTORY`, or else in memory",
            "\"/var/lib/gridcast\""
        ), restart;
    }
}

impl Data {
    /// Reads `[data]`.
    pub(super) fn read(root: &Section<'_>) -> Result<Self, ConfigError> {
        Self::read_keys(&root.table("data")?)
    }
}
