//! Passes the settings of a reloaded configuration to the running shards.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;

use super::bus::NodePort;
use super::identity::TlsContext;
use super::start::Renewals;
use super::watch::{Capacity, Watch};
use crate::address::ShardId;
use crate::message::{FromNode, Ticket};
use crate::shard::Listener;
use crate::shard::node_state::NodeState;
use crate::shard::settings::Settings;

/// The longest wait for a shard to take its settings or a certificate. A shard looks for them once per turn.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(10);

/// The settings of a reloaded configuration, and the state that goes with them.
#[derive(Clone, Debug)]
pub struct Reloaded {
    /// The settings, for all shards.
    pub settings: Arc<Settings>,
    /// The state that the shards share.
    pub state: Arc<NodeState>,
}

/// The most requests that wait for a reload. Further calls are answered with an error. Further signals are
/// served by the same reload as those that wait.
pub(super) const REQUESTS_MAX: usize = 16;

/// A request to reload the configuration.
#[derive(Clone, Copy, Debug)]
pub enum ReloadRequest {
    /// SIGHUP. The outcome is logged.
    Signal,
    /// `admin.reload`. The outcome is logged, and sent to this shard with this ticket.
    Call(ShardId, Ticket),
}

/// A handle that reloads the settings of running shards.
#[derive(Clone)]
pub struct Reloads {
    pub(super) control: NodePort,
    pub(super) watch: Arc<Watch>,
    pub(super) renewals: Renewals,
    /// The longest wait for a shard.
    pub(super) wait_max: Duration,
}

impl Reloads {
    /// Requests a reload for a signal.
    pub fn request(&self) {
        let _ = self.watch.request_reload(ReloadRequest::Signal);
    }

    /// Waits for a request, and returns it with all that have arrived by then: one reload serves them all.
    pub fn next_requests(&self) -> Vec<ReloadRequest> {
        self.watch.next_reload_requests()
    }

    /// Sends the outcome of a reload to the shard that requested it.
    pub fn answer(&self, shard: ShardId, answer: FromNode) {
        self.control.tell(shard, answer);
    }

    /// Passes a new certificate to all shards, for new connections to a TLS listener.
    ///
    /// # Errors
    /// A shard has not taken the certificates of earlier reloads within 10 s.
    pub fn renew(&self, listener: Listener, context: &TlsContext) -> io::Result<()> {
        let mut renewals = self.renewals.of(listener).enumerate();
        renewals.try_for_each(|(shard, renewal)| self.pass(shard, renewal, context.clone()))
    }

    /// Passes new settings and limits to all shards. Returns when each has room for the settings, which it
    /// applies in its next turn.
    ///
    /// # Errors
    /// A shard has not taken the settings of an earlier reload within 10 s.
    pub fn reload(&self, reloaded: &Reloaded, capacity: Capacity) -> io::Result<()> {
        self.watch.set_capacity(capacity);
        let mut settings = self.watch.reloads().enumerate();
        let sent = settings.try_for_each(|(shard, to)| self.pass(shard, to, reloaded.clone()));
        // Also those that got their settings before another one failed.
        self.control.wake_all();
        sent
    }

    fn pass<T>(&self, shard: usize, to: &Sender<T>, value: T) -> io::Result<()> {
        let sent = to.send_timeout(value, self.wait_max);
        sent.map_err(|_| io::Error::other(format!("shard {shard} does not respond")))
    }
}

#[cfg(test)]
impl Reloads {
    /// Creates a handle that does not wait for its shards, none of which runs.
    pub(crate) fn without_shards(
        shards: usize,
        renewals: Vec<(Listener, Sender<TlsContext>)>,
        capacity: Capacity,
    ) -> Self {
        let (_, _, control) = super::bus(shards, false).expect("descriptors are left");
        Self {
            control,
            watch: Arc::new(Watch::new(shards, capacity)),
            renewals: Renewals::new(renewals),
            wait_max: Duration::ZERO,
        }
    }

    /// Takes the settings that wait for a shard, as its next turn would.
    pub(crate) fn take(&self, shard: usize) -> Option<Reloaded> {
        self.watch.poll_reload(shard)
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::bounded;
    use rustls::crypto::ring::default_provider;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::sign::CertifiedKey;

    use super::*;

    fn context() -> TlsContext {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let chain = vec![made.cert.der().clone()];
        TlsContext::new(CertifiedKey::from_der(chain, key, &default_provider()).unwrap()).unwrap()
    }

    #[test]
    fn a_shard_that_takes_no_certificate_is_named_and_does_not_block_the_reload() {
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..4).map(|_| bounded(1)).unzip();
        let of = [Listener::Api, Listener::Api, Listener::Edge(0), Listener::Edge(0)];
        let renewals = of.into_iter().zip(senders).collect();
        let capacity = Capacity { clients: 1, callers: 1, memory_bytes: 0, handshakes_per_s: 0 };
        let reloads = Reloads::without_shards(2, renewals, capacity);
        let edge = Listener::Edge(0);
        let renew = || reloads.renew(edge, &context()).map_err(|error| error.to_string());
        assert_eq!(renew(), Ok(()));
        receivers[2].try_recv().expect("a certificate for the first shard");
        assert_eq!(renew(), Err("shard 1 does not respond".to_owned()));
        assert!(receivers[0].is_empty() && receivers[1].is_empty());
        receivers[2].try_recv().expect("the certificate that the second shard did not take");
        receivers[3].try_recv().expect("the first certificate");
        assert_eq!(renew(), Ok(()));
    }
}
