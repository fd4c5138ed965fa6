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

use crate::site::Site;

/// What becomes of a request.
pub enum Fate {
    /// It reaches the API server.
    Pass,
    /// It reaches it with another path and query.
    PassAs(String),
    /// It is answered with a status, headers and text.
    Answer(u16, Vec<(&'static str, &'static str)>, String),
    /// It is answered with a text in the middle of which the connection breaks.
    Half(String),
    /// The answer begins, and nothing follows.
    Silence,
    /// There is no answer.
    Nothing,
}

type Rule = Arc<dyn Fn(&str, &Uri) -> Fate + Send + Sync>;
type Frames = StreamBody<BoxStream<'static, Result<Frame<Bytes>, String>>>;
type Answer = Response<Frames>;

/// A proxy with a rule.
pub struct Proxy {
    pub kubeconfig: PathBuf,
    state: Arc<State>,
    _home: TempDir,
    task: JoinHandle<()>,
}

struct State {
    client: Client,
    rule: Mutex<Rule>,
    /// Grows when the answers that are under way are to end.
    cuts: watch::Sender<u64>,
    /// When requests did not pass.
    stopped: Mutex<Vec<Instant>>,
}

impl Proxy {
    /// One for evenkeel's account that lets everything pass.
    pub async fn start(site: &Site<'_>) -> Self {
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
            client: site.cluster.client_of(&site.kubeconfig).await,
            rule: Mutex::new(Arc::new(|_, _| Fate::Pass)),
            cuts: watch::channel(0).0,
            stopped: Mutex::default(),
        });
        let serving = state.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let state = serving.clone();
                let service = service_fn(move |request| answer(state.clone(), request));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { kubeconfig, state, _home: home, task }
    }

    /// From now on this rule decides, by method and path; every answer that is under way ends.
    pub fn rule(&self, rule: impl Fn(&str, &Uri) -> Fate + Send + Sync + 'static) {
        *self.state.rule.lock().unwrap() = Arc::new(rule);
        self.state.stopped.lock().unwrap().clear();
        self.state.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Everything passes again.
    pub fn pass(&self) {
        self.rule(|_, _| Fate::Pass);
    }

    /// When requests were not let through since the rule is in force.
    pub fn stopped(&self) -> Vec<Instant> {
        self.state.stopped.lock().unwrap().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.pass();
    }
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let rule = state.rule.lock().unwrap().clone();
    let fate = rule(request.method().as_str(), request.uri());
    if !matches!(fate, Fate::Pass | Fate::PassAs(_)) {
        state.stopped.lock().unwrap().push(Instant::now());
    }
    let mut cuts = state.cuts.subscribe();
    let cut = async move {
        let _ = cuts.changed().await;
    };
    let (mut parts, body) = request.into_parts();
    Ok(match fate {
        Fate::Nothing => {
            cut.await;
            whole(503, &[], String::new())
        }
        Fate::Answer(status, headers, text) => whole(status, &headers, text),
        Fate::Half(text) => {
            let text = stream::iter([Ok(Frame::data(text.into()))]);
            // It must have left before the connection breaks.
            let end = stream::once(async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Err("it breaks off".to_owned())
            });
            Response::new(until(text.chain(end), cut))
        }
        Fate::Silence => Response::new(until(stream::pending(), cut)),
        Fate::Pass | Fate::PassAs(_) => {
            if let Fate::PassAs(path) = fate {
                parts.uri = path.parse().unwrap();
            }
            let body = body.collect().await.unwrap().to_bytes();
            match state.client.send(Request::from_parts(parts, Body::from(body))).await {
                Ok(answer) => {
                    let (parts, body) = answer.into_parts();
                    let frames = BodyStream::new(body).map(|frame| frame.map_err(|error| error.to_string()));
                    Response::from_parts(parts, until(frames, cut))
                }
                Err(error) => whole(502, &[], error.to_string()),
            }
        }
    })
}

/// Frames until they end, or until `cut`.
fn until(
    frames: impl Stream<Item = Result<Frame<Bytes>, String>> + Send + 'static,
    cut: impl Future<Output = ()> + Send + 'static,
) -> Frames {
    StreamBody::new(frames.take_until(cut).boxed())
}

fn whole(status: u16, headers: &[(&str, &str)], text: String) -> Answer {
    let frame = Ok(Frame::data(text.into()));
    let mut answer = Response::new(StreamBody::new(stream::iter([frame]).boxed()));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        answer.headers_mut().insert(HeaderName::from_str(name).unwrap(), value.parse().unwrap());
    }
    answer
}
