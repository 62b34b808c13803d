//! How many instructions things take, which does not depend on what else the machine does:
//! `cargo bench --bench instructions`. Each case runs twice under callgrind, a few times and many
//! times, so that its making ready falls out of the difference.

mod cases;

use std::hint::black_box;
use std::process::{Command, Stdio};
use std::{env, fs, process};

use cases::{
    Crowd, Decoding, EncodingEvent, Handshake, Hop, Parsing, Passing, Recovering, RemotePublishes,
};
use gridcast::protocol::frame::{Frame, Kind};

/// A case: the name, the units of work in one repetition, and a function that repeats the case a number of times.
type Case = (&'static str, u64, fn(u64));

const CASES: [Case; 27] = [
    ("handshake read and checked", 1, |n| repeat(n, Handshake::new(), Handshake::run)),
    ("frame of 128 B decoded and unmasked", 1, |n| repeat(n, Decoding::new(128), Decoding::run)),
    ("frame of 16384 B decoded and unmasked", 1, |n| {
        repeat(n, Decoding::new(16_384), Decoding::run);
    }),
    ("frame of 128 B encoded", 1, |n| {
        repeat(n, [b'x'; 128], |data| Frame::message(Kind::Text, data));
    }),
    ("publish of 128 B read", 1, |n| repeat(n, Parsing::new(128), Parsing::read)),
    ("answer written", 1, |n| repeat(n, Parsing::new(128), Parsing::answer)),
    ("event of 128 B written", 1, |n| repeat(n, EncodingEvent::new(128), EncodingEvent::run)),
    ("publish encoded for another node", 64, |n| {
        repeat(n, RemotePublishes::new(128), RemotePublishes::encode)
    }),
    ("publish decoded from another node", 64, |n| {
        repeat(n, RemotePublishes::new(128), RemotePublishes::decode)
    }),
    ("publish to nobody", 1, |n| repeat(n, Crowd::new(1, 0, "nobody's"), Crowd::publish)),
    ("publish over HTTP to nobody", 1, |n| repeat(n, Crowd::over_http(), Crowd::publish)),
    ("publish to 1", 1, |n| repeat(n, Crowd::new(1, 0, "all"), Crowd::publish)),
    ("publish to 1, 100001 channels", 1, |n| {
        repeat(n, Crowd::new(1000, 100, "500-50"), Crowd::publish);
    }),
    ("publish to 1000, each", 1000, |n| repeat(n, Crowd::new(1000, 0, "all"), Crowd::publish)),
    ("publish to 1000, 100001 channels, each", 1000, |n| {
        repeat(n, Crowd::new(1000, 100, "all"), Crowd::publish);
    }),
    ("publish to 1 with history", 1, |n| repeat(n, Crowd::with_history(1), Crowd::publish)),
    ("publish to 1000 with history, each", 1000, |n| {
        repeat(n, Crowd::with_history(1000), Crowd::publish);
    }),
    ("message to a device with history, one of 100", 100, |n| {
        repeat(n, Recovering::new(), Recovering::publish);
    }),
    ("message recovered by a device, one of 100", 100, |n| {
        repeat(n, Recovering::new(), Recovering::recover);
    }),
    ("publish to 1 beside ten taps", 1, |n| {
        repeat(n, Crowd::new(1, 0, "all").beside_taps(), Crowd::publish);
    }),
    ("publish to 1000 beside ten taps, each", 1000, |n| {
        repeat(n, Crowd::new(1000, 0, "all").beside_taps(), Crowd::publish);
    }),
    ("publish to nobody, one of 16 at once", 16, |n| {
        repeat(n, Crowd::new(1, 0, "nobody's").in_bursts(16), Crowd::publish);
    }),
    ("publish to 1000, one of 16 at once, each", 16_000, |n| {
        repeat(n, Crowd::new(1000, 0, "all").in_bursts(16), Crowd::publish);
    }),
    ("message between shards, alone", 1, |n| repeat(n, Hop::new(2), |hop| hop.run(1))),
    ("message between shards, of 32", 32, |n| repeat(n, Hop::new(2), |hop| hop.run(32))),
    ("question to 127 shards and answers, each pair", 127, |n| {
        repeat(n, Hop::new(128), Hop::ask_all);
    }),
    ("message through a topic", 1, |n| repeat(n, Passing::new(100), Passing::run)),
];

const FEW: u64 = 10;
const MANY: u64 = 110;

fn repeat<C, R>(times: u64, mut case: C, run: impl Fn(&mut C) -> R) {
    for _ in 0..times {
        black_box(run(black_box(&mut case)));
    }
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [word, number, times] = &arguments[..]
        && word == "--run"
    {
        let (number, times): (usize, u64) =
            (number.parse().expect("ours"), times.parse().expect("ours"));
        return CASES[number].2(times);
    }
    if Command::new("valgrind").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("skipped: no valgrind here; `apt install valgrind` or `dnf install valgrind`");
        return;
    }
    // cargo says `--bench`; what else there is names the cases.
    let wanted: Vec<&String> = arguments.iter().filter(|word| !word.starts_with("--")).collect();
    for (number, (name, parts, _)) in CASES.iter().enumerate() {
        if wanted.is_empty() || wanted.iter().any(|word| name.contains(&word[..])) {
            let difference = instructions(number, MANY) - instructions(number, FEW);
            println!("{:>9} instructions  {name}", difference / (MANY - FEW) / parts);
        }
    }
}

/// Instructions that a process takes that runs a case so many times.
fn instructions(number: usize, times: u64) -> u64 {
    let file = env::temp_dir().join(format!("gridcast-callgrind-{}", process::id()));
    let status = Command::new("valgrind")
        .args(["--tool=callgrind", "-q"])
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(env::current_exe().expect("this program has a path"))
        .args(["--run", &number.to_string(), &times.to_string()])
        .status()
        .expect("valgrind starts");
    assert!(status.success(), "{} failed under valgrind", CASES[number].0);
    let report = fs::read_to_string(&file).expect("callgrind has written");
    fs::remove_file(&file).expect("it was there to be read");
    let total = report.lines().find_map(|line| line.strip_prefix("summary: "));
    total.expect("callgrind sums up").trim().parse().expect("a number")
}
