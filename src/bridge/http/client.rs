//! HTTP/1.1 requests with limits: time, size of the answer, authorities of the certificate. Redirects are
//! not followed: an answer with a redirect is an answer like any other.

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};
use hyper::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;

use crate::bridge::hooks::IN_FLIGHT_MAX;
use crate::bridge::{HttpExchange, ServiceAnswer, ServiceFailure};
use crate::protocol::signature::SIGNATURE_HEADER;
use crate::runtime::check::HOOK_DESCRIPTORS;
use crate::runtime::unix_ms;

/// The longest head of an answer, in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// How long a connection without requests stays open.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// The most connections without requests for each service.
const IDLE_CONNECTIONS_MAX: usize = 16;

// What is reserved for services is enough for them.
const _: () = assert!((IN_FLIGHT_MAX + IDLE_CONNECTIONS_MAX) as u64 <= HOOK_DESCRIPTORS);

type Connections = Pool<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// The certificates of the trusted authorities, in DER. `None`: those that the system trusts.
pub(in crate::bridge) type Authorities = Option<Arc<[Vec<u8>]>>;

/// Sends requests, and keeps connections for the next ones.
#[derive(Default)]
pub(in crate::bridge) struct Client {
    // One pool for each set of authorities.
    pools: HashMap<Authorities, Connections>,
}

impl Client {
    /// Returns the exchange of a request for the whole answer. The exchange fails if the service cannot be
    /// reached, does not answer in time, or sends too much.
    pub(in crate::bridge) fn exchange(
        &mut self,
        request: HttpExchange,
    ) -> impl Future<Output = Result<ServiceAnswer, ServiceFailure>> + Send + 'static {
        let pool = self.pool(&request.service.authorities);
        let time = Duration::from_millis(request.timeout_ms);
        async move {
            let pool = pool.map_err(ServiceFailure::Unanswered)?;
            let late = |_| ServiceFailure::Unanswered("no answer in time".into());
            timeout(time, send(pool, request)).await.map_err(late)?
        }
    }

    /// Closes the connections without requests. The others are closed at the end of their requests.
    pub(super) fn close_idle(&mut self) {
        self.pools.clear();
    }

    fn pool(&mut self, authorities: &Authorities) -> Result<Connections, String> {
        if let Some(pool) = self.pools.get(authorities) {
            return Ok(pool.clone());
        }
        let pool = connections(tls(authorities)?);
        self.pools.insert(authorities.clone(), pool.clone());
        Ok(pool)
    }
}

async fn send(pool: Connections, request: HttpExchange) -> Result<ServiceAnswer, ServiceFailure> {
    let HttpExchange { service, body, content_type, secret, answer_bytes_max, .. } = request;
    let mut head = Request::builder()
        .uri(service.url().clone())
        .header(USER_AGENT, concat!("gridcast/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT, "application/json");
    if let Some(body) = &body {
        head = head.method(Method::POST).header(CONTENT_TYPE, content_type);
        if let Some(secret) = secret {
            head = head.header(SIGNATURE_HEADER, secret.sign(unix_ms() / 1000, body));
        }
    }
    let body = Full::new(Bytes::from(body.unwrap_or_default()));
    let request = head.body(body).map_err(|error| ServiceFailure::Unanswered(error.to_string()))?;
    let answer = pool.request(request).await;
    let answer = answer.map_err(|error| ServiceFailure::Unanswered(explain(&error)))?;
    let status = answer.status().as_u16();
    let too_long = || ServiceFailure::TooLong { status, bytes_max: answer_bytes_max };
    if answer.body().size_hint().lower() > answer_bytes_max as u64 {
        return Err(too_long());
    }
    let retry_after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let retry_after_s = retry_after.and_then(|text| text.trim().parse().ok());
    let body = Limited::new(answer.into_body(), answer_bytes_max).collect().await;
    let body = body.map_err(|error| match error.is::<LengthLimitError>() {
        true => too_long(),
        false => ServiceFailure::Unanswered(explain(&*error)),
    })?;
    Ok(ServiceAnswer { status, retry_after_s, body: body.to_bytes().to_vec() })
}

/// Joins the messages of an error and of its causes.
fn explain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    let mut texts: Vec<String> = causes.map(|error| error.to_string()).collect();
    texts.dedup();
    texts.join(": ").replace(char::is_control, " ")
}

fn connections(tls: ClientConfig) -> Connections {
    let mut connector = HttpConnector::new();
    // The connector refuses https:// otherwise.
    connector.enforce_http(false);
    connector.set_nodelay(true);
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector);
    Pool::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_MAX)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .http1_max_buf_size(HEAD_BYTES_MAX)
        .build(connector)
}

/// Returns the TLS settings for services whose certificates come from these authorities.
pub(in crate::bridge) fn tls(authorities: &Authorities) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match authorities {
        Some(certificates) => {
            for certificate in certificates.iter() {
                let added = roots.add(CertificateDer::from(&certificate[..]).into_owned());
                added.map_err(|error| format!("ca: {error}"))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
        }
    }
    // Without roots https:// fails with "unknown issuer", and http:// to loopback works.
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
