//! Arguments → configuration → node → exit code: 0 for a good end, 1 for a failure while running or
//! a machine that is not fit, 2 for wrong arguments or a wrong configuration.

mod cli;

use std::io;
use std::path::Path;
use std::process::ExitCode;

use cli::Command;
use gridcast::config::{Config, ConfigError};
use gridcast::doctor::{self, Machine, Plan, State};
use gridcast::node;
use rustix::thread::{CpuSet, sched_getaffinity};

fn main() -> ExitCode {
    let available = match available_cpus() {
        Ok(cpus) => cpus,
        Err(error) => return fail(1, &format!("sched_getaffinity: {error}")),
    };
    match cli::parse() {
        Command::Check { config } => match Config::read(&config, environment(), &available) {
            Ok(checked) => {
                println!("{}: ok\n{checked}", config.display());
                ExitCode::SUCCESS
            }
            Err(error) => fail(2, &error),
        },
        Command::Serve { config } => match configuration(config.as_deref(), &available) {
            Ok(config) => match node::run(&config) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(1, &error),
            },
            Err(error) => fail(2, &error),
        },
        Command::Doctor { config, json } => {
            let plan = match config.map(|file| Config::read(&file, environment(), &available)) {
                Some(Ok(config)) => Plan::of(&config),
                Some(Err(error)) => return fail(2, &error),
                None => Plan::unknown(&available),
            };
            examine(&plan, json)
        }
    }
}

fn examine(plan: &Plan, json: bool) -> ExitCode {
    let report = doctor::examine(&Machine::read(), plan);
    if json {
        println!("{}", report.to_json());
    } else {
        println!("{report}");
    }
    ExitCode::from(u8::from(report.state == State::Wrong))
}

fn configuration(file: Option<&Path>, available: &[usize]) -> Result<Config, ConfigError> {
    match file {
        Some(file) => Config::read(file, environment(), available),
        None => Config::development(environment(), available),
    }
}

fn fail(status: u8, error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("gridcast: {error}");
    ExitCode::from(status)
}

/// The environment; what is not Unicode is passed on with marks in it, to be refused, not overlooked.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().map(|(name, value)| {
        (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
    })
}

fn available_cpus() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}
