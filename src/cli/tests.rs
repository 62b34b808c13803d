//! Tests of the arguments.

use super::*;

fn command(arguments: &[&str]) -> Result<Command, String> {
    let arguments = ["gridcast"].iter().chain(arguments);
    match Arguments::try_parse_from(arguments) {
        Ok(arguments) => Ok(arguments.command),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn serve_runs_with_a_file_or_without() {
    assert_eq!(command(&["serve"]), Ok(Command::Serve { config: None }));
    let config = Some(PathBuf::from("a.toml"));
    assert_eq!(command(&["serve", "--config", "a.toml"]), Ok(Command::Serve { config }));
}

#[test]
fn check_needs_a_file() {
    assert!(command(&["check"]).unwrap_err().contains("--config <FILE>"));
    let config = PathBuf::from("a.toml");
    let expected = Command::Check { config: config.clone(), health: false };
    assert_eq!(command(&["check", "--config=a.toml"]), Ok(expected));
    let expected = Command::Check { config, health: true };
    assert_eq!(command(&["check", "--health", "--config=a.toml"]), Ok(expected));
}

#[test]
fn doctor_judges_for_a_file_or_without_one() {
    assert_eq!(command(&["doctor"]), Ok(Command::Doctor { config: None, json: false }));
    let config = Some(PathBuf::from("a.toml"));
    let expected = Command::Doctor { config, json: true };
    assert_eq!(command(&["doctor", "--json", "--config", "a.toml"]), Ok(expected));
}

#[test]
fn config_takes_nothing() {
    assert_eq!(command(&["config"]), Ok(Command::Config));
    assert!(command(&["config", "a.toml"]).is_err());
}

#[test]
fn a_mistyped_word_is_answered_with_the_right_one() {
    assert!(command(&["serv"]).unwrap_err().contains("'serve'"));
    assert!(command(&["serve", "--confg", "a"]).unwrap_err().contains("'--config'"));
}
