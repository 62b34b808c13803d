//! Signals of the process: SIGTERM and Ctrl-C end the node, SIGHUP reloads its configuration.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::NodeError;
use super::reload::ShutdownTimes;
use crate::runtime::log::{FLUSH_MAX, LogQueue};
use crate::runtime::reload::Reloads;

/// Why a running node ends.
pub(super) enum NodeEvent {
    /// SIGTERM: the node shuts down after `node.lame_duck_s`.
    Terminate,
    /// SIGINT, as Ctrl-C sends it: the node shuts down now.
    Interrupt,
    /// The node cannot continue, for this reason.
    Failure(String),
}

/// Registers the signals. Called before the node reports that it is ready, so that none is missed.
///
/// # Errors
/// The system refuses it.
pub(super) fn register() -> Result<Signals, NodeError> {
    Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(|error| NodeError(format!("signals: {error}")))
}

/// Starts a thread that requests a reload for each SIGHUP, and forwards the first signal that ends the node
/// to `events`. A second one ends the process at once, with the exit status of a process that was killed
/// by that signal. The exception is Ctrl-C while `may_skip` is set.
pub(super) fn watch(
    mut signals: Signals,
    events: mpsc::Sender<NodeEvent>,
    reloads: Reloads,
    may_skip: Arc<AtomicBool>,
    log: LogQueue,
) {
    std::thread::spawn(move || {
        let mut is_ending = false;
        for signal in signals.forever() {
            if signal == SIGHUP {
                reloads.request();
                continue;
            }
            let skips = signal == SIGINT && may_skip.swap(false, Ordering::AcqRel);
            if is_ending && !skips {
                log.say(tracing::Level::WARN, "second signal, ending at once", &[]);
                log.flush(FLUSH_MAX);
                std::process::exit(128 + signal);
            }
            is_ending = true;
            let event = if signal == SIGINT { NodeEvent::Interrupt } else { NodeEvent::Terminate };
            // Fails only if a shard has failed, which ends the node as well.
            let _ = events.send(event);
        }
    });
}

/// Waits until the node has to shut down. After SIGTERM the node is a lame duck for `node.lame_duck_s`, and
/// sets `may_skip` meanwhile.
///
/// # Errors
/// The node cannot continue.
pub(super) fn wait(
    events: &mpsc::Receiver<NodeEvent>,
    times: &ShutdownTimes,
    may_skip: &AtomicBool,
    is_lame_duck: &AtomicBool,
) -> Result<(), NodeError> {
    match events.recv() {
        Ok(NodeEvent::Failure(why)) => return Err(NodeError(why)),
        Ok(NodeEvent::Terminate) if !times.lame_duck().is_zero() => {}
        // The senders live as long as the process.
        Ok(NodeEvent::Terminate | NodeEvent::Interrupt) | Err(_) => return Ok(()),
    }
    let lame_duck = times.lame_duck();
    is_lame_duck.store(true, Ordering::Release);
    may_skip.store(true, Ordering::Release);
    tracing::info!("/readyz answers 503; closing connections in {} s", lame_duck.as_secs());
    let ended = match events.recv_timeout(lame_duck) {
        Ok(NodeEvent::Failure(why)) => Err(NodeError(why)),
        _ => Ok(()),
    };
    may_skip.store(false, Ordering::Release);
    ended
}
