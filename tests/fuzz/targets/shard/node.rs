//! A stand-in for the driver: sockets, mailboxes and a clock that only move when told.

use std::collections::VecDeque;
use std::sync::Arc;

use gridcast::address::{ClientId, IdLayout, IdSource, ShardId};
use gridcast::message::{ConnectionKey, FromNode, FromShard, ToShard};
use gridcast::shard::node_state::NodeState;
use gridcast::shard::{Action, Batch, Listener, Now, Priority, Shard};

use super::settings::{TOPICS, node_id, settings};
use super::{CALLS, frame, output, request};

/// The clock's date stands still, so that the ids of clients can be told beforehand.
const UNIX_MS: u64 = 1_700_000_000_000;

/// Rounds in which a node left alone must come to rest.
const ROUNDS_MAX: usize = 10_000;

/// Longer than any deadline of the settings.
const LONG_MS: u64 = 20_000;

/// More messages than the longest input of the fuzzer holds.
const BACKLOG_MAX: usize = 1024;

pub struct Node {
    shards: Vec<Shard>,
    // The receiver, and the message in flight; of each pair the first is delivered first.
    mail: VecDeque<(ShardId, ToShard)>,
    sockets: Vec<Socket>,
    now: Now,
    has_message_rate: bool,
    is_draining: bool,
}

struct Socket {
    shard: usize,
    key: ConnectionKey,
    listener: Listener,
    // The batch in flight, and how many of its bytes are not written yet.
    sending: Option<(Batch, usize)>,
    written: Vec<u8>,
    is_ended: bool,
    is_shut: bool,
    is_closed: bool,
}

/// The id of one of the first clients: its shard by the lowest bit, as if there were two.
pub fn client_id(number: u8) -> ClientId {
    let shard = ShardId(number & 1);
    let mut ids = IdSource::new(node_id(), shard, IdLayout::new(2), UNIX_MS);
    let nth = (0..number >> 1 & 7).fold(ids.next(UNIX_MS), |_, _| ids.next(UNIX_MS));
    nth.expect("a few ids are there in any millisecond")
}

impl Node {
    pub fn new(shape: u8) -> Self {
        let settings = Arc::new(settings(shape));
        let now = Now { ms: 0, us: 0, unix_ms: UNIX_MS };
        let state = Arc::new(NodeState::new(&settings, Arc::default()));
        let routes = settings.edges.iter().flat_map(|edge| &edge.routes);
        let has_message_rate = routes.into_iter().any(|route| route.messages.is_some());
        let shard = |index| Shard::new(ShardId(index as u8), &settings, state.clone(), now);
        Self {
            shards: (0..settings.shards).map(shard).collect(),
            mail: VecDeque::new(),
            sockets: Vec::new(),
            now,
            has_message_rate,
            is_draining: false,
        }
    }

    /// A peer connects; `None` if nobody may any more.
    pub fn open(&mut self, shard: u8, listener: Listener) -> Option<usize> {
        let shard = usize::from(shard) % self.shards.len();
        let remote = ([127, 0, 0, 1], 50_000).into();
        let key = self.shards[shard].handle_accepted(self.now, listener, remote)?;
        self.sockets.push(Socket {
            shard,
            key,
            listener,
            sending: None,
            written: Vec::new(),
            is_ended: false,
            is_shut: false,
            is_closed: false,
        });
        Some(self.sockets.len() - 1)
    }

    /// The socket that a number means among those that are open.
    pub fn open_socket(&self, number: usize) -> Option<usize> {
        let is_open = |&place: &usize| !self.sockets[place].is_closed;
        let open: Vec<usize> = (0..self.sockets.len()).filter(is_open).collect();
        (!open.is_empty()).then(|| open[number % open.len()])
    }

    /// A peer says something.
    pub fn receive(&mut self, socket: usize, bytes: &[u8]) {
        let Socket { shard, key, is_ended, is_closed, .. } = self.sockets[socket];
        if !is_ended && !is_closed && !bytes.is_empty() {
            self.shards[shard].handle_bytes(self.now, key, &mut bytes.to_vec());
        }
    }

    /// A peer shuts its end, or the connection breaks.
    pub fn receive_end(&mut self, socket: usize, is_broken: bool) {
        let Socket { shard, key, is_ended, is_closed, .. } = self.sockets[socket];
        if !is_closed && (is_broken || !is_ended) {
            self.sockets[socket].is_ended = true;
            self.shards[shard].handle_end(self.now, key, is_broken);
        }
    }

    /// The kernel takes so many bytes at most.
    pub fn write(&mut self, socket: usize, bytes: usize) {
        let shard = self.sockets[socket].shard;
        self.take_batches(shard);
        let socket = &mut self.sockets[socket];
        let Some((batch, left)) = &mut socket.sending else { return };
        let total: usize = batch.iter().map(|chunk| chunk.bytes().len()).sum();
        let written = bytes.min(*left);
        let all = batch.iter().flat_map(|chunk| chunk.bytes().iter().copied());
        socket.written.extend(all.skip(total - *left).take(written));
        *left -= written;
        let is_done = *left == 0;
        if let Some((batch, _)) = socket.sending.take_if(|_| is_done) {
            self.shards[shard].recycle(batch);
        }
        let key = socket.key;
        self.shards[shard].handle_written(self.now, key, written, is_done);
    }

    /// Puts all that waits to be written in flight.
    fn take_batches(&mut self, shard: usize) {
        let poll = |shard: &mut Shard| {
            shard.poll_write(Priority::Urgent).or_else(|| shard.poll_write(Priority::Bulk))
        };
        while let Some((key, batch)) = poll(&mut self.shards[shard]) {
            let bytes = batch.iter().map(|chunk| chunk.bytes().len()).sum();
            let socket = self.find(shard, key).expect("what is written to is open");
            assert!(socket.sending.is_none(), "one send at a time");
            assert!(!socket.is_shut, "nothing is written to an end that is shut");
            socket.sending = Some((batch, bytes));
        }
    }

    fn find(&mut self, shard: usize, key: ConnectionKey) -> Option<&mut Socket> {
        let is_it = |s: &&mut Socket| s.shard == shard && s.key == key && !s.is_closed;
        self.sockets.iter_mut().find(is_it)
    }

    /// Time passes, and each shard turns.
    pub fn pass_ms(&mut self, ms: u64) {
        self.now.ms += ms;
        self.now.us += ms * 1000;
        self.turn();
    }

    pub fn turn(&mut self) {
        for shard in &mut self.shards {
            shard.handle_turn(self.now);
        }
    }

    /// Delivers so many of the messages between shards at most.
    pub fn deliver(&mut self, count: usize) {
        for (to, message) in self.mail.drain(..count.min(self.mail.len())) {
            self.shards[to.index()].handle_message(self.now, message);
        }
    }

    /// The node begins to go down: clients are closed over so many milliseconds.
    pub fn drain(&mut self, over_ms: u64) {
        self.is_draining = true;
        self.tell_all(|| FromNode::Drain { over_ms });
    }

    /// If the node goes down: back ends are closed too.
    pub fn drain_backends(&mut self) {
        self.tell_all(|| FromNode::DrainBackends);
    }

    fn tell_all(&mut self, message: impl Fn() -> FromNode) {
        for shard in &mut self.shards {
            shard.handle_message(self.now, ToShard::Node(message()));
        }
    }

    /// Posts what shards say and does what they ask for; false if that was nothing.
    pub fn act(&mut self) -> bool {
        let mut acted = false;
        for shard in 0..self.shards.len() {
            while let Some(message) = self.shards[shard].poll_message() {
                let FromShard::Local(to, message) = message else { panic!("there is no mesh") };
                self.mail.push_back((to, ToShard::Local(ShardId(shard as u8), message)));
                acted = true;
            }
            while let Some(action) = self.shards[shard].poll_action() {
                self.act_on(shard, action);
                acted = true;
            }
        }
        acted
    }

    fn act_on(&mut self, shard: usize, action: Action) {
        match action {
            Action::Shutdown(key) => {
                let socket = self.find(shard, key).expect("what is shut is open");
                assert!(socket.sending.is_none(), "all is written before an end is shut");
                socket.is_shut = true;
            }
            Action::Close(key) => {
                let socket = self.find(shard, key).expect("what is closed is open");
                socket.is_closed = true;
                let sending = socket.sending.take();
                self.shards[shard].handle_closed(key);
                if let Some((batch, _)) = sending {
                    self.shards[shard].recycle(batch);
                }
            }
            // Bytes that were on their way come while a connection is paused, too.
            Action::Pause(_) | Action::Resume(_) | Action::StopAccepting => {}
        }
    }

    /// All peers go; a back end that reads takes what is left; then nothing is.
    pub fn end(mut self) {
        self.break_all();
        if self.is_draining {
            self.drain_backends();
        } else {
            self.consume_all();
            self.break_all();
        }
        self.pass_ms(LONG_MS);
        self.settle();
        if self.has_message_rate {
            self.pass_backlogs();
        }
        for shard in &self.shards {
            assert_eq!(shard.inspect().connections(), 0, "connections that are gone are forgotten");
            assert_eq!(shard.inspect().drain_state().is_drained, self.is_draining);
        }
        for socket in &self.sockets {
            output::check(&socket.written, socket.listener == Listener::Api);
        }
    }

    fn break_all(&mut self) {
        for socket in 0..self.sockets.len() {
            self.receive_end(socket, true);
        }
        self.settle();
    }

    /// One back end reads all that clients left in topics.
    fn consume_all(&mut self) {
        let socket = self.open(0, Listener::Api).expect("the node takes connections");
        self.receive(socket, &request(0));
        let topics = TOPICS.map(|topic| format!("\"{topic}\"")).join(",");
        let pop = CALLS[0].replace("\"t\"]", &format!("{topics}]"));
        self.receive(socket, &frame(0x81, pop.as_bytes()));
        self.settle();
        let waiting: usize =
            self.shards.iter().map(|shard| shard.inspect().queued_messages()).sum();
        assert_eq!(waiting, 0, "what waits is given to a consumer that reads");
    }

    /// Passes the time that clients over their message rate need: what they sent before they
    /// disconnected is still handled, at that rate.
    fn pass_backlogs(&mut self) {
        for _ in 0..BACKLOG_MAX {
            if self.shards.iter().all(|shard| shard.inspect().connections() == 0) {
                return;
            }
            self.pass_ms(1000);
            self.settle();
        }
        panic!("a disconnected client is never done");
    }

    /// Goes on without anything from outside until all is still.
    fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            if !self.round() {
                return;
            }
        }
        panic!("the node does not come to rest");
    }

    fn round(&mut self) -> bool {
        let is_due = |shard: &Shard| shard.poll_timeout().is_some_and(|due| due <= self.now.ms);
        let mut moved = self.shards.iter().any(is_due) || !self.mail.is_empty();
        self.turn();
        self.deliver(usize::MAX);
        for socket in 0..self.sockets.len() {
            moved |= self.shards[self.sockets[socket].shard].inspect().has_writes();
            self.write(socket, usize::MAX);
        }
        self.act() || moved
    }
}
