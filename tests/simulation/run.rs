//! The course of one run, and what must hold at its end.

use gridcast::shard::Shortage;

use crate::backend::Backend;
use crate::client::{CHANNELS, Client};
use crate::ledger::Standing;
use crate::peer::{Mood, Peer, Role};
use crate::plan::Plan;
use crate::pushes::{Asked, Moment, Truth};
use crate::world::World;

/// Rounds within which a node comes to rest when all peers read.
const ROUNDS_MAX: usize = 400_000;

/// Consumers that are closed one after the other for want of memory, at most.
const CONSUMERS_MAX: usize = 10;

/// A summary of a run, so that a test can tell that runs are not empty.
#[derive(Default, Debug)]
pub struct Summary {
    pub answers: u64,
    pub events: u64,
    pub doubled: u64,
    pub delivered: u64,
    pub failed: u64,
    pub slow_closed: u64,
    pub compressed: u64,
    pub held_back: u64,
    pub turned_away: u64,
    pub shed_readers: u64,
    pub shed_holders: u64,
    pub shed_frames: u64,
    pub shed_arrivals: u64,
    /// The largest share of a budget that was in use, in percent.
    pub budget_percent: u64,
}

impl std::ops::AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        self.answers += other.answers;
        self.events += other.events;
        self.doubled += other.doubled;
        self.delivered += other.delivered;
        self.failed += other.failed;
        self.slow_closed += other.slow_closed;
        self.compressed += other.compressed;
        self.held_back += other.held_back;
        self.turned_away += other.turned_away;
        self.shed_readers += other.shed_readers;
        self.shed_holders += other.shed_holders;
        self.shed_frames += other.shed_frames;
        self.shed_arrivals += other.shed_arrivals;
        self.budget_percent = self.budget_percent.max(other.budget_percent);
    }
}

/// Runs a seed; panics if a promise is broken.
pub fn run(seed: u64, is_verbose: bool) -> Summary {
    let mut world = World::new(seed, is_verbose);
    if is_verbose {
        let Plan { settings, rounds, peers, crowd, .. } = &world.plan;
        println!("{settings:#?}\n{rounds} rounds, {peers} peers, a crowd of {crowd}");
    }
    for _ in 0..world.plan.rounds {
        world.round();
    }
    world.shared.mood = Mood::Quiet;
    if world.shared.has_budget {
        // What is shed before the last consumer comes is not shed with it.
        world.settle(ROUNDS_MAX);
        world.wait(1000);
    }
    consume(&mut world);
    check_memory(&mut world);
    check_peers(&world);
    check_tallies(&world);
    audit(&mut world);
    let summary = summary(&world);
    leave(&mut world);
    summary
}

/// Consumes all that is left. A consumer that was closed for want of memory comes again, as real ones do.
fn consume(world: &mut World) {
    for _ in 0..CONSUMERS_MAX {
        let consumer = world.join_anywhere(Backend::steady());
        world.settle(ROUNDS_MAX);
        // Longer than a consumer that takes nothing is waited for.
        world.wait(8_000);
        world.settle(ROUNDS_MAX);
        if !world.shared.has_budget || !world.peers[consumer].has_ended() {
            return;
        }
    }
    panic!("no consumer stays");
}

/// With everything read and consumed there is enough memory, but for what is kept of the clients' messages:
/// of those that are held for a key, and the history of those that compress in one context. A plan leaves half
/// of its budget to what peers send.
fn check_memory(world: &mut World) {
    let Some(limit_bytes) = world.plan.memory_bytes else { return };
    let inspections = || world.shards.iter().map(|shard| shard.inspect());
    let read_ahead: usize = inspections().map(|shard| shard.read_ahead_bytes()).sum();
    let histories: usize = inspections().map(|shard| shard.assembler_bytes()).sum();
    assert!(
        world.shortage == Shortage::None || (read_ahead + histories) as u64 > limit_bytes / 4,
        "{:?} of {limit_bytes} bytes at rest, with {read_ahead} read ahead and {histories} of history",
        world.shortage
    );
}

fn check_peers(world: &World) {
    let mut clients = Vec::new();
    for peer in &world.peers {
        let has_ended = peer.has_ended();
        match &peer.role {
            Role::Backend(backend) => assert!(
                has_ended || backend.is_answered(),
                "back end {} waits for answers",
                peer.number
            ),
            Role::Client(client) if peer.is_open && !client.is_refused => {
                let standing = check_client(world, peer, client, has_ended);
                clients.extend(standing.map(|standing| (peer.number, standing)));
            }
            Role::Client(_) => {}
        }
    }
    let counters = world.shards.iter().map(|shard| shard.inspect().counters());
    let counted = counters.map(|counters| counters.dropped + counters.refused).sum();
    world.shared.ledger.check_lost(&clients, counted);
}

/// Checks the events of a client; `None`: its end is not seen yet.
fn check_client(world: &World, peer: &Peer, client: &Client, has_ended: bool) -> Option<Standing> {
    let ledger = &world.shared.ledger;
    let is_held = ledger.clients[&peer.number].is_held;
    // One that is held may have sent so much that it cannot be heard: then a ping finds out. Of one that
    // died without a word one hears no more until the time of silence is over.
    let is_heard = !is_held || peer.line.is_read();
    let is_noticed = is_heard && !peer.is_dead;
    assert!(!has_ended || !is_noticed || peer.line.is_gone, "client {} lingers", peer.number);
    assert!(has_ended || !is_heard || client.is_ponged(), "client {} misses a pong", peer.number);
    if !has_ended {
        assert!(client.is_answered(), "client {} misses its echo", peer.number);
        return Some(Standing::Open);
    }
    if peer.has_ended_in_order() && !is_held && !client.has_sent_giant {
        return Some(Standing::EndedInOrder);
    }
    peer.line.is_gone.then_some(Standing::Ended)
}

fn check_tallies(world: &World) {
    world.shared.pushes.check(&OnOneNode { peers: &world.peers });
    let late: u64 =
        world.shards.iter().map(|shard| shard.inspect().counters().limits.answer_ms).sum();
    assert_eq!(late, 0, "calls that were not answered in time");
}

/// Rules of pushes on one node.
struct OnOneNode<'a> {
    peers: &'a [Peer],
}

impl Truth for OnOneNode<'_> {
    fn has_ended(&self, client: usize) -> bool {
        // A client that names nobody has ended.
        self.peers.get(client).is_none_or(Peer::has_ended)
    }

    fn was_gone(&self, _: usize, _: Moment) -> bool {
        false
    }

    fn is_whole(&self, _: &Asked, _: Moment) -> bool {
        true
    }

    fn is_reached(&self, _: &Asked, _: usize) -> bool {
        true
    }

    fn is_roomy(&self) -> bool {
        false
    }
}

/// Compares what clients say of their channels with what a publish to each of them counts.
fn audit(world: &mut World) {
    let auditor = world.join_anywhere(Backend::auditor());
    world.settle(ROUNDS_MAX);
    let known = world.shared.known.clone();
    let is_unclear = |peer: &Peer| {
        let is_unknown = known.iter().all(|known| known.1 != peer.number);
        let Role::Client(client) = &peer.role else { return false };
        !peer.line.is_gone && (is_unknown || client.may_be_held() || peer.has_ended())
    };
    if world.peers.iter().any(is_unclear) {
        // Open events were dropped, or who is held may go unheard or be ended meanwhile: who counts
        // cannot be asked.
        return;
    }
    let before = world.shared.moment;
    if world.shared.is_verbose {
        println!("  known are {known:?}");
    }
    let World { peers, shared, .. } = world;
    let Peer { role: Role::Backend(backend), line, .. } = &mut peers[auditor] else { return };
    for (id, _) in known {
        line.inbound.extend(backend.info_of(shared, id));
    }
    world.settle(ROUNDS_MAX);
    for channel in CHANNELS {
        let World { peers, shared, .. } = world;
        let Peer { role: Role::Backend(backend), line, .. } = &mut peers[auditor] else { return };
        line.inbound.extend(backend.publish(auditor, shared, channel));
        world.settle(ROUNDS_MAX);
        let expected = world.shared.subscribers.get(channel).copied().unwrap_or(0);
        let counted = world.shared.pushes.tally_since(before, auditor, channel);
        assert_eq!(counted, Some((expected, 0)), "subscribers of {channel}");
    }
    check_tallies(world);
}

/// All end: nothing is left and nothing wakes.
fn leave(world: &mut World) {
    world.shared.mood = Mood::Leaving;
    if world.plan.drains {
        world.drain();
    }
    world.settle(ROUNDS_MAX);
    world.wait(140_000);
    // What a client had sent that was closed only now is still on its way to its topic.
    world.settle(ROUNDS_MAX);
    let held: usize = world.shards.iter().map(|shard| shard.inspect().held_bytes()).sum();
    assert_eq!(held, 0, "bytes that nobody holds");
    for (index, (shard, report)) in world.shards.iter().zip(world.reports()).enumerate() {
        let left = (report.connections, report.clients, report.channels);
        assert_eq!(left, (0, 0, 0), "of shard {index}: connections, clients, channels");
        assert_eq!(report.addresses, 0, "addresses that shard {index} counts");
        let consumers: u64 = report.topics.iter().map(|topic| topic.consumers).sum();
        let left = (report.pending_calls, report.unfinished_fanouts, consumers);
        assert_eq!(left, (0, 0, 0), "of shard {index}: calls, fan-outs, consumers");
        assert_eq!(shard.poll_timeout(), None, "wake-up of shard {index}");
    }
}

fn summary(world: &World) -> Summary {
    let mut summary = Summary {
        answers: world.shared.answers,
        events: world.shared.ledger.events,
        doubled: world.shared.ledger.doubled,
        budget_percent: world.budget_percent,
        ..Summary::default()
    };
    for counters in world.shards.iter().map(|shard| shard.inspect().counters()) {
        summary.delivered += counters.delivered;
        summary.failed += counters.failed;
        summary.slow_closed += counters.slow_closed;
        summary.compressed += counters.compressed;
        summary.held_back += counters.limits.messages_per_s;
        summary.turned_away += counters.limits.connections_per_address;
        summary.shed_readers += counters.shed_readers;
        summary.shed_holders += counters.shed_holders;
        summary.shed_frames += counters.shed_frames;
        summary.shed_arrivals += counters.shed_arrivals;
    }
    summary
}
