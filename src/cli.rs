//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// A distributed WebSocket gateway: back ends push to clients and read what they send.
#[derive(Debug, Parser)]
#[command(name = "gridcast", version)]
struct Arguments {
    #[command(subcommand)]
    command: Subcommand,
}

/// A command of the program with its arguments.
#[derive(Debug, PartialEq, Eq, clap::Subcommand)]
pub(crate) enum Subcommand {
    /// Run the gateway until SIGTERM or Ctrl-C.
    Serve {
        /// Configuration file (TOML). Without one: listeners on loopback, routes /ws and /echo.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Check a configuration file, including the GRIDCAST_ variables, without starting anything.
    Check {
        /// Configuration file (TOML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Ask the node that runs with this configuration on this machine for /healthz, and
        /// succeed only if the answer is 200.
        #[arg(long)]
        health: bool,
    },
    /// Check this machine and say what to change. Changes nothing itself.
    Doctor {
        /// Configuration file (TOML) to check the machine for. Without one: all CPUs, a mesh, as
        /// many clients as the machine allows.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print the result as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Print a sample configuration file: every key, with its default and what it is for.
    Config,
}

/// Parses the arguments of the process.
///
/// # Errors
/// The exit status: 2 after a message about an invalid argument; 0 after the help or the version, or 1 if
/// these could not be printed.
pub(crate) fn parse() -> Result<Subcommand, u8> {
    let error = match Arguments::try_parse() {
        Ok(arguments) => return Ok(arguments.command),
        Err(error) => error,
    };
    let is_printed = error.print().is_ok();
    Err(match error.use_stderr() {
        true => 2,
        false => u8::from(!is_printed),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(arguments: &[&str]) -> Result<Subcommand, String> {
        let arguments = ["gridcast"].iter().chain(arguments);
        match Arguments::try_parse_from(arguments) {
            Ok(arguments) => Ok(arguments.command),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn serve_runs_with_a_file_or_without() {
        assert_eq!(command(&["serve"]), Ok(Subcommand::Serve { config: None }));
        let config = Some(PathBuf::from("a.toml"));
        assert_eq!(command(&["serve", "--config", "a.toml"]), Ok(Subcommand::Serve { config }));
    }

    #[test]
    fn check_needs_a_file() {
        assert!(command(&["check"]).unwrap_err().contains("--config <FILE>"));
        let config = PathBuf::from("a.toml");
        let expected = Subcommand::Check { config: config.clone(), health: false };
        assert_eq!(command(&["check", "--config=a.toml"]), Ok(expected));
        let expected = Subcommand::Check { config, health: true };
        assert_eq!(command(&["check", "--health", "--config=a.toml"]), Ok(expected));
    }

    #[test]
    fn doctor_judges_for_a_file_or_without_one() {
        assert_eq!(command(&["doctor"]), Ok(Subcommand::Doctor { config: None, json: false }));
        let config = Some(PathBuf::from("a.toml"));
        let expected = Subcommand::Doctor { config, json: true };
        assert_eq!(command(&["doctor", "--json", "--config", "a.toml"]), Ok(expected));
    }

    #[test]
    fn config_takes_nothing() {
        assert_eq!(command(&["config"]), Ok(Subcommand::Config));
        assert!(command(&["config", "a.toml"]).is_err());
    }

    #[test]
    fn a_mistyped_word_is_answered_with_the_right_one() {
        assert!(command(&["serv"]).unwrap_err().contains("'serve'"));
        assert!(command(&["serve", "--confg", "a"]).unwrap_err().contains("'--config'"));
    }
}
