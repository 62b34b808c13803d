//! Mailboxes between the shards of a node: one bounded lock-free channel per ordered pair, and one
//! eventfd per shard to wake it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use rustix::event::{EventfdFlags, eventfd};

use super::wake::Armed;
use crate::address::ShardId;
use crate::message::Message;

/// Messages that the mailboxes of one shard hold together. The channels take their memory at once,
/// so each pair gets a part, of at least [`PAIR_MIN`].
const SHARD_MESSAGES: usize = 8192;
const PAIR_MIN: usize = 64;

/// Messages taken from the mailboxes per turn: what is left waits for the next.
const MESSAGES_PER_TURN: usize = 4096;

/// Wakes a shard that sleeps.
#[derive(Debug)]
pub struct Wake {
    armed: Armed,
    eventfd: OwnedFd,
}

impl Wake {
    fn new() -> io::Result<Self> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Self { armed: Armed::new(), eventfd })
    }

    /// Wakes the shard if it sleeps. To be called after what it shall find is in its mailbox.
    pub fn wake(&self) {
        if self.armed.must_wake() {
            // A full counter (EAGAIN) is awake enough; nothing else can go wrong with an eventfd.
            let _ = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
        }
    }
}

/// One shard's end of the bus.
#[derive(Debug)]
pub struct Port {
    own: ShardId,
    inbound: Vec<(ShardId, Receiver<Message>)>,
    outbound: Vec<Sender<Message>>,
    // What did not fit a mailbox yet, per shard, in order. Bounded by what shards may ask of each
    // other: answers by the questions open, questions by the calls that wait on each connection,
    // events by the credit of feeders and the windows of consumers.
    stuck: Vec<VecDeque<Message>>,
    is_touched: Vec<bool>,
    wakes: Arc<[Wake]>,
}

/// The node's end: it speaks to every shard, and is not spoken to.
#[derive(Clone, Debug)]
pub struct Control {
    outbound: Vec<Sender<Message>>,
    wakes: Arc<[Wake]>,
}

/// A bus between so many shards.
///
/// # Errors
/// No descriptor for an eventfd.
pub fn bus(shards: usize) -> io::Result<(Vec<Port>, Control)> {
    let capacity = (SHARD_MESSAGES / shards).max(PAIR_MIN);
    let wakes: Arc<[Wake]> = (0..shards).map(|_| Wake::new()).collect::<Result<_, _>>()?;
    let mut ports: Vec<Port> = (0..shards)
        .map(|own| Port {
            own: ShardId(own as u8),
            inbound: Vec::new(),
            outbound: Vec::new(),
            stuck: (0..shards).map(|_| VecDeque::new()).collect(),
            is_touched: vec![false; shards],
            wakes: wakes.clone(),
        })
        .collect();
    let mut control = Control { outbound: Vec::new(), wakes };
    for to in 0..shards {
        for from in 0..shards {
            let (sender, receiver) = bounded(capacity);
            ports[from].outbound.push(sender);
            ports[to].inbound.push((ShardId(from as u8), receiver));
        }
        let (sender, receiver) = bounded(PAIR_MIN);
        control.outbound.push(sender);
        ports[to].inbound.push((ShardId(to as u8), receiver));
    }
    Ok((ports, control))
}

impl Port {
    /// The eventfd that becomes readable when the shard is to wake.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wakes[self.own.index()].eventfd.as_fd()
    }

    /// Gives a message to another shard; it goes with the next [`Self::flush`].
    pub fn post(&mut self, to: ShardId, message: Message) {
        self.stuck[to.index()].push_back(message);
        self.is_touched[to.index()] = true;
    }

    /// Puts what was posted into the mailboxes and wakes who sleeps. True if some did not fit: to
    /// be tried again soon.
    pub fn flush(&mut self) -> bool {
        let mut is_stuck = false;
        for to in 0..self.outbound.len() {
            if !self.is_touched[to] {
                continue;
            }
            while let Some(message) = self.stuck[to].pop_front() {
                match self.outbound[to].try_send(message) {
                    Ok(()) => {}
                    Err(TrySendError::Full(message)) => {
                        self.stuck[to].push_front(message);
                        break;
                    }
                    // The shard has ended: the node goes down, and nobody waits for this.
                    Err(TrySendError::Disconnected(_)) => {}
                }
            }
            self.is_touched[to] = !self.stuck[to].is_empty();
            is_stuck |= self.is_touched[to];
            self.wakes[to].wake();
        }
        is_stuck
    }

    /// Takes messages out of the mailboxes, so many at most per turn.
    pub fn receive(&mut self, mut handle: impl FnMut(ShardId, Message)) -> usize {
        let share = MESSAGES_PER_TURN.div_ceil(self.inbound.len());
        let mut taken = 0;
        for (from, receiver) in &self.inbound {
            for message in receiver.try_iter().take(share) {
                taken += 1;
                handle(*from, message);
            }
        }
        taken
    }

    /// Says that the shard is about to sleep. False if it must not: a message is there.
    pub fn may_sleep(&self) -> bool {
        let is_empty = || self.inbound.iter().all(|(_, receiver)| receiver.is_empty());
        self.wakes[self.own.index()].armed.may_sleep(is_empty)
    }

    /// Says that the shard is awake: nobody needs to wake it.
    pub fn stay_awake(&self) {
        self.wakes[self.own.index()].armed.disarm();
    }
}

impl Control {
    /// Says something to every shard; what a shard's mailbox has no room for is not said again.
    pub fn tell_all(&self, message: impl Fn() -> Message) {
        for sender in &self.outbound {
            let _ = sender.try_send(message());
        }
        self.wake_all();
    }

    /// Says something to one shard; waits if its mailbox is full.
    pub fn tell(&self, shard: ShardId, message: Message) {
        // A shard that has ended wants to know nothing.
        let _ = self.outbound[shard.index()].send(message);
        self.wakes[shard.index()].wake();
    }

    /// Wakes every shard that sleeps.
    pub fn wake_all(&self) {
        self.wakes.iter().for_each(Wake::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Answer, Ticket};
    use crate::protocol::api::Reply;

    fn number(message: Message) -> u64 {
        match message {
            Message::Answer(ticket, _) => ticket.0,
            other => panic!("unexpected {other:?}"),
        }
    }

    fn message(number: u64) -> Message {
        Message::Answer(Ticket(number), Answer::Done(Ok(Reply::Done)))
    }

    #[test]
    fn messages_of_a_pair_arrive_once_and_in_order_though_mailboxes_are_full() {
        let (mut ports, _control) = bus(2).unwrap();
        let mut second = ports.pop().unwrap();
        let mut first = ports.pop().unwrap();
        const COUNT: u64 = 100_000;
        let sender = std::thread::spawn(move || {
            for n in 0..COUNT {
                first.post(ShardId(1), message(n));
                if n % 7 == 0 {
                    first.flush();
                }
            }
            while first.flush() {
                std::thread::yield_now();
            }
        });
        let mut expected = 0;
        while expected < COUNT {
            let taken = second.receive(|from, message| {
                assert_eq!((from, number(message)), (ShardId(0), expected));
                expected += 1;
            });
            if taken == 0 && second.may_sleep() {
                let mut counter = [0; 8];
                rustix::io::read(second.wake_fd(), &mut counter).unwrap();
            }
        }
        sender.join().unwrap();
    }

    #[test]
    fn a_shard_with_mail_does_not_sleep() {
        let (mut ports, control) = bus(1).unwrap();
        assert!(ports[0].may_sleep());
        control.tell_all(|| Message::DrainBackends);
        assert!(!ports[0].may_sleep());
        ports[0].receive(|_, message| assert!(matches!(message, Message::DrainBackends)));
        assert!(ports[0].may_sleep());
    }
}
