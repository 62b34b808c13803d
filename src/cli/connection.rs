//! One WebSocket to the API.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_tungstenite::WebSocketStream;
use async_tungstenite::tokio::{TokioAdapter, client_async_with_config};
use async_tungstenite::tungstenite::client::IntoClientRequest;
use async_tungstenite::tungstenite::protocol::WebSocketConfig;
use async_tungstenite::tungstenite::{self, Bytes, Message};
use futures_util::StreamExt;
use http::HeaderValue;
use http::header::{AUTHORIZATION, HOST, USER_AGENT};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::address::ServerTransport;
use super::explain::{call_error, connect_error, tls_error, unreachable, upgrade_error};
use super::failure::Failure;
use super::message::Incoming;
use super::options::Server;
use super::terminal::printable;

/// How long connecting may take, with TLS and the upgrade.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// How long a call waits for its answer. The API answers within 2 seconds, or as soon as it has checked a
/// hashed secret.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How long the server may take to receive a request. The largest one needs that long at 1 MiB a second.
const SEND_MAX: Duration = Duration::from_secs(64);

/// How long closing may take.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// The largest message from the server. A device's message of 16 MiB, which is the most that a node takes, is
/// six times as long with every byte escaped in JSON. An event that a command cannot receive would be lost, or
/// come again for ever.
const RECEIVED_BYTES_MAX: usize = 128 << 20;

/// The most output that waits for the server: 64 MiB of data with every byte escaped in JSON.
const SENT_BYTES_MAX: usize = 400 << 20;

/// The largest file of authorities.
const CA_BYTES_MAX: u64 = 1 << 20;

trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// An open WebSocket to the API. Pings of the server are answered while messages are awaited.
pub(super) struct ApiConnection {
    socket: WebSocketStream<TokioAdapter<Box<dyn Stream>>>,
    server: Server,
    // The id of the last request.
    last_id: u64,
}

impl ApiConnection {
    /// Connects to a server.
    pub(super) async fn open(server: &Server) -> Result<Self, Failure> {
        let late =
            |_| unreachable(server, "no answer in time. Is it the API, and does the node run?");
        timeout(CONNECT_MAX, Self::connect(server)).await.map_err(late)?
    }

    async fn connect(server: &Server) -> Result<Self, Failure> {
        let stream: Box<dyn Stream> = match &server.address.transport {
            ServerTransport::Unix(path) => {
                let socket = UnixStream::connect(path).await;
                Box::new(socket.map_err(|error| connect_error(server, &error))?)
            }
            ServerTransport::Tcp { name, port, has_tls } => {
                // Read before anything is sent: a wrong file is no matter of the network.
                let tls = has_tls.then(|| connector(server)).transpose()?;
                let socket = connect_tcp(name, *port).await;
                let socket = socket.map_err(|error| connect_error(server, &error))?;
                match tls {
                    None => Box::new(socket),
                    Some(tls) => Box::new(encrypt(server, tls, name, socket).await?),
                }
            }
        };
        let request = upgrade_request(server)?;
        let upgraded = client_async_with_config(request, stream, Some(socket_config())).await;
        let (socket, _) = upgraded.map_err(|error| upgrade_error(server, &error))?;
        Ok(Self { socket, server: server.clone(), last_id: 0 })
    }

    /// Returns the server at the other end.
    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    /// Makes a call and returns its result. Not for a connection that gets events.
    pub(super) async fn call(
        &mut self,
        method: &str,
        params: &impl Serialize,
    ) -> Result<Box<RawValue>, Failure> {
        let id = self.send(method, params).await?;
        let answer = timeout(ANSWER_MAX, self.answer(method, id)).await;
        answer.map_err(|_| unreachable(&self.server, &format!("{method}: no answer in time")))?
    }

    async fn answer(&mut self, method: &str, id: u64) -> Result<Box<RawValue>, Failure> {
        loop {
            if let Incoming::Answer { id: answered, result } = self.next().await?
                && answered.is_none_or(|answered| answered == id)
            {
                return result.map_err(|error| call_error(&self.server, method, &error));
            }
        }
    }

    /// Sends a request and returns its id, which the answer carries.
    pub(super) async fn send(
        &mut self,
        method: &str,
        params: &impl Serialize,
    ) -> Result<u64, Failure> {
        #[derive(Serialize)]
        struct RequestEnvelope<'a, P> {
            m: &'a str,
            p: &'a P,
            i: u64,
        }
        self.last_id += 1;
        let request = RequestEnvelope { m: method, p: params, i: self.last_id };
        let text = serde_json::to_string(&request).expect("requests are JSON");
        self.put(Message::text(text)).await?;
        Ok(self.last_id)
    }

    /// Sends a message. A server that receives nothing is a lost one.
    async fn put(&mut self, message: Message) -> Result<(), Failure> {
        match timeout(SEND_MAX, self.socket.send(message)).await {
            Ok(sent) => sent.map_err(|error| self.lost(&error)),
            Err(_) => Err(unreachable(&self.server, "the server does not receive any more")),
        }
    }

    /// Sends a ping, whose pong is [`Incoming::Other`].
    pub(super) async fn ping(&mut self) -> Result<(), Failure> {
        self.put(Message::Ping(Bytes::new())).await
    }

    /// Waits for the next message. May be cancelled without a loss.
    pub(super) async fn next(&mut self) -> Result<Incoming, Failure> {
        match self.socket.next().await {
            Some(Ok(Message::Text(text))) => Ok(Incoming::parse(text.as_str())),
            Some(Ok(Message::Close(frame))) => {
                let why = frame.map_or("without a reason".to_owned(), |frame| {
                    let code = u16::from(frame.code);
                    format!("with code {code} {}", printable(frame.reason.as_str()))
                });
                Err(unreachable(&self.server, &format!("the server closed the connection {why}")))
            }
            Some(Ok(_)) => Ok(Incoming::Other),
            Some(Err(error)) => Err(self.lost(&error)),
            None => Err(unreachable(&self.server, "the server closed the connection")),
        }
    }

    /// Closes the connection, so that the server handles all that was sent. A server that is gone by now
    /// does not matter.
    pub(super) async fn close(&mut self) {
        let close = async {
            let _ = self.socket.close(None).await;
            // A socket that is closed with input unread resets the connection, which could overtake the
            // last requests.
            while let Some(Ok(_)) = self.socket.next().await {}
        };
        let _ = timeout(CLOSE_MAX, close).await;
    }

    fn lost(&self, error: &tungstenite::Error) -> Failure {
        let why = printable(&error.to_string());
        unreachable(&self.server, &format!("the connection is lost: {why}"))
    }
}

/// The bounds of a socket. That on output also bounds the pongs for a server that pings and does not receive.
fn socket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_frame_size(Some(RECEIVED_BYTES_MAX))
        .max_message_size(Some(RECEIVED_BYTES_MAX))
        .max_write_buffer_size(SENT_BYTES_MAX)
}

/// Connects to the first address of a name that accepts.
async fn connect_tcp(name: &str, port: u16) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = lookup_host((name, port)).await?.collect();
    let mut last = io::Error::other("the name has no address");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(socket) => {
                socket.set_nodelay(true)?;
                return Ok(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn encrypt(
    server: &Server,
    tls: TlsConnector,
    name: &str,
    socket: TcpStream,
) -> Result<impl Stream + use<>, Failure> {
    let name = ServerName::try_from(name.to_owned())
        .map_err(|_| unreachable(server, "TLS needs the name or the address of a host"))?;
    tls.connect(name, socket).await.map_err(|error| tls_error(server, &error))
}

fn connector(server: &Server) -> Result<TlsConnector, Failure> {
    let roots = match &server.ca {
        Some(file) => {
            let wrong = |error: String| Failure::Usage(format!("--ca {}: {error}", file.display()));
            let size = fs::metadata(file).map_err(|error| wrong(error.to_string()))?.len();
            if size > CA_BYTES_MAX {
                return Err(wrong(format!("larger than {CA_BYTES_MAX} bytes")));
            }
            authorities(&fs::read(file).map_err(|error| wrong(error.to_string()))?)
                .map_err(wrong)?
        }
        None => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            roots
        }
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has both versions of TLS");
    let config = builder.with_root_certificates(roots).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

fn authorities(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("not PEM: {error}"))?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    match roots.is_empty() {
        true => Err("no certificate in PEM".into()),
        false => Ok(roots),
    }
}

fn upgrade_request(server: &Server) -> Result<tungstenite::handshake::client::Request, Failure> {
    let address = &server.address;
    // The scheme and the host have no effect: the stream is open already.
    let request = format!("ws://localhost{}", address.path).into_client_request();
    let mut request = request.map_err(|error| unreachable(server, &error.to_string()))?;
    let headers = request.headers_mut();
    let host = HeaderValue::from_str(&address.host).expect("the host is a part of a URL");
    headers.insert(HOST, host);
    let name = concat!("gridcast/", env!("CARGO_PKG_VERSION"));
    headers.insert(USER_AGENT, HeaderValue::from_static(name));
    if let Some(authorization) = &server.authorization {
        headers.insert(AUTHORIZATION, authorization.clone());
    }
    Ok(request)
}
