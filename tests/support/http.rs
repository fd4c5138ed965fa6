//! A plain HTTP client: one connection per request, closed when the response is dropped.

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{HeaderMap, Method, Request};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// The head of a response, with the body to be read.
pub struct HttpResponse {
    pub status: u16,
    pub headers: HeaderMap,
    body: Incoming,
    buffer: Vec<u8>,
    _connection: ConnectionTask,
}

/// The task of a connection, aborted when dropped.
struct ConnectionTask(JoinHandle<()>);

impl Drop for ConnectionTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends a request to `http://HOST:PORT/…` and waits for the head of the response.
pub async fn send(
    method: Method,
    url: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<HttpResponse, String> {
    let uri: hyper::Uri = url.parse().expect("a URL");
    let authority = uri.authority().expect("a host and port").as_str().to_owned();
    let stream = TcpStream::connect(&authority).await.map_err(|error| format!("{url}: {error}"))?;
    stream.set_nodelay(true).unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| format!("{url}: {error}"))?;
    let connection = ConnectionTask(tokio::spawn(async move {
        let _ = connection.await;
    }));
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::builder().method(method).uri(path).header("Host", authority);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
    let response = sender.send_request(request).await.map_err(|error| format!("{url}: {error}"))?;
    let (parts, body) = response.into_parts();
    Ok(HttpResponse {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body,
        buffer: Vec::new(),
        _connection: connection,
    })
}

/// Sends a GET request and returns the body. Any status but 200 is an error.
pub async fn get(url: &str) -> Result<String, String> {
    let response = send(Method::GET, url, &[], "").await?;
    match response.status {
        200 => response.text().await,
        status => Err(format!("{url}: HTTP {status}: {}", response.text().await.unwrap_or_default())),
    }
}

impl HttpResponse {
    /// Returns a header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Returns true if the body is an event stream.
    pub fn is_stream(&self) -> bool {
        self.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream"))
    }

    /// Reads the whole body.
    pub async fn text(self) -> Result<String, String> {
        let bytes = self.body.collect().await.map_err(|error| error.to_string())?.to_bytes();
        String::from_utf8(bytes.into()).map_err(|error| error.to_string())
    }

    /// Returns the data of the next event that has data, or `None` at the end of the stream. An incomplete stream is an
    /// error.
    pub async fn next_event(&mut self) -> Result<Option<String>, String> {
        loop {
            while let Some(end) = self.buffer.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = self.buffer.drain(..end + 2).collect();
                let event = String::from_utf8(event).map_err(|error| error.to_string())?;
                let data: Vec<&str> = event
                    .lines()
                    .filter_map(|line| line.strip_prefix("data:"))
                    .map(|data| data.strip_prefix(' ').unwrap_or(data))
                    .collect();
                let data = data.join("\n");
                if !data.is_empty() {
                    return Ok(Some(data));
                }
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(error.to_string()),
                Some(Ok(frame)) => self.buffer.extend(frame.data_ref().into_iter().flatten()),
            }
        }
    }
}
