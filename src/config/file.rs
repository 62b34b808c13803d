//! Files that the configuration names: the shapes of their paths, and what tells their contents apart.

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::document::{ConfigError, Section};
use super::read_bounded;
use super::shape::ValueShape;

/// The path of a PEM file.
pub(super) struct PemFile;

impl ValueShape for PemFile {
    type Value = PathBuf;

    const IS_FILE: bool = true;

    fn expected(&self) -> String {
        "the path of a PEM file".to_owned()
    }

    fn read(&self, section: &Section<'_>, key: &str) -> Result<Option<PathBuf>, ConfigError> {
        let parse = |path: &str| (!path.is_empty()).then(|| path.into());
        section.read_text(key, &self.expected(), parse)
    }
}

/// The path of a file that holds a secret. No message shows the path: it may be the secret itself, put into
/// the wrong key.
pub(super) struct SecretFile;

impl ValueShape for SecretFile {
    type Value = String;

    const IS_SECRET: bool = true;
    const IS_FILE: bool = true;

    fn expected(&self) -> String {
        "the path of a file".to_owned()
    }

    fn read(&self, section: &Section<'_>, key: &str) -> Result<Option<String>, ConfigError> {
        Ok(section.secret(key).map(str::to_owned))
    }
}

/// A hash of the contents of a file when it was read.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Contents([u8; 32]);

impl Contents {
    /// Reads a file. `None` if it cannot be read.
    pub(super) fn read(file: &Path) -> Option<Self> {
        let text = read_bounded(file).ok()?;
        Some(Self(Sha256::digest(text).into()))
    }
}
