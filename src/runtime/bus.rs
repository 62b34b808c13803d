//! Mailboxes between the shards of a node and its mesh: one bounded lock-free channel for each ordered
//! pair, and one eventfd for each end to wake it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use rustix::event::{EventfdFlags, eventfd};

use super::wake::Armed;
use crate::address::{NodeId, ShardAddress, ShardId};
use crate::message::{Message, Party};

/// The messages that all mailboxes of one shard hold together. A channel allocates its memory at
/// creation, so each gets an equal part, of at least [`PAIR_MIN`].
const SHARD_MESSAGES: usize = 8192;

/// The smallest capacity of one mailbox, in messages.
const PAIR_MIN: usize = 64;

/// The most messages taken from the mailboxes per turn. The rest waits for the next turn.
const MESSAGES_PER_TURN: usize = 4096;

/// Tells a shard which of its mailboxes have messages, and wakes it if it sleeps.
#[derive(Debug)]
struct Wake {
    // One bit for each mailbox, set after a message was put into it. A turn reads only marked ones.
    marks: Box<[AtomicU64]>,
    armed: Armed,
    eventfd: OwnedFd,
}

impl Wake {
    /// Creates the marks of an end with so many mailboxes.
    fn new(mailboxes: usize) -> io::Result<Self> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC)?;
        let marks = (0..mailboxes.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { marks, armed: Armed::new(), eventfd })
    }

    /// Marks a mailbox that got a message, and wakes the shard if it sleeps.
    fn mark(&self, mailbox: usize) {
        self.marks[mailbox / 64].fetch_or(1 << (mailbox % 64), Ordering::AcqRel);
        self.wake();
    }

    /// Wakes the shard if it sleeps. Call this after the message was put into the mailbox.
    fn wake(&self) {
        if self.armed.must_wake() {
            // A full counter (EAGAIN) wakes the shard as well; an eventfd has no other errors.
            let _ = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
        }
    }
}

/// A message, and whom it is from; to the mesh: whom it is for.
type Letter = (Party, Message);

/// One end of the bus: a shard's, or the mesh's, whose index follows that of the last shard.
#[derive(Debug)]
pub struct Port {
    node: NodeId,
    shards: usize,
    own: usize,
    inbound: Vec<(ShardId, Receiver<Letter>)>,
    // Bits of the mailboxes that were not empty when the turn reached its limit.
    unread: Box<[u64]>,
    outbound: Vec<Sender<Letter>>,
    // Messages that did not fit into a mailbox yet, per receiver, in order. Bounded by the protocol
    // between shards: answers by the open questions, questions by the pending calls of each
    // connection, events by the credit of feeders and the windows of consumers.
    stuck: Vec<VecDeque<Letter>>,
    is_touched: Vec<bool>,
    wakes: Arc<[Wake]>,
}

/// The node's own end of the bus, which sends to every shard and receives nothing.
#[derive(Clone, Debug)]
pub struct Control {
    node: NodeId,
    outbound: Vec<Sender<Letter>>,
    wakes: Arc<[Wake]>,
}

/// Creates a bus. Returns the ports of the shards, followed by that of the mesh if `has_mesh`.
///
/// # Errors
/// An eventfd cannot be created.
pub fn bus(node: NodeId, shards: usize, has_mesh: bool) -> io::Result<(Vec<Port>, Control)> {
    let capacity = (SHARD_MESSAGES / shards).max(PAIR_MIN);
    let ends = shards + usize::from(has_mesh);
    // The last mailbox is for messages from the node itself.
    let mailboxes = ends + 1;
    let wakes: Arc<[Wake]> = (0..ends).map(|_| Wake::new(mailboxes)).collect::<Result<_, _>>()?;
    let mut ports: Vec<Port> = (0..ends)
        .map(|own| Port {
            node,
            shards,
            own,
            inbound: Vec::new(),
            unread: vec![0; mailboxes.div_ceil(64)].into(),
            outbound: Vec::new(),
            stuck: (0..ends).map(|_| VecDeque::new()).collect(),
            is_touched: vec![false; ends],
            wakes: wakes.clone(),
        })
        .collect();
    let mut control = Control { node, outbound: Vec::new(), wakes };
    for to in 0..ends {
        for from in 0..ends {
            let (sender, receiver) = bounded(capacity);
            ports[from].outbound.push(sender);
            ports[to].inbound.push((ShardId(from as u8), receiver));
        }
        if to < shards {
            let (sender, receiver) = bounded(PAIR_MIN);
            control.outbound.push(sender);
            ports[to].inbound.push((ShardId(to as u8), receiver));
        }
    }
    Ok((ports, control))
}

impl Port {
    /// Returns the eventfd that becomes readable when this end must wake.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wakes[self.own].eventfd.as_fd()
    }

    /// Posts a shard's message to another shard, or to the mesh, which forwards it to other nodes. The
    /// next [`Self::flush`] sends it.
    pub fn post(&mut self, to: Party, message: Message) {
        match to {
            Party::Shard(ShardAddress { node, shard }) if node == self.node => {
                let own = ShardAddress { node, shard: ShardId(self.own as u8) };
                self.put(shard.index(), (Party::Shard(own), message));
            }
            // Without a mesh there are no other nodes, and the shards send them nothing.
            _ if self.outbound.len() == self.shards => {}
            _ => self.put(self.shards, (to, message)),
        }
    }

    /// Posts a message from the mesh to a shard of this node. The next [`Self::flush`] sends it.
    pub fn post_from(&mut self, from: Party, to: ShardId, message: Message) {
        if to.index() < self.shards {
            self.put(to.index(), (from, message));
        }
    }

    fn put(&mut self, to: usize, letter: Letter) {
        self.stuck[to].push_back(letter);
        self.is_touched[to] = true;
    }

    /// Puts posted messages into the mailboxes and wakes sleeping receivers. Returns true if some did not
    /// fit and must be sent again soon.
    pub fn flush(&mut self) -> bool {
        let mut is_stuck = false;
        for to in 0..self.outbound.len() {
            if !self.is_touched[to] {
                continue;
            }
            while let Some(letter) = self.stuck[to].pop_front() {
                match self.outbound[to].try_send(letter) {
                    Ok(()) => {}
                    Err(TrySendError::Full(letter)) => {
                        self.stuck[to].push_front(letter);
                        break;
                    }
                    // The shard has ended: the node shuts down, and nobody waits for the message.
                    Err(TrySendError::Disconnected(_)) => {}
                }
            }
            self.is_touched[to] = !self.stuck[to].is_empty();
            is_stuck |= self.is_touched[to];
            self.wakes[to].mark(self.own);
        }
        is_stuck
    }

    /// Takes messages out of the mailboxes, so many at most per turn: for a shard with whom they are
    /// from; for the mesh with the shard that sent them, and whom they are for.
    pub fn receive(&mut self, mut handle: impl FnMut(ShardId, Party, Message)) -> usize {
        let share = MESSAGES_PER_TURN.div_ceil(self.inbound.len());
        let mut taken = 0;
        for (word, unread) in self.unread.iter_mut().enumerate() {
            let mark = &self.wakes[self.own].marks[word];
            let is_marked = mark.load(Ordering::Relaxed) != 0;
            let mut marked = *unread | if is_marked { mark.swap(0, Ordering::AcqRel) } else { 0 };
            *unread = 0;
            while marked != 0 {
                let bit = marked.trailing_zeros() as usize;
                marked &= marked - 1;
                let (from, receiver) = &self.inbound[word * 64 + bit];
                for (party, message) in receiver.try_iter().take(share) {
                    taken += 1;
                    handle(*from, party, message);
                }
                *unread |= u64::from(!receiver.is_empty()) << bit;
            }
        }
        taken
    }

    /// Announces that this end is about to sleep. Returns false if it must not, because a message is
    /// waiting.
    pub fn may_sleep(&self) -> bool {
        self.wakes[self.own].armed.may_sleep(|| self.is_empty())
    }

    /// Whether no message is waiting.
    pub fn is_empty(&self) -> bool {
        self.unread.iter().all(|&word| word == 0)
            && self.wakes[self.own].marks.iter().all(|word| word.load(Ordering::Acquire) == 0)
    }

    /// Announces that this end is awake and need not be woken.
    pub fn stay_awake(&self) {
        self.wakes[self.own].armed.disarm();
    }
}

impl Control {
    /// Sends a message to every shard. A message that does not fit into a mailbox is dropped.
    pub fn tell_all(&self, message: impl Fn() -> Message) {
        for (shard, sender) in self.outbound.iter().enumerate() {
            let _ = sender.try_send((self.own(ShardId(shard as u8)), message()));
            self.mark(shard);
        }
    }

    /// Sends a message to one shard. Blocks while its mailbox is full.
    pub fn tell(&self, shard: ShardId, message: Message) {
        // Fails only if the shard has ended.
        let _ = self.outbound[shard.index()].send((self.own(shard), message));
        self.mark(shard.index());
    }

    /// Marks the node's mailbox of a shard, whose index follows those of all ends.
    fn mark(&self, shard: usize) {
        self.wakes[shard].mark(self.wakes.len());
    }

    /// Returns the sender of the node's messages to a shard, which is the shard itself.
    fn own(&self, shard: ShardId) -> Party {
        Party::Shard(ShardAddress { node: self.node, shard })
    }

    /// Wakes every shard that sleeps or is about to sleep.
    pub fn wake_all(&self) {
        (0..self.outbound.len()).for_each(|shard| self.mark(shard));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Answer, Ticket};
    use crate::protocol::api::Reply;

    const NODE: NodeId = NodeId::new(1).unwrap();

    fn shard(number: u8) -> Party {
        Party::Shard(ShardAddress { node: NODE, shard: ShardId(number) })
    }

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
        let (mut ports, _control) = bus(NODE, 2, false).unwrap();
        let mut second = ports.pop().unwrap();
        let mut first = ports.pop().unwrap();
        const COUNT: u64 = 100_000;
        let sender = std::thread::spawn(move || {
            for n in 0..COUNT {
                first.post(shard(1), message(n));
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
            let taken = second.receive(|_, from, message| {
                assert_eq!((from, number(message)), (shard(0), expected));
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
    fn what_is_for_other_nodes_goes_to_the_mesh_and_what_it_says_comes_with_its_sender() {
        let (mut ports, _control) = bus(NODE, 1, true).unwrap();
        let far = NodeId::new(2).unwrap();
        let far = Party::Shard(ShardAddress { node: far, shard: ShardId(9) });
        ports[0].post(far, message(1));
        ports[0].post(Party::Mesh, message(2));
        ports[0].flush();
        let mut seen = Vec::new();
        ports[1].receive(|from, to, message| seen.push((from, to, number(message))));
        assert_eq!(seen, [(ShardId(0), far, 1), (ShardId(0), Party::Mesh, 2)]);
        ports[1].post_from(far, ShardId(0), message(3));
        ports[1].flush();
        ports[0].receive(|_, from, message| assert_eq!((from, number(message)), (far, 3)));
        assert!(ports[0].may_sleep());
    }

    #[test]
    fn a_shard_that_was_awake_when_all_were_woken_does_not_sleep_before_it_has_looked() {
        let (mut ports, control) = bus(NODE, 1, false).unwrap();
        control.wake_all();
        assert!(!ports[0].may_sleep());
        assert_eq!(ports[0].receive(|_, _, message| panic!("unexpected {message:?}")), 0);
        assert!(ports[0].may_sleep());
    }

    #[test]
    fn a_shard_with_mail_does_not_sleep() {
        let (mut ports, control) = bus(NODE, 1, false).unwrap();
        assert!(ports[0].may_sleep());
        control.tell_all(|| Message::DrainBackends);
        assert!(!ports[0].may_sleep());
        ports[0].receive(|_, _, message| assert!(matches!(message, Message::DrainBackends)));
        assert!(ports[0].may_sleep());
    }
}
