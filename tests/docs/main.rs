//! The pages for people: their links lead somewhere, their snippets do what they say, and their
//! tables hold what the code has.
//!
//! `docs/internals/testing.md` lists what is done with a fenced block of each language.

#[path = "../support/mod.rs"]
mod support;

mod links;
mod packaged;
mod page;
mod play;
mod programs;
mod snippets;
mod tables;

use page::Page;

#[test]
fn the_readme_is_short() {
    let readme = Page::read("README.md");
    assert!(readme.text.lines().count() <= 150);
}

#[test]
fn every_page_is_listed_in_the_index() {
    let index = Page::read("docs/README.md");
    let listed: Vec<String> = index.links().map(|link| index.resolve(&link.file)).collect();
    for page in Page::all().iter().filter(|page| page.name.starts_with("docs/")) {
        assert!(page.name == index.name || listed.contains(&page.name), "{} is not", page.name);
    }
}
