//! The program: reads its arguments and its configuration, and runs a command. Exit status: 0 for
//! success, 1 for a failure while running or a machine that does not meet the requirements, 2 for invalid
//! arguments or an invalid configuration. `cli::failure` has those of the client commands.

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]
#![cfg_attr(not(test), warn(unreachable_pub))]

use std::fmt::Display;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use gridcast::cli::{self, Command, ToolCommand};
use gridcast::config::{self, Config, Loaded, Source};
use gridcast::doctor::{self, FindingState, Machine, Plan};
use gridcast::node;
use gridcast::runtime;
use gridcast::runtime::log::{self, FLUSH_MAX, LineFormat, LogQueue};
use gridcast::runtime::memory::CountingAllocator;
use gridcast::runtime::probe;
use rustix::thread::{CpuSet, sched_getaffinity};
use tracing::Level;

/// Counts allocated memory for `limits.memory_bytes`.
#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    // Without the log's thread, an error cannot be reported without the risk of a panic or a wait.
    let Ok(log) = LogQueue::to_stderr() else { return ExitCode::FAILURE };
    log.take_panics();
    let status = carry_out(&log);
    log.flush(FLUSH_MAX);
    status
}

fn carry_out(log: &LogQueue) -> ExitCode {
    let available = match available_cpus() {
        Ok(cpus) => cpus,
        Err(error) => return fail(log, 1, format!("sched_getaffinity: {error}")),
    };
    let command = match cli::parse() {
        Ok(command) => command,
        Err(status) => return ExitCode::from(status),
    };
    match command {
        Command::Check { config, health } => {
            match Config::read(&config, environment(), &available) {
                Ok(checked) if health => ask_for_health(log, &checked),
                Ok(checked) => print(log, &checked_text(&config, &checked), ExitCode::SUCCESS),
                Err(error) => fail(log, 2, error),
            }
        }
        Command::Serve { config } => {
            let source = Source::new(config, environment(), &available);
            match source.load() {
                Ok(loaded) => serve(log, source, loaded),
                Err(error) => {
                    set_format(log, error.format());
                    fail(log, 2, error)
                }
            }
        }
        Command::Doctor { config, json } => {
            let plan = match config.map(|file| Config::read(&file, environment(), &available)) {
                Some(Ok(config)) => Plan::of(&config),
                Some(Err(error)) => return fail(log, 2, error),
                None => Plan::unknown(&available),
            };
            examine(log, &plan, json)
        }
        Command::Config => print(log, config::sample_file().trim_end(), ExitCode::SUCCESS),
        Command::Client(command) => match command.directory_to_verify() {
            Some(data) => verify(log, data),
            None => run_client(log, command, &available),
        },
    }
}

fn run_client(log: &LogQueue, command: ToolCommand, available: &[usize]) -> ExitCode {
    let read = |file: &Path| {
        Config::read(file, environment(), available).map_err(|error| error.to_string())
    };
    match command.run(read) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => match failure.message() {
            Some(message) => fail(log, failure.status(), message),
            None => ExitCode::from(failure.status()),
        },
    }
}

/// Checks the files of topics on disk.
fn verify(log: &LogQueue, data: &Path) -> ExitCode {
    match runtime::disk::verify(data) {
        Ok(verification) => {
            let status = ExitCode::from(u8::from(!verification.is_whole()));
            print(log, &verification.to_string(), status)
        }
        Err(error) => fail(log, 1, error),
    }
}

fn checked_text(file: &Path, checked: &Config) -> String {
    let warnings = checked.warnings(runtime::unix_ms());
    let warnings: String = warnings.iter().map(|why| format!("\nwarning: {why}")).collect();
    format!("{}: ok\n{checked}{warnings}", file.display())
}

/// Asks the node that runs with this configuration on this machine whether it is healthy.
fn ask_for_health(log: &LogQueue, config: &Config) -> ExitCode {
    match probe::probe(&config.api.bind, config.api.tls.is_some()) {
        Ok(()) => print(log, "healthy", ExitCode::SUCCESS),
        Err(why) => fail(log, 1, why),
    }
}

fn serve(log: &LogQueue, source: Source, loaded: Loaded) -> ExitCode {
    set_format(log, loaded.config.log.format);
    match node::run(source, loaded, log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(log, 1, error),
    }
}

fn set_format(log: &LogQueue, format: config::Format) {
    log.set_format(match format {
        config::Format::Text => LineFormat::Text,
        config::Format::Json => LineFormat::Json,
    });
}

fn examine(log: &LogQueue, plan: &Plan, json: bool) -> ExitCode {
    let report = doctor::examine(&Machine::read(), plan);
    let text = if json { report.to_json() } else { report.to_string() };
    print(log, &text, ExitCode::from(u8::from(report.state == FindingState::Wrong)))
}

/// Prints the output of a command and returns `status`, or a failure if the output cannot be printed.
fn print(log: &LogQueue, answer: &str, status: ExitCode) -> ExitCode {
    match log::print(&format!("{answer}\n")) {
        Ok(()) => status,
        Err(error) => fail(log, 1, format!("standard output: {error}")),
    }
}

fn fail(log: &LogQueue, status: u8, error: impl Display) -> ExitCode {
    log.say(Level::ERROR, &error.to_string(), &[]);
    ExitCode::from(status)
}

/// Yields the environment variables. Invalid Unicode is replaced by marks, so that a check of the values
/// refuses it instead of overlooking it.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().map(|(name, value)| {
        (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
    })
}

fn available_cpus() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}
