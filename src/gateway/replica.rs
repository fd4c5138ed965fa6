//! Passes a request on to the replica that holds what it belongs to.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyStream, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Gateway;
use super::body::ResponseBody;

/// The header of a request that another replica has passed on. It is not passed on again.
const FORWARDED_HEADER: HeaderName = HeaderName::from_static("evenkeel-forwarded");
/// The timeout for connecting to a replica, which is in the same cluster.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The HTTP request of an agent, with one JSON-RPC message: that of its body, or one of a batch.
#[derive(Clone, Copy)]
pub(super) struct AgentHttpRequest<'a> {
    pub(super) path: &'a str,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a Bytes,
}

impl AgentHttpRequest<'_> {
    /// Returns true if another replica has passed the request on.
    pub(super) fn is_forwarded(&self) -> bool {
        self.headers.contains_key(FORWARDED_HEADER)
    }

    /// Passes the request on to the replica at this address (`HOST:PORT`), and returns its response. `None` if the
    /// replica cannot be reached: it has ended.
    pub(super) async fn forward(
        &self,
        gateway: &Arc<Gateway>,
        address: &str,
    ) -> Option<Response<ResponseBody>> {
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await.ok()?.ok()?;
        stream.set_nodelay(true).ok()?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.ok()?;
        let stop = gateway.stop.clone();
        gateway.detached_calls.spawn(async move {
            // It ends with the response.
            let _ = stop.run_until_cancelled(connection).await;
        });
        let mut request = Request::post(self.path).body(Full::new(self.body.clone())).ok()?;
        let kept = self.headers.iter().filter(|(name, _)| !is_connection_header(name));
        request.headers_mut().extend(kept.map(|(name, value)| (name.clone(), value.clone())));
        request.headers_mut().insert(FORWARDED_HEADER, HeaderValue::from_static("1"));
        let response = sender.send_request(request).await.ok()?;
        let (mut head, incoming) = response.into_parts();
        for name in [CONNECTION, TRANSFER_ENCODING, CONTENT_LENGTH] {
            head.headers.remove(name);
        }
        // The response is an event stream, or short.
        let chunks = BodyStream::new(incoming).filter_map(async |frame| frame.ok()?.into_data().ok());
        Some(Response::from_parts(head, ResponseBody::Stream(Box::pin(chunks))))
    }
}

fn is_connection_header(name: &HeaderName) -> bool {
    [CONNECTION, TRANSFER_ENCODING, CONTENT_LENGTH].contains(name) || name.as_str() == "keep-alive"
}
