//! When the certificates in use expire, for `/metrics`.

use crate::config::{Config, TlsFiles, Trust};
use crate::metrics::CertificateExpiry;
use crate::runtime::{Listening, TlsContext, expiry_unix_s};
use crate::shard::Listener;

/// Returns the expiry of the certificate of each TLS listener, as it was read into its context.
pub(super) fn of_listeners<'a>(
    config: &Config,
    contexts: impl Iterator<Item = (Listener, &'a TlsFiles, &'a TlsContext)>,
) -> Vec<CertificateExpiry> {
    let expiries = contexts.filter_map(|(listener, tls, context)| {
        let listener = match listener {
            Listener::Api => "api".to_owned(),
            Listener::Edge(number) => config.edges.get(usize::from(number))?.bind.to_string(),
        };
        Some(expiry(listener, tls, context.expires_unix_s()?))
    });
    expiries.collect()
}

/// Returns the expiry of the certificates of a node that starts.
pub(super) fn of_start(
    config: &Config,
    api: &Listening,
    edges: &[Listening],
) -> Vec<CertificateExpiry> {
    let contexts = super::tls_listeners(config).filter_map(|(listener, tls)| {
        let listening = match listener {
            Listener::Api => api,
            Listener::Edge(number) => edges.get(usize::from(number))?,
        };
        Some((listener, tls, listening.tls.as_ref()?))
    });
    of_listeners(config, contexts)
}

/// Returns the expiry of the certificate that this node shows to other nodes. It stays in use until the
/// node ends.
pub(super) fn of_mesh(config: &Config) -> Option<CertificateExpiry> {
    let Trust::Files(files) = &config.mesh.as_ref()?.trust else { return None };
    let own = files.own.load().ok()?;
    Some(expiry("mesh".to_owned(), &files.own, expiry_unix_s(&own.cert)?))
}

fn expiry(listener: String, tls: &TlsFiles, expires_unix_s: i64) -> CertificateExpiry {
    let file = tls.cert.display().to_string();
    CertificateExpiry { listener, file, expires_unix_s }
}
