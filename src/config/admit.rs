//! The back end that a route asks whether a device may connect.

use std::path::PathBuf;
use std::sync::Arc;

use super::definition::section;
use super::document::{ConfigError, Section};
use super::file::PemFile;
use super::service::{SIGNING_SECRET, Url, service};
use super::shape::milliseconds;
use crate::protocol::admission::AdmissionHook;
use crate::protocol::signature::SigningSecret;

section! {
    pub(super) struct AdmitKeys(section) {
        /// The URL that gets the questions: `https://`, or `http://` to a loopback address.
        url: String = Url,
            required("an admission hook has one", "\"https://login.example.org/admit\"");

        /// The longest time until the answer. After that the device gets 503.
        timeout_ms: u64 = milliseconds(1..=60_000), value(3000);

        /// A secret that signs each question: the header `Gridcast-Signature` is
        /// `t=UNIX_SECONDS,v1=HEX`, with the HMAC-SHA256 of `UNIX_SECONDS.BODY`.
        secret: Option<SigningSecret> = SIGNING_SECRET,
            none("none: questions are not signed", "\"a secret of the back end and gridcast\"");

        /// A PEM file: the authorities that the certificate of the URL must come from.
        ca: Option<PathBuf> = PemFile,
            none("those that the system trusts", "\"/etc/gridcast/ca.pem\"");
    }
}

/// Reads the table `admit` of a route.
pub(super) fn read_admit(route: &Section<'_>) -> Result<Option<Arc<AdmissionHook>>, ConfigError> {
    let section = route.table("admit")?;
    if !section.is_written() {
        return Ok(None);
    }
    let AdmitKeys { url, timeout_ms, secret, ca } = AdmitKeys::read_keys(&section)?;
    let service = service(&section, &url, timeout_ms, ca)?;
    Ok(Some(Arc::new(AdmissionHook { service, secret })))
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{parse, refused, route};

    #[test]
    fn an_admission_hook_has_a_safe_url_and_a_time_limit() {
        let config = parse(&route("admit = { url = \"http://127.0.0.1:8081/admit\" }"));
        let hook = config.edges[0].routes[0].admit.clone().expect("a hook");
        assert_eq!((hook.service.timeout_ms, hook.secret.is_none()), (3000, true));
        for (line, reason) in [
            ("{}", ".url: missing; an admission hook has one"),
            (
                "{ url = \"http://10.0.0.1/\" }",
                ".url: http:// is allowed to loopback addresses only; anywhere else use https://",
            ),
            (
                "{ url = \"https://example.org/\", timeout_ms = 0 }",
                ".timeout_ms: expected a whole number of milliseconds from 1 to 60000, found 0",
            ),
            (
                "{ url = \"https://example.org/\", secret = \"\" }",
                ".secret: expected a string of at least one byte",
            ),
            (
                "{ url = \"https://example.org/\", in_flight = 4 }",
                ".in_flight: unknown key; known are: url, timeout_ms, secret, ca",
            ),
        ] {
            let expected = format!("gridcast.toml:4: edge.route.admit{reason}");
            refused(&route(&format!("admit = {line}")), &expected);
        }
    }
}
