//! What the threads of the mesh carry between nodes: `cargo bench --bench links`.
//!
//! Nodes of one process have their meshes, with real links over loopback, and shards that only send and answer. The
//! first node asks all others without pause. Names of figures are in `benches/README.md`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use gridcast::address::{ClientId, Incarnation, NodeId, ShardAddress, ShardId};
use gridcast::mesh::identity::NodeIdentity;
use gridcast::mesh::{MeshSettings, quic};
use gridcast::message::{
    BackendId, ClientCommand, ClientReply, ConnectionKey, FromMesh, FromShard, GridMessage, Ticket,
    ToMesh, ToShard,
};
use gridcast::protocol::frame::{Frame, Kind};
use gridcast::runtime::{Port, bus};

/// Bytes of a message.
const BYTES: usize = 128;

/// Questions at a time to each node, if the command line does not say otherwise.
const IN_FLIGHT: u64 = 512;

/// How long each case is measured, after as long a time to warm up.
const TIME: Duration = Duration::from_secs(2);

/// A time limit for nodes to meet.
const MEETING: Duration = Duration::from_secs(30);

fn main() {
    // cargo says `--bench`; what else there is are numbers.
    let numbers = env::args().skip(1).filter(|word| !word.starts_with("--"));
    let numbers: Vec<u64> = numbers.map(|word| word.parse().expect("a number")).collect();
    let in_flight = numbers.first().copied().unwrap_or(IN_FLIGHT);
    println!("{in_flight} messages of {BYTES} B at a time to each node, and their answers");
    for others in [1, 2, 4, 8] {
        for threads in [1, 2, 4] {
            if threads <= others {
                measure(others, threads, in_flight);
            }
        }
    }
}

/// A node: its mesh, and the end of its shard.
struct Node {
    id: NodeId,
    mesh: quic::RunningMesh,
    shard: Port,
    address: String,
    threads: Vec<Thread>,
}

/// A thread of this process.
struct Thread {
    name: String,
    folder: PathBuf,
}

impl Thread {
    fn all() -> Vec<Self> {
        let folders = fs::read_dir("/proc/self/task").expect("a process has threads");
        let folders = folders.flatten().map(|entry| entry.path());
        let thread = |folder: PathBuf| {
            let name = fs::read_to_string(folder.join("comm")).ok()?;
            Some(Self { name: name.trim().to_owned(), folder })
        };
        folders.filter_map(thread).collect()
    }

    /// CPU time in nanoseconds.
    fn cpu_ns(&self) -> u64 {
        let text = fs::read_to_string(self.folder.join("schedstat")).expect("the thread runs");
        text.split(' ').next().and_then(|ns| ns.parse().ok()).expect("a number")
    }
}

impl Node {
    fn start(number: u16, threads: usize, seeds: Vec<String>) -> Self {
        let id = NodeId::new(number).expect("it is small");
        let before: Vec<PathBuf> = Thread::all().into_iter().map(|thread| thread.folder).collect();
        let (mut ports, mesh, _node) = bus(1, true).expect("there is room");
        let socket = quic::bind(([127, 0, 0, 1], 0).into()).expect("loopback has ports");
        let address = socket.address;
        let settings = MeshSettings {
            node: id,
            incarnation: Incarnation(1),
            shards: 1,
            advertise: address,
            api: address,
            seeds,
            answer_ms: 1500,
            expected: 1,
            channel_key: [0; 16],
            random_seed: u64::from(number),
        };
        let identity = NodeIdentity::from_key("a key of this bench").expect("there is room");
        let port = mesh.expect("it was asked for");
        let mesh = quic::start(socket, identity, threads, settings, port, |why| panic!("{why}"));
        let new = Thread::all().into_iter().filter(|thread| !before.contains(&thread.folder));
        Self {
            id,
            mesh: mesh.expect("it can start"),
            shard: ports.pop().expect("there is one shard"),
            address: address.to_string(),
            threads: new.collect(),
        }
    }
}

/// Tells the mesh that the shard knows a node. Before that it sends nothing there.
fn greet(shard: &mut Port, message: &ToShard) -> Option<NodeId> {
    let ToShard::Mesh(FromMesh::NodeUp { node, .. }) = message else { return None };
    shard.post(FromShard::Mesh(ToMesh::NodeSeen(*node)));
    Some(*node)
}

/// Takes what the mesh has for a shard. Sleeps for a moment if there is nothing.
fn take(shard: &mut Port) -> Vec<ToShard> {
    let mut messages = Vec::new();
    if shard.receive(|message| messages.push(message)) == 0 {
        thread::sleep(Duration::from_micros(50));
    }
    messages
}

/// Measures with so many other nodes, and threads of the first one that carry links.
fn measure(others: usize, threads: usize, in_flight: u64) {
    let first = Node::start(0, threads, Vec::new());
    let seed = vec![first.address.clone()];
    let rest: Vec<Node> =
        (1..=others as u16).map(|number| Node::start(number, 1, seed.clone())).collect();
    let (ends, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (mut shards, meshes): (Vec<Port>, Vec<_>) =
        rest.into_iter().map(|node| (node.shard, node.mesh)).unzip();
    let answering = {
        let ends = ends.clone();
        thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                shards.iter_mut().for_each(answer);
            }
        })
    };
    let (id, mut shard) = (first.id, first.shard);
    let asking = {
        let (ends, answered) = (ends.clone(), answered.clone());
        thread::spawn(move || ask(id, &mut shard, others, in_flight, &ends, &answered))
    };
    let start = Instant::now();
    while answered.load(Ordering::Relaxed) == 0 {
        assert!(start.elapsed() < MEETING, "the nodes do not meet");
        thread::sleep(Duration::from_millis(10));
    }
    thread::sleep(TIME);
    let cpu = || first.threads.iter().map(Thread::cpu_ns).collect::<Vec<u64>>();
    let (start, before, from) = (Instant::now(), cpu(), answered.load(Ordering::Relaxed));
    thread::sleep(TIME);
    let (took, after, to) = (start.elapsed(), cpu(), answered.load(Ordering::Relaxed));
    // Each question and each answer is a message.
    let messages = 2.0 * (to - from) as f64;
    let used = before.iter().zip(&after).map(|(before, after)| (after - before) as f64);
    let each: Vec<f64> = used.map(|ns| ns / messages / 1000.0).collect();
    let names = first.threads.iter().zip(&each);
    let names: Vec<String> = names.map(|(thread, us)| format!("{} {us:.2}", thread.name)).collect();
    let busiest = each.iter().copied().fold(0.0, f64::max);
    println!(
        "to {others} nodes, threads = {threads}: {:>9.0} messages/s; CPU µs of a message {:.2} \
         ({}); {:.2} million/s if the busiest thread has a CPU of its own",
        messages / took.as_secs_f64(),
        each.iter().sum::<f64>(),
        names.join(", "),
        1.0 / busiest
    );
    ends.store(true, Ordering::Relaxed);
    asking.join().expect("it ends");
    answering.join().expect("it ends");
    first.mesh.leave();
    meshes.into_iter().for_each(quic::RunningMesh::leave);
}

/// Answers what the first node asks.
fn answer(shard: &mut Port) {
    for message in take(shard) {
        greet(shard, &message);
        if let ToShard::Mesh(FromMesh::Grid(from, GridMessage::Ask { ticket, .. })) = message {
            let answer = GridMessage::Answer(ticket, Ok(ClientReply::Done));
            shard.post(FromShard::Mesh(ToMesh::Grid(from, answer)));
        }
    }
    shard.flush();
}

/// Asks all other nodes without pause, once all are there, and counts the answers.
fn ask(
    own: NodeId,
    shard: &mut Port,
    others: usize,
    in_flight: u64,
    ends: &AtomicBool,
    answered: &AtomicU64,
) {
    let at = ShardAddress { node: own, shard: ShardId(0) };
    let backend = BackendId { at, connection: ConnectionKey { index: 0, generation: 0 } };
    let frame = Frame::message(Kind::Text, &[b'x'; BYTES]);
    let question = |to: NodeId| {
        let command = ClientCommand::Send(ClientId::from_value(1), frame.clone());
        let question = GridMessage::Ask { ticket: Ticket(1), backend, command };
        FromShard::Mesh(ToMesh::Grid(ShardAddress { node: to, shard: ShardId(0) }, question))
    };
    let mut nodes = Vec::new();
    while !ends.load(Ordering::Relaxed) {
        for message in take(shard) {
            if let Some(node) = greet(shard, &message) {
                nodes.push(node);
                if nodes.len() == others {
                    let all = (0..in_flight).flat_map(|_| nodes.iter().map(|node| question(*node)));
                    all.for_each(|question| shard.post(question));
                }
            }
            if let ToShard::Mesh(FromMesh::Grid(from, GridMessage::Answer(_, answer))) = message {
                assert!(answer.is_ok(), "{answer:?}");
                answered.fetch_add(1, Ordering::Relaxed);
                shard.post(question(from.node));
            }
        }
        shard.flush();
    }
}
