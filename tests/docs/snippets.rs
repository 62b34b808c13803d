//! Blocks that are checked without a conversation: configurations, JSON, the syntax of programs.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs, process};

use rcgen::{CertifiedKey, generate_simple_self_signed};

use super::page::{Block, Page, root};
use super::support::command;

/// Languages of code blocks that pages may contain. `js` may be followed by the name of a test in `programs.rs`.
const LANGUAGES: [&str; 18] = [
    "console",
    "ws",
    "toml",
    "js",
    "js device",
    "js calls",
    "js reconnect",
    "python",
    "php",
    "sh",
    "json",
    "nginx",
    "haproxy",
    "caddyfile",
    "text",
    "yaml",
    "dockerfile",
    "rust",
];

fn blocks(info: &str) -> Vec<(String, Block)> {
    let pages = Page::all();
    let all = pages.into_iter().flat_map(|page| {
        let name = page.name.clone();
        page.blocks().into_iter().map(move |block| (format!("{name}:{}", block.line), block))
    });
    all.filter(|(_, block)| block.info.split(' ').next() == Some(info)).collect()
}

/// A folder with the certificates that configurations name.
pub fn folder(name: &str) -> PathBuf {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let folder = target.join(format!("docs-{name}-{}", process::id()));
    fs::create_dir_all(&folder).expect("the folder can be made");
    folder
}

fn folder_with_certificates() -> PathBuf {
    let folder = folder("toml");
    let names = vec!["node.gridcast".to_owned()];
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(names).expect("a certificate");
    for name in ["api", "edge", "node"] {
        fs::write(folder.join(format!("{name}.pem")), cert.pem()).expect("it can be written");
        let key = signing_key.serialize_pem();
        fs::write(folder.join(format!("{name}.key")), key).expect("it can be written");
    }
    fs::write(folder.join("grid.pem"), cert.pem()).expect("it can be written");
    folder
}

#[test]
fn blocks_have_a_language_that_the_tests_know() {
    for page in Page::all() {
        for block in page.blocks() {
            let is_known = LANGUAGES.contains(&&block.info[..]);
            assert!(is_known, "{}:{} is {:?}", page.name, block.line, block.info);
        }
    }
}

#[test]
fn configurations_are_accepted() {
    let folder = folder_with_certificates();
    for (place, block) in blocks("toml") {
        let file = folder.join("gridcast.toml");
        fs::write(&file, &block.text).expect("it can be written");
        let check = command(&["check", "--config", "gridcast.toml"]).current_dir(&folder).output();
        let check = check.expect("gridcast runs");
        let said = String::from_utf8_lossy(&check.stderr);
        assert!(check.status.success(), "{place}: {said}");
    }
    fs::remove_dir_all(folder).expect("the folder was made");
}

#[test]
fn json_is_json() {
    for (place, block) in blocks("json") {
        let parsed = serde_json::from_str::<serde_json::Value>(&block.text);
        assert!(parsed.is_ok(), "{place}: {parsed:?}");
    }
}

#[test]
fn shell_commands_have_no_wrong_syntax() {
    for (place, block) in blocks("sh") {
        let check = Command::new("bash").args(["-n", "-c", &block.text]).output().expect("bash");
        assert!(check.status.success(), "{place}: {}", String::from_utf8_lossy(&check.stderr));
    }
}

#[test]
fn scripts_have_no_wrong_syntax() {
    if Command::new("node").arg("--version").output().is_err() {
        return eprintln!("skipped: node is not installed");
    }
    let folder = folder("js");
    for (place, block) in blocks("js") {
        let file = folder.join("snippet.mjs");
        fs::write(&file, &block.text).expect("it can be written");
        let check = Command::new("node").arg("--check").arg(&file).output().expect("node");
        assert!(check.status.success(), "{place}: {}", String::from_utf8_lossy(&check.stderr));
    }
    fs::remove_dir_all(folder).expect("the folder was made");
}

#[test]
fn proxy_configurations_are_the_files_that_are_tested() {
    for (info, file) in
        [("nginx", "nginx.conf"), ("haproxy", "haproxy.cfg"), ("caddyfile", "Caddyfile")]
    {
        let file = root().join("docs/operating/proxies").join(file);
        let text = fs::read_to_string(&file).expect("the file is there");
        let shown = blocks(info);
        assert!(!shown.is_empty(), "no page shows {}", file.display());
        for (place, block) in shown {
            assert!(block.text == text, "{place} is not {}", file.display());
        }
    }
}
