//! A Markdown page: its headings, links and fenced blocks.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// Folders whose pages are looked at, and those below them.
const FOLDERS: [&str; 5] = ["docs", "examples", "tests", "benches", "tuning"];

pub struct Page {
    /// The path of the page in the repository.
    pub name: String,
    pub text: String,
}

/// A link to a place in the repository.
pub struct Link {
    /// The file as the link names it. Empty for the page itself.
    pub file: String,
    pub anchor: Option<String>,
}

/// A fenced block.
pub struct Block {
    /// The info string after the opening fence, such as `console`.
    pub info: String,
    pub text: String,
    /// The number of its first line in the page.
    pub line: usize,
    /// The configuration of the server that it is run against, if the page names one.
    pub server: Option<String>,
}

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

impl Page {
    pub fn read(name: &str) -> Self {
        let text = fs::read_to_string(root().join(name));
        Self { name: name.to_owned(), text: text.unwrap_or_else(|error| panic!("{name}: {error}")) }
    }

    pub fn all() -> Vec<Self> {
        let mut names = Vec::new();
        collect(Path::new(""), false, &mut names);
        for folder in FOLDERS {
            collect(Path::new(folder), true, &mut names);
        }
        names.sort();
        assert!(names.len() > 30, "pages are missing: {names:?}");
        names.iter().map(|name| Self::read(name)).collect()
    }

    /// The lines that are not part of a fenced block.
    fn prose(&self) -> impl Iterator<Item = &str> {
        let mut is_fenced = false;
        self.text.lines().filter(move |line| {
            let is_fence = line.trim_start().starts_with("```");
            is_fenced ^= is_fence;
            !is_fenced && !is_fence
        })
    }

    /// Returns the texts between backticks.
    pub fn code(&self) -> impl Iterator<Item = String> {
        self.prose().flat_map(|line| line.split('`').skip(1).step_by(2)).map(str::to_owned)
    }

    pub fn links(&self) -> impl Iterator<Item = Link> {
        self.prose().flat_map(|line| {
            let mut links = Vec::new();
            let mut rest = without_code(line);
            while let Some((_, target)) = rest.split_once("](") {
                let (target, behind) = target.split_once(')').expect("a link ends in its line");
                if !target.contains("://") {
                    let (file, anchor) = target.split_once('#').unzip();
                    let file = file.unwrap_or(target).to_owned();
                    links.push(Link { file, anchor: anchor.map(str::to_owned) });
                }
                rest = behind.to_owned();
            }
            links
        })
    }

    /// The path in the repository of a file that the page links to.
    pub fn resolve(&self, file: &str) -> String {
        if file.is_empty() {
            return self.name.clone();
        }
        let mut path = PathBuf::from(&self.name);
        path.pop();
        for component in Path::new(file).components() {
            match component {
                Component::ParentDir => assert!(path.pop(), "{}: {file} leaves it", self.name),
                Component::CurDir => {}
                other => path.push(other),
            }
        }
        path.to_string_lossy().into_owned()
    }

    /// The anchors of the headings, made as GitHub does.
    pub fn anchors(&self) -> Vec<String> {
        let headings = self.prose().filter_map(|line| {
            let title = line.trim_start_matches('#');
            (title.len() < line.len() && title.starts_with(' ')).then(|| anchor(title.trim()))
        });
        headings.collect()
    }

    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let (mut open, mut is_server, mut server) = (None::<Block>, false, None);
        for (at, line) in self.text.lines().enumerate() {
            match (&mut open, line.strip_prefix("```")) {
                (None, Some(info)) => {
                    let info = info.to_owned();
                    let server = server.clone();
                    open = Some(Block { info, text: String::new(), line: at + 1, server });
                }
                (Some(_), Some(_)) => {
                    let block = open.take().expect("it is open");
                    if std::mem::take(&mut is_server) {
                        server = Some(block.text.clone());
                    }
                    blocks.push(block);
                }
                (Some(block), None) => {
                    block.text.push_str(line);
                    block.text.push('\n');
                }
                (None, None) => match line {
                    "<!-- server: the next configuration -->" => is_server = true,
                    "<!-- server: the built-in configuration -->" => server = None,
                    _ => {}
                },
            }
        }
        assert!(open.is_none(), "{}: a block does not end", self.name);
        blocks
    }
}

fn collect(folder: &Path, goes_deeper: bool, names: &mut Vec<String>) {
    for entry in fs::read_dir(root().join(folder)).expect("the folder can be read") {
        let entry = entry.expect("the folder can be read");
        let path = folder.join(entry.file_name());
        if goes_deeper && entry.path().is_dir() {
            collect(&path, true, names);
        } else if path.extension().is_some_and(|end| end == "md") {
            names.push(path.to_string_lossy().into_owned());
        }
    }
}

/// A line without what stands between backticks.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("`")
}

fn anchor(title: &str) -> String {
    let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn anchors_are_those_of_github() {
    assert_eq!(anchor("A token, or `hold_until`?"), "a-token-or-hold_until");
    assert_eq!(without_code("a `[b](c)` [d](e)"), "a ` [d](e)");
}
