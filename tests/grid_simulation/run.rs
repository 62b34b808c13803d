//! The course of one run, and what must hold at its end.

use crate::backend::Backend;
use crate::client::CHANNELS;
use crate::node::{Life, Node};
use crate::peer::{Mood, Peer, Role, Shared, time_of};
use crate::plan::node_id;
use crate::pushes::{Asked, Moment, Truth};
use crate::world::World;

/// How long after the last fault everything is right again, in milliseconds.
const HEALED_MS: u64 = 12_000;

/// How long after that there may be no answer and no event while some are due: longer than a call, or
/// a consumer between two acknowledgements, takes.
const STILL_MS: u64 = 5000;

/// How long answers and events may go on to come after that: a consumer that acknowledges each
/// message before it gets the next takes its time for what has gathered.
const LATE_MS: u64 = 600_000;

/// Turns of a grid of four nodes in which nothing happens, per second: signs of life and gossip.
const IDLE_STEPS_MAX: u64 = 1000;

/// A summary of a run, so that a test can tell that runs are not empty.
#[derive(Default, Debug)]
pub struct Summary {
    pub answers: u64,
    pub events: u64,
    pub remote: u64,
    pub doubled: u64,
    pub delivered: u64,
    pub restarts: u64,
    pub sessions_lost: u64,
    pub ends_reported: u64,
}

impl std::ops::AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        self.answers += other.answers;
        self.events += other.events;
        self.remote += other.remote;
        self.doubled += other.doubled;
        self.delivered += other.delivered;
        self.restarts += other.restarts;
        self.sessions_lost += other.sessions_lost;
        self.ends_reported += other.ends_reported;
    }
}

/// Runs a seed; panics if a promise is broken.
pub fn run(seed: u64, is_verbose: bool) -> Summary {
    let mut world = World::new(seed, is_verbose);
    if is_verbose {
        println!("{:#?}", world.plan);
    }
    world.run_until(world.plan.busy_ms);
    world.shared.mood = Mood::Quiet;
    let steady = world.shared.random.below(world.nodes.len());
    // Its last restart may be at this very moment, or just after.
    for late_ms in 1..HEALED_MS {
        if world.nodes[steady].life != Life::Up {
            world.run_until(world.plan.busy_ms + late_ms);
        }
    }
    world.join(steady, Role::Backend(Backend::steady()));
    world.run_until(world.plan.busy_ms + HEALED_MS);
    come_to_rest(&mut world);
    if is_verbose {
        tell_topics(&world);
    }
    assert!(is_at_rest(&world), "calls or messages wait, and nothing comes, or comes without end");
    let shards = world.nodes.iter().flat_map(|node| &node.shards);
    shards.for_each(|shard| shard.inspect().check_invariants());
    check_members(&world);
    check_peers(&world);
    check_pushes(&world);
    audit(&mut world);
    let summary = summary(&world);
    leave(&mut world);
    summary
}

/// Goes on while something is due, as long as something comes.
fn come_to_rest(world: &mut World) {
    let end_ms = world.plan.busy_ms + HEALED_MS;
    let (mut came, mut came_ms) = (0, 0);
    for late_ms in (0..=LATE_MS).step_by(50) {
        let coming = world.shared.answers + world.shared.queue.events;
        if came < coming {
            (came, came_ms) = (coming, late_ms);
        }
        if is_at_rest(world) || came_ms + STILL_MS < late_ms {
            return;
        }
        world.run_until(end_ms + late_ms);
    }
}

/// Whether all that was asked is answered, and all that clients sent is with consumers.
fn is_at_rest(world: &World) -> bool {
    let shards = world.nodes.iter().flat_map(|node| &node.shards);
    world.peers.iter().all(Peer::is_answered)
        && shards.flat_map(|shard| shard.inspect().report().topics).all(|topic| topic.messages == 0)
}

fn tell_topics(world: &World) {
    for node in &world.nodes {
        for topic in node.shards.iter().flat_map(|shard| shard.inspect().report().topics) {
            println!("node {} {topic:?}", node.index);
        }
    }
}

fn check_members(world: &World) {
    for node in &world.nodes {
        assert_eq!(node.life, Life::Up);
        let seen = node.mesh.report().nodes.into_iter().filter(|row| row.is_linked);
        let seen: Vec<u16> = seen.map(|row| row.node).collect();
        let others = (0..world.nodes.len()).filter(|&other| other != node.index);
        let others = others.map(|other| node_id(other).number());
        assert_eq!(seen, others.collect::<Vec<_>>(), "nodes that node {} sees", node.index);
    }
}

fn check_peers(world: &World) {
    for peer in &world.peers {
        let has_ended = peer.has_ended();
        match &peer.role {
            Role::Backend(_) => {
                assert!(peer.is_answered(), "back end {} waits for answers", peer.number);
            }
            Role::Client(_) => {
                assert!(!has_ended || peer.line.is_gone, "client {} lingers", peer.number);
                if world.crashed.len() == 1 {
                    world.shared.queue.check_lost(&world.shared.weather, peer.number);
                }
                if peer.is_open && peer.has_lost_nothing() {
                    world.shared.queue.check_complete(peer.number, has_ended);
                }
            }
        }
    }
}

fn check_pushes(world: &World) {
    world.shared.pushes.check(&InGrid { shared: &world.shared, peers: &world.peers });
}

/// Rules of pushes over a grid, by time.
struct InGrid<'a> {
    shared: &'a Shared,
    peers: &'a [Peer],
}

impl Truth for InGrid<'_> {
    fn has_ended(&self, client: usize) -> bool {
        self.peers[client].has_ended()
    }

    fn was_gone(&self, client: usize, at: Moment) -> bool {
        self.shared.gone.get(&client).is_some_and(|&gone| gone < at)
    }

    fn is_whole(&self, asked: &Asked, answered: Moment) -> bool {
        self.shared.weather.is_calm(time_of(asked.at), time_of(answered))
    }

    fn is_reached(&self, asked: &Asked, client: usize) -> bool {
        let [from, to] = [asked.by, client].map(|peer| self.shared.nodes[peer]);
        self.shared.weather.is_carried(from, to, time_of(asked.at))
    }

    fn is_roomy(&self) -> bool {
        true
    }
}

/// Compares what clients say of their channels with what a publish to each of them counts, through
/// every node.
fn audit(world: &mut World) {
    let auditors: Vec<usize> = (0..world.nodes.len())
        .map(|node| world.join(node, Role::Backend(Backend::auditor())))
        .collect();
    world.run_until(world.shared.now_ms + 1000);
    for (id, client) in world.shared.known.clone() {
        if !world.peers[client].has_ended() {
            let by = auditors[client % auditors.len()];
            ask(world, by, |backend, shared| backend.info_of(by, shared, id));
        }
    }
    world.run_until(world.shared.now_ms + 2000);
    for channel in CHANNELS {
        check_interest(world, channel);
        for &by in &auditors {
            let before = world.shared.next_moment();
            ask(world, by, |backend, shared| backend.publish(by, shared, channel));
            world.run_until(world.shared.now_ms + 500);
            let of_channel = world.shared.subscribers.iter().filter(|((_, c), _)| c == channel);
            let expected: u64 = of_channel.map(|(_, count)| count).sum();
            let counted = world.shared.pushes.tally_since(before, by, channel);
            assert_eq!(counted, Some((expected, 0)), "subscribers of {channel}, asked by {by}");
        }
    }
    check_pushes(world);
}

/// Every node knows of every other whether it has subscribers of a channel.
fn check_interest(world: &World, channel: &str) {
    for one in &world.nodes {
        for other in world.nodes.iter().filter(|other| other.index != one.index) {
            let knows = one.mesh.is_wanted_by(node_id(other.index), channel);
            let number = u64::from(node_id(other.index).number());
            let is_wanted = world.shared.subscribers.contains_key(&(number, channel.to_owned()));
            let [one, other] = [one.index, other.index];
            assert_eq!(knows, is_wanted, "whether node {one} knows that {other} wants {channel}");
        }
    }
}

fn ask(world: &mut World, by: usize, request: impl FnOnce(&mut Backend, &mut Shared) -> Vec<u8>) {
    let World { peers, shared, .. } = world;
    let Role::Backend(backend) = &mut peers[by].role else { return };
    let bytes = request(backend, shared);
    peers[by].say(&bytes);
}

/// All end: nothing is left, and nothing happens but that the nodes greet each other.
fn leave(world: &mut World) {
    world.shared.mood = Mood::Leaving;
    world.run_until(world.shared.now_ms + 6000);
    let before = world.steps;
    world.run_until(world.shared.now_ms + 1000);
    let steps = world.steps - before;
    assert!(steps <= IDLE_STEPS_MAX, "{steps} turns in a second in which nothing happens");
    world.nodes.iter().for_each(check_empty);
}

fn check_empty(node: &Node) {
    for shard in &node.shards {
        shard.inspect().check_invariants();
        let report = shard.inspect().report();
        let at = (node.index, report.shard);
        let left = (report.connections, report.clients, report.channels);
        assert_eq!(left, (0, 0, 0), "at {at:?}: connections, clients, channels");
        let consumers: u64 = report.topics.iter().map(|topic| topic.consumers).sum();
        let left = (report.pending_calls, report.unfinished_fanouts, consumers);
        assert_eq!(left, (0, 0, 0), "at {at:?}: calls, fan-outs, consumers");
    }
    let kept_bytes: u64 = node.mesh.report().nodes.iter().map(|row| row.waiting_bytes).sum();
    let left = (kept_bytes, node.mesh.waiting());
    assert_eq!(left, (0, 0), "in the mesh of node {}: bytes, what waits", node.index);
}

fn summary(world: &World) -> Summary {
    let shared = &world.shared;
    let shards = world.nodes.iter().flat_map(|node| &node.shards);
    Summary {
        answers: shared.answers,
        events: shared.queue.events,
        remote: shared.queue.remote,
        doubled: shared.queue.doubled,
        delivered: shards.map(|shard| shard.inspect().counters().delivered).sum(),
        restarts: world.restarts,
        sessions_lost: shared.weather.sessions_lost,
        ends_reported: shared.queue.lost,
    }
}
