//! Reverse proxies that do to connections what those of hosting providers do.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::StreamExt;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderValue};
use http::{Request, Response};
use http_body_util::{BodyDataStream, BodyExt, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The way in which a proxy changes the responses or connections that it relays.
#[derive(Clone, Copy, Debug)]
pub enum ProxyBehavior {
    /// Compresses every response with gzip, though no request asks for it. Streams are flushed after each event.
    Compress,
    /// Closes a connection on which nothing was sent for this time.
    CutIdle(Duration),
    /// Sends 103 Early Hints before each response.
    EarlyHints,
}

/// A reverse proxy in front of one server. Ends when it is dropped.
pub struct ReverseProxy {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl ReverseProxy {
    /// Starts a proxy on a free port for the server at this address.
    pub async fn start(server: SocketAddr, behavior: ProxyBehavior) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    match behavior {
                        ProxyBehavior::Compress => compress(client, server).await,
                        ProxyBehavior::CutIdle(idle) => relay(client, server, idle, "").await,
                        ProxyBehavior::EarlyHints => relay(client, server, NEVER, EARLY_HINTS).await,
                    }
                });
            }
        });
        Self { address, task }
    }

    /// Returns the URL of an endpoint behind the proxy.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for ReverseProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn compress(client: TcpStream, server: SocketAddr) {
    let service = service_fn(|request: Request<Incoming>| async move {
        let socket = TcpStream::connect(server).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket))
            .await
            .map_err(std::io::Error::other)?;
        tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(std::io::Error::other)?;
        let (mut head, body) = response.into_parts();
        head.headers.remove(CONTENT_LENGTH);
        head.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        let frames = BodyDataStream::new(body).map(move |chunk| {
            encoder.write_all(&chunk.map_err(std::io::Error::other)?)?;
            encoder.flush()?;
            Ok::<_, std::io::Error>(Frame::data(Bytes::from(std::mem::take(encoder.get_mut()))))
        });
        Ok::<_, std::io::Error>(Response::from_parts(head, BodyExt::boxed_unsync(StreamBody::new(frames))))
    });
    // A client that disconnects is not an error.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(client), service).await;
}

const NEVER: Duration = Duration::from_hours(1);
const EARLY_HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n";

/// Relays bytes in both directions, with `before_response` before the response to each request.
async fn relay(mut client: TcpStream, server: SocketAddr, idle: Duration, before_response: &str) {
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let mut responds = false;
    let (mut from_client, mut from_server) = (vec![0; 16 << 10], vec![0; 16 << 10]);
    loop {
        let sent = tokio::select! {
            read = client.read(&mut from_client) => match read {
                Ok(length) if length > 0 => {
                    responds = false;
                    server.write_all(&from_client[..length]).await
                }
                _ => return,
            },
            read = server.read(&mut from_server) => match read {
                Ok(length) if length > 0 => {
                    let before = if std::mem::replace(&mut responds, true) { "" } else { before_response };
                    match client.write_all(before.as_bytes()).await {
                        Ok(()) => client.write_all(&from_server[..length]).await,
                        error => error,
                    }
                }
                _ => return,
            },
            () = tokio::time::sleep(idle) => return,
        };
        if sent.is_err() {
            return;
        }
    }
}
