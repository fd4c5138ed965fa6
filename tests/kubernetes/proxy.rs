//! An HTTP proxy between evenkeel and the API server that responds to some requests itself.

use std::convert::Infallible;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::HeaderName;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::client::Body;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::test_namespace::TestNamespace;

/// The action for a request.
pub enum ProxyAction {
    /// Forward it to the API server.
    Pass,
    /// Forward it with another path and query.
    PassWithUri(String),
    /// Respond with a status, headers and text.
    Respond(u16, Vec<(&'static str, &'static str)>, String),
    /// Respond with a text, and close the connection before the end of the body.
    BreakMidBody(String),
    /// Send the response headers, and no body.
    StallAfterHeaders,
    /// Send no response.
    NeverRespond,
}

type Rule = Arc<dyn Fn(&str, &Uri) -> ProxyAction + Send + Sync>;
type Frames = StreamBody<BoxStream<'static, Result<Frame<Bytes>, String>>>;
type ProxyResponse = Response<Frames>;

/// A proxy with a rule that selects an action for each request.
pub struct ApiProxy {
    pub kubeconfig: PathBuf,
    state: Arc<State>,
    _home: TempDir,
    task: JoinHandle<()>,
}

struct State {
    client: Client,
    rule: Mutex<Rule>,
    /// Incremented to end all responses in progress.
    cut_signal: watch::Sender<u64>,
    /// The times of the requests that were not forwarded.
    intercepted: Mutex<Vec<Instant>>,
}

impl ApiProxy {
    /// Starts a proxy with the credentials of evenkeel's account. It forwards all requests until a rule is set.
    pub async fn start(ns: &TestNamespace<'_>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let home = tempfile::tempdir().unwrap();
        let kubeconfig = home.path().join("kubeconfig");
        let server = json!({ "server": format!("http://{}", listener.local_addr().unwrap()) });
        let text = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "proxy", "cluster": server }],
            "contexts": [{ "name": "proxy", "context": { "cluster": "proxy", "user": "" } }],
            "current-context": "proxy",
        });
        std::fs::write(&kubeconfig, text.to_string()).unwrap();
        let state = Arc::new(State {
            client: ns.cluster.client_for(&ns.kubeconfig).await,
            rule: Mutex::new(Arc::new(|_, _| ProxyAction::Pass)),
            cut_signal: watch::channel(0).0,
            intercepted: Mutex::default(),
        });
        let serving = state.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let state = serving.clone();
                let service = service_fn(move |request| handle_request(state.clone(), request));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { kubeconfig, state, _home: home, task }
    }

    /// Sets the rule, by method and URI, and ends all responses in progress.
    pub fn set_rule(&self, rule: impl Fn(&str, &Uri) -> ProxyAction + Send + Sync + 'static) {
        *self.state.rule.lock().unwrap() = Arc::new(rule);
        self.state.intercepted.lock().unwrap().clear();
        self.state.cut_signal.send_modify(|cuts| *cuts += 1);
    }

    /// Forwards all requests again.
    pub fn pass_all(&self) {
        self.set_rule(|_, _| ProxyAction::Pass);
    }

    /// Returns the times of the requests that were not forwarded since the rule was set.
    pub fn intercepted(&self) -> Vec<Instant> {
        self.state.intercepted.lock().unwrap().clone()
    }
}

impl Drop for ApiProxy {
    fn drop(&mut self) {
        self.task.abort();
        self.pass_all();
    }
}

async fn handle_request(state: Arc<State>, request: Request<Incoming>) -> Result<ProxyResponse, Infallible> {
    let rule = state.rule.lock().unwrap().clone();
    let action = rule(request.method().as_str(), request.uri());
    if !matches!(action, ProxyAction::Pass | ProxyAction::PassWithUri(_)) {
        state.intercepted.lock().unwrap().push(Instant::now());
    }
    let mut cuts = state.cut_signal.subscribe();
    let cut = async move {
        let _ = cuts.changed().await;
    };
    let (mut parts, body) = request.into_parts();
    Ok(match action {
        ProxyAction::NeverRespond => {
            cut.await;
            full_response(503, &[], String::new())
        }
        ProxyAction::Respond(status, headers, text) => full_response(status, &headers, text),
        ProxyAction::BreakMidBody(text) => {
            let text = stream::iter([Ok(Frame::data(text.into()))]);
            // The text must have been sent before the connection is closed.
            let end = stream::once(async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Err("connection closed by the rule".to_owned())
            });
            Response::new(body_until(text.chain(end), cut))
        }
        ProxyAction::StallAfterHeaders => Response::new(body_until(stream::pending(), cut)),
        ProxyAction::Pass | ProxyAction::PassWithUri(_) => {
            if let ProxyAction::PassWithUri(path) = action {
                parts.uri = path.parse().unwrap();
            }
            let body = body.collect().await.unwrap().to_bytes();
            match state.client.send(Request::from_parts(parts, Body::from(body))).await {
                Ok(response) => {
                    let (parts, body) = response.into_parts();
                    let frames = BodyStream::new(body).map(|frame| frame.map_err(|error| error.to_string()));
                    Response::from_parts(parts, body_until(frames, cut))
                }
                Err(error) => full_response(502, &[], error.to_string()),
            }
        }
    })
}

/// Returns a body of these frames, which ends early when `cut` is ready.
fn body_until(
    frames: impl Stream<Item = Result<Frame<Bytes>, String>> + Send + 'static,
    cut: impl Future<Output = ()> + Send + 'static,
) -> Frames {
    StreamBody::new(frames.take_until(cut).boxed())
}

fn full_response(status: u16, headers: &[(&str, &str)], text: String) -> ProxyResponse {
    let frame = Ok(Frame::data(text.into()));
    let mut response = Response::new(StreamBody::new(stream::iter([frame]).boxed()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        response.headers_mut().insert(HeaderName::from_str(name).unwrap(), value.parse().unwrap());
    }
    response
}
