//! A thread that verifies secrets against password hashes. One verification takes tens of milliseconds,
//! which would stall a shard.

use std::collections::VecDeque;
use std::io;

use crossbeam_channel::{Sender, TrySendError, bounded};

use super::bus::NodePort;
use crate::address::ShardId;
use crate::shard::access::{RUNNING_MAX, Verification};

/// A verification, and the shard that gets its result.
type Job = (ShardId, Verification);

/// One shard's handle to the verifier thread. Never blocks.
pub(super) struct Verifier {
    shard: ShardId,
    jobs: Sender<Job>,
    // Not sent yet: at most RUNNING_MAX, because a shard has no more in progress.
    unsent: VecDeque<Verification>,
}

/// Starts the thread and returns a handle for each shard. The thread ends when the last handle is
/// dropped.
///
/// # Errors
/// The thread cannot be started.
pub(super) fn start(control: NodePort, shards: usize) -> io::Result<Vec<Verifier>> {
    // Room for everything that the shards can have in progress. If it is full nevertheless, a shard
    // keeps its verifications and tries again.
    let (jobs, asked) = bounded::<Job>(RUNNING_MAX * shards);
    let work = move || {
        for (shard, verification) in asked {
            control.tell(shard, verification.run());
        }
    };
    std::thread::Builder::new().name("verifier".into()).spawn(work)?;
    Ok((0..shards).map(|index| Verifier::new(ShardId(index as u8), jobs.clone())).collect())
}

impl Verifier {
    fn new(shard: ShardId, jobs: Sender<Job>) -> Self {
        Self { shard, jobs, unsent: VecDeque::new() }
    }

    /// Queues a verification for the next [`Self::flush`]. The result arrives as a message.
    pub(super) fn ask(&mut self, verification: Verification) {
        self.unsent.push_back(verification);
    }

    /// Sends the queued verifications. Returns true if some did not fit and must be sent later.
    pub(super) fn flush(&mut self) -> bool {
        while let Some(verification) = self.unsent.pop_front() {
            match self.jobs.try_send((self.shard, verification)) {
                Ok(()) => {}
                Err(TrySendError::Full((_, verification))) => {
                    self.unsent.push_front(verification);
                    return true;
                }
                // The thread has died: the waiting requests fail at their timeout.
                Err(TrySendError::Disconnected(_)) => {}
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::credentials::{Credentials, FingerprintKey, Scheme};

    #[test]
    fn a_shard_that_finds_no_room_tries_again_instead_of_waiting() {
        let (jobs, asked) = bounded(1);
        let mut verifier = Verifier::new(ShardId(0), jobs);
        assert!(!verifier.flush());
        for secret in ["1", "2"] {
            let secret = secret.to_owned();
            let credentials = Credentials { scheme: Scheme::Bearer, name: String::new(), secret };
            let fingerprint = credentials.fingerprint(&FingerprintKey::new([0; 32]));
            verifier.ask(Verification::of_nobody(fingerprint));
        }
        assert!(verifier.flush());
        assert!(verifier.flush() && asked.len() == 1);
        asked.recv().expect("the first");
        assert!(!verifier.flush() && asked.len() == 1);
        drop(asked);
        assert!(!verifier.flush());
    }
}
