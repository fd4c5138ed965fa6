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

/// The timeout for establishing a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum size of a response body that is read, in bytes.
const MAX_RESPONSE_BYTES: usize = 64 << 10;

/// An HTTP client for an OTLP collector.
#[derive(Debug)]
pub(super) struct CollectorClient {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    headers: HeaderMap,
}

/// An export request that failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ExportError {
    /// The cause, for the log.
    pub message: String,
    /// True if the same request may succeed later.
    pub retryable: bool,
}

impl fmt::Display for ExportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl CollectorClient {
    /// Creates a client without connecting. `headers` are sent with every request. Fails if TLS is needed but cannot be
    /// set up.
    pub fn new(mut headers: HeaderMap, encrypted: bool) -> io::Result<Self> {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let user_agent = HeaderValue::from_static(concat!("evenkeel/", env!("CARGO_PKG_VERSION")));
        headers.insert(USER_AGENT, user_agent);
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

    /// Sends a message and returns the body of the response. Fails after `timeout`.
    pub async fn post(&self, url: &Url, message: Vec<u8>, timeout: Duration) -> Result<Bytes, ExportError> {
        let mut request = Request::new(Full::new(Bytes::from(message)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = url
            .as_str()
            .parse()
            .map_err(|error| ExportError { message: format!("{error}"), retryable: false })?;
        request.headers_mut().clone_from(&self.headers);
        let result = tokio::time::timeout(timeout, self.send_request(request)).await;
        result.unwrap_or_else(|_| Err(retryable_error(format!("no answer within {} s", timeout.as_secs()))))
    }

    async fn send_request(&self, request: Request<Full<Bytes>>) -> Result<Bytes, ExportError> {
        let response =
            self.client.request(request).await.map_err(|error| retryable_error(error_chain(&error)))?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(ExportError { message: format!("HTTP {status}"), retryable: is_retryable(status) });
        }
        let body = Limited::new(response.into_body(), MAX_RESPONSE_BYTES).collect().await;
        Ok(body.map_err(|error| retryable_error(error.to_string()))?.to_bytes())
    }
}

/// Returns the TLS configuration. It uses the system's trust store only for encrypted connections, so that a machine
/// without a trust store can still export over plain HTTP.
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

fn retryable_error(message: String) -> ExportError {
    ExportError { message, retryable: true }
}

/// Returns true for the statuses after which the OTLP specification allows a retry.
fn is_retryable(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// Formats an error with all its causes. The outermost error of the client only names the step that failed.
fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
