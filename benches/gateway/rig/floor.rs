//! The floor: the minimal cost of a proxy on this machine. It receives a request on one connection, forwards it on a
//! pooled one, and returns the response, without parsing any body.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self as client, SendRequest};
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use super::Result;

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, upstream: SocketAddr) -> Result<()> {
    let pool = Arc::new(UpstreamPool { upstream, idle: Mutex::default() });
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let pool = pool.clone();
        let service = service_fn(move |request| forward(pool.clone(), request));
        tokio::spawn(server::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

/// The idle connections to the upstream.
struct UpstreamPool {
    upstream: SocketAddr,
    idle: Mutex<Vec<SendRequest<Incoming>>>,
}

async fn forward(pool: Arc<UpstreamPool>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
    let mut sender = pool.acquire().await?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    pool.idle.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
    Ok(Response::from_parts(head, Full::new(body)))
}

impl UpstreamPool {
    async fn acquire(&self) -> Result<SendRequest<Incoming>> {
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut sender) = idle else { break };
            if sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        let stream = TcpStream::connect(self.upstream).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = client::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}
