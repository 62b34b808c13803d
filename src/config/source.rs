//! Where a configuration comes from, so that it can be read again.

use std::path::PathBuf;

use super::{Config, ConfigError, DEVELOPMENT, WrittenSettings, read_file};

/// A file, or none, and the variables that override it.
#[derive(Clone, Debug)]
pub struct Source {
    file: Option<PathBuf>,
    environment: Vec<(String, String)>,
    available: Vec<usize>,
}

/// A checked configuration with the settings that it was made from.
#[derive(Clone)]
pub struct Loaded {
    /// The checked values.
    pub config: Config,
    /// The settings, for a comparison with those of another reading.
    pub written: WrittenSettings,
}

impl Source {
    /// Creates a source. Without a file it is the built-in configuration: listeners on loopback, the
    /// routes `/ws` and `/echo`. Variables whose names do not begin with `GRIDCAST_` are ignored.
    /// `available` are the numbers of the CPUs that the process may use: at least one.
    pub fn new(
        file: Option<PathBuf>,
        environment: impl Iterator<Item = (String, String)>,
        available: &[usize],
    ) -> Self {
        Self { file, environment: environment.collect(), available: available.to_vec() }
    }

    /// Reads and checks the configuration, and the files that it names.
    ///
    /// # Errors
    /// A file cannot be read, or a setting is not valid. The error names the place.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        let Self { file, environment, available } = self;
        match file {
            Some(file) => {
                let text = read_file(file)?;
                Config::load(&text, &file.display().to_string(), environment, available)
            }
            None => Config::load(DEVELOPMENT, "built-in configuration", environment, available),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_without_a_file_is_the_built_in_configuration() {
        let variables = [("GRIDCAST_LIMITS_PING_MS".to_owned(), "20000".to_owned())];
        let source = Source::new(None, variables.into_iter(), &[0]);
        let Loaded { config, written } = source.load().expect("a valid configuration");
        assert_eq!(config.limits.ping_ms, 20_000);
        let before = Source::new(None, std::iter::empty(), &[0]).load().expect("a valid one");
        let changes = before.written.changes_to(&written);
        let changes: Vec<_> = changes.iter().map(ToString::to_string).collect();
        assert_eq!(changes, ["limits.ping_ms: 30000 -> 20000"]);
    }
}
