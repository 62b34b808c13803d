//! Errors of connecting in words that say what to do next.

use std::io;

use async_tungstenite::tungstenite;
use rustls::CertificateError;
use serde::Deserialize;
use tungstenite::error::ProtocolError;
use tungstenite::http::Response;

use super::address::ServerTransport;
use super::failure::Failure;
use super::options::Server;
use super::terminal::printable;

/// Explains why no byte reached the server.
pub(super) fn connect_error(server: &Server, error: &io::Error) -> Failure {
    let is_unix = matches!(server.address.transport, ServerTransport::Unix(_));
    let why = match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "connection refused. Nothing listens there: is the node running, and is this the address \
             of its API (bind in [api])?"
                .to_owned()
        }
        io::ErrorKind::NotFound if is_unix => {
            "no such socket. Is the node running, and is this the path of its API (bind in [api])?"
                .to_owned()
        }
        io::ErrorKind::PermissionDenied if is_unix => {
            "permission denied. The socket is for the user and the group of the node".to_owned()
        }
        io::ErrorKind::TimedOut => "no connection in time. Does a firewall stand between?".to_owned(),
        _ => printable(&error.to_string()),
    };
    unreachable(server, &why)
}

/// Explains why the TLS handshake failed.
pub(super) fn tls_error(server: &Server, error: &io::Error) -> Failure {
    let cause = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    let why = match cause {
        Some(rustls::Error::InvalidCertificate(error)) => certificate_error(error),
        Some(rustls::Error::InvalidMessage(_)) => {
            "the server does not speak TLS. Use http:// instead of https://".to_owned()
        }
        _ => format!("TLS: {}", printable(&error.to_string())),
    };
    unreachable(server, &why)
}

fn certificate_error(error: &CertificateError) -> String {
    match error {
        CertificateError::NotValidForNameContext { presented, .. } => format!(
            "the server's certificate is for another name, {}. Use that name in --server",
            printable(&presented.join(", "))
        ),
        CertificateError::UnknownIssuer => {
            "the server's certificate comes from an authority that is not trusted. Name the file of \
             a private authority with --ca"
                .to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate has expired. If it is new, look at this machine's clock".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet. Look at this machine's clock".to_owned()
        }
        other => {
            format!("the server's certificate is refused: {}", printable(&other.to_string()))
        }
    }
}

/// Explains why the server did not open the WebSocket.
pub(super) fn upgrade_error(server: &Server, error: &tungstenite::Error) -> Failure {
    const SILENT: &str =
        "the server closed the connection without an answer. If it speaks TLS, use https://";
    match error {
        tungstenite::Error::Http(response) => refusal(server, response),
        tungstenite::Error::Protocol(ProtocolError::HttparseError(_)) => unreachable(
            server,
            "the server does not speak HTTP. If it speaks TLS, use https://; the mesh has another port",
        ),
        tungstenite::Error::Protocol(ProtocolError::HandshakeIncomplete) => {
            unreachable(server, SILENT)
        }
        tungstenite::Error::Io(error) if error.kind() == io::ErrorKind::ConnectionReset => {
            unreachable(server, SILENT)
        }
        other => unreachable(server, &printable(&other.to_string())),
    }
}

/// Explains a response that is not an upgrade.
fn refusal(server: &Server, response: &Response<Option<Vec<u8>>>) -> Failure {
    let status = response.status();
    let said = response.body().as_deref().and_then(reason);
    let reason = said.as_deref().unwrap_or("no reason given");
    match status.as_u16() {
        401 if server.authorization.is_none() => denied(
            server,
            "the API asks for credentials. Set GRIDCAST_USER to NAME:PASSWORD, or GRIDCAST_TOKEN",
        ),
        401 => denied(server, &format!("the credentials are refused: {reason}")),
        403 => denied(server, &format!("not allowed: {reason}")),
        404 if said.is_some() => unreachable(
            server,
            "this is an edge, where devices connect, or a proxy in front of something else. The API has \
             an address of its own (bind in [api], port 6789 by default)",
        ),
        301 | 302 | 303 | 307 | 308 => {
            let location = response.headers().get("location").and_then(|text| text.to_str().ok());
            let location = printable(location.unwrap_or("nowhere"));
            unreachable(server, &format!("the server redirects to {location}. Use that address"))
        }
        _ if said.is_some() => {
            unreachable(server, &format!("refused with status {status}: {reason}"))
        }
        _ => unreachable(
            server,
            &format!("not the API of gridcast: it answers with status {status}"),
        ),
    }
}

/// The reason in the body of a response of gridcast.
fn reason(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct ErrorBody {
        #[serde(rename = "E")]
        error: ApiError,
    }
    let body: ErrorBody = serde_json::from_slice(body).ok()?;
    Some(printable(&body.error.reason))
}

/// An error of the API.
#[derive(Debug, Deserialize)]
pub(super) struct ApiError {
    #[serde(rename = "c")]
    pub(super) code: u16,
    #[serde(rename = "m")]
    pub(super) reason: String,
}

/// The code of a call that the user may not make.
const NOT_AUTHORISED: u16 = 102;

/// Explains the error that a call was answered with.
pub(super) fn call_error(server: &Server, method: &str, error: &ApiError) -> Failure {
    let ApiError { code, reason } = error;
    let text = format!("{}: {method}: {} (error {code})", server.address, printable(reason));
    match *code {
        NOT_AUTHORISED => Failure::Denied(text),
        _ => Failure::Failed(text),
    }
}

/// The failure to reach the server, for this reason.
pub(super) fn unreachable(server: &Server, why: &str) -> Failure {
    Failure::Unreachable(format!("{}: {why}", server.address))
}

fn denied(server: &Server, why: &str) -> Failure {
    Failure::Denied(format!("{}: {why}", server.address))
}

#[cfg(test)]
mod tests {
    use super::super::options::ServerOptions;
    use super::*;

    fn server() -> Server {
        ServerOptions::default().server(|_| None).expect("the default server")
    }

    fn refused(status: u16, body: &str) -> Failure {
        let body = Some(body.as_bytes().to_vec());
        let response = Response::builder().status(status).body(body).expect("a response");
        upgrade_error(&server(), &tungstenite::Error::Http(Box::new(response)))
    }

    #[test]
    fn a_refused_upgrade_says_what_to_do() {
        let edge = r#"{"E":{"c":101,"m":"no such route"}}"#;
        let Failure::Unreachable(text) = refused(404, edge) else { panic!("unreachable") };
        assert!(text.starts_with("http://127.0.0.1:6789: this is an edge"), "{text}");
        let Failure::Unreachable(text) = refused(404, "<html>") else { panic!("unreachable") };
        assert!(text.contains("not the API of gridcast"), "{text}");
        let Failure::Denied(text) = refused(401, edge) else { panic!("denied") };
        assert!(text.contains("GRIDCAST_USER"), "{text}");
        let Failure::Denied(text) = refused(403, r#"{"E":{"c":102,"m":"no"}}"#) else {
            panic!("denied")
        };
        assert!(text.ends_with("not allowed: no"), "{text}");
        let Failure::Unreachable(text) = refused(503, edge) else { panic!("unreachable") };
        assert!(text.contains("503 Service Unavailable: no such route"), "{text}");
    }

    #[test]
    fn what_a_server_says_cannot_control_the_terminal() {
        let error = ApiError { code: 301, reason: "\u{1b}[2J\nno".into() };
        let failure = call_error(&server(), "conn.call", &error);
        let expected = "http://127.0.0.1:6789: conn.call: \\u{1b}[2J\\nno (error 301)";
        assert_eq!(failure, Failure::Failed(expected.into()));
    }

    #[test]
    fn a_missing_right_is_a_failure_of_its_own() {
        let error = ApiError { code: 102, reason: "no".into() };
        assert!(matches!(call_error(&server(), "admin.reload", &error), Failure::Denied(_)));
    }
}
