//! Whether a sleeping shard must be woken: a flag that it arms before it sleeps. Nothing else than
//! the flag, so that loom can try every order of what both sides do.
//!
//! ```text
//! shard:  arm, fence, look for mail, sleep
//! others: put mail, fence, look at the flag, wake
//! ```
//!
//! Either the shard sees the mail or the others see the flag: the fences leave no third way.

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// Set while a shard sleeps or is about to.
#[derive(Debug)]
pub(super) struct Armed(AtomicBool);

impl Armed {
    /// Of a shard that is awake.
    pub(super) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Whether the caller, who has put something into a mailbox, is the one to wake the shard.
    pub(super) fn must_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }

    /// Whether the shard may sleep now; `is_empty` looks into its mailboxes. If not it is awake.
    pub(super) fn may_sleep(&self, is_empty: impl FnOnce() -> bool) -> bool {
        self.set(true);
        fence(Ordering::SeqCst);
        let may = is_empty();
        if !may {
            self.disarm();
        }
        may
    }

    /// The shard is awake: nobody needs to wake it.
    pub(super) fn disarm(&self) {
        self.set(false);
    }

    /// A store would do, by C++'s rules: it cannot slip in front of another core's swap that has
    /// seen what this core wrote before. loom does not know that rule, and a swap per sleep is
    /// nothing beside the sleep.
    fn set(&self, is_armed: bool) {
        self.0.swap(is_armed, Ordering::Relaxed);
    }
}

/// `RUSTFLAGS="--cfg loom" cargo test --release --lib --target-dir target/loom wake`
#[cfg(all(test, loom))]
mod tests {
    use loom::sync::atomic::AtomicUsize;
    use loom::sync::{Arc, Condvar, Mutex};
    use loom::thread;

    use super::*;

    /// A shard's mailbox and eventfd, as far as the hand-shake knows them.
    struct Sleeper {
        armed: Armed,
        mail: AtomicUsize,
        mark: AtomicUsize,
        eventfd: (Mutex<usize>, Condvar),
    }

    impl Sleeper {
        fn new() -> Arc<Self> {
            let eventfd = (Mutex::new(0), Condvar::new());
            let [mail, mark] = [AtomicUsize::new(0), AtomicUsize::new(0)];
            Arc::new(Self { armed: Armed::new(), mail, mark, eventfd })
        }

        fn post(&self) {
            // The mark alone has to bring it over.
            self.mail.fetch_add(1, Ordering::Relaxed);
            self.mark.fetch_or(1, Ordering::AcqRel);
            if self.armed.must_wake() {
                *self.eventfd.0.lock().unwrap() += 1;
                self.eventfd.1.notify_one();
            }
        }

        /// Messages there were so far, as a turn sees that looks at the mark first.
        fn mail(&self, taken: usize) -> usize {
            match self.mark.swap(0, Ordering::AcqRel) {
                0 => taken,
                _ => self.mail.load(Ordering::Relaxed),
            }
        }

        fn may_sleep(&self) -> bool {
            self.armed.may_sleep(|| self.mark.load(Ordering::Acquire) == 0)
        }

        /// As the eventfd that a ring waits for: loom tells if nobody ever writes it.
        fn sleep(&self) {
            let mut wakes = self.eventfd.0.lock().unwrap();
            while *wakes == 0 {
                wakes = self.eventfd.1.wait(wakes).unwrap();
            }
            *wakes = 0;
        }
    }

    fn posting(sleeper: &Arc<Sleeper>, messages: usize) -> thread::JoinHandle<()> {
        let sleeper = sleeper.clone();
        thread::spawn(move || (0..messages).for_each(|_| sleeper.post()))
    }

    #[test]
    fn of_two_shards_that_post_to_a_sleeping_one_exactly_one_wakes_it() {
        loom::model(|| {
            let sleeper = Sleeper::new();
            let posters = [posting(&sleeper, 1), posting(&sleeper, 1)];
            let slept = sleeper.may_sleep();
            posters.into_iter().for_each(|poster| poster.join().unwrap());
            let wakes = *sleeper.eventfd.0.lock().unwrap();
            assert!(if slept { wakes == 1 } else { wakes <= 1 }, "slept {slept}, woken {wakes}");
        });
    }

    #[test]
    fn a_shard_that_sleeps_between_messages_gets_all_of_them() {
        loom::model(|| {
            let sleeper = Sleeper::new();
            let poster = posting(&sleeper, 2);
            let mut taken = 0;
            while taken < 2 {
                if sleeper.may_sleep() {
                    sleeper.sleep();
                }
                sleeper.armed.disarm();
                taken = sleeper.mail(taken);
            }
            poster.join().unwrap();
        });
    }

    #[test]
    fn a_shard_that_is_awake_is_not_woken() {
        loom::model(|| {
            let sleeper = Sleeper::new();
            assert!(sleeper.may_sleep());
            sleeper.armed.disarm();
            posting(&sleeper, 1).join().unwrap();
            assert_eq!(*sleeper.eventfd.0.lock().unwrap(), 0);
        });
    }
}
