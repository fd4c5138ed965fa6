use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;
use url::Url;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer that is read.
const MAX_RESPONSE_BYTES: usize = 64 << 10;

/// The HTTP side of a collector.
#[derive(Debug)]
pub(super) struct CollectorClient {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    headers: HeaderMap,
}

/// A request that was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ExportError {
    /// Why, for the log.
    pub message: String,
    /// True if the same request may be taken later.
    pub retryable: bool,
}

impl fmt::Display for ExportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl CollectorClient {
    /// A collector that is not connected yet; `headers` go with every request. An error says why there can be
    /// no TLS, where it is needed.
    pub fn new(mut headers: HeaderMap, encrypted: bool) -> io::Result<Self> {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let agent = HeaderValue::from_static(concat!("evenkeel/", env!("CARGO_PKG_VERSION")));
        headers.insert(USER_AGENT, agent);
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls_config(encrypted).map_err(io::Error::other)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(connector), headers })
    }

    /// Sends a message and gives the body of the answer. Takes `limit` at most.
    pub async fn post(&self, url: &Url, message: Vec<u8>, limit: Duration) -> Result<Bytes, ExportError> {
        let mut request = Request::new(Full::new(Bytes::from(message)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = url
            .as_str()
            .parse()
            .map_err(|error| ExportError { message: format!("{error}"), retryable: false })?;
        request.headers_mut().clone_from(&self.headers);
        let answered = tokio::time::timeout(limit, self.send_request(request)).await;
        answered.unwrap_or_else(|_| Err(retryable_error(format!("no answer within {} s", limit.as_secs()))))
    }

    async fn send_request(&self, request: Request<Full<Bytes>>) -> Result<Bytes, ExportError> {
        let answer =
            self.client.request(request).await.map_err(|error| retryable_error(error_chain(&error)))?;
        let status = answer.status();
        if status != StatusCode::OK {
            return Err(ExportError { message: format!("HTTP {status}"), retryable: is_retryable(status) });
        }
        let body = Limited::new(answer.into_body(), MAX_RESPONSE_BYTES).collect().await;
        Ok(body.map_err(|error| retryable_error(error.to_string()))?.to_bytes())
    }
}

/// The system's trust store; a machine without one can do without, if nothing is encrypted.
fn tls_config(encrypted: bool) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = if encrypted {
        builder.with_platform_verifier()?
    } else {
        builder.with_root_certificates(RootCertStore::empty())
    };
    Ok(builder.with_no_client_auth())
}

fn retryable_error(why: String) -> ExportError {
    ExportError { message: why, retryable: true }
}

/// The statuses after which OTLP has a request sent again.
fn is_retryable(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// An error with what is behind it: the client's own says only in which step it failed.
fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
