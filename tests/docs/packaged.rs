//! The pages in the Debian package: their links lead to files of the package.

use toml::de::{DeTable, DeValue};

use super::page::{Page, root};

/// Where the package has the pages, laid out as in the repository.
const FOLDER: &str = "usr/share/doc/gridcast/";

/// A source pattern of the package and its destination, both without the name of a file.
struct Asset {
    folder: String,
    is_deep: bool,
    name: String,
}

impl Asset {
    /// Reads an asset whose files are below [`FOLDER`]. `None` if it has another destination.
    fn read(asset: &DeValue<'_>) -> Option<Self> {
        let text = |index: usize| asset.as_array()?.get(index)?.get_ref().as_str();
        let (source, destination) = (text(0)?, text(1)?.strip_prefix(FOLDER)?);
        let (folder, name) = source.rsplit_once('/').map_or(("", source), |parts| parts);
        let (folder, is_deep) = match folder.strip_suffix("/**") {
            Some(folder) => (folder, true),
            None => (folder, false),
        };
        // What is made while the package is built is no page.
        (destination.trim_end_matches('/') == folder).then(|| Self {
            folder: folder.to_owned(),
            is_deep,
            name: name.to_owned(),
        })
    }

    fn has(&self, path: &str) -> bool {
        let (folder, name) = path.rsplit_once('/').map_or(("", path), |parts| parts);
        let is_below = self.is_deep && folder.starts_with(&format!("{}/", self.folder));
        let has_name = match self.name.split_once('*') {
            Some((start, end)) => name.starts_with(start) && name.ends_with(end),
            None => name == self.name,
        };
        (is_below || folder == self.folder) && has_name
    }
}

#[test]
fn every_link_of_a_packaged_page_leads_to_a_packaged_file() {
    let manifest = Page::read("Cargo.toml").text;
    let manifest = DeTable::parse(&manifest).expect("TOML");
    let deb = ["metadata", "deb", "assets"]
        .iter()
        .fold(manifest.get_ref().get("package").expect("it is one").get_ref(), |table, key| {
            table.get(key).expect("it has one").get_ref()
        });
    let assets = deb.as_array().expect("a list").iter();
    let assets: Vec<Asset> = assets.filter_map(|asset| Asset::read(asset.get_ref())).collect();
    let is_packaged = |path: &str| assets.iter().any(|asset| asset.has(path));
    let mut broken = Vec::new();
    let pages = Page::all().into_iter().filter(|page| is_packaged(&page.name));
    let pages: Vec<Page> = pages.collect();
    assert!(pages.iter().any(|page| page.name == "README.md"));
    for page in &pages {
        for link in page.links() {
            let target = page.resolve(&link.file);
            if !root().join(&target).is_file() || !is_packaged(&target) {
                broken.push(format!("{}: {target}", page.name));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}
