//! What is kept on disk.

use std::path::PathBuf;

use super::definition::section;
use super::document::{ConfigError, Section};
use super::shape::Text;

const DIRECTORY: Text<PathBuf> = Text {
    expected: "the path of a directory",
    parse: |path| (!path.is_empty()).then(|| path.into()),
};

section! {
    /// What is kept on disk.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Data(section) {
        /// A directory, which is made if it is not there. Keeps a record of the client ids that may be in
        /// use, so that none is given out twice over a restart.
        dir: Option<PathBuf> = DIRECTORY, none(
            "none: the record is in systemd's `$STATE_DIRECTORY`, or else in memory",
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
