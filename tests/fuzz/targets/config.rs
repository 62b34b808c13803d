//! A configuration is taken, or refused in one line that names its place.

use gridcast::config::Config;

/// The text of a file, with variables behind `\0`: `NAME=VALUE`, each after another `\0`.
pub fn run(data: &[u8]) {
    let Ok(data) = std::str::from_utf8(data) else { return };
    let mut parts = data.split('\0');
    let text = parts.next().unwrap_or_default();
    let variables = parts
        .filter_map(|variable| variable.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    match Config::parse(text, "gridcast.toml", variables, &[0, 1, 2, 3]) {
        Ok(config) => assert!(!config.to_string().is_empty()),
        Err(error) => check_words(&error.to_string()),
    }
}

fn check_words(error: &str) {
    assert!(!error.contains(['\n', '\r']), "more than one line: {error:?}");
    assert!(error.contains(": ") && error.len() < 2000, "{error:?}");
}
