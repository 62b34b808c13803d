//! Programs that some tests need, and that a machine may not have.

use std::env;
use std::path::PathBuf;

/// Finds the first of these programs on PATH.
pub fn program(names: &[&str]) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let found =
        env::split_paths(&path).flat_map(|folder| names.iter().map(move |n| folder.join(n)));
    found.into_iter().find(|file| file.is_file())
}

/// Finds Chromium, or says that the test is skipped.
pub fn browser() -> Option<PathBuf> {
    let browser = program(&["chromium", "chromium-browser", "google-chrome"]);
    if browser.is_none() {
        eprintln!("skipped: no chromium on PATH");
    }
    browser
}
