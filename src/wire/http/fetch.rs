//! Requests to other HTTP services than MCP servers, with the same rules: no link-local addresses, bounded sizes, a time
//! limit, the proxy of the environment.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use http::header::{CONTENT_LENGTH, HOST, USER_AGENT};
use http::{HeaderValue, Request, Response};
use secrecy::SecretString;
use tokio_util::either::Either;
use url::Url;

use super::super::{AttemptStep, ConnectionError};
use super::client::{request_host, request_target};
use super::connect::{Connector, ServerSocket};
use super::streaming_body::StreamingBody;
use crate::resource::{HttpEndpoint, HttpTransportKind, Reason};

/// The maximum size of a response's body.
const MAX_BODY_BYTES: usize = 1024 * 1024;
/// The timeout of a whole request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// The reach of an address, from the widest to the narrowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressScope {
    /// An address of the internet.
    Public,
    /// An address of a private network.
    Private,
    /// An address of this machine.
    Loopback,
}

impl AddressScope {
    fn of(address: IpAddr) -> Self {
        /// The addresses that carriers share among customers (RFC 6598).
        const CARRIER: (Ipv4Addr, u32) = (Ipv4Addr::new(100, 64, 0, 0), 0xffc0_0000);
        let address = address.to_canonical();
        let is_private = match address {
            IpAddr::V4(v4) => v4.is_private() || u32::from(v4) & CARRIER.1 == u32::from(CARRIER.0),
            IpAddr::V6(v6) => v6.is_unique_local(),
        };
        if address.is_loopback() {
            Self::Loopback
        } else if is_private {
            Self::Private
        } else {
            Self::Public
        }
    }
}

/// Returns the scope of the address at which a service is reached. Through a proxy every address counts as public, since
/// the proxy resolves it.
///
/// # Errors
///
/// Fails if it cannot be reached.
pub async fn address_scope(url: &Url, ca: Option<&SecretString>) -> Result<AddressScope, ConnectionError> {
    let connector = connector(url, ca)?;
    let socket = connector.connect().await?;
    Ok(scope_of_socket(&socket, &connector))
}

/// Sends a request to an absolute URL, on a connection of its own. Follows no redirect.
///
/// # Errors
///
/// Fails if the address has a narrower scope than `narrowest`, before the request is sent; if the response is larger than
/// 1 MiB or takes longer than 20 s.
pub async fn fetch(
    request: Request<Vec<u8>>,
    ca: Option<&SecretString>,
    narrowest: AddressScope,
) -> Result<Response<Vec<u8>>, ConnectionError> {
    let fetching = async {
        let invalid = |message: String| ConnectionError::new(Reason::ConnectFailed, message);
        let url = Url::parse(&request.uri().to_string()).map_err(|error| invalid(error.to_string()))?;
        let connector = connector(&url, ca)?;
        let proxy = connector.request_proxy();
        let target = request_target(&url, proxy.is_some())
            .ok_or_else(|| invalid(format!("{url} is not valid in an HTTP request")))?;
        let authorization = proxy.and_then(|proxy| proxy.authorization.clone());
        let (head, body) = request.into_parts();
        let mut headers = head.headers;
        headers.extend(authorization.map(|value| (http::header::PROXY_AUTHORIZATION, value)));
        headers.insert(HOST, request_host(&url)?);
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("evenkeel/", env!("CARGO_PKG_VERSION"))));
        headers.remove(CONTENT_LENGTH);
        let socket = connector.connect().await?;
        let scope = scope_of_socket(&socket, &connector);
        if scope > narrowest {
            let host = url.host_str().unwrap_or_default();
            let kind =
                if scope == AddressScope::Loopback { "of this machine" } else { "of a private network" };
            return Err(ConnectionError::new(
                Reason::PolicyDenied,
                format!("{host} has an address {kind}, which a server elsewhere may not lead to"),
            ));
        }
        let response = StreamingBody::send_request(socket, (&head.method, &target, &headers), &body).await?;
        let (head, mut body) = response.into_parts();
        let mut bytes = Vec::new();
        while let Some(chunk) = body.chunk().await? {
            if bytes.len() + chunk.len() > MAX_BODY_BYTES {
                return Err(invalid(format!("the response of {} is larger than 1 MiB", host_of(&url))));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Response::from_parts(head, bytes))
    };
    tokio::time::timeout(REQUEST_TIMEOUT, fetching).await.unwrap_or_else(|_| {
        let message = format!("no complete response within {} s", REQUEST_TIMEOUT.as_secs());
        Err(ConnectionError::new(Reason::Timeout, message))
    })
}

fn host_of(url: &Url) -> &str {
    url.host_str().unwrap_or_default()
}

fn connector(url: &Url, ca: Option<&SecretString>) -> Result<Connector, ConnectionError> {
    let endpoint = HttpEndpoint {
        kind: HttpTransportKind::StreamableHttp,
        url: url.clone(),
        headers: Vec::new(),
        ca: ca.cloned(),
        oauth: None,
    };
    Connector::new(&endpoint, AttemptStep::default())
}

fn scope_of_socket(socket: &ServerSocket, connector: &Connector) -> AddressScope {
    if connector.is_proxied() {
        return AddressScope::Public;
    }
    let tcp = match socket {
        Either::Left(tcp) => tcp,
        Either::Right(tls) => tls.get_ref().0,
    };
    tcp.peer_addr().map_or(AddressScope::Loopback, |address| AddressScope::of(address.ip()))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn scope_of_an_address() {
        for (address, scope) in [
            ("127.0.0.1", AddressScope::Loopback),
            ("::1", AddressScope::Loopback),
            ("::ffff:127.0.0.1", AddressScope::Loopback),
            ("10.1.2.3", AddressScope::Private),
            ("100.64.0.1", AddressScope::Private),
            ("100.128.0.1", AddressScope::Public),
            ("fd12::1", AddressScope::Private),
            ("192.0.2.1", AddressScope::Public),
            ("2001:db8::1", AddressScope::Public),
        ] {
            assert_eq!(AddressScope::of(address.parse().unwrap()), scope, "{address}");
        }
    }

    /// Serves one response. Returns its URL.
    async fn serve(response: Vec<u8>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/x?y", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let read = socket.read(&mut request).await.unwrap();
            assert!(request.starts_with(b"POST /x?y HTTP/1.1\r\n") && read > 0);
            // The client may close the connection before the end.
            let _ = socket.write_all(&response).await;
        });
        url
    }

    async fn post(url: &str, narrowest: AddressScope) -> Result<Response<Vec<u8>>, ConnectionError> {
        let request = Request::post(url).body(b"a=b".to_vec()).unwrap();
        fetch(request, None, narrowest).await
    }

    #[tokio::test]
    async fn response_is_bounded_and_addresses_are_checked() {
        let url = serve(b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\nok".to_vec()).await;
        let refused = post(&url, AddressScope::Private).await.unwrap_err();
        assert!(refused.to_string().contains("of this machine"), "{refused}");
        let url = serve(b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\nok".to_vec()).await;
        let response = post(&url, AddressScope::Loopback).await.unwrap();
        assert_eq!((response.status().as_u16(), &**response.body()), (201, b"ok".as_slice()));
        let mut large = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        large.resize(MAX_BODY_BYTES + 100, b'x');
        let refused = post(&serve(large).await, AddressScope::Loopback).await.unwrap_err();
        assert!(refused.to_string().contains("1 MiB"), "{refused}");
        let link_local = post("http://169.254.169.254/", AddressScope::Loopback).await.unwrap_err();
        assert_eq!(link_local.problem.reason, Reason::PolicyDenied);
    }
}
