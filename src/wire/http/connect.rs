use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;
use secrecy::ExposeSecret;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use tower::ServiceExt;
use url::Host;

use super::super::local_limit::local_limit_error;
use super::super::{AttemptStep, ConnectionError};
use super::connect_error::{describe_tcp_error, describe_tls_error};
use super::proxy::Proxy;
use super::resolver::{ResolveError, SystemResolver, is_link_local_or_metadata};
use crate::resource::{HttpEndpoint, Reason};

/// A socket to a server, encrypted or not.
pub(super) type ServerSocket = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// The timeout for the TCP connection, and for the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The time after which the addresses of the other family (IPv4 or IPv6) are tried too (Happy Eyeballs, RFC 8305).
const OTHER_FAMILY_DELAY: Duration = Duration::from_millis(300);
/// The silence after which TCP checks whether the peer still exists, the interval of these checks and their number.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);

/// The TLS sessions that all servers share: enough for 1,000 servers, each of which keeps up to 8 tickets.
const TLS_SESSION_TICKETS: usize = 8_000;

/// Opens TCP connections for all servers.
static TCP: LazyLock<HttpConnector<SystemResolver>> = LazyLock::new(|| {
    let mut tcp = HttpConnector::new_with_resolver(SystemResolver::new());
    let (time, interval, retries) = KEEPALIVE;
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_happy_eyeballs_timeout(Some(OTHER_FAMILY_DELAY));
    tcp.set_keepalive(Some(time));
    tcp.set_keepalive_interval(Some(interval));
    tcp.set_keepalive_retries(Some(retries));
    tcp
});

/// Opens sockets to one origin.
#[derive(Debug)]
pub(super) struct Connector {
    host: Host<String>,
    /// Scheme, host and port.
    origin: Uri,
    proxy: Option<Box<Proxy>>,
    tls: Option<Arc<ClientConfig>>,
    /// True if the declaration has a CA of its own.
    has_ca: bool,
    step: AttemptStep,
}

impl Connector {
    pub(super) fn new(endpoint: &HttpEndpoint, step: AttemptStep) -> Result<Self, ConnectionError> {
        let invalid = |message: String| ConnectionError::new(Reason::InvalidSpec, message);
        let url = &endpoint.url;
        let host = url.host().ok_or_else(|| invalid("the url has no host".into()))?.to_owned();
        let port = url.port_or_known_default().ok_or_else(|| invalid("the url has no port".into()))?;
        let tls = match (url.scheme(), &endpoint.ca) {
            ("https", None) => Some(system_tls_config()?),
            ("https", Some(ca)) => Some(Arc::new(custom_ca_tls_config(ca.expose_secret())?)),
            _ => None,
        };
        let origin = Uri::try_from(format!("{}://{host}:{port}/", url.scheme()))
            .map_err(|_| invalid(format!("{host}:{port} is not valid in an HTTP request")))?;
        let proxy = Proxy::from_environment(&origin).map(Box::new);
        Ok(Self { host, origin, proxy, tls, has_ca: endpoint.ca.is_some(), step })
    }

    /// Returns the proxy that requests are sent to, if there is one. For TLS it only relays bytes.
    pub(super) fn request_proxy(&self) -> Option<&Proxy> {
        self.proxy.as_deref().filter(|_| self.tls.is_none())
    }

    /// True if the server is reached through a proxy.
    pub(super) fn is_proxied(&self) -> bool {
        self.proxy.is_some()
    }

    /// Connects to the first address that accepts. Rejects link-local and metadata service addresses, after the name is
    /// resolved.
    pub(super) async fn connect(&self) -> Result<ServerSocket, ConnectionError> {
        self.step.record_opening(Some(self.authority()));
        let socket = self.open().await;
        self.step.record_opening(None);
        socket
    }

    async fn open(&self) -> Result<ServerSocket, ConnectionError> {
        let address = match &self.host {
            Host::Ipv4(address) => Some(IpAddr::from(*address)),
            Host::Ipv6(address) => Some(IpAddr::from(*address)),
            Host::Domain(_) => None,
        };
        if let Some(address) = address.filter(|address| is_link_local_or_metadata(*address)) {
            return Err(self.open_error(&ResolveError::Denied(address)));
        }
        let tcp = TCP.clone();
        let opened = match &self.proxy {
            None => tcp.oneshot(self.origin.clone()).await.map_err(|error| self.open_error(&error)),
            Some(proxy) if proxy.uri.scheme_str() != Some("http") => {
                let scheme = proxy.uri.scheme_str().unwrap_or_default();
                Err(self.connect_error(&format!("a proxy with {scheme}:// is not supported; use http://")))
            }
            Some(proxy) if self.tls.is_none() => {
                tcp.oneshot(proxy.uri.clone()).await.map_err(|error| self.open_error(&error))
            }
            Some(proxy) => {
                let mut tunnel = Tunnel::new(proxy.uri.clone(), tcp);
                if let Some(authorization) = proxy.authorization.clone() {
                    tunnel = tunnel.with_auth(authorization);
                }
                let opening = tunnel.oneshot(self.origin.clone());
                match tokio::time::timeout(CONNECT_TIMEOUT, opening).await {
                    Ok(opened) => opened.map_err(|error| self.open_error(&error)),
                    Err(_) => Err(self.connect_error(&no_answer())),
                }
            }
        };
        self.wrap_tls(opened?.into_inner()).await
    }

    /// Returns the `host:port` of the server.
    fn authority(&self) -> &str {
        self.origin.authority().map_or("", http::uri::Authority::as_str)
    }

    fn open_error(&self, error: &(dyn Error + 'static)) -> ConnectionError {
        if let Some(error) = causes(error).find_map(|error| error.downcast_ref::<ResolveError>()) {
            return match error {
                ResolveError::Denied(_) => {
                    ConnectionError::new(Reason::PolicyDenied, format!("{}: {error}", self.authority()))
                }
                ResolveError::Failed(_) | ResolveError::TimedOut => self.connect_error(&error.to_string()),
            };
        }
        match causes(error).filter_map(|error| error.downcast_ref::<io::Error>()).last() {
            Some(error) if error.kind() == io::ErrorKind::TimedOut => self.connect_error(&no_answer()),
            Some(error) => local_limit_error(&format!("a connection to {}", self.authority()), error)
                .unwrap_or_else(|| self.connect_error(&describe_tcp_error(error))),
            None => self.connect_error(&causes(error).last().unwrap_or(error).to_string()),
        }
    }

    async fn wrap_tls(&self, socket: TcpStream) -> Result<ServerSocket, ConnectionError> {
        let Some(config) = &self.tls else {
            return Ok(Either::Left(socket));
        };
        let name = match &self.host {
            Host::Domain(name) => ServerName::try_from(name.clone()).map_err(|_| {
                ConnectionError::new(Reason::InvalidSpec, format!("{name:?} is not a host name"))
            })?,
            Host::Ipv4(address) => ServerName::from(IpAddr::from(*address)),
            Host::Ipv6(address) => ServerName::from(IpAddr::from(*address)),
        };
        let handshake = TlsConnector::from(config.clone()).connect(name, socket);
        match tokio::time::timeout(CONNECT_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => Ok(Either::Right(Box::new(stream))),
            Ok(Err(error)) => Err(self.connect_error(&describe_tls_error(&error, self.has_ca))),
            Err(_) => {
                Err(self.connect_error(&format!("no TLS handshake within {} s", CONNECT_TIMEOUT.as_secs())))
            }
        }
    }

    fn connect_error(&self, reason: &str) -> ConnectionError {
        let through = self.proxy.as_ref().map(|proxy| {
            format!(" through the proxy {} (HTTPS_PROXY, HTTP_PROXY or ALL_PROXY)", proxy.authority())
        });
        let (authority, through) = (self.authority(), through.unwrap_or_default());
        ConnectionError::new(
            Reason::ConnectFailed,
            format!("cannot connect to {authority}{through}: {reason}"),
        )
    }
}

/// Returns an error and its causes, the last one being the first to have occurred.
fn causes<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| Error::source(*error))
}

fn no_answer() -> String {
    format!(
        "no answer within {} s; check the host in spec.http.url, and whether a firewall drops packets to it",
        CONNECT_TIMEOUT.as_secs()
    )
}

/// Returns the TLS configuration with the system's trust store. All servers share it: the store is slow to read and its
/// copy is large.
fn system_tls_config() -> Result<Arc<ClientConfig>, ConnectionError> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(config.clone());
    }
    let trust_store_error = |error: rustls::Error| {
        ConnectionError::new(Reason::ConnectFailed, format!("cannot load the system's trust store: {error}"))
    };
    let mut config =
        tls_config_builder()?.with_platform_verifier().map_err(trust_store_error)?.with_no_client_auth();
    config.resumption = Resumption::in_memory_sessions(TLS_SESSION_TICKETS);
    Ok(CONFIG.get_or_init(|| Arc::new(config)).clone())
}

/// Returns a TLS configuration that trusts only the certificates in `pem`.
fn custom_ca_tls_config(pem: &str) -> Result<ClientConfig, ConnectionError> {
    let invalid =
        |reason: String| ConnectionError::new(Reason::InvalidSpec, format!("tls.caSecretRef: {reason}"));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| invalid(error.to_string()))?;
        roots.add(certificate).map_err(|error| invalid(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(invalid("holds no PEM certificate".into()));
    }
    let mut config = tls_config_builder()?.with_root_certificates(roots).with_no_client_auth();
    // The configuration serves one server; the default of 32 sessions would take 20 KiB.
    config.resumption = Resumption::in_memory_sessions(1);
    Ok(config)
}

fn tls_config_builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, ConnectionError>
{
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(|error| {
        ConnectionError::new(Reason::ConnectFailed, format!("cannot configure TLS: {error}"))
    })
}
