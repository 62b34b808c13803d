//! The certificate of a TLS listener, and its renewal while the shard runs.

use std::io;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::pki_types::CertificateDer;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{Error, ServerConfig};

use super::tls::Tls;

/// The most renewed contexts that may wait for a shard. A shard checks for them every turn.
const RENEWALS: usize = 2;

/// The TLS configuration of a listener: a certificate with its key.
#[derive(Clone, Debug)]
pub struct TlsContext {
    config: Arc<ServerConfig>,
    expires_unix_s: Option<i64>,
}

impl TlsContext {
    /// Creates a configuration for TLS 1.2 and 1.3 with HTTP/1.1. Sessions are resumed by tickets, so
    /// that shards store no session state.
    ///
    /// # Errors
    /// The system provides no random bytes for the ticket key.
    pub fn new(certified: CertifiedKey) -> io::Result<Self> {
        let expires_unix_s = expiry_unix_s(&certified.cert);
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.ticketer = Ticketer::new().map_err(io::Error::other)?;
        config.send_tls13_tickets = 1;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self { config: Arc::new(config), expires_unix_s })
    }

    /// Returns when the certificate or one of its chain expires, in Unix seconds; see [`expiry_unix_s`].
    pub fn expires_unix_s(&self) -> Option<i64> {
        self.expires_unix_s
    }
}

/// Returns when the first certificate of a chain expires, in Unix seconds. `None`: no certificate can be
/// parsed.
pub fn expiry_unix_s(chain: &[CertificateDer<'_>]) -> Option<i64> {
    let expiries = chain.iter().filter_map(|certificate| {
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
        Some(certificate.validity().not_after.timestamp())
    });
    expiries.min()
}

/// One shard's TLS context for new connections of a listener.
#[derive(Debug)]
pub(super) struct ListenerTls {
    context: TlsContext,
    renewals: Receiver<TlsContext>,
}

impl ListenerTls {
    /// Starts with `context`. The returned sender replaces it later.
    pub(super) fn new(context: TlsContext) -> (Self, Sender<TlsContext>) {
        let (sender, renewals) = bounded(RENEWALS);
        (Self { context, renewals }, sender)
    }

    /// Switches to the newest context that was sent. Open connections keep theirs.
    pub(super) fn renew(&mut self) {
        self.context = self.renewals.try_iter().last().unwrap_or_else(|| self.context.clone());
    }

    /// Begins the session of a new connection.
    ///
    /// # Errors
    /// The context is invalid.
    pub(super) fn accept(&self) -> Result<Box<Tls>, Error> {
        Ok(Box::new(Tls::new(self.context.config.clone())?))
    }
}
