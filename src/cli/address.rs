//! The address of the API, as it is written in `--server`.

use std::fmt;
use std::path::PathBuf;

use http::Uri;

/// The port of the API where an address without a scheme names none.
const API_PORT: u16 = 6789;

/// The path of the WebSocket of the API.
const SOCKET_PATH: &str = "/ws/v1";

/// Where the API is, and how to speak to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerAddress {
    pub(super) transport: ServerTransport,
    /// The value of the header `Host`.
    pub(super) host: String,
    /// The path of the WebSocket.
    pub(super) path: String,
    // The address without what can be left out.
    shown: String,
}

/// The transport that carries the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ServerTransport {
    /// TCP to a name or an IP address, with or without TLS.
    Tcp { name: String, port: u16, has_tls: bool },
    /// A Unix socket.
    Unix(PathBuf),
}

impl ServerAddress {
    /// Parses an address: a URL of `http`, `https`, `ws` or `wss`; `HOST:PORT`; or `unix:PATH`.
    ///
    /// # Errors
    /// The address is not of these forms. The text says why, without the address, which may contain a
    /// password.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) => Self::unix(path),
            None if text.contains("://") => Self::url(text, None),
            None => Self::url(&format!("http://{text}"), Some(API_PORT)),
        }
    }

    fn unix(path: &str) -> Result<Self, String> {
        if path.is_empty() {
            return Err("expected a path behind unix:, such as unix:/run/gridcast/api.sock".into());
        }
        Ok(Self {
            transport: ServerTransport::Unix(path.into()),
            // Without users the API answers only to hosts that no web page can be loaded from.
            host: "localhost".into(),
            path: SOCKET_PATH.into(),
            shown: format!("unix:{path}"),
        })
    }

    fn url(text: &str, port: Option<u16>) -> Result<Self, String> {
        const EXPECTED: &str =
            "expected a URL such as http://127.0.0.1:6789, or HOST:PORT, or unix:PATH";
        let expected = || EXPECTED.to_owned();
        if text.contains('#') {
            return Err(expected());
        }
        let url: Uri = text.parse().map_err(|_| expected())?;
        let authority = url.authority().ok_or_else(expected)?;
        if authority.as_str().contains('@') {
            return Err(
                "a URL with a name or password is not supported; set GRIDCAST_USER to NAME:PASSWORD"
                    .into(),
            );
        }
        let (has_tls, usual_port) = match url.scheme_str() {
            Some("http" | "ws") => (false, 80),
            Some("https" | "wss") => (true, 443),
            _ => return Err(expected()),
        };
        // A port that is no number is a part of the authority, but not a port.
        let has_port = authority.as_str() != authority.host();
        let is_wrong_port = has_port && authority.port_u16().is_none_or(|port| port == 0);
        if authority.host().is_empty() || is_wrong_port || url.query().is_some() {
            return Err(expected());
        }
        let host = match (authority.port(), port) {
            (None, Some(port)) => format!("{}:{port}", authority.host()),
            (Some(given), None) if given.as_u16() == usual_port => authority.host().to_owned(),
            _ => authority.as_str().to_owned(),
        };
        let port = authority.port_u16().or(port).unwrap_or(usual_port);
        let base = url.path().trim_end_matches('/').trim_end_matches(SOCKET_PATH);
        let scheme = url.scheme_str().unwrap_or_default();
        let name = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self {
            transport: ServerTransport::Tcp { name, port, has_tls },
            shown: format!("{scheme}://{host}{base}"),
            path: format!("{base}{SOCKET_PATH}"),
            host,
        })
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name, the port, whether there is TLS, the path, the value of `Host`, and the address as it is shown.
    fn parts(text: &str) -> (String, u16, bool, String, String, String) {
        let address = ServerAddress::parse(text).expect("a valid address");
        let shown = address.to_string();
        let ServerTransport::Tcp { name, port, has_tls } = address.transport else {
            panic!("{text}")
        };
        (name, port, has_tls, address.path, address.host, shown)
    }

    #[test]
    fn an_address_is_a_url_or_a_host_with_a_port() {
        for (text, name, port, has_tls, host, shown) in [
            (
                "http://10.0.0.5:7000",
                "10.0.0.5",
                7000,
                false,
                "10.0.0.5:7000",
                "http://10.0.0.5:7000",
            ),
            ("ws://10.0.0.5:7000/", "10.0.0.5", 7000, false, "10.0.0.5:7000", "ws://10.0.0.5:7000"),
            ("https://api.example", "api.example", 443, true, "api.example", "https://api.example"),
            ("wss://api.example:443", "api.example", 443, true, "api.example", "wss://api.example"),
            ("http://api.example", "api.example", 80, false, "api.example", "http://api.example"),
            ("10.0.0.5", "10.0.0.5", 6789, false, "10.0.0.5:6789", "http://10.0.0.5:6789"),
            ("api:1", "api", 1, false, "api:1", "http://api:1"),
            ("[::1]:6789", "::1", 6789, false, "[::1]:6789", "http://[::1]:6789"),
            ("https://[fd00::1]", "fd00::1", 443, true, "[fd00::1]", "https://[fd00::1]"),
        ] {
            let expected = (name.to_owned(), port, has_tls, "/ws/v1".to_owned());
            let (name, port, has_tls, path, found_host, found_shown) = parts(text);
            assert_eq!((name, port, has_tls, path), expected, "{text}");
            assert_eq!((&found_host[..], &found_shown[..]), (host, shown), "{text}");
        }
    }

    #[test]
    fn a_path_is_that_of_a_proxy_in_front_of_the_api() {
        assert_eq!(parts("https://example.org/push/").3, "/push/ws/v1");
        assert_eq!(parts("ws://127.0.0.1:6789/ws/v1").3, "/ws/v1");
        assert_eq!(parts("ws://127.0.0.1:6789/ws/v1").5, "ws://127.0.0.1:6789");
    }

    #[test]
    fn a_unix_socket_is_named_by_its_path() {
        let address = ServerAddress::parse("unix:/run/api.sock").expect("a path");
        assert_eq!(address.transport, ServerTransport::Unix("/run/api.sock".into()));
        assert_eq!((&address.host[..], &address.path[..]), ("localhost", "/ws/v1"));
        assert_eq!(address.to_string(), "unix:/run/api.sock");
    }

    #[test]
    fn a_refused_address_is_not_shown() {
        for text in [
            "",
            "unix:",
            "ftp://example.org",
            "http://",
            "http:///x",
            "http://a:0",
            "http://a:b",
            "http://a:",
            "http://a:65536",
            "http://a b",
            "http://a/?token=sesame",
            "http://app:sesame@a",
            "http://a/#sesame",
        ] {
            let error = ServerAddress::parse(text).expect_err(text);
            assert!(!error.contains("sesame"), "{error}");
        }
    }
}
