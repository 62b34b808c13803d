//! The result of a check, for people and for programs.

use std::fmt;

use serde::Serialize;

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FindingState {
    /// Nothing needs to change.
    Ok,
    /// The node runs, but with less capacity or performance than possible.
    Warn,
    /// The node does not start, or cannot hold what is configured.
    Wrong,
}

impl fmt::Display for FindingState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `pad` applies the caller's width.
        formatter.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Wrong => "wrong",
        })
    }
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The subject of the check.
    pub name: String,
    /// How serious the finding is.
    pub state: FindingState,
    /// The current value.
    pub found: String,
    /// The recommended value, and why; `None`: the current value is right.
    pub wanted: Option<String>,
    /// The command or setting that establishes it; `None`: nothing is to be done.
    pub mend: Option<String>,
}

impl Finding {
    pub(super) fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        let (name, found) = (name.into(), found.into());
        Self { name, state: FindingState::Ok, found, wanted: None, mend: None }
    }

    pub(super) fn warn(
        name: impl Into<String>,
        found: impl Into<String>,
        wanted: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        let (wanted, mend) = (Some(wanted.into()), Some(mend.into()));
        Self { state: FindingState::Warn, wanted, mend, ..Self::ok(name, found) }
    }

    pub(super) fn wrong(
        name: impl Into<String>,
        found: impl Into<String>,
        wanted: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { state: FindingState::Wrong, ..Self::warn(name, found, wanted, mend) }
    }
}

/// One line, with the recommended value and how to establish it below.
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
