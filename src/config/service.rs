//! HTTP services that the node sends requests to: their URLs, and the authorities of their certificates.

use std::path::PathBuf;

use super::document::{ConfigError, Section};
use super::shape::{SecretText, ValueShape};
use super::tls::authorities;
use crate::protocol::service::HttpService;
use crate::protocol::signature::SigningSecret;

/// The URL of a service. A refused URL is not shown: it may contain a password.
pub(super) struct Url;

impl ValueShape for Url {
    type Value = String;

    const IS_SECRET: bool = true;

    fn expected(&self) -> String {
        "a URL that begins with `https://`, or with `http://` and a loopback address".to_owned()
    }

    fn read(&self, section: &Section<'_>, key: &str) -> Result<Option<String>, ConfigError> {
        let Some(url) = section.secret(key) else { return Ok(None) };
        match HttpService::new(url, 0) {
            Ok(_) => Ok(Some(url.to_owned())),
            Err(error) => Err(section.fault(&[key], error)),
        }
    }
}

/// A secret that signs requests to a service.
pub(super) const SIGNING_SECRET: SecretText<SigningSecret> = SecretText {
    expected: "a string of at least one byte",
    parse: |text| match text.is_empty() {
        true => Err("a string of at least one byte".to_owned()),
        false => Ok(SigningSecret::new(text)),
    },
};

/// Returns the service at a URL that [`Url`] has accepted, with the authorities in the file `ca`.
pub(super) fn service(
    section: &Section<'_>,
    url: &str,
    timeout_ms: u64,
    ca: Option<PathBuf>,
) -> Result<HttpService, ConfigError> {
    let mut service = HttpService::new(url, timeout_ms).expect("the URL was checked");
    if let Some(ca) = ca {
        if !service.is_encrypted() {
            return Err(section.fault(&["ca"], "has no effect with http://"));
        }
        let certificates = authorities(section, "ca", &ca)?;
        service.authorities = Some(certificates.iter().map(|der| der.to_vec()).collect());
    }
    Ok(service)
}
