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
use crate::address::ShardId;
use crate::message::{FromMesh, FromNode, FromShard, ToMesh, ToShard};

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

/// The receiving side of one end, with a mailbox for each sender.
#[derive(Debug)]
struct Inlets<T> {
    own: usize,
    // In the order of the senders: the shards, the mesh, the node.
    mailboxes: Vec<Receiver<T>>,
    // Bits of the mailboxes that were not empty when the turn reached its limit.
    unread: Box<[u64]>,
    wakes: Arc<[Wake]>,
}

/// The sending side of one end, with a mailbox for each receiver.
#[derive(Debug)]
struct Outlets<T> {
    mailboxes: Vec<Sender<T>>,
    // Messages that did not fit into a mailbox yet, per receiver, in order. Bounded by the protocol
    // between shards: answers by the open questions, questions by the pending calls of each
    // connection, events by the credit of feeders and the windows of consumers.
    stuck: Vec<VecDeque<T>>,
    // One bit for each receiver, set while messages wait in `stuck`. A flush visits only these.
    touched: Box<[u64]>,
}

/// A shard's end of the bus.
#[derive(Debug)]
pub struct Port {
    shard: ShardId,
    inbox: Inlets<ToShard>,
    shards: Outlets<ToShard>,
    // One mailbox, or none if the node has no mesh.
    mesh: Outlets<ToMesh>,
}

/// The mesh's end of the bus.
#[derive(Debug)]
pub struct MeshPort {
    inbox: Inlets<ToMesh>,
    shards: Outlets<ToShard>,
}

/// The node's own end of the bus, which sends to every shard and receives nothing.
#[derive(Clone, Debug)]
pub struct NodePort {
    mailboxes: Vec<Sender<ToShard>>,
    wakes: Arc<[Wake]>,
}

/// Creates a bus. Returns the ports of the shards, that of the mesh if `has_mesh`, and that of the node.
///
/// # Errors
/// An eventfd cannot be created.
pub fn bus(shards: usize, has_mesh: bool) -> io::Result<(Vec<Port>, Option<MeshPort>, NodePort)> {
    let ends = shards + usize::from(has_mesh);
    // The index of the mesh follows that of the last shard. The node's own mailbox follows all ends.
    let wakes: Arc<[Wake]> = (0..ends).map(|_| Wake::new(ends + 1)).collect::<Result<_, _>>()?;
    let capacity = (SHARD_MESSAGES / shards).max(PAIR_MIN);
    // The sending sides of the mailboxes, per receiver, in the order of the senders.
    let (mut senders, mut inboxes) = (Vec::new(), Vec::new());
    for to in 0..shards {
        let capacities = (0..ends).map(|_| capacity).chain([PAIR_MIN]);
        let (of_shard, inbox) = mailboxes(to, capacities, &wakes);
        senders.push(of_shard.into_iter());
        inboxes.push(inbox);
    }
    let (to_mesh, mesh_inbox) = mailboxes(shards, (0..shards).map(|_| capacity), &wakes);
    let mut to_mesh = to_mesh.into_iter();
    let mut next_outlets = || Outlets::new(senders.iter_mut().filter_map(Iterator::next).collect());
    let mut ports = Vec::new();
    for (index, inbox) in inboxes.into_iter().enumerate() {
        let mesh = Outlets::new(to_mesh.next().filter(|_| has_mesh).into_iter().collect());
        ports.push(Port { shard: ShardId(index as u8), inbox, shards: next_outlets(), mesh });
    }
    let mesh = has_mesh.then(|| MeshPort { inbox: mesh_inbox, shards: next_outlets() });
    let mailboxes = senders.into_iter().flatten().collect();
    Ok((ports, mesh, NodePort { mailboxes, wakes }))
}

/// Creates the mailboxes of one end, with these capacities.
fn mailboxes<T>(
    own: usize,
    capacities: impl Iterator<Item = usize>,
    wakes: &Arc<[Wake]>,
) -> (Vec<Sender<T>>, Inlets<T>) {
    let (senders, mailboxes): (Vec<_>, Vec<_>) = capacities.map(bounded).unzip();
    let unread = vec![0; mailboxes.len().div_ceil(64)].into();
    (senders, Inlets { own, mailboxes, unread, wakes: wakes.clone() })
}

impl<T> Inlets<T> {
    /// Passes messages from the mailboxes to `handle`, each with the index of its sender. Takes a limited
    /// number per turn, and returns how many.
    fn receive(&mut self, mut handle: impl FnMut(usize, T)) -> usize {
        let share = MESSAGES_PER_TURN.div_ceil(self.mailboxes.len());
        let mut taken = 0;
        for (word, unread) in self.unread.iter_mut().enumerate() {
            let mark = &self.wakes[self.own].marks[word];
            let is_marked = mark.load(Ordering::Relaxed) != 0;
            let mut marked = *unread | if is_marked { mark.swap(0, Ordering::AcqRel) } else { 0 };
            *unread = 0;
            while marked != 0 {
                let bit = marked.trailing_zeros() as usize;
                marked &= marked - 1;
                let (from, mailbox) = (word * 64 + bit, &self.mailboxes[word * 64 + bit]);
                for message in mailbox.try_iter().take(share) {
                    taken += 1;
                    handle(from, message);
                }
                *unread |= u64::from(!mailbox.is_empty()) << bit;
            }
        }
        taken
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wakes[self.own].eventfd.as_fd()
    }

    fn may_sleep(&self) -> bool {
        self.wakes[self.own].armed.may_sleep(|| self.is_empty())
    }

    fn is_empty(&self) -> bool {
        self.unread.iter().all(|&word| word == 0)
            && self.wakes[self.own].marks.iter().all(|word| word.load(Ordering::Acquire) == 0)
    }
}

impl<T> Outlets<T> {
    fn new(mailboxes: Vec<Sender<T>>) -> Self {
        let stuck = mailboxes.iter().map(|_| VecDeque::new()).collect();
        let touched = vec![0; mailboxes.len().div_ceil(64)].into();
        Self { mailboxes, stuck, touched }
    }

    /// Posts a message to a receiver. The next [`Self::flush`] sends it. A message to a receiver that does
    /// not exist is dropped.
    fn post(&mut self, to: usize, message: T) {
        if let Some(stuck) = self.stuck.get_mut(to) {
            stuck.push_back(message);
            self.touched[to / 64] |= 1 << (to % 64);
        }
    }

    /// Puts posted messages into the mailboxes and wakes sleeping receivers. Returns true if some did not
    /// fit.
    fn flush(&mut self, receivers: &[Wake], sender: usize) -> bool {
        let mut is_stuck = false;
        for word in 0..self.touched.len() {
            let mut touched = std::mem::take(&mut self.touched[word]);
            while touched != 0 {
                let bit = touched.trailing_zeros() as usize;
                touched &= touched - 1;
                let to = word * 64 + bit;
                self.send(to);
                let has_more = !self.stuck[to].is_empty();
                self.touched[word] |= u64::from(has_more) << bit;
                is_stuck |= has_more;
                receivers[to].mark(sender);
            }
        }
        is_stuck
    }

    /// Puts posted messages into one mailbox, until it is full.
    fn send(&mut self, to: usize) {
        let (mailbox, stuck) = (&self.mailboxes[to], &mut self.stuck[to]);
        while let Some(message) = stuck.pop_front() {
            match mailbox.try_send(message) {
                Ok(()) => {}
                Err(TrySendError::Full(message)) => return stuck.push_front(message),
                // The receiver has ended: the node shuts down, and nobody waits for the message.
                Err(TrySendError::Disconnected(_)) => {}
            }
        }
    }
}

impl Port {
    /// Returns the eventfd that becomes readable when the shard must wake.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.inbox.wake_fd()
    }

    /// Posts a message of the shard. The next [`Self::flush`] sends it.
    pub fn post(&mut self, message: FromShard) {
        match message {
            FromShard::Local(to, message) => {
                self.shards.post(to.index(), ToShard::Local(self.shard, message));
            }
            // Without a mesh there are no other nodes, and the message is dropped.
            FromShard::Mesh(message) => self.mesh.post(0, message),
        }
    }

    /// Puts posted messages into the mailboxes and wakes sleeping receivers. Returns true if some did not
    /// fit and must be sent again soon.
    pub fn flush(&mut self) -> bool {
        let own = self.inbox.own;
        let (shards, mesh) = self.inbox.wakes.split_at(self.shards.mailboxes.len());
        self.shards.flush(shards, own) | self.mesh.flush(mesh, own)
    }

    /// Passes received messages to `handle`, a limited number per turn. Returns how many.
    pub fn receive(&mut self, mut handle: impl FnMut(ToShard)) -> usize {
        self.inbox.receive(|_, message| handle(message))
    }

    /// Announces that the shard is about to sleep. Returns false if it must not, because a message is
    /// waiting.
    pub fn may_sleep(&self) -> bool {
        self.inbox.may_sleep()
    }

    /// Whether no message is waiting.
    pub fn is_empty(&self) -> bool {
        self.inbox.is_empty()
    }

    /// Announces that the shard is awake and need not be woken.
    pub fn stay_awake(&self) {
        self.inbox.wakes[self.inbox.own].armed.disarm();
    }
}

impl MeshPort {
    /// Returns the eventfd that becomes readable when the mesh must wake.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.inbox.wake_fd()
    }

    /// Posts a message to a shard of this node. The next [`Self::flush`] sends it. A message to a shard that
    /// the node does not have is dropped.
    pub fn post(&mut self, to: ShardId, message: FromMesh) {
        self.shards.post(to.index(), ToShard::Mesh(message));
    }

    /// Puts posted messages into the mailboxes and wakes sleeping shards. Returns true if some did not fit
    /// and must be sent again soon.
    pub fn flush(&mut self) -> bool {
        self.shards.flush(&self.inbox.wakes, self.inbox.own)
    }

    /// Passes received messages to `handle`, each with the shard that sent it, a limited number per turn.
    /// Returns how many.
    pub fn receive(&mut self, mut handle: impl FnMut(ShardId, ToMesh)) -> usize {
        self.inbox.receive(|from, message| handle(ShardId(from as u8), message))
    }

    /// Announces that the mesh is about to sleep. Returns false if it must not, because a message is
    /// waiting.
    pub fn may_sleep(&self) -> bool {
        self.inbox.may_sleep()
    }

    /// Announces that the mesh is awake and need not be woken.
    pub fn stay_awake(&self) {
        self.inbox.wakes[self.inbox.own].armed.disarm();
    }
}

impl NodePort {
    /// Sends a message to every shard. A message that does not fit into a mailbox is dropped.
    pub fn tell_all(&self, message: impl Fn() -> FromNode) {
        for (shard, mailbox) in self.mailboxes.iter().enumerate() {
            let _ = mailbox.try_send(ToShard::Node(message()));
            self.mark(shard);
        }
    }

    /// Iterates over the shards.
    pub fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.mailboxes.len()).map(|shard| ShardId(shard as u8))
    }

    /// Sends a message to one shard. Blocks while its mailbox is full.
    pub fn tell(&self, shard: ShardId, message: FromNode) {
        // Fails only if the shard has ended.
        let _ = self.mailboxes[shard.index()].send(ToShard::Node(message));
        self.mark(shard.index());
    }

    /// Marks the node's mailbox of a shard, whose index follows those of all ends.
    fn mark(&self, shard: usize) {
        self.wakes[shard].mark(self.wakes.len());
    }

    /// Wakes every shard that sleeps or is about to sleep.
    pub fn wake_all(&self) {
        (0..self.mailboxes.len()).for_each(|shard| self.mark(shard));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{NodeId, ShardAddress};
    use crate::message::{ClientReply, GridMessage, LocalMessage, Ticket};

    fn message(number: u64) -> GridMessage {
        GridMessage::Answer(Ticket(number), Ok(ClientReply::Done))
    }

    fn number(message: &GridMessage) -> u64 {
        match message {
            GridMessage::Answer(ticket, _) => ticket.0,
            other => panic!("unexpected {other:?}"),
        }
    }

    #[test]
    fn messages_of_a_pair_arrive_once_and_in_order_though_mailboxes_are_full() {
        let (mut ports, ..) = bus(2, false).unwrap();
        let mut second = ports.pop().unwrap();
        let mut first = ports.pop().unwrap();
        const COUNT: u64 = 100_000;
        let sender = std::thread::spawn(move || {
            for n in 0..COUNT {
                first.post(FromShard::Local(ShardId(1), LocalMessage::Grid(message(n))));
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
            let taken = second.receive(|message| match message {
                ToShard::Local(ShardId(0), LocalMessage::Grid(message)) => {
                    assert_eq!(number(&message), expected);
                    expected += 1;
                }
                other => panic!("unexpected {other:?}"),
            });
            if taken == 0 && second.may_sleep() {
                let mut counter = [0; 8];
                rustix::io::read(second.wake_fd(), &mut counter).unwrap();
            }
        }
        sender.join().unwrap();
    }

    #[test]
    fn the_mesh_hears_the_sending_shard_and_a_shard_hears_the_mesh_and_the_node() {
        let (mut ports, mesh, control) = bus(2, true).unwrap();
        let mut mesh = mesh.unwrap();
        let far = ShardAddress { node: NodeId::new(2).unwrap(), shard: ShardId(9) };
        ports[1].post(FromShard::Mesh(ToMesh::Grid(far, message(1))));
        ports[1].post(FromShard::Mesh(ToMesh::Clients(2)));
        ports[1].flush();
        let mut heard = Vec::new();
        mesh.receive(|from, message| heard.push((from, message)));
        assert!(matches!(
            &heard[..],
            [(ShardId(1), ToMesh::Grid(to, first)), (ShardId(1), ToMesh::Clients(2))]
                if *to == far && number(first) == 1
        ));
        mesh.post(ShardId(1), FromMesh::Grid(far, message(3)));
        mesh.post(ShardId(2), FromMesh::Readmitted);
        mesh.flush();
        control.tell(ShardId(1), FromNode::DrainBackends);
        let mut heard = Vec::new();
        ports[1].receive(|message| heard.push(message));
        assert!(matches!(
            &heard[..],
            [ToShard::Mesh(FromMesh::Grid(from, third)), ToShard::Node(FromNode::DrainBackends)]
                if *from == far && number(third) == 3
        ));
        assert!(ports[0].may_sleep() && ports[1].may_sleep() && mesh.may_sleep());
    }

    #[test]
    fn a_node_without_a_mesh_drops_what_is_for_it() {
        let (mut ports, mesh, _) = bus(1, false).unwrap();
        ports[0].post(FromShard::Mesh(ToMesh::Clients(2)));
        assert!(mesh.is_none() && !ports[0].flush() && ports[0].is_empty());
    }

    #[test]
    fn a_shard_that_was_awake_when_all_were_woken_does_not_sleep_before_it_has_looked() {
        let (mut ports, _, control) = bus(1, false).unwrap();
        control.wake_all();
        assert!(!ports[0].may_sleep());
        assert_eq!(ports[0].receive(|message| panic!("unexpected {message:?}")), 0);
        assert!(ports[0].may_sleep());
    }

    #[test]
    fn a_shard_with_mail_does_not_sleep() {
        let (mut ports, _, control) = bus(1, false).unwrap();
        assert!(ports[0].may_sleep());
        control.tell_all(|| FromNode::DrainBackends);
        assert!(!ports[0].may_sleep());
        let mut heard = Vec::new();
        ports[0].receive(|message| heard.push(message));
        assert!(matches!(heard[..], [ToShard::Node(FromNode::DrainBackends)]));
        assert!(ports[0].may_sleep());
    }
}
