//! The sources: which run, and what their engines have to do.

mod runner;

use std::collections::HashMap;
use std::sync::Arc;

use crate::metrics::CallSourceReport;
use crate::protocol::api::Fault;
use crate::protocol::call_source::CallSource;
pub(super) use runner::{CallMessage, Receipts};
use runner::{HeldId, SourceRunner};

/// A run of a source. A source whose settings change runs anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SourceRun(pub u64);

/// The message whose call a shard carries out.
#[derive(Clone, Debug)]
pub(super) struct SourceCaller {
    name: Arc<str>,
    run: SourceRun,
    message: HeldId,
}

impl SourceCaller {
    /// The name of the source.
    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }
}

/// What an engine has to do, and for which run.
#[derive(Debug)]
pub(super) struct SourceTask {
    /// The source.
    pub source: Arc<CallSource>,
    /// The run.
    pub run: SourceRun,
    /// The task of the engine.
    pub work: SourceWork,
}

/// What an engine has to do for a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SourceWork {
    /// Wait for messages: at most as many.
    Take(usize),
    /// Acknowledge messages.
    Acknowledge(Arc<Receipts>),
}

/// The end of what an engine had to do, or why it has failed.
#[derive(Debug)]
pub(super) enum SourceOutcome {
    /// Messages have come, or none in time.
    Taken(Result<Vec<CallMessage>, String>),
    /// The messages are acknowledged.
    Acknowledged(Result<(), String>),
}

/// The figures of a source; `None` if it no longer runs.
pub(super) type SourceNews = (Arc<str>, Option<Box<CallSourceReport>>);

/// All sources.
pub(super) struct CallSources {
    // By the name of the source.
    runners: HashMap<Arc<str>, SourceRunner>,
    removed: Vec<Arc<str>>,
    next_run: SourceRun,
    // Makes the pauses of sources differ.
    random: u64,
}

impl CallSources {
    /// No sources.
    pub(super) fn new(random: u64) -> Self {
        Self { runners: HashMap::new(), removed: Vec::new(), next_run: SourceRun(1), random }
    }

    /// Runs these sources from now on, and no others. A source whose settings have changed begins a new run.
    pub(super) fn set(&mut self, sources: Vec<Arc<CallSource>>) {
        let removed = self.runners.extract_if(|_, runner| !sources.contains(runner.source()));
        self.removed.extend(removed.map(|(name, _)| name));
        for source in sources {
            let run = self.next_run;
            self.runners.entry(source.name.clone()).or_insert_with(|| {
                self.next_run.0 += 1;
                self.random = self.random.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(run.0);
                SourceRunner::new(source, run, self.random)
            });
        }
    }

    /// Whether a run goes on.
    pub(super) fn is_running(&self, source: &CallSource, run: SourceRun) -> bool {
        self.runners.get(&source.name).is_some_and(|runner| runner.run() == run)
    }

    fn runner(&mut self, name: &str, run: SourceRun) -> Option<&mut SourceRunner> {
        self.runners.get_mut(name).filter(|runner| runner.run() == run)
    }

    /// Returns what an engine has to do next.
    pub(super) fn poll_task(&mut self, now_ms: u64) -> Option<SourceTask> {
        self.runners.values_mut().find_map(|runner| {
            let work = runner.poll_work(now_ms)?;
            Some(SourceTask { source: runner.source().clone(), run: runner.run(), work })
        })
    }

    /// Handles the end of what an engine had to do. Outcomes for an earlier run are ignored.
    pub(super) fn handle_outcome(
        &mut self,
        now_ms: u64,
        source: &CallSource,
        run: SourceRun,
        outcome: SourceOutcome,
    ) {
        let Some(runner) = self.runner(&source.name, run) else { return };
        match outcome {
            SourceOutcome::Taken(taken) => runner.handle_taken(now_ms, taken),
            SourceOutcome::Acknowledged(done) => runner.handle_acknowledged(now_ms, done),
        }
    }

    /// Returns the next call that a shard has to carry out, as JSON.
    pub(super) fn poll_call(&mut self, now_ms: u64) -> Option<(SourceCaller, Vec<u8>)> {
        self.runners.values_mut().find_map(|runner| {
            let (message, text) = runner.poll_call(now_ms)?;
            let (name, run) = (runner.source().name.clone(), runner.run());
            Some((SourceCaller { name, run, message }, text))
        })
    }

    /// Handles the end of a call. Calls of an earlier run are ignored.
    pub(super) fn handle_called(
        &mut self,
        now_ms: u64,
        caller: &SourceCaller,
        outcome: Result<(), Fault>,
    ) {
        if let Some(runner) = self.runner(&caller.name, caller.run) {
            runner.handle_called(now_ms, caller.message, outcome);
        }
    }

    /// Returns the next figures that have changed.
    pub(super) fn poll_news(&mut self) -> Option<SourceNews> {
        while let Some(name) = self.removed.pop() {
            if !self.runners.contains_key(&name) {
                return Some((name, None));
            }
        }
        self.runners.values_mut().find_map(|runner| {
            let figures = runner.poll_figures()?;
            Some((runner.source().name.clone(), Some(figures)))
        })
    }

    /// Returns when [`Self::poll_task`] or [`Self::poll_call`] has something to do.
    pub(super) fn poll_timeout(&self) -> Option<u64> {
        self.runners.values().filter_map(SourceRunner::poll_timeout).min()
    }
}
