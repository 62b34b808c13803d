//! What a TLS listener shows to its peers: a certificate with its key, and how a newer one comes to a
//! running shard.

use std::io;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{Error, ServerConfig};

use super::tls::Tls;

/// New contexts that may wait for a shard, which looks for them every turn.
const RENEWALS: usize = 2;

/// A certificate with its key, ready to be shown: what a listener tells its peers.
#[derive(Clone, Debug)]
pub struct TlsContext(Arc<ServerConfig>);

impl TlsContext {
    /// TLS 1.2 and 1.3 for HTTP/1.1, with sessions that resume by tickets: so no shard keeps any.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn new(certified: CertifiedKey) -> io::Result<Self> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.ticketer = Ticketer::new().map_err(io::Error::other)?;
        config.send_tls13_tickets = 1;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self(Arc::new(config)))
    }
}

/// One shard's part of a TLS listener: the context for new connections.
#[derive(Debug)]
pub(super) struct Identity {
    context: TlsContext,
    renewals: Receiver<TlsContext>,
}

impl Identity {
    /// Shows `context` until another is sent.
    pub(super) fn new(context: TlsContext) -> (Self, Sender<TlsContext>) {
        let (sender, renewals) = bounded(RENEWALS);
        (Self { context, renewals }, sender)
    }

    /// Takes the newest context. Connections keep the one they began with.
    pub(super) fn renew(&mut self) {
        self.context = self.renewals.try_iter().last().unwrap_or_else(|| self.context.clone());
    }

    /// Begins a session with a peer that has just connected.
    ///
    /// # Errors
    /// The context is of no use, which the first connection would have shown.
    pub(super) fn accept(&self) -> Result<Box<Tls>, Error> {
        Ok(Box::new(Tls::new(self.context.0.clone())?))
    }
}
