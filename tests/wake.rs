//! Every order in which a shard can fall asleep while others wake it, tried by loom.

#![forbid(unsafe_code)]

#[path = "../src/runtime/wake.rs"]
mod wake;

use loom::sync::atomic::{self, AtomicUsize, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use wake::Armed;

/// A shard's mailbox and eventfd, as far as the hand-shake knows them.
struct Sleeper {
    armed: Armed,
    // Not loom's: it comes over with the mark, by the rules of release and acquire.
    mail: std::sync::atomic::AtomicUsize,
    mark: AtomicUsize,
    eventfd: (Mutex<usize>, Condvar),
}

impl Sleeper {
    fn new() -> Arc<Self> {
        let eventfd = (Mutex::new(0), Condvar::new());
        let (mail, mark) = (Default::default(), AtomicUsize::new(0));
        Arc::new(Self { armed: Armed::new(), mail, mark, eventfd })
    }

    fn post(&self) {
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

    /// Waits like a ring for its eventfd. Loom reports it if nobody ever writes to that.
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
