//! What a check came to, for people and for programs.

use std::fmt;

use serde::Serialize;

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// gridcast runs, but takes or does less than it could.
    Warn,
    /// gridcast does not start, or cannot hold what it is configured to.
    Wrong,
}

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `pad` heeds the width that the caller asks for.
        formatter.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Wrong => "wrong",
        })
    }
}

/// What one check came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: String,
    /// How it is.
    pub state: State,
    /// What is there.
    pub found: String,
    /// What should be, and why; `None`: it is.
    pub wanted: Option<String>,
    /// The command or setting that makes it so; `None`: nothing is to be done.
    pub mend: Option<String>,
}

impl Finding {
    pub(super) fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        let (name, found) = (name.into(), found.into());
        Self { name, state: State::Ok, found, wanted: None, mend: None }
    }

    pub(super) fn warn(
        name: impl Into<String>,
        found: impl Into<String>,
        wanted: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        let (wanted, mend) = (Some(wanted.into()), Some(mend.into()));
        Self { state: State::Warn, wanted, mend, ..Self::ok(name, found) }
    }

    pub(super) fn wrong(
        name: impl Into<String>,
        found: impl Into<String>,
        wanted: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { state: State::Wrong, ..Self::warn(name, found, wanted, mend) }
    }
}

/// One line, and below it what is wanted and how to get it.
impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, state, found, wanted, mend } = self;
        write!(formatter, "{state:<5}  {name}: {found}")?;
        if let Some(wanted) = wanted {
            write!(formatter, "\n       wanted: {wanted}")?;
        }
        if let Some(mend) = mend {
            write!(formatter, "\n       to do:  {mend}")?;
        }
        Ok(())
    }
}
