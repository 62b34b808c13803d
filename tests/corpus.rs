//! Replays what the fuzzers found worth keeping, and what was written by hand for them.

#[path = "fuzz/targets/mod.rs"]
mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

#[test]
fn every_target_keeps_its_promises_on_its_corpus() {
    for (name, run) in targets::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
        let files = fs::read_dir(&folder).expect("each target has a corpus");
        let mut replayed = 0;
        for file in files.map(|entry| entry.expect("the corpus can be read").path()) {
            let data = fs::read(&file).expect("the corpus can be read");
            let outcome = catch_unwind(AssertUnwindSafe(|| run(&data)));
            assert!(outcome.is_ok(), "{name} fails on {}", file.display());
            replayed += 1;
        }
        assert!(replayed > 0, "the corpus of {name} is empty");
    }
}
