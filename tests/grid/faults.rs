//! Nodes that die and come back, and nodes that freeze, while back ends go on.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Grid, Message, Server, Socket, assert_error, frame, states, until_within};

/// The longest call. Promised: a call is answered within 2 s, and a fault is over within 5 s. A machine that
/// is busy with other tests gets twice and ten times that.
const CALL_MAX: Duration = Duration::from_secs(4);
const RIGHT_MAX: Duration = Duration::from_secs(50);

/// Answers in a row that have to be right before all counts as right.
const RIGHT_ANSWERS: usize = 500;

/// Between two publishes: 1,000 a second, if the machine is fast enough.
const PUBLISH_EVERY: Duration = Duration::from_millis(1);

/// No test publishes more.
const PUBLISHES_MAX: usize = 100_000;

/// The answer to a publish.
#[derive(Clone, Copy, Debug)]
struct Answered {
    sent: Instant,
    took: Duration,
    counts: (u64, u64),
}

/// Publishes numbers to `news` through a connection of its own, pipelined, until it is told to stop.
struct Publisher {
    stop: Arc<AtomicBool>,
    sent: Arc<Mutex<Vec<Instant>>>,
    answered: Arc<Mutex<Vec<Answered>>>,
    sending: JoinHandle<usize>,
    reading: JoinHandle<()>,
}

impl Publisher {
    fn start(node: &Server) -> Self {
        let mut backend = node.backend();
        let mut writer = backend.writer();
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(Mutex::new(Vec::new()));
        let answered = Arc::new(Mutex::new(Vec::new()));
        let (stopped, sent_at) = (stop.clone(), sent.clone());
        let sending = thread::spawn(move || {
            let start = Instant::now();
            for number in 0..PUBLISHES_MAX {
                let is_last = stopped.load(Ordering::Relaxed);
                let data = if is_last { "last".to_owned() } else { number.to_string() };
                let params = json!({ "c": "news", "d": data });
                let publish = json!({ "m": "mesh.publish", "p": params, "i": data }).to_string();
                sent_at.lock().expect("no panic").push(Instant::now());
                writer.write_all(&frame(0x81, publish.as_bytes())).expect("the node reads");
                if is_last {
                    return number;
                }
                let due = start + PUBLISH_EVERY * number as u32;
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            panic!("nobody stopped the publisher");
        });
        let (answers, sent_when) = (answered.clone(), sent.clone());
        let reading = thread::spawn(move || {
            for number in 0.. {
                let answer: Value = serde_json::from_str(&backend.text()).expect("JSON");
                let count = |key| answer["r"][key].as_u64().expect("a count");
                let sent: Instant = sent_when.lock().expect("no panic")[number];
                let counts = (count("s"), count("f"));
                let answered = Answered { sent, took: sent.elapsed(), counts };
                answers.lock().expect("no panic").push(answered);
                if answer["i"] == "last" {
                    return;
                }
            }
        });
        Self { stop, sent, answered, sending, reading }
    }

    /// Waits until the counts have been these for a while. Tells how long after `event` the last
    /// wrong ones were answered.
    #[track_caller]
    fn wait_until_right(&self, event: Instant, counts: (u64, u64)) -> Duration {
        let answers = || self.answered.lock().expect("no panic");
        until_within(RIGHT_MAX, || {
            let answers = answers();
            let last = answers.iter().rev().take_while(|answer| answer.sent > event);
            last.take_while(|answer| answer.counts == counts).count() >= RIGHT_ANSWERS
        });
        let answers = answers();
        let wrong = answers.iter().rev().find(|answer| answer.counts != counts);
        wrong.map_or(Duration::ZERO, |wrong| {
            (wrong.sent + wrong.took).saturating_duration_since(event)
        })
    }

    /// The number that is published next.
    fn next(&self) -> usize {
        self.sent.lock().expect("no panic").len()
    }

    /// How many numbers were published, and the longest that an answer took.
    fn stop(self) -> (usize, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        let published = self.sending.join().expect("it published");
        self.reading.join().expect("all publishes are answered");
        let answered = self.answered.lock().expect("no panic");
        let longest = answered.iter().map(|answer| answer.took).max();
        (published, longest.expect("there was one"))
    }
}

/// A subscriber of `news`; what it got, as numbers, until the last message or the end of its
/// connection.
struct Subscriber(JoinHandle<Vec<usize>>);

impl Subscriber {
    fn start(node: &Server) -> Self {
        let mut client = node.device("/plain?channels=news");
        client.set_patience(RIGHT_MAX);
        Self(thread::spawn(move || {
            let mut numbers = Vec::new();
            while let Ok(Message::Text(text)) = client.try_read()
                && let Ok(number) = text.parse()
            {
                numbers.push(number);
            }
            numbers
        }))
    }

    fn numbers(self) -> Vec<usize> {
        self.0.join().expect("it reads")
    }
}

/// Calls each method in turn, on a connection of its own, for a reachable client and one on the node
/// that something happens to. Keeps the longest that each call took.
struct Prober {
    stop: Arc<AtomicBool>,
    calling: JoinHandle<BTreeMap<&'static str, Duration>>,
}

impl Prober {
    fn start(node: &Server, within_reach: &str, afar: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, mut backend) = (stop.clone(), node.backend());
        let [near, afar] = [within_reach, afar].map(str::to_owned);
        let calling = thread::spawn(move || {
            let mut longest = BTreeMap::new();
            let mut round = 0;
            while !stopped.load(Ordering::Relaxed) {
                round += 1;
                let fresh = format!("channel {round}");
                let send = |client: &str| json!({ "c": client, "d": "x" });
                let call = |client: &str, f, a| json!({ "c": client, "f": f, "a": a });
                for (name, method, params) in [
                    ("send", "mesh.send", send(&near)),
                    ("send afar", "mesh.send", send(&afar)),
                    ("publish", "mesh.publish", json!({ "c": fresh, "d": "x" })),
                    ("call", "conn.call", call(&near, "info", json!([]))),
                    ("call afar", "conn.call", call(&afar, "info", json!([]))),
                    ("subscribe", "conn.call", call(&near, "subscribe", json!([fresh]))),
                    ("unsubscribe", "conn.call", call(&near, "unsubscribe", json!([fresh]))),
                ] {
                    let start = Instant::now();
                    let answer = backend.ask(method, &params);
                    assert!(name.ends_with("afar") || answer["E"].is_null(), "{name}: {answer}");
                    let longest = longest.entry(name).or_default();
                    *longest = start.elapsed().max(*longest);
                }
                thread::sleep(Duration::from_millis(10));
            }
            longest
        });
        Self { stop, calling }
    }

    /// Stops; each call was answered in time.
    fn stop(self, event: &str) {
        self.stop.store(true, Ordering::Relaxed);
        let longest = self.calling.join().expect("all calls for reachable clients are done");
        eprintln!("grid: {event}: longest calls {longest:?}");
        assert!(longest.values().all(|took| *took < CALL_MAX), "{longest:?}");
    }
}

/// Whether these follow each other without a gap.
fn is_run(numbers: &[usize]) -> bool {
    numbers.windows(2).all(|pair| pair[0] + 1 == pair[1])
}

/// A client that reads what the prober sends it, so that its buffer does not fill.
fn drained((mut client, id): (Socket, String)) -> String {
    thread::spawn(move || while client.try_read().is_ok() {});
    id
}

#[test]
fn a_node_that_is_killed_under_load_costs_the_others_nothing_and_comes_back() {
    let mut grid = Grid::new(3);
    let near = drained(grid.nodes[1].client());
    let lost = drained(grid.nodes[2].client());
    let mut subscribers: Vec<_> =
        grid.nodes.iter().flat_map(|node| [node, node]).map(Subscriber::start).collect();
    let publisher = Publisher::start(&grid.nodes[0]);
    let prober = Prober::start(&grid.nodes[1], &near, &lost);
    publisher.wait_until_right(Instant::now(), (6, 0));

    let killed = Instant::now();
    grid.nodes[2].kill();
    let right = publisher.wait_until_right(killed, (4, 0));
    eprintln!("grid: kill: counts are right again after {right:?}");
    assert!(grid.nodes[..2].iter().all(|node| states(node).len() == 2));
    let mut consumer = grid.nodes[0].consumer("messages");
    let event = consumer.event();
    eprintln!("grid: kill: its client is reported as lost after {:?}", killed.elapsed());
    assert_eq!((&event["n"], &event["c"]), (&json!(3), &json!(lost)));
    assert_eq!(
        (&event["d"]["event"], &event["d"]["reason"]),
        (&json!("close"), &json!("node_lost"))
    );
    consumer.done("queue.unpop", &json!({}));

    grid.restart(2);
    let restarted = Instant::now();
    let whole = grid.wait_until_whole();
    let back: Vec<_> = (0..2).map(|_| Subscriber::start(&grid.nodes[2])).collect();
    let subscribed = publisher.next();
    let right = publisher.wait_until_right(restarted, (6, 0));
    eprintln!("grid: restart: known to all after {whole:?}, counts right after {right:?}");

    prober.stop("kill and restart");
    let (published, longest) = publisher.stop();
    eprintln!("grid: kill and restart: {published} publishes, longest {longest:?}");
    assert!(longest < CALL_MAX, "{longest:?}");
    for subscriber in subscribers.drain(..4) {
        assert_eq!(subscriber.numbers(), (0..published).collect::<Vec<_>>());
    }
    for numbers in subscribers.into_iter().map(Subscriber::numbers) {
        assert!(numbers[0] == 0 && is_run(&numbers), "{numbers:?}");
    }
    for numbers in back.into_iter().map(Subscriber::numbers) {
        // What came before the answer to the handshake may have gaps, and what came after it has none.
        let since: Vec<_> = numbers.into_iter().filter(|number| *number >= subscribed).collect();
        assert_eq!(since, (subscribed..published).collect::<Vec<_>>());
    }

    // An id from before is nobody's.
    let (mut client, id) = grid.nodes[2].client();
    for node in &grid.nodes {
        let body = json!({ "c": lost, "d": "for one that is gone" }).to_string();
        assert_error(&node.post("/v1/mesh/send", &body), 401, None);
        let call = json!({ "c": lost, "f": "info", "a": [] }).to_string();
        assert_error(&node.post("/v1/conn/call", &call), 301, None);
    }
    grid.nodes[0].backend().done("mesh.send", &json!({ "c": id, "d": "for the new one" }));
    assert_eq!(client.text(), "for the new one");
}

#[test]
fn a_node_that_is_frozen_and_goes_on_costs_the_others_nothing() {
    const FROZEN: Duration = Duration::from_secs(8);
    let grid = Grid::new(3);
    let near = drained(grid.nodes[1].client());
    let (frozen_client, frozen) = grid.nodes[2].client();
    let frozen = drained((frozen_client, frozen));
    let mut subscribers: Vec<_> =
        grid.nodes.iter().flat_map(|node| [node, node]).map(Subscriber::start).collect();
    let publisher = Publisher::start(&grid.nodes[0]);
    let prober = Prober::start(&grid.nodes[1], &near, &frozen);
    publisher.wait_until_right(Instant::now(), (6, 0));

    let freeze = Instant::now();
    grid.nodes[2].freeze();
    let right = publisher.wait_until_right(freeze, (4, 0));
    eprintln!("grid: freeze: counts are right again after {right:?}");
    thread::sleep(FROZEN.saturating_sub(freeze.elapsed()));
    let thaw = Instant::now();
    grid.nodes[2].thaw();
    let right = publisher.wait_until_right(thaw, (6, 0));
    eprintln!("grid: thaw: counts are right again after {right:?}");
    grid.wait_until_whole();

    prober.stop("freeze and thaw");
    let (published, longest) = publisher.stop();
    eprintln!("grid: freeze and thaw: {published} publishes, longest {longest:?}");
    assert!(longest < CALL_MAX, "{longest:?}");
    for subscriber in subscribers.drain(..4) {
        assert_eq!(subscriber.numbers(), (0..published).collect::<Vec<_>>());
    }
    let mut consumer = grid.nodes[0].consumer("messages");
    for (event, reason) in [("close", "node_lost"), ("open", "node_found")] {
        let told = consumer.event();
        assert_eq!(told["c"], frozen);
        assert_eq!((&told["d"]["event"], &told["d"]["reason"]), (&json!(event), &json!(reason)));
    }
    // What was published meanwhile they may have missed, and were counted so.
    for numbers in subscribers.into_iter().map(Subscriber::numbers) {
        let gaps = numbers.windows(2).filter(|pair| pair[0] + 1 < pair[1]).count();
        assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
        assert_eq!((numbers[0], numbers.last()), (0, Some(&(published - 1))));
        eprintln!("grid: a subscriber of the frozen node got {} in {gaps} gaps", numbers.len());
    }
    let mut backend = grid.nodes[2].backend();
    assert_eq!(backend.conn_call(&near, "subscribe", json!(["fresh"])), json!({ "s": true }));
    assert_eq!(backend.conn_call(&frozen, "subscribe", json!(["fresh"])), json!({ "s": true }));
    for node in &grid.nodes {
        assert_eq!(node.publish("fresh", "x"), (2, 0));
    }
}

#[test]
fn what_a_consumer_on_a_node_that_dies_has_not_acknowledged_goes_to_others() {
    const MESSAGES: usize = 2000;
    let mut grid = Grid::new(3);
    let pop = json!({ "t": ["plain"], "a": true, "w": 100 });
    let [mut dying, mut heir] = [2, 1].map(|index| {
        let mut consumer = grid.nodes[index].backend();
        consumer.done("queue.pop", &pop);
        consumer
    });
    let mut clients: Vec<_> = (0..10).map(|_| grid.nodes[0].device("/plain")).collect();
    for number in 0..MESSAGES {
        clients[number % 10].send_text(&number.to_string());
    }
    // Some of it was handed out there, and is not acknowledged.
    dying.event();
    grid.nodes[2].kill();
    let mut came = [false; MESSAGES];
    let mut of_client = [0; 10];
    for count in 0..MESSAGES {
        let mut event = loop {
            let mut message: Value = serde_json::from_str(&heir.text()).expect("JSON");
            if message["e"] == "queue.pop" {
                break message["p"].take();
            }
        };
        let ack = json!({ "m": "queue.ack", "p": { "g": event["g"].take() } });
        heir.send_text(&ack.to_string());
        let number = event["d"]["frame"]["data"].as_str().expect("a message");
        let number: usize = number.parse().expect("a number");
        assert!(!came[number], "{number} came twice");
        assert!(of_client[number % 10] <= number, "{number} came late, as number {count}");
        (came[number], of_client[number % 10]) = (true, number);
    }
}
