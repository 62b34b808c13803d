//! Drives a gridcast server over real sockets and reports what each kind of work costs it.
//!
//! Each scenario is run several times, by default each time against a fresh server that the load test starts
//! on CPUs of its own. The load test uses the other CPUs. The report has rates, latencies as clients observe
//! them, server CPU per unit of work, and the number of messages lost, doubled or misordered.
//!
//! Exit codes: 0 for success, 1 if gridcast lost, doubled or misordered messages, 2 if a scenario could not be
//! run.
#![forbid(unsafe_code)]

mod answer;
mod attack;
mod back_end;
mod client;
mod connection;
mod consumer;
mod delivery;
mod device;
mod dialect;
mod html;
mod http;
mod inbox;
mod latency;
mod ledger;
mod machine;
mod markdown;
mod meter;
mod nats;
mod operators;
mod pace;
mod payload;
mod plot;
mod probe;
mod process;
mod producer;
mod publisher;
mod raw;
mod report;
mod rival;
mod run;
mod scenario;
mod server;
mod stream;
mod subscribers;
mod target;
mod tasks;
mod tls;
mod web_socket;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use std::{fmt, fs};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, value_parser};
use nix::unistd::Pid;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use dialect::Dialect;
use report::Report;
use rival::Rival;
use run::Run;
use scenario::Scenario;
use server::{Server, Setup};
use target::Target;

#[derive(Parser)]
#[command(version, about, long_about = None)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    One(Scenario),
    /// Every scenario, with the options of the performance page
    All {
        /// Far fewer clients and messages, to check that everything works
        #[arg(long)]
        quick: bool,
    },
}

#[derive(Args)]
#[command(next_help_heading = "Server and report")]
struct Options {
    /// Server binary to start [default: gridcast beside this program]
    #[arg(long, global = true, conflicts_with = "pid")]
    server: Option<PathBuf>,
    /// CPUs of the server, one shard each; the load test uses the others
    #[arg(long, global = true, value_name = "CPU,…", value_delimiter = ',', default_value = "0")]
    server_cpus: Vec<usize>,
    /// API address of a running server (with --edge and --pid)
    #[arg(long, global = true)]
    api: Option<SocketAddr>,
    /// Edge address of a running server
    #[arg(long, global = true)]
    edge: Option<SocketAddr>,
    /// Process id of a running server, to measure its CPU time and memory
    #[arg(long, global = true, value_parser = value_parser!(i32).range(1..))]
    pid: Option<i32>,
    /// Other servers to measure in the scenarios that they support: nchan, nats, bare (one that does nothing
    /// but the work, as a lower bound), or ADDRESS@PID of a running one that speaks WebSocket at /sub/CHANNEL and /pub/CHANNEL
    #[arg(long = "peer", global = true, value_name = "PEER,…", value_delimiter = ',')]
    rivals: Vec<Rival>,
    /// Runs of each scenario
    #[arg(long, global = true, default_value_t = 3, value_parser = value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Time limit of a run in seconds; messages that have not arrived by then count as lost
    #[arg(long, global = true, default_value_t = 60, value_parser = value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// File to write the report to as JSON
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    /// File to write the report to as a page with plots
    #[arg(long, global = true, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print the tables of the performance page at the end, instead of a row for each scenario
    #[arg(long, global = true)]
    markdown: bool,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(reports) if reports.iter().all(Report::is_sound) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(error) => {
            eprintln!("loadtest: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// The load test was interrupted by a signal.
#[derive(Debug)]
struct Interrupted(&'static str);

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(signal) = self;
        write!(f, "ended by {signal}")
    }
}

impl std::error::Error for Interrupted {}

/// Runs the requested scenarios, and prints the row of each when it is done.
fn run(Arguments { options, command }: Arguments) -> Result<Vec<Report>> {
    machine::raise_descriptor_limit()?;
    let runtime = machine::runtime_beside(&options.server_cpus)?;
    let scenarios = match command {
        Command::One(scenario) => scenario.each(),
        Command::All { quick } => scenario::all(quick),
    };
    if !options.markdown {
        println!("{}", report::heading());
    }
    let mut reports = Vec::new();
    for scenario in &scenarios {
        let peers = options.rivals.iter().filter(|peer| scenario.suits(peer.dialect()));
        let subjects: Vec<_> = [None].into_iter().chain(peers.map(Some)).collect();
        let mut runs: Vec<Vec<Run>> = subjects.iter().map(|_| Vec::new()).collect();
        // In turn, so that other load on the machine affects all servers alike.
        for _ in 0..options.runs {
            for (subject, runs) in subjects.iter().zip(&mut runs) {
                let run = run_once(scenario, *subject, &options, &runtime)
                    .with_context(|| format!("{}, {}", name(*subject), scenario.title()));
                match run {
                    Ok(run) => runs.push(run),
                    // A failure of another server does not invalidate the rest.
                    Err(error) if subject.is_some() && !error.is::<Interrupted>() => {
                        eprintln!("loadtest: a run is left out: {error:#}");
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        for (subject, runs) in subjects.iter().zip(&runs).filter(|(_, runs)| !runs.is_empty()) {
            let report = Report::new(scenario, name(*subject), runs);
            if !options.markdown {
                println!("{report}");
            }
            reports.push(report);
        }
    }
    if options.markdown {
        markdown::tables(&reports).iter().for_each(|table| println!("{table}"));
    }
    if let Some(path) = &options.html {
        let page = html::page(&machine::describe(&options.server_cpus), &reports)?;
        fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &options.json {
        report::write_json(path, &options.server_cpus, &reports)?;
    }
    Ok(reports)
}

fn name(subject: Option<&Rival>) -> String {
    subject.map_or(report::GRIDCAST.into(), ToString::to_string)
}

/// Runs a scenario once against `subject`, or against gridcast without one, and ends the started servers
/// whatever the outcome.
fn run_once(
    scenario: &Scenario,
    subject: Option<&Rival>,
    options: &Options,
    runtime: &Runtime,
) -> Result<Run> {
    let servers = match subject {
        Some(rival) => vec![rival.start(&options.server_cpus, &scenario.setup())?],
        None => options.servers(&scenario.setup())?,
    };
    let targets = servers.iter().map(Server::target).collect();
    let deadline = Instant::now() + Duration::from_secs(options.timeout);
    let run = scenario.clone().run(targets, deadline);
    runtime.block_on(async {
        // Spawned, because this thread is not restricted to the CPUs beside the server's.
        let run = tokio::spawn(run);
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            run = run => {
                if Instant::now() >= deadline {
                    let (who, title) = (name(subject), scenario.title());
                    let seconds = options.timeout;
                    eprintln!("loadtest: {who}, {title}: not done in {seconds} s; see --timeout");
                }
                run.context("a scenario panicked")?
            }
            _ = interrupt.recv() => bail!(Interrupted("SIGINT")),
            _ = terminate.recv() => bail!(Interrupted("SIGTERM")),
        }
    })
}

impl Options {
    /// Starts the servers of a setup, or takes the running one.
    fn servers(&self, setup: &Setup) -> Result<Vec<Server>> {
        match (self.api, self.edge, self.pid) {
            (Some(_), ..) if setup.nodes > 1 => bail!("the nodes of a grid are started here"),
            (Some(_), ..) if setup.tls => {
                bail!("a server with the certificate for --tls is started here")
            }
            (Some(api), Some(edge), Some(pid)) => {
                let (pid, dialect) = (Pid::from_raw(pid), Dialect::Gridcast);
                Ok(vec![Server::running(Target { api, edge, pid, dialect, tls: false })])
            }
            (None, None, None) => {
                let beside = || server::binary_beside_this_one();
                let binary = self.server.clone().map_or_else(beside, Ok)?;
                Server::start(&binary, &self.server_cpus, setup)
            }
            _ => bail!("a server that runs already needs all of --api, --edge and --pid"),
        }
    }
}
