//! The console: a page for operators, at `/console` of the API. The page is a client of the public API.
//!
//! `page/` holds its files as they are sent: one HTML file, one style sheet, and JavaScript modules.
//! There is no build step, and nothing comes from elsewhere.

/// The content security policy of the page. Scripts and styles come from the API's listener alone, none
/// is inline, and text cannot become markup (`require-trusted-types-for`).
pub const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

/// A file of the console.
#[derive(Debug, PartialEq, Eq)]
pub struct File {
    name: &'static str,
    text: &'static str,
    hash: u64,
}

/// The HTML file. `{{users}}` is replaced by whether the API has users.
const PAGE: &str = include_str!("page/index.html");

/// Lists files of `page/` with their contents.
macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(File::new($name, include_str!(concat!("page/", $name)))),*]
    };
}

/// The files besides the page itself.
static FILES: [File; 19] = files![
    "style.css",
    "main.js",
    "api.js",
    "backends.js",
    "channels.js",
    "chart.js",
    "clients.js",
    "dom.js",
    "messages.js",
    "missing.js",
    "overview.js",
    "pages.js",
    "panel.js",
    "query.js",
    "samples.js",
    "table.js",
    "tap.js",
    "topics.js",
    "views.js",
];

/// Returns the page. `has_users` decides whether it asks for credentials.
pub fn page(has_users: bool) -> String {
    PAGE.replace("{{users}}", if has_users { "true" } else { "false" })
}

/// Returns the file with a name.
pub fn file(name: &str) -> Option<&'static File> {
    FILES.iter().find(|file| file.name == name)
}

impl File {
    const fn new(name: &'static str, text: &'static str) -> Self {
        Self { name, text, hash: hash(text.as_bytes()) }
    }

    /// Returns the contents.
    pub fn text(&self) -> &'static str {
        self.text
    }

    /// Returns the value of `Content-Type`.
    pub fn content_type(&self) -> &'static str {
        match self.name.rsplit_once('.') {
            Some((_, "css")) => "text/css; charset=utf-8",
            _ => "text/javascript; charset=utf-8",
        }
    }

    /// Returns the value of `ETag` (RFC 9110, section 8.8.3).
    pub fn tag(&self) -> String {
        format!("\"{:016x}\"", self.hash)
    }

    /// Whether `If-None-Match` has the tag of this file, so that the peer need not get it again.
    pub fn is_known(&self, if_none_match: &[u8]) -> bool {
        let tag = self.tag();
        if_none_match.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).any(|known| {
            // The comparison is weak (RFC 9110, section 13.1.2).
            known.strip_prefix(b"W/").unwrap_or(known) == tag.as_bytes() || known == b"*"
        })
    }
}

/// Returns the FNV-1a hash of some bytes. Tells versions of a file apart; nobody else chooses them.
#[allow(long_running_const_eval, reason = "a loop over the bytes of a file, which ends")]
const fn hash(bytes: &[u8]) -> u64 {
    let (mut hash, mut at) = (0xcbf2_9ce4_8422_2325_u64, 0);
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    hash
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_file_of_the_page_is_sent_and_small() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/console/page");
        let found = fs::read_dir(folder).expect("the folder can be read");
        let name = |entry: fs::DirEntry| entry.file_name().into_string().expect("UTF-8");
        let mut found: BTreeSet<String> = found.map(|entry| name(entry.expect("a file"))).collect();
        assert!(found.remove("index.html"));
        let known: BTreeSet<String> = FILES.iter().map(|file| file.name.to_owned()).collect();
        assert_eq!(found, known);
        // A browser that learns of a module from another one waits for each in turn.
        for name in &known {
            assert!(
                PAGE.contains(&format!("=\"console/{name}\"")),
                "{name} is not named in the page"
            );
        }
        let bytes = PAGE.len() + FILES.iter().map(|file| file.text.len()).sum::<usize>();
        assert!(bytes < 120_000, "{bytes} bytes");
    }

    #[test]
    fn files_name_only_each_other_and_make_no_markup_of_text() {
        let texts = FILES.iter().map(|file| file.text).chain([PAGE]);
        for text in texts {
            for name in
                ["https://", "@import", "url(", "innerHTML", "outerHTML", "eval(", "localStorage"]
            {
                assert!(!text.contains(name), "{name}");
            }
            let outside = text
                .match_indices("http://")
                .filter(|(at, _)| !text[*at..].starts_with("http://www.w3.org/2000/svg"));
            assert_eq!(outside.count(), 0);
        }
        assert!(!PAGE.contains(" style=") && !PAGE.contains(" onclick"), "the policy forbids them");
        for import in FILES.iter().flat_map(|file| file.text.split(" from \"./").skip(1)) {
            let name = import.split('"').next().expect("a name");
            assert!(file(name).is_some(), "{name}");
        }
    }

    #[test]
    fn a_file_is_found_by_its_name_and_the_page_says_whether_there_are_users() {
        assert_eq!(file("main.js").map(|file| file.name), Some("main.js"));
        for name in ["", "/main.js", "x.js", "index.html", "../mod.rs"] {
            assert_eq!(file(name), None, "{name}");
        }
        assert!(page(true).contains(" data-users=\"true\">"));
        assert!(page(false).contains(" data-users=\"false\">"));
    }

    #[test]
    fn a_peer_that_has_the_tag_has_the_file() {
        let file = file("style.css").expect("the file");
        let tag = file.tag();
        for list in [&tag[..], &format!("\"x\", {tag}"), &format!("W/{tag},\"y\""), "*"] {
            assert!(file.is_known(list.as_bytes()), "{list}");
        }
        for list in ["", "\"x\"", tag.trim_matches('"')] {
            assert!(!file.is_known(list.as_bytes()), "{list}");
        }
    }
}
