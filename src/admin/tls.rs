//! HTTP and HTTPS on one port. kubectl sends a token only over HTTPS, while plain `curl` uses HTTP.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::serve::Listener;
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

/// The first byte of a TLS connection: the record type `handshake`.
const TLS_HANDSHAKE_RECORD: u8 = 22;

/// A self-signed certificate, generated at each start. Clients trust it because the kubeconfig holds it.
#[derive(Clone)]
pub struct Certificate {
    acceptor: TlsAcceptor,
    pem: String,
}

/// An error while generating the certificate.
#[derive(Debug, thiserror::Error)]
#[error("the certificate of the status API cannot be generated: {0}")]
pub struct CertificateError(String);

impl Certificate {
    /// Generates a certificate for the loopback names and the listen address.
    pub fn new(address: IpAddr) -> Result<Self, CertificateError> {
        let failed = |error: &dyn std::error::Error| CertificateError(error.to_string());
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned(), address.to_string()];
        let key = KeyPair::generate().map_err(|error| failed(&error))?;
        let params = CertificateParams::new(names).map_err(|error| failed(&error))?;
        let certificate = params.self_signed(&key).map_err(|error| failed(&error))?;
        let private_key =
            PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| CertificateError(error.into()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|config| {
                config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], private_key)
            })
            .map_err(|error| failed(&error))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { acceptor: Arc::new(config).into(), pem: certificate.pem() })
    }

    /// Returns the certificate as PEM, for clients to trust.
    pub fn pem(&self) -> &str {
        &self.pem
    }
}

/// A listener that accepts both HTTP and HTTPS.
pub(super) struct TlsOrPlainListener {
    pub listener: TcpListener,
    pub certificate: Certificate,
}

impl Listener for TlsOrPlainListener {
    type Io = TlsOrPlainStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TlsOrPlainStream, SocketAddr) {
        let (stream, address) = Listener::accept(&mut self.listener).await;
        if let Err(error) = stream.set_nodelay(true) {
            tracing::trace!(%error, "TCP_NODELAY");
        }
        (TlsOrPlainStream::Undetermined(Some(stream), self.certificate.acceptor.clone()), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection whose first byte determines its protocol. The TLS handshake runs at the first read or write, so that a
/// slow client delays only itself.
pub(super) enum TlsOrPlainStream {
    Undetermined(Option<TcpStream>, TlsAcceptor),
    Handshake(Box<Accept<TcpStream>>),
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl TlsOrPlainStream {
    /// Waits until the protocol is determined and the TLS handshake is complete.
    fn poll_determined(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            *self = match self {
                Self::Plain(_) | Self::Tls(_) => return Poll::Ready(Ok(())),
                Self::Undetermined(stream, acceptor) => {
                    let Some(pending_stream) = stream.as_mut() else {
                        return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
                    };
                    let mut first = [0; 1];
                    let mut buffer = ReadBuf::new(&mut first);
                    ready!(pending_stream.poll_peek(cx, &mut buffer))?;
                    let is_tls = buffer.filled() == [TLS_HANDSHAKE_RECORD];
                    match stream.take() {
                        Some(stream) if is_tls => Self::Handshake(Box::new(acceptor.accept(stream))),
                        Some(stream) => Self::Plain(stream),
                        None => return Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
                    }
                }
                Self::Handshake(accept) => Self::Tls(Box::new(ready!(Pin::new(accept).poll(cx))?)),
            };
        }
    }

    fn poll_io<'a>(&'a mut self, cx: &mut Context<'_>) -> Poll<io::Result<&'a mut dyn AsyncReadWrite>> {
        ready!(self.poll_determined(cx))?;
        Poll::Ready(match self {
            Self::Plain(stream) => Ok(stream),
            Self::Tls(stream) => Ok(&mut **stream),
            Self::Undetermined(..) | Self::Handshake(_) => Err(io::ErrorKind::NotConnected.into()),
        })
    }
}

/// A plain or TLS stream.
trait AsyncReadWrite: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncReadWrite for T {}

impl AsyncRead for TlsOrPlainStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(ready!(self.poll_io(cx))?).poll_read(cx, buffer)
    }
}

impl AsyncWrite for TlsOrPlainStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(ready!(self.poll_io(cx))?).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(ready!(self.poll_io(cx))?).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            // Nothing was sent yet; dropping the stream closes it.
            Self::Undetermined(..) | Self::Handshake(_) => Poll::Ready(Ok(())),
        }
    }
}
