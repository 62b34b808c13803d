//! Links between pages, and to files.

use super::page::{Page, root};

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading() {
    let pages = Page::all();
    let mut broken = Vec::new();
    for page in &pages {
        for link in page.links() {
            let target = page.resolve(&link.file);
            if !root().join(&target).exists() {
                broken.push(format!("{}: there is no {target}", page.name));
            } else if let Some(anchor) = link.anchor
                && let Some(other) = pages.iter().find(|other| other.name == target)
                && !other.anchors().contains(&anchor)
            {
                broken.push(format!("{}: {target} has no heading #{anchor}", page.name));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Folders of the repository by which a path in the text is told from other code.
const FOLDERS: [&str; 8] =
    [".ci/", "benches/", "docs/", "examples/", "loadtest/", "src/", "tests/", "tuning/"];

/// Where fuzzing puts what it finds.
const MADE: &str = "tests/fuzz/artifacts/";

#[test]
fn every_path_that_a_page_names_exists() {
    let mut missing = Vec::new();
    for page in Page::all() {
        for path in page.code() {
            let is_path = path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c))
                && FOLDERS.iter().any(|folder| path.starts_with(folder));
            if is_path && path != MADE && !root().join(&path).exists() {
                missing.push(format!("{}: {path}", page.name));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
