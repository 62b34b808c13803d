//! The console: a page for operators, at `/console` of the API. The page is a client of the public API.
//!
//! `page/` holds its files as they are sent: one HTML file, one style sheet, and JavaScript modules.
//! Nothing comes from elsewhere. `build.rs` compresses the files; there is no other build step.

use std::borrow::Cow;

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
    gzip: &'static [u8],
    hash: u64,
}

/// The content coding in which a file is sent (RFC 9110, section 8.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// The file as it is.
    Identity,
    /// Compressed as a gzip file.
    Gzip,
}

/// Reads a compressed file that `build.rs` has made.
macro_rules! compressed {
    ($name:expr) => {
        include_bytes!(concat!(env!("OUT_DIR"), "/console/", $name, ".gz"))
    };
}

/// The HTML file. `{{users}}` is replaced by whether the API has users.
const PAGE: &str = include_str!("page/index.html");

/// The compressed HTML file, for an API without users and for one with users.
const COMPRESSED_PAGES: [&[u8]; 2] =
    [compressed!("index-false.html"), compressed!("index-true.html")];

/// Lists files of `page/` with their contents.
macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(File::new($name, include_str!(concat!("page/", $name)), compressed!($name))),*]
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
pub fn page(coding: Coding, has_users: bool) -> Cow<'static, [u8]> {
    match coding {
        Coding::Identity => {
            let page = PAGE.replace("{{users}}", if has_users { "true" } else { "false" });
            Cow::Owned(page.into_bytes())
        }
        Coding::Gzip => Cow::Borrowed(COMPRESSED_PAGES[usize::from(has_users)]),
    }
}

/// Returns the file with a name.
pub fn file(name: &str) -> Option<&'static File> {
    FILES.iter().find(|file| file.name == name)
}

impl File {
    const fn new(name: &'static str, text: &'static str, gzip: &'static [u8]) -> Self {
        Self { name, text, gzip, hash: hash(text.as_bytes()) }
    }

    /// Returns the contents.
    pub fn bytes(&self, coding: Coding) -> &'static [u8] {
        match coding {
            Coding::Identity => self.text.as_bytes(),
            Coding::Gzip => self.gzip,
        }
    }

    /// Returns the value of `Content-Type`.
    pub fn content_type(&self) -> &'static str {
        match self.name.rsplit_once('.') {
            Some((_, "css")) => "text/css; charset=utf-8",
            _ => "text/javascript; charset=utf-8",
        }
    }

    /// Returns the value of `ETag`, which differs between codings (RFC 9110, section 8.8.3.3).
    pub fn tag(&self, coding: Coding) -> String {
        let end = match coding {
            Coding::Identity => "",
            Coding::Gzip => "-gzip",
        };
        format!("\"{:016x}{end}\"", self.hash)
    }

    /// Whether `If-None-Match` has the tag of this file, so that the peer need not get it again.
    pub fn is_known(&self, coding: Coding, if_none_match: &[u8]) -> bool {
        let tag = self.tag(coding);
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

    use zlib_rs::crc32::crc32;

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
        for (has_users, shown) in
            [(true, " data-users=\"true\">"), (false, " data-users=\"false\">")]
        {
            let page = page(Coding::Identity, has_users);
            assert!(str::from_utf8(&page).expect("it is text").contains(shown));
        }
    }

    /// Returns the contents of a gzip file whose head has no optional fields (RFC 1952, section 2.3).
    fn gunzip(gzip: &[u8]) -> Vec<u8> {
        assert_eq!(gzip[..4], [0x1F, 0x8B, 8, 0]);
        let (body, end) = gzip[10..].split_at(gzip.len() - 18);
        let text = miniz_oxide::inflate::decompress_to_vec(body).expect("it is DEFLATE");
        let [checksum, length] = [crc32(0, &text), text.len() as u32].map(u32::to_le_bytes);
        assert_eq!(end, [checksum, length].concat());
        text
    }

    #[test]
    fn compressed_files_are_the_same_and_less_than_half_the_size() {
        let (mut plain_bytes, mut gzip_bytes) = (0, 0);
        for file in &FILES {
            assert!(gunzip(file.gzip) == file.text.as_bytes(), "{}", file.name);
            plain_bytes += file.text.len();
            gzip_bytes += file.gzip.len();
        }
        for has_users in [false, true] {
            let [plain, gzip] =
                [Coding::Identity, Coding::Gzip].map(|coding| page(coding, has_users));
            assert!(gunzip(&gzip) == *plain, "the page, {has_users}");
        }
        assert!(gzip_bytes * 2 < plain_bytes, "{gzip_bytes} of {plain_bytes} bytes");
    }

    #[test]
    fn a_peer_that_has_the_tag_has_the_file() {
        let file = file("style.css").expect("the file");
        for (coding, other) in [(Coding::Identity, Coding::Gzip), (Coding::Gzip, Coding::Identity)]
        {
            let tag = file.tag(coding);
            for list in [&tag[..], &format!("\"x\", {tag}"), &format!("W/{tag},\"y\""), "*"] {
                assert!(file.is_known(coding, list.as_bytes()), "{list}");
            }
            for list in ["", "\"x\"", tag.trim_matches('"'), &file.tag(other)] {
                assert!(!file.is_known(coding, list.as_bytes()), "{list}");
            }
        }
    }
}
