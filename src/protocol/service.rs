//! The address of an HTTP service that the node sends requests to.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use http::Uri;

/// The longest URL, in bytes.
const URL_BYTES_MAX: usize = 2048;

/// An HTTP service, and how to reach it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct HttpService {
    url: Uri,
    /// The certificates of the authorities that the service's certificate must come from, in DER. `None`:
    /// the authorities that the system trusts.
    pub authorities: Option<Arc<[Vec<u8>]>>,
    /// The time within which the service must answer, in milliseconds.
    pub timeout_ms: u64,
}

/// Why a URL is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UrlError {
    /// The text is not an absolute URL of `http` or `https`.
    NotAUrl,
    /// The scheme is `http`, and the host is not a loopback address.
    NotEncrypted,
    /// The URL contains a user name or password.
    HasCredentials,
    /// The URL contains a fragment, which is never sent.
    HasFragment,
}

impl fmt::Display for UrlError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::NotAUrl => {
                "expected a URL such as \"https://login.example.org/keys\", of at most 2048 bytes"
            }
            Self::NotEncrypted => {
                "http:// is allowed to loopback addresses only; anywhere else use https://"
            }
            Self::HasCredentials => "a URL with a user name or password is not supported",
            Self::HasFragment => "a URL with a fragment (#) is not supported",
        })
    }
}

impl std::error::Error for UrlError {}

impl HttpService {
    /// Creates the service at a URL: `https`, or `http` to a loopback address.
    ///
    /// # Errors
    /// The URL is refused.
    pub fn new(url: &str, timeout_ms: u64) -> Result<Self, UrlError> {
        if url.contains('#') {
            return Err(UrlError::HasFragment);
        }
        let url = Some(url).filter(|url| url.len() <= URL_BYTES_MAX);
        let url: Uri = url.and_then(|url| url.parse().ok()).ok_or(UrlError::NotAUrl)?;
        let authority = url.authority().ok_or(UrlError::NotAUrl)?;
        if authority.as_str().contains('@') {
            return Err(UrlError::HasCredentials);
        }
        // A port that is no number is a part of the authority, but not a port.
        let has_port = authority.as_str() != authority.host();
        let is_wrong_port = has_port && authority.port_u16().is_none_or(|port| port == 0);
        if authority.host().is_empty() || is_wrong_port {
            return Err(UrlError::NotAUrl);
        }
        match url.scheme_str() {
            Some("https") => {}
            Some("http") if is_loopback(authority.host()) => {}
            Some("http") => return Err(UrlError::NotEncrypted),
            _ => return Err(UrlError::NotAUrl),
        }
        Ok(Self { url, authorities: None, timeout_ms })
    }

    /// Returns the URL.
    pub fn url(&self) -> &Uri {
        &self.url
    }

    /// Whether requests are encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.url.scheme_str() == Some("https")
    }
}

/// Whether a host of a URL is a loopback address. A name other than `localhost` is not, whatever address
/// it has: the address may change.
fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let is_local = |address: IpAddr| address.is_loopback();
    host.eq_ignore_ascii_case("localhost") || address.parse().is_ok_and(is_local)
}

/// Shows the URL without its query, which may contain a secret.
impl fmt::Display for HttpService {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.url.scheme_str().unwrap_or_default();
        let authority = self.url.authority().map_or("", |authority| authority.as_str());
        write!(formatter, "{scheme}://{authority}{}", self.url.path())
    }
}

impl fmt::Debug for HttpService {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "HttpService({self}, {} ms)", self.timeout_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_encrypted_or_stays_on_the_machine() {
        for (url, expected) in [
            ("https://login.example.org/keys?a=1", Ok(())),
            ("https://login.example.org", Ok(())),
            ("https://10.0.0.1:8443/", Ok(())),
            ("HTTP://LOCALHOST:8080/", Ok(())),
            ("http://127.0.0.2/keys", Ok(())),
            ("http://[::1]:8080/keys", Ok(())),
            ("http://10.0.0.1/keys", Err(UrlError::NotEncrypted)),
            ("http://localhost.example.org/", Err(UrlError::NotEncrypted)),
            ("http://127.0.0.1.example.org/", Err(UrlError::NotEncrypted)),
            ("http://[::2]/", Err(UrlError::NotEncrypted)),
            ("https://user:password@example.org/", Err(UrlError::HasCredentials)),
            ("http://127.0.0.1@example.org/", Err(UrlError::HasCredentials)),
            ("https://example.org/#keys", Err(UrlError::HasFragment)),
            ("ftp://example.org/", Err(UrlError::NotAUrl)),
            ("example.org/keys", Err(UrlError::NotAUrl)),
            ("/keys", Err(UrlError::NotAUrl)),
            ("https://", Err(UrlError::NotAUrl)),
            ("https:///keys", Err(UrlError::NotAUrl)),
            ("https://example.org:0/", Err(UrlError::NotAUrl)),
            ("https://example.org:port/", Err(UrlError::NotAUrl)),
            ("https://example.org:65536/", Err(UrlError::NotAUrl)),
            ("https://example.org:/", Err(UrlError::NotAUrl)),
            ("https://exa mple.org/", Err(UrlError::NotAUrl)),
            ("", Err(UrlError::NotAUrl)),
        ] {
            assert_eq!(HttpService::new(url, 1).map(drop), expected, "{url}");
        }
        let long = format!("https://example.org/{}", "x".repeat(URL_BYTES_MAX));
        assert_eq!(HttpService::new(&long, 1), Err(UrlError::NotAUrl));
    }

    #[test]
    fn a_query_is_not_shown() {
        let service =
            HttpService::new("https://example.org:8443/keys?key=secret", 5).expect("valid");
        assert_eq!(service.to_string(), "https://example.org:8443/keys");
        assert!(!format!("{service:?}").contains("secret"));
    }
}
