use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

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
use url::Host;

use super::super::{AttemptStep, ConnectionError};
use super::connect_error::{describe_tcp_error, describe_tls_error};
use crate::resource::{HttpEndpoint, Reason};

/// A socket to a server, encrypted or not.
pub(super) type ServerSocket = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// The timeout for the TCP connection to one address, and for the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The TLS sessions that all servers share: enough for 1,000 servers, each of which keeps up to 8 tickets.
const TLS_SESSION_TICKETS: usize = 8_000;

/// Opens sockets to one origin.
#[derive(Debug)]
pub(super) struct Connector {
    host: Host<String>,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    /// True if the declaration has a CA of its own.
    has_ca: bool,
    step: AttemptStep,
    /// The `host:port`, for messages.
    authority: String,
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
        let name = format!("{host}:{port}");
        Ok(Self { host, port, tls, has_ca: endpoint.ca.is_some(), step, authority: name })
    }

    /// Connects to the first address that accepts. Rejects link-local and metadata service addresses, after the name is
    /// resolved.
    pub(super) async fn connect(&self) -> Result<ServerSocket, ConnectionError> {
        self.step.record_opening(Some(&self.authority));
        let socket = self.open().await;
        self.step.record_opening(None);
        socket
    }

    async fn open(&self) -> Result<ServerSocket, ConnectionError> {
        let addresses = match &self.host {
            Host::Ipv4(address) => vec![(*address).into()],
            Host::Ipv6(address) => vec![(*address).into()],
            Host::Domain(name) => tokio::net::lookup_host((name.as_str(), self.port))
                .await
                .map_err(|error| {
                    self.connect_error(&format!(
                        "cannot resolve the name: {error}; check the host in spec.http.url"
                    ))
                })?
                .map(|address| address.ip())
                .collect(),
        };
        let mut last_error = self.connect_error("the name has no address");
        for address in addresses {
            if is_link_local_or_metadata(address) {
                last_error = ConnectionError::new(
                    Reason::PolicyDenied,
                    format!(
                        "{} is {address}, a link-local or metadata address, which is not allowed",
                        self.authority
                    ),
                );
                continue;
            }
            match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((address, self.port))).await {
                Ok(Ok(socket)) => return self.wrap_tls(socket).await,
                Ok(Err(error)) => last_error = self.connect_error(&describe_tcp_error(&error)),
                Err(_) => {
                    last_error = self.connect_error(&format!(
                        "no answer within {} s; check the host in spec.http.url, and whether a firewall drops packets to it",
                        CONNECT_TIMEOUT.as_secs()
                    ));
                }
            }
        }
        Err(last_error)
    }

    async fn wrap_tls(&self, socket: TcpStream) -> Result<ServerSocket, ConnectionError> {
        socket.set_nodelay(true).map_err(|error| self.connect_error(&error.to_string()))?;
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
        ConnectionError::new(Reason::ConnectFailed, format!("cannot connect to {}: {reason}", self.authority))
    }
}

/// True for link-local, unspecified and broadcast addresses, and for those of cloud metadata services.
fn is_link_local_or_metadata(address: IpAddr) -> bool {
    /// The IPv6 address of EC2's metadata service.
    const EC2_METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_link_local() || address.is_unspecified() || address.is_broadcast(),
        IpAddr::V6(address) => {
            address.is_unicast_link_local() || address.is_unspecified() || address == EC2_METADATA
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_and_link_local_addresses_are_recognized() {
        for (address, refused) in [
            ("169.254.169.254", true),
            ("::ffff:169.254.169.254", true),
            ("fe80::1", true),
            ("fd00:ec2::254", true),
            ("0.0.0.0", true),
            ("127.0.0.1", false),
            ("10.0.0.1", false),
            ("::1", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(is_link_local_or_metadata(address.parse().unwrap()), refused, "{address}");
        }
    }
}
