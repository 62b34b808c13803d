//! What the engines of sources do at a time: one task each for taking and for acknowledging.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

use crate::address::NodeId;
use crate::bridge::call_sources::{SourceOutcome, SourceRun, SourceTask, SourceWork};
use crate::bridge::engines::{self, CallFeed};
use crate::protocol::call_source::CallSource;

/// The engines of sources, and what they do.
pub(super) struct SourceTasks {
    node: NodeId,
    feeds: HashMap<SourceRun, Box<dyn CallFeed>>,
    // Two for each source at most.
    tasks: JoinSet<SourceOutcome>,
    // What each of them is for.
    open: HashMap<Id, OpenTask>,
}

struct OpenTask {
    source: Arc<CallSource>,
    run: SourceRun,
    is_take: bool,
    handle: AbortHandle,
}

/// The end of a task.
pub(super) struct EndedTask {
    /// The source.
    pub(super) source: Arc<CallSource>,
    /// The run.
    pub(super) run: SourceRun,
    /// How the task has ended.
    pub(super) outcome: SourceOutcome,
}

impl SourceTasks {
    /// No tasks, for the sources of a node.
    pub(super) fn new(node: NodeId) -> Self {
        Self { node, feeds: HashMap::new(), tasks: JoinSet::new(), open: HashMap::new() }
    }

    /// Begins a task.
    pub(super) fn begin(&mut self, task: SourceTask) {
        let SourceTask { source, run, work } = task;
        let feed = self.feeds.entry(run);
        let feed = feed.or_insert_with(|| engines::open_feed(&source, self.node));
        let is_take = matches!(work, SourceWork::Take(_));
        let handle = match work {
            SourceWork::Take(most) => {
                let taking = feed.take(most);
                self.tasks.spawn(async move { SourceOutcome::Taken(taking.await) })
            }
            SourceWork::Acknowledge(receipts) => {
                let acknowledging = feed.acknowledge(receipts);
                self.tasks.spawn(async move { SourceOutcome::Acknowledged(acknowledging.await) })
            }
        };
        self.open.insert(handle.id(), OpenTask { source, run, is_take, handle });
    }

    /// Waits for the end of a task; `None` if there is none.
    pub(super) async fn next(&mut self) -> Option<EndedTask> {
        loop {
            let ended = self.tasks.join_next_with_id().await?;
            if let Some(ended) = self.end(ended) {
                return Some(ended);
            }
        }
    }

    fn end(&mut self, ended: Result<(Id, SourceOutcome), JoinError>) -> Option<EndedTask> {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        // Nobody waits for a task that was aborted.
        let OpenTask { source, run, is_take, .. } = self.open.remove(&id)?;
        let outcome = match ended {
            Ok((_, outcome)) => outcome,
            // The task has panicked.
            Err(error) if is_take => SourceOutcome::Taken(Err(error.to_string())),
            Err(error) => SourceOutcome::Acknowledged(Err(error.to_string())),
        };
        Some(EndedTask { source, run, outcome })
    }

    /// Aborts the tasks of runs that have ended. The engine gives what they have taken to somebody else later.
    pub(super) fn retain(&mut self, is_running: impl Fn(&CallSource, SourceRun) -> bool) {
        let ended = self.open.extract_if(|_, task| !is_running(&task.source, task.run));
        for (_, task) in ended {
            task.handle.abort();
            self.feeds.remove(&task.run);
        }
    }
}
