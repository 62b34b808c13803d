//! Starts the shards: with io_uring, or with epoll where the rings of the shards cannot be created.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::config::{Config, DriverChoice};
use crate::metrics::{CertificateExpiry, SharedUsage};
use crate::runtime::check::{self, ChosenDriver, DriverKind};
use crate::runtime::{self, Capacity, Listening, MeshPort, OutletSenders, ShardPlacement, Shards};
use crate::shard::Listener;
use crate::shard::node_state::NodeState;
use crate::shard::settings::{Process, Settings};

use super::NodeError;

/// Running shards, and what they were started with.
pub(super) struct StartedShards {
    pub(super) settings: Arc<Settings>,
    pub(super) state: Arc<NodeState>,
    pub(super) shards: Shards,
    /// The mesh's end of the bus, if the node has a mesh.
    pub(super) port: Option<MeshPort>,
}

/// All that shards are started with, but for their driver and their sockets.
pub(super) struct ShardStart<'a, F> {
    pub(super) config: &'a Config,
    pub(super) settings: Settings,
    pub(super) capacity: Capacity,
    pub(super) lines_dropped: Arc<AtomicU64>,
    pub(super) usage: Arc<SharedUsage>,
    pub(super) certificates: Arc<[CertificateExpiry]>,
    pub(super) outlets: &'a OutletSenders,
    /// Gets the reason if a shard fails later.
    pub(super) failures: F,
}

/// Returns the driver of the shards, and warns if it is epoll for want of io_uring.
pub(super) fn choose_driver(config: &Config) -> Result<DriverKind, NodeError> {
    let wanted = match config.node.driver {
        DriverChoice::Auto => None,
        DriverChoice::IoUring => Some(DriverKind::IoUring),
        DriverChoice::Epoll => Some(DriverKind::Epoll),
    };
    let chosen = check::choose_driver(wanted, config.node.cores.len());
    let ChosenDriver { kind, warning } = chosen.map_err(NodeError)?;
    if let Some(warning) = warning {
        tracing::warn!("{warning}");
    }
    Ok(kind)
}

impl<F: Fn(String) + Clone + Send + 'static> ShardStart<'_, F> {
    /// Starts a shard on each core. If the rings cannot be created, and the configuration does not insist on
    /// io_uring, all shards start again with epoll: [`choose_driver`] has tried one ring only, and other
    /// processes may have taken the locked memory or the descriptors of the others.
    ///
    /// # Errors
    /// The shards cannot be started.
    pub(super) fn start(
        &self,
        driver: DriverKind,
        listeners: Vec<(Listener, Listening)>,
    ) -> Result<StartedShards, NodeError> {
        let failed = |error: io::Error| NodeError(format!("shards: {error}"));
        if driver == DriverKind::Epoll || self.config.node.driver != DriverChoice::Auto {
            return self.attempt(driver, listeners).map_err(failed);
        }
        let copies = listeners.iter().map(|(listener, of)| Ok((*listener, of.try_clone()?)));
        let copies = copies.collect::<io::Result<_>>().map_err(failed)?;
        match self.attempt(driver, copies) {
            Ok(started) => Ok(started),
            Err(why) => {
                tracing::warn!("{}", check::falls_back(&why.to_string()));
                self.attempt(DriverKind::Epoll, listeners).map_err(failed)
            }
        }
    }

    fn attempt(
        &self,
        driver: DriverKind,
        listeners: Vec<(Listener, Listening)>,
    ) -> io::Result<StartedShards> {
        let process = Process { driver: driver.name(), ..self.settings.process.clone() };
        let settings = Arc::new(Settings { process, ..self.settings.clone() });
        let state = Arc::new(NodeState {
            usage: self.usage.clone(),
            certificates: self.certificates.clone(),
            ..NodeState::new(&settings, self.lines_dropped.clone())
        });
        let spin = Duration::from_micros(self.config.node.spin_us);
        let placement = ShardPlacement { cores: &self.config.node.cores, driver, spin };
        let (shards, port) = runtime::start(
            &settings,
            &state,
            placement,
            listeners,
            self.capacity,
            self.outlets,
            self.failures.clone(),
        )?;
        tracing::debug!("driver: {}", driver.name());
        Ok(StartedShards { settings, state, shards, port })
    }
}
