//! How often something may happen: so many a second, and as many at once.
//!
//! The generic cell rate algorithm (ITU-T I.371): a [`Bucket`] is one number, the moment at which
//! it is full again, so it costs eight bytes per whom it is for, and nothing as time passes.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::protocol::credentials::User;

/// A bucket fills up in this time, in nanoseconds: that is how much may come at once.
const FULL_NS: u64 = 1_000_000_000;

/// So many a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    interval_ns: u64,
}

/// What one has left of a [`Rate`]: at first all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    full_at_ns: u64,
}

impl Rate {
    /// So many a second; 0 means any number.
    pub fn new(per_s: u32) -> Option<Self> {
        NonZeroU32::new(per_s).map(|per_s| Self { interval_ns: FULL_NS / u64::from(per_s.get()) })
    }

    /// Takes one out of a bucket; false if there is none in it now.
    pub fn take(self, bucket: &mut Bucket, now_ms: u64) -> bool {
        let taken = self.after(*bucket, now_ms);
        *bucket = taken.unwrap_or(*bucket);
        taken.is_some()
    }

    /// When there is one in a bucket, in milliseconds; a time that is past: now.
    pub fn ready_ms(self, bucket: Bucket) -> u64 {
        (bucket.full_at_ns + self.interval_ns).saturating_sub(FULL_NS).div_ceil(1_000_000)
    }

    /// The bucket without the one that may be taken out of it now.
    fn after(self, bucket: Bucket, now_ms: u64) -> Option<Bucket> {
        let now_ns = now_ms * 1_000_000;
        let full_at_ns = bucket.full_at_ns.max(now_ns) + self.interval_ns;
        (full_at_ns <= now_ns + FULL_NS).then_some(Bucket { full_at_ns })
    }
}

impl Bucket {
    /// When it is full, in milliseconds: then it is like a new one.
    pub fn full_at_ms(self) -> u64 {
        self.full_at_ns.div_ceil(1_000_000)
    }
}

/// The calls that one user of the API may make, counted over all shards of the node: users are few,
/// and their number is one that is shared. It is touched only for a user that has a limit.
#[derive(Debug)]
pub struct Quota {
    rate: Option<Rate>,
    full_at_ns: AtomicU64,
    // The latest time that a shard has told. Their clocks leave out the time in which each did not run,
    // so they differ: the one that is ahead counts for all.
    now_ms: AtomicU64,
}

impl Quota {
    /// The quota of a user that has made no call.
    pub fn new(user: &User) -> Self {
        let rate = Rate::new(user.requests_per_s);
        Self { rate, full_at_ns: AtomicU64::new(0), now_ms: AtomicU64::new(0) }
    }

    /// Takes one call; false if there is none left now.
    pub fn take(&self, now_ms: u64) -> bool {
        let Some(rate) = self.rate else { return true };
        let now_ms = self.now_ms.fetch_max(now_ms, Ordering::Relaxed).max(now_ms);
        let after = |full_at_ns| rate.after(Bucket { full_at_ns }, now_ms);
        let taken = self.full_at_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full| {
            after(full).map(|bucket| bucket.full_at_ns)
        });
        taken.is_ok()
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
    fn a_second_of_it_may_come_at_once_and_then_one_by_one() {
        for per_s in [1, 3, 7, 1000] {
            let rate = Rate::new(per_s).expect("a limit");
            let mut bucket = Bucket::default();
            assert_eq!(taken(rate, &mut bucket, 5000), per_s as usize);
            let ready_ms = rate.ready_ms(bucket);
            assert!(5000 < ready_ms && ready_ms <= 6000, "{per_s}: {ready_ms}");
            assert_eq!(taken(rate, &mut bucket, ready_ms - 1), 0);
            assert_eq!(taken(rate, &mut bucket, ready_ms), 1);
        }
    }

    #[test]
    fn in_the_long_run_it_is_so_many_a_second() {
        let rate = Rate::new(50).expect("a limit");
        let mut bucket = Bucket::default();
        let all: usize = (1000..11_000).map(|now_ms| taken(rate, &mut bucket, now_ms)).sum();
        assert_eq!(all, 50 + 10 * 50 - 1);
    }

    #[test]
    fn who_takes_nothing_has_no_more_than_a_second_of_it() {
        let rate = Rate::new(10).expect("a limit");
        let mut bucket = Bucket::default();
        taken(rate, &mut bucket, 1000);
        assert_eq!(bucket.full_at_ms(), 2000);
        assert_eq!(taken(rate, &mut bucket, 1_000_000), 10);
    }

    #[test]
    fn none_means_any_number() {
        assert_eq!(Rate::new(0), None);
    }

    #[test]
    fn the_calls_of_a_user_are_counted_over_all_shards() {
        let user = |requests_per_s| User {
            name: "app".into(),
            scheme: Scheme::Basic,
            secret: Secret::Plain("secret".into()),
            roles: Roles::ALL,
            from: Vec::new(),
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
        // A shard whose clock is behind is not refused what the others would be given.
        assert!(!limited.take(7) && limited.take(2000) && limited.take(900));
        assert_eq!(free.full_at_ns.into_inner(), 0, "nothing is shared for a user without a limit");
    }
}
