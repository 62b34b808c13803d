//! `gridcast doctor`, as a process on the machine that the tests run on.

#![forbid(unsafe_code)]

mod support;

use std::process::Output;

use serde_json::Value;
use support::{CONFIG, command, config_file};

/// Runs it to its end, with further arguments.
fn doctor(arguments: &[&str]) -> Output {
    command(&[&["doctor"], arguments].concat()).output().expect("the binary is there")
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("text")
}

/// How a check on this machine came out.
fn state<'a>(report: &'a Value, name: &str) -> &'a str {
    let findings = report["findings"].as_array().expect("a list");
    let finding = findings.iter().find(|finding| finding["name"] == name);
    finding.unwrap_or_else(|| panic!("no {name}: {report}"))["state"].as_str().expect("a word")
}

#[test]
fn a_machine_that_runs_these_tests_has_a_ring_and_exit_code_and_words_agree() {
    let output = doctor(&[]);
    let report = text(output.stdout);
    assert!(report.contains("ok     io_uring: "), "{report}");
    let is_wrong = report.lines().any(|line| line.starts_with("wrong  "));
    assert_eq!(output.status.code(), Some(i32::from(is_wrong)), "{report}");
}

#[test]
fn a_configuration_is_what_the_machine_is_judged_for() {
    let file = config_file(&format!("{CONFIG}[limits]\nclients = 16777216\n"));
    let output = doctor(&["--json", "--config", file.to_str().expect("UTF-8")]);
    std::fs::remove_file(file).expect("the file was there to be read");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["clients"], 16_777_216);
    assert_eq!(report["mesh"], false);
    assert_eq!(report["cores"].as_array().map(Vec::len), Some(2));
    let names = report["findings"].as_array().expect("a list");
    assert!(names.iter().all(|finding| finding["name"] != "net.core.rmem_max"), "{report}");
    assert_eq!(state(&report, "io_uring"), "ok");
    let is_wrong = report["state"] == "wrong";
    assert_eq!(output.status.code(), Some(i32::from(is_wrong)), "{report}");
}

#[test]
fn fewer_descriptors_than_the_configured_clients_take_are_wrong() {
    let file = config_file(&format!("{CONFIG}[limits]\nclients = 2000\n"));
    let doctor = format!(
        "ulimit -n 1000 && exec {} doctor --json --config {}",
        env!("CARGO_BIN_EXE_gridcast"),
        file.display()
    );
    let output = std::process::Command::new("sh").args(["-c", &doctor]).output().expect("a shell");
    std::fs::remove_file(file).expect("the file was there to be read");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(state(&report, "descriptors (RLIMIT_NOFILE)"), "wrong", "{report}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_wrong_configuration_is_exit_code_2_and_not_judged() {
    let output = doctor(&["--config", "no/such.toml"]);
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(2), &b""[..]));
    assert!(text(output.stderr).contains("no/such.toml"));
}
