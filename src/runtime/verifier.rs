//! One thread that compares secrets with hashes: tens of milliseconds each, which no shard has.

use std::io;

use crossbeam_channel::{Sender, bounded};

use super::bus::Control;
use crate::address::ShardId;
use crate::shard::access::{RUNNING_MAX, Verification};

/// One shard's way to ask for a [`Verification`].
pub(super) struct Verifier {
    shard: ShardId,
    jobs: Sender<(ShardId, Verification)>,
}

/// Starts the thread, which ends with the last of the verifiers given for so many shards.
///
/// # Errors
/// A thread cannot be had.
pub(super) fn start(control: Control, shards: usize) -> io::Result<Vec<Verifier>> {
    // Shards ask for no more at a time, so there is always room.
    let (jobs, asked) = bounded::<(ShardId, Verification)>(RUNNING_MAX * shards);
    let work = move || {
        for (shard, verification) in asked {
            control.tell(shard, verification.run());
        }
    };
    std::thread::Builder::new().name("verifier".into()).spawn(work)?;
    let verifier = |index| Verifier { shard: ShardId(index as u8), jobs: jobs.clone() };
    Ok((0..shards).map(verifier).collect())
}

impl Verifier {
    /// Asks; the answer comes as a message.
    pub(super) fn ask(&self, verification: Verification) {
        // Should the thread have died, requests are answered when their time is up.
        let _ = self.jobs.send((self.shard, verification));
    }
}
