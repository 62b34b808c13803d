//! A connection to one broker: requests and answers, one after another.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::{RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::layout::{AnswerPart, is_whole};
use super::login;
use crate::bridge::engines::explain;
use crate::bridge::http::client::tls;
use crate::protocol::sink::{KafkaBroker, KafkaCluster};

/// The time for a connection, with the login.
const CONNECTED_MAX: Duration = Duration::from_secs(5);

/// The longest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// The name by which brokers know the node, in their logs and quotas.
const CLIENT_NAME: &str = "gridcast";

/// A connection, encrypted or not.
trait BrokerStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> BrokerStream for T {}

/// A connection to a broker. After an error, and after a request that was given up, it cannot be used any more.
pub(super) struct BrokerConnection {
    stream: Box<dyn BrokerStream>,
    // The number of the next request.
    next: i32,
}

impl BrokerConnection {
    /// Connects to a broker, and logs in if the cluster has a login.
    pub(super) async fn open(cluster: &KafkaCluster, broker: &KafkaBroker) -> Result<Self, String> {
        let opened = async {
            let mut connection = Self { stream: connect(cluster, broker).await?, next: 0 };
            if let Some(login) = &cluster.login {
                login::log_in(&mut connection, login).await?;
            }
            Ok(connection)
        };
        let opened = timeout(CONNECTED_MAX, opened).await;
        let opened = opened.unwrap_or_else(|_| Err("no connection in time".to_owned()));
        opened.map_err(|why| format!("broker {broker}: {why}"))
    }

    /// Sends a request and returns the answer, if it comes in time. `version` is one without tagged fields, whose answers have
    /// these parts.
    pub(super) async fn request<R: Request>(
        &mut self,
        version: i16,
        request: &R,
        parts: &[AnswerPart],
        answer_max: Duration,
    ) -> Result<R::Response, String> {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        let request = encode(number, version, request)?;
        let exchanged = timeout(answer_max, self.exchange(&request)).await;
        let mut answer = exchanged.map_err(|_| "no answer in time".to_owned())??;
        let header = R::Response::header_version(version);
        let header = ResponseHeader::decode(&mut answer, header).map_err(explain)?;
        if header.correlation_id != number {
            return Err("the broker has answered another request".to_owned());
        }
        if !is_whole(parts, &answer) {
            return Err("the answer of the broker is not whole".to_owned());
        }
        R::Response::decode(&mut answer, version).map_err(explain)
    }

    async fn exchange(&mut self, request: &[u8]) -> Result<Bytes, String> {
        self.stream.write_all(request).await.map_err(explain)?;
        self.stream.flush().await.map_err(explain)?;
        let length = self.stream.read_i32().await.map_err(explain)?;
        let length = usize::try_from(length).ok().filter(|length| *length <= ANSWER_BYTES_MAX);
        // What is not Kafka seldom begins with a length.
        let length = length.ok_or("the broker has sent no answer of Kafka, or a very long one")?;
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer).await.map_err(explain)?;
        Ok(answer.into())
    }
}

async fn connect(
    cluster: &KafkaCluster,
    KafkaBroker { host, port }: &KafkaBroker,
) -> Result<Box<dyn BrokerStream>, String> {
    let stream = TcpStream::connect((&**host, *port)).await.map_err(explain)?;
    stream.set_nodelay(true).map_err(explain)?;
    let Some(encryption) = &cluster.tls else { return Ok(Box::new(stream)) };
    let connector = TlsConnector::from(Arc::new(tls(&encryption.authorities)?));
    let name = ServerName::try_from(host.to_string()).map_err(explain)?;
    Ok(Box::new(connector.connect(name, stream).await.map_err(explain)?))
}

/// Encodes a request, with its length and its header.
fn encode<R: Request>(number: i32, version: i16, request: &R) -> Result<BytesMut, String> {
    let header = RequestHeader::default()
        .with_request_api_key(R::KEY)
        .with_request_api_version(version)
        .with_correlation_id(number)
        .with_client_id(Some(StrBytes::from_static_str(CLIENT_NAME)));
    let mut out = BytesMut::new();
    out.put_i32(0);
    header.encode(&mut out, R::header_version(version)).map_err(explain)?;
    request.encode(&mut out, version).map_err(explain)?;
    let length = i32::try_from(out.len() - 4).map_err(explain)?;
    out[..4].copy_from_slice(&length.to_be_bytes());
    Ok(out)
}

/// Returns the error of an answer, in the words of Kafka.
pub(super) fn check(code: i16) -> Result<(), String> {
    match ResponseError::try_from_code(code) {
        None => Ok(()),
        Some(error) => Err(error.to_string()),
    }
}

/// A text of a request.
pub(super) fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}
