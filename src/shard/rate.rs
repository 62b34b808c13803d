//! Rate limits: a number of events per second, with a burst of the same number.
//!
//! Implements the generic cell rate algorithm (ITU-T I.371). The state of one client or address is
//! a [`Bucket`] of eight bytes: the time at which the bucket is full again. No work is due as time
//! passes.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::protocol::credentials::User;

/// The time in which an empty bucket becomes full, in nanoseconds. So the burst is one second's
/// worth.
const FULL_NS: u64 = 1_000_000_000;

/// A limit of events per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    interval_ns: u64,
}

/// The remainder of a [`Rate`] for one client or address. A new bucket is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    full_at_ns: u64,
}

impl Rate {
    /// Creates a limit of `per_s` events per second; `None` (no limit) if that is 0.
    pub fn new(per_s: u32) -> Option<Self> {
        NonZeroU32::new(per_s).map(|per_s| Self { interval_ns: FULL_NS / u64::from(per_s.get()) })
    }

    /// Takes one event out of a bucket; returns false if the bucket is empty.
    pub fn take(self, bucket: &mut Bucket, now_ms: u64) -> bool {
        let taken = self.after(*bucket, now_ms);
        *bucket = taken.unwrap_or(*bucket);
        taken.is_some()
    }

    /// Returns when a bucket holds an event, in milliseconds. A time in the past means now.
    pub fn ready_at_ms(self, bucket: Bucket) -> u64 {
        (bucket.full_at_ns + self.interval_ns).saturating_sub(FULL_NS).div_ceil(1_000_000)
    }

    /// Returns the bucket without one event; `None` if the bucket is empty.
    fn after(self, bucket: Bucket, now_ms: u64) -> Option<Bucket> {
        let now_ns = now_ms * 1_000_000;
        let full_at_ns = bucket.full_at_ns.max(now_ns) + self.interval_ns;
        (full_at_ns <= now_ns + FULL_NS).then_some(Bucket { full_at_ns })
    }
}

impl Bucket {
    /// Returns when the bucket is full, in milliseconds. From then on it equals a new one.
    pub fn full_at_ms(self) -> u64 {
        self.full_at_ns.div_ceil(1_000_000)
    }
}

/// A bucket that all shards of the node share.
#[derive(Debug, Default)]
pub struct SharedBucket {
    full_at_ns: AtomicU64,
    // The latest time that any shard has passed in. The shards' clocks differ, since each stands
    // still while its shard does not run. The clock that is ahead counts for all.
    now_ms: AtomicU64,
}

impl SharedBucket {
    /// Takes one event; returns false if the bucket is empty.
    pub fn take(&self, rate: Rate, now_ms: u64) -> bool {
        let now_ms = self.now_ms.fetch_max(now_ms, Ordering::Relaxed).max(now_ms);
        let after = |full_at_ns| rate.after(Bucket { full_at_ns }, now_ms);
        let taken = self.full_at_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full| {
            after(full).map(|bucket| bucket.full_at_ns)
        });
        taken.is_ok()
    }
}

/// The calls that one user of the API may make, counted over all shards of the node. Users without a
/// limit share nothing.
#[derive(Debug)]
pub struct Quota {
    rate: Option<Rate>,
    bucket: SharedBucket,
}

impl Quota {
    /// Creates the quota of a user that has made no call.
    pub fn new(user: &User) -> Self {
        Self { rate: Rate::new(user.requests_per_s), bucket: SharedBucket::default() }
    }

    /// Whether this is the user's rate.
    pub fn is_of(&self, user: &User) -> bool {
        self.rate == Rate::new(user.requests_per_s)
    }

    /// Takes one call; returns false if none is left at this time.
    pub fn take(&self, now_ms: u64) -> bool {
        self.rate.is_none_or(|rate| self.bucket.take(rate, now_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::credentials::{Roles, Scheme, Secret};

    fn taken(rate: Rate, bucket: &mut Bucket, now_ms: u64) -> usize {
        (0..).take_while(|_| rate.take(bucket, now_ms)).count()
    }

    #[test]
    fn a_burst_of_one_second_is_allowed_and_then_single_events() {
        for per_s in [1, 3, 7, 1000] {
            let rate = Rate::new(per_s).expect("a limit");
            let mut bucket = Bucket::default();
            assert_eq!(taken(rate, &mut bucket, 5000), per_s as usize);
            let ready_at_ms = rate.ready_at_ms(bucket);
            assert!(5000 < ready_at_ms && ready_at_ms <= 6000, "{per_s}: {ready_at_ms}");
            assert_eq!(taken(rate, &mut bucket, ready_at_ms - 1), 0);
            assert_eq!(taken(rate, &mut bucket, ready_at_ms), 1);
        }
    }

    #[test]
    fn in_the_long_run_the_rate_is_kept() {
        let rate = Rate::new(50).expect("a limit");
        let mut bucket = Bucket::default();
        let all: usize = (1000..11_000).map(|now_ms| taken(rate, &mut bucket, now_ms)).sum();
        assert_eq!(all, 50 + 10 * 50 - 1);
    }

    #[test]
    fn an_unused_bucket_holds_at_most_one_second() {
        let rate = Rate::new(10).expect("a limit");
        let mut bucket = Bucket::default();
        taken(rate, &mut bucket, 1000);
        assert_eq!(bucket.full_at_ms(), 2000);
        assert_eq!(taken(rate, &mut bucket, 1_000_000), 10);
    }

    #[test]
    fn a_rate_of_zero_is_no_limit() {
        assert_eq!(Rate::new(0), None);
    }

    #[test]
    fn the_calls_of_a_user_are_counted_over_all_shards() {
        let user = |requests_per_s| User {
            name: "app".into(),
            scheme: Scheme::Basic,
            secret: Secret::Plain("secret".into()),
            roles: Roles::ALL,
            from: Default::default(),
            requests_per_s,
        };
        let (limited, free) = (Quota::new(&user(100)), Quota::new(&user(0)));
        let taken = |_| (0..1000).filter(|_| limited.take(7)).count();
        let all: usize = std::thread::scope(|scope| {
            let threads = [0; 4].map(|at| scope.spawn(move || taken(at)));
            threads.map(|thread| thread.join().expect("it counts")).iter().sum()
        });
        assert_eq!(all, 100);
        assert!((0..1000).all(|_| free.take(7)));
        // A shard whose clock is behind has the same quota as the others.
        assert!(!limited.take(7) && limited.take(2000) && limited.take(900));
        assert_eq!(
            free.bucket.full_at_ns.into_inner(),
            0,
            "nothing is shared for a user without a limit"
        );
    }
}
