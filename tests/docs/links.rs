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
