//! Reloads the configuration of a running node. If a check fails, nothing changes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::capacity::capacity;
use super::settings::{Bound, bridge_settings, shard_settings};
use super::{NodeError, certificates, context, level, tls_listeners};
use crate::address::ShardId;
use crate::address::listen::ListenAddress;
use crate::config::{Change, Config, Edge, Loaded, Source, TlsFiles, WrittenSettings};
use crate::message::{FromNode, ToBridge};
use crate::metrics::CertificateExpiry;
use crate::protocol::api::ReloadedSettings;
use crate::protocol::sink::Sink;
use crate::runtime::log::LogQueue;
use crate::runtime::reload::{ReloadRequest, Reloaded, Reloads};
use crate::runtime::{self, TlsContext, ToBridgeSender};
use crate::shard::Listener;
use crate::shard::node_state::NodeState;
use crate::shard::settings::Settings;

/// Durations of a shutdown that has not begun, in seconds.
#[derive(Debug, Default)]
pub(super) struct ShutdownTimes {
    drain_s: AtomicU64,
    lame_duck_s: AtomicU64,
}

impl ShutdownTimes {
    pub(super) fn set(&self, config: &Config) {
        self.drain_s.store(config.node.drain_s, Ordering::Relaxed);
        self.lame_duck_s.store(config.node.lame_duck_s, Ordering::Relaxed);
    }

    pub(super) fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_s.load(Ordering::Relaxed))
    }

    pub(super) fn lame_duck(&self) -> Duration {
        Duration::from_secs(self.lame_duck_s.load(Ordering::Relaxed))
    }
}

/// A running configuration, and what is needed to replace it.
pub(super) struct Reloader {
    pub(super) source: Source,
    /// The configuration in use, which some shards may lack if the last reload failed in part. Settings that
    /// need a restart have the values of the start.
    pub(super) config: Config,
    /// The settings that all shards have. Changes are named against them.
    pub(super) written: WrittenSettings,
    pub(super) bound: Bound,
    pub(super) settings: Arc<Settings>,
    pub(super) state: Arc<NodeState>,
    pub(super) reloads: Reloads,
    pub(super) to_bridge: ToBridgeSender,
    pub(super) times: Arc<ShutdownTimes>,
    pub(super) log: LogQueue,
    /// The expiry of the certificate for other nodes, which a reload does not read again.
    pub(super) mesh_certificate: Option<CertificateExpiry>,
}

impl Reloader {
    /// Starts a thread that reloads for each request. A separate thread, so that a file system that does
    /// not respond cannot delay a shutdown.
    pub(super) fn start(mut self) {
        std::thread::spawn(move || {
            loop {
                let requests = self.reloads.next_requests();
                let outcome = self.reload();
                for request in requests {
                    // The outcome for a signal is in the log.
                    let ReloadRequest::Call(shard, ticket) = request else { continue };
                    let outcome = match &outcome {
                        Ok(changes) => Ok(Box::new(answer(changes))),
                        Err(error) => Err(error.to_string().into()),
                    };
                    self.reloads.answer(shard, FromNode::Reloaded { ticket, outcome });
                }
            }
        });
    }

    /// Reads the configuration again, applies it, and logs each change. Returns the changes.
    ///
    /// # Errors
    /// The configuration or a file that it names is not valid: nothing has changed. Or a shard does not
    /// respond: the change may be partly applied.
    fn reload(&mut self) -> Result<Vec<Change>, NodeError> {
        let prepared = self.load().inspect_err(|error| {
            tracing::error!("not reloaded, the running configuration stays: {error}");
        })?;
        let applied = self.apply(prepared);
        match &applied {
            Ok(changes) => log_changes(changes),
            Err(error) => tracing::error!("reloaded in part: {error}"),
        }
        applied
    }

    /// Reads and checks everything that a reload applies.
    fn load(&self) -> Result<Prepared, NodeError> {
        let Loaded { config, written } =
            self.source.load().map_err(|error| NodeError(error.to_string()))?;
        let changes = self.written.changes_to(&written);
        let config = applicable(&self.config, config)?;
        let contexts = tls_listeners(&config)
            .map(|(listener, tls)| Ok((listener, tls.clone(), context(tls)?)))
            .collect::<Result<_, NodeError>>()?;
        let (key, advertise) = (&self.settings.api.fingerprint_key, &self.settings.api.advertise);
        let mut settings = shard_settings(&config, key.clone(), &self.bound);
        if config.api.advertise == self.config.api.advertise {
            settings.api.advertise = advertise.clone();
        }
        let settings = self
            .settings
            .reloaded(settings, &config.api.users)
            .map_err(|error| NodeError(error.to_string()))?;
        let capacity = capacity(&config)?;
        Ok(Prepared { config, written, changes, contexts, settings, capacity })
    }

    /// Applies a configuration. Fails in part if a shard or the bridge does not take it.
    fn apply(&mut self, prepared: Prepared) -> Result<Vec<Change>, NodeError> {
        let Prepared { config, written, changes, contexts, settings, capacity } = prepared;
        let in_use = contexts.iter().map(|(listener, tls, context)| (*listener, tls, context));
        let mut certificates = certificates::of_listeners(&config, in_use);
        certificates.extend(self.mesh_certificate.clone());
        for (listener, tls, context) in contexts {
            self.reloads.renew(listener, &context).map_err(not_taken)?;
            tracing::info!("certificate read again: {}", tls.cert.display());
        }
        let settings = Arc::new(settings);
        let certificates = certificates.into();
        let state = Arc::new(NodeState { certificates, ..self.state.reloaded(&settings) });
        let reloaded = Reloaded { settings, state };
        // Before any shard has them: if another one fails, the next reload must not give their indices to
        // other users and routes, and must not leave the API without users.
        (self.settings, self.state) = (reloaded.settings.clone(), reloaded.state.clone());
        self.config = config;
        let config = &self.config;
        self.reloads.reload(&reloaded, capacity).map_err(not_taken)?;
        // Fails only if thousands of messages wait there: the reload can be repeated.
        (self.to_bridge)(ShardId(0), ToBridge::Settings(bridge_settings(config)))
            .map_err(|_| NodeError("the bridge is busy; reload again".into()))?;
        self.log.set_level(level(config.log.level));
        self.times.set(config);
        for warning in config.warnings(runtime::unix_ms()) {
            tracing::warn!("{warning}");
        }
        self.written = self.written.after_reload(&written);
        Ok(changes)
    }
}

fn not_taken(error: io::Error) -> NodeError {
    NodeError(format!("shards: {error}; reload again"))
}

/// A configuration that is ready to be applied.
struct Prepared {
    config: Config,
    written: WrittenSettings,
    changes: Vec<Change>,
    contexts: Vec<(Listener, TlsFiles, TlsContext)>,
    settings: Settings,
    capacity: runtime::Capacity,
}

/// Returns the answer to a caller.
fn answer(changes: &[Change]) -> ReloadedSettings {
    let list = |restart: bool| {
        let listed = changes.iter().filter(|change| change.needs_restart == restart);
        listed.map(ToString::to_string).collect()
    };
    ReloadedSettings { changed: list(false), restart: list(true) }
}

fn log_changes(changes: &[Change]) {
    if changes.is_empty() {
        tracing::info!("reloaded: no setting has changed");
    }
    for change in changes {
        match change.needs_restart {
            true => tracing::warn!("not applied, needs a restart: {change}"),
            false => tracing::info!("reloaded: {change}"),
        }
    }
}

/// Returns a new configuration with the running values of all settings that need a restart.
///
/// # Errors
/// No user of the API is left. Without users anybody may call it.
fn applicable(running: &Config, new: Config) -> Result<Config, NodeError> {
    let mut config = new;
    let mut edges = std::mem::take(&mut config.edges);
    let mut take = |bind: &ListenAddress| {
        let at = edges.iter().position(|edge: &Edge| edge.bind == *bind)?;
        Some(edges.remove(at))
    };
    let edges = running.edges.iter().map(|edge| {
        let new = take(&edge.bind);
        Edge {
            tls: same_presence(&edge.tls, new.as_ref().and_then(|new| new.tls.as_ref())),
            ..new.unwrap_or_else(|| edge.clone())
        }
    });
    config.edges = edges.collect();
    config.api.tls = same_presence(&running.api.tls, config.api.tls.as_ref());
    let (node, new) = (running.node.clone(), config.node);
    config.node =
        crate::config::Node { drain_s: new.drain_s, lame_duck_s: new.lame_duck_s, ..node };
    config.api.bind = running.api.bind.clone();
    config.mesh = running.mesh.clone();
    config.data = running.data.clone();
    config.log.format = running.log.format;
    config.sinks = applicable_sinks(running, &config);
    if config.api.users.is_empty() && !running.api.users.is_empty() {
        // A file that is empty or cut off, because it is being written, looks like this too.
        return Err(NodeError(
            "api.user: none is left, and without users anybody may call the API: that needs a restart"
                .into(),
        ));
    }
    Ok(config)
}

/// Returns the new sinks. Topics on disk keep those that they have, or will get them at the next start.
fn applicable_sinks(running: &Config, new: &Config) -> Vec<Arc<Sink>> {
    let is_on_disk = |sink: &Sink| running.is_on_disk(&sink.topic) || new.is_on_disk(&sink.topic);
    let kept = running.sinks.iter().filter(|sink| is_on_disk(sink)).map(|sink| {
        let same = |new: &&Arc<Sink>| (&new.name, &new.topic) == (&sink.name, &sink.topic);
        new.sinks.iter().find(same).unwrap_or(sink).clone()
    });
    let mut sinks: Vec<_> = kept.collect();
    let is_taken = |name: &str| sinks.iter().any(|sink| *sink.name == *name);
    let others = new.sinks.iter().filter(|sink| !is_on_disk(sink) && !is_taken(&sink.name));
    let others: Vec<_> = others.cloned().collect();
    sinks.extend(others);
    sinks
}

/// Returns the new TLS files of a listener that has TLS. Whether it has TLS cannot change.
fn same_presence(running: &Option<TlsFiles>, new: Option<&TlsFiles>) -> Option<TlsFiles> {
    running.as_ref().map(|running| new.unwrap_or(running).clone())
}

#[cfg(test)]
mod tests;
