//! Nodes in network namespaces of their own, and the bridge between them.

use std::env;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::support::{KEY, Server, node_config};

/// Set by `tests/netns/run`, in whose namespaces of users and networks all of this happens.
const VARIABLE: &str = "GRIDCAST_NETNS";

/// Nobody's: what is sent there is lost in silence, as on a broken way.
const NOWHERE: &str = "02:00:00:00:00:01";

/// Running nodes with the ids 1, 2, …, each with one interface to the bridge; the first is the seed.
pub struct Net {
    nodes: Vec<Server>,
    spaces: Vec<Space>,
    number: usize,
}

/// A network namespace, which lives as long as the process that holds it.
struct Space(Child);

impl Space {
    fn new() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "ip link set lo up && echo up && exec sleep 600"]);
        let mut holder = command.stdout(Stdio::piped()).spawn().expect("unshare is there");
        // It has left our namespace once it has said something.
        let mut word = [0; 3];
        let stdout = holder.stdout.as_mut().expect("it is piped");
        std::io::Read::read_exact(stdout, &mut word).expect("it comes up");
        Self(holder)
    }

    /// Calls `work` inside: what it connects and starts is there.
    #[track_caller]
    fn inside<T>(&self, work: impl FnOnce() -> T) -> T {
        let _back = Back(namespace("thread-self"));
        enter(&namespace(&self.0.id().to_string()));
        work()
    }

    #[track_caller]
    fn ip(&self, arguments: &str) {
        self.inside(|| ip(arguments));
    }
}

/// Brings the thread back where it was.
struct Back(File);

impl Drop for Back {
    fn drop(&mut self) {
        enter(&self.0);
    }
}

/// Where a process or thread is.
fn namespace(process: &str) -> File {
    File::open(format!("/proc/{process}/ns/net")).expect("it lives")
}

fn enter(namespace: &File) {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .expect("the namespace may be entered");
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Net {
    /// So many nodes on a bridge of their own; `None`, with a word, where that is not allowed.
    pub fn new(count: usize) -> Option<Self> {
        if env::var_os(VARIABLE).is_none() {
            eprintln!("skipped: needs network namespaces, see tests/netns/run");
            return None;
        }
        static NETS: AtomicUsize = AtomicUsize::new(0);
        let number = NETS.fetch_add(1, Ordering::Relaxed);
        ip(&format!("link add bridge{number} type bridge"));
        ip(&format!("link set bridge{number} up"));
        let mut net = Self { nodes: Vec::new(), spaces: Vec::new(), number };
        (0..count).for_each(|index| net.join(index));
        Some(net)
    }

    fn join(&mut self, index: usize) {
        let (space, number) = (Space::new(), self.number);
        let (ours, holder) = (format!("port{number}-{index}"), space.0.id());
        ip(&format!("link add {ours} type veth peer name mesh netns {holder}"));
        ip(&format!("link set {ours} master bridge{number} up"));
        space.ip(&format!("addr add {}/24 dev mesh", self.address(index)));
        space.ip("link set mesh up");
        let bind: SocketAddr = format!("{}:6788", self.address(index)).parse().expect("it is one");
        let seed = self.nodes.first().and_then(|first| first.mesh);
        let config = node_config(index + 1, Some(bind), seed.as_slice(), KEY);
        self.nodes.push(space.inside(|| Server::start(&config)));
        self.spaces.push(space);
    }

    fn address(&self, index: usize) -> String {
        format!("10.78.{}.{}", self.number, index + 1)
    }

    /// Calls `work` beside a node, where its loopback is.
    #[track_caller]
    pub fn at<T>(&self, index: usize, work: impl FnOnce(&Server) -> T) -> T {
        let node = &self.nodes[index];
        self.spaces[index].inside(|| work(node))
    }

    /// From now on nothing of what one node sends arrives at another.
    pub fn cut(&self, from: usize, to: usize) {
        let to = self.address(to);
        self.spaces[from]
            .ip(&format!("neigh replace {to} lladdr {NOWHERE} dev mesh nud permanent"));
    }

    /// All arrives again.
    pub fn heal(&self) {
        self.spaces.iter().for_each(|space| space.ip("neigh flush dev mesh nud permanent"));
    }

    /// A node's interface goes down, which the kernel tells who sends.
    pub fn unplug(&self, index: usize) {
        self.spaces[index].ip("link set mesh down");
    }

    /// Connects the node's network again.
    pub fn plug(&self, index: usize) {
        self.spaces[index].ip("link set mesh up");
    }
}

#[track_caller]
fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip is there");
    assert!(status.success(), "ip {arguments}: {status}");
}
