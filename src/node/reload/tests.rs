//! Reloads of a node whose shards and bridge are played by the test.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::{fs, process};

use super::*;
use crate::protocol::credentials::FingerprintKey;

const NO_USERS: &str = "[node]\ncores = 2\n[api]\nadvertise = \"10.0.0.5:6789\"\n";

/// [`NO_USERS`] with a user, another address and other limits.
const WITH_USER: &str = "[node]\ncores = 2\n[api]\nadvertise = \"10.0.0.6:6789\"\n\
                         [[api.user]]\nname = \"app\"\ntoken = \"open-sesame\"\n\
                         [limits]\nanswer_ms = 700\n";

/// A reloader of two shards, and its configuration file.
struct Bench {
    reloader: Reloader,
    file: PathBuf,
    bridge_has_room: Arc<AtomicBool>,
}

impl Bench {
    fn new() -> Self {
        static FILES: AtomicUsize = AtomicUsize::new(0);
        let number = FILES.fetch_add(1, Ordering::Relaxed);
        let name = format!("gridcast-reload-{}-{number}.toml", process::id());
        let file = std::env::temp_dir().join(name);
        fs::write(&file, NO_USERS).expect("a file");
        let source = Source::new(Some(file.clone()), std::iter::empty(), &[0, 1]);
        let Loaded { config, written } = source.load().expect("a valid configuration");
        let bound = Bound { api: config.api.bind.clone(), edges: Vec::new() };
        let settings = Arc::new(shard_settings(&config, FingerprintKey::new([0; 32]), &bound));
        let state = Arc::new(NodeState::new(&settings, Arc::default()));
        let bridge_has_room = Arc::new(AtomicBool::new(true));
        let has_room = bridge_has_room.clone();
        let reloads = Reloads::without_shards(2, Vec::new(), capacity(&config).expect("room"));
        let reloader = Reloader {
            source,
            config,
            written,
            bound,
            settings,
            state,
            reloads,
            to_bridge: Arc::new(move |_, message| match has_room.load(Ordering::Relaxed) {
                true => Ok(()),
                false => Err(message),
            }),
            times: Arc::default(),
            log: LogQueue::to_stderr().expect("a thread"),
            mesh_certificate: None,
        };
        Self { reloader, file, bridge_has_room }
    }

    fn reload(&mut self, text: &str) -> Result<Vec<String>, String> {
        fs::write(&self.file, text).expect("a file");
        let changes = self.reloader.reload().map_err(|error| error.to_string())?;
        Ok(changes.iter().map(ToString::to_string).collect())
    }

    /// Takes what waits for a shard: its number of users and the address of the API.
    fn take(&self, shard: usize) -> Option<(usize, String)> {
        let api = &self.reloader.reloads.take(shard)?.settings.api;
        Some((api.users.iter().count(), api.advertise.to_string()))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}

fn changes() -> Vec<String> {
    let changes = [
        "api.advertise: \"10.0.0.5:6789\" -> \"10.0.0.6:6789\"",
        "api.user[\"app\"]: added",
        "limits.answer_ms: 1500 -> 700",
    ];
    changes.map(ToOwned::to_owned).to_vec()
}

#[test]
fn a_reload_that_one_shard_does_not_take_is_named_again_by_the_next_one() {
    let mut bench = Bench::new();
    assert_eq!(bench.reload(NO_USERS), Ok(Vec::new()));
    assert!(bench.take(0).is_some());
    // The second shard has not looked yet.
    let why = "shards: shard 1 does not respond; reload again";
    assert_eq!(bench.reload(WITH_USER), Err(why.to_owned()));
    let new = (1, "10.0.0.6:6789".to_owned());
    assert_eq!((bench.take(0), bench.take(1).map(|old| old.0)), (Some(new.clone()), Some(0)));

    assert_eq!(bench.reload(WITH_USER), Ok(changes()));
    assert_eq!((bench.take(0), bench.take(1)), (Some(new.clone()), Some(new)));
    assert_eq!(bench.reload(WITH_USER), Ok(Vec::new()));
}

#[test]
fn a_reload_that_the_bridge_does_not_take_is_named_again_by_the_next_one() {
    let mut bench = Bench::new();
    bench.bridge_has_room.store(false, Ordering::Relaxed);
    let why = "the bridge is busy; reload again";
    assert_eq!(bench.reload(WITH_USER), Err(why.to_owned()));
    let new = Some((1, "10.0.0.6:6789".to_owned()));
    assert_eq!((bench.take(0), bench.take(1)), (new.clone(), new));
    bench.bridge_has_room.store(true, Ordering::Relaxed);
    assert_eq!(bench.reload(WITH_USER), Ok(changes()));
}

#[test]
fn after_a_reload_in_part_users_are_kept_and_the_rest_can_be_taken_back() {
    let mut bench = Bench::new();
    bench.bridge_has_room.store(false, Ordering::Relaxed);
    bench.reload(WITH_USER).expect_err("the bridge is busy");
    bench.bridge_has_room.store(true, Ordering::Relaxed);
    assert!(bench.take(0).is_some() && bench.take(1).is_some());

    let why = bench.reload(NO_USERS).expect_err("nobody is left");
    assert!(why.starts_with("api.user: none is left"), "{why}");
    assert_eq!((bench.take(0), bench.take(1)), (None, None));
    let back = WITH_USER.replace("10.0.0.6", "10.0.0.5");
    bench.reload(&back).expect("all take it");
    assert_eq!(bench.take(0), Some((1, "10.0.0.5:6789".to_owned())));
}
