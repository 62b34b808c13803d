//! Holds the arrows of the map in `src/lib.rs`: who imports whom, and who may name what.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each layer, and the layers that it may import.
const ARROWS: [(&str, &[&str]); 16] = [
    ("address", &[]),
    ("protocol", &["address"]),
    ("message", &["address", "protocol", "metrics", "slot_map"]),
    ("metrics", &[]),
    ("slot_map", &[]),
    ("console", &[]),
    ("queue", &["address", "protocol", "message", "metrics", "slot_map"]),
    ("channel", &["address", "protocol", "message", "slot_map"]),
    (
        "shard",
        &["address", "protocol", "message", "metrics", "queue", "channel", "slot_map", "console"],
    ),
    ("runtime", &["address", "protocol", "message", "metrics", "queue", "shard"]),
    ("mesh", &["address", "protocol", "message", "metrics", "runtime", "slot_map"]),
    ("bridge", &["address", "protocol", "message", "metrics", "runtime"]),
    ("config", &["address", "protocol", "queue"]),
    ("cli", &["protocol", "config"]),
    ("doctor", &["runtime", "mesh", "config"]),
    (
        "node",
        &[
            "address", "protocol", "message", "metrics", "queue", "shard", "runtime", "mesh",
            "bridge", "config", "channel",
        ],
    ),
];

/// A name, and the only places whose code may contain it: beginnings of paths in `src/`.
const RESERVED: [(&str, &[&str]); 21] = [
    ("quinn", &["mesh/quic"]),
    ("tokio", &["mesh/quic", "bridge/http", "bridge/engines/", "cli/"]),
    ("tungstenite", &["cli/"]),
    ("hyper::", &["bridge/http", "bridge/engines/"]),
    ("async_nats", &["bridge/engines/nats.rs"]),
    ("kafka_protocol", &["bridge/engines/kafka"]),
    ("redis::", &["bridge/engines", "protocol/sink.rs"]),
    ("hyper_util", &["bridge/http"]),
    ("rcgen", &["mesh/identity.rs"]),
    ("ring::signature", &["protocol/token/signatures.rs"]),
    (
        "ClientConfig",
        &["mesh/identity.rs", "mesh/quic", "runtime/probe.rs", "bridge/http", "cli/connection.rs"],
    ),
    ("glommio::", &["runtime/"]),
    ("io_uring::", &["runtime/"]),
    ("crossbeam_channel", &["runtime/"]),
    ("socket2", &["runtime/", "mesh/quic"]),
    ("ServerConnection", &["runtime/"]),
    ("unsafe {", &["runtime/"]),
    ("Instant", &["runtime/", "mesh/quic", "bridge/http", "cli/follow.rs", "cli/push.rs"]),
    ("SystemTime", &["runtime/", "mesh/quic", "cli/terminal.rs"]),
    ("signal_hook", &["node/signals.rs"]),
    ("tracing", &["shard/", "runtime/", "mesh/", "bridge/", "node.rs", "node/", "log"]),
];

struct Source {
    path: PathBuf,
    // The path in `src/`.
    place: String,
    layer: String,
    code: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    let source = |path: PathBuf| {
        let place = path.strip_prefix(&root).expect("it is in src").to_string_lossy().into_owned();
        let layer = place.split('/').next().expect("a file has a name");
        let layer = layer.trim_end_matches(".rs").to_owned();
        Source { code: code_of(&path), layer, place, path }
    };
    files.into_iter().map(source).filter(|s| s.layer != "lib" && s.layer != "main").collect()
}

/// The source files of a folder, without those of tests, which may go further.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("src can be read") {
        let path = entry.expect("src can be read").path();
        match path.is_dir() {
            true if path.ends_with("tests") => {}
            true => collect(&path, files),
            false if path.ends_with("tests.rs") => {}
            false if path.extension().is_some_and(|end| end == "rs") => files.push(path),
            false => {}
        }
    }
}

/// The file without comments and without its tests.
fn code_of(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a source file can be read");
    let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    code.lines().filter(is_code).collect::<Vec<_>>().join("\n")
}

/// The layers that some code names with `crate::`.
fn imports(code: &str) -> Vec<String> {
    let name = |rest: &str| {
        rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
    };
    code.split("crate::").skip(1).map(name).collect()
}

#[test]
fn each_layer_imports_only_layers_to_its_left() {
    for source in sources() {
        let (_, allowed) = ARROWS
            .iter()
            .find(|(layer, _)| *layer == source.layer)
            .unwrap_or_else(|| panic!("{} is in no layer of the map", source.path.display()));
        for import in imports(&source.code) {
            assert!(
                import == source.layer || allowed.contains(&&import[..]),
                "{} imports {import}, which {} may not",
                source.path.display(),
                source.layer
            );
        }
    }
}

/// The parts of a shard: the files of each, the structs that hold its state, and what it may name of
/// other parts. Those are plain values, which cross between parts in steps.
const PARTS: [(&str, &[&str], &[&str]); 12] = [
    ("access", &["ApiAccess", "Addresses"], &[]),
    ("admission", &["Admissions"], &["client::{Granted, KeyLookup, Need, Progress}"]),
    (
        "backend",
        &["Backends"],
        &[
            "access::{Denial, Grant}",
            "access::Grant",
            "lists::{BackendWalk, Budget, Reached}",
            "memory::Shortage",
        ],
    ),
    (
        "client",
        &["Clients"],
        &[
            "lists::{Budget, ChannelWalk, ClientWalk, Reached, SLOTS_CHOSEN_MAX, Slots}",
            "lists::UserInfoWalk",
            "memory::SHORT_OF_MEMORY",
            "memory::Shortage",
            "taps::TapSet",
        ],
    ),
    ("homes", &["ChannelHomes"], &["memory::Shortage"]),
    ("topics", &["Topics"], &["memory::Shortage"]),
    ("last_wills", &["LastWills"], &[]),
    ("memory", &["Shedding"], &[]),
    ("drain", &["Draining"], &[]),
    ("reload", &["Reloading"], &[]),
    ("lists", &["Lists"], &[]),
    ("taps", &["Taps"], &["memory::Shortage"]),
];

/// The layers below the parts, and the values of parts that each may name. The structs of parts are not among them.
const BELOW: [(&str, &[&str]); 2] = [
    (
        "connection",
        &[
            "access::Grant",
            "backend::TakeKey",
            "backend::{TakeKey, Unsettled}",
            "client::{Context, Subscription}",
            "client::Subscription",
            "memory::Shortage",
            "taps::TapSet",
        ],
    ),
    (
        "turn",
        &[
            "access::{Denial, Grant}",
            "backend::TakeKey",
            "client::Progress",
            "memory::Shortage",
            "taps::WatchedTaps",
        ],
    ),
];

/// Which part of a shard, or which of its other files, a source belongs to.
fn part_of(source: &Source) -> Option<&str> {
    let rest = source.place.strip_prefix("shard/")?;
    Some(rest.split('/').next().unwrap_or(rest).trim_end_matches(".rs"))
}

/// Imports of other parts in the code of a part, as `part::name`.
fn imported_parts(code: &str) -> Vec<String> {
    let uses = code.split("\nuse ").skip(1).filter_map(|rest| rest.split(';').next());
    let paths = uses.filter_map(|path| {
        path.strip_prefix("super::").or_else(|| path.strip_prefix("crate::shard::"))
    });
    let is_part =
        |path: &str| PARTS.iter().any(|(part, ..)| path.starts_with(&format!("{part}::")));
    paths
        .filter(|path| is_part(path))
        .map(|path| path.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

fn names(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let is_letter = |c: char| c.is_alphanumeric() || c == '_';
        let before = code[..at].chars().next_back().is_some_and(is_letter);
        let after = code[at + word.len()..].chars().next().is_some_and(is_letter);
        !before && !after
    })
}

#[test]
fn no_part_of_a_shard_reaches_another() {
    for source in sources().iter().filter(|source| source.layer == "shard") {
        let Some(own) = part_of(source).filter(|own| *own != "mod" && *own != "inspection") else {
            continue;
        };
        // The routing of the shard itself.
        if ["calls", "deadlines", "input", "messages", "publishing", "requests", "steps"]
            .contains(&own)
        {
            continue;
        }
        let of_part = PARTS.iter().find(|(part, ..)| *part == own).map(|(.., may)| *may);
        let below = BELOW.iter().find(|(part, _)| *part == own).map(|(_, may)| *may);
        let allowed = of_part.or(below).unwrap_or_default();
        for path in imported_parts(&source.code) {
            let is_own = path.starts_with(&format!("{own}::"));
            let path = path.replace(" }", "}").replace("{ ", "{");
            assert!(
                is_own || allowed.contains(&&path[..]),
                "{} names {path} of another part",
                source.path.display()
            );
        }
        for (part, structs, _) in PARTS.iter().filter(|(part, ..)| *part != own) {
            for name in *structs {
                assert!(
                    !names(&source.code, name),
                    "{} names {name}, the state of {part}",
                    source.path.display()
                );
            }
        }
        assert!(!names(&source.code, "Shard"), "{} names the whole shard", source.path.display());
    }
}

#[test]
fn a_shard_owns_few_parts_and_has_few_methods() {
    let all = sources();
    let of_shard = || all.iter().filter(|source| source.layer == "shard");
    let methods: usize = of_shard()
        .flat_map(|source| source.code.split("\nimpl Shard {").skip(1))
        .map(|block| block.split("\n}").next().unwrap_or_default())
        .map(|block| block.matches("\n    fn ").count() + block.matches("\n    pub").count())
        .sum();
    let fields = of_shard()
        .filter_map(|source| source.code.split("\npub struct Shard {").nth(1))
        .map(|rest| rest.split("\n}").next().unwrap_or_default().lines().count() - 1)
        .sum::<usize>();
    assert!((1..=15).contains(&fields), "{fields} fields");
    assert!((1..=40).contains(&methods), "{methods} methods");
}

#[test]
fn only_their_layers_name_the_runtime_the_clock_and_unsafe_code() {
    for source in sources() {
        for (name, places) in RESERVED {
            let may = places.iter().any(|place| source.place.starts_with(place));
            assert!(
                may || !source.code.contains(name),
                "{} names {name}, which is for {places:?}",
                source.path.display()
            );
        }
        let opens_sockets = ["TcpListener", "TcpStream", "UdpSocket", "std::fs"];
        // The connections to other engines are those of their crates.
        let may = ["runtime", "config", "doctor", "cli"].contains(&&source.layer[..])
            || source.place == "bridge/engines/kafka/connection.rs";
        for name in opens_sockets {
            assert!(may || !source.code.contains(name), "{}: {name}", source.path.display());
        }
    }
}

#[test]
fn only_the_log_and_the_commands_write_to_standard_error_and_standard_output() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    // A command, unlike a node, may wait for the reader of its output.
    let may = ["runtime/log.rs", "cli/terminal.rs"];
    for path in files.iter().filter(|path| !may.iter().any(|may| path.ends_with(may))) {
        // A descriptor like others, to make the table of them.
        let code = code_of(path).replace("rustix::stdio::stderr()", "");
        // Each of them panics, or waits, where the reader is gone, full or stands still.
        for name in ["print!", "println!", "dbg!", "io::stderr()", "io::stdout()"] {
            assert!(!code.contains(name), "{} names {name}: see runtime/log.rs", path.display());
        }
    }
}

/// Names of types that have a second meaning in one place, and why they keep it: the beginning of the path in `src/`.
const SECOND_MEANINGS: [(&str, &str, &str); 8] = [
    ("Client", "bridge/http/client.rs", "the client of other HTTP servers"),
    ("Connections", "bridge/http/client.rs", "an alias that shortens one type"),
    ("Driver", "bridge/http.rs", "private to the thread of the bridge"),
    ("Receivers", "bridge/mod.rs", "private to the bridge"),
    ("Waiting", "bridge/hooks.rs", "private to the queue of a hook"),
    ("Batch", "queue/log/", "private to the log of a topic"),
    ("Fields", "queue/log/", "private to the format of the log"),
    ("Log", "queue/log/", "private to the log of a topic"),
];

/// The type that a line of code defines, unless it is an associated type or an alias inside a function.
fn type_defined(line: &str) -> Option<&str> {
    let rest = line.trim_start();
    let rest = match rest.strip_prefix("pub(") {
        Some(rest) => rest.split_once(") ")?.1,
        None => rest.strip_prefix("pub ").unwrap_or(rest),
    };
    let (keyword, rest) = rest.split_once(' ')?;
    let is_definition = match keyword {
        "struct" | "enum" | "trait" => true,
        "type" => !line.starts_with(' '),
        _ => false,
    };
    let end = rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len());
    is_definition.then_some(&rest[..end])
}

#[test]
fn a_type_name_means_one_thing() {
    let mut defined: BTreeMap<String, String> = BTreeMap::new();
    for source in sources() {
        for name in source.code.lines().filter_map(type_defined) {
            let may = SECOND_MEANINGS
                .iter()
                .any(|(repeated, place, _)| *repeated == name && source.place.starts_with(place));
            if may {
                continue;
            }
            let other = defined.insert(name.to_owned(), source.place.clone());
            assert_eq!(other, None, "{name} is defined in {} too", source.place);
        }
    }
    assert!(defined.len() > 500, "{} types", defined.len());
}

#[test]
fn settings_hold_no_live_state() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let code = code_of(&root.join("shard/settings.rs"));
    for name in ["Atomic", "Cell", "Mutex", "Interest", "Quota", "NodeState"] {
        assert!(!code.contains(name), "shard/settings.rs names {name}: see shard/node_state.rs");
    }
}

#[test]
fn the_map_names_every_layer() {
    let map = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs"))
        .expect("src/lib.rs can be read");
    for (layer, _) in ARROWS {
        assert!(map.contains(&format!("//! | [`{layer}`] |")), "{layer} is not on the map");
        assert!(map.contains(&format!("pub mod {layer};")), "{layer} is not declared");
    }
}

/// The modules that a file of the load test imports: each name behind `crate::`, alone or in braces.
fn modules_imported(code: &str) -> Vec<String> {
    let name = |rest: &str| {
        rest.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut modules: Vec<String> = imports(code);
    for group in code.split("use crate::{").skip(1) {
        let group = group.split("};").next().unwrap_or_default();
        modules.extend(group.split(',').map(name));
    }
    modules.retain(|module| !module.is_empty());
    modules
}

#[test]
fn no_modules_of_the_load_test_import_each_other_in_a_circle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("loadtest/src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    let mut imported: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in files {
        let place = path.strip_prefix(&root).expect("it is in loadtest/src").to_string_lossy();
        let module = place.split('/').next().expect("a file has a name").trim_end_matches(".rs");
        let modules = imported.entry(module.to_owned()).or_default();
        modules.extend(modules_imported(&code_of(&path)));
        modules.remove(module);
    }
    assert!(imported.len() > 20, "{imported:?}");
    // Takes away modules that import nothing that is left, until none is left or each has a circle below.
    loop {
        let known: BTreeSet<String> = imported.keys().cloned().collect();
        imported.retain(|_, modules| modules.iter().any(|module| known.contains(module)));
        if imported.len() == known.len() {
            break;
        }
    }
    assert!(imported.is_empty(), "these import each other in a circle: {imported:?}");
}
