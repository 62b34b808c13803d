//! Work in many tasks, and work with a deadline.

use anyhow::{Context, Result};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

/// Runs the same work for each of `inputs` in a task of its own. Outputs are in any order.
///
/// # Errors
/// The first error of a task. The other tasks are aborted.
pub async fn in_parallel<I, O, F>(
    inputs: impl IntoIterator<Item = I>,
    work: impl FnMut(I) -> F,
) -> Result<Vec<O>>
where
    O: Send + 'static,
    F: Future<Output = Result<O>> + Send + 'static,
{
    let mut tasks: JoinSet<_> = inputs.into_iter().map(work).collect();
    let mut outputs = Vec::with_capacity(tasks.len());
    while let Some(output) = tasks.join_next().await {
        outputs.push(output.context("a task panicked")??);
    }
    Ok(outputs)
}

/// The result of `work`, or `None` at the deadline.
///
/// # Errors
/// `work` fails.
pub async fn until<T>(
    deadline: Instant,
    work: impl Future<Output = Result<T>>,
) -> Result<Option<T>> {
    timeout_at(deadline, work).await.ok().transpose()
}
