//! How a command fails, and the exit status of each kind of failure.

use std::io;

/// The exit status after wrong arguments, which clap uses too.
pub(super) const USAGE_STATUS: u8 = 2;

/// Why a command failed.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// The API answered with an error, or something on this machine failed, such as reading a file.
    Failed(String),
    /// The arguments, the environment or the input are wrong.
    Usage(String),
    /// The server cannot be reached, or the connection ended.
    Unreachable(String),
    /// The server does not accept the credentials, or they do not allow the call.
    Denied(String),
    /// The command was interrupted by the signal with this number.
    Interrupted(u8),
    /// The reader of standard output is gone.
    OutputClosed,
}

impl Failure {
    /// Returns the exit status. `docs/reference/command-line.md` describes each.
    pub fn status(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => USAGE_STATUS,
            Self::Unreachable(_) => 3,
            Self::Denied(_) => 4,
            // The code with which a shell reports a process that the signal has ended.
            Self::Interrupted(signal) => 128 + signal,
            Self::OutputClosed => 128 + libc::SIGPIPE as u8,
        }
    }

    /// Returns the message for the user. `None`: the user knows already.
    pub fn message(&self) -> Option<&str> {
        match self {
            Self::Failed(text)
            | Self::Usage(text)
            | Self::Unreachable(text)
            | Self::Denied(text) => Some(text),
            Self::Interrupted(_) | Self::OutputClosed => None,
        }
    }

    /// Returns the failure of a write to standard output.
    pub(super) fn of_output(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Failed(format!("standard output: {error}")),
        }
    }
}
