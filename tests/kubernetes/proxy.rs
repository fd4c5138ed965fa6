//! Stands between evenkeel and the API server, and answers some requests in its place.

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

/// What becomes of a request.
pub enum ProxyAction {
    /// It reaches the API server.
    Pass,
    /// It reaches it with another path and query.
    PassWithUri(String),
    /// It is answered with a status, headers and text.
    Respond(u16, Vec<(&'static str, &'static str)>, String),
    /// It is answered with a text in the middle of which the connection breaks.
    BreakMidBody(String),
    /// The answer begins, and nothing follows.
    StallAfterHeaders,
    /// There is no answer.
    NeverRespond,
}

type Rule = Arc<dyn Fn(&str, &Uri) -> ProxyAction + Send + Sync>;
type Frames = StreamBody<BoxStream<'static, Result<Frame<Bytes>, String>>>;
type ProxyResponse = Response<Frames>;

/// A proxy with a rule.
pub struct ApiProxy {
    pub kubeconfig: PathBuf,
    state: Arc<State>,
    _home: TempDir,
    task: JoinHandle<()>,
}

struct State {
    client: Client,
    rule: Mutex<Rule>,
    /// Grows when the answers that are under way are to end.
    cut_signal: watch::Sender<u64>,
    /// When requests did not pass.
    intercepted: Mutex<Vec<Instant>>,
}

impl ApiProxy {
    /// One for evenkeel's account that lets everything pass.
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

    /// From now on this rule decides, by method and path; every answer that is under way ends.
    pub fn set_rule(&self, rule: impl Fn(&str, &Uri) -> ProxyAction + Send + Sync + 'static) {
        *self.state.rule.lock().unwrap() = Arc::new(rule);
        self.state.intercepted.lock().unwrap().clear();
        self.state.cut_signal.send_modify(|cuts| *cuts += 1);
    }

    /// Everything passes again.
    pub fn pass_all(&self) {
        self.set_rule(|_, _| ProxyAction::Pass);
    }

    /// When requests were not let through since the rule is in force.
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
    let fate = rule(request.method().as_str(), request.uri());
    if !matches!(fate, ProxyAction::Pass | ProxyAction::PassWithUri(_)) {
        state.intercepted.lock().unwrap().push(Instant::now());
    }
    let mut cuts = state.cut_signal.subscribe();
    let cut = async move {
        let _ = cuts.changed().await;
    };
    let (mut parts, body) = request.into_parts();
    Ok(match fate {
        ProxyAction::NeverRespond => {
            cut.await;
            full_response(503, &[], String::new())
        }
        ProxyAction::Respond(status, headers, text) => full_response(status, &headers, text),
        ProxyAction::BreakMidBody(text) => {
            let text = stream::iter([Ok(Frame::data(text.into()))]);
            // It must have left before the connection breaks.
            let end = stream::once(async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Err("it breaks off".to_owned())
            });
            Response::new(body_until(text.chain(end), cut))
        }
        ProxyAction::StallAfterHeaders => Response::new(body_until(stream::pending(), cut)),
        ProxyAction::Pass | ProxyAction::PassWithUri(_) => {
            if let ProxyAction::PassWithUri(path) = fate {
                parts.uri = path.parse().unwrap();
            }
            let body = body.collect().await.unwrap().to_bytes();
            match state.client.send(Request::from_parts(parts, Body::from(body))).await {
                Ok(answer) => {
                    let (parts, body) = answer.into_parts();
                    let frames = BodyStream::new(body).map(|frame| frame.map_err(|error| error.to_string()));
                    Response::from_parts(parts, body_until(frames, cut))
                }
                Err(error) => full_response(502, &[], error.to_string()),
            }
        }
    })
}

/// Frames until they end, or until `cut`.
fn body_until(
    frames: impl Stream<Item = Result<Frame<Bytes>, String>> + Send + 'static,
    cut: impl Future<Output = ()> + Send + 'static,
) -> Frames {
    StreamBody::new(frames.take_until(cut).boxed())
}

fn full_response(status: u16, headers: &[(&str, &str)], text: String) -> ProxyResponse {
    let frame = Ok(Frame::data(text.into()));
    let mut answer = Response::new(StreamBody::new(stream::iter([frame]).boxed()));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        answer.headers_mut().insert(HeaderName::from_str(name).unwrap(), value.parse().unwrap());
    }
    answer
}
