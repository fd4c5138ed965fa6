//! An OTLP collector for tests that stores received data and whose behavior is configurable.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::support::{eventually, free_port};

/// An OTLP collector. It stops listening when dropped.
pub struct TestCollector {
    pub port: u16,
    state: Arc<Mutex<CollectorState>>,
    listener: Option<JoinHandle<()>>,
}

/// The way in which the collector responds to requests.
#[derive(Clone, Copy, Default)]
pub enum CollectorBehavior {
    #[default]
    Accept,
    /// Never respond.
    Hang,
    /// Respond with this status and a very large body.
    Flood(u16),
}

#[derive(Default)]
struct CollectorState {
    behavior: CollectorBehavior,
    request_count: usize,
    headers: Vec<HeaderMap>,
    resources: Vec<BTreeMap<String, String>>,
    spans: Vec<Span>,
    metrics: Vec<Metric>,
    received_bytes: Vec<u8>,
}

impl TestCollector {
    pub async fn start() -> Self {
        let mut collector = Self { port: free_port(), state: Arc::default(), listener: None };
        collector.listen().await;
        collector
    }

    /// Reserves a port without listening yet.
    pub fn not_listening() -> Self {
        Self { port: free_port(), state: Arc::default(), listener: None }
    }

    pub async fn listen(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        let state = self.state.clone();
        self.listener = Some(tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let state = state.clone();
                let service = service_fn(move |request| respond(request, state.clone()));
                tokio::spawn(async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        }));
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn set_behavior(&self, manner: CollectorBehavior) {
        self.state.lock().unwrap().behavior = manner;
    }

    /// Returns the number of received requests.
    pub fn request_count(&self) -> usize {
        self.state.lock().unwrap().request_count
    }

    /// Waits for a matching span.
    pub async fn wait_for_span(&self, description: &str, matches: impl Fn(&Span) -> bool) -> Span {
        eventually(description, async || self.spans().into_iter().find(|span| matches(span))).await
    }

    pub fn spans(&self) -> Vec<Span> {
        self.state.lock().unwrap().spans.clone()
    }

    /// Waits for the next export of metrics and returns it.
    pub async fn next_metrics(&self) -> Vec<Metric> {
        self.state.lock().unwrap().metrics.clear();
        eventually("metrics", async || {
            let metrics = self.received_metrics();
            (!metrics.is_empty()).then_some(metrics)
        })
        .await
    }

    /// Returns all metrics that were received so far.
    pub fn received_metrics(&self) -> Vec<Metric> {
        self.state.lock().unwrap().metrics.clone()
    }

    pub fn headers(&self) -> HeaderMap {
        self.state.lock().unwrap().headers[0].clone()
    }

    pub fn resource(&self) -> BTreeMap<String, String> {
        self.state.lock().unwrap().resources[0].clone()
    }

    /// Returns true if any received body contains this text.
    pub fn received_text(&self, text: &str) -> bool {
        self.state.lock().unwrap().received_bytes.windows(text.len()).any(|window| window == text.as_bytes())
    }
}

impl Drop for TestCollector {
    fn drop(&mut self) {
        if let Some(listening) = &self.listener {
            listening.abort();
        }
    }
}

/// Returns the attributes with their values as text.
pub fn attribute_texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |attribute: &KeyValue| match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        _ => None,
    };
    attributes.iter().map(|attribute| (attribute.key.clone(), text(attribute).unwrap_or_default())).collect()
}

async fn respond(
    request: Request<Incoming>,
    state: Arc<Mutex<CollectorState>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let manner = {
        let mut state = state.lock().unwrap();
        state.request_count += 1;
        state.received_bytes.extend_from_slice(&body);
        state.headers.push(head.headers);
        state.behavior
    };
    match manner {
        CollectorBehavior::Hang => std::future::pending().await,
        CollectorBehavior::Flood(status) => {
            let mut response = Response::new(Full::from(vec![b'x'; 4 << 20]));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            Ok(response)
        }
        CollectorBehavior::Accept => {
            state.lock().unwrap().store(head.uri.path(), &body);
            Ok(Response::new(Full::default()))
        }
    }
}

impl CollectorState {
    fn store(&mut self, path: &str, body: &Bytes) {
        if path == "/v1/traces" {
            for batch in ExportTraceServiceRequest::decode(&**body).unwrap().resource_spans {
                self.resources.push(attribute_texts(&batch.resource.unwrap().attributes));
                self.spans.extend(batch.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        } else {
            assert_eq!(path, "/v1/metrics");
            for batch in ExportMetricsServiceRequest::decode(&**body).unwrap().resource_metrics {
                let metrics = batch.scope_metrics.into_iter().flat_map(|scope| scope.metrics);
                self.metrics.extend(metrics);
            }
        }
    }
}
